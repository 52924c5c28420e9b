"""How fast cases are on devices, and whether one build is slower than another."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from opconform.harness.draw.known import KnownCase, known_cases
from opconform.harness.judge.intervals import Interval, Versus, median, median_interval
from opconform.harness.model.case import Case
from opconform.harness.model.op import Op
from opconform.harness.model.work import Work
from opconform.harness.run.messages import Refusal, TimingError
from opconform.harness.run.process import Worker
from opconform.harness.run.runner import Runner, Timer
from opconform.harness.run.target import Target
from opconform.harness.run.timing import What
from opconform.harness.search.settings import Settings

PRECISION = 0.02  #: a case is timed until half its interval is so small a part of the median, or its time is up
ROUNDS = 7  #: turns of both builds in one sitting

_BLOCKS = 8  #: a case's time is divided so often among what is timed in turn


@dataclass(frozen=True)
class Subject:
    """A case to be timed, and what to call it."""

    name: str
    op: Op
    case: Case

    @property
    def work(self) -> Work:
        return Work.of(self.op, self.case)


@dataclass(frozen=True)
class Measured:
    """How long one case takes on one device, in seconds.

    warm, cold: with the case in whatever cache it fits, and after the caches were filled with other data. copy,
    cold_copy: the device's own copy of as many bytes. product: operations a second of a matrix product on the device,
    0 where it is not known. memory: `Backend.memory`. Where it was not timed, `unsupported` or `error` says why.
    versus: the comparison with another build, whose target is `other`.
    """

    subject: Subject
    target: Target
    clock: str = ""
    warm: Interval | None = None
    cold: Interval | None = None
    copy: Interval | None = None
    cold_copy: Interval | None = None
    product: float = 0.0
    memory: Mapping[str, int] = field(default_factory=dict)
    unsupported: str | None = None
    error: str | None = None
    versus: Versus | None = None
    other: Target | None = None

    @property
    def slower(self) -> bool:
        return self.versus is not None and self.versus.slower

    def share_of_copy(self, cold: bool = False) -> float | None:
        """How near the case comes to the device's own copy of as many bytes."""
        time, copy = (self.cold, self.cold_copy) if cold else (self.warm, self.copy)
        return copy.middle / time.middle if time and copy and time.middle > 0 else None

    def share_of_product(self, cold: bool = False) -> float | None:
        """How near its operations a second come to those of a matrix product on the device."""
        time = self.cold if cold else self.warm
        flops = self.subject.work.flops
        return flops / time.middle / self.product if time and flops and self.product and time.middle > 0 else None


def subjects_of(chosen: Sequence[Op]) -> list[Subject]:
    """What is timed of each op unless cases are named: the known cases that are shapes of real models; of an op that
    has none the largest known case of at most `_LARGE` bytes."""
    found = []
    for op in chosen:
        known = list(known_cases(op.name).values())
        models = [each for each in known if each.of_model] or _largest(known)
        found += [Subject(each.id, op, each.case) for each in models]
    return found


_LARGE = 64 << 20


def _largest(known: Sequence[KnownCase]) -> list[KnownCase]:
    small = [each for each in known if each.case.nbytes <= _LARGE]
    return sorted(small, key=lambda each: each.case.nbytes)[-1:]


class Track:
    """Times cases on one device, one after the other. A context manager: leaving it ends the worker."""

    def __init__(self, target: Target, settings: Settings, seconds: float) -> None:
        self.target = target
        self._seconds = seconds
        self._settings = settings
        self._product: float | None = None
        self._runner = runner_of(target, settings)

    def __enter__(self) -> Track:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def measured(self, subject: Subject) -> Measured:
        """Time one case. What stands in the way is part of the answer. Raises `Unavailable` where the device does not
        open any more."""
        blank = Measured(subject, self.target)
        try:
            timer = self._runner.timer(subject.op, subject.case, subject.work.moved)
            if isinstance(timer, Refusal):
                return replace(blank, unsupported=timer.says)
            half = self._seconds / 2
            warm, copy = _in_turn(timer, ("warm", "copy"), half)
            cold, cold_copy = _in_turn(timer, ("cold", "cold copy"), half)
            product = self._rate(timer) if subject.work.flops else 0.0
        except TimingError as error:
            self._runner.close()
            self._runner = runner_of(self.target, self._settings)
            return replace(blank, error=str(error))
        return Measured(
            subject, self.target, timer.about.clock, warm, cold, copy, cold_copy, product, timer.about.memory
        )

    def _rate(self, timer: Timer) -> float:
        """Operations a second of a matrix product on the device, measured once."""
        if self._product is None:
            found = timer.sample("product", self._seconds / 4)
            self._product = found.flops / median(found.seconds) if found.seconds else 0.0
        return self._product


