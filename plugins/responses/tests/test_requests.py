"""What the rest of the gateway sees of this endpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace import hookimpl
from headrace.estimate import asked_tokens, check_fields
from headrace.exchange import Exchange


class Reckoning:
    """As plugins do that limit tokens."""

    def __init__(self, config: Any, gateway: Any) -> None:
        self.asked: list[int] = []
        gateway.reckoning = self

    @hookimpl
    async def transform_request(self, exchange: Exchange) -> None:
        check_fields(exchange)
        self.asked.append(asked_tokens(exchange))


async def test_the_limit_of_an_answer_can_be_reckoned_with(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    backend.reply = kit.said()
    async with gateway(plugins={"reckoning": Reckoning}) as asker:
        answer = await asker.ask(max_output_tokens=40)
        seen = asker.gateway.reckoning.asked
    assert answer.status_code == 200, answer.text
    assert seen == [40]


async def test_a_wrong_method_is_told_of(gateway: Callable[..., Any]) -> None:
    async with gateway() as asker:
        answer = await asker.client.put("/v1/responses", json={})
    assert answer.status_code == 405


async def test_a_key_that_may_not_use_the_endpoint_is_refused(gateway: Callable[..., Any], backend: Any) -> None:
    async with gateway() as asker:
        answer = await asker.ask("chatter")
    assert answer.status_code == 403
    assert backend.requests == []
