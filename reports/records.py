"""Rows of a history as typed data. A history may come from a stranger: each row is checked before anything relies on
it, and what is wrong with it is a `ValueError` of one line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from opconform.harness.draw.known import LARGEST
from opconform.harness.explain.failure import Failure
from opconform.harness.judge.intervals import Interval
from opconform.harness.model.builds import Build
from opconform.harness.model.case import Case
from opconform.harness.model.findings import Finding
from opconform.harness.model.plain import decoded, parsed
from opconform.harness.search.result import KnownBug, Result, Tally
from opconform.reports.database import CASES, COLUMNS, TIMINGS

MOST_SHARDS = 999_999  #: `--shard` takes numbers of six digits

_KINDS: Mapping[str, tuple[type, ...]] = {"TEXT": (str,), "INTEGER": (int,), "REAL": (float, int)}
_OLD = "recorded by an older version, which kept the case and nothing else"


@dataclass(frozen=True)
class About:
    """What a run says of a device."""

    description: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """Where a run's files went, and what its commands need."""

    report_dir: str = "reports"
    repro_dir: str | None = None
    strict: bool = False


@dataclass(frozen=True)
class RunRow:
    """A row of `runs`. pairs: the op and target of everything that it set out to run."""

    id: str
    started: str
    ended: str | None
    command: str
    seed: int
    shard: tuple[int, int]
    pairs: tuple[tuple[str, str], ...]
    profile: str = ""
    version: str = ""
    devices: Mapping[str, About] = field(default_factory=dict)
    options: Options = Options()

    def build(self, target: str) -> Build:
        """The build behind a target in this run."""
        return Build.of(self.devices[target].versions) if target in self.devices else Build()

    @property
    def time(self) -> datetime:
        """When it started."""
        return datetime.fromisoformat(self.started.removesuffix("Z")).replace(tzinfo=None)


@dataclass(frozen=True)
class TimingRow:
    """A row of `timings`: a time in microseconds, a ratio, or why there is neither.

    what: "warm" or "cold", of a time; "ratio", beside `versus`, the other build's name; "unsupported" or "failed", with
    `message`. rates: bytes and operations a second; of_copy, of_product: shares, None where they are not known.
    memory: bytes of intermediate results, planned and allocated, None where they are not known.
    """

    what: str
    case: str
    name: str
    target: str
    interval: Interval | None = None
    clock: str = ""
    rates: tuple[float, float] = (0.0, 0.0)
    of_copy: float | None = None
    of_product: float | None = None
    memory: tuple[int | None, int | None] = (None, None)
    versus: str = ""
    slower: bool = False
    message: str = ""

    @property
    def op(self) -> str:
        """A case's id is that of its op, and ten hex digits."""
        return self.case.rpartition("-")[0]


def check_types(table: str, row: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a value that is not of its column's type: SQLite itself takes any value anywhere."""
    for name, (kind, may_be_null) in COLUMNS[table].items():
        value = row.get(name)
        if value is None and (may_be_null or name not in row):
            continue
        if not isinstance(value, _KINDS[kind]):
            shown = "null" if value is None else type(value).__name__
            raise ValueError(f"{table}.{name} holds {shown}; it must hold {kind}")
        if isinstance(value, (int, float)) and table != CASES and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{table}.{name} is {value}; it must be 0 or above")


def run_row(row: Mapping[str, Any]) -> RunRow:
    """The run that a row of `runs` describes; a history of version 1 has no `options`. Raises `ValueError`."""
    check_types("runs", row)
    shard = (row["shard"], row["shards"])
    if not 1 <= shard[0] <= shard[1] <= MOST_SHARDS:
        raise ValueError(f"a run is shard {shard[0]} of {shard[1]}; there are at most {MOST_SHARDS}")
    if not (row["run_id"].isprintable() and 0 < len(row["run_id"]) <= 200):
        raise ValueError("a run's id is not a word of up to 200 visible characters")
    found = RunRow(
        id=row["run_id"],
        started=row["started"],
        ended=row["ended"],
        command=row["command"],
        seed=row["seed"],
        shard=shard,
        pairs=decoded(tuple[tuple[str, str], ...], parsed(row["pairs"]), "runs.pairs"),
        profile=row["profile"],
        version=row["opconform"],
        devices=decoded(Mapping[str, About], parsed(row["devices"]), "runs.devices"),  # type: ignore[type-abstract]
        options=decoded(Options, parsed(row.get("options", "{}")), "runs.options"),
    )
    try:
        _ = found.time
    except ValueError:
        raise ValueError(f"run {found.id} started at {found.started[:40]!r}, which is no time") from None
    return found


def result_row(row: Mapping[str, Any]) -> Result:
    """The result in a row of `results`: all of it, or what an older history has. Raises `ValueError`."""
    check_types("results", row)
    reasons = decoded(Counter[str], parsed(row["reasons"]), "results.reasons")
    known = decoded(tuple[str, ...], parsed(row["failed_known"]), "results.failed_known")
    bugs = decoded(tuple[tuple[str, bool], ...], parsed(row["known_bugs"]), "results.known_bugs")
    if row.get("result"):
        whole = Result.from_json(parsed(row["result"]))
        if (whole.op, whole.target) != (row["op"], row["target"]):
            raise ValueError("results.result is of another op or target than its row")
        return whole
    failure = None
    if row["kind"]:
        case = Case.from_json(parsed(row["case_json"]), LARGEST)
        found = (Finding("", row["kind"], _OLD),)
        failure = Failure(case, row["target"], row["device"], (), found, None, "", "", "", "")
    tally = Tally(row["passed"], row["failed"], reasons, seconds=float(row["seconds"]))
    return Result(
        row["op"],
        row["target"],
        row["device"],
        tally,
        failure,
        known,
        tuple(KnownBug(name, "", fails) for name, fails in bugs),
    )


def timing_row(row: Mapping[str, Any]) -> TimingRow:
    """What a row of `timings` says. Raises `ValueError`."""
    check_types(TIMINGS, row)
    what, versus = row["cache"], row["versus"] or ""
    if not row["passed"]:
        what = "failed" if row["supported"] else "unsupported"
    elif versus:
        what = "ratio"
    elif what not in ("warm", "cold"):
        raise ValueError("a row of timings is neither of a warm case nor of a cold one")
    found = TimingRow(what, row["case_id"], row["case_name"], row["target"], message=row["error_message"] or "")
    if what in ("failed", "unsupported"):
        return found
    names = ("time_low_us", "time_us", "time_high_us", "confidence")
    if versus:
        names = ("ratio_low", "ratio", "ratio_high", "ratio_confidence")
    return replace(
        found,
        interval=_interval(row, names),
        clock=row["clock"] or "",
        rates=((row["bandwidth_gb_s"] or 0.0) * 1e9, row["flops"] or 0.0),
        of_copy=row["share_of_copy"],
        of_product=row["share_of_product"],
        memory=(row.get("planned_bytes"), row.get("allocated_bytes")),
        versus=versus,
        slower=bool(row["slower"]),
    )


def _interval(row: Mapping[str, Any], names: tuple[str, str, str, str]) -> Interval:
    low, middle, high, confidence = (row[name] for name in names)
    if None in (low, middle, high, confidence) or not (low <= middle <= high and confidence <= 1):
        raise ValueError(f"{', '.join(f'{TIMINGS}.{name}' for name in names)} are no median with an interval")
    return Interval(low, middle, high, confidence, row["n_runs"] or 0)
