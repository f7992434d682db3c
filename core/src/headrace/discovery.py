"""Which plugins are installed, without importing any of them."""

from __future__ import annotations

from collections import defaultdict
from importlib import metadata
from typing import Literal

import msgspec

from .errors import PluginError

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
        if self.needs is None:
            return
        from packaging.specifiers import SpecifierSet

        if not SpecifierSet(self.needs, prereleases=True).contains(core_version):
            raise PluginError(
                self.name,
                f"{self.distribution} {self.version} needs headrace {self.needs}, this is {core_version}: "
                f"install a version of {self.distribution} made for it",
            )


def installed() -> dict[str, Found]:
    """Every installed plugin by name, sorted.

    Raises:
        PluginError: two distributions claim one name.
    """
    claims: dict[str, list[Found]] = defaultdict(list)
    for entry in metadata.entry_points(group=GROUP):
        found = _found(entry)
        if found not in claims[entry.name]:
            claims[entry.name].append(found)
    for name, founds in claims.items():
        if len({found.distribution for found in founds}) > 1:
            rivals = " and ".join(sorted(f"{found.distribution} {found.version}" for found in founds))
            raise PluginError(name, f"is claimed by {rivals}: uninstall one of them")
    return {name: claims[name][0] for name in sorted(claims)}


def _found(entry: metadata.EntryPoint) -> Found:
    distribution = entry.dist
    if distribution is None:  # entry points read from a bare file
        return Found(entry.name, "unknown", "0", entry.value, None)
    return Found(
        entry.name, distribution.name, distribution.version, entry.value, _range_of_core(distribution.requires)
    )


def _range_of_core(requires: list[str] | None) -> str | None:
    for requirement in requires or ():
        if not requirement.replace("_", "-").lower().startswith("headrace"):
            continue
        from packaging.requirements import Requirement

        parsed = Requirement(requirement)
        if parsed.name.lower() == "headrace":
            return str(parsed.specifier) or None
    return None
