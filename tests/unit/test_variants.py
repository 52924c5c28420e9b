"""Variants: every kind of layout is reached, none goes beyond what a backend takes, and simplifying ends."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opconform.harness.draw.sample import problems_drawn
from opconform.harness.draw.strategies import EDGES
from opconform.harness.draw.variants import PACKED, VARIANTS, Departure, Variant, cases_of, one_of, variants
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout, LayoutClass
from opconform.harness.model.limits import Freedom, Limit
from opconform.harness.model.op import Op, Problem
from opconform.harness.model.ops import ops
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.observer import Observer
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings
from tests.judge import OPS, drawn_cases
from tests.samples import target

OP_NAMES = pytest.mark.parametrize("op", OPS)
SIZES = (2, 3, 4, 5)
CUMSUM = Problem({"axis": 0, "exclusive": False, "reverse": False}, "f32", {"x": SIZES}, SIZES)
SEEDS = range(400)


@cache
def shapes_of(argument: str, widest: LayoutClass = LayoutClass.BROADCAST) -> tuple[Departure, ...]:
    """What many seeds draw for one argument of CUMSUM, the first, packed variant left out."""
    limit = Limit("cumsum", argument, widest, "", "")
    freedom = Freedom((limit,))
    drawn = [variants(OPS["cumsum"], CUMSUM, seed, freedom)[1:] for seed in SEEDS]
    return tuple(variant.departures[argument] for variant in itertools.chain.from_iterable(drawn))


def test_equal_arguments_give_equal_variants() -> None:
    for seed in range(20):
        one, other = (variants(OPS["cumsum"], CUMSUM, seed, Freedom()) for _ in range(2))
        assert one == other
    assert variants(OPS["cumsum"], CUMSUM, 0, Freedom()) != variants(OPS["cumsum"], CUMSUM, 1, Freedom())


def test_the_first_variant_is_packed() -> None:
    for seed in range(20):
        drawn = variants(OPS["cumsum"], CUMSUM, seed, Freedom())
        assert len(drawn) == VARIANTS
        case = drawn[0].case(OPS["cumsum"], CUMSUM)
        assert {layout.kind for layout in case.layouts.values()} == {LayoutClass.PACKED}


@pytest.mark.parametrize("argument", ["x", "out"])
def test_every_permutation_is_reached(argument: str) -> None:
    assert {shape.order for shape in shapes_of(argument)} == set(itertools.permutations(range(4)))


@pytest.mark.parametrize("argument", ["x", "out"])
def test_padding_is_reached_after_every_axis(argument: str) -> None:
    for axis in range(4):
        assert {shape.pads[axis] for shape in shapes_of(argument)} >= {0, 1, 3}


@pytest.mark.parametrize("argument", ["x", "out"])
def test_steps_and_offsets_are_reached_alone_and_together(argument: str) -> None:
    found = Counter((shape.step > 1, shape.offset > 0, shape.order != (0, 1, 2, 3)) for shape in shapes_of(argument))
    assert set(found) == set(itertools.product((False, True), repeat=3))
    assert min(found.values()) >= 10


def test_offsets_that_break_every_small_alignment_are_reached() -> None:
    offsets = {shape.offset for shape in shapes_of("x")}
    assert {offset % 2 for offset in offsets} == {0, 1}
    assert {offset * 4 % 16 for offset in offsets} >= {0, 4, 12}


def test_broadcasting_is_reached_over_each_outer_axis_and_both_but_never_for_an_output() -> None:
    assert {shape.repeat for shape in shapes_of("x")} == {(), (2,), (3,), (2, 3)}
    assert {shape.repeat for shape in shapes_of("out")} == {()}


@pytest.mark.parametrize("argument", ["x", "out"])
@pytest.mark.parametrize("widest", list(LayoutClass))
def test_no_layout_is_wider_than_the_backend_takes(argument: str, widest: LayoutClass) -> None:
    sizes = [SIZES, (1, 1, 1, 1), (5, 1, 3, 1), (2, 3, 0, 4), (3, 2, 2, 1)]
    kinds = {shape.layout("f32", size).kind for shape in shapes_of(argument, widest) for size in sizes}
    assert max(kinds) <= widest
    reached = {shape.layout("f32", SIZES).kind for shape in shapes_of(argument, widest)}
    last = widest if argument == "x" else min(widest, LayoutClass.STRIDED)
    assert reached == {LayoutClass(kind) for kind in range(last + 1)}


def test_an_in_place_argument_never_broadcasts() -> None:
    for case in drawn_cases("acc", 2000, 1 << 14):
        if case.inplace:
            assert case.inputs["a"].kind <= LayoutClass.STRIDED
            assert case.inputs["a"] == case.outputs["out"]


@OP_NAMES
def test_no_output_overlaps_and_every_input_that_does_is_broadcast(op: str) -> None:
    for case in drawn_cases(op, 600, 1 << 16):
        assert not any(layout.overlaps for layout in case.outputs.values())
        for layout in case.inputs.values():
            assert layout.kind is LayoutClass.BROADCAST or not layout.overlaps


@pytest.mark.parametrize("name", ops())
def test_a_device_that_refuses_all_it_is_offered_is_offered_nothing_that_is_no_case(name: str) -> None:
    op, offered = ops()[name], []

    def refuses(case: Case) -> bool:
        offered.append(case)
        return True

    for number, problem in enumerate(problems_drawn(op, Freedom(max_bytes=1 << 14), 8)):
        cases_of(op, problem, number, Freedom(), refuses=refuses)
    assert len(offered) > 100
    for case in offered:
        assert Case.from_json(case.to_json()) == case


@pytest.mark.parametrize(("sizes", "least"), [((1, 1, 1, 65), 8), ((1, 1, 130, 257), 4), ((1, 2, 300, 300), 2)])
def test_a_large_problem_has_few_variants_and_more_while_they_are_worth_it(
    sizes: tuple[int, int, int, int], least: int
) -> None:
    op, problem = ops()["exp"], Problem({}, "f32", {"x": sizes}, sizes)
    assert len(cases_of(op, problem, 1, Freedom())) == least
    assert len(cases_of(op, problem, 1, Freedom(), more=lambda: True)) == 8
    worth = iter([True, False, True])
    assert len(cases_of(op, problem, 1, Freedom(), more=lambda: next(worth))) == min(least + 1, 8)


@OP_NAMES
def test_every_drawn_case_is_one_that_its_op_accepts(op: str) -> None:
    for case in drawn_cases(op, 600, 1 << 20):
        OPS[op].check(case)
        assert case.op == op
        for name, layout in case.layouts.items():
            assert layout.dtype in OPS[op].argument_dtypes.get(name, (case.dtype,))


@OP_NAMES
@pytest.mark.parametrize("max_bytes", [1 << 20, 64 << 20])
def test_drawn_cases_keep_to_max_bytes(op: str, max_bytes: int) -> None:
    for case in drawn_cases(op, 300, max_bytes):
        assert case.nbytes <= max_bytes


@pytest.mark.parametrize("op", [op for op in OPS if op != "ssm_conv"])  # whose outermost sizes are 1 by definition
def test_outer_dimensions_are_above_1_in_most_draws(op: str) -> None:
    problems = problems_of(op, 1 << 20, 1000)
    looked_at = "a" if op in ("add", "mul") else list(problems[0].shapes)[-1]  # their b has 1 where it is repeated
    for axis in (0, 1):
        sizes = [problem.shapes[looked_at][axis] for problem in problems]
        assert np.mean([size > 1 for size in sizes]) > 0.65


@OP_NAMES
def test_zero_sizes_are_reached(op: str) -> None:
    drawn = itertools.chain.from_iterable(problems_of(op, 1 << 16, count) for count in (150, 1500))
    assert any(0 in shape for problem in drawn for shape in problem.shapes.values())


@OP_NAMES
def test_each_slice_is_kept_alone_now_and_then_and_only_where_there_are_others(op: str) -> None:
    cases = drawn_cases(op, 800, 1 << 16)
    assert 0.05 < np.mean([case.keep is not None for case in cases]) < 0.2
    for case in cases:
        if case.keep is not None:
            counts = [layout.shape[0] * layout.shape[1] for layout in case.inputs.values()]
            assert max(counts) > 1
            assert case.keep < max(counts)


def problems_of(op: str, max_bytes: int, count: int = 1500) -> list[Problem]:
    return problems_drawn(OPS[op], Freedom(max_bytes=max_bytes), count)


@pytest.mark.parametrize(("op", "argument"), [("acc", "b"), ("cumsum", "x"), ("solve_tri", "a")])
def test_sizes_around_the_edges_are_reached(op: str, argument: str) -> None:
    problems = problems_of(op, 64 << 20)
    reached = {problem.shapes[argument][3 - int(problem.params.get("axis", 0))] for problem in problems}
    assert reached >= {edge for edge in EDGES if edge <= 33}


@pytest.mark.parametrize(("above", "share"), [(32, 0.15), (256, 0.04), (512, 0.03), (1024, 0.008)])
def test_rows_longer_than_a_tile_are_not_rare(above: int, share: float) -> None:
    """A fault in the carry between tiles shows only in a row longer than one tile."""
    assert np.mean([length > above for length in lengths_searched()]) >= share


@cache
def lengths_searched() -> list[int]:
    """Those that a search runs, which steers what it draws."""
    found: list[int] = []

    class Lengths(Observer):
        def verdicts(self, op: Op, target: Target, verdicts: Sequence[Verdict]) -> None:
            found.extend(it.case.inputs["x"].shape[3 - int(it.case.params["axis"])] for it in verdicts)

    with Runner(target("Good"), isolated=False) as runner:
        Search(OPS["cumsum"], runner, Settings(seed=1, examples=2000), observer=Lengths()).run()
    return found


def test_edges_stand_around_the_powers_of_two() -> None:
    for power in (8, 16, 32, 64, 128, 256, 512, 1024):
        assert {power - 1, power, power + 1} <= set(EDGES)
    assert EDGES[0] == 1


# --- simplifying ---

RECIPES = ("small_int", "index", "normal", "signed_zero", "denormal", "wide")
PLAIN: dict[str, Any] = {"order": (0, 1, 2, 3), "pads": (0, 0, 0, 0), "step": 1, "offset": 0, "repeat": ()}

shapes = st.builds(
    Departure,
    order=st.permutations(range(4)).map(tuple),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    step=st.integers(1, 3),
    offset=st.sampled_from((0, 1, 3, 4, 8, 17, 64)),
    repeat=st.sampled_from(((), (2,), (3,), (2, 3))),
)
variants_of_cumsum = st.builds(
    Variant,
    departures=st.dictionaries(st.sampled_from(("x", "out")), shapes, max_size=2),
    recipe=st.sampled_from(RECIPES),
    seed=st.integers(0, 255),
    keep=st.none() | st.integers(0, 63),
)


def traits(variant: Variant) -> tuple[int, ...]:
    """How far each trait of a variant is from the plain one."""
    found = [RECIPES.index(variant.recipe), variant.seed, 0 if variant.keep is None else variant.keep + 1]
    for name in ("x", "out"):
        shape = variant.departures.get(name, PACKED)
        turned = sum(one > other for one, other in itertools.combinations(shape.order, 2))
        found += [turned, sum(shape.pads), shape.step, shape.offset, len(shape.repeat)]
    return tuple(found)


@given(variants_of_cumsum)
def test_a_simpler_variant_is_simpler_in_some_trait_and_in_none_less_simple(variant: Variant) -> None:
    """So that no sequence of simplifications comes round in a circle."""
    own = traits(variant)
    for simpler in variant.simpler(RECIPES):
        assert traits(simpler) != own
        assert all(new <= old for new, old in zip(traits(simpler), own))


@given(variants_of_cumsum)
def test_simplifying_whatever_may_be_simplified_ends_at_the_plain_variant(variant: Variant) -> None:
    for _ in range(100):
        simpler = next(iter(variant.simpler(RECIPES)), None)
        if simpler is None:
            break
        variant = simpler
    assert traits(variant) == traits(Variant())


@given(shapes)
def test_a_failure_that_needs_one_trait_is_left_with_that_trait_alone(shape: Departure) -> None:
    for trait, plain in PLAIN.items():
        if getattr(shape, trait) == plain:
            continue
        current = shape
        while simpler := [each for each in current.simpler() if getattr(each, trait) != plain]:
            current = simpler[0]
        assert replace(current, **{trait: plain}) == PACKED


@given(shapes, st.tuples(*[st.integers(0, 4)] * 4))
def test_a_shape_without_repetition_keeps_its_elements_apart(shape: Departure, sizes: tuple[int, ...]) -> None:
    layout = replace(shape, repeat=()).layout("f32", sizes)
    assert isinstance(layout, Layout)
    assert not layout.overlaps


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 24])
def test_a_choice_of_a_departure_is_that_of_the_generator(count: int) -> None:
    """A seed gives the same variants as it always has."""
    one, other = Random(count), Random(count)
    options = range(count)
    assert [one_of(options, one.getrandbits) for _ in range(50)] == [other.choice(options) for _ in range(50)]
