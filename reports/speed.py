"""Times as text: a table for a person, rows for a spreadsheet, and JSON."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from opconform.harness.judge.intervals import Interval
from opconform.harness.model.text import printable
from opconform.harness.search.speed import Measured
from opconform.reports.console import text_of
from opconform.reports.rows import CSV_COLUMNS, build_of, cell, names_of, test_time

#: What a row has beside upstream's columns. Times are in microseconds; what is not known is empty.
OURS = (
    *("case_id", "case_name", "target", "build", "cache", "clock", "time_low_us", "time_high_us", "confidence"),
    *("copy_us", "share_of_copy", "product_flops", "share_of_product", "planned_bytes", "allocated_bytes"),
    *("versus", "ratio", "ratio_low", "ratio_high", "ratio_confidence", "slower"),
)
COLUMNS = (*CSV_COLUMNS, *OURS)

Row = dict[str, str | int | float]


def rows_of(measured: Measured) -> list[Row]:
    """A row for the warm time, one for the cold one, and one for a comparison; one with the reason where there is no
    time."""
    common = _common(measured)
    found = [
        {**common, **_timed(measured, time, cache == "cold"), "cache": cache}
        for cache, time in (("warm", measured.warm), ("cold", measured.cold))
        if time is not None
    ]
    if measured.versus is not None and measured.other is not None:
        interval = measured.versus.interval
        other = measured.other
        found.append(
            {
                **common,
                "cache": "warm",
                "n_runs": interval.count,
                "versus": printable(f"{other.label} ({build_of(other)})"),
                "ratio": interval.middle,
                "ratio_low": interval.low,
                "ratio_high": interval.high,
                "ratio_confidence": interval.confidence,
                "slower": int(measured.slower),
            }
        )
    if measured.unsupported is not None or measured.error is not None:
        refused = measured.unsupported is not None
        message = printable(" ".join((measured.unsupported or measured.error or "").split()))
        found.append({**common, "supported": int(not refused), "passed": 0, "error_message": message})
    return found


def _common(measured: Measured) -> Row:
    case, target = measured.subject.case, measured.target
    name, registry = map(printable, names_of(target))
    found: Row = dict.fromkeys(COLUMNS, "")
    return found | {
        "test_time": test_time(),
        "build_commit": printable(build_of(target)),
        "backend_name": name,
        "op_name": case.op.upper(),
        "op_params": str(case)[len(case.op) + 1 : -1],
        "test_mode": "perf",
        "supported": 1,
        "passed": 1,
        "memory_kb": (case.nbytes + 1023) // 1024,
        "device_description": printable(target.device.description),
        "backend_reg_name": registry,
        "case_id": case.id,
        "case_name": printable(measured.subject.name),
        "target": printable(target.label),
        "build": printable(target.build.name),
        "clock": printable(measured.clock),
        "planned_bytes": measured.memory.get("planned", ""),
        "allocated_bytes": measured.memory.get("allocated", ""),
    }


def _timed(measured: Measured, time: Interval, cold: bool) -> Row:
    work, copy = measured.subject.work, measured.cold_copy if cold else measured.copy
    of_copy, of_product = measured.share_of_copy(cold), measured.share_of_product(cold)
    return {
        "time_us": time.middle * 1e6,
        "time_low_us": time.low * 1e6,
        "time_high_us": time.high * 1e6,
        "confidence": time.confidence,
        "n_runs": time.count,
        "flops": work.flops / time.middle if time.middle else 0.0,
        "bandwidth_gb_s": work.moved / time.middle / 1e9 if time.middle else 0.0,
        "copy_us": "" if copy is None else copy.middle * 1e6,
        "share_of_copy": "" if of_copy is None else of_copy,
        "product_flops": measured.product or "",
        "share_of_product": "" if of_product is None else of_product,
    }


class CsvTable:
    """Rows as CSV, every value quoted, below a header: upstream's columns first, then ours."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
        self._writer.writerow(COLUMNS)

    def add(self, measured: Measured) -> None:
        """Write what was measured of a case."""
        for row in rows_of(measured):
            self._writer.writerow([cell(row[name]) for name in COLUMNS])
        self._stream.flush()


