"""Verdicts as rows of test-backend-ops' table `test_backend_ops`, and the observers that print such rows.

Names, order and types of the columns are those of llama.cpp's tests/test-backend-ops.cpp (`--output sql`), so that
scripts that read its results read ours.
"""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from opconform.harness.model.text import printable
from opconform.harness.run.target import Target
from opconform.harness.search.observer import Observer

if TYPE_CHECKING:
    from opconform.harness.judge.judging import Verdict
    from opconform.harness.model.op import Op
    from opconform.harness.search.result import Result

UPSTREAM: Mapping[str, str] = {
    "test_time": "TEXT",
    "build_commit": "TEXT",
    "backend_name": "TEXT",
    "op_name": "TEXT",
    "op_params": "TEXT",
    "test_mode": "TEXT",
    "supported": "INTEGER",
    "passed": "INTEGER",
    "error_message": "TEXT",
    "time_us": "REAL",
    "flops": "REAL",
    "bandwidth_gb_s": "REAL",
    "memory_kb": "INTEGER",
    "n_runs": "INTEGER",
    "device_description": "TEXT",
    "backend_reg_name": "TEXT",
}

#: What upstream's `--output csv` has, in its order; the other columns follow.
_CSV_FIRST = ("backend_name", "op_name", "op_params", "test_mode", "supported", "error_message", "backend_reg_name")
CSV_COLUMNS = (*_CSV_FIRST, *(name for name in UPSTREAM if name not in _CSV_FIRST))

Row = tuple[str, str, str, str, str, str, int, int, str, float, float, float, int, int, str, str]

_COMMIT = re.compile(r"(?=[a-f]*[0-9])[0-9a-f]{7,40}")


def build_of(target: Target) -> str:
    """The commit that the device's versions name, else the first of them, which is its library's."""
    versions = target.device.versions
    for word in " ".join(versions.values()).split():
        if _COMMIT.fullmatch(word) and not word.isdigit():
            return word
    return next((f"{name} {value}" for name, value in versions.items()), "unknown")


def names_of(target: Target) -> tuple[str, str]:
    """`backend_name` and `backend_reg_name` as llama.cpp has them (Gpu0 and Gpu); where a device is only a number,
    the target and its backend."""
    device = target.device.id
    registry = re.sub(r":?\d+$", "", device)
    return (device, registry) if registry else (target.label, target.spec)


class Rows:
    """Makes rows of printable text for one op on one device. What is not measured (flops, bandwidth) is 0, as upstream
    has it."""

    def __init__(self, op: Op, target: Target) -> None:
        self._name, self._registry = map(printable, names_of(target))
        self._build = printable(build_of(target))
        self._op = op.name.upper()
        self._device = printable(target.device.description)

    def of(self, verdict: Verdict, test_time: str) -> Row:
        """The row of a verdict. time_us is the time inside the backend, copies included."""
        case, ran, passed = verdict.case, verdict.unsupported is None, verdict.passed
        return (
            test_time,
            self._build,
            self._name,
            self._op,
            str(case)[len(self._op) + 1 : -1],
            "test",
            int(ran),
            int(passed),
            "" if passed else message_of(verdict),
            verdict.seconds * 1e6,
            0.0,
            0.0,
            (case.nbytes + 1023) // 1024,
            int(ran),
            self._device,
            self._registry,
        )


def message_of(verdict: Verdict) -> str:
    """One line: why a case failed or was not run; "" where it passed."""
    if verdict.passed:
        return ""
    text = verdict.unsupported
    if text is None:
        text = f"{verdict.kind}: {verdict.findings[0].detail}"
    return printable(" ".join(text.split()))


def test_time() -> str:
    """Now, as upstream writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Printer(Observer):
    """Prints every verdict as a row as soon as it is there."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rows: dict[tuple[str, str], Rows] = {}

    def verdicts(self, op: Op, target: Target, verdicts: Sequence[Verdict]) -> None:
        key = (op.name, target.label)
        rows = self._rows[key] = self._rows.get(key) or Rows(op, target)
        at = test_time()
        for verdict in verdicts:
            self._print(rows.of(verdict, at))
        self._stream.flush()

    def result(self, op: Op, target: Target, result: Result) -> None:
        """What the device says yes to and aborts at is a case that did not pass: upstream's own run ends there."""
        if result.lies:
            self.verdicts(op, target, [lie.verdict for lie in result.lies])

    def _print(self, row: Row) -> None:
        raise NotImplementedError


class CsvPrinter(Printer):
    """Rows as CSV, every value quoted, below a header: upstream's columns first, then the others."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
        self._writer.writerow(CSV_COLUMNS)

    def _print(self, row: Row) -> None:
        values: dict[str, str | float] = dict(zip(UPSTREAM, row))
        self._writer.writerow([cell(values[name]) for name in CSV_COLUMNS])


class SqlPrinter(Printer):
    """Rows as SQL statements that `sqlite3 FILE` takes."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        columns = ",\n".join(f"  {name} {kind}" for name, kind in UPSTREAM.items())
        stream.write(f"CREATE TABLE IF NOT EXISTS test_backend_ops (\n{columns}\n);\n\n")
        self._insert = f"INSERT INTO test_backend_ops ({', '.join(UPSTREAM)}) VALUES "

    def _print(self, row: Row) -> None:
        values = ", ".join("'" + _text(value).replace("'", "''") + "'" for value in row)
        self._stream.write(f"{self._insert}({values});\n")


def cell(value: str | float) -> str:
    """A value as text that no spreadsheet takes for a formula."""
    text = _text(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _text(value: str | float) -> str:
    return f"{value:f}" if isinstance(value, float) else str(value)
