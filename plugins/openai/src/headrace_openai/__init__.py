"""Provider for any OpenAI-compatible server.

Bodies are passed on byte for byte; only the model's name is replaced, and only where the backend knows the model by
another name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace import hookimpl
from headrace.config import Strict

if TYPE_CHECKING:
    from headrace.gateway import Gateway, Register


class OpenAIConfig(Strict, frozen=True):
    """`[plugins.openai]`: nothing to set here; everything about a backend stands with the backend."""


class Plugin:
    """Registers the provider `openai`."""

    Config = OpenAIConfig

    def __init__(self, config: OpenAIConfig, gateway: Gateway) -> None:
        self._gateway = gateway

    @hookimpl
    def register_providers(self, register: Register) -> None:
        from .provider import OpenAIProvider

        register(OpenAIProvider(self._gateway))


__all__: Sequence[str] = ["OpenAIConfig", "Plugin"]
