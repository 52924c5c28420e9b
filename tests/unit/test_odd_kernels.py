"""Right kernels that compute differently must never be blamed: 600 random cases each, without one false alarm (120
for the small ops).

`OPCONFORM_ODD_CASES` sets another count. Most cases are small, because a small case costs little and says much; one in
twenty is as large as a run draws.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from opconform.harness.model.case import Case
from tests.judge import OPS, SMALL_OPS, Bench, drawn_cases
from tests.kernels.odd import ODD, Blocked, Tiled, Tiled256
from tests.kernels.row_odd import ROW_ODD
from tests.kernels.small_odd import SMALL_ODD

CASES = int(os.environ.get("OPCONFORM_ODD_CASES", "600"))
PARTS = 4  #: tests per op, so that several workers may share them
SMALL, LARGE = 1 << 16, 1 << 22


def cases_of(op: str) -> int:
    """How many cases an op gets."""
    return CASES // 5 if op in SMALL_OPS else CASES


def part_of(op: str, part: int) -> Iterator[Case]:
    """One part of an op's cases."""
    count = cases_of(op) // PARTS
    large = count // 20
    yield from drawn_cases(op, count - large, SMALL, number=part)
    yield from drawn_cases(op, large, LARGE, number=part)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("op", OPS)
def test_no_right_kernel_is_ever_blamed(op: str, part: int) -> None:
    """All kernels on the same cases: a case is drawn, laid out and computed in float64 once."""
    kernels = [(odd, odd.kernel()) for odd in (*ODD, *SMALL_ODD, *ROW_ODD) if op in odd.ops]
    ran = 0
    for case in part_of(op, part):
        bench = Bench(case)
        for odd, kernel in kernels:
            assert bench.passes(kernel, odd.numerics), f"{odd}: {case}: {bench.verdict(kernel, odd.numerics).findings}"
        ran += 1
    assert ran == cases_of(op) // PARTS


def inner_size(case: Case) -> int:
    """The size along which a kernel loops."""
    if case.op == "cumsum":
        return case.inputs["x"].shape[3 - int(case.params["axis"])]
    return case.inputs["a"].shape[-1]


@pytest.mark.parametrize(
    ("op", "size"), [("cumsum", Tiled.tile), ("cumsum", Tiled256.tile), ("solve_tri", Blocked.block)]
)
def test_blocked_kernels_see_more_than_one_block(op: str, size: int) -> None:
    assert any(inner_size(case) > size for case in drawn_cases(op, 2000, SMALL))
