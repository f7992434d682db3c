"""What nginx can do for the core on this machine, and the files that tell both of it."""

from __future__ import annotations

import logging
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import front
from headrace.config import TargetTimeouts
from headrace.exchange import Target
from headrace.front import Front, Lane
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace.testing import free_port
from headrace_nginx import NginxConfig, handover, service
from headrace_nginx.binary import Platform
from headrace_nginx.handover import Handover
from headrace_nginx.layout import Layout

BACKEND = {"provider": "openai", "base_url": "http://127.0.0.1:8000/v1"}
LAYOUT = Layout.portable()


def gateway_of(*backends: dict[str, Any], **model: Any) -> Gateway:
    """A gateway with one model of these backends."""
    targets = [{**BACKEND, **each} for each in backends]
    return Gateway(parse({"models": {"m": {"targets": targets, **model}}, "plugins": {"openai": {}}})).assemble()


def found(gateway: Gateway) -> list[str]:
    return [lane.address for lane in handover.lanes(gateway, resolved=True)]


def with_queue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None) -> None:
    """Make this machine one on which so many datagrams may wait."""
    file = tmp_path / "max_dgram_qlen"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(handover, "QUEUE", file)


@pytest.mark.parametrize(
    ("platform", "reason"),
    [
        (Platform(njs=None), "has no njs"),
        (Platform(version=(1, 19, 9), njs="builtin"), "older than 1.20.0"),
        (Platform(version=(1, 20, 0), njs="builtin"), ""),
        (Platform(version=(2, 0, 0), njs="/module.so"), ""),
    ],
)
def test_an_nginx_is_told_why_it_delivers_nothing(platform: Platform, reason: str) -> None:
    assert reason in handover.why_not(platform)
    assert bool(reason) == bool(handover.why_not(platform))


@pytest.mark.parametrize(
    ("server", "models", "wanted"),
    [
        ("auto", [None], True),
        ("inline", [None], False),
        ("inline", [None, "auto"], True),
        ("offload", ["inline"], False),
        ("auto", [], False),
    ],
)
def test_one_model_that_may_be_delivered_is_enough(server: str, models: list[str | None], wanted: bool) -> None:
    tables = {str(number): {"targets": [BACKEND], "delivery": each} for number, each in enumerate(models)}
    tables = {name: {key: value for key, value in table.items() if value} for name, table in tables.items()}
    document = {"server": {"delivery": server}, "models": tables, "plugins": {"openai": {}}}
    assert handover.wanted(Gateway(parse(document)).assemble()) is wanted


def test_lanes_are_those_of_models_that_nginx_may_deliver() -> None:
    document = {
        "models": {
            "a": {"targets": [BACKEND], "fallback": ["b"]},
            "hidden": {"targets": [{**BACKEND, "base_url": "http://127.0.0.1:9/v1"}], "delivery": "inline"},
        },
        "backends": {"b": {**BACKEND, "base_url": "http://[::1]:8001/v1"}},
        "plugins": {"openai": {}},
    }
    assert sorted(found(Gateway(parse(document)).assemble())) == ["127.0.0.1:8000", "[::1]:8001"]


def test_equal_lanes_are_one_and_a_proxy_has_none() -> None:
    gateway = gateway_of({"api_key": "a"}, {"api_key": "b"}, {"proxy": "http://127.0.0.1:3128"})
    assert found(gateway) == ["127.0.0.1:8000"]


def test_a_host_that_cannot_be_resolved_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    gateway = gateway_of({"base_url": "http://nowhere.invalid:8000/v1"}, {})
    assert found(gateway) == ["127.0.0.1:8000"]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "nowhere.invalid:8000 cannot be resolved: the core asks it itself until nginx is reloaded"
    ]
    portable = handover.lanes(gateway, resolved=False)
    assert [lane.address for lane in portable] == ["nowhere.invalid:8000", "127.0.0.1:8000"]


