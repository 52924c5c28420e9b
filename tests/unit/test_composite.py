"""What composite ops need: several outputs, optional and mixed arguments, shared memory, stages, relations of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from opconform.harness.draw.variants import Departure, Variant, variants
from opconform.harness.explain.stages import judged_stages
from opconform.harness.judge.judging import Verdict, judge
from opconform.harness.model.buffers import Buffers, Plan, unwritten
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DTYPES, F64, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.op import Composite, Metamorphic, Op, Problem, Stage
from opconform.harness.model.values import inputs_of

F32 = DTYPES["f32"]


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    x, y = F32.decode(raw["x"]), F32.decode(raw["y"]) if "y" in raw else 0.0
    total = x + y
    twice = Expected(2 * total, 4 * numerics.u * np.abs(total))
    return Expected(total, numerics.u * np.abs(total), others={"twice": twice})


def stages(case: Case) -> Sequence[Stage]:
    def of(name: str, needs: tuple[str, ...], formula: Any) -> Stage:
        return Stage(name, needs, lambda case, values, numerics: Expected(formula(values), np.zeros(())), f"the {name}")

    return (
        of("sum", (), lambda values: values["x"] + values["y"]),
        of("double", ("sum",), lambda values: 2 * values["sum"]),
        of("twice", ("double",), lambda values: values["double"]),
    )


def related(op: Op, case: Case, values: Mapping[str, Raw], got: Mapping[str, Any], run: Any) -> str | None:
    return None


def problems(freedom: Freedom) -> st.SearchStrategy[Problem]:
    raise NotImplementedError


OP = Op(
    name="sum_and_twice",
    summary="out = x + y, twice = 2 (x + y)",
    inputs=("x", "y"),
    params={},
    dtypes=("f32",),
    problems=problems,
    expect=expect,
    bound="u·|x + y|",
    check=lambda case: None,
    composite=Composite(
        optional=("y",),
        more_outputs=("twice",),
        recipes=("small_int", "large"),
        packs={("x", "y"): 3},
        stages=stages,
        metamorphic=(Metamorphic("none", "nothing", "NOTHING", related),),
    ),
)
SHAPE = (2, 3, 2, 4)
PROBLEM = Problem({}, "f32", {"x": SHAPE, "y": SHAPE}, SHAPE, more_outputs={"twice": SHAPE})


def run(case: Case, changes: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on a right run with some elements of some outputs changed afterwards."""
    values = inputs_of(case, OP)
    plan = Plan.of(case)
    before = np.zeros(plan.size, np.uint8)
    Buffers(case, before, plan).fill(values)
    left = Buffers(case, before.copy(), plan)
    total = left.array("x") + (left.array("y") if "y" in case.inputs else np.float32(0))
    left.array("out")[...] = total
    left.array("twice")[...] = 2 * total
    for name, value in (changes or {}).items():
        left.raw(name)[0, 1, 0, 2] = np.float32(value).view(np.uint32) if value is not None else unwritten(F32)
    return judge(case, OP, values, before, left.memory, EXACT)


def test_every_output_is_judged() -> None:
    case = Variant(seed=5).case(OP, PROBLEM)
    assert run(case).passed
    verdict = run(case, {"twice": 77.0})
    assert verdict.kind == "WRONG VALUES"
    assert verdict.findings[0].detail.startswith("1 of 48 elements of twice")
    assert verdict.comparison is not None
    assert verdict.comparison.name == "twice"
    assert np.argwhere(verdict.comparison.wrong).tolist() == [[0, 1, 0, 2]]


def test_the_first_wrong_output_heads_the_report() -> None:
    verdict = run(Variant().case(OP, PROBLEM), {"out": 77.0, "twice": 78.0})
    assert verdict.comparison is not None
    assert verdict.comparison.name == "out"


@pytest.mark.parametrize("name", ["out", "twice"])
def test_an_output_that_is_not_written_is_named(name: str) -> None:
    verdict = run(Variant().case(OP, PROBLEM), {name: None})
    assert verdict.kind == "NOT WRITTEN"
    assert f"elements of {name}" in verdict.findings[0].detail


def test_an_optional_argument_may_be_left_out() -> None:
    case = Variant().case(OP, replace(PROBLEM, shapes={"x": SHAPE}))
    assert list(case.inputs) == ["x"]
    assert run(case).passed
    assert run(case, {"out": 99.0}).failed


