"""The search: Hypothesis draws problems for one op on one device until one fails, and shrinks it.

Hypothesis draws a problem (shapes and parameters); `variants.py` makes several cases of it that travel to the worker
together. At the first failure the variant that failed is simplified and kept, Hypothesis shrinks the problem under it,
and at the end the variant is simplified once more. While it shrinks, a failure must stay of its kind: a wrong value is
not traded for a crash.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.database import ExampleDatabase

from opconform.harness.draw.known import KnownCase
from opconform.harness.draw.strategies import batches
from opconform.harness.draw.variants import VARIANTS, Variant, variants
from opconform.harness.explain.failure import describe
from opconform.harness.judge.checks import ON_REQUEST
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Op, Problem
from opconform.harness.model.values import recipes_of
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.relations import related
from opconform.harness.run.runner import Runner
from opconform.harness.search.databases import FailingCases
from opconform.harness.search.known_failures import Entry
from opconform.harness.search.observer import Observer
from opconform.harness.search.result import KnownBug, KnownFailure, Result, Tally
from opconform.harness.search.settings import Settings

SHRINK_SECONDS = 60.0  #: shrinking ends after this, with the smallest failure so far
_CHUNK = 32  #: problems drawn between two looks at the clock
_LEAST_CHUNK = 4  #: the first problem of a chunk is always the simplest, of which some ops can show nothing
_REPEATS = 2  #: how often a failing case is run again to see whether it always fails
_SLOWEST = 20  #: while a hang shrinks, a case may take this many times the slowest one that ended
_LEAST_SECONDS = 1.0

#: Kinds that may turn into others while they shrink: NaN that came from another slice is the plainest sign of a value
#: read from the wrong place.
_MAY_BECOME = {Kind.SLICES_MIXED: {Kind.SLICES_MIXED, Kind.WRONG_VALUES, Kind.NAN_INF}}


class _Failed(Exception):
    """Raised inside Hypothesis to say that an example fails."""


#: The names of the module of Hypothesis that keeps the literals; older versions have no such module.
_LITERALS: dict[str, Any] = getattr(sys.modules.get("hypothesis.internal.conjecture.providers"), "__dict__", {})
_OURS: dict[str, Any] = {"_get_local_constants": _LITERALS.get("Constants"), "CONSTANTS_CACHE": {}}


@contextlib.contextmanager
def _the_same_everywhere() -> Iterator[None]:
    """Keep Hypothesis from mixing the literals of whatever source files are loaded into its draws.

    They differ between the command line, pytest and a worker of xdist, and a seed must draw the same cases in all.
    """
    theirs = {name: _LITERALS[name] for name in _OURS if name in _LITERALS}
    if len(theirs) < len(_OURS):  # this version of Hypothesis does no such thing
        yield
        return
    _LITERALS.update(_OURS)
    try:
        yield
    finally:
        _LITERALS.update(theirs)


@dataclass
class _Found:
    """The failure being shrunk."""

    variant: Variant
    kinds: set[Kind]
    problem: Problem
    verdict: Verdict
    deadline: float


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
        self._kept = FailingCases(database, op.name, runner.target.label, runner.target.build, most)
        self._observer = observer or Observer()
        self._listed = listed
        self._time_limit: float | None = None  #: seconds a case may take while a hang is shrunk
        self._covered: Counter[str] = Counter()
        self._freedom = Freedom(runner.limits(op), settings.max_bytes)
        self._checks = [ON_REQUEST[name] for name in settings.checks]
        self._tally = Tally()
        self._drawn = 0
        self._vacuous = 0  #: cases drawn that say nothing
        self._found: _Found | None = None
        self._seen: dict[str, Verdict] = {}

    def run(self) -> Result:
        """Known cases first, then failures of earlier runs, then the search. The smallest failure is the result's."""
        start = time.monotonic()
        pinned = {limit.pinned: limit for limit in self._freedom.limits if limit.pinned}
        tried = [self._known_bug(known, pinned[known.id].reason) for known in self._known if known.id in pinned]
        bugs = tuple(bug for bug in tried if bug is not None)
        fates = [self._fate(entry) for entry in self._listed]
        failed_known = self._failing(self._in_turn([known for known in self._known if known.id not in pinned], start))
        failed_before = self._failing_still()
        smallest = next(iter([*failed_before.values(), *failed_known.values()]), None)
        try:
            smallest = self._search(start) or smallest
        except Unavailable:  # a crash took the device along; what failed until then is still reported
            smallest = self._found.verdict if self._found else smallest
            if smallest is None:
                raise
        failure = None
        if smallest is not None:
            seen = [*failed_known.values(), *failed_before.values(), *self._seen.values()]
            failure = describe(self._op, self._runner, smallest, seen)
            self._kept.add(failure.case)
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
        )

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
                (tried[name],) = self._examine([case])
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

    def _failing_still(self) -> dict[str, Verdict]:
        """Of the failures of earlier runs those that still fail; one that always passes now is forgotten.

        The others are kept once more, for a database that is only read (`databases.py`) may be older next time.
        """
        stored = self._kept.cases()
        tried = self._try([(case.id, case) for case in stored.values()])
        for text, case in stored.items():
            passes = case.id in tried and tried[case.id].passed
            if passes and all(other.passed for other in self._runner.verdicts(self._op, [case] * _REPEATS)):
                self._kept.drop(text)
            else:
                self._kept.keep(text)
        return {name: verdict for name, verdict in tried.items() if self._is_new(verdict)}

    def _examine(self, cases: Sequence[Case], until_death: bool = False) -> list[Verdict]:
        """Run cases, apply the checks on request, find out which failures do not repeat, and count."""
        verdicts = []
        found = self._runner.verdicts(self._op, cases, until_death=until_death, time_limit=self._time_limit)
        for verdict in found:
            if verdict.passed:
                verdict = related(self._runner, self._op, verdict, self._checks, self._time_limit)
            elif verdict.failed:
                verdict = self._again(verdict)
            verdicts.append(verdict)
            self._count(verdict)
        self._observer.verdicts(self._op, self._runner.target, verdicts)
        self._observer.progress(self._op, self._runner.target, self._tally)
        return verdicts

    def _again(self, verdict: Verdict) -> Verdict:
        """`verdict`, or one of kind NOT DETERMINISTIC if the same case passes when it is run again."""
        if verdict.findings[0].check == "process":
            return verdict
        again = self._runner.verdicts(self._op, [verdict.case] * _REPEATS, time_limit=self._time_limit)
        passes = sum(other.passed for other in again)
        if not passes:
            return verdict
        detail = f"wrong at first, then right {passes} times out of {_REPEATS}: {verdict.findings[0].detail}"
        finding = Finding("deterministic", Kind.NOT_DETERMINISTIC, detail)
        return replace(verdict, findings=(finding, *verdict.findings))

    def _count(self, verdict: Verdict) -> None:
        entry = self._covering(verdict)
        self._tally.count(verdict, expected=entry is not None)
        if entry is not None:
            self._covered[entry.place] += 1

    def _search(self, start: float) -> Verdict | None:
        """Draw problems until one fails, the count is reached or the time is up; returns the shrunk failure."""
        if self._freedom.choices("dtype", self._op.dtypes):
            index, count = self._settings.shard
            chunk = index - 1
            while not self._found and self._time_left(start) and self._more_to_draw():
                self._draw_chunk(chunk, start)
                chunk += count
        return self._shrunk()

    def _more_to_draw(self) -> bool:
        """Whether the count is not reached. Cases that say nothing do not count, as long as half of them say something;
        and a problem of which nothing fits counts as a case: a search comes to its end."""
        return self._drawn < self._settings.examples and self._vacuous <= self._settings.examples

    def _time_left(self, start: float) -> bool:
        """Whether to draw on. One problem is always tried, for a pair that ran nothing would read as unsupported."""
        in_time = self._settings.seconds is None or time.monotonic() - start < self._settings.seconds
        return in_time or not self._drawn

    def _draw_chunk(self, chunk: int, start: float) -> None:
        needed = -(-(self._settings.examples - self._drawn) // VARIANTS)
        problems = min(_CHUNK, max(needed, _LEAST_CHUNK))

        @seed(self._settings.seed * 1_000_003 + chunk)
        @settings(
            max_examples=problems,
            phases=(Phase.generate, Phase.shrink),
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )
        @given(batches(self._op, self._freedom))
        def examine(drawn: tuple[Problem, int]) -> None:
            goes_on = self._found is not None or (self._time_left(start) and self._more_to_draw())
            if goes_on and self._fails(*drawn):
                raise _Failed

        with contextlib.suppress(_Failed), _the_same_everywhere():
            examine()

    def _fails(self, problem: Problem, variant_seed: int) -> bool:
        if self._found is None:
            drawn = variants(self._op, problem, variant_seed, self._freedom)
            if not drawn:
                limit = self._freedom.forbids(Variant().case(self._op, problem), self._op.traits)
                self._tally.unsupported[limit.reason if limit else "takes more than --max-bytes allows, as drawn"] += 1
            verdicts = self._examine([variant.case(self._op, problem) for variant in drawn], until_death=True)
            vacuous = sum(bool(verdict.vacuous) for verdict in verdicts)
            self._vacuous += vacuous
            self._drawn += len(drawn) - vacuous if drawn else 1
            for variant, verdict in zip(drawn, verdicts):
                if self._is_new(verdict):
                    self._begin_to_shrink(variant, problem, verdict)
                    break
            else:
                return False
        assert self._found is not None
        shrunk = self._verdict_while_shrinking(self._found.variant.case(self._op, problem))
        if shrunk is None or shrunk.kind not in self._found.kinds or not self._is_new(shrunk):
            return False
        self._found.problem, self._found.verdict = problem, shrunk
        return True

    def _begin_to_shrink(self, variant: Variant, problem: Problem, verdict: Verdict) -> None:
        assert verdict.kind
        kinds = _MAY_BECOME.get(verdict.kind, {verdict.kind})
        self._found = _Found(variant, kinds, problem, verdict, time.monotonic() + SHRINK_SECONDS)
        self._seen[verdict.case.key] = verdict
        self._observer.shrinking(self._op, self._runner.target, verdict)
        if verdict.kind == Kind.TIMEOUT:
            least = max(_LEAST_SECONDS, _SLOWEST * self._runner.slowest)
            self._time_limit = min(self._settings.time_limit, least)
        self._simplify()

    def _verdict_while_shrinking(self, case: Case) -> Verdict | None:
        """The verdict on a candidate; the same each time it is asked for. None once the time to shrink is up."""
        if case.key in self._seen:
            return self._seen[case.key]
        assert self._found is not None
        if time.monotonic() > self._found.deadline:
            return None
        try:
            verdict = self._examine([case])[0]
            if verdict.passed and Kind.NOT_DETERMINISTIC in self._found.kinds:
                again = self._examine([case] * _REPEATS)
                verdict = next((other for other in again if other.failed), verdict)
        except CaseError:
            return None
        self._seen[case.key] = verdict
        return verdict

    def _simplify(self) -> None:
        """Make the variant as plain as it can be while its failure stays."""
        assert self._found is not None
        found = self._found
        improved = True
        while improved:
            improved = False
            for simpler in found.variant.simpler(recipes_of(self._op, found.problem.dtype)):
                verdict = self._verdict_while_shrinking(simpler.case(self._op, found.problem))
                if verdict is not None and verdict.kind in found.kinds and self._is_new(verdict):
                    found.variant, found.verdict, improved = simpler, verdict, True
                    break

    def _shrunk(self) -> Verdict | None:
        if self._found is None:
            return None
        self._simplify()
        verdict = self._found.verdict
        if self._time_limit is not None:
            self._time_limit = None
            full = self._runner.verdicts(self._op, [verdict.case])[0]
            first = next(iter(self._seen.values()))
            return full if full.failed else first
        return verdict
