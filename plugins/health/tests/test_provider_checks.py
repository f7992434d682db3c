"""Providers that bring a check of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from headrace import hookimpl
from headrace.errors import Unavailable, UpstreamError
from headrace.exchange import Target
from headrace.openai_api import OpenAIBackend
from headrace.providers import Health
from headrace.testing import serve
from headrace_health import Plugin

WELL = Health(ok=True)


class Brought(OpenAIBackend):
    """A provider whose backends are as its check says."""

    name = "brought"
    says: Health | Exception = WELL
    lists: Sequence[str] | Exception = ()
    asked = 0

    def target(self, name: str, config: Any) -> Target:
        return Target(name=name, provider=self.name, base_url="http://127.0.0.1:9/v1", model=config.model)

    async def check(self, target: Target) -> Health:
        self.asked += 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    async def models(self, target: Target) -> Sequence[str]:
        if isinstance(self.lists, Exception):
            raise self.lists
        return self.lists


async def state_of(says: Health | Exception, lists: Sequence[str] | Exception = (), **options: Any) -> Any:
    """What becomes of a backend whose provider says this. `check`: whether it brings a check at all."""

    class Bringing:
        def __init__(self, config: Any, gateway: Any) -> None:
            self._provider = Brought(gateway)
            self._provider.says, self._provider.lists = says, lists

        @hookimpl
        def register_providers(self, register: Any) -> None:
            register(self._provider)

        @hookimpl
        def register_health_checks(self, register: Any) -> None:
            if options.get("check", True):
                register(self._provider, name="brought")

    document = {
        "server": {"anonymous": True},
        "models": {"m": {"targets": [{"provider": "brought"}]}},
        "plugins": {"health": {"interval": 3600.0, "targets": options.get("targets", {})}},
    }
    async with serve(document, {"bringing": Bringing, "health": Plugin}) as running:
        plugin = running.gateway.plugins["health"]
        await plugin.checked()
        return plugin.watches["m-0"].target.state


@pytest.mark.parametrize(
    ("says", "condition", "reason"),
    [
        (WELL, "up", ""),
        (Health(ok=True, reason="slow today"), "up", "slow today"),
        (Health(ok=False, reason="no disk"), "down", "no disk"),
        (Health(ok=False, starting=True, reason="loads"), "starting", "loads"),
        (Unavailable("Not there."), "down", "Not there."),
        (UpstreamError("No.", code="upstream_auth"), "down", "it refuses our key"),
        (ValueError("secret"), "down", "the check failed: ValueError"),
    ],
)
async def test_its_word_is_taken(says: Any, condition: str, reason: str) -> None:
    state = await state_of(says)
    assert (state.condition, state.reason) == (condition, reason)


async def test_the_models_are_those_that_the_provider_tells() -> None:
    assert (await state_of(WELL, ["a", "b"])).serves == {"a", "b"}


async def test_it_is_well_without_a_list() -> None:
    state = await state_of(WELL, UpstreamError("There is none."))
    assert (state.condition, state.serves) == ("up", None)


async def test_a_provider_without_a_check_is_asked_for_its_models() -> None:
    state = await state_of(ValueError("never asked"), ["a"], check=False)
    assert (state.condition, state.serves) == ("up", {"a"})


async def test_a_kind_that_is_configured_goes_before_it() -> None:
    assert (await state_of(Health(ok=False), targets={"m-0": {"kind": "none"}})).condition == "up"
