"""Times as rows: for a spreadsheet, as JSON, and for the history."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from opconform.harness.judge.intervals import Interval
from opconform.harness.model.text import printable
from opconform.reports.database import PERF
from opconform.reports.rows import CSV_COLUMNS, build_of, cell, names_of, test_time

if TYPE_CHECKING:
    from opconform.harness.search.speed import Measured

#: Upstream's columns first, then ours.
COLUMNS = (*CSV_COLUMNS, *PERF)

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
                "versus": printable(f"{other.label} ({other.build.name})" if other.build.name else other.label),
                "ratio": interval.middle,
                "ratio_low": interval.low,
                "ratio_high": interval.high,
                "ratio_confidence": interval.confidence,
                "slower": int(measured.slower),
                "margin": measured.versus.margin,
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
