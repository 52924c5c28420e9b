"""i8, i16, i64 and f64: ops that move elements take them, now and then, and every bit counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from opconform.cases.families.gathers import SELDOM
from opconform.harness.draw.sample import problems_drawn
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Backend
from tests.judge import Bench

MOVES = ("cpy", "cont", "dup", "repeat")


class Moves(Backend):
    """Elements of x on their way through another type, or as they are."""

    def __init__(self, through: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> None:
        super().__init__("0", {})
        self._through = through

    def run(self, case: Case, buffers: Buffers) -> None:
        x, out = buffers.array("x"), buffers.array("out")
        with np.errstate(all="ignore"):
            out[...] = self._through(x).astype(x.dtype)


def case_of(op: str, dtype: str, recipe: str) -> Case:
    its = Layout.contiguous(dtype, (1, 2, 3, 33))
    return Case(op, {}, {"x": its}, {"out": its}, recipe, seed=1)


@pytest.mark.parametrize("op", MOVES)
def test_seldom_types_are_drawn_now_and_then(op: str) -> None:
    drawn = Counter(it.dtype for it in problems_drawn(ops()[op], Freedom(max_bytes=1 << 12), 400))
    assert all(drawn[dtype] for dtype in SELDOM)
    assert sum(drawn[dtype] for dtype in ("f32", "f16", "bf16")) > 200


@pytest.mark.parametrize("dtype", SELDOM)
@pytest.mark.parametrize("op", ["cpy", "cont"])
def test_elements_that_are_moved_as_they_are_pass(op: str, dtype: str) -> None:
    for recipe in ("normal", "wide", "special") if dtype == "f64" else ("normal", "wide"):
        assert Bench(case_of(op, dtype, recipe)).passes(Moves())


@pytest.mark.parametrize(
    ("dtype", "narrow"),
    [("f64", np.float32), ("i64", np.int32), ("i64", np.float32), ("i16", np.int8)],
)
def test_elements_that_lose_bits_on_their_way_are_caught(dtype: str, narrow: type) -> None:
    assert not Bench(case_of("cpy", dtype, "wide")).passes(Moves(lambda x: x.astype(narrow)))


def test_numbers_are_copied_to_a_type_of_their_own_or_between_floats() -> None:
    x, out = (Layout.contiguous(dtype, (1, 1, 1, 4)) for dtype in ("f64", "f32"))
    with pytest.raises(ValueError, match="converts between"):
        ops()["cpy"].check(Case("cpy", {}, {"x": x}, {"out": out}))
