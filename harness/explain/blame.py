"""Who is to blame for a failure: the kernel, the driver, the reference, or a race. One line of evidence and verdict.

The same case runs three times again, and on every other device that is here.

    again on the device            elsewhere                            to blame
    -----------------------------  -----------------------------------  ------------------------------------------
    passes now and then, or is     (whatever)                           a race, or memory that nobody has set
    wrong otherwise each time
    fails, always the same         nobody takes the case                undecided
    fails, always the same         all fail, with the very same wrong   the reference (or the case)
                                   elements
    fails, always the same         all fail, each in its own way        undecided
    fails, always the same         the same device through the same     the kernel, not the driver
                                   API agrees with the reference
    fails, always the same         the same device through the same     the driver, or both kernels
                                   API fails, others agree
    fails, always the same         others agree, on other devices       the kernel or its driver
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from opconform.harness.judge.checks import ON_REQUEST
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case
from opconform.harness.model.expected import Comparison
from opconform.harness.model.findings import Kind, Severity
from opconform.harness.model.op import Op
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.process import Worker
from opconform.harness.run.relations import related
from opconform.harness.run.runner import Runner
from opconform.harness.run.sanitizer import OPTION
from opconform.harness.run.target import Target

_OWN_SHARE = 0.4  #: of the time, what the failing device may take itself
#: What is wrong whatever the right values are.
_WITHOUT_REFERENCE = {Kind.NOT_WRITTEN, Kind.WROTE_OUTSIDE, Kind.INPUT_MODIFIED} | {
    kind for kind in Kind if kind.severity in (Severity.MEMORY, Severity.END)
}
AGAIN = 3  #: how often the failing case is run again
_LEAST_SECONDS = 0.5  #: what anything gets when the time is all but up


@dataclass(frozen=True)
class Again:
    """The case run again where it failed. steady: the same elements were wrong each time, by the same values."""

    fails: int
    runs: int
    steady: bool = True


@dataclass(frozen=True)
class Elsewhere:
    """The case on another device. same_device: it is the failing one, driven through the same API by other kernels.
    same_wrong: the same elements are wrong, by the same values."""

    label: str
    fate: Literal["agrees", "fails", "unsupported", "silent"]
    same_device: bool = False
    same_wrong: bool = False


def line(label: str, twin: str, again: Again | None, elsewhere: Sequence[Elsewhere], kind: str = "") -> str:
    """The evidence, and whom it puts the blame on. `twin` is `Failure.packed_twin`; `again` is None where the case was
    not run again; `kind` is the failure's, "" where it is not known."""
    by_fate = {fate: [other for other in elsewhere if other.fate == fate] for fate in ("agrees", "fails", "silent")}
    agree, fail = by_fate["agrees"], by_fate["fails"]
    evidence = []
    if agree:
        evidence.append(f"{_names(agree)} {_verb(agree, 'agree')} with the reference")
    if fail:
        evidence.append(f"{_names(fail)} {_verb(fail, 'fail')} too")
    if not agree and not fail:
        unsupported = [other for other in elsewhere if other.fate == "unsupported"]
        if unsupported:
            evidence.append(f"not supported by {_names(unsupported)}")
        elif not by_fate["silent"]:
            evidence.append("no other device was asked")
    if by_fate["silent"]:
        evidence.append(f"no answer from {_names(by_fate['silent'])} in time")
    if twin in ("passes", "fails"):
        evidence.append("packed twin passes" if twin == "passes" else "packed twin fails too")
    if again is not None:
        times = "time" if again.fails == 1 else "times"
        steady = "" if again.steady else ", each time with other values"
        evidence.append(f"fails {again.fails} {times} of {again.runs}{steady}")
    return f"{'; '.join(evidence)} — {_blamed(label, twin, again, agree, fail, kind)}"