def runner_of(target: Target, settings: Settings, worker: Worker | None = None) -> Runner:
    """A runner that times; `worker` is one that has been started for it. Raises `Unavailable`."""
    return Runner(
        target,
        time_limit=settings.time_limit,
        isolated=settings.isolated,
        strict=settings.strict,
        max_bytes=settings.known_max_bytes or settings.max_bytes,
        worker=worker,
    )


def _in_turn(timer: Timer, subjects: Sequence[What], seconds: float) -> list[Interval | None]:
    """The intervals of several things that are timed in turn, so that what disturbs one disturbs the others too.

    Filling the caches takes time as well, so that a small budget may be spent after two turns.
    """
    end = time.perf_counter() + seconds
    found: dict[What, list[float]] = {what: [] for what in subjects}
    block = seconds / _BLOCKS / len(subjects)
    for turn in range(_BLOCKS):
        for what in subjects:
            found[what] += timer.sample(what, block).seconds
        intervals = [median_interval(samples) if samples else None for samples in found.values()]
        first = intervals[0]
        precise = first is not None and first.count >= 2 * _BLOCKS and first.precision <= PRECISION
        if turn and (precise or time.perf_counter() > end):
            break
    return intervals


# ---- one build against another ---------------------------------------------------------------------------------------


@dataclass
class _Case:
    subject: Subject
    versus: Versus
    error: str | None = None
    unsupported: str | None = None


def compared(
    subjects: Sequence[Subject],
    new: Target,
    old: Target,
    settings: Settings,
    margin: float,
    seconds: float,
    coin: Callable[[], bool] = lambda: random.random() < 0.5,
) -> Iterator[Measured]:
    """How many times as long each case takes on `new` as on `old`; the answers come when they are all there.

    The two run in turn, in sittings with processes of their own: where a process happens to lie in memory and on which
    core it runs makes a difference of its own, which no number of repeats in one process averages out (Kalibera and
    Jones, "Rigorous benchmarking in reasonable time", 2013). Within a turn the shortest time counts: what disturbs a
    computation only adds to it (Chen and Revels, "Robust benchmarking in noisy environments", 2016).
    Raises `Unavailable` where one of the two does not open.
    """
    cases = [_Case(subject, Versus((), margin)) for subject in subjects]
    while todo := [each for each in cases if each.versus.open and not each.error and not each.unsupported]:
        _sitting(todo, new, old, settings, seconds, coin)
    for each in cases:
        yield Measured(
            each.subject,
            new,
            error=each.error,
            unsupported=each.unsupported,
            versus=each.versus if each.versus.ratios else None,
            other=old,
        )


def _sitting(
    cases: Iterable[_Case], new: Target, old: Target, settings: Settings, seconds: float, coin: Callable[[], bool]
) -> None:
    """One more ratio for each case, from fresh processes."""
    first = coin()
    order = (new, old) if first else (old, new)
    # both start before the first one is waited for
    started = [Worker(target.spec, target.options) if settings.isolated else None for target in order]
    runners = []
    try:
        for target in order:
            runners.append(runner_of(target, settings, started.pop(0)))
        for each in cases:
            try:
                timers = [runner.timer(each.subject.op, each.subject.case, 0) for runner in runners]
                _take(each, timers, order, first, seconds)
            except TimingError as error:
                each.error = str(error)
                return  # a worker has died; the rest is taken up in the next sitting
    finally:
        for runner in runners:
            runner.close()
        for worker in filter(None, started):
            worker.close()


def _take(each: _Case, timers: Sequence[Timer | Refusal], order: Sequence[Target], first: bool, seconds: float) -> None:
    ready: list[Timer] = []
    for timer, target in zip(timers, order):
        if isinstance(timer, Refusal):
            each.unsupported = f"{target.label} ({target.build.name or target.about}): {timer.says}"
            return
        ready.append(timer)
    for timer in ready:
        timer.sample("warm", 0.0)  # the warm-up
    block = seconds / (2 * ROUNDS)
    ratios = []
    for turn in range(ROUNDS):
        times = [0.0, 0.0]
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            times[index] = min(ready[index].sample("warm", block).seconds)
        ratios.append(times[0] / times[1])
    ratio = median(ratios)
    each.versus = each.versus.and_then(ratio if first else 1 / ratio)
