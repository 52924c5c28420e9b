"""Cases that differ in their values alone are computed together, and get what each of them gets alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opconform.harness.draw.variants import VARIANTS
from opconform.harness.judge.oracle import expectation, expectations
from opconform.harness.model.expected import Expected
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.op import Op
from opconform.harness.model.ops import ops
from opconform.harness.model.values import inputs_of
from tests.judge import drawn_cases

LOOSE = Numerics(flushes_denormals=True, any_rounding=True, division_ulps=2.5, exp_ulps_per_unit=2.0)
STACKED = [op for op in ops().values() if op.stacks]


def assert_alike(one: Expected, other: Expected) -> None:
    """Bit for bit, but that a sum along another layout may be rounded otherwise in float64."""
    assert one.value.shape == other.value.shape
    assert one.bound.shape == other.bound.shape
    np.testing.assert_allclose(one.value, other.value, rtol=1e-14, atol=0)
    np.testing.assert_allclose(one.bound, other.bound, rtol=1e-6, atol=0)
    exact = [found.exact if found.exact is not None else np.zeros(one.value.shape, bool) for found in (one, other)]
    np.testing.assert_array_equal(*exact)
    if exact[0].any():
        assert one.bits is not None
        assert other.bits is not None
        np.testing.assert_array_equal(one.bits[exact[0]], other.bits[exact[0]])


def test_the_families_are_computed_together() -> None:
    assert {"add", "silu", "norm", "sum_rows", "cont", "pad"} <= {op.name for op in STACKED}


@pytest.mark.parametrize("numerics", [EXACT, LOOSE], ids=["exact", "loose"])
@pytest.mark.parametrize("op", STACKED, ids=lambda op: op.name)
def test_each_gets_what_it_gets_alone(op: Op, numerics: Numerics) -> None:
    cases = drawn_cases(op.name, 240, 1 << 14)
    for start in range(0, len(cases), VARIANTS):
        runs = [(case, inputs_of(case, op), numerics) for case in cases[start : start + VARIANTS]]
        for (case, raw, _), together in zip(runs, expectations(op, runs), strict=True):
            assert_alike(together, expectation(case, op, raw, numerics))


def test_cases_of_other_sizes_parameters_or_arithmetic_are_kept_apart() -> None:
    op = ops()["scale"]
    case = next(case for case in drawn_cases("scale", 240, 1 << 14) if case.outputs["out"].size > 4)
    other = replace(case, params={**case.params, "scale": 3.0 * float(case.params["scale"]) + 1.0})
    runs = [(each, inputs_of(each, op), numerics) for each in (case, other) for numerics in (EXACT, LOOSE)]
    for (each, raw, numerics), found in zip(runs, expectations(op, runs), strict=True):
        assert_alike(found, expectation(each, op, raw, numerics))
