"""nginx asks a backend over TLS only if it is the one that the configuration means."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from headrace.sockets import bind
from headrace_nginx import certificate


def certified(folder: Path, *names: str, authority: Path | None = None) -> tuple[Path, ssl.SSLContext]:
    """The file of an authority, and what a server with a certificate of it for these names needs."""
    if authority is not None:
        shutil.copytree(authority, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "ALWAYS", ())  # a name and nothing else
        certificate.ensure(folder, names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return folder / "ca.pem", context


@pytest.fixture(scope="module")
def secured(
    binary: Any, staged: Callable[..., Any], http: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A stage with backends over TLS, in `stage.servers` by name. All but `unchecked` and `public` trust one CA."""
    folder = tmp_path_factory.mktemp("tls")
    ca, good = certified(folder / "good", "localhost", "127.0.0.1")
    _, misnamed = certified(folder / "misnamed", "api.test", authority=folder / "good")
    _, other = certified(folder / "other", "localhost")
    with ExitStack() as stack:

        def serve(context: ssl.SSLContext) -> Any:
            return stack.enter_context(http.Scripted(bind("127.0.0.1:0"), context))

        servers = {"right": serve(good), "stranger": serve(other), "misnamed": serve(misnamed)}
        servers |= {"public": servers["right"], "address": servers["right"], "unchecked": servers["stranger"]}
        hosts = {"address": "127.0.0.1"}
        verify: dict[str, Any] = {"public": True, "unchecked": False}
        backends = {
            name: {
                "provider": "openai",
                "base_url": f"https://{hosts.get(name, 'localhost')}:{server.port}/v1",
                "verify": verify.get(name, str(ca)),
                "timeouts": {"keep_alive": 10},
            }
            for name, server in servers.items()
        }
        stage = stack.enter_context(staged(folder, binary, **backends))
        stage.servers = servers
        for server in servers.values():
            server.script = lambda asked: [http.answer(asked.headers["host"].encode())]
        yield stage


@pytest.mark.parametrize("name", ["right", "unchecked"])
def test_a_backend_that_is_the_right_one_is_asked(secured: Any, http: Any, name: str) -> None:
    secured.core.script = lambda _: [secured.told(name)]
    assert secured.send(secured.request()).got.body == f"localhost:{secured.servers[name].port}".encode()


@pytest.mark.parametrize("name", ["stranger", "misnamed", "public"])
def test_a_backend_that_cannot_prove_who_it_is_is_not_asked(secured: Any, http: Any, name: str) -> None:
    says = [secured.told(name), http.answer(b"{}", 418)]
    secured.core.script = lambda _: [says.pop(0)]
    before = len(secured.servers[name].arrived)
    assert secured.receive(secured.request()).status == 418
    again = secured.core.arrived[-1]
    assert again.target == "/.headrace/again"
    status, connect_time, header_time = (each.split(" ")[-1] for each in again.headers["x-headrace-failed"].split("|"))
    assert (status, connect_time, header_time) == ("502", "-", "-")
    assert len(secured.servers[name].arrived) == before


def test_the_second_backend_is_verified_by_its_own_name(secured: Any, http: Any) -> None:
    says = [secured.told("misnamed"), secured.told("right")]
    secured.core.script = lambda _: [says.pop(0)]
    assert secured.send(secured.request()).got.status == 200
    says = [secured.told("stranger"), secured.told("misnamed"), http.answer(b"{}", 418)]
    assert secured.receive(secured.request()).status == 418


def test_a_connection_is_used_again(secured: Any) -> None:
    secured.core.script = lambda _: [secured.told("right")]
    numbers = []
    for _ in range(3):
        assert secured.send(secured.request()).got.status == 200
        numbers.append(secured.servers["right"].arrived[-1].connection)
    assert len(set(numbers)) == 1


@pytest.mark.parametrize(("first", "second"), [("right", "public"), ("unchecked", "stranger")])
def test_a_connection_of_one_backend_is_not_used_for_another_at_its_address(
    secured: Any, http: Any, first: str, second: str
) -> None:
    secured.core.script = lambda _: [secured.told(first)]
    assert secured.send(secured.request()).got.status == 200
    says = [secured.told(second), http.answer(b"{}", 418)]
    secured.core.script = lambda _: [says.pop(0)]
    assert secured.receive(secured.request()).status == 418


def test_a_backend_is_left_to_the_core_if_nginx_could_not_verify_it(secured: Any, http: Any) -> None:
    """nginx compares names alone, and the certificate has an address."""
    if "address" not in secured.known:
        assert set(secured.lanes) - secured.known == {"address"}
        return
    says = [secured.told("address"), http.answer(b"{}", 418)]
    secured.core.script = lambda _: [says.pop(0)]
    assert secured.receive(secured.request()).status == 200
