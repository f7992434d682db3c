"""Models that nobody configured: those that certain backends list."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from headrace.errors import ConfigError, HeadraceError
from headrace.gateway import Gateway
from headrace.settings import parse


def body_of(server: Any) -> list[str]:
    return [path for path in server.paths if path.endswith("/chat/completions")]


ANSWER = (200, {"id": "c", "object": "chat.completion", "choices": []})


@pytest.fixture
def discovering(engine: Any, listing: Any, watching: Any) -> Any:
    """A context: a gateway that discovers the models of `spare`, a backend that no model uses."""

    def run(server: Any, other: Any, **health: Any) -> Any:
        tables = {"gpu": {"provider": "openai", "base_url": other.url}, "spare": {"provider": "openai"}}
        tables["spare"]["base_url"] = server.url
        more = {"backends": tables, "models": {"test": {"targets": ["gpu"], "aliases": ["alias"]}}}
        return watching({}, more, **{"discover": ["spare"], **health})

    return run


def server_with(engine: Any, models: Any) -> Any:
    return engine({"/v1/models": models, "/v1/chat/completions": ANSWER})


async def listed(running: Any, **headers: str) -> list[str]:
    return [each["id"] for each in (await running.get("/v1/models", **headers)).json()["data"]]


async def test_what_a_backend_lists_can_be_asked_for(engine: Any, listing: Any, discovering: Any) -> None:
    async with (
        server_with(engine, listing("llama", "my-lora")) as spare,
        server_with(engine, listing("x")) as gpu,
        discovering(spare, gpu) as running,
    ):
        assert await listed(running) == ["test", "alias", "llama", "my-lora"]
        answer = await running.ask("my-lora")
        assert (answer.status_code, body_of(spare), body_of(gpu)) == (200, ["/v1/chat/completions"], [])


async def test_a_configured_name_stays_what_it_is(engine: Any, listing: Any, discovering: Any) -> None:
    async with (
        server_with(engine, listing("test", "alias")) as spare,
        server_with(engine, listing("test")) as gpu,
        discovering(spare, gpu) as running,
    ):
        assert await listed(running) == ["test", "alias"]
        await running.ask("alias")
        assert (body_of(spare), body_of(gpu)) == ([], ["/v1/chat/completions"])


async def test_a_model_that_is_loaded_later_appears_and_one_that_is_gone_disappears(
    engine: Any, listing: Any, discovering: Any
) -> None:
    async with (
        server_with(engine, listing("old")) as spare,
        server_with(engine, listing("x")) as gpu,
        discovering(spare, gpu, interval=0.05) as running,
    ):
        spare.answers["/v1/models"] = listing("new")
        await running.until(lambda: "new" in running.running.gateway.models.names())
        assert await listed(running) == ["test", "alias", "new"]
        assert (await running.ask("old")).status_code == 404


async def test_a_backend_that_is_down_keeps_its_models(engine: Any, listing: Any, discovering: Any) -> None:
    async with (
        server_with(engine, listing("llama")) as spare,
        server_with(engine, listing("x")) as gpu,
        discovering(spare, gpu, interval=0.05) as running,
    ):
        await spare.stop()
        await running.becomes("spare", "down")
        assert await listed(running) == ["test", "alias", "llama"]
        assert (await running.ask("llama")).status_code == 503


async def test_a_model_of_several_backends_is_asked_of_those_that_list_it(
    engine: Any, listing: Any, discovering: Any
) -> None:
    async with (
        server_with(engine, listing("both", "mine")) as spare,
        server_with(engine, listing("both")) as gpu,
        discovering(spare, gpu, discover=["spare", "gpu"]) as running,
    ):
        models = running.running.gateway.models
        assert [target.name for target in models.find("both").targets] == ["spare", "gpu"]
        assert [target.name for target in models.find("mine").targets] == ["spare"]


async def test_a_backend_with_a_model_of_its_own_is_sent_the_discovered_name(
    engine: Any, listing: Any, watching: Any, target: Any
) -> None:
    async with server_with(engine, listing("llama", "lora")) as server:
        table = {"base_url": server.url, "model": "llama"}
        async with watching({"gpu": table}, discover=["gpu"]) as running:
            found = running.running.gateway.models.find("lora").targets[0]
            assert (found.model, found.state is running.state("gpu")) == (None, True)


async def test_a_key_for_some_models_sees_and_asks_no_others(engine: Any, listing: Any, discovering: Any) -> None:
    async with (
        server_with(engine, listing("llama")) as spare,
        server_with(engine, listing("x")) as gpu,
        discovering(spare, gpu) as running,
    ):
        assert await listed(running, **{"x-models": "test"}) == ["test", "alias"]
        body = {"model": "llama", "messages": [{"role": "user", "content": "hi"}]}
        headers = {"x-api-key": "ada", "x-models": "test"}
        answer = await running.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 403


async def test_a_wrong_name_is_not_answered_with_a_thousand_others(engine: Any, listing: Any, discovering: Any) -> None:
    async with (
        server_with(engine, listing(*(f"{'model' * 40}-{number}" for number in range(1000)))) as spare,
        server_with(engine, listing("x")) as gpu,
        discovering(spare, gpu) as running,
    ):
        answer = await running.ask("wrong")
    assert answer.status_code == 404
    assert len(answer.content) < 10_000


async def test_what_comes_and_goes_is_logged(
    engine: Any, listing: Any, discovering: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace.health")
    async with (
        server_with(engine, listing(*(f"m{number}" for number in range(12)))) as spare,
        server_with(engine, listing("x")) as gpu,
        discovering(spare, gpu),
    ):
        said = [each.getMessage() for each in caplog.records if "models found" in each.getMessage()]
    assert said == [
        "target spare: models found: m0, m1, m2, m3, m4, m5, m6, m7, m8, m9 and 2 more; gone: none",
    ]


async def test_a_backend_that_is_not_there_is_refused_at_the_start(engine: Any, watching: Any) -> None:
    with pytest.raises((ConfigError, HeadraceError), match="there is no backend 'nowhere'"):
        async with watching({"gpu": "http://127.0.0.1:9"}, discover=["nowhere"]):
            pass


async def test_and_so_is_a_table_for_one(engine: Any, watching: Any) -> None:
    with pytest.raises(HeadraceError, match="no model uses a backend 'nowhere'"):
        async with watching({"gpu": "http://127.0.0.1:9"}, targets={"nowhere": {}}):
            pass


async def test_and_so_is_the_discovery_of_what_is_not_asked(engine: Any, watching: Any) -> None:
    with pytest.raises(HeadraceError, match="nobody asks for its models"):
        async with watching({"gpu": "http://127.0.0.1:9"}, targets={"gpu": {"kind": "none"}}, discover=["gpu"]):
            pass


async def test_what_was_found_before_a_reload_can_be_asked_for_at_once(
    tmp_path: Any, engine: Any, listing: Any
) -> None:
    async with server_with(engine, listing("found")) as spare:
        config = parse(
            {
                "server": {"anonymous": True, "state_dir": str(tmp_path)},
                "backends": {"spare": {"provider": "openai", "base_url": spare.url}},
                "plugins": {"openai": {}, "health": {"discover": ["spare"]}},
            }
        )
        before = Gateway(config).assemble()
        async with before.running():
            await before.plugins["health"].checked()
            after = Gateway(config, before=before).assemble()
            async with after.running():
                assert after.models.find("found").targets[0].name == "spare"
                await after.plugins["health"].checked()
                assert after.models.find("found").targets[0].name == "spare"
