"""Pieces that begin with a product or a convolution: kernels that round what stands between, or do not, pass; those
that round it to float16, or never write it where it is read again, are caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opconform.harness.model.approx import Approx
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.numerics import EXACT
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Backend
from tests.judge import Benches, drawn_cases
from tests.kernels.formula_rows import Halves, OtherForm, Wide
from tests.kernels.formulas import Single

TABLES = {name: getattr(op.check, "__self__", None) for name, op in ops().items()}
BEHIND = {name: table for name, table in TABLES.items() if hasattr(table, "first")}


class Kernel(Backend):
    """The first op's reference, rounded, and the formula step by step in an arithmetic."""

    def __init__(self, arithmetic: type[Single], writes_kept: bool = True) -> None:
        super().__init__("0", {})
        self._arithmetic, self._writes_kept = arithmetic, writes_kept

    def run(self, case: Case, buffers: Buffers) -> None:
        piece: Any = BEHIND[case.op]
        raw = {name: np.array(buffers.raw(name)) for name in case.inputs}
        begun, given = piece.results(case, raw, EXACT)
        steps = piece.chain(*map(self._held, (begun, *given)))
        buffers.array("out")[...] = steps[-1].value
        if "mid" in case.outputs and self._writes_kept:
            buffers.array("mid")[...] = steps[piece.steps.index(case.params["kept"])].value

    def _held(self, its: Approx) -> Single:
        found = self._arithmetic.exactly(its.value)
        return found.exactly(found.nearest(found.value))


WRONG = {"halves": Kernel(Halves), "leaves out what is kept": Kernel(Single, writes_kept=False)}


def benches(op: str) -> Benches:
    return Benches(drawn_cases(op, 160, 1 << 16))


def test_there_are_such_pieces() -> None:
    assert {"mul_mat_add", "mul_mat_id_add_id_mul", "ssm_conv_silu"} <= BEHIND.keys()


@pytest.mark.parametrize("arithmetic", [Single, Wide, OtherForm])
@pytest.mark.parametrize("op", BEHIND)
def test_right_kernels_pass(op: str, arithmetic: type[Single]) -> None:
    kernel = Kernel(arithmetic)
    for bench in benches(op):
        with np.errstate(all="ignore"):
            assert bench.passes(kernel), f"{bench.case}: {bench.verdict(kernel).findings}"


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("op", BEHIND)
def test_wrong_kernels_are_caught(op: str, wrong: str) -> None:
    with np.errstate(all="ignore"):
        assert any(not bench.passes(WRONG[wrong]) for bench in benches(op))
