"""Headrace: an OpenAI-compatible gateway for self-hosted LLMs. Python decides, nginx streams.

Plugins import `hookimpl` from here and the rest from the module that names it (`headrace.exchange`, `headrace.errors`,
`headrace.providers`, `headrace.config`, `headrace.streaming`).
"""

from .kinds import hookimpl

__all__ = ["hookimpl"]
