"""A real small model in a process of its own: SmolLM2 by default, any local GGUF by path."""
