"""The build behind a target: what runs there beside the hardware. It is part of the target's identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Build:
    """What a device's versions say (library, driver, compiler), in the order in which the backend tells them.

    Results of two builds are results of two targets, though both have one name for `--backend`.
    """

    versions: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, versions: Mapping[str, str]) -> Build:
        return cls(tuple((str(name), str(value)) for name, value in versions.items()))

    @property
    def name(self) -> str:
        """The short name: that of the build itself, else the first version; "" where nothing is known."""
        for name, value in self.versions:
            if name == "build":
                return value
        return " ".join(self.versions[0]) if self.versions else ""

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.versions)


def names_apart(builds: Iterable[Build]) -> dict[Build, str]:
    """A name for each build that no other of them has: the short one, and where two share it, what differs as well."""
    known = list(dict.fromkeys(builds))
    found = {}
    for build in known:
        alike = [other for other in known if other.name == build.name]
        shared = set(build.versions).intersection(*(other.versions for other in alike))
        more = [" ".join(version) for version in build.versions if len(alike) > 1 and version not in shared]
        found[build] = ", ".join([*filter(None, [build.name]), *more]) if len(alike) > 1 else build.name
    return found