def _blamed(
    label: str, twin: str, again: Again | None, agree: Sequence[Elsewhere], fail: Sequence[Elsewhere], kind: str
) -> str:
    if again is not None and (again.fails < again.runs or not again.steady):
        return f"a race, or memory that nobody has set, in {label}"
    if kind in _WITHOUT_REFERENCE and not agree:
        return f"the kernel of {label} or its driver is to blame: it takes no reference to see this"
    if not agree and not fail:
        return "whether kernel, driver or reference is to blame cannot be told"
    if not agree:
        if all(other.same_wrong for other in fail):
            return f"the reference is suspect: {_names(fail)} {_verb(fail, 'return')} what {label} returns"
        return "each kernel fails in its own way, or the reference is wrong: cannot be told"
    kernel = f"the kernel of {label}" + (" (its use of strides or offsets)" if twin == "passes" else "")
    right, wrong = ([other for other in found if other.same_device] for found in (agree, fail))
    if right:
        return f"{kernel} is to blame, not the driver ({_names(right)} is the same device) and not the reference"
    if wrong:
        return f"the driver is to blame, for {_names(wrong)} is the same device, or both kernels; not the reference"
    return f"{kernel} or its driver is to blame, not the reference"


def _names(others: Sequence[Elsewhere]) -> str:
    labels = [other.label for other in others]
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)


def _verb(others: Sequence[Elsewhere], verb: str) -> str:
    return verb if len(others) > 1 else f"{verb}s"


def same_wrong(one: Comparison | None, other: Comparison | None) -> bool:
    """Whether two runs of a case are wrong in the same elements, by the same values as far as rounding goes."""
    if one is None or other is None or not np.array_equal(one.wrong, other.wrong):
        return False
    with np.errstate(all="ignore"):
        close = np.abs(one.got - other.got) <= one.bound + other.bound
    same = close | (one.raw == other.raw) | (np.isnan(one.got) & np.isnan(other.got))
    return bool(same[one.wrong].all())


def is_same_device(one: Target, other: Target) -> bool:
    """Whether two targets are one device, driven through one API by two backends: `ggml:Vulkan0` and `vulkan:0`."""
    if one.spec == other.spec or one.device.description != other.device.description:
        return False
    return one.spec.lower() in other.label.lower() or other.spec.lower() in one.label.lower()


class Panel:
    """The devices that a failing case is shown to: those that the run has open, and then those that are started at the
    first failure and kept until `close`.

    backends: gives the options of every backend to ask, by its spec. seconds: the time for one failure, 0 for none.
    opened: gives the runners that stand ready; they answer at once, and are asked whatever else takes its time.
    """

    def __init__(
        self,
        backends: Callable[[], Mapping[str, Mapping[str, str]]],
        seconds: float,
        max_bytes: int,
        opened: Callable[[], Iterable[Runner]] = tuple,
    ) -> None:
        self._backends = backends
        self._opened = opened
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._workers: dict[str, Worker] = {}
        self._targets: dict[str, Target] = {}
        self._runners: dict[str, Runner] = {}
        self._silent: set[str] = set()

    def close(self) -> None:
        """End the workers."""
        for runner in self._runners.values():
            runner.close()
        for worker in self._workers.values():
            worker.close()
        self._runners, self._workers = {}, {}

    def line(self, op: Op, case: Case, kind: str, twin: str, target: Target, own: Callable[[], Runner]) -> str:
        """The line on a case that fails on `target`: `kind` and `twin` are the failure's, `own` gives the runner of
        that device. Whatever goes wrong here, the failure itself must still be shown."""
        if self._seconds <= 0:
            return ""
        start = time.monotonic()
        deadline = start + self._seconds
        try:
            first, again = _again(op, case, kind, own, start + self._seconds * _OWN_SHARE)
            answers = [
                _answer(runner.target, target, _asked(op, case, kind, runner, deadline), first)
                for runner in self._ready(target)
            ]
            self._find_devices(deadline)
            answers += self._elsewhere(op, case, kind, target, first, deadline)
            return line(target.label, twin, again, answers, kind)
        except Exception as error:
            return f"not found out ({type(error).__name__}: {error})"

    def _ready(self, target: Target) -> list[Runner]:
        """The runners that stand ready, of other devices or builds than `target`; the same device by another way
        first."""
        found = [
            runner
            for runner in self._opened()
            if not runner.lost and not _is_same(runner.target, target) and OPTION not in runner.target.options
        ]
        return sorted(found, key=lambda runner: not is_same_device(runner.target, target))

    def _find_devices(self, deadline: float) -> None:
        """List the devices of every backend that has not been asked yet, all at the same time."""
        known = {target.spec for target in self._targets.values()} | self._workers.keys() | self._silent
        backends = {spec: options for spec, options in self._backends().items() if spec not in known}
        started = {spec: Worker(spec, options) for spec, options in backends.items()}
        self._workers.update(started)
        for spec, worker in started.items():
            try:
                for device in worker.devices(_left(deadline)):
                    target = Target(spec, device, backends[spec])
                    self._targets[target.label] = target
            except (Unavailable, UsageError):
                self._workers.pop(spec).close()
                self._silent.add(spec)

    def _elsewhere(
        self, op: Op, case: Case, kind: str, target: Target, first: Comparison | None, deadline: float
    ) -> Iterator[Elsewhere]:
        asked = [runner.target for runner in self._opened() if OPTION not in runner.target.options]
        others = [other for label, other in self._targets.items() if label not in self._silent]
        for other in sorted(others, key=lambda other: not is_same_device(target, other)):
            itself = (other.spec, other.device.id) == (target.spec, target.device.id)
            if not itself and not any(_is_same(other, one) for one in asked):
                yield _answer(other, target, self._verdict(op, case, kind, other, deadline), first)

    def _verdict(self, op: Op, case: Case, kind: str, target: Target, deadline: float) -> Verdict | None:
        """None where the device cannot be asked (in time)."""
        if time.monotonic() > deadline:
            return None
        try:
            if target.label not in self._runners:
                self._runners[target.label] = Runner(
                    target,
                    max_bytes=self._max_bytes,
                    worker=self._workers.pop(target.spec, None),
                    start_seconds=_left(deadline),
                )
            return _run(op, [case], kind, self._runners[target.label], deadline)[0]
        except Unavailable:
            if target.label in self._runners:
                self._runners.pop(target.label).close()
            self._silent.add(target.label)
            return None


