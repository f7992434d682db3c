"""Properties of what callers get, over real connections."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RUNS = settings(
    deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
choice = st.fixed_dictionaries({"index": st.integers(0, 1), "delta": st.fixed_dictionaries({"content": words})})
calls = st.fixed_dictionaries(
    {"index": st.just(0), "id": words, "function": st.fixed_dictionaries({"name": words, "arguments": words})}
)
tool = st.fixed_dictionaries({"index": st.just(0), "delta": st.fixed_dictionaries({"tool_calls": st.lists(calls)})})
ENDS: list[dict[str, Any]] = [{"index": index, "delta": {}, "finish_reason": "stop"} for index in (0, 1)]


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """A stream of two answers, in pieces that were cut anywhere."""
    choices = [*draw(st.lists(choice | tool, max_size=8)), *ENDS]
    chunks = [{"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [each]}
              for each in choices]  # fmt: skip
    end = draw(st.sampled_from(["\n", "\r\n"])) * 2
    data = "".join(f"data: {json.dumps(each, ensure_ascii=False)}{end}" for each in chunks) + f"data: [DONE]{end}"
    encoded = data.encode()
    cuts = sorted(draw(st.lists(st.integers(1, len(encoded) - 1), max_size=10, unique=True)))
    return [encoded[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]


@RUNS
@given(st.lists(streams(), min_size=1, max_size=4))
def test_the_sdk_reads_a_replayed_stream_as_it_read_the_original(cached: Any, backend: Any, given_: Any) -> None:
    async def go() -> None:
        async with type(backend)() as own, cached(own=own) as gateway:
            client = openai.AsyncOpenAI(base_url=f"{gateway.running.url}/v1", api_key="x", max_retries=0)
            async with client:
                for number, pieces in enumerate(given_):
                    own.pieces = pieces
                    first, again = await read(client, number), await read(client, number)
                    assert first == again
                assert gateway.asked == len(given_) == gateway.counts().hits

    asyncio.run(go())


async def read(client: openai.AsyncOpenAI, number: int) -> list[Any]:
    answer = await client.chat.completions.create(
        model="test", messages=[{"role": "user", "content": "a"}], seed=number, n=2, stream=True
    )
    return [chunk.model_dump() async for chunk in answer]


requests = st.tuples(st.sampled_from(["a", "b", "a/red", "b/red", "red", "c/blue"]), st.integers(0, 2))


@RUNS
@given(st.lists(st.lists(requests, min_size=1, max_size=6), min_size=1, max_size=6))
def test_a_tenant_never_sees_the_answer_of_another(cached: Any, backend: Any, rounds: Any) -> None:
    """Rounds of requests, those of one round at the same time."""

    async def go() -> None:
        seen: dict[str, set[str]] = {}
        async with type(backend)() as own, cached(own=own) as gateway:
            own.numbered = True
            for asked in rounds:
                bodies = [{**BODY, "seed": seed} for _, seed in asked]
                asks = (gateway.ask(body, x_who=who) for body, (who, _) in zip(bodies, asked, strict=True))
                for answer, (who, _) in zip(await asyncio.gather(*asks), asked, strict=True):
                    name, _, team = who.partition("/")
                    seen.setdefault(f"team {team}" if team else name, set()).add(answer.json()["id"])
        answers = [each for given_ in seen.values() for each in given_]
        assert len(answers) == len(set(answers))

    asyncio.run(go())


BODY = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
