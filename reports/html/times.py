"""Times on the page: of each device a table with the cases that are slower first, bars for what share of the device a
case uses, and where the interval of a ratio lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from opconform.harness.judge.intervals import Interval
from opconform.reports.html.charts import Block
from opconform.reports.html.data import Report
from opconform.reports.records import RunRow, TimingRow
from opconform.reports.speed import megabytes, number, percent
from opconform.reports.timings import Timing

WIDE, HIGH = 72, 10  #: pixels of a bar: a share of 100 %, or ratios from a half to twice
_LEAST = 2  #: pixels of what is there at all


@dataclass(frozen=True)
class Drawn:
    """A figure in words, and the same as a bar."""

    says: str
    block: Block


@dataclass(frozen=True)
class Line:
    """A case: `time` and `cold` in microseconds, rates, shares of the device and the ratio to the other build;
    memory: of intermediate results, as planned and as allocated, None where it is not known."""

    name: str
    case: str
    op: str
    slower: bool
    time: str
    interval: str
    cold: str
    rates: tuple[str, str]
    of_copy: Drawn | None
    of_product: Drawn | None
    ratio: Drawn | None
    memory: tuple[str, str] | None


@dataclass(frozen=True)
class Times:
    """What the last run on one target and build has measured. against: the other builds, where it was compared;
    notes: what was not timed, and why."""

    target: str
    device: str
    run: RunRow
    clocks: str
    against: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def slower(self) -> int:
        return sum(line.slower for line in self.lines)


def times_of(report: Report) -> list[Times]:
    """A table for each target and build."""
    groups: dict[str, list[Timing]] = {}
    for timing in report.timings:
        groups.setdefault(report.names[timing.pair], []).append(timing)
    return [_times(target, timings) for target, timings in groups.items()]


def _times(target: str, timings: Sequence[Timing]) -> Times:
    rows = [row for timing in timings for row in timing.rows]
    lines = [_line(timing) for timing in timings if timing.row("warm") or timing.ratio]
    notes = [f"{row.name} {row.what}: {row.message}" for row in rows if row.what in ("failed", "unsupported")]
    run, pair = timings[0].run, timings[0].pair
    return Times(
        target,
        run.devices[pair.target].description if pair.target in run.devices else "",
        run,
        ", ".join(dict.fromkeys(row.clock for row in rows if row.clock)),
        ", ".join(dict.fromkeys(row.versus for row in rows if row.versus)),
        tuple(sorted(lines, key=lambda line: not line.slower)),
        tuple(notes),
    )


def _line(timing: Timing) -> Line:
    warm, cold = timing.row("warm"), timing.row("cold")
    time, span = _span(warm)
    moved, flops = warm.rates if warm else (0.0, 0.0)
    return Line(
        timing.name,
        timing.case,
        timing.pair.op,
        timing.slower,
        time,
        span,
        _span(cold)[0],
        tuple(number(rate / 1e9) if rate else "–" for rate in (moved, flops)),  # type: ignore[arg-type]
        _share(warm.of_copy if warm else None),
        _share(warm.of_product if warm else None),
        _ratio(timing.ratio.interval, timing.slower) if timing.ratio and timing.ratio.interval else None,
        _memory(warm),
    )


def _span(row: TimingRow | None) -> tuple[str, str]:
    """A time, and its interval."""
    if row is None or row.interval is None:
        return "–", ""
    interval = row.interval
    return number(interval.middle), f"{number(interval.low)}–{number(interval.high)}"


def _memory(row: TimingRow | None) -> tuple[str, str] | None:
    if row is None or row.memory == (None, None):
        return None
    planned, allocated = map(megabytes, row.memory)
    return planned, allocated


def _share(value: float | None) -> Drawn | None:
    if value is None:
        return None
    width = max(round(min(value, 1.0) * WIDE, 1), _LEAST)
    return Drawn(percent(value), Block(0, 0, width, HIGH, "share"))


def _ratio(interval: Interval, slower: bool) -> Drawn:
    """From a half at the left to twice as long at the right."""
    left, right = (_place(value) for value in (interval.low, interval.high))
    width = max(right - left, _LEAST)
    says = f"{interval.middle:.2f} ({interval.low:.2f}–{interval.high:.2f})" if interval.high < 1e4 else "over 10,000"
    kind = "failed" if slower else "share"
    return Drawn(says, Block(round(min(left, WIDE - width), 1), 0, round(width, 1), HIGH, kind))


def _place(ratio: float) -> float:
    octaves = math.log2(ratio) if ratio > 0 else -1.0
    return (min(max(octaves, -1.0), 1.0) + 1) / 2 * WIDE
