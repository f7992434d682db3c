"""llama.cpp: the provider `llamacpp`, and servers that `headrace up` starts, watches and ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace import hookimpl

from .config import EngineConfig, LlamacppConfig

if TYPE_CHECKING:
    import click

    from headrace.gateway import Gateway, Register
    from headrace.supervisor import Process


class Plugin:
    """Registers the provider `llamacpp`, its health check, its engines."""

    Config = LlamacppConfig

    def __init__(self, config: LlamacppConfig, gateway: Gateway) -> None:
        self.config = config
        self._gateway = gateway

    @hookimpl
    def register_providers(self, register: Register) -> None:
        from .provider import LlamacppProvider

        register(LlamacppProvider(self._gateway, self.config))

    @hookimpl
    def register_health_checks(self, register: Register) -> None:
        from .health import LlamacppCheck

        register(LlamacppCheck(self._gateway), name="llamacpp")

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        from .commands import llamacpp

        cli.add_command(llamacpp)

    @hookimpl
    def processes(self, gateway: Gateway) -> Sequence[Process]:
        from .launcher import processes

        return processes(self.config, gateway)

    @hookimpl
    def check_reload(self, gateway: Gateway) -> None:
        from .launcher import check_reload

        check_reload(self.config, gateway)


__all__: Sequence[str] = ["EngineConfig", "LlamacppConfig", "Plugin"]
