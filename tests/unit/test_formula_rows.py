"""Every row of a table of formulas that has no kernels of its own: right kernels pass, odd ones among them, and wrong
ones are caught."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from tests.judge import Bench, Benches, drawn_benches
from tests.kernels.formula_rows import by_formula, right_kernels, wrong_kernels

CASES, MAX_BYTES = 240, 1 << 16


def benches(op: str) -> Benches:
    return drawn_benches(op, CASES, MAX_BYTES)


def test_most_rows_need_no_kernels_of_their_own() -> None:
    assert len(by_formula()) > 20


@pytest.mark.parametrize("op", by_formula())
def test_no_right_kernel_is_blamed(op: str) -> None:
    for kernel, numerics in right_kernels().items():
        its = kernel()
        for bench in itertools.islice(benches(op), CASES // 2):
            assert bench.passes(its, numerics), f"{kernel}: {bench.case}: {bench.verdict(its, numerics).findings}"


@pytest.mark.parametrize("op", by_formula())
def test_every_wrong_kernel_is_caught(op: str) -> None:
    """The mistakes that the row itself names, strides and offsets not read, a tail not written, half precision."""
    missed = [kernel.__name__ for kernel in wrong_kernels(op) if all(map(passes(kernel), benches(op)))]
    assert not missed


def passes(kernel: type) -> Callable[[Bench], bool]:
    its = kernel()
    return lambda bench: bench.passes(its)
