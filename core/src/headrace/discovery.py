"""Which plugins are installed, without importing any of them."""

from __future__ import annotations

import re
from collections import defaultdict
from importlib import metadata
from typing import Literal

import msgspec

from .errors import ConfigError, PluginError, Problem

GROUP = "headrace.plugins"
"""The entry point group in which plugins are found."""

State = Literal["enabled", "disabled", "parked", "broken"]


class Found(msgspec.Struct, frozen=True):
    """One entry point of our group."""

    name: str
    distribution: str
    version: str
    value: str
    needs: str | None
    """The version range of `headrace` that the plugin's distribution asks for."""

    def check_version(self, core_version: str) -> None:
        """Refuse a plugin that was made for another core, before its code is imported.

        Raises:
            PluginError: naming both versions.
        """
        try:
            fits = self.needs is None or _admits(self.needs, core_version)
        except ValueError as error:
            raise PluginError(self.name, f"{self.distribution} {self.version} cannot be read: {error}") from error
        if not fits:
            raise PluginError(
                self.name,
                f"{self.distribution} {self.version} needs headrace {self.needs}, this is {core_version}: "
                f"install a version of {self.distribution} made for it",
            )


def installed() -> dict[str, Found]:
    """Every installed plugin by name, sorted.

    Raises:
        ConfigError: two distributions claim one name; every such name is told.
    """
    claims: dict[str, list[Found]] = defaultdict(list)
    for entry in metadata.entry_points(group=GROUP):
        found = _found(entry)
        if all(found.distribution != other.distribution for other in claims[entry.name]):
            claims[entry.name].append(found)
    problems = [_rivalry(name, founds) for name, founds in claims.items() if len(founds) > 1]
    if problems:
        raise ConfigError(problems)
    return {name: claims[name][0] for name in sorted(claims)}


def _rivalry(name: str, founds: list[Found]) -> Problem:
    rivals = " and ".join(sorted(f"{found.distribution} {found.version}" for found in founds))
    return Problem(f"plugin {name!r}", f"is claimed by {rivals}: uninstall one of them")


def _found(entry: metadata.EntryPoint) -> Found:
    distribution = entry.dist
    if distribution is None:  # entry points read from a bare file
        return Found(entry.name, "unknown", "0", entry.value, None)
    return Found(
        entry.name, distribution.name, distribution.version, entry.value, _range_of_core(distribution.requires)
    )


_NEEDS_CORE = re.compile(r"headrace\s*(?:\[[^]]*\]\s*)?\(?\s*([<>=!~][^;)]*)?\)?\s*(;.*)?", re.IGNORECASE)
_BOUND = re.compile(r"(>=|<)\s*(\d+(?:\.\d+)*)")
_RELEASE = re.compile(r"\d+(?:\.\d+)*")


def _range_of_core(requires: list[str] | None) -> str | None:
    """The version range in a requirement such as `headrace<0.2,>=0.1` (PEP 508)."""
    for requirement in requires or ():
        found = _NEEDS_CORE.fullmatch(requirement.strip())
        if found and (found[2] is None or _applies(found[2].removeprefix(";"))):
            return found[1] or None
    return None


def _applies(marker: str) -> bool:
    from packaging.markers import Marker

    return Marker(marker).evaluate({"extra": ""})


def _admits(needs: str, version: str) -> bool:
    """Whether a version is in a range. `packaging` knows every form; the usual one does not pay for its import.

    Raises:
        ValueError: `needs` is no range.
    """
    bounds = [_BOUND.fullmatch(part.strip()) for part in needs.split(",")]
    if all(bounds) and _RELEASE.fullmatch(version):
        release = _numbers(version)
        return all((release >= _numbers(each[2])) is (each[1] == ">=") for each in bounds if each)
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(needs, prereleases=True).contains(version)


def _numbers(version: str) -> tuple[int, ...]:
    """A release as numbers, without the zeros at its end: 0.1.0 is 0.1."""
    return tuple(map(int, re.sub(r"(\.0+)+$", "", version).split(".")))