def test_arguments_of_one_tensor_lie_side_by_side() -> None:
    case = Variant({"x": Departure(pads=(3, 0, 0, 0), offset=2)}, together=True).case(OP, PROBLEM)
    assert case.shares == {"y": "x"}
    x, y = case.inputs["x"], case.inputs["y"]
    row = (4 + 4 + 3) * 4
    assert x.strides == y.strides == (6 * row, 2 * row, row, 4)
    assert (x.offset, y.offset) == (8, 8 + 16)
    slots = Plan.of(case).slots
    assert slots["x"].start == slots["y"].start
    assert case.nbytes == max(x.end, y.end) + 2 * case.outputs["out"].end
    assert run(case).passed
    assert run(case.packed()).passed
    assert not case.packed().shares


def test_arguments_that_do_not_fit_together_stay_apart() -> None:
    unlike = replace(PROBLEM, shapes={"x": SHAPE, "y": (2, 3, 1, 4)})
    assert not Variant(together=True).case(OP, unlike).shares
    assert not Variant(together=True).case(OP, replace(PROBLEM, dtypes={"y": "f16"})).shares
    assert not Variant(together=True).case(OP, replace(PROBLEM, shapes={"x": SHAPE})).shares


def test_variants_draw_shared_memory_and_the_ops_own_recipes() -> None:
    drawn = [variant for seed in range(20) for variant in variants(OP, PROBLEM, seed, Freedom())]
    assert any(variant.together for variant in drawn)
    assert {variant.recipe for variant in drawn} == {"small_int", "large"}
    together = next(variant for variant in drawn if variant.together)
    assert next(simpler for simpler in together.simpler(OP.composite.recipes) if not simpler.together)


def test_a_case_with_shared_memory_goes_through_json() -> None:
    case = Variant(together=True).case(OP, PROBLEM)
    again = Case.from_json(case.to_json())
    assert again == case
    assert again.id == case.id != replace(case, shares={}).id
    assert "in_y=x" in str(case)


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ({"y": "z"}, "both must be of x, y"),
        ({"y": ["x"]}, "both must be of x, y"),
        ({"y": "y"}, "must have memory of its own"),
        ({"x": "y", "y": "x"}, "must have memory of its own"),
        ({"y": "x"}, "elements at the same bytes"),
    ],
)
def test_memory_that_cannot_be_shared_is_refused(shares: dict[str, object], says: str) -> None:
    plain = Variant().case(OP, PROBLEM).to_json()
    with pytest.raises(CaseError, match=says):
        Case.from_json({**plain, "shares": shares})


def test_memory_is_not_shared_between_types() -> None:
    half = replace(Variant().case(OP, PROBLEM), shares={"y": "x"})
    half = replace(half, inputs={**half.inputs, "y": Layout.contiguous("f16", SHAPE, 4096)})
    with pytest.raises(CaseError, match="one dtype"):
        Case.from_json(half.to_json())


# --- stages ---

CASE = Variant().case(OP, replace(PROBLEM, shapes={"x": SHAPE, "y": SHAPE}))


def shown(**changes: F64) -> dict[str, F64]:
    values = {name: F32.decode(raw) for name, raw in inputs_of(CASE, OP).items()}
    total = values["x"] + values["y"]
    return {"sum": total, "double": 2 * total, "twice": 2 * total, **changes}


def test_right_stages_are_not_blamed() -> None:
    assert judged_stages(OP, CASE, shown(), EXACT) == "none is wrong by itself of sum, double, twice"


def test_the_first_wrong_stage_is_named_and_what_follows_from_it_is_not() -> None:
    wrong = shown()["sum"].copy()
    wrong[1, 2, 0, 3] += 1
    says = judged_stages(OP, CASE, shown(sum=wrong, double=2 * wrong, twice=2 * wrong), EXACT)
    assert says.startswith("the sum: 1 of 48 elements are wrong, the worst at (i0=3,i1=0,i2=2,i3=1)")


def test_a_stage_is_judged_on_what_stood_before_it() -> None:
    wrong = shown()["double"] + 1
    says = judged_stages(OP, CASE, shown(double=wrong, twice=wrong), EXACT)
    assert says.startswith("the double: 48 of 48")
    assert says.endswith("right before it: sum")


def test_a_stage_is_not_judged_without_what_it_needs() -> None:
    values = shown(twice=shown()["twice"] + 1)
    del values["double"]
    assert judged_stages(OP, CASE, values, EXACT) == "none is wrong by itself of sum"


def test_a_stage_of_another_shape_is_named() -> None:
    says = judged_stages(OP, CASE, shown(sum=np.zeros((2, 2))), EXACT)
    assert says == "the sum: the backend shows [2, 2] elements instead of [2, 3, 2, 4]"


def test_a_problem_that_does_not_fit_is_not_tried() -> None:
    assert variants(OP, PROBLEM, 1, Freedom(max_bytes=1 << 9)) == []
    assert len(variants(OP, PROBLEM, 1, Freedom(max_bytes=1 << 12))) == 8
