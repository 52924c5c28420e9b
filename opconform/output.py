"""What `--output` chooses: text for a person, or one JSON document or rows on stdout and nothing else there."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from opconform import __version__
from opconform.harness.search.observer import Observer
from opconform.reports.rows import CsvPrinter, SqlPrinter
from opconform.reports.run import Run

if TYPE_CHECKING:
    from opconform.harness.model.op import Op
    from opconform.harness.run.target import Target
    from opconform.harness.search.result import Result

FORMATS = ("console", "json", "csv", "sql")


@contextlib.contextmanager
def printing(run: Run, form: str) -> Iterator[list[Observer]]:
    """The observers that print a run in the format `form`; none for the console, which has its own.

    Inside, what is printed to stdout goes to stderr, unless the format is console.
    """
    if form == "console":
        yield []
        return
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        printer = JsonPrinter(run, stdout) if form == "json" else (CsvPrinter if form == "csv" else SqlPrinter)(stdout)
        yield [printer]


class JsonPrinter(Observer):
    """One JSON document at the end, also after Ctrl-C: the run, the pairs it set out to run, and their results."""

    def __init__(self, run: Run, stream: TextIO) -> None:
        self._run = run
        self._stream = stream
        self._results: list[Result] = []

    def result(self, op: Op, target: Target, result: Result) -> None:
        self._results.append(result)

    def close(self) -> None:
        settings = self._run.settings
        document = {
            "opconform": __version__,
            "run": self._run.id,
            "started": self._run.started,
            "seed": settings.seed,
            "shard": f"{settings.shard[0]}/{settings.shard[1]}",
            "devices": self._run.devices,
            "pairs": self._run.pairs,
            "results": [result.to_json() for result in self._results],
        }
        self._stream.write(json.dumps(document, indent=1) + "\n")
        self._stream.flush()
