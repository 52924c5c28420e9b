"""The search: Hypothesis draws problems for one op on one device until one fails, and shrinks it.

Hypothesis draws a problem (shapes and parameters), and several cases of it travel to the worker together
(`batches.py`). At the first failure the variant that failed is simplified and kept, Hypothesis shrinks the problem
under it, the variant is simplified once more, and at the end the case itself is made smaller (`smaller.py`), as a known
case is that fails. While it shrinks, a failure must stay of its kind: a wrong value is not traded for a crash.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from hypothesis.database import ExampleDatabase

from opconform.harness.draw.known import KnownCase
from opconform.harness.draw.problems import Problems
from opconform.harness.draw.sample import batches_drawn
from opconform.harness.draw.variants import Variant, between
from opconform.harness.explain.failure import describe
from opconform.harness.judge.checks import ON_REQUEST
from opconform.harness.judge.judging import Verdict, now_and_then
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.findings import Kind
from opconform.harness.model.limits import Freedom, Limit, NothingLeftError
from opconform.harness.model.op import Op, Problem
from opconform.harness.model.values import recipes_of
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.relations import related
from opconform.harness.run.runner import Ready, Runner
from opconform.harness.search.batches import Batch, Batches, Supply
from opconform.harness.search.databases import FailingCases
from opconform.harness.search.known_failures import Entry
from opconform.harness.search.observer import Observer
from opconform.harness.search.result import KnownBug, KnownFailure, Lie, Result, Tally
from opconform.harness.search.settings import RACE_RUNS, Settings
from opconform.harness.search.smaller import smallest, why_sizes_stay

SHRINK_SECONDS = 60.0  #: shrinking ends after this, with the smallest failure so far
_LIE_BYTES, _LIE_PROBLEMS, _LIE_CASES = 1 << 16, 24, 8  #: of cases that a device may abort at, for each limit
_LIE_SECONDS = 5.0  #: such a case may take, and in a short run all of them that are tried of an op
_REPEATS = 2  #: how often a failing case is run again to see whether it always fails
_SLOWEST = 20  #: while a hang shrinks, a case may take this many times the slowest one that ended
_LEAST_SECONDS = 1.0
_FIRST_SECONDS = 1.0  #: the first problem has so much time where less is left

#: What NaN may turn into while it shrinks, where all slices but one were NaN: one that came from another slice is the
#: plainest sign of a value read from the wrong place.
_MAY_BECOME = {Kind.SLICES_MIXED, Kind.WRONG_VALUES, Kind.NAN_INF}


@dataclass
class _Shrinking:
    """The failure being shrunk. seen: the verdicts on what was tried. first: the failure as it was found."""

    kinds: set[Kind]
    verdict: Verdict
    deadline: float
    first: Verdict
    seen: dict[str, Verdict] = field(default_factory=dict)

    def kept_by(self, verdict: Verdict | None) -> bool:
        """Whether a verdict is on the same kind of failure."""
        return verdict is not None and verdict.kind in self.kinds


@dataclass
class _Failing:
    """What was drawn of the failing case."""

    variant: Variant
    problem: Problem


class Search:
    """One op on one device.

    `observer` is told of every batch of verdicts, of the tally after it, and of the failure found before it is shrunk.
    `known` are the known cases to run first, `database` holds failures of earlier runs. `listed` are the expected
    failures of this op and device: what they cover is counted, and neither ends the search nor is shrunk to.
    """

    def __init__(
        self,
        op: Op,
        runner: Runner,
        settings: Settings,
        known: Sequence[KnownCase] = (),
        database: ExampleDatabase | None = None,
        observer: Observer | None = None,
        listed: Sequence[Entry] = (),
    ) -> None:
        self._op = op
        self._runner = runner
        self._settings = settings
        most = settings.known_max_bytes or settings.max_bytes
        self._known = [known for known in known if known.case.nbytes <= most]
        self._left_out = tuple(known.id for known in known if known.case.nbytes > most)
        label, build = runner.target.label, runner.target.build
        self._kept = FailingCases(database, op.name, label, build, most)
        self._races = FailingCases(database, op.name, f"{label}/races", build, most)  #: those that fail now and then
        #: Those that only a check on request finds, by its name. They wait for a run that asks for it.
        self._found_by = {name: FailingCases(database, op.name, f"{label}/{name}", build, most) for name in ON_REQUEST}
        self._observer = observer or Observer()
        self._listed = listed
        self._time_limit: float | None = None  #: seconds a case may take while a hang is shrunk
        self._covered: Counter[str] = Counter()
        self._freedom = Freedom(runner.limits(op), settings.max_bytes)
        self._batches = Batches(op, runner, settings, self._freedom)
        self._turns = itertools.count()  #: of the op's relations, one of which is asked of a case that was drawn
        self._checks = [ON_REQUEST[name] for name in settings.checks]
        self._tally = Tally()
        self._drawn = 0
        self._sent = 0  #: cases drawn that were sent to the device
        self._vacuous = 0  #: cases drawn that say nothing
        self._cut = False  #: whether the time was up before as many cases were drawn as were asked for
        self._found: _Shrinking | None = None
        self._unfinished = ""  #: why the failure was not shrunk to the end
        self._of: _Failing | None = None

    def run(self) -> Result:
        """Known cases first, then failures of earlier runs, then the search. The smallest failure is the result's."""
        start = time.monotonic()
        pinned = {limit.pinned: limit for limit in self._freedom.limits if limit.pinned}
        tried = [self._known_bug(known, pinned[known.id].reason) for known in self._known if known.id in pinned]
        bugs = tuple(bug for bug in tried if bug is not None)
        fates = [self._fate(entry) for entry in self._listed]
        failed_known = self._failing(self._in_turn([known for known in self._known if known.id not in pinned], start))
        failed_before = self._failing_still()
        others = [*failed_before.values(), *failed_known.values()]
        try:
            reported = self._search(start)
            if reported is None and others:
                reported = others[0] if failed_before else self._shrunk_known(others[0])
        except Unavailable:  # a crash took the device along; what failed until then is still reported
            reported = self._found.verdict if self._found else next(iter(others), None)
            if reported is None:
                raise
            self._unfinished = "the device was lost: a smaller case may fail too"
        failure = None
        if reported is not None:
            reported, unfinished = self._smallest_of(reported, others)
            reported = self._with_its_words(reported)
            seen = [*others, *(self._found.seen.values() if self._found else ())]
            failure = replace(describe(self._op, self._runner, reported, seen), unfinished=unfinished)
            for place in self._places_of(reported):
                place.add(failure.case)
        self._tally.seconds = time.monotonic() - start
        return Result(
            self._op.name,
            self._runner.target.label,
            self._runner.target.about,
            self._tally,
            failure,
            tuple(failed_known),
            bugs,
            tuple(dict.fromkeys(limit.reason for limit in self._freedom.limits)),
            self._left_out,
            tuple(self._known_failure(entry, fate) for entry, fate in zip(self._listed, fates)),
            coverage=self._batches.covered,
            lies=() if failure else tuple(self._lies()),
            cut=self._cut,
        )

    def _lies(self) -> Iterator[Lie]:
        """A case that the device says yes to, and whose precondition its kernel only asserts: the first one found that
        ends the process."""
        limits = self._freedom.limits
        asserted = [limit for limit in limits if limit.kind == "kernel" and limit.subject != "many_rows"]
        if not (self._settings.tries_aborts and self._runner.isolated and self._batches.took_any):
            return
        until = time.monotonic() + (_LIE_SECONDS if self._settings.is_short else math.inf)
        for limit in asserted:
            if time.monotonic() > until:
                return
            others = Freedom(tuple(other for other in limits if other is not limit), _LIE_BYTES)
            drawn = itertools.chain.from_iterable(batches_drawn(self._op, others, _LIE_PROBLEMS))
            cases = list(itertools.islice((case for case in drawn if self._only(limit, case)), _LIE_CASES))
            try:
                found = self._beyond(cases)
                if len(found) > 1 and found[-1].kind == Kind.CRASH:  # it may have died of what one before it did
                    found = self._beyond([found[-1].case])
            except Unavailable:  # the device does not open after the case before: the result stands all the same
                return
            if found and found[-1].kind == Kind.CRASH:
                yield self._lie(found[-1], limit.reason)
                return

    def _beyond(self, cases: Sequence[Case]) -> list[Verdict]:
        """The verdicts on cases that a kernel asserts away, until the process dies."""
        return self._runner.verdicts(self._op, cases, beyond=("kernel",), until_death=True, time_limit=_LIE_SECONDS)

    def _lie(self, verdict: Verdict, reason: str) -> Lie:
        found = describe(self._op, self._runner, verdict)
        end = verdict.findings[0].detail
        return Lie(verdict.case, reason, end, found.replay_options, found.versions, found.packed_twin, found.stderr)

    def _only(self, limit: Limit, case: Case) -> bool:
        """Whether a case is beyond this limit, and beyond no other one."""
        traits = self._op.traits(case)
        return [each for each in self._freedom.limits if each.forbids(case, traits)] == [limit]

    def _smallest_of(self, verdict: Verdict, others: Sequence[Verdict]) -> tuple[Verdict, str]:
        """The verdict to report, and why its case may not be the smallest; "" where it is. Where shrinking did not come
        to its end, a known case that fails in the same way may be smaller than what it came to."""
        found = self._found
        if found is None or not self._unfinished:
            return verdict, self._unfinished or ("" if found is None else why_sizes_stay(verdict.case))
        alike = [verdict, *(other for other in others if found.kept_by(other))]
        return min(alike, key=lambda other: other.case.nbytes), self._unfinished

    def _with_its_words(self, verdict: Verdict) -> Verdict:
        """The verdict with what the backend prints while it computes this case, alone."""
        if verdict.kind in (Kind.CRASH, Kind.TIMEOUT, Kind.SUPPORTS_OP_LIES) or self._runner.lost:
            return verdict  # it came with what its process said last
        self._runner.verdicts(self._op, [verdict.case], beyond=("bug",))
        return verdict.saying(self._runner.said())

    def _known_bug(self, known: KnownCase, reason: str) -> KnownBug | None:
        """Whether a pinned case still fails; None where another limit keeps it from being run."""
        verdict = self._runner.verdicts(self._op, [known.case], beyond=("bug",))[0]
        return None if verdict.unsupported is not None else KnownBug(known.id, reason, verdict.failed)

    def _fate(self, entry: Entry) -> str:
        """What the case that pins an expected failure does now; see `KnownFailure`."""
        verdict = self._runner.verdicts(self._op, [entry.case], beyond=("bug",))[0]
        if verdict.passed:
            checks = [check for check in ON_REQUEST.values() if check.kind in entry.kinds]
            verdict = related(self._runner, self._op, verdict, checks)
        return verdict.unsupported or ("fails" if verdict.failed else "passes")

    def _known_failure(self, entry: Entry, fate: str) -> KnownFailure:
        expires, covered = entry.expires.isoformat(), self._covered[entry.place]
        return KnownFailure(
            entry.place, entry.case_name, entry.reason, entry.link, expires, entry.expired(), covered, fate
        )

    def _covering(self, verdict: Verdict) -> Entry | None:
        """The entry of known_failures.toml that covers a failing case; None where it is a new failure."""
        if not verdict.kind:
            return None
        kind = verdict.kind
        return next((entry for entry in self._listed if entry.covers(self._op, verdict.case, kind)), None)

    def _is_new(self, verdict: Verdict) -> bool:
        return verdict.failed and self._covering(verdict) is None

    def _in_turn(self, known: Sequence[KnownCase], start: float) -> Iterator[tuple[str, Case]]:
        """Known cases by name. Those too large for the search come last, in the seed's order, and only while the time
        for this op and device leaves what a case may take: another night the others have their turn."""
        large = [each for each in known if each.case.nbytes > self._settings.max_bytes]
        yield from ((each.id, each.case) for each in known if each not in large)
        random.Random(self._settings.seed).shuffle(large)
        for each in large:
            seconds = self._settings.seconds
            if seconds is None or time.monotonic() - start + self._settings.time_limit <= seconds:
                yield each.id, each.case
            else:
                self._left_out += (each.id,)

    def _try(self, cases: Iterable[tuple[str, Case]]) -> dict[str, Verdict]:
        """Run named cases; returns their verdicts. After a hang the rest is left out, for each may take as long."""
        tried: dict[str, Verdict] = {}
        for name, case in cases:
            try:
                (tried[name],) = self._examine([case], drawn=False)
            except Unavailable:
                if any(verdict.failed for verdict in tried.values()):
                    break  # one of them took the device along
                raise
            if tried[name].kind == Kind.TIMEOUT:
                break
        return tried

    def _failing(self, cases: Iterable[tuple[str, Case]]) -> dict[str, Verdict]:
        """Of named cases those that fail, unexpectedly."""
        return {name: verdict for name, verdict in self._try(cases).items() if self._is_new(verdict)}

    def _places_of(self, verdict: Verdict) -> list[FailingCases]:
        """Where a failure waits for the next run. What only a check on request has found waits beside that check, for
        without it the case passes; a race that shows in other bits may show in wrong ones too."""
        first, *others = verdict.findings
        places = [self._found_by[first.check]] if first.check in self._found_by and not others else []
        if verdict.kind == Kind.NOT_DETERMINISTIC:
            places.append(self._races)
        return places or [self._kept]

    def _failing_still(self) -> dict[str, Verdict]:
        """Of the failures of earlier runs those that still fail; one that always passes now is forgotten.

        The others are kept once more, for a database that is only read (`databases.py`) may be older next time. What
        failed now and then, or under a check on request, is tried until it fails again, `RACE_RUNS` times; the latter
        only where this run asks for that check.
        """
        found: dict[str, Verdict] = {}
        found_by = ((self._found_by[check.name], RACE_RUNS - 1) for check in self._checks)
        for kept, repeats in ((self._kept, _REPEATS), (self._races, RACE_RUNS - 1), *found_by):
            stored = kept.cases()
            tried = self._try([(case.id, case) for case in stored.values()])
            for text, case in stored.items():
                verdict = tried.get(case.id)
                if verdict is not None and verdict.passed:
                    verdict = self._until_it_fails(verdict, repeats)
                if verdict is not None and verdict.passed:
                    kept.drop(text)
                    continue
                kept.keep(text)
                if verdict is not None and verdict is not tried[case.id]:
                    tried[case.id] = verdict
                    self._tell([verdict], drawn=False)
            found |= {name: verdict for name, verdict in tried.items() if self._is_new(verdict)}
        return found

    def _until_it_fails(self, verdict: Verdict, runs: int) -> Verdict:
        """A case that passed, run again up to so many times, until it fails."""
        for done in range(1, runs + 1):
            other = self._runner.verdicts(self._op, [verdict.case])[0]
            if other.failed:
                return now_and_then(other, f"right at first, then wrong in run {done + 1}")
            if other.passed and self._checks:
                other = related(self._runner, self._op, other, self._checks)
                if other.failed:
                    return other
        return verdict

    def _examine(
        self,
        cases: Sequence[Case | Ready],
        until_death: bool = False,
        meanwhile: Callable[[], None] = lambda: None,
        drawn: bool = True,
        turns: Iterator[int] | None = None,
    ) -> list[Verdict]:
        """Run cases, apply the checks on request and the op's relations (with `turns` one of them in turn), find out
        which failures do not repeat, and count."""
        verdicts = []
        found = self._runner.verdicts(
            self._op, cases, until_death=until_death, time_limit=self._time_limit, meanwhile=meanwhile
        )
        for verdict in found:
            if verdict.passed:
                verdict = related(self._runner, self._op, verdict, self._checks, self._time_limit, turns)
            elif verdict.failed:
                verdict = self._again(verdict)
            verdicts.append(verdict)
        self._tell(verdicts, drawn)
        return verdicts

    def _tell(self, verdicts: Sequence[Verdict], drawn: bool) -> None:
        """Count verdicts, and let the observer know."""
        for verdict in verdicts:
            self._count(verdict, drawn)
        self._observer.verdicts(self._op, self._runner.target, verdicts)
        self._observer.progress(self._op, self._runner.target, self._tally)

    def _again(self, verdict: Verdict) -> Verdict:
        """`verdict`, or one of kind NOT DETERMINISTIC if the same case passes when it is run again."""
        if verdict.findings[0].check == "process":
            return verdict
        again = self._runner.verdicts(self._op, [verdict.case] * _REPEATS, time_limit=self._time_limit)
        passes = sum(other.passed for other in again)
        if not passes:
            return verdict
        return now_and_then(verdict, f"wrong at first, then right {passes} times out of {_REPEATS}")

    def _count(self, verdict: Verdict, drawn: bool) -> None:
        entry = self._covering(verdict)
        self._tally.count(verdict, expected=entry is not None, drawn=drawn)
        if entry is not None:
            self._covered[entry.place] += 1

    def _search(self, start: float) -> Verdict | None:
        """Draw problems until one fails, the count is reached or the time is up; returns the shrunk failure."""
        if self._freedom.choices("dtype", self._op.dtypes):
            try:
                self._draw(start)
            except NothingLeftError as error:
                what = f"of {error} " if str(error) else ""
                raise Unavailable(
                    f"the limits leave nothing {what}to draw", "mend what Backend.limits returns"
                ) from None
        return self._shrunk()

    def _draw(self, start: float) -> None:
        """The same, without what is left to be shrunk. Raises `NothingLeftError`."""
        problems = Problems(self._op.problems(self._freedom))
        supply = Supply(self._batches, problems)
        while not self._found and self._time_left(start) and self._more_to_draw():
            batch = supply.take()
            if self._fails(batch, start, meanwhile=supply.prepare):
                problems.shrink(batch.drawn, self._fails_still)
        counted = self._settings.examples < sys.maxsize
        self._cut = counted and self._found is None and self._more_to_draw()

    def _more_to_draw(self) -> bool:
        """Whether the count is not reached. Cases that say nothing do not count, as long as half of them say something;
        and a problem of which nothing fits counts as a case: a search comes to its end. Where the device has no such op
        it ends early: all that it says is one reason to refuse."""
        if self._batches.refused_outright and not self._tally.executed:
            return False
        return self._drawn < self._settings.examples and self._vacuous <= self._settings.examples

    def _time_left(self, start: float) -> bool:
        """Whether to draw on. One problem is always tried, for a pair that ran nothing would read as unsupported."""
        return self._seconds_left(start) > 0 or not self._drawn

    def _seconds_left(self, start: float) -> float:
        return math.inf if self._settings.seconds is None else self._settings.seconds - (time.monotonic() - start)

    def _fails(self, batch: Batch, start: float, meanwhile: Callable[[], None]) -> bool:
        """Judge a batch. Where a case fails, its variant is what is shrunk, made as plain as it can be."""
        problem, drawn = batch.drawn.problem, batch.cases
        if not drawn:
            limit = self._freedom.forbids(Variant().case(self._op, problem), self._op.traits)
            self._tally.unsupported[limit.reason if limit else "takes more than --max-bytes allows, as drawn"] += 1
        before = self._sent
        verdicts = self._in_time([ready for _, ready in drawn], start, meanwhile)
        self._batches.ran(batch, verdicts)
        vacuous = sum(bool(verdict.vacuous) for verdict in verdicts)
        self._vacuous += vacuous
        self._drawn += self._sent - before - vacuous if drawn else 1
        for index, verdict in enumerate(verdicts):
            if self._is_new(verdict):
                variant, verdict = self._alone([variant for variant, _ in drawn[: index + 1]], problem, verdict)
                self._of = _Failing(variant, problem)
                self._begin_to_shrink(verdict)
                self._simplify()
                return True
        return False

    def _in_time(self, cases: Sequence[Case | Ready], start: float, meanwhile: Callable[[], None]) -> list[Verdict]:
        """The verdicts on the cases of a batch, until one takes its worker along. Where the time is limited, no more
        of them run at once than are expected to end in time, by those before: some drivers take minutes for one."""
        left = self._seconds_left(start)
        until = time.monotonic() + (left if self._drawn else max(left, _FIRST_SECONDS))
        verdicts: list[Verdict] = []
        while len(verdicts) < len(cases) and (not verdicts or time.monotonic() < until):
            some = cases[len(verdicts) :][: self._fit(start, until)]
            found = self._examine(some, until_death=True, meanwhile=meanwhile, turns=self._turns)
            self._sent += len(some)
            verdicts += found
            if len(found) < len(some) or any(map(self._is_new, found)):
                break
        return verdicts

    def _fit(self, start: float, until: float) -> int:
        """How many cases are expected to end in time; the first one tells of those after it."""
        if until == math.inf:
            return sys.maxsize
        now = time.monotonic()
        return max(int((until - now) * self._sent / max(now - start, 1e-6)), 1)

    def _fails_still(self, problem: Problem) -> bool:
        """Whether the variant fails in the same way with a smaller problem."""
        assert self._of is not None
        if not self._fails_alike(self._of.variant.case(self._op, problem)):
            return False
        self._of.problem = problem
        return True

    def _alone(self, ran: Sequence[Variant], problem: Problem, verdict: Verdict) -> tuple[Variant, Verdict]:
        """The last variant of those that ran one after the other, and its verdict; where it is right on a backend that
        has run nothing yet, and wrong after one of the others, it says so, with as little between the two as can be."""
        *others, variant = ran
        if not others or verdict.findings[0].check == "process" or not self._passes_alone(verdict.case):
            return variant, verdict
        for before in dict.fromkeys((len(others) - 1, 0)):
            after = replace(variant, after=others[before])
            found = self._verdict_alone(after.case(self._op, problem))
            if not found.failed:
                continue
            for nearer in between(others[before], variant):
                candidate = replace(variant, after=nearer)
                less = self._verdict_alone(candidate.case(self._op, problem))
                if less.failed and self._passes_alone(less.case):
                    return candidate, less
            return after, found
        return variant, verdict

    def _passes_alone(self, case: Case) -> bool:
        return self._verdict_alone(replace(case, before=None)).passed

    def _verdict_alone(self, case: Case) -> Verdict:
        """The verdict of a backend that has run nothing yet."""
        self._runner.fresh()
        return self._runner.verdicts(self._op, [case], time_limit=self._time_limit)[0]

    def _begin_to_shrink(self, verdict: Verdict) -> None:
        assert verdict.kind
        is_spoilt = verdict.case.keep is not None and verdict.kind in (Kind.SLICES_MIXED, Kind.NAN_INF)
        kinds = _MAY_BECOME if is_spoilt else {verdict.kind}
        self._found = _Shrinking(kinds, verdict, time.monotonic() + SHRINK_SECONDS, verdict)
        self._found.seen[verdict.case.key] = verdict
        self._observer.shrinking(self._op, self._runner.target, verdict)
        if verdict.kind == Kind.TIMEOUT:
            least = max(_LEAST_SECONDS, _SLOWEST * self._runner.slowest)
            self._time_limit = min(self._settings.time_limit, least)

    def _fails_alike(self, case: Case) -> bool:
        """Whether a candidate fails in the same way, unexpectedly: then it is the failure from here on."""
        assert self._found is not None
        verdict = self._verdict_while_shrinking(case)
        if verdict is None or not self._found.kept_by(verdict) or not self._is_new(verdict):
            return False
        self._found.verdict = verdict
        return True

    def _verdict_while_shrinking(self, case: Case) -> Verdict | None:
        """The verdict on a candidate; the same each time it is asked for. None once the time to shrink is up."""
        assert self._found is not None
        seen = self._found.seen
        if case.key in seen and case.data is None:
            return seen[case.key]
        if time.monotonic() > self._found.deadline:
            self._unfinished = f"shrinking was cut short after {SHRINK_SECONDS:g} s: a smaller case may fail too"
            return None
        try:
            if case.before is not None:  # what it keeps of another candidate would tell nothing
                self._runner.fresh()
            verdict = self._examine([case])[0]
            if verdict.passed and Kind.NOT_DETERMINISTIC in self._found.kinds:
                again = self._examine([case] * _REPEATS)
                verdict = next((other for other in again if other.failed), verdict)
        except CaseError:
            return None
        seen[case.key] = verdict
        return verdict

    def _simplify(self) -> None:
        """Make the variant as plain as it can be while its failure stays."""
        drawn = self._of
        assert drawn is not None
        improved = True
        while improved:
            improved = False
            for simpler in drawn.variant.simpler(recipes_of(self._op, drawn.problem.dtype)):
                if self._fails_alike(simpler.case(self._op, drawn.problem)):
                    drawn.variant, improved = simpler, True
                    break

    def _shrunk(self) -> Verdict | None:
        if self._found is None:
            return None
        self._simplify()
        return self._at_its_smallest()

    def _shrunk_known(self, verdict: Verdict) -> Verdict:
        """The verdict on the smallest case like a known one that fails in the same way."""
        self._begin_to_shrink(verdict)
        return self._at_its_smallest()

    def _at_its_smallest(self) -> Verdict:
        """The verdict on the failure's case, made smaller by itself."""
        found = self._found
        assert found is not None
        if found.verdict.case.before is None:
            smallest(self._op, found.verdict.case, recipes_of(self._op, found.verdict.case.dtype), self._fails_alike)
        verdict = found.verdict
        if self._time_limit is not None:
            self._time_limit = None
            full = self._runner.verdicts(self._op, [verdict.case])[0]
            if not full.failed:
                self._unfinished = "what it was shrunk to ends within the time limit: this is the case as it was found"
                return found.first
            return full
        return verdict
