"""What a diagnosis asks beside the failing case is a case that its op takes, with rows of whole blocks."""

from __future__ import annotations

import pytest

from opconform.harness.explain.probes import grown, relaid
from opconform.harness.judge.oracle import expectation
from opconform.harness.model.case import Case
from opconform.harness.model.numerics import EXACT
from opconform.harness.model.ops import ops
from opconform.harness.model.values import inputs_of
from tests.judge import drawn_cases


def _of_blocks(op: str) -> Case:
    return next(
        case
        for case in drawn_cases(op, 400, 1 << 16)
        if any(layout.type.block > 1 for layout in case.inputs.values()) and case.outputs["out"].size
    )


@pytest.mark.parametrize("op", ["flash_attn_ext", "mul_mat", "mul_mat_id", "get_rows", "out_prod"])
def test_rows_of_blocks_grow_to_whole_ones(op: str) -> None:
    case = _of_blocks(op)
    larger = list(grown(ops()[op], case))
    assert larger
    for probe in [*larger, *relaid(ops()[op], [case])]:
        assert all(layout.is_whole for layout in probe.layouts.values()), str(probe)
        expectation(probe, ops()[op], inputs_of(probe, ops()[op]), EXACT)
