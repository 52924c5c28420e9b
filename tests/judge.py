"""Runs kernels in this process and judges them with the harness' own judge."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import overload

import numpy as np

from opconform.harness.draw.sample import batches_drawn
from opconform.harness.draw.variants import VARIANTS
from opconform.harness.judge.checks import ON_REQUEST
from opconform.harness.judge.judging import Verdict, judge
from opconform.harness.judge.oracle import compare, expectation
from opconform.harness.model.buffers import Buffers, Plan
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.expected import Comparison, Expected
from opconform.harness.model.findings import Finding
from opconform.harness.model.limits import MANY_ROWS, Freedom
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.op import Op
from opconform.harness.model.ops import ops
from opconform.harness.model.values import inputs_of
from opconform.harness.run.backend import Backend

#: The small ops around the delta nets: fewer cases show what there is to see.
SMALL_OPS = (
    *("tri", "diag", "pad", "l2_norm", "ssm_conv", "sum_rows", "cpy", "cont"),
    *("add", "mul", "scale", "clamp", "exp", "silu", "norm", "rms_norm"),
)
OPS: Mapping[str, Op] = {name: ops()[name] for name in ("acc", "set", "cumsum", "solve_tri", *SMALL_OPS)}


class Bench:
    """A case laid out once, on which any number of kernels are run and judged."""

    def __init__(self, case: Case, values: Mapping[str, Raw] | None = None) -> None:
        self.case = case
        self.op = ops()[case.op]
        self.op.check(case)
        self.values = dict(values) if values is not None else inputs_of(case, self.op)
        self.plan = Plan.of(case)
        self.before = np.empty(self.plan.size, np.uint8)
        Buffers(case, self.before, self.plan).fill(self.values)
        self._expected: dict[Numerics, Expected] = {}

    def expected(self, numerics: Numerics = EXACT) -> Expected:
        """The reference and its bound, computed once."""
        if numerics not in self._expected:
            self._expected[numerics] = expectation(self.case, self.op, self.values, numerics)
        return self._expected[numerics]

    def after(self, kernel: Backend) -> Buffers:
        """The memory as `kernel` leaves it."""
        buffers = Buffers(self.case, self.before.copy(), self.plan)
        kernel.run(self.case, buffers)
        return buffers

    def comparison(self, left: Buffers, numerics: Numerics = EXACT) -> Comparison:
        """The output in `left` against the reference."""
        got = np.array(left.raw(self.op.outputs[0]))
        return compare(self.case, self.op, self.values, self.expected(numerics), got, numerics)

    def verdict(self, kernel: Backend, numerics: Numerics = EXACT) -> Verdict:
        """The harness' verdict on one run of `kernel`."""
        return self._judged(kernel, numerics, None)

    def passes(self, kernel: Backend, numerics: Numerics = EXACT) -> bool:
        """Whether nothing is found. Whether the case says anything is not asked: no verdict depends on it."""
        return self._judged(kernel, numerics, "").passed

    def kind(self, kernel: Backend) -> str:
        """The head of the report, "" where nothing is found."""
        return self._judged(kernel, EXACT, "").kind

    def _judged(self, kernel: Backend, numerics: Numerics, says_nothing: str | None) -> Verdict:
        after, expected = self.after(kernel).memory, self.expected(numerics)
        about = (self.case, self.op, self.values)
        return judge(*about, self.before, after, numerics, expected, self.plan, says_nothing)

    def twin_finding(self, kernel: Backend, name: str) -> Finding | None:
        """What the check on request `name` says of `kernel`, or None."""
        check = ON_REQUEST[name]
        twins = check.twins(self.case, self.op, self.values)
        if isinstance(twins, str) or not twins:
            return None
        left = self.after(kernel)
        for twin in twins:
            other = (self if twin.case is self.case else Bench(twin.case)).after(kernel)
            if not all(twin.has_bits_of(out, np.array(left.raw(out)), other.raw(out)) for out in self.case.outputs):
                return check.finding(twin)
        return None


_KEPT_BYTES = 1 << 15  #: of a case whose bench is kept: with its references it takes ten times as much


class Benches:
    """The benches of drawn cases, to be gone through several times. Those of large cases are made anew each time: kept,
    a thousand of them would be gigabytes."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = cases
        self._kept: dict[int, Bench] = {}

    def __iter__(self) -> Iterator[Bench]:
        for index, case in enumerate(self._cases):
            bench = self._kept.get(index)
            if bench is None:
                bench = Bench(case)
                if case.nbytes <= _KEPT_BYTES:
                    self._kept[index] = bench
            yield bench


@lru_cache(maxsize=1)
def drawn_benches(op: str, count: int, max_bytes: int, number: int = 0) -> Benches:
    """The benches of `drawn_cases`; those of one op at a time are kept."""
    return Benches(drawn_cases(op, count, max_bytes, number))


class DrawnCases(Sequence[Case]):
    """Cases of an op that are drawn once they are asked for: a test that has seen enough draws no more."""

    def __init__(self, op: str, count: int, max_bytes: int, number: int) -> None:
        problems = count + VARIANTS  # more than enough: some have few variants, or none that fits
        batches = batches_drawn(ops()[op], Freedom(max_bytes=max_bytes), problems, number)
        cases = (case for batch in batches for case in batch if not _takes_long(case))
        self._left = itertools.islice(cases, count)
        self._found: list[Case] = []
        self._count = count

    def __iter__(self) -> Iterator[Case]:
        for index in itertools.count():
            self._draw(index + 1)
            if index >= len(self._found):
                return
            yield self._found[index]

    def __len__(self) -> int:
        self._draw(self._count)
        return len(self._found)

    @overload
    def __getitem__(self, index: int) -> Case: ...

    @overload
    def __getitem__(self, index: slice) -> list[Case]: ...

    def __getitem__(self, index: int | slice) -> Case | list[Case]:
        self._draw(index + 1 if isinstance(index, int) and index >= 0 else self._count)
        return self._found[index]

    def _draw(self, count: int) -> None:
        self._found.extend(itertools.islice(self._left, max(count - len(self._found), 0)))


@lru_cache(maxsize=4)  # ten thousand cases are tens of megabytes
def drawn_cases(op: str, count: int, max_bytes: int, number: int = 0) -> DrawnCases:
    """`count` cases of an op from its own strategy and the harness' variants; the same for the same arguments.

    None takes long in Python, in which most kernels of the tests walk over rows.
    """
    return DrawnCases(op, count, max_bytes, number)


def cases_for(backend: Backend, op: str, count: int, max_bytes: int) -> Iterator[Case]:
    """Those of the drawn cases that the limits of a backend allow; it takes these and no others."""
    limits = Freedom(tuple(limit for limit in backend.limits() if limit.op == op))
    for case in drawn_cases(op, count, max_bytes):
        allowed = limits.forbids(case, ops()[op].traits) is None
        assert (backend.supports(case) is None) == allowed, case
        if allowed:
            yield case


def _takes_long(case: Case) -> bool:
    rows = max(math.prod(layout.shape[:-1]) for layout in case.layouts.values())
    return rows > MANY_ROWS or (case.op == "solve_tri" and case.inputs["a"].shape[-1] > 65)  # n² steps for each column