def test_a_directory_of_authorities_is_left_out_and_a_file_is_not(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.touch()
    url = "https://localhost:{}/v1"
    gateway = gateway_of(
        {"base_url": url.format(1), "verify": str(tmp_path)},
        {"base_url": url.format(2), "verify": str(file)},
        {"base_url": url.format(3), "verify": False},
    )
    assert found(gateway) == ["localhost:2", "localhost:3"]


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_an_address_whose_certificate_nginx_cannot_verify_is_left_out(host: str) -> None:
    gateway = gateway_of({"base_url": f"https://{host}:1/v1"}, {"base_url": f"https://{host}:2/v1", "verify": False})
    assert found(gateway) == [f"{host}:2"]


def test_a_host_that_only_python_can_look_up_is_left_out() -> None:
    assert found(gateway_of({"base_url": "http://bücher.invalid/v1"}, {"base_url": "http://a..b/v1"})) == []


def target(**changes: Any) -> Target:
    return Target(name="t", provider="openai", **{"base_url": "http://h:1/v1", **changes})


@pytest.mark.parametrize(
    ("changes", "address", "host"),
    [
        ({}, "h:1", "h:1"),
        ({"base_url": "http://h/v1"}, "h:80", "h"),
        ({"base_url": "https://h/v1"}, "h:443", "h"),
        ({"base_url": "https://[::1]:5/v1"}, "[::1]:5", "[::1]:5"),
        ({"base_url": "http://[::1]/v1"}, "[::1]:80", "[::1]"),
        ({"socket": "/run/x.sock"}, "unix:/run/x.sock", "h:1"),
    ],
)
def test_where_a_lane_leads(changes: dict[str, Any], address: str, host: str) -> None:
    lane = front.lane_of(target(**changes))
    assert lane is not None
    assert (lane.address, lane.host) == (address, host)


def test_lanes_that_differ_in_anything_do_not_share_a_key() -> None:
    others = [
        target(),
        target(base_url="https://h:1/v1"),
        target(base_url="http://h:2/v1"),
        target(socket="/s"),
        target(base_url="https://h:1/v1", verify=False),
        target(base_url="https://h:1/v1", verify="/ca.pem"),
        target(max_connections=1),
        *(target(timeouts=TargetTimeouts(**{key: 7})) for key in ("connect", "first_byte", "keep_alive")),
    ]
    lanes = [front.lane_of(each) for each in others]
    assert len({lane.key for lane in lanes if lane is not None}) == len(others)


def made(**changes: Any) -> Handover:
    lane = Lane(False, "h:1", "h:1", True, 5.0, 600.0, 1.5, 10)
    plain = Handover(lanes=(lane,), reports=("unix:/r",), request_headers=("x-a",), response_headers=("x-b",))
    return msgspec.structs.replace(plain, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"lanes": ()},
        {"lanes": (Lane(False, "h:1", "other:1", True, 5.0, 600.0, 1.5, 10),)},
        {"reports": ("unix:/other",)},
        {"request_headers": ()},
        {"response_headers": ("x-c",)},
    ],
)
def test_the_digest_tells_handovers_apart(changes: dict[str, Any]) -> None:
    assert made().digest == made().digest
    assert made(**changes).digest != made().digest


def test_the_core_reads_what_was_planned() -> None:
    read = msgspec.json.decode(msgspec.json.encode(made().front("secret-1")), type=Front)
    assert read.lanes == {made().lanes[0].key}
    assert (read.mark, read.reports) == ("secret-1", ("unix:/r",))
    assert (*read.request_headers, *read.response_headers) == ("x-a", "x-b")


def test_header_names_are_those_of_the_backends_and_of_the_configuration() -> None:
    gateway = gateway_of({"headers": {"X-Own": "secret", "User-Agent": "mine", "Authorization": "Basic x"}})
    plan = handover.plan(gateway, [], [], (["X-Mine"], ["X-Quota", "Vary"]))
    assert plan.request_headers == ("x-mine", "x-own")
    assert plan.response_headers == tuple(sorted({*front.CARRIED, "x-quota"}))


NEVER = [
    "Host",
    "Connection",
    "Content-Length",
    "Transfer-Encoding",
    "Accept-Encoding",
    "X-Request-ID",
    "Upgrade",
    "TE",
]


@pytest.mark.parametrize("name", ["X.Y", "X$host", "x;y", "x y", "", "1x", "Ünï", "x" * 65, *NEVER])
def test_names_that_nginx_cannot_send_for_a_backend_are_left_to_the_core(name: str) -> None:
    gateway = gateway_of({"headers": {name: "1", "X-Own": "2"}})
    assert handover.plan(gateway, [], [], ([], [])).request_headers == ("x-own",)


# --- where reports go ------------------------------------------------------------------------------------------------


def test_reports_go_to_unix_sockets_where_enough_can_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_queue(monkeypatch, tmp_path, "256\n")
    assert handover.report_addresses(LAYOUT, 2, None) == [
        "unix:/var/lib/headrace/run/reports-0.sock",
        "unix:/var/lib/headrace/run/reports-1.sock",
    ]


@pytest.mark.parametrize("text", ["10\n", "255\n", "", "many", None])
def test_reports_go_over_the_loopback_where_few_can_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    with_queue(monkeypatch, tmp_path, text)
    addresses = handover.report_addresses(LAYOUT, 3, None)
    assert len(set(addresses)) == 3
    for address in addresses:
        host, _, port = address.partition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
            listener.bind((host, int(port)))
        assert host == "127.0.0.1"


def test_a_path_with_a_comma_cannot_be_told_to_nginx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_queue(monkeypatch, tmp_path, "512")
    layout = Layout.portable(Path("/var/lib/a,b"))
    assert handover.report_addresses(layout, 1, None)[0].startswith("127.0.0.1:")


def test_ports_are_kept_and_only_missing_ones_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_queue(monkeypatch, tmp_path, "10")
    before = made(reports=("127.0.0.1:1", "unix:/old", "127.0.0.1:2")).front("m")
    assert handover.report_addresses(LAYOUT, 1, before) == ["127.0.0.1:1"]
    assert handover.report_addresses(LAYOUT, 2, before) == ["127.0.0.1:1", "127.0.0.1:2"]
    assert handover.report_addresses(LAYOUT, 3, before)[:2] == ["127.0.0.1:1", "127.0.0.1:2"]


