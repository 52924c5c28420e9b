"""ROPE: what a case must have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opconform.cases.rope import VISION
from opconform.harness.draw.sample import problems_drawn
from opconform.harness.draw.variants import Variant
from opconform.harness.model.case import CaseError
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom
from opconform.harness.model.ops import ops


def test_the_mode_of_vision_has_a_factor_for_each_pair_it_turns() -> None:
    """It turns two channels for each of n_dims; kernels read as many factors. Other modes turn n_dims channels."""
    op = ops()["rope"]
    drawn = (each for each in problems_drawn(op, Freedom(max_bytes=1 << 16), 400) if "factors" in each.shapes)
    case = next(Variant().case(op, each) for each in drawn if each.params["mode"] == VISION)
    n = int(case.params["n_dims"])
    op.check(case)
    few = replace(case, inputs={**case.inputs, "factors": Layout.contiguous("f32", (1, 1, 1, n // 2))})
    with pytest.raises(CaseError, match=f"there must be {n} at least"):
        op.check(few)
