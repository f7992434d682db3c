"""Plugins that cannot be used: every fault stops the start, in words that name plugin, table and hook."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from headrace import hookimpl
from headrace.config import Strict
from headrace.errors import ConfigError, HeadraceError, PluginError, Unavailable
from headrace.gateway import Gateway
from headrace.settings import parse

SOURCE = "gateway.toml"
NUMBERS = itertools.count()
IMPORTS = "import sys, time\nfrom headrace import hookimpl\nfrom headrace.errors import HeadraceError, Unavailable\n"
MADE = "class Plugin:\n    def __init__(self, config, gateway): "

Install = Callable[..., None]


class Plain:
    """A plugin that does nothing."""

    def __init__(self, config: Any, gateway: Gateway) -> None: ...


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def install(site: Path) -> Iterator[Install]:
    """Install a distribution of one plugin with this source, in a module of its own."""
    modules = []

    def install(name: str, source: str, entry: str = "{module}:Plugin", requires: str = "") -> None:
        module = f"registered_{next(NUMBERS)}"
        modules.append(module)
        (site / f"{module}.py").write_text(IMPORTS + source, "utf-8")
        info = site / f"headrace_{name}-1.0.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.1\nName: headrace-{name}\nVersion: 1.0\n{requires}"
        (info / "METADATA").write_text(head, "utf-8")
        points = f"[headrace.plugins]\n{name} = {entry.format(module=module)}\n"
        (info / "entry_points.txt").write_text(points, "utf-8")
        importlib.invalidate_caches()

    yield install
    for module in modules:
        sys.modules.pop(module, None)


def gateway(
    plugins: Mapping[str, Any] | None = None, given: Mapping[str, type[Any]] | None = None, **rest: Any
) -> Gateway:
    """A gateway with these plugins' tables; `given` are classes that need no distribution."""
    tables = {**{name: {} for name in given or ()}, **(plugins or {})}
    return Gateway(parse({"plugins": tables, **rest}, environ={}), SOURCE, given).assemble()


def faults(plugins: Mapping[str, Any] | None = None, **rest: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        gateway(plugins, **rest)
    return [str(problem) for problem in caught.value.problems]


def fault(plugins: Mapping[str, Any] | None = None, **rest: Any) -> str:
    (only,) = faults(plugins, **rest)
    return only


def plugin(**members: Any) -> type[Any]:
    return type("Plugin", (Plain,), members)


# --- loading ---


def test_a_plugin_that_is_not_installed_is_named_with_what_to_do() -> None:
    assert fault({"nowhere": {}}).startswith(
        f"{SOURCE}: [plugins.nowhere]: plugin 'nowhere': is not installed: install the package that brings it"
    )
    assert "is not installed: did you mean 'keys'?" in fault({"kyes": {}})


@pytest.mark.parametrize(
    ("source", "entry", "words"),
    [
        ("raise RuntimeError('no disk')", "{module}:Plugin", "cannot be imported: RuntimeError: no disk"),
        ("class Plugin(", "{module}:Plugin", "cannot be imported: SyntaxError: "),
        ("import nowhere_at_all", "{module}:Plugin", "cannot be imported: ModuleNotFoundError: No module named"),
        ("sys.exit(7)", "{module}:Plugin", "cannot be imported: SystemExit: 7"),
        ("", "nowhere_at_all:Plugin", "cannot be imported: ModuleNotFoundError: No module named"),
        ("", "{module}:Plugin", "cannot be imported: AttributeError: "),
        ("Plugin = 3", "{module}:Plugin", "is not a class"),
        (f"{MADE}raise ValueError('no disk')", "{module}:Plugin", "could not be made: ValueError: no disk"),
        (f"{MADE}raise HeadraceError('no disk')", "{module}:Plugin", "no disk"),
        (f"{MADE}raise Unavailable('no disk')", "{module}:Plugin", "no disk"),
        (f"{MADE}sys.exit(7)", "{module}:Plugin", "could not be made: SystemExit: 7"),
        ("class Plugin: pass", "{module}:Plugin", "could not be made: TypeError: "),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named_with_the_reason(
    install: Install, source: str, entry: str, words: str
) -> None:
    install("ant", source, entry)
    found = fault({"ant": {}})
    assert found.startswith(f"{SOURCE}: [plugins.ant]: plugin 'ant'")
    assert words in found


@pytest.mark.parametrize(
    ("source", "what"),
    [("time.sleep(60)", "import"), (f"{MADE}time.sleep(60)", "__init__")],
    ids=["import", "__init__"],
)
def test_a_plugin_that_hangs_while_it_is_loaded_is_interrupted_and_named(
    install: Install, source: str, what: str
) -> None:
    install("ant", source)
    began = time.monotonic()
    found = fault({"ant": {}}, server={"startup_timeout": 0.3})
    assert time.monotonic() - began < 30
    assert found.endswith(f"plugin 'ant': {what} did not finish in 0.3 s (server.startup_timeout)")


def test_a_plugin_that_retries_for_ever_is_interrupted_even_if_it_swallows_exceptions(
    install: Install, site: Path, tmp_path: Path
) -> None:
    forever = "\n        while True:\n            try: time.sleep(60)\n            except Exception: pass\n"
    install("ant", MADE + forever)
    path = tmp_path / "gateway.toml"
    path.write_text("[server]\nstartup_timeout = 0.3\n[plugins.ant]\n", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "headrace", "--config", path, "config", "check"],
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "plugin 'ant': __init__ did not finish in 0.3 s" in done.stderr


def test_a_plugin_made_for_another_core_is_a_problem_of_its_table(install: Install) -> None:
    install("ant", "raise SystemExit('imported!')", requires="Requires-Dist: headrace>=99\n")
    assert "needs headrace >=99" in fault({"ant": {}})


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"legs": 6, "colour": "red"}, ["[plugins.ant] colour: is not a known key; did you mean 'color'?"]),
        ({"legs": "6"}, ["[plugins.ant] legs: Expected `int`, got `str`"]),
        (
            {"lgs": 6},
            ["[plugins.ant] legs: is required", "[plugins.ant] lgs: is not a known key; did you mean 'legs'?"],
        ),
        ({"legs": {"env": "NOT_SET"}}, ["[plugins.ant] legs: the environment variable NOT_SET is not set"]),
        ({"legs": 6, "enabled": "perhaps"}, ["[plugins.ant] enabled: must be true or false"]),
        ({"legs": 6, "enabled": {"env": "NOT_SET"}}, ["[plugins.ant] enabled: the environment variable NOT_SET"]),
    ],
)
def test_a_wrong_table_is_reported_key_by_key(table: dict[str, Any], expected: list[str]) -> None:
    class AntConfig(Strict, frozen=True):
        legs: int
        color: str = "black"

    found = sorted(faults({"ant": table}, given={"ant": plugin(Config=AntConfig)}))
    assert len(found) == len(expected)
    for line, words in zip(found, expected, strict=True):
        assert line.startswith(f"{SOURCE}: {words}")


