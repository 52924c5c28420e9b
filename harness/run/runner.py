"""Runs cases on a device and judges them. The device's backend lives in a worker process that may abort or hang.

Whatever a worker finished before it died is kept: answers arrive one by one, and outputs lie in memory that the harness
owns.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from opconform.harness.judge.judging import Verdict, judge
from opconform.harness.judge.oracle import expectations
from opconform.harness.judge.vacuous import vacuous
from opconform.harness.model.buffers import Buffers, Plan
from opconform.harness.model.case import DEFAULT_MAX_BYTES, Case
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.limits import Limit
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op
from opconform.harness.model.values import inputs_of
from opconform.harness.run.backend import Named, Unavailable
from opconform.harness.run.interrupts import heed
from opconform.harness.run.limits import limits_of
from opconform.harness.run.messages import Answer, Refusal, Samples, Shown, StageError, last_line_of
from opconform.harness.run.messages import Clock as TimerClock
from opconform.harness.run.process import Died, Local, Worker
from opconform.harness.run.registry import backend_class
from opconform.harness.run.sanitizer import OPTION
from opconform.harness.run.target import Target
from opconform.harness.run.timing import What

PATIENCE = 4.0  #: how many times the time limit a case may take that had no answer within it
_MOST_PATIENCE = 120.0  #: seconds that this is at most
_BATCH_BYTES = 64 << 20  #: cases travel together up to this much memory


@dataclass
class Clock:
    """Seconds spent in each stage, for the throughput table. Generation of problems is not in it.

    values: inputs drawn and laid out. transport, backend: seconds that the worker is waited for, to take messages and
    to bring them back, and while it is inside `Backend.supports` and `run`. It computes while the harness goes on.
    """

    values: float = 0.0
    transport: float = 0.0
    backend: float = 0.0
    reference: float = 0.0
    judging: float = 0.0


@dataclass(frozen=True)
class _Planned:
    """A case of a batch: its place among those that were asked about, and its place in memory."""

    index: int
    case: Case
    plan: Plan
    ready: Ready | None = None


@dataclass(frozen=True)
class Ready:
    """A case with its values, with the reference for the arithmetic that the device promises, and with why it says
    nothing ("" where it says something)."""

    case: Case
    values: Mapping[str, Raw]
    expected: Expected
    vacuous: str


@dataclass
class Prepared:
    """A case laid out in the arena, on its way to the worker; `ready` where it was made so before."""

    case: Case
    values: Mapping[str, Raw]
    plan: Plan
    offset: int
    ready: Ready | None = None


@dataclass
class Returned:
    """What came back of a case: the worker's answer, and the case's memory before and after. `numerics` is what the
    device promises for it; `expected` is there where the backend returned, `vacuous` where it was found out before."""

    item: Prepared
    answer: Answer | Died
    before: np.ndarray
    after: np.ndarray
    numerics: Numerics
    expected: Expected | None = None
    vacuous: str | None = None

    @property
    def is_computed(self) -> bool:
        """Whether the backend took the case and came to its end."""
        return isinstance(self.answer, Answer) and self.answer.unsupported is None and self.answer.error is None


@dataclass(frozen=True)
class Timer:
    """A case that stands loaded on a device. `about` says by what clock it is timed."""

    worker: Worker | Local
    about: TimerClock
    time_limit: float

    def sample(self, what: What, seconds: float) -> Samples:
        """Times, as many as fit into `seconds` and at least one. Raises `TimingError`."""
        return self.worker.sample(what, seconds, self.time_limit)


class Runner:
    """Runs and judges cases of one op on one device. A context manager: leaving it ends the worker.

    time_limit: seconds a case may take. One that has no answer by then is run once more and may take `PATIENCE` times
    as long, 2 minutes at most: some drivers compile a kernel for a minute when the machine is busy. isolated: False
    runs in this process. strict: tries what the limits of kind "kernel" and "bug" forbid. worker: one of the target's
    backend that stands ready. start_seconds: how long the device may take to open (default `START_SECONDS`). `lost`
    turns true if it does not open any more after a crash.
    """

    def __init__(
        self,
        target: Target,
        *,
        time_limit: float = 30.0,
        isolated: bool = True,
        strict: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
        worker: Worker | None = None,
        start_seconds: float | None = None,
    ) -> None:
        self.target = target
        self.numerics = target.device.numerics
        self.time_limit = time_limit
        self.max_bytes = max_bytes
        self.clock = Clock()
        self.slowest = 0.0
        self.strict = strict
        self.lost = False
        self._sanitizer = backend_class(target.spec).sanitizer() if OPTION in target.options else None
        self.isolated = isolated
        self._start = Worker if isolated else Local
        self._worker: Worker | Local = worker or self._start(target.spec, target.options)
        self._spare: Worker | Local | None = None
        try:
            limits = self._worker.open(target.device.id, start_seconds)
        except BaseException:
            self._worker.close()
            raise
        self._all_limits = tuple(limit for limit in limits if target.device.id.startswith(limit.device))
        self._limits_of: dict[str, tuple[Limit, ...]] = {}
        self._as_promised = True  #: whether the last cases were computed with the device's own arithmetic

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and the one standing by."""
        self._worker.close()
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def limits(self, op: Op) -> tuple[Limit, ...]:
        """The limits that hold for `op` in this run. Raises `Unavailable` for one that cannot be meant."""
        if op.name not in self._limits_of:  # a build of ggml has hundreds, and each case asks
            kinds = {"api"} if self.strict else {"api", "kernel", "bug"}
            its = limits_of(op, self._all_limits)
            self._limits_of[op.name] = tuple(limit for limit in its if limit.kind in kinds)
        return self._limits_of[op.name]

    def supports(self, cases: Sequence[Case]) -> list[str | None]:
        """Whether the backend itself takes each case: None, or the reason."""
        return self._worker.supports(cases)

    def names(self) -> tuple[Named, ...] | None:
        """The ops that the backend's library itself names, or None."""
        return self._worker.names()

    def said(self) -> str:
        """What the backend has printed while the last cases ran."""
        return self._worker.said()

    def numerics_of(self, case: Case) -> Numerics:
        """The arithmetic that the device promises for a case. Raises `Unavailable`."""
        (own,) = self._worker.numerics([replace(case, data=None)])
        return own or self.numerics

    def ready(self, op: Op, cases: Sequence[Case]) -> list[Ready]:
        """Cases with their values and references, which takes no backend. Raises `CaseError`."""
        start = time.perf_counter()
        values = [inputs_of(case, op) for case in cases]
        self.clock.values += time.perf_counter() - start
        expected = self._expected(op, [(case, its, self.numerics) for case, its in zip(cases, values)])
        start = time.perf_counter()
        found = [
            Ready(case, its, each, vacuous(op, case, its, each, self.numerics))
            for case, its, each in zip(cases, values, expected)
        ]
        self.clock.judging += time.perf_counter() - start
        return found

    def verdicts(
        self,
        op: Op,
        cases: Iterable[Case | Ready],
        *,
        beyond: Iterable[str] = (),
        until_death: bool = False,
        time_limit: float | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[Verdict]:
        """Run and judge `cases`, in order. `beyond` lists kinds of limits that do not hold this time; with
        `until_death` the cases after one that killed its worker are left out (several that hang take minutes).
        `time_limit` is the seconds that a case may take this time, where it is less than the runner's. `meanwhile` is
        called while the backend computes, each time that cases have been sent to it.

        Raises `CaseError` for a case that its op does not know.
        """
        seconds = self.time_limit if time_limit is None else min(time_limit, self.time_limit)
        patient = time_limit is None
        found: dict[int, Verdict] = {}
        batch: list[_Planned] = []
        size = 0
        for index, given in enumerate(cases):
            case, ready = (given.case, given) if isinstance(given, Ready) else (given, None)
            reason = self._forbidden(op, case, set(beyond))
            if reason is not None:
                found[index] = Verdict(case, unsupported=reason)
                continue
            planned = [_Planned(index, case, Plan.of(case), ready)]
            if case.before is not None:
                planned.insert(0, _Planned(-1 - index, case.before, Plan.of(case.before)))
            needed = sum(item.plan.size for item in planned)
            if batch and size + needed > _BATCH_BYTES:
                worker = self._worker
                found.update(self._run(op, batch, until_death, seconds, meanwhile, patient))
                batch, size = [], 0
                if until_death and worker is not self._worker:
                    break
            batch += planned
            size += needed
        if batch:
            found.update(self._run(op, batch, until_death, seconds, meanwhile, patient))
        return [found[index] for index in itertools.takewhile(found.__contains__, itertools.count())]

    def _forbidden(self, op: Op, case: Case, beyond: set[str]) -> str | None:
        op.check(case)
        if case.nbytes > self.max_bytes:
            return f"takes {case.nbytes} bytes; --max-bytes allows {self.max_bytes}"
        if case.before is not None:
            reason = self._forbidden(op, case.before, beyond)
            if reason is not None:
                return reason
        traits = op.traits(case)
        for limit in self.limits(op):
            if limit.kind not in beyond and limit.forbids(case, traits):
                return limit.reason
        return None

    def _run(
        self,
        op: Op,
        batch: Sequence[_Planned],
        until_death: bool,
        seconds: float,
        meanwhile: Callable[[], None],
        patient: bool,
    ) -> dict[int, Verdict]:
        """Verdicts of a batch that fits in the arena, by index; a worker that dies is replaced and the rest goes on.

        patient: a case that has no answer in time is run once more, with more time.
        """
        found: dict[int, Verdict] = {}
        left = list(batch)
        while left:
            heed()
            if self.lost:
                try:
                    self._open_again()
                except Unavailable:
                    if found:
                        break  # what is known already must not be lost with the device
                    raise
            prepared = self._prepare(op, left)
            before = self._worker.arena(0)[: prepared[-1].offset + prepared[-1].plan.size].copy()
            returned = self._exchange(op, prepared, before, seconds, meanwhile)
            for item, back in zip(left, returned):
                found[item.index] = self._verdict(op, back, seconds)
            if isinstance(returned[-1].answer, Died):
                self._replace_worker()
                more = min(PATIENCE * seconds, _MOST_PATIENCE)
                if patient and more > seconds and returned[-1].answer.kind == Kind.TIMEOUT:
                    found.update(self._again(op, left, len(returned) - 1, more))
                if until_death:
                    break
            left = left[len(returned) :]
        return found

    def _again(self, op: Op, batch: Sequence[_Planned], place: int, seconds: float) -> dict[int, Verdict]:
        """The verdict of the case that had no answer in time, run after the one that comes right before it, within so
        many seconds; nothing where the device does not open any more."""
        item = batch[place]
        with_it = [other for other in batch if other.index == -1 - item.index and item.index >= 0]
        try:
            found = self._run(op, [*with_it, item], False, seconds, lambda: None, patient=False)
        except Unavailable:
            return {}
        return {index: replace(verdict, late=True) for index, verdict in found.items()}

    def _prepare(self, op: Op, planned: Sequence[_Planned]) -> list[Prepared]:
        start = time.perf_counter()
        prepared, offset = [], 0
        for item in planned:
            values = item.ready.values if item.ready else inputs_of(item.case, op)
            prepared.append(Prepared(item.case, values, item.plan, offset, item.ready))
            offset += item.plan.size
        arena = self._worker.arena(offset)
        for each in prepared:
            Buffers(each.case, arena[each.offset :], each.plan).fill(each.values)
        self.clock.values += time.perf_counter() - start
        return prepared

    def _exchange(
        self,
        op: Op,
        prepared: Sequence[Prepared],
        before: np.ndarray,
        seconds: float,
        meanwhile: Callable[[], None],
    ) -> list[Returned]:
        """What came back of the cases that were answered, with the references of those that were computed.

        References that follow from what the device promises are computed while the worker is busy.
        """
        start = time.perf_counter()
        cases = [
            (item.case if item.case.data is None else replace(item.case, data=None), item.offset) for item in prepared
        ]
        coming = self._worker.run(cases, seconds)
        self.clock.transport += time.perf_counter() - start
        meanwhile()
        early = self._early(op, prepared)
        start = time.perf_counter()
        answers = list(coming)
        waited = time.perf_counter() - start
        inside = [answer.seconds for answer in answers if isinstance(answer, Answer)]
        self.slowest = max([self.slowest, *inside])
        self.clock.backend += min(sum(inside), waited)
        self.clock.transport += max(waited - sum(inside), 0)
        returned = self._returned(prepared, answers, before, early)
        left = [back for back in returned if back.is_computed and back.expected is None]
        for back, late in zip(left, self._expected(op, [(b.item.case, b.item.values, b.numerics) for b in left])):
            back.expected = late
        return returned

    def _returned(
        self,
        prepared: Sequence[Prepared],
        answers: Sequence[Answer | Died],
        before: np.ndarray,
        early: Mapping[int, Expected],
    ) -> list[Returned]:
        """What came back, with references where the arithmetic is what the device promises."""
        arena, found = self._worker.arena(0), list[Returned]()
        for index, (item, answer) in enumerate(zip(prepared, answers)):
            window = slice(item.offset, item.offset + item.plan.size)
            own = answer.numerics if isinstance(answer, Answer) else None
            back = Returned(item, answer, before[window], arena[window], own or self.numerics)
            if back.numerics == self.numerics:
                back.expected = early.get(index)
                back.vacuous = item.ready.vacuous if item.ready else None
            found.append(back)
        computed = [back for back in found if back.is_computed]
        self._as_promised = bool(computed) and all(back.numerics == self.numerics for back in computed)
        return found

    def _early(self, op: Op, prepared: Sequence[Prepared]) -> dict[int, Expected]:
        """The references that are there or can be made before the answers come, by place."""
        found = {index: item.ready.expected for index, item in enumerate(prepared) if item.ready}
        left = [(index, item) for index, item in enumerate(prepared) if not item.ready]
        if left and self._as_promised:
            runs = [(item.case, item.values, self.numerics) for _, item in left]
            found.update(zip([index for index, _ in left], self._expected(op, runs)))
        return found

    def _expected(self, op: Op, runs: Sequence[tuple[Case, Mapping[str, Raw], Numerics]]) -> Sequence[Expected]:
        start = time.perf_counter()
        expected = expectations(op, runs)
        self.clock.reference += time.perf_counter() - start
        return expected

    def _verdict(self, op: Op, back: Returned, seconds: float) -> Verdict:
        verdict, answer, case = self._own_verdict(op, back, seconds), back.answer, back.item.case
        if verdict.failed and case.before is not None:
            detail = f"alone it is right; it is wrong right after {case.before}"
            verdict = replace(verdict, findings=(Finding("history", Kind.STATE_KEPT, detail), *verdict.findings))
        if self._sanitizer is None or not answer.log:
            return verdict
        findings = self._sanitizer.findings(answer.log, back.item.case)
        if isinstance(answer, Died):  # its end heads the report, and what led to it follows
            return replace(verdict, findings=(*verdict.findings, *findings))
        return replace(verdict, findings=(*findings, *verdict.findings)) if findings else verdict

    def _own_verdict(self, op: Op, back: Returned, seconds: float) -> Verdict:
        item, answer = back.item, back.answer
        if isinstance(answer, Died):
            finding = Finding("process", self._blame(op, item.case) or answer.kind, answer.detail)
            return Verdict(item.case, (finding,), stderr=answer.stderr, seconds=seconds)
        if answer.unsupported is not None:
            return Verdict(item.case, unsupported=answer.unsupported)
        if answer.error is not None:
            detail = last_line_of(answer.error)
            finding = Finding("process", self._blame(op, item.case) or answer.kind, detail)
            return Verdict(item.case, (finding,), stderr=answer.error, seconds=answer.seconds)
        start = time.perf_counter()
        verdict = judge(
            item.case,
            op,
            item.values,
            back.before,
            back.after,
            back.numerics,
            back.expected,
            item.plan,
            back.vacuous,
            answer.seconds,
        )
        self.clock.judging += time.perf_counter() - start
        return verdict

    def _blame(self, op: Op, case: Case) -> Kind | None:
        """Whether the device said yes to a case that its kernel's own precondition forbids."""
        if not self.strict:
            return None
        traits = op.traits(case)
        limits = (limit for limit in limits_of(op, self._all_limits) if limit.kind == "kernel")
        return Kind.SUPPORTS_OP_LIES if any(limit.forbids(case, traits) for limit in limits) else None

    def fresh(self) -> None:
        """Go on with a new worker, on which nothing has run."""
        self._replace_worker()

    def _replace_worker(self) -> None:
        """Take the worker standing by, and start the next one, so that shrinking a crash does not wait for start-up."""
        self.lost = True
        spare, self._spare = self._spare, None  # Ctrl-C may come at any line: no worker is in two places
        self._worker.close()
        self._worker = spare or self._start(self.target.spec, self.target.options)
        self._spare = self._start(self.target.spec, self.target.options)

    def _open_again(self) -> None:
        """Open the device on the new worker. Raises `Unavailable` where the crash has taken the device along."""
        self._worker.open(self.target.device.id)
        self.lost = False

    def timer(self, op: Op, case: Case, moved: int) -> Timer | Refusal:
        """The case, loaded to be timed beside copies of `moved` bytes; or why it cannot be. Another one that was loaded
        before is gone. Raises `TimingError`, and `CaseError` for a case that its op does not know."""
        reason = self._forbidden(op, case, set())
        if reason is not None:
            return Refusal(reason)
        self._prepare(op, [_Planned(0, case, Plan.of(case))])
        bare = case if case.data is None else replace(case, data=None)
        found = self._worker.clock(bare, moved, self.time_limit)
        return found if isinstance(found, Refusal) else Timer(self._worker, found, self.time_limit)

    def stages(self, op: Op, case: Case) -> Shown | StageError:
        """The device's intermediates of a case by stage, its outputs among them, each decoded to float64.

        None where the backend shows none, a `StageError` where they cannot be had.
        """
        (item,) = self._prepare(op, [_Planned(0, case, Plan.of(case))])
        shown = self._worker.stages(case if case.data is None else replace(case, data=None), self.time_limit)
        if isinstance(shown, StageError) and isinstance(self._worker, Worker) and not self._worker.is_alive():
            self._replace_worker()
        if shown is None or isinstance(shown, StageError):
            return shown
        buffers = Buffers(case, self._worker.arena(0), item.plan)
        outputs = {name: layout.type.decode(np.array(buffers.raw(name))) for name, layout in case.outputs.items()}
        return {**shown, **outputs}
