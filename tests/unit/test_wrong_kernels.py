"""Every wrong kernel is caught within one run of the default size, and the report's head names what is wrong."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import cache, lru_cache

import numpy as np
import pytest

from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.search.settings import PROFILES
from tests.judge import OPS, Bench, Benches, DrawnCases, drawn_cases
from tests.kernels.correct import Correct
from tests.kernels.row_wrong import ROW_WRONG
from tests.kernels.small_wrong import SMALL_WRONG
from tests.kernels.wrong import WRONG, DropsRowsAbove65535, Wrong

CASES = PROFILES["default"]
MAX_BYTES = 1 << 22
NAMED = 60  #: how many failures are looked at for their kind
RIGHT = 600  #: of those cases the right kernel runs so many; most wrong kernels have failed so often before
ON_REQUEST = 200  #: and so many the checks on request, up to 32 slices of each


@cache
def cases(op: str) -> DrawnCases:
    """Drawn once for all the tests below; benches would take too much memory."""
    return drawn_cases(op, CASES, MAX_BYTES)


@lru_cache(maxsize=1)
def all_benches(op: str) -> Benches:
    return Benches(cases(op))


def kind_of(bench: Bench, wrong: Wrong, kernel: Correct) -> str:
    """The head of the report on one case, "" where nothing is found."""
    if wrong.check is not None:
        finding = bench.twin_finding(kernel, wrong.check)
        return finding.kind if finding else ""
    return bench.kind(kernel)


@pytest.mark.parametrize("wrong", sorted([*WRONG, *SMALL_WRONG, *ROW_WRONG], key=lambda wrong: wrong.op), ids=str)
def test_a_wrong_kernel_is_caught_and_named(wrong: Wrong) -> None:
    kernel = wrong.kernel()
    kinds: Counter[str] = Counter()
    for bench in all_benches(wrong.op):
        if bench.case.recipe == "special" and wrong.kind != "NAN/INF":
            continue  # a NaN in the wrong place heads the report, whatever the fault is
        kinds[kind_of(bench, wrong, kernel)] += 1
        if kinds.total() - kinds[""] == NAMED:
            break
    del kinds[""]
    assert kinds, f"not caught in {CASES} cases"
    assert kinds[wrong.kind] * 8 >= kinds.total(), dict(kinds)
    rare = {kind for kind, count in kinds.items() if kind in ("NAN/INF", "SLICES MIXED") and 3 * count < kinds.total()}
    assert set(kinds) - rare <= {wrong.kind, *wrong.also}, dict(kinds)  # overflows and NaN are drawn now and then


@pytest.mark.parametrize("op", OPS)
def test_the_right_kernel_passes_the_same_cases(op: str) -> None:
    kernel = Correct()
    assert all(bench.passes(kernel) for bench in itertools.islice(all_benches(op), RIGHT))


@pytest.mark.parametrize("check", ["deterministic", "batch_invariant", "layout_invariant"])
@pytest.mark.parametrize("op", OPS)
def test_the_right_kernel_passes_the_checks_on_request(op: str, check: str) -> None:
    kernel = Correct()
    for bench in itertools.islice(all_benches(op), ON_REQUEST):
        assert bench.twin_finding(kernel, check) is None, bench.case


def test_rows_beyond_65535_are_missed_where_a_case_has_them() -> None:
    """KB041, in the smallest case that shows it."""
    layout = Layout.contiguous("f32", (1, 1, 65_600, 2))
    case = Case("cumsum", {"axis": 0, "exclusive": False, "reverse": False}, {"x": layout}, {"out": layout})
    bench = Bench(case)
    assert bench.passes(Correct())
    verdict = bench.verdict(DropsRowsAbove65535())
    assert verdict.kind == "NOT WRITTEN"
    assert verdict.comparison is not None
    assert np.count_nonzero(verdict.comparison.wrong) == 2 * (65_600 - 65_535)
