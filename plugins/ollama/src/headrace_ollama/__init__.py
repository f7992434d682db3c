"""Ollama: the provider `ollama`, which speaks Ollama's own API, and commands to look after its models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace import hookimpl
from headrace.config import Strict

if TYPE_CHECKING:
    import click

    from headrace.gateway import Gateway, Register


class OllamaConfig(Strict, frozen=True):
    """`[plugins.ollama]`: nothing to set here; everything about a backend stands with the backend."""


class Plugin:
    """Registers the provider `ollama`, its health check, its commands."""

    Config = OllamaConfig

    def __init__(self, config: OllamaConfig, gateway: Gateway) -> None:
        self._gateway = gateway

    @hookimpl
    def register_providers(self, register: Register) -> None:
        from .provider import OllamaProvider, PassingProvider

        register(OllamaProvider(self._gateway))
        register(PassingProvider(self._gateway))

    @hookimpl
    def register_health_checks(self, register: Register) -> None:
        from .health import OllamaCheck
        from .provider import NAMES

        for name in NAMES:
            register(OllamaCheck(self._gateway), name=name)

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        from .commands import ollama

        cli.add_command(ollama)


__all__: Sequence[str] = ["OllamaConfig", "Plugin"]
