"""Browsers from other origins."""
