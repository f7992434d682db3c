"""The benchmark: what a request costs in nginx alone, in Headrace, and in other gateways. `run.py` runs it."""