def test_a_plugin_without_a_config_class_takes_an_empty_table_alone() -> None:
    assert list(gateway(given={"ant": plugin()}).plugins) == ["ant"]
    assert "[plugins.ant] legs: is not a known key" in fault({"ant": {"legs": 6}}, given={"ant": plugin()})


def test_a_parked_plugin_is_not_made() -> None:
    assert gateway({"ant": {"enabled": False}, "nowhere": {"enabled": False}}, given={"ant": plugin()}).plugins == {}


# --- hooks ---


def hook(function: Callable[..., Any], **options: Any) -> Any:
    return hookimpl(**options)(function)


async def coroutine(self: Any, exchange: Any) -> None: ...
async def unmarked(self: Any, exchange: Any) -> None: ...
async def with_request(self: Any, exchange: Any, request: Any) -> None: ...
async def with_default(self: Any, exchange: Any, deep: bool = True) -> None: ...
async def with_rest(self: Any, *arguments: Any) -> None: ...
async def generator(self: Any, exchange: Any) -> AsyncIterator[None]:
    yield


def plain(self: Any, exchange: Any) -> None: ...  # fmt: skip
def wrapper(self: Any, exchange: Any) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("name", "method", "words"),
    [
        ("authorize", hook(plain), "hook 'authorize': must be async def"),
        ("authorize", hook(generator), "hook 'authorize': must be async def"),
        ("admit", hook(coroutine), "hook 'admit': must be a plain def"),
        (
            "authorize",
            hook(with_request),
            "hook 'authorize': has the argument request; its signature is authorize(exchange)",
        ),
        ("authorize", hook(with_default), "hook 'authorize': has the argument deep; its"),
        ("authorize", hook(with_rest), "hook 'authorize': has the argument arguments; its"),
        ("autorize", hook(coroutine), "implements 'autorize', which is not a hook: did you mean 'authorize'?"),
        ("xyzzy", hook(coroutine), "implements 'xyzzy', which is not a hook"),
        ("authorize", unmarked, "has a method 'authorize', which is a hook, without @hookimpl"),
        ("admit", hook(wrapper, wrapper=True), "hook 'admit': pluggy wrappers are not supported"),
    ],
)
def test_an_implementation_that_does_not_fit_its_hook_is_refused(
    name: str, method: Callable[..., Any], words: str
) -> None:
    assert fault(given={"ant": plugin(**{name: method})}).startswith(f"{SOURCE}: [plugins.ant]: {words}")


def test_reading_a_plugins_hooks_does_not_evaluate_its_properties() -> None:
    def pool(self: Any) -> None:
        raise RuntimeError("not open yet")

    assert gateway(given={"ant": plugin(pool=property(pool), authorize=hook(coroutine))}).hooks.implementers(
        "authorize"
    ) == ("ant",)


