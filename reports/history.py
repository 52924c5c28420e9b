"""What every run leaves behind: a JSONL event log, and rows in a SQLite history.

Each batch of verdicts is written as it arrives, in one transaction and in one write, so that a run that is killed loses
no case that it has finished.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opconform.harness.model.usage import UsageError
from opconform.harness.model.version import VERSION
from opconform.harness.search.observer import Observer
from opconform.harness.search.settings import Settings
from opconform.reports.database import (
    COLUMNS,
    OURS,
    TIMINGS,
    Unwritable,
    check_history,
    open_history,
    transaction,
)
from opconform.reports.rows import UPSTREAM, Rows, message_of, test_time
from opconform.reports.run import Run, now
from opconform.reports.speed_rows import document_of, rows_of

if TYPE_CHECKING:
    from opconform.harness.judge.judging import Verdict
    from opconform.harness.model.case import Case
    from opconform.harness.model.op import Op
    from opconform.harness.run.target import Target
    from opconform.harness.search.result import Result
    from opconform.harness.search.speed import Measured

LARGEST_CASE = 1 << 16  #: a longer case is kept without the bytes of its inputs, which its file has

_INSERT_CASE = f"INSERT INTO test_backend_ops VALUES ({', '.join('?' * (len(UPSTREAM) + len(OURS)))})"
_INSERT_RUN = "INSERT OR IGNORE INTO runs VALUES (?, ?, NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_RESULT = f"INSERT OR REPLACE INTO results VALUES ({', '.join('?' * 16)})"
_INSERT_TIMING = f"INSERT INTO {TIMINGS} VALUES ({', '.join(f':{name}' for name in COLUMNS[TIMINGS])})"


def history_path(settings: Settings) -> Path | None:
    """Where the history of a run stands; None where it has none."""
    if settings.history == "none":
        return None
    return Path(settings.history or os.path.join(settings.report_dir, "history.sqlite"))


def events_path(history: Path, run_id: str) -> Path:
    """Where the event log of a run stands: in `events`, beside the history."""
    return history.parent / "events" / f"{run_id}.jsonl"


def recorders(run: Run) -> list[Observer]:
    """The observers that record a run; none with `--history none`.

    They write nothing before the run begins. Raises `UsageError` for a file that cannot be a history. Where the default
    place cannot be written, that is said, and the run goes on without: its results are still shown.
    """
    path = history_path(run.settings)
    if path is None:
        return []
    try:
        check_history(path)
    except Unwritable as error:
        if run.settings.history is not None:
            raise _with_a_way_out(error) from None
        _say(f"no history is written: {error}")
        return []
    except UsageError as error:
        raise _with_a_way_out(error) from None
    return [EventLog(events_path(path, run.id), run), History(path, run)]


def _with_a_way_out(error: UsageError) -> UsageError:
    return UsageError(f"--history {error} (--history none runs without)")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


class Recorder(Observer):
    """What the two records have in common: they begin with the first op, and end with the first error."""

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self._run = run
        self._open = False
        self._stopped = False
        self._shrinking: set[tuple[str, str]] = set()

    def begins(self, op: Op, target: Target) -> None:
        self._opened()

    def _opened(self) -> bool:
        if not self._open and not self._stopped:
            self._guarded(self._begin)
            self._open = not self._stopped
        return self._open

    def verdicts(self, op: Op, target: Target, verdicts: Sequence[Verdict]) -> None:
        if self._open and verdicts:
            self._guarded(self._keep_verdicts, op, target, verdicts)

    def shrinking(self, op: Op, target: Target, verdict: Verdict) -> None:
        self._shrinking.add((op.name, target.label))

    def result(self, op: Op, target: Target, result: Result) -> None:
        self._shrinking.discard((op.name, target.label))
        if self._open:
            self._guarded(self._keep_result, result)

    def watched(self, result: Result) -> None:
        if self._opened():
            self._guarded(self._keep_result, result)

    def timed(self, measured: Measured) -> None:
        if self._opened():
            self._guarded(self._keep_times, measured)

    def close(self) -> None:
        if self._open:
            self._guarded(self._end)
        self._open = False

    def _guarded(self, action: Any, *arguments: Any) -> None:
        """Do it; at the first error say so and write no more, for the run itself must go on."""
        if self._stopped:
            return
        try:
            action(*arguments)
        except (OSError, sqlite3.Error, UsageError, UnicodeError) as error:
            self._stopped = True
            about = str(error) if str(self.path) in str(error) else f"{self.path}: {error}"
            _say(f"from here on nothing is recorded in {about}")

    def _begin(self) -> None:
        raise NotImplementedError

    def _keep_verdicts(self, op: Op, target: Target, verdicts: Sequence[Verdict]) -> None:
        raise NotImplementedError

    def _keep_result(self, result: Result) -> None:
        raise NotImplementedError

    def _keep_times(self, measured: Measured) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


class History(Recorder):
    """The SQLite history: a row for the run, for every case, for every op on a device that was finished, and for every
    time."""

    _db: sqlite3.Connection

    def __init__(self, path: Path, run: Run) -> None:
        super().__init__(path, run)
        self._rows: dict[tuple[str, str], Rows] = {}

    def _begin(self) -> None:
        self._db = open_history(self.path)
        run, settings = self._run, self._run.settings
        values = (
            *(run.id, run.started, run.command, settings.seed, settings.profile, settings.examples, *settings.shard),
            *(VERSION, json.dumps(run.devices), json.dumps(run.pairs), json.dumps(_options(settings))),
        )
        with transaction(self._db):
            self._db.execute(_INSERT_RUN, values)

    def result(self, op: Op, target: Target, result: Result) -> None:
        """What the device aborts at is a row among the cases too, of kind SUPPORTS_OP LIES."""
        self._shrinking.discard((op.name, target.label))
        self.verdicts(op, target, [lie.verdict for lie in result.lies])
        super().result(op, target, result)

    def _keep_verdicts(self, op: Op, target: Target, verdicts: Sequence[Verdict]) -> None:
        key = (op.name, target.label)
        rows = self._rows[key] = self._rows.get(key) or Rows(op, target)
        run_id, label, shrinking, at = self._run.id, target.label, int(key in self._shrinking), test_time()
        values = [
            (
                *rows.of(verdict, at),
                *(run_id, label, verdict.case.id, verdict.kind, verdict.case.recipe, verdict.case.seed, shrinking),
            )
            for verdict in verdicts
        ]
        with transaction(self._db):
            self._db.executemany(_INSERT_CASE, values)

    def _keep_result(self, result: Result) -> None:
        tally, failure = result.tally, result.failure
        values = (
            *(self._run.id, result.op, result.target, result.device),
            *(tally.passed, tally.failed, tally.unsupported.total(), json.dumps(dict(tally.unsupported))),
            *(result.kind, result.case_id),
            "" if failure is None else _case_text(failure.case),
            *(json.dumps(result.failed_known), json.dumps([[bug.id, bug.still_fails] for bug in result.known_bugs])),
            *(tally.seconds, tally.executed / tally.seconds if tally.seconds > 0 else None),
            json.dumps(_without_data(result).to_json()),
        )
        with transaction(self._db):
            self._db.execute(_INSERT_RESULT, values)

    def _keep_times(self, measured: Measured) -> None:
        own = {"run_id": self._run.id, "target": measured.target.label}
        values = [{name: None if it == "" else it for name, it in {**row, **own}.items()} for row in rows_of(measured)]
        with transaction(self._db):
            self._db.executemany(_INSERT_TIMING, values)

    def _end(self) -> None:
        with transaction(self._db):
            self._db.execute("UPDATE runs SET ended = ? WHERE run_id = ?", (now(), self._run.id))
        self._db.close()


def _options(settings: Settings) -> dict[str, Any]:
    """The settings that the commands of `session.commands` follow from."""
    return {"report_dir": settings.report_dir, "repro_dir": settings.repro_dir, "strict": settings.strict}


def _without_data(result: Result) -> Result:
    """The result without the bytes of the failing case's inputs, which `case_json` keeps."""
    failure = result.failure
    return (
        result if failure is None else replace(result, failure=replace(failure, case=replace(failure.case, data=None)))
    )


