"""text-generation-webui: the provider `textgen`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace import hookimpl
from headrace.config import Strict

if TYPE_CHECKING:
    from headrace.gateway import Gateway, Register

    from .provider import TextgenProvider


class TextgenConfig(Strict, frozen=True):
    """`[plugins.textgen]`: nothing to set here; everything about a backend stands with the backend."""


class Plugin:
    """Registers the provider `textgen` and its health check."""

    Config = TextgenConfig

    def __init__(self, config: TextgenConfig, gateway: Gateway) -> None:
        self._gateway = gateway

    @property
    def provider(self) -> TextgenProvider:
        from .provider import TextgenProvider

        return TextgenProvider(self._gateway)

    @hookimpl
    def register_providers(self, register: Register) -> None:
        register(self.provider)

    @hookimpl
    def register_health_checks(self, register: Register) -> None:
        from headrace.presets import PresetCheck

        register(PresetCheck(self.provider), name="textgen")


__all__: Sequence[str] = ["Plugin", "TextgenConfig"]
