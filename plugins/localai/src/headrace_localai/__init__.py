"""LocalAI: the provider `localai`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace import hookimpl
from headrace.config import Strict

if TYPE_CHECKING:
    from headrace.gateway import Gateway, Register

    from .provider import LocalAIProvider


class LocalAIConfig(Strict, frozen=True):
    """`[plugins.localai]`: nothing to set here; everything about a backend stands with the backend."""


class Plugin:
    """Registers the provider `localai` and its health check."""

    Config = LocalAIConfig

    def __init__(self, config: LocalAIConfig, gateway: Gateway) -> None:
        self._gateway = gateway

    @property
    def provider(self) -> LocalAIProvider:
        from .provider import LocalAIProvider

        return LocalAIProvider(self._gateway)

    @hookimpl
    def register_providers(self, register: Register) -> None:
        register(self.provider)

    @hookimpl
    def register_health_checks(self, register: Register) -> None:
        from headrace.presets import PresetCheck

        register(PresetCheck(self.provider), name="localai")


__all__: Sequence[str] = ["LocalAIConfig", "Plugin"]