# --- the files -------------------------------------------------------------------------------------------------------

MODELS = {"backends": {"b": {**BACKEND, "api_key": "sk-backend"}}, "models": {"m": {"targets": ["b"]}}}


@pytest.fixture
def install(binary: str, tmp_path: Path) -> Callable[..., service.Service]:
    """Installs nginx's files for a gateway, anew each time."""
    options = {"port": free_port(), "workers": 1, "worker_connections": 64, "binary": binary}

    def run(platform: Platform | None = None, plugin: dict[str, Any] | None = None, **document: Any) -> service.Service:
        tables = {"openai": {}, "nginx": {**options, **(plugin or {})}}
        server = {"state_dir": str(tmp_path / "state"), **document.pop("server", {})}
        gateway = Gateway(parse({**MODELS, **document, "server": server, "plugins": tables})).assemble()
        made: service.Service = gateway.plugins["nginx"].service
        if platform is not None:
            made._found = msgspec.structs.replace(made.nginx(), platform=platform)
        made.install()
        return made

    return run


def written(service: service.Service) -> Front | None:
    return front.read(service.gateway.runtime_dir / front.FRONT_FILE)


def test_what_was_planned_is_written_for_the_core_and_for_nginx(install: Callable[..., service.Service]) -> None:
    service = install()
    plan, read = service.handover(), written(service)
    assert plan is not None and read is not None
    assert read == plan.front(read.mark)
    assert read.mark.endswith(f"-{plan.digest}")
    assert service.layout.mark.read_text() == f'map $pid $headrace_mark {{ default "{read.mark} $pid"; }}\n'
    assert "js_import headrace_replies from" in service.layout.config_file.read_text()
    assert service.layout.replies.read_text().startswith("const BROKEN = ")


def test_the_secret_is_for_its_owner_alone(install: Callable[..., service.Service]) -> None:
    service = install()
    file = service.gateway.runtime_dir / front.FRONT_FILE
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(service.layout.mark.stat().st_mode) == 0o600
    assert stat.S_IMODE(service.layout.runtime.stat().st_mode) & 0o077 == 0


def test_the_mark_changes_with_what_nginx_can_do_and_the_secret_stays(
    install: Callable[..., service.Service],
) -> None:
    marks = [written(install(plugin={"request_headers": names})) for names in ([], [], ["X-New"])]
    first, same, other = [read.mark.partition("-") for read in marks if read is not None]
    assert first == same
    assert first[0] == other[0] and first[2] != other[2]
    assert len(first[0]) >= 48


def test_ports_stay_when_files_are_installed_anew(
    install: Callable[..., service.Service], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_queue(monkeypatch, tmp_path, "10")
    first, second, more = (written(install(server={"workers": workers})) for workers in (1, 1, 2))
    assert first is not None and second is not None and more is not None
    assert first.reports == second.reports == more.reports[:1]
    assert len(more.reports) == 2


@pytest.mark.parametrize("change", [{"server": {"delivery": "inline"}}, {"models": {}}])
def test_nothing_is_left_for_the_core_when_nothing_can_be_handed_over(
    install: Callable[..., service.Service], change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert written(install()) is not None
    service = install(**change)
    assert not (service.gateway.runtime_dir / front.FRONT_FILE).exists()
    assert "@headrace" not in service.layout.config_file.read_text()
    assert caplog.records == []


def test_without_njs_the_core_delivers_and_that_is_said_once(
    install: Callable[..., service.Service], caplog: pytest.LogCaptureFixture
) -> None:
    service = install()
    platform = msgspec.structs.replace(service.nginx().platform, njs=None)
    service = install(platform)
    assert written(service) is None
    text = service.layout.config_file.read_text()
    for word in ("@headrace", "js_import", "js_set", "load_module"):
        assert word not in text
    assert [record.getMessage() for record in caplog.records] == [
        "every answer is delivered by the core, none by nginx: this nginx has no njs "
        "(Debian: apt install libnginx-mod-http-js)"
    ]


def test_a_check_changes_nothing_that_is_in_use(install: Callable[..., service.Service]) -> None:
    service = install()
    files = (service.layout.mark, service.layout.config_file, service.gateway.runtime_dir / front.FRONT_FILE)
    before = [file.read_bytes() for file in files]
    plugin = msgspec.structs.replace(service.config, request_headers=("X-New",))
    other = type(service)(plugin, service.gateway)
    other.check()
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("name", ["", "X Y", "X_Y", "1x", "x;", "ä", "x\n", "$host"])
@pytest.mark.parametrize("key", ["request_headers", "response_headers"])
def test_a_header_that_nginx_cannot_name_is_refused(key: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"{key}: .* is not the name of a header"):
        NginxConfig(**{key: (name,)})  # type: ignore[arg-type]
