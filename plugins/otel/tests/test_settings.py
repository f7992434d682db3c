"""The configuration, and OpenTelemetry's environment variables where it says nothing."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.config import Secret
from headrace.errors import ConfigError, PluginError
from headrace_otel import OtelConfig
from headrace_otel.collector import Collector, collector


def config(**settings: Any) -> OtelConfig:
    headers = {name: Secret(value) for name, value in settings.pop("headers", {}).items()}
    return OtelConfig(**settings, headers=headers)


def found(**settings: Any) -> Collector:
    return collector(config(**settings), "traces")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"endpoint": "localhost:4318"}, "begins with http:// or https://"),
        ({"endpoint": "http://user:secret@x:4318"}, "put them into headers"),
        ({"endpoint": "http://x:4317"}, "4317 is the port for gRPC"),
        ({"endpoint": "http://x:99999"}, "is not a URL"),
        ({"endpoint": "http://x/?key=1"}, "give the address alone"),
        ({"traces": False, "metrics": False}, "nothing would be exported"),
        ({"traces": False, "capture_content": True}, "needs traces = true"),
        ({"redact": ["("]}, "is not a regular expression"),
        ({"redact": ["a*"]}, "matches the empty text"),
        ({"redact": ["(a+)+$"]}, "can take for ever"),
        ({"headers": {"a b": "1"}}, "is not the name of a header"),
        ({"headers": {"key": "a\nb"}}, "cannot be sent"),
    ],
)
def test_what_cannot_be_is_told(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        config(**settings)
    assert "secret" not in str(raised.value)


def test_the_path_of_the_signal_is_added() -> None:
    assert found(endpoint="https://x/otlp/").url == "https://x/otlp/v1/traces"


def test_without_anything_it_is_the_usual_place() -> None:
    assert (found().url, found().timeout, found().gzip) == ("http://localhost:4318/v1/traces", 10.0, False)


def test_the_environment_is_heard_where_the_configuration_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://base:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://own:2/some/path")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b,team=x")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2.5")
    assert (found().url, found().timeout, found().gzip) == ("http://base:1/v1/traces", 2.5, True)
    assert collector(config(), "metrics").url == "http://own:2/some/path"
    assert found().headers.items() >= {"api-key": "a b", "team": "x", "content-encoding": "gzip"}.items()
    told = found(endpoint="http://said:3", timeout=1.0, compression="none", headers={"Team": "y"})
    assert (told.url, told.timeout, told.gzip) == ("http://said:3/v1/traces", 1.0, False)
    assert told.headers.items() >= {"api-key": "a b", "team": "y"}.items()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ENDPOINT", "collector:4318", "OTEL_EXPORTER_OTLP_ENDPOINT: is not a URL"),
        ("PROTOCOL", "grpc", "only http/protobuf"),
        ("COMPRESSION", "zstd", "neither none nor gzip"),
        ("TIMEOUT", "soon", "is not a number above 0"),
        ("TRACES_TIMEOUT", "-1", "is not a number above 0"),
        ("CERTIFICATE", "/nowhere/ca.pem", "is not there"),
    ],
)
def test_an_environment_that_cannot_be_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    with pytest.raises(PluginError, match=words):
        found()


def test_a_timeout_in_milliseconds_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10000")
    assert found().timeout == 10.0


async def test_exports_are_compressed_and_carry_the_configured_headers(traced: Any, collector: Any) -> None:
    more = {"compression": "gzip", "headers": {"X-Api-Key": "k-123"}}
    async with traced(more) as gateway:
        await gateway.ask()
    assert len(collector.spans) == 2
    for headers in collector.headers:
        assert (headers["x-api-key"], headers["content-encoding"]) == ("k-123", "gzip")
        assert headers["content-type"] == "application/x-protobuf"


async def test_a_service_has_the_name_that_the_environment_gives(
    monkeypatch: pytest.MonkeyPatch, traced: Any, collector: Any
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-outside")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=blue")
    async with traced() as gateway:
        await gateway.ask()
    assert {(each["service.name"], each["team"]) for each in collector.resources} == {("from-outside", "blue")}


async def test_a_service_without_a_name_is_headrace(traced: Any, collector: Any) -> None:
    async with traced() as gateway:
        await gateway.ask()
    assert {each["service.name"] for each in collector.resources} == {"headrace"}


async def test_an_environment_that_cannot_be_stops_the_start(monkeypatch: pytest.MonkeyPatch, traced: Any) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigError, match="only http/protobuf"):
        async with traced():
            pass
