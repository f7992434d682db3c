"""What `[plugins.anthropic]` may say, and `options` of a backend."""

from __future__ import annotations

from typing import Literal

from headrace.config import Count, Strict


class AnthropicConfig(Strict, frozen=True):
    """`[plugins.anthropic]`: how Messages requests are asked of backends that have chats alone."""

    reasoning_effort: bool = True
    """Whether these backends are told by `reasoning_effort` how much to think (`thinking`, `output_config.effort`).
    False for backends that refuse the field: then clients are told that it was dropped."""


class Options(Strict, frozen=True):
    """`options` of a backend of the provider `anthropic`."""

    max_tokens: Count = 8192
    """Tokens of an answer to a chat that sets no limit: Anthropic's API wants one."""
    thinking: Literal["adaptive", "budget", "none"] = "adaptive"
    """How chat's `reasoning_effort` is said: `adaptive` by `output_config.effort`, for Claude 4.6 and later; `budget`
    by `thinking.budget_tokens`, for earlier ones; `none` not at all."""
