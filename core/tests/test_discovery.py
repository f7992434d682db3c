"""Finding plugins: entry points of real distributions on the path, read without importing anything."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from headrace import discovery
from headrace.errors import ConfigError, PluginError
from headrace.reports import plugin_report

Install = Callable[..., None]

MAJOR, MINOR, *_ = map(int, metadata.version("headrace").split("."))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path in which distributions are installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    for name in imported():
        monkeypatch.delitem(sys.modules, name)
    return folder


@pytest.fixture
def install(site: Path) -> Install:
    """Install a distribution that brings one plugin whose module says so when it is imported."""

    def install(
        name: str, distribution: str | None = None, version: str = "1.0", requires: tuple[str, ...] = ()
    ) -> None:
        distribution = distribution or f"headrace-{name}"
        module = f"discovered_{distribution}".replace("-", "_")
        (site / f"{module}.py").write_text("class Plugin:\n    def __init__(self, config, gateway): pass\n", "utf-8")
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
        head = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(head + needs, "utf-8")
        (info / "entry_points.txt").write_text(f"[headrace.plugins]\n{name} = {module}:Plugin\n", "utf-8")
        importlib.invalidate_caches()

    return install


def imported() -> list[str]:
    return [name for name in sys.modules if name.startswith("discovered_")]


# --- what is found ---


def test_an_installed_plugin_is_found_with_its_distribution_and_version(install: Install) -> None:
    install("zebra", version="2.3")
    found = discovery.installed()["zebra"]
    assert (found.distribution, found.version, found.value) == (
        "headrace-zebra",
        "2.3",
        "discovered_headrace_zebra:Plugin",
    )


def test_plugins_are_found_in_the_order_of_their_names(install: Install) -> None:
    for name in ("zebra", "ant", "mole"):
        install(name)
    names = list(discovery.installed())
    assert names == sorted(names)
    assert {"ant", "mole", "zebra"} <= set(names)


def test_finding_plugins_imports_none_of_them(install: Install) -> None:
    install("ant")
    discovery.installed()
    assert imported() == []


def test_two_distributions_that_claim_one_name_are_both_named(install: Install) -> None:
    install("ant", "headrace-ant", "1.0")
    install("ant", "ant-farm", "2.0")
    with pytest.raises(ConfigError, match=r"plugin 'ant': is claimed by ant-farm 2\.0 and headrace-ant 1\.0"):
        discovery.installed()


def test_a_distribution_that_stands_on_the_path_twice_is_no_rival_of_itself(
    install: Install, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("ant")
    copy = tmp_path / "copy"
    copy.mkdir()
    (site / "headrace_ant-1.0.dist-info").rename(copy / "headrace_ant-1.0.dist-info")
    install("ant")
    monkeypatch.syspath_prepend(copy)
    assert discovery.installed()["ant"].distribution == "headrace-ant"


def test_every_name_with_rivals_is_reported_at_once(install: Install) -> None:
    for name in ("ant", "mole"):
        install(name)
        install(name, f"other-{name}")
    with pytest.raises(Exception, match=r"(?s)ant.*mole"):
        discovery.installed()


# --- versions ---


@pytest.mark.parametrize(
    "requirement",
    [
        f"headrace>={MAJOR}.{MINOR},<{MAJOR}.{MINOR + 1}",
        "headrace",
        "headrace-openai>=99",
        "headrace>=99; python_version < '3'",
        "headrace>=99; extra == 'next'",
    ],
)
def test_a_plugin_made_for_this_core_is_accepted(install: Install, requirement: str) -> None:
    install("ant", requires=("anyio>=99", requirement))
    discovery.installed()["ant"].check_version(metadata.version("headrace"))


@pytest.mark.parametrize("requirement", ["headrace>=99", "headrace<0.0.1", "Headrace (>=99)", "headrace[standard]>=99"])
def test_a_plugin_made_for_another_core_is_refused_with_both_versions(install: Install, requirement: str) -> None:
    install("ant", version="3.4", requires=(requirement,))
    with pytest.raises(PluginError, match=r"plugin 'ant': headrace-ant 3.4 needs headrace .*, this is 7.8"):
        discovery.installed()["ant"].check_version("7.8")


@pytest.mark.parametrize(
    ("core", "fits"), [("0.2.0", True), ("0.2.9", True), ("0.2.0rc1", False), ("0.3.0.dev1", False)]
)
def test_a_range_of_one_minor_version_takes_in_its_patches_alone(install: Install, core: str, fits: bool) -> None:
    install("ant", requires=("headrace>=0.2,<0.3",))
    found = discovery.installed()["ant"]
    if fits:
        found.check_version(core)
    else:
        with pytest.raises(PluginError, match=f"this is {core}"):
            found.check_version(core)


def test_unreadable_metadata_of_one_plugin_is_a_problem_of_that_plugin_alone(install: Install) -> None:
    install("ant", requires=("headrace>=>1",))
    install("mole")
    found = discovery.installed()
    found["mole"].check_version("1.0")
    with pytest.raises(PluginError, match="'ant'"):
        found["ant"].check_version("1.0")


# --- the report of `headrace plugins` ---


def states(tmp_path: Path, toml: str) -> dict[str, str]:
    path = tmp_path / "gateway.toml"
    path.write_text(toml, "utf-8")
    return {row["plugin"]: row["state"] for row in plugin_report(path)}


@pytest.mark.parametrize(
    ("table", "state"),
    [
        ("", "disabled"),
        ("[plugins.ant]", "enabled"),
        ("[plugins.ant]\nenabled = true", "enabled"),
        ("[plugins.ant]\nenabled = false", "parked"),
        ('[plugins.ant]\nenabled = { env = "NOT_SET_ANYWHERE", default = false }', "parked"),
        ('[plugins.ant]\nenabled = { env = "ANT" }', "parked"),
        ("[plugins.ant]\nlegs = 6", "broken"),
        ('[plugins.ant]\nenabled = "perhaps"', "broken"),
    ],
)
def test_the_report_says_in_which_state_a_plugin_is(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, state: str
) -> None:
    monkeypatch.setenv("ANT", "false")
    install("ant")
    assert states(tmp_path, table)["ant"] == state


@pytest.mark.parametrize(("enabled", "state"), [("true", "broken"), ("false", "parked")])
def test_the_report_tells_a_plugin_that_is_not_installed_from_one_that_is_parked(
    tmp_path: Path, enabled: str, state: str
) -> None:
    assert states(tmp_path, f"[plugins.nowhere]\nenabled = {enabled}")["nowhere"] == state


def test_the_report_lists_configured_plugins_first_in_the_order_of_the_file(install: Install, tmp_path: Path) -> None:
    for name in ("ant", "mole", "zebra"):
        install(name)
    names = list(states(tmp_path, "[plugins.zebra]\n[plugins.mole]"))
    assert names[:2] == ["zebra", "mole"]
    assert "ant" in names[2:]


# --- what is imported: fresh interpreters, so that no other test's imports count ---


@pytest.mark.parametrize("command", [["config", "check"], ["plugins"], ["config", "show"], ["config", "schema"]])
@pytest.mark.parametrize("table", ["", "[plugins.ant]\nenabled = false"], ids=["not configured", "parked"])
def test_a_plugin_that_is_not_enabled_is_never_imported(
    install: Install, site: Path, tmp_path: Path, command: list[str], table: str
) -> None:
    install("ant")
    (site / "discovered_headrace_ant.py").write_text("raise SystemExit('imported!')", "utf-8")
    path = tmp_path / "gateway.toml"
    path.write_text(table, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "headrace", "--config", path, *command],
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "imported!" in done.stderr, "Traceback" in done.stderr) == (0, False, False)


def test_a_plugin_made_for_another_core_is_refused_before_it_is_imported(
    install: Install, site: Path, tmp_path: Path
) -> None:
    install("ant", requires=("headrace>=99",))
    assert states(tmp_path, "[plugins.ant]")["ant"] == "broken"
    assert imported() == []
