"""What the tests of the history share: three verdicts, the run they belong to, and a look into the file."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from opconform.harness.explain.failure import Failure
from opconform.harness.judge.intervals import MOST, Interval, Versus
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Device
from opconform.harness.run.target import Target
from opconform.harness.search.result import Result, Tally
from opconform.harness.search.settings import Settings
from opconform.harness.search.speed import Measured, Subject
from opconform.reports.history import recorders
from opconform.reports.run import Run, about_devices
from opconform.reports.states import Pair
from tests.samples import acc

ACC = ops()["acc"]
VULKAN = Target("ggml", Device("Vulkan0", "llvmpipe", {"build": "b7836", "ggml": "0.9.5 4baa480"}))
PAIR = Pair("acc", VULKAN.label, VULKAN.build)
PASSED = Verdict(acc(3), seconds=2e-6)
FAILED = Verdict(acc(1, 1, 1, 2), (Finding("value", Kind.WRONG_VALUES, "1 of 2 elements\ndiffer 'here'"),))
OTHER = Target("ggml", Device("Vulkan0", "llvmpipe", {"build": "b6673"}))
REFUSED = Verdict(acc(5), unsupported='takes no "b"\nof 5')


def run_of(path: Path, **chosen: object) -> Run:
    return Run(Settings(history=str(path), seed=7, **chosen), "search", about_devices([VULKAN]), [PAIR[:2]])  # type: ignore[arg-type]


def failure_of(verdict: Verdict) -> Failure:
    case = verdict.case
    return Failure(case, VULKAN.label, "llvmpipe", (), verdict.findings, None, "is the case itself", "", "", "")


def result_of(verdicts: Sequence[Verdict], seconds: float = 1.0, **more: object) -> Result:
    reasons = Counter(verdict.unsupported for verdict in verdicts if verdict.unsupported is not None)
    passed, failed = sum(v.passed for v in verdicts), [v for v in verdicts if v.failed]
    tally = Tally(passed, len(failed), reasons, seconds=seconds)
    failure = failure_of(failed[-1]) if failed else None
    return Result("acc", VULKAN.label, VULKAN.about, tally, failure, **more)  # type: ignore[arg-type]


def record(run: Run, verdicts: Sequence[Verdict], result: Result | None = None, close: bool = True) -> None:
    """What a session tells the recorders of one op on one device."""
    observers = recorders(run)
    for observer in observers:
        observer.begins(ACC, VULKAN)
        observer.verdicts(ACC, VULKAN, verdicts)
        if result is not None:
            observer.result(ACC, VULKAN, result)
        if close:
            observer.close()


def finished(path: Path, verdicts: Sequence[Verdict], **more: object) -> Run:
    run = run_of(path)
    record(run, verdicts, result_of(verdicts, **more))  # type: ignore[arg-type]
    return run


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def microseconds(low: float, middle: float, high: float) -> Interval:
    return Interval(low * 1e-6, middle * 1e-6, high * 1e-6, 0.95, 40)


SUBJECT = Subject("acc/one", ACC, acc(3))
TIMED = Measured(
    SUBJECT,
    VULKAN,
    clock="graphs",
    warm=microseconds(9, 10, 12),
    cold=microseconds(20, 30, 40),
    copy=microseconds(4, 5, 6),
    cold_copy=microseconds(15, 15, 15),
    product=6e6,
    memory={"planned": 7, "allocated": 8},
)


def ratio_of(ratio: float, subject: Subject = SUBJECT, target: Target = VULKAN) -> Measured:
    """A comparison with another build that ended as it must: it is slower where the ratio is above the margin."""
    return Measured(subject, target, versus=Versus((ratio,) * MOST, 0.1), other=OTHER)


def timed(path: Path, *measured: Measured, close: bool = True) -> Run:
    """A run that has only taken times."""
    targets = list({each.target.label: each.target for each in measured}.values())
    pairs = [("acc", target.label) for target in targets]
    run = Run(Settings(history=str(path)), "perf", about_devices(targets), pairs)
    for observer in recorders(run):
        for each in measured:
            observer.timed(each)
        if close:
            observer.close()
    return run
