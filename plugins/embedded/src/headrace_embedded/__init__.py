"""A real small model in a process of its own: SmolLM2 by default, any local GGUF by path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from headrace import hookimpl
from headrace.config import Count, Positive, Strict

if TYPE_CHECKING:
    import click

    from headrace.gateway import Gateway, Register
    from headrace.supervisor import Process


class EmbeddedConfig(Strict, frozen=True):
    """`[plugins.embedded]`: which model the engine runs, and with how much of the machine."""

    model: str = "smollm2"
    """`smollm2` (get it with `headrace embedded fetch`), or the path of any GGUF file."""
    name: str = ""
    """What the engine calls its model in its answers; empty: `smollm2`, or the file's name without `.gguf`."""
    threads: Count | None = None
    """CPU threads that compute; left out, all cores but one."""
    context: Annotated[int, msgspec.Meta(ge=64)] = 8192
    """Tokens that one request may use, prompt and answer together. Lowered to what the model was trained for.
    Memory is reserved for `context` times `parallel` tokens: 23 kB each with SmolLM2."""
    parallel: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    """Requests that are answered at the same time; more of them wait their turn."""
    batch: Annotated[int, msgspec.Meta(ge=1, le=2048)] = 4
    """Prompt tokens computed in one step. A step cannot be interrupted: while it lasts no other request moves on,
    and a client that left is not noticed. Large models on fast machines read prompts faster with 64 or more."""
    embeddings: bool = False
    """Answer embedding requests as well. An input must then fit into one step, which becomes 512 tokens at least."""
    pooling: Literal["model", "mean", "cls", "last"] = "model"
    """How an embedding is made from those of the tokens; `model` is what the GGUF file says. Chat models say
    nothing: choose `mean` for them."""
    ready_timeout: Positive = 120.0
    """Seconds the engine may take to load its model."""


class Plugin:
    """Registers the provider `embedded`, and the engine process that it talks to."""

    Config = EmbeddedConfig

    def __init__(self, config: EmbeddedConfig, gateway: Gateway) -> None:
        self._config = config
        self._gateway = gateway

    @hookimpl
    def register_providers(self, register: Register) -> None:
        from .provider import EmbeddedProvider

        register(EmbeddedProvider(self._gateway, self._config))

    @hookimpl
    def register_health_checks(self, register: Register) -> None:
        from .health import EngineCheck

        register(EngineCheck(), name="embedded")

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        from .commands import commands

        cli.add_command(commands(self._config, self._gateway))

    @hookimpl
    def processes(self, gateway: Gateway) -> Sequence[Process]:
        from .process import engine_process

        return [engine_process(self._config, gateway)]


__all__: Sequence[str] = ["EmbeddedConfig", "Plugin"]
