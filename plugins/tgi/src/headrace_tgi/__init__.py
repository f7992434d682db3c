"""Hugging Face's text-generation-inference: the provider `tgi`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace import hookimpl
from headrace.config import Strict

if TYPE_CHECKING:
    from headrace.gateway import Gateway, Register

    from .provider import TgiProvider


class TgiConfig(Strict, frozen=True):
    """`[plugins.tgi]`: nothing to set here; everything about a backend stands with the backend."""


class Plugin:
    """Registers the provider `tgi` and its health check."""

    Config = TgiConfig

    def __init__(self, config: TgiConfig, gateway: Gateway) -> None:
        self._gateway = gateway

    @property
    def provider(self) -> TgiProvider:
        from .provider import TgiProvider

        return TgiProvider(self._gateway)

    @hookimpl
    def register_providers(self, register: Register) -> None:
        register(self.provider)

    @hookimpl
    def register_health_checks(self, register: Register) -> None:
        from headrace.presets import PresetCheck

        register(PresetCheck(self.provider), name="tgi")


__all__: Sequence[str] = ["Plugin", "TgiConfig"]
