"""What can be seen of it: `GET /v1/health/inference` and `/health/ready`."""

from __future__ import annotations

import time
from typing import Any

import pytest

PATH = "/v1/health/inference"
LLAMA_LOADING = (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})
NOWHERE = "http://127.0.0.1:9"


async def test_it_tells_everything_about_every_backend(engine: Any, listing: Any, watching: Any) -> None:
    async with engine({"/v1/models": listing("b", "a")}) as server, watching({"gpu": server.url}) as running:
        found = (await running.get(PATH)).json()
        target = found["models"]["test"]["targets"][0]
        assert abs(target.pop("since") - time.time()) < 60
        assert 0 < target.pop("latency_ms") < 20_000
        assert found == {
            "status": "ok",
            "models": {
                "test": {
                    "status": "ok",
                    "targets": [
                        {
                            "name": "gpu",
                            "role": "primary",
                            "condition": "up",
                            "reason": "",
                            "serves": ["a", "b"],
                            "last_error": None,
                            "in_flight": 0,
                        }
                    ],
                    "fallback_models": [],
                }
            },
        }


async def test_fall_backs_are_told_apart_and_keep_their_order(engine: Any, listing: Any, watching: Any) -> None:
    async with engine({"/v1/models": listing("x")}) as server:
        backends = dict.fromkeys(("a", "b", "c"), server.url)
        more = {"models": {"test": {"targets": ["b", "b"], "fallback": ["c", "a"]}}}
        async with watching(backends, more) as running:
            targets = (await running.get(PATH)).json()["models"]["test"]["targets"]
    assert [(each["name"], each["role"]) for each in targets] == [
        ("b", "primary"),
        ("c", "fallback"),
        ("a", "fallback"),
    ]


async def test_one_backend_that_is_up_is_enough_for_a_model(engine: Any, listing: Any, watching: Any) -> None:
    async with (
        engine({"/v1/models": listing("x")}) as server,
        watching({"bad": NOWHERE, "good": server.url}) as running,
    ):
        answer = await running.get(PATH)
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")


async def test_a_model_without_one_makes_it_503(engine: Any, listing: Any, watching: Any) -> None:
    async with engine({"/v1/models": listing("x")}) as server:
        more = {"models": {"test": {"targets": ["good"]}, "poor": {"targets": ["bad"]}}}
        async with watching({"bad": NOWHERE, "good": server.url}, more) as running:
            answer = await running.get(PATH)
    assert answer.status_code == 503
    assert {name: each["status"] for name, each in answer.json()["models"].items()} == {"test": "ok", "poor": "down"}


async def test_a_backend_that_is_starting_is_not_up_yet(engine: Any, watching: Any) -> None:
    async with (
        engine({"/health": LLAMA_LOADING}) as server,
        watching({"gpu": server.url}, targets={"gpu": {"kind": "llamacpp"}}) as running,
    ):
        answer = await running.get(PATH)
    target = answer.json()["models"]["test"]["targets"][0]
    assert (answer.status_code, target["condition"], target["reason"]) == (503, "starting", "it loads its model")


async def test_the_last_error_is_told(watching: Any) -> None:
    async with watching({"gpu": NOWHERE}) as running:
        error = (await running.get(PATH)).json()["models"]["test"]["targets"][0]["last_error"]
    assert error["message"] == "The backend cannot be reached."
    assert abs(error["at"] - time.time()) < 60


async def test_what_is_not_checked_says_so(watching: Any) -> None:
    async with watching({"gpu": NOWHERE}, targets={"gpu": {"kind": "none"}}) as running:
        answer = await running.get(PATH)
    target = answer.json()["models"]["test"]["targets"][0]
    assert (answer.status_code, target["reason"]) == (200, "not checked")


async def test_a_key_for_some_models_sees_those_alone(engine: Any, listing: Any, watching: Any) -> None:
    async with engine({"/v1/models": listing("x")}) as server:
        more = {"models": {"test": {"targets": ["good"]}, "poor": {"targets": ["bad"]}}}
        async with watching({"bad": NOWHERE, "good": server.url}, more) as running:
            answer = await running.get(PATH, **{"x-models": "test"})
    assert (answer.status_code, list(answer.json()["models"])) == (200, ["test"])


@pytest.mark.parametrize(
    ("require", "who", "status"),
    [
        ("user", None, 401),
        ("user", "ada", 503),
        ("user", "prometheus", 403),
        ("metrics", "prometheus", 503),
        ("admin", "ada", 403),
        ("admin", "root", 503),
        ("public", None, 503),
    ],
)
async def test_who_may_look_is_configured(watching: Any, require: str, who: str | None, status: int) -> None:
    async with watching({"gpu": NOWHERE}, require=require) as running:
        answer = await running.client.get(PATH, headers={"x-api-key": who} if who else {})
    assert answer.status_code == status


async def test_no_address_is_shown(watching: Any) -> None:
    async with watching({"gpu": NOWHERE}) as running:
        assert "127.0.0.1" not in (await running.get(PATH)).text


async def test_readiness_is_told_by_what_is_known(engine: Any, listing: Any, watching: Any) -> None:
    async with engine({"/v1/models": listing("x")}) as server, watching({"gpu": server.url}) as running:
        asked = len(server.asked)
        answers = [await running.client.get("/health/ready") for _ in range(3)]
        assert [each.status_code for each in answers] == [200, 200, 200]
        assert len(server.asked) == asked


async def test_and_by_what_requests_tell(engine: Any, listing: Any, watching: Any) -> None:
    answers = {"/v1/models": listing("x"), "/v1/chat/completions": (401, {"error": {}})}
    async with engine(answers) as server, watching({"gpu": server.url}) as running:
        await running.ask()
        answer = await running.client.get("/health/ready")
    assert (answer.status_code, "key" in answer.json()["backends"]["gpu"]["reason"]) == (503, True)


async def test_and_changes_with_it(engine: Any, listing: Any, watching: Any) -> None:
    async with engine({"/v1/models": listing("x")}) as server, watching({"gpu": server.url}) as running:
        await server.stop()
        await running.ask()
        await running.becomes("gpu", "down")
        answer = await running.client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["backends"]["gpu"]["reason"] == "The backend cannot be reached."
