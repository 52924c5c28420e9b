"""What a search runs next: problems drawn, chosen by what they promise, with the cases of each that show most.

The coverage of trait pairs (`coverage.py`) says what has been tried. What a device refuses each time is not drawn
again, nor are cases that say nothing.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from opconform.harness.draw.problems import TOGETHER, Drawn, Problems, is_affordable, rows_of, size_of
from opconform.harness.draw.variants import Variant, cases_of
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case, Param
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Op, Problem
from opconform.harness.model.values import recipes_of
from opconform.harness.run.runner import Ready, Runner
from opconform.harness.search.coverage import Coverage, Covered
from opconform.harness.search.settings import Settings

_CHUNK = 8 * TOGETHER  #: problems that a shard draws before it leaves as many to the next
_REFUSED = 8  #: after so many refusals, and nothing else, cases are no longer prepared ahead
_OUTRIGHT = 100  #: after so many refusals for one reason, and nothing else, no more are drawn
_DRAWN_ANEW = 2  #: how often cases that say nothing are drawn anew
_FEW = 4  #: of a large problem there are no more cases: all of them may say nothing by chance
_ROWS_OF_FEW = 1 << 14  #: a run of few cases draws no problem of more rows
_LATELY = 8  #: how many problems before this one tell what may be expected of it
_WORTH_A_DRAW = 1.5  #: where problems promise fewer new pairs on average, one more draw takes longer than it saves
_DEAR = 1 << 12  #: a case of so many elements takes about twice as long as the smallest


@dataclass(frozen=True)
class Batch:
    """A problem drawn, and its cases with the variants that they were made by."""

    drawn: Drawn
    cases: list[tuple[Variant, Case | Ready]]
    traits: list[int]  #: of each case, as the coverage numbers them


@dataclass(frozen=True)
class _Promise:
    """What a problem drawn may show. first: it is the first of its kind. promise: how many new pairs of traits for the
    time that it takes."""

    drawn: Drawn
    first: bool
    promise: float


class Supply:
    """Batches in their order. The next one can be drawn while the backend computes the one before it."""

    def __init__(self, batches: Batches, problems: Problems) -> None:
        self._all = batches
        self._batches = batches.of(problems)
        self._prepared: list[Batch] = []

    def prepare(self) -> None:
        """Draw the next batch, unless it is drawn already; not before the device has taken a case."""
        if not self._prepared and self._all.took_any:
            self._prepared.append(next(self._batches))

    def take(self) -> Batch:
        """The next batch."""
        return self._prepared.pop() if self._prepared else next(self._batches)


class Batches:
    """The batches of one op on one device, in the order in which they are to be run."""

    def __init__(self, op: Op, runner: Runner, settings: Settings, freedom: Freedom) -> None:
        self.coverage = Coverage()
        self.took_any = False  #: whether the device took a case
        self._op = op
        self._runner = runner
        self._settings = settings
        self._freedom = freedom
        self._values: dict[str, list[Param]] = {}  #: of each parameter, as problems were drawn
        self._promised = 0.0  #: by the problems before this one
        self._refused = 0  #: cases that the device refused
        self._reasons: set[str] = set()  #: for which it refused them
        #: What came of the first cases, until the second batch is drawn: the same cases are drawn whether that happens
        #: before the device has answered, as with all other batches, or, to spare what may be in vain, after it.
        self._of_first: list[tuple[int, bool]] = []
        self._second_is_drawn = False

    def of(self, problems: Problems) -> Iterator[Batch]:
        """Problems with their cases, without end: the simplest, then those of the seed. Shards of one search take
        chunks in turn."""
        simplest = problems.simplest()
        self.coverage.meets(simplest.problem)
        yield self._batch(simplest, self._settings.seed)
        first, step = self._settings.shard
        for chunk in itertools.count(first - 1, step):
            source = random.Random(self._settings.seed * 1_000_003 + chunk)
            for _ in range(_CHUNK):
                drawn = self._next(problems, source)
                problem = drawn.problem
                if self._is_affordable(problem) and (self.coverage.wants(problem) or self.takes_nothing):
                    following = self._batch(drawn, source.getrandbits(16))
                    self._enter_first()
                    yield following

    def _enter_first(self) -> None:
        self._second_is_drawn = True
        self._enter(self._of_first)
        self._of_first = []

    def _enter(self, ran: Iterable[tuple[int, bool]]) -> None:
        for traits, refused in ran:
            self.coverage.ran(traits, refused)

    @property
    def covered(self) -> Covered:
        """The pairs of traits that ran; once the search is over."""
        self._enter_first()
        return self.coverage.covered

    def _next(self, problems: Problems, source: random.Random) -> Drawn:
        """The next problem. One more is drawn where it is not the first of its kind, and promises far less for the time
        it takes than those before it."""
        drawn = problems.next(source)
        if self.takes_nothing:
            return drawn
        found = self._promise_of(drawn)
        if not found.first and 2 * found.promise < self._promised and self._promised > _WORTH_A_DRAW:
            other = self._promise_of(problems.next(source))
            found = max(found, other, key=lambda each: (each.first, each.promise))
        self._promised += (found.promise - self._promised) / _LATELY
        return found.drawn

    @property
    def takes_nothing(self) -> bool:
        """Whether the device seems to have no such op: then all that is made for it is in vain."""
        return self._refused > _REFUSED and not self.took_any

    def _promise_of(self, drawn: Drawn) -> _Promise:
        problem = drawn.problem
        if not self._is_affordable(problem):
            return _Promise(drawn, False, -1.0)
        first, pairs = self.coverage.promise(problem)
        return _Promise(drawn, first, pairs / math.sqrt(1 + size_of(problem) / _DEAR))

    def _is_affordable(self, problem: Problem) -> bool:
        """Whether so many rows may be drawn: not where a limit says that they take seconds, and in a run of few cases
        not as many as exceed a grid, which would take most of its time."""
        too_many = self._settings.is_short and rows_of(problem) > _ROWS_OF_FEW
        return is_affordable(problem, self._freedom) and not too_many

    def _batch(self, drawn: Drawn, number: int) -> Batch:
        """The cases of the problem at hand: of those that can be made of it the ones that show most that is new. One
        that says nothing gets other values; of a problem that has none to say one is run."""
        self._keep_values(drawn.problem)
        if self.takes_nothing:
            plain = cases_of(self._op, drawn.problem, number, self._freedom)[:1]
            return Batch(drawn, list(plain), [self.coverage.takes(case) for _, case in plain])
        seen = self.coverage
        cases = cases_of(
            self._op,
            drawn.problem,
            number,
            self._freedom,
            choose=seen.choose,
            more=seen.worth_more,
            values=self._values,
            refuses=seen.refuses,
        )
        if self._refused and not self.took_any:  # references may be in vain: the runner makes those that are not
            return Batch(drawn, list(cases), [seen.takes(case) for _, case in cases])
        made = self._ready(cases)
        for again in range(1, _DRAWN_ANEW + 1):
            silent = [place for place, (_, ready) in enumerate(made) if ready.vacuous]
            if not silent or len(silent) == len(made) > _FEW:  # where all of many are, the problem says nothing
                break
            for place in silent:
                seen.says_nothing(made[place][1].case)
            recipes = recipes_of(self._op, drawn.problem.dtype)
            others = [
                made[place][0].with_other_values(self._freedom.choices("recipe", recipes), again) for place in silent
            ]
            for place, each in zip(silent, self._ready([(it, it.case(self._op, drawn.problem)) for it in others])):
                made[place] = each
        telling = [each for each in made if not each[1].vacuous] or made[:1]
        return Batch(drawn, list(telling), [seen.takes(ready.case) for _, ready in telling])

    def _ready(self, made: Sequence[tuple[Variant, Case]]) -> list[tuple[Variant, Ready]]:
        ready = self._runner.ready(self._op, [case for _, case in made])
        return [(variant, each) for (variant, _), each in zip(made, ready)]

    def _keep_values(self, problem: Problem) -> None:
        for name, value in problem.params.items():
            kept = self._values.setdefault(name, [])
            if value in kept:
                kept.remove(value)
            kept.append(value)

    def ran(self, batch: Batch, verdicts: Sequence[Verdict]) -> None:
        """A batch was run, or its first cases were."""
        reasons = [verdict.unsupported for verdict in verdicts if verdict.unsupported is not None]
        self._reasons.update(reasons)
        self._refused += len(reasons)
        self.took_any = self.took_any or len(reasons) < len(verdicts)
        if self.took_any:
            came = [verdict.unsupported is not None or bool(verdict.vacuous) for verdict in verdicts]
            if self._second_is_drawn:
                self._enter(zip(batch.traits, came))
            else:
                self._of_first += zip(batch.traits, came)

    @property
    def refused_outright(self) -> bool:
        """Whether the device has refused many cases for one reason, and taken none."""
        return self._refused >= _OUTRIGHT and len(self._reasons) == 1 and not self.took_any