def _is_same(one: Target, other: Target) -> bool:
    """Whether two targets are one device of one backend, opened in one way."""
    return (one.spec, one.device.id, dict(one.options)) == (other.spec, other.device.id, dict(other.options))


def _answer(other: Target, target: Target, verdict: Verdict | None, first: Comparison | None) -> Elsewhere:
    """What the verdict of another device says; `first` is what the failing one returned."""
    same = is_same_device(target, other)
    if verdict is None or verdict.kind == Kind.TIMEOUT:
        return Elsewhere(other.label, "silent", same)
    if verdict.unsupported is not None:
        return Elsewhere(other.label, "unsupported", same)
    if not verdict.failed:
        return Elsewhere(other.label, "agrees", same)
    some_wrong = first is not None and bool(first.wrong.any())
    return Elsewhere(other.label, "fails", same, some_wrong and same_wrong(first, verdict.comparison))


def _asked(op: Op, case: Case, kind: str, runner: Runner, deadline: float) -> Verdict | None:
    """The verdict of a device that stands ready; None where it was lost."""
    try:
        return _run(op, [case], kind, runner, deadline)[0]
    except Unavailable:
        return None


def _again(
    op: Op, case: Case, kind: str, own: Callable[[], Runner], deadline: float
) -> tuple[Comparison | None, Again | None]:
    """What the device returns now, and how it fails. A case that hangs is not run again, nor one that cannot be because
    it took the device along."""
    if kind == Kind.TIMEOUT:
        return None, None
    try:
        verdicts = _run(op, [case] * AGAIN, kind, own(), deadline, beyond=("bug",))
    except Unavailable:
        return None, None
    failed = [verdict for verdict in verdicts if verdict.failed]
    steady = all(
        other.kind == failed[0].kind
        and (other.comparison is None or same_wrong(failed[0].comparison, other.comparison))
        for other in failed
    )
    return (failed[0].comparison if failed else None), Again(len(failed), len(verdicts), steady)


def _run(
    op: Op, cases: Sequence[Case], kind: str, runner: Runner, deadline: float, beyond: tuple[str, ...] = ()
) -> list[Verdict]:
    """Verdicts, with what is left of the time as the limit of each case. Where `kind` is that of a relation between
    runs, a case fails if that relation does not hold."""
    relations = tuple(relation for relation in op.composite.metamorphic if relation.kind == kind)
    only = replace(op, composite=replace(op.composite, metamorphic=relations))
    checks = [check for check in ON_REQUEST.values() if check.kind == kind]
    left = _left(deadline)
    verdicts = runner.verdicts(op, cases, beyond=beyond, time_limit=left)
    return [related(runner, only, verdict, checks, left) if verdict.passed else verdict for verdict in verdicts]


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), _LEAST_SECONDS)