def document_of(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """The same as JSON data; what is not known is left out."""
    return [{name: value for name, value in row.items() if value != ""} for each in measured for row in rows_of(each)]


def times_table(measured: Sequence[Measured]) -> str:
    """The times of one device: the median and its interval, warm and cold; rates and shares are of the warm time."""
    timed = [each for each in measured if each.warm is not None]
    if not timed:
        return ""
    table = Table("case", box=SIMPLE_HEAD, pad_edge=False)
    has_memory = any(each.memory for each in timed)
    titles = ["µs", "95 %", "cold µs", "GB/s", "GFLOP/s", "of copy", "cold", "of product"]
    for title in [*titles, *(["planned", "allocated"] if has_memory else [])]:
        table.add_column(title, justify="right", no_wrap=True)
    for each in timed:
        assert each.warm is not None
        work, seconds = each.subject.work, each.warm.middle
        cells = [
            each.subject.name,
            _number(seconds * 1e6),
            f"{_number(each.warm.low * 1e6)}–{_number(each.warm.high * 1e6)}",
            "–" if each.cold is None else _number(each.cold.middle * 1e6),
            _number(work.moved / seconds / 1e9) if seconds else "–",
            _number(work.flops / seconds / 1e9) if work.flops and seconds else "–",
            _percent(each.share_of_copy()),
            _percent(each.share_of_copy(cold=True)),
            _percent(each.share_of_product()),
        ]
        if has_memory:
            cells += [_bytes(each.memory.get(name)) for name in ("planned", "allocated")]
        table.add_row(*map(Text, cells))
    return text_of(table, 200)


def ratios_table(measured: Sequence[Measured]) -> str:
    """How many times as long each case takes as on the other build."""
    found = [each for each in measured if each.versus is not None]
    if not found:
        return ""
    table = Table("case", box=SIMPLE_HEAD, pad_edge=False)
    for title in ("times as long", "interval", "confidence", "sittings", ""):
        table.add_column(title, justify="right", no_wrap=True)
    for each in found:
        assert each.versus is not None
        interval = each.versus.interval
        cells = [
            each.subject.name,
            f"{interval.middle:.3f}",
            f"{interval.low:.3f}–{interval.high:.3f}",
            _confidence(interval.confidence),
            str(interval.count),
            "SLOWER" if each.slower else "",
        ]
        table.add_row(*map(Text, cells))
    return text_of(table, 200)


def notes_of(measured: Sequence[Measured]) -> list[str]:
    """Lines under a table: what was not timed, and why; by what clock."""
    lines = [f"{each.subject.name}: FAILED: {each.error}" for each in measured if each.error is not None]
    refused = Counter(each.unsupported for each in measured if each.unsupported is not None)
    lines += [f"{count} not timed: {reason}" for reason, count in refused.items()]
    clocks = dict.fromkeys(each.clock for each in measured if each.clock)
    if clocks:
        lines.append(f"clock: {', '.join(clocks)}")
    rates = {each.product for each in measured if each.product}
    lines += [f"its own product of float32 matrices: {_number(rate / 1e9)} GFLOP/s" for rate in rates]
    return [printable(line) for line in lines]


def _number(value: float) -> str:
    """Three digits, and no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _confidence(value: float) -> str:
    """As many nines as it has, never rounded up to certainty."""
    shown = f"{100 * value:.1f}"
    return f"{shown} %" if shown != "100.0" else "> 99.9 %"


def _bytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:,.2f} MB"


def summary_of(measured: Sequence[Measured]) -> Mapping[str, int]:
    """How many cases were timed, how many are slower, failed, and are not supported."""
    return {
        "timed": sum(each.warm is not None for each in measured),
        "slower": sum(each.slower for each in measured),
        "failed": sum(each.error is not None for each in measured),
        "unsupported": sum(each.unsupported is not None for each in measured),
    }
