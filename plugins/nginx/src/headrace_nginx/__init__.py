"""nginx in front: TLS, HTTP/2, limits, its own errors in the OpenAI envelope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from headrace import hookimpl

from .config import NginxConfig, ThrottleConfig
from .measures import Measures

if TYPE_CHECKING:
    import click

    from headrace.gateway import Gateway
    from headrace.supervisor import Process

    from .service import Service


class Plugin:
    """Puts nginx before the core and keeps both in one configuration file."""

    Config = NginxConfig

    def __init__(self, config: NginxConfig, gateway: Gateway) -> None:
        self.config = config
        self._gateway = gateway
        self._service: Service | None = None
        gateway.collectors.append(Measures(config, gateway))

    @property
    def service(self) -> Service:
        """nginx for this gateway; the search for a binary happens once, when it is first needed."""
        if self._service is None:
            from .service import Service

            self._service = Service(self.config, self._gateway)
        return self._service

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        from .commands import nginx

        cli.add_command(nginx)

    @hookimpl
    def processes(self, gateway: Gateway) -> Sequence[Process]:
        return self.service.processes()

    @hookimpl
    def check_reload(self) -> None:
        self.service.check_reload()

    @hookimpl
    def reload(self) -> None:
        self.service.take_over()

    @hookimpl
    def announce(self, gateway: Gateway) -> Mapping[str, str]:
        return self.service.announce()


__all__: Sequence[str] = ["NginxConfig", "Plugin", "ThrottleConfig"]
