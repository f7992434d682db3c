"""MLX LM's server: the provider `mlx`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace import hookimpl
from headrace.config import Strict

if TYPE_CHECKING:
    from headrace.gateway import Gateway, Register

    from .provider import MlxProvider


class MlxConfig(Strict, frozen=True):
    """`[plugins.mlx]`: nothing to set here; everything about a backend stands with the backend."""


class Plugin:
    """Registers the provider `mlx` and its health check."""

    Config = MlxConfig

    def __init__(self, config: MlxConfig, gateway: Gateway) -> None:
        self._gateway = gateway

    @property
    def provider(self) -> MlxProvider:
        from .provider import MlxProvider

        return MlxProvider(self._gateway)

    @hookimpl
    def register_providers(self, register: Register) -> None:
        register(self.provider)

    @hookimpl
    def register_health_checks(self, register: Register) -> None:
        from headrace.presets import PresetCheck

        register(PresetCheck(self.provider), name="mlx")


__all__: Sequence[str] = ["MlxConfig", "Plugin"]
