"""What a failure looks like from close by: the hypothesis that explains it, and the elements that were read instead.

A hypothesis is believed if it foretells everything that the backend returned, the right elements too: for the failing
case, and for the same case with other values. Those that are left are told apart by larger cases: the ones that the
search has seen, and the failing case grown.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import numpy as np

from opconform.harness.explain.history import kept
from opconform.harness.explain.hypotheses import COARSE, hypotheses, named
from opconform.harness.explain.probes import LARGEST_PROBE, grown, other_values, relaid, spread
from opconform.harness.explain.provenance import provenance
from opconform.harness.judge.judging import Verdict
from opconform.harness.judge.oracle import compare, expectation
from opconform.harness.model.buffers import unwritten
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Mask
from opconform.harness.model.expected import Comparison, Expected
from opconform.harness.model.findings import Kind
from opconform.harness.model.image import Hypothesis, Image, Reading
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op
from opconform.harness.model.values import inputs_of
from opconform.harness.run.runner import Runner

SECONDS = 10.0  #: a diagnosis ends after about this, with what it knows
_LARGEST = 4 << 20  #: bytes of a case that is looked into
_SEEN = 24  #: how many of the verdicts seen are looked at
_QUIET = {"f32": (0x00400000, 0x7FFFFFFF), "f16": (0x0200, 0x7FFF)}  #: the bit of a quiet NaN; all but the sign
_PART_OF_COARSE = 1 / 64  #: of what 16 bits may give, the error that they give at least somewhere


class Answer(Enum):
    """What a witness says about a hypothesis. It bears it out where every element is as foretold, refutes it where one
    is otherwise than foretold, and is silent where the hypothesis leaves open what a wrong element should be: a mistake
    whose formula divides by what underflows, say."""

    BEARS_OUT = auto()
    SILENT = auto()
    REFUTES = auto()


@dataclass(frozen=True)
class Witness:
    """What a backend returned for a case: a comparison per output, made with `numerics`."""

    op: Op
    image: Image
    comparisons: Mapping[str, Comparison]
    numerics: Numerics

    @property
    def failed(self) -> bool:
        return any(comparison.wrong.any() for comparison in self.comparisons.values())

    @property
    def overflows(self) -> bool:
        """Whether something infinite or NaN came back where a finite number should have."""
        return any(
            bool((comparison.wrong & ~np.isfinite(comparison.got)).any()) for comparison in self.comparisons.values()
        )

    def on(self, hypothesis: Hypothesis | None) -> Answer:
        """What came back says about a hypothesis (None: it does not concern this case)."""
        if hypothesis is None:
            return Answer.REFUTES if self.failed else Answer.BEARS_OUT
        return _answer(self, hypothesis.reading())


def _as_read(op: Op, reading: Reading) -> Op:
    """The op as a reading has it."""
    if reading.expect is None:
        return op
    return replace(op, expect=reading.expect, composite=replace(op.composite, judge=None))


def _is_as_coarse(witness: Witness, name: str) -> bool:
    """Whether an error is not only within what 16 bits may give but as large as they give it: each of their roundings
    is off by a quarter of its bound on average, so that the largest of a few is never below a small part of it. Where
    that bound is no smaller than the largest value, as for the angle of a large position, it leaves no digit of any,
    and an error below it is no sign of 16 bits. Of an op with stages nothing can be said: its bound goes through many
    steps, and lies far above any error."""
    if witness.op.composite.stages is not None:
        return True
    hypothesis = named(hypotheses(witness.op, witness.image)).get(name)
    if hypothesis is None:
        return False
    reading, seen = hypothesis.reading(), witness.comparisons[witness.image.out]
    op = _as_read(witness.op, reading)
    with np.errstate(all="ignore"):
        expected = expectation(reading.case, op, reading.raw, witness.numerics)
        its = expected if seen.name == op.outputs[0] else expected.others[seen.name]
        is_large = np.abs(seen.got - its.value) >= _PART_OF_COARSE * its.bound
        finite = np.abs(its.value[np.isfinite(its.value)])
        says_something = its.bound < finite.max(initial=0.0)
    return witness.overflows or bool((is_large & says_something & seen.wrong).any())


def _answer(witness: Witness, reading: Reading) -> Answer:
    """What every element of every output says about a reading."""
    image, numerics = witness.image, witness.numerics
    op = _as_read(witness.op, reading)
    with np.errstate(all="ignore"):
        expected = expectation(reading.case, op, reading.raw, numerics)
        masks = [
            _as_foretold(image, op, reading, expected, comparison, numerics)
            for comparison in witness.comparisons.values()
        ]
    if not all(bool(agrees.all()) for agrees, _ in masks):
        return Answer.REFUTES
    return Answer.SILENT if any(bool(silent.any()) for _, silent in masks) else Answer.BEARS_OUT


def _as_foretold(
    image: Image, op: Op, reading: Reading, expected: Expected, seen: Comparison, numerics: Numerics
) -> tuple[Mask, Mask]:
    """Which elements of one output are not otherwise than foretold, and which are wrong and not foretold at all."""
    name, got = seen.name, seen.raw
    if reading.source is None or name != image.out:
        comparison = compare(reading.case, op, reading.raw, expected, got, numerics, name)
        silent = seen.wrong & ~_told(comparison)
        return _as_expected(comparison) | silent, silent
    if image.case.outputs[name].type.block > 1:  # where an element of a block came from is not followed
        nowhere = np.zeros(seen.wrong.shape, dtype=bool)
        return nowhere, nowhere
    first = expected if name == op.outputs[0] else expected.others[name]
    written = reading.source >= 0
    source = reading.source[written]
    result = image.case.outputs[name].type.encode(first.value).reshape(-1)  # what is not seen is taken as right
    result[source] = got[written]
    comparison = compare(reading.case, op, reading.raw, expected, result.reshape(got.shape), numerics, name)
    agrees = np.array(got == image.before, dtype=bool)
    agrees[written] = _as_expected(comparison).reshape(-1)[source] & (result[source] == got[written])
    silent = np.zeros(got.shape, dtype=bool)
    silent[written] = seen.wrong[written] & ~_told(comparison).reshape(-1)[source]
    return agrees | silent, silent


def _as_expected(comparison: Comparison) -> Mask:
    value, got = comparison.expected.value, comparison.got
    same: Mask = ~comparison.wrong & (np.isnan(value) == np.isnan(got))
    same |= np.isnan(value) & np.isnan(got)
    same |= np.isinf(value) & (value == got)
    return same


def _told(comparison: Comparison) -> Mask:
    """Which elements the expectation says anything about."""
    return ~np.isinf(comparison.bound) | np.isnan(comparison.expected.value)


def examine(op: Op, runner: Runner, verdict: Verdict, seen: Sequence[Verdict] = ()) -> tuple[str, tuple[str, ...]]:
    """`hint` and `provenance` of a failure. Whatever goes wrong here, the failure itself must still be shown."""
    comparison = verdict.comparison
    if verdict.case.before is not None:
        return kept(verdict.case), ()
    if comparison is None or not comparison.wrong.any() or verdict.case.nbytes > _LARGEST or runner.lost:
        return "", ()
    try:
        says = hint(op, runner, verdict, seen) or origin_of_nan(verdict.case, comparison)
        return says, provenance(op, runner, verdict.case, SECONDS)
    except Exception as error:
        return f"none, for the diagnosis failed ({type(error).__name__}: {error})", ()


def origin_of_nan(case: Case, comparison: Comparison) -> str:
    """Where NaN comes from that is the whole fault, by its bits: arithmetic on a CPU keeps those of a NaN that goes in,
    but for the sign and the bit that makes it quiet. "" where that cannot be told: many GPUs give all NaN one pattern,
    which may be that of a gap but for the sign."""
    wrong, dtype = comparison.wrong, case.outputs[comparison.name].type
    if dtype.name not in _QUIET or not np.isnan(comparison.got[wrong]).all() or case.recipe == "special":
        return ""
    quiet, payload = _QUIET[dtype.name]
    bits = comparison.raw[wrong]
    if case.inplace is None and bool((bits & payload == (int(unwritten(dtype)) | quiet) & payload).all()):
        return f"{comparison.name} is read before it is written: the NaN is made from what stood there before the run"
    if bool((bits == np.iinfo(bits.dtype).max).all()):
        return "bytes are read that belong to no element: the NaN is the one that fills the gaps of inputs"
    return ""


def hint(op: Op, runner: Runner, verdict: Verdict, seen: Sequence[Verdict] = ()) -> str:
    """The plainest hypothesis that explains a failure, in words; "" where there is none.

    `seen` are verdicts on other cases of the same op and device, passed or failed.
    """
    deadline = time.monotonic() + SECONDS
    case = verdict.case
    if verdict.comparison is None or verdict.kind == Kind.NOT_DETERMINISTIC:
        return ""
    out = verdict.comparison.name
    first = _witness(op, verdict, out)
    answers: dict[str, Answer] = {}
    for name, hypothesis in named(hypotheses(op, first.image)).items():
        if time.monotonic() > deadline:
            return ""
        answers[name] = first.on(hypothesis)
    likely = _which(answers, Answer.BEARS_OUT)
    silent = [name for name in _which(answers, Answer.SILENT) if name not in COARSE]
    for witness in _run(op, runner, other_values(case), out) if likely or silent else ():
        again = _answers(witness, [*likely, *silent])
        likely = [name for name in likely if again[name] is not Answer.REFUTES]
        silent = [name for name in silent if again[name] is not Answer.REFUTES]
    if not (likely or silent):
        return ""
    affordable = int((deadline - time.monotonic()) / max(verdict.seconds, 1e-4))
    larger = list(itertools.islice(grown(op, case), max(affordable, 0)))
    close = _run(op, runner, larger, out)
    others = _run(op, runner, relaid(op, [case, *sorted(larger, key=spread)[-2:]]), out) if larger else []
    others += _witnesses(op, _chosen(case, seen), out)
    sharp = [name for name in likely if name not in COARSE]
    failed = [first, *(witness for witness in close if witness.failed)]
    large = [name for name in COARSE if name in likely and any(_is_as_coarse(witness, name) for witness in failed)]
    coarse = [[name] for name in large]  # the narrowest error that all failures have
    told = (_told_apart(case, names, close, others, deadline) for names in (sharp, *coarse))
    return next(filter(None, told), "") or _told_apart(case, silent, close, others, deadline, sure=False)


def _run(op: Op, runner: Runner, cases: Iterable[Case], out: str) -> list[Witness]:
    return _witnesses(op, runner.verdicts(op, cases, beyond=("bug",), until_death=True, time_limit=SECONDS), out)


def _witnesses(op: Op, verdicts: Iterable[Verdict], out: str) -> list[Witness]:
    return [
        _witness(op, verdict, out)
        for verdict in verdicts
        if verdict.comparisons and verdict.kind != Kind.NOT_DETERMINISTIC
    ]


def _witness(op: Op, verdict: Verdict, out: str) -> Witness:
    image = Image(verdict.case, inputs_of(verdict.case, op), out)
    return Witness(op, image, _by_output(verdict), verdict.numerics)


def _by_output(verdict: Verdict) -> dict[str, Comparison]:
    return {comparison.name: comparison for comparison in verdict.comparisons}


def _chosen(case: Case, seen: Sequence[Verdict]) -> list[Verdict]:
    """The largest of the verdicts seen, failures before passes."""
    useful = [other for other in seen if other.case.key != case.key and other.case.nbytes <= LARGEST_PROBE]
    useful.sort(key=lambda other: (not other.failed, -other.case.nbytes))
    return useful[:_SEEN]


def _answers(witness: Witness, names: Iterable[str]) -> dict[str, Answer]:
    wanted = list(names)
    found: dict[str, Hypothesis] = {}
    for hypothesis in hypotheses(witness.op, witness.image):
        if len(found) == len(wanted):
            break
        if hypothesis.says in wanted:
            found.setdefault(hypothesis.says, hypothesis)
    return {name: witness.on(found.get(name)) for name in wanted}


def _which(answers: Mapping[str, Answer], *wanted: Answer) -> list[str]:
    return [name for name, answer in answers.items() if answer in wanted]


def _told_apart(
    case: Case,
    candidates: list[str],
    close: list[Witness],
    others: list[Witness],
    deadline: float,
    sure: bool = True,
) -> str:
    """The candidate that most witnesses bear out, the plainest of several; with the others, and with what speaks
    against it. "" where none explains every `close` failure, for the same case grown has the same fault, and where more
    of the other failures need another reason than do not: that one is the fault to look for. What only says how large
    an error is must hold for all of them. `sure`: the failure bears the candidates out;
    if not, another one must, or nothing may speak against them."""
    failures = 0
    borne_out: Counter[str] = Counter()
    passing: dict[str, list[Witness]] = {name: [] for name in candidates}
    failing: dict[str, list[Witness]] = {name: [] for name in candidates}
    for index, witness in enumerate([*close, *others]):
        if time.monotonic() > deadline or not candidates:
            break
        answers = _answers(witness, candidates)
        failed = witness.failed
        failures += failed
        if witness.overflows:  # where 16 bits overflow on the way, what comes of it is anybody's guess
            answers |= {name: Answer.BEARS_OUT for name in candidates if name in COARSE}
        for name in _which(answers, Answer.REFUTES):
            (failing if failed else passing)[name].append(witness)
        if failed and index < len(close):
            candidates = _which(answers, Answer.BEARS_OUT, Answer.SILENT)
        if failed:
            borne_out.update(_which(answers, Answer.BEARS_OUT))
    against = {name: len(passing[name]) + len(failing[name]) for name in candidates}
    candidates = [name for name in candidates if sure or borne_out[name] or not against[name]]
    if not candidates:
        return ""
    best = min(candidates, key=lambda name: against[name])
    if 2 * len(failing[best]) > failures or (best in COARSE and failing[best]):
        return ""
    rivals = [name for name in candidates if against[name] == against[best] and name != best]
    says = best
    if rivals:
        more = f" ({len(rivals) - 2} more)" if len(rivals) > 2 else ""
        says += f"; or (no case run here tells which): {'; '.join(rivals[:2])}{more}"
    doubts = []
    if passing[best] and case.inplace and all(witness.image.case.inplace is None for witness in passing[best]):
        doubts.append("in place only")
    elif passing[best]:
        spoilt = "1 case passes" if len(passing[best]) == 1 else f"{len(passing[best])} cases pass"
        doubts.append(f"but {spoilt} that this would spoil")
    if failing[best]:
        doubts.append(f"explains all but {len(failing[best])} of {failures} other failures")
    if doubts:
        says += f" ({'; '.join(doubts)})"
    return says
