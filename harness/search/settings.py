"""How a run is set up: what the command line and pytest both take."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from opconform.harness.model.usage import UsageError

#: Cases per op and device.
PROFILES: Mapping[str, int] = {"quick": 150, "default": 1000, "nightly": 20000}

#: Where runs write unless they are told otherwise. It is no folder of the source.
OUT = "opconform-out"

#: How often a case that fails now and then is run to see it fail again.
RACE_RUNS = 50

_FEW_EXAMPLES = 500  #: a run of fewer cases leaves out what takes most of its time
_NO_ABORTS = 100  #: a run of so many cases or fewer tries none that ends the device's process

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Settings:
    """What holds for every op and device of a run.

    max_bytes: the memory of a case; known_max_bytes: of a known case, where more is allowed.
    examples: cases per op and device. seconds: the time for one op on one device, or None. seed: of the search.
    checks: the names of the checks on request. time_limit: seconds a case may take. strict: try what limits of kind
    "kernel" and "bug" forbid. profile: the name of the profile that gave `examples`, or "". shard: (i, n) where this
    run is the i-th of n that share the work: `examples` is its share, and it draws every n-th chunk of the seed's.
    times: how often a case that is replayed is run, until it fails.
    sanitize: each backend runs under its API's checker. aborts: long runs try what a device says yes to and aborts at.
    also_seconds: the time to show a failing case to the other backends, 0 for none.
    history: the file that results are appended to, "none" for none, or None for history.sqlite in `report_dir`.
    known_failures: the file of expected failures, "none" for none, or None for known_failures.toml in this folder.
    database: where failing cases wait for the next run, as `databases.database_of` takes it.
    repro_dir: where the bundle of each failure goes, "none" for nowhere, or None for repro in `report_dir`.
    """

    examples: int = PROFILES["default"]
    seconds: float | None = None
    seed: int = 0
    max_bytes: int = 64 << 20
    known_max_bytes: int | None = None
    time_limit: float = 30.0
    isolated: bool = True
    strict: bool = False
    checks: tuple[str, ...] = ()
    report_dir: str = OUT
    options: Mapping[str, str] = field(default_factory=dict)
    profile: str = ""
    shard: tuple[int, int] = (1, 1)
    history: str | None = None
    also_seconds: float = 20.0
    repro_dir: str | None = None
    known_failures: str | None = None
    database: str | None = None
    sanitize: bool = False
    times: int = 1
    aborts: bool = True

    @property
    def is_short(self) -> bool:
        """Whether the run is one of few cases, and does without what takes long."""
        return self.examples < _FEW_EXAMPLES

    @property
    def tries_aborts(self) -> bool:
        """Whether a case of each op is tried that the device says yes to and is known to abort at. It costs a process
        of the device's; of runs that share the work the first one does it."""
        index, count = self.shard
        return self.aborts and index == 1 and self.examples * count > _NO_ABORTS


def bytes_of(text: str) -> int:
    """A size such as 64M, 2GiB or 1048576, in bytes. Raises `UsageError`."""
    match = re.fullmatch(r"(\d{1,18})\s*([KMG]?)(i?B)?", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise UsageError(f"{text!r} is not a size; write bytes or a number with K, M or G, such as 64M")
    return int(match[1]) * _UNITS[match[2].upper()]


def positive(name: str, value: float) -> float:
    """`value`, if it is a finite number above 0. Raises `UsageError` that names the option."""
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} is {value:g}; it must be above 0")
    return value


def shard_of(text: str) -> tuple[int, int]:
    """The shard that "2/4" names: (2, 4). Raises `UsageError`."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip(), re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard is {text!r}; it must be i/n with i from 1 to n, such as 2/4")
    return int(match[1]), int(match[2])


def share_of(examples: int, shard: tuple[int, int]) -> int:
    """How many of `examples` cases a shard draws; at least one, for a shard that runs nothing would be red."""
    index, count = shard
    return max(examples // count + (index <= examples % count), 1)


def chosen_checks(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """The checks on request that `names` select, with commas or without. Raises `UsageError`."""
    wanted = tuple(name.strip() for value in names for name in value.split(",") if name.strip())
    for name in wanted:
        if name not in known:
            raise UsageError(f"no check {name!r} on request; there are {', '.join(known)}")
    return wanted
