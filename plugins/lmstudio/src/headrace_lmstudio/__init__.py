"""LM Studio: the provider `lmstudio`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace import hookimpl
from headrace.config import Strict

if TYPE_CHECKING:
    from headrace.gateway import Gateway, Register

    from .provider import LMStudioProvider


class LMStudioConfig(Strict, frozen=True):
    """`[plugins.lmstudio]`: nothing to set here; everything about a backend stands with the backend."""


class Plugin:
    """Registers the provider `lmstudio` and its health check."""

    Config = LMStudioConfig

    def __init__(self, config: LMStudioConfig, gateway: Gateway) -> None:
        self._gateway = gateway

    @property
    def provider(self) -> LMStudioProvider:
        from .provider import LMStudioProvider

        return LMStudioProvider(self._gateway)

    @hookimpl
    def register_providers(self, register: Register) -> None:
        register(self.provider)

    @hookimpl
    def register_health_checks(self, register: Register) -> None:
        from headrace.presets import PresetCheck

        register(PresetCheck(self.provider), name="lmstudio")


__all__: Sequence[str] = ["LMStudioConfig", "Plugin"]