@pytest.mark.parametrize(
    ("method", "seen"),
    [
        (lambda self: "nothing", "nothing"),
        (lambda self, stream: stream, "stream"),
        (lambda self, exchange: exchange, "exchange"),
        (lambda self, stream, exchange: (stream, exchange), ("stream", "exchange")),
    ],
    ids=["none", "the second", "the first", "the other way round"],
)
def test_a_hook_may_take_its_arguments_by_name_in_any_order_or_leave_them_out(method: Any, seen: object) -> None:
    made = gateway(given={"ant": plugin(wrap_stream=hook(method))})
    ((_, call),) = made.hooks.compiled["wrap_stream"].calls
    assert call("exchange", "stream") == seen


# --- order ---


@pytest.mark.parametrize(
    ("order", "resolved"),
    [
        ([], ("zebra", "ant", "mole")),
        (["mole"], ("mole", "zebra", "ant")),
        (["mole", "ant"], ("mole", "ant", "zebra")),
        (["ant", "ant", "zebra", "mole"], ("ant", "zebra", "mole")),
    ],
)
def test_plugins_stand_in_the_order_of_the_file_unless_the_order_table_says_otherwise(
    order: list[str], resolved: tuple[str, ...]
) -> None:
    given = {name: plugin(authorize=hook(coroutine)) for name in ("zebra", "ant", "mole")}
    made = gateway(given=given, order={"authorize": order})
    assert made.hooks.implementers("authorize") == resolved


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ({"autorize": ["ant"]}, "[order] autorize: is not a hook"),
        ({"authorize": ["ant", "mole"]}, "[order] authorize: the plugin 'mole' is not enabled"),
    ],
)
def test_an_order_of_what_does_not_exist_is_refused(order: dict[str, list[str]], expected: str) -> None:
    assert fault(given={"ant": plugin(authorize=hook(coroutine))}, order=order).startswith(f"{SOURCE}: {expected}")


# --- at once ---


def test_faults_of_every_stage_are_listed_at_once(install: Install) -> None:
    install("broken", "raise RuntimeError('no disk')")
    found = faults(
        {"nowhere": {}, "broken": {}, "strict": {"x": 1}},
        given={
            "strict": plugin(),
            "misspelt": plugin(autorize=hook(coroutine)),
            "colour": plugin(authorize=hook(plain)),
        },
        order={"admitt": [], "authorize": ["broken"]},
    )
    for words in (
        "'nowhere': is not installed",
        "no disk",
        "[plugins.strict] x",
        "'autorize'",
        "[plugins.colour]",
        "admitt",
    ):
        assert sum(words in each for each in found) == 1, (words, found)
    assert len(found) == 6


def test_every_backend_and_policy_without_a_plugin_is_listed_at_once() -> None:
    found = faults(
        backends={"b": {"provider": "vllm"}},
        models={"m": {"targets": ["b", {"provider": "tgi"}], "policy": "cheapest"}, "n": {"targets": ["b"]}},
    )
    assert [each.removeprefix(f"{SOURCE}: ").partition(": ")[0] for each in found] == [
        "[models.m] policy",
        "[backends.b] provider",
        "[models.m] targets[1] provider",
    ]


# --- lifespans ---


def lifespan(body: Callable[[], Any], events: list[str], name: str = "") -> type[Any]:
    @contextlib.asynccontextmanager
    async def lifespan(self: Any, gateway: Gateway) -> AsyncIterator[None]:
        events.append(f"enter {name}")
        result = body()
        if result is not None:
            await result
        try:
            yield
        finally:
            events.append(f"leave {name}")

    return plugin(lifespan=hook(lifespan))


def raises(error: Exception) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (raises(OSError("no disk")), "failed: OSError: no disk"),
        (raises(TimeoutError("the database did not answer")), "the database did not answer"),
        (raises(Unavailable("the database is down")), "the database is down"),
        (raises(HeadraceError("the database is odd")), "the database is odd"),
        (lambda: time.sleep(20), "did not"),
    ],
    ids=["error", "timeout of its own", "gateway error", "headrace error", "blocks the event loop"],
)
async def test_a_lifespan_that_fails_names_its_plugin_and_leaves_the_others(
    tmp_path: Path, body: Callable[[], None], words: str
) -> None:
    events: list[str] = []
    given = {"first": lifespan(lambda: None, events, "first"), "ant": lifespan(body, events, "ant")}
    made = gateway(given=given, server={"state_dir": str(tmp_path), "startup_timeout": 2.0})
    with pytest.raises(PluginError, match="plugin 'ant', hook 'lifespan': ") as caught:
        async with made.running():
            pytest.fail("the gateway must not run")
    assert words in str(caught.value)
    assert events == ["enter first", "enter ant", "leave first"]


async def test_a_lifespan_that_is_no_context_manager_is_named(tmp_path: Path) -> None:
    made = gateway(
        given={"ant": plugin(lifespan=hook(lambda self, gateway: object()))}, server={"state_dir": str(tmp_path)}
    )
    with pytest.raises(PluginError, match="plugin 'ant', hook 'lifespan': failed: TypeError"):
        async with made.running():
            pytest.fail("the gateway must not run")
