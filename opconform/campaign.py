"""What one run sets out to do, made from option values: the command line and pytest both run a `Campaign`."""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opconform.harness.draw.known import KnownCase, find_cases, known_in
from opconform.harness.model.case import Case
from opconform.harness.model.op import Op
from opconform.harness.model.ops import chosen_ops
from opconform.harness.model.text import printable
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.host import keep_freed_memory
from opconform.harness.run.target import Target
from opconform.harness.search.known_failures import Entry, load, problems
from opconform.harness.search.observer import Observer
from opconform.harness.search.result import Result
from opconform.harness.search.session import Missing, Session, Workers, end, idle, on_device, started, targets_of
from opconform.harness.search.settings import Settings, positive
from opconform.options import settings_from
from opconform.reports.history import recorders
from opconform.reports.repro.observer import bundle_writers
from opconform.reports.run import Run, about_devices


@dataclass
class Campaign:
    """The ops and devices of a run, in the order in which they run, and how each of them runs.

    cases: the cases that are replayed, by name; where there are none, each op is searched. known: what is tried first
    then, beside the packaged known cases. missing: backends that cannot run here. listed: the expected failures. asked:
    the backends and devices that are asked for by name. seconds: the time that all pairs share, if there is a limit.
    workers: those that the session may take over; they end with the campaign.
    """

    settings: Settings
    targets: list[Target]
    missing: list[Missing]
    pairs: list[tuple[Op, Target]]
    cases: list[tuple[str, Case]] = field(default_factory=list)
    listed: tuple[Entry, ...] = ()
    known: tuple[KnownCase, ...] = ()
    asked: tuple[str, ...] = ()
    seconds: float | None = None
    workers: Workers = field(default_factory=dict)
    run: Run = field(init=False)
    run_id: str | None = None

    def __post_init__(self) -> None:
        command = "replay" if self.cases else "search"
        named = {} if self.run_id is None else {"id": self.run_id}
        weakref.finalize(self, end, self.workers)
        self.run = Run(self.settings, command, about_devices(self.targets), **named)  # type: ignore[arg-type]

    @classmethod
    def of(cls, values: Mapping[str, Any], run_id: str | None = None, early: bool = False) -> Campaign:
        """The campaign that option values make, by `Option.key`. With `early` it is opened at once: the worker of the
        backend starts while the ops are imported, and stays. Raises `UsageError` for one that cannot be."""
        settings = settings_from(values)
        workers = started(values.get("backend") or (), settings) if early else {}
        try:
            return cls._of(values, run_id, settings, workers)
        except BaseException:
            end(workers)
            raise

    @classmethod
    def _of(cls, values: Mapping[str, Any], run_id: str | None, settings: Settings, workers: Workers) -> Campaign:
        chosen = chosen_ops(values.get("op") or ())
        named = [find_cases(name, settings.report_dir, settings.max_bytes) for name in values.get("case") or ()]
        cases = [each for several in named for each in several]
        if cases:
            chosen = [op for op in chosen if any(case.op == op.name for _, case in cases)]
        folders, asked = values.get("known_cases") or (), values.get("backend") or ()
        if cases and folders:
            raise UsageError("--known-cases adds to a search; with --case there is none")
        known = tuple(each for folder in folders for each in known_in(folder))
        targets, missing = targets_of(asked, settings, workers)
        listed = () if cases else load(settings.known_failures)
        minutes = values.get("minutes")
        seconds = None if minutes is None else 60 * positive("--minutes", minutes)
        pairs = [(op, target) for target in targets for op in chosen]
        if seconds is not None:  # an op on all devices: if time runs short, no device is worse off for coming last
            pairs = [(op, target) for op in chosen for target in targets]
        return cls(
            settings, targets, missing, pairs, cases, listed, known, tuple(asked), seconds, workers, run_id=run_id
        )

    def open(self, more: Sequence[Observer] = (), bundles: bool = True) -> Session:
        """The session in which the pairs run. It is a context manager. `more` observers watch it beside the history;
        with `bundles` each failure leaves one."""
        keep_freed_memory()
        self.run.pairs[:] = [(op.name, target.label) for op, target in self.pairs]
        writers = bundle_writers(self.settings) if bundles else []
        return Session(self.settings, [*recorders(self.run), *writers, *more], self.listed, self.workers, self.known)

    def result(self, session: Session, op: Op, target: Target) -> Result:
        """Run one pair. Raises `Unavailable` where the device cannot run, or not any more."""
        if not self.cases:
            return session.search(op, target)
        return session.replay(op, target, [(name, case) for name, case in self.cases if case.op == op.name])

    def outcome(self, session: Session, op: Op, target: Target) -> Result | str:
        """What comes of one pair: a result, or what stood in its way, so that the next pair can run. Raises
        `UsageError`; and Ctrl-C and a reader of the output that has gone end the run too."""
        try:
            return self.result(session, op, target)
        except Unavailable as error:
            return f"{op.name} on {target.label} cannot run: {error}"
        except (UsageError, BrokenPipeError):
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            says = printable(f"{type(error).__name__}: {error}", 400)
            return f"{op.name} on {target.label} broke off in Opconform itself: {says} ({last.filename}:{last.lineno})"

    def faults(self, results: Sequence[Result]) -> list[str]:
        """What is wrong with a run that gave `results`, beside its failures: expected failures that are themselves at
        fault, and backends that were asked for by name and ran nothing while others did."""
        ran = {(result.op, result.target) for result in results}
        about = {(op.name, target.label): on_device(target) for op, target in self.pairs}
        faults = problems(self.listed, {pair: device for pair, device in about.items() if pair in ran}, results)
        if any(result.tally.executed for result in results):  # else the whole run is red, and says so
            faults += idle(self.asked, self.targets, results)
        return faults