def _case_text(case: Case) -> str:
    text = json.dumps(case.to_json())
    if len(text) <= LARGEST_CASE:
        return text
    return json.dumps({name: value for name, value in case.to_json().items() if name != "data"})


class EventLog(Recorder):
    """The event log: one JSON object a line. `event` is run, begin, case, shrinking, result, timing or end.

    The workers of xdist append to the same file; each write is whole lines.
    """

    _file: int

    def __init__(self, path: Path, run: Run) -> None:
        super().__init__(path, run)
        self._heads: dict[tuple[str, str], str] = {}

    def begins(self, op: Op, target: Target) -> None:
        super().begins(op, target)
        if self._open:
            self._guarded(self._event, "begin", {"op": op.name, "target": target.label})

    def shrinking(self, op: Op, target: Target, verdict: Verdict) -> None:
        super().shrinking(op, target, verdict)
        if self._open:
            self._guarded(self._event, "shrinking", {"op": op.name, "target": target.label, "id": verdict.case.id})

    def _begin(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        run, settings = self._run, self._run.settings
        self._event(
            "run",
            {
                "run": run.id,
                "command": run.command,
                "opconform": VERSION,
                "seed": settings.seed,
                "profile": settings.profile,
                "examples": settings.examples,
                "shard": f"{settings.shard[0]}/{settings.shard[1]}",
                "devices": run.devices,
                "pairs": run.pairs,
            },
        )

    def _keep_verdicts(self, op: Op, target: Target, verdicts: Sequence[Verdict]) -> None:
        key = (op.name, target.label)
        if key not in self._heads:
            self._heads[key] = f'","op":{json.dumps(op.name)},"target":{json.dumps(target.label)},"verdict":"'
        head = f'{{"event":"case","time":"{now()}{self._heads[key]}'
        shrinking = ',"shrinking":true' if key in self._shrinking else ""
        self._write("".join([f"{head}{_about(verdict)}{shrinking}}}\n" for verdict in verdicts]))

    def _keep_result(self, result: Result) -> None:
        self._event("result", {**result.to_json()})

    def _keep_times(self, measured: Measured) -> None:
        for row in document_of([measured]):
            self._event("timing", row)

    def _end(self) -> None:
        self._event("end", {})
        os.close(self._file)

    def _event(self, event: str, what: dict[str, Any]) -> None:
        self._write(json.dumps({"event": event, "time": now(), **what}, separators=(",", ":")) + "\n")

    def _write(self, text: str) -> None:
        left = text.encode()
        while left:
            left = left[os.write(self._file, left) :]


def _about(verdict: Verdict) -> str:
    """The rest of a case's line. `case.key` is canonical JSON already; the brace is closed by the caller."""
    case = verdict.case
    if verdict.passed:
        state = 'passed"'
    elif verdict.unsupported is not None:
        state = f'unsupported","reason":{json.dumps(verdict.unsupported)}'
    else:
        kind, message = json.dumps(verdict.kind), json.dumps(message_of(verdict))
        state = f'failed","kind":{kind},"message":{message},"stderr":{json.dumps(verdict.stderr)}'
    return f'{state},"id":"{case.id}","seconds":{verdict.seconds:.7f},"case":{case.key}'
