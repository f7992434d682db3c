"""vLLM: the provider `vllm`, and engines that `headrace up` starts, watches and ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace import hookimpl

from .config import EngineConfig, VllmConfig

if TYPE_CHECKING:
    import click

    from headrace.gateway import Gateway, Register
    from headrace.supervisor import Process

    from .provider import VllmProvider


class Plugin:
    """Registers the provider `vllm`, its health check, its engines."""

    Config = VllmConfig

    def __init__(self, config: VllmConfig, gateway: Gateway) -> None:
        self.config = config
        self._gateway = gateway
        self._provider: VllmProvider | None = None

    @property
    def provider(self) -> VllmProvider:
        if self._provider is None:
            from .provider import VllmProvider

            self._provider = VllmProvider(self._gateway, self.config)
        return self._provider

    @hookimpl
    def register_providers(self, register: Register) -> None:
        register(self.provider)

    @hookimpl
    def register_health_checks(self, register: Register) -> None:
        from .health import VllmCheck

        register(VllmCheck(self._gateway, self.provider), name="vllm")

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        if self.config.admin_api:
            from .api import AdminAPI

            AdminAPI(gateway).add_routes()

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        from .commands import vllm

        cli.add_command(vllm)

    @hookimpl
    def processes(self, gateway: Gateway) -> Sequence[Process]:
        from .launcher import processes

        return processes(self.config, gateway)

    @hookimpl
    def check_reload(self, gateway: Gateway) -> None:
        from .launcher import check_reload

        check_reload(self.config, gateway)


__all__: Sequence[str] = ["EngineConfig", "Plugin", "VllmConfig"]
