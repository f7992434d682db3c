"""Dialects whose streams nginx can look after: what it is told of them, and which it is not told of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace import hookimpl
from headrace.dialects import ChatPeek, Endpoint, Events, OpenAIDialect
from headrace.errors import GatewayError
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace_nginx.speaking import spoken


class Dialect(OpenAIDialect):
    name = "words"
    offloads = True
    events: Events | None = Events(("end", "all.said"), ("no",), ("some", "all"))

    def error_event(self, error: GatewayError) -> bytes:
        said = f'{{"message":"{error.message}","id":"{getattr(error, "request_id", None)}"}}'
        return f"event: no\ndata: {said}\n\n".encode()


def with_events(*types: Any) -> type[Dialect]:
    return type("Other", (Dialect,), {"events": Events(*types)})


def named(name: str) -> type[Dialect]:
    return type("Other", (Dialect,), {"name": name})


def saying(event: bytes) -> type[Dialect]:
    return type("Other", (Dialect,), {"error_event": lambda self, error: event})


def gateway_of(*dialects: type[Dialect]) -> Gateway:
    class Bringing:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        def register_dialects(self, register: Any) -> None:
            for number, each in enumerate(dialects):
                register(Endpoint(f"words-{number}", f"/v1/words-{number}", ChatPeek, each()))

    return Gateway(parse({"plugins": {"bringing": {}}}), "test", {"bringing": Bringing}).assemble()


def test_nginx_is_told_of_types_and_endings() -> None:
    (found,) = spoken(gateway_of(Dialect, Dialect))
    first, *endings, last = found.lines()
    assert (first, last) == ("headrace_dialect words end,all.said no some,all", ";")
    assert len(endings) == 4 and "The connection to the backend broke." in endings[0]
    for ending in endings:
        assert ending.startswith("    'event: no\\ndata: {") and ending.endswith('"id":"$headrace_request_id"}\\n\\n\'')


def test_a_dialect_may_tell_of_tokens_as_openais_does() -> None:
    (found,) = spoken(gateway_of(with_events(("end",), ())))
    assert found.lines()[0] == 'headrace_dialect words end "" ""'


@pytest.mark.parametrize(
    "odd",
    [
        named("two words"),
        named("a;b"),
        with_events((), ("no",)),
        with_events(("a,b",), ()),
        with_events(("end",), ("$no",)),
        with_events(("end",), (), ("a", "b", "c")),
        saying(b"data: it's\n\n"),
        saying(b"data: $host\n\n"),
        saying(b"data: \r\n\r\n"),
        type("Other", (Dialect,), {"events": None}),
    ],
)
def test_a_dialect_that_nginx_cannot_be_told_of_is_left_to_the_core(odd: type[Dialect]) -> None:
    assert spoken(gateway_of(odd)) == []


def test_two_dialects_of_one_name_are_left_to_the_core() -> None:
    assert spoken(gateway_of(Dialect, with_events(("end",), ()), Dialect)) == []


@pytest.mark.parametrize("with_module", [True, False])
def test_only_the_module_looks_after_other_dialects(module: Path, tmp_path: Path, with_module: bool) -> None:
    document = {
        "server": {"state_dir": str(tmp_path)},
        "models": {"m": {"targets": [{"provider": "openai", "base_url": "http://127.0.0.1:9/v1"}]}},
        "plugins": {"openai": {}, "anthropic": {}, "nginx": {"module": with_module}},
    }
    service = Gateway(parse(document), "test").assemble().plugins["nginx"].service
    service.layout.modules.mkdir(parents=True)
    (service.layout.modules / module.name).write_bytes(module.read_bytes())
    found = service.handover()
    assert found.front("mark").dialects == ({"anthropic"} if with_module else set())
    assert ("headrace_dialect anthropic" in service.render()) == with_module
