"""Values: recipes repeat, elements that share an address agree, and `keep` leaves one slice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opconform.harness.model.buffers import Buffers, Plan, unwritten
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DTYPES, F32
from opconform.harness.model.layouts import Layout, LayoutClass, contiguous_strides
from opconform.harness.model.ops import ops
from opconform.harness.model.values import FINITE_RECIPES, INTEGER_RECIPES, RECIPES, data_of, inputs_of, recipes_of
from tests.judge import OPS, Bench, drawn_cases
from tests.kernels.correct import Correct

OP_NAMES = pytest.mark.parametrize("op", OPS)
CUMSUM = {"axis": 0, "exclusive": False, "reverse": False}


def cumsum_case(layout: Layout, **fields: object) -> Case:
    return replace(Case("cumsum", CUMSUM, {"x": layout}, {"out": layout.packed()}), **fields)  # type: ignore[arg-type]


def solve_case(n: int = 5, batch: tuple[int, int] = (2, 2), **params: bool) -> Case:
    shapes = (*batch, n, n), (*batch, n, 3) if params.get("left", True) else (*batch, 3, n)
    a, b = (Layout.contiguous("f32", shape) for shape in shapes)
    return Case("solve_tri", {"left": True, "lower": True, "unit": False, **params}, {"a": a, "b": b}, {"out": b})


@OP_NAMES
def test_the_same_case_has_the_same_values(op: str) -> None:
    for case in drawn_cases(op, 100, 1 << 16):
        one, other = inputs_of(case, OPS[op]), inputs_of(replace(case), OPS[op])
        assert data_of(one) == data_of(other)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "index"])
def test_another_seed_gives_other_values(recipe: str) -> None:
    case = cumsum_case(Layout.contiguous("f32", (1, 1, 1, 64)), recipe=recipe)
    found = {inputs_of(replace(case, seed=seed), OPS["cumsum"])["x"].tobytes() for seed in range(5)}
    assert len(found) == 5


@pytest.mark.parametrize(
    ("recipe", "dtype"),
    [
        (recipe, name)
        for name, dtype in DTYPES.items()
        for recipe in (FINITE_RECIPES if dtype.is_float else INTEGER_RECIPES)
        if dtype.block == 1
    ],
)
def test_every_recipe_gives_finite_values_of_every_type(recipe: str, dtype: str) -> None:
    layout = Layout.contiguous(dtype, (2, 3, 17, 33))
    for seed in range(5):
        raw = inputs_of(cumsum_case(layout, recipe=recipe, seed=seed), OPS["cumsum"])["x"]
        assert raw.dtype == layout.type.raw
        assert raw.shape == layout.shape
        assert np.isfinite(layout.type.decode(raw)).all()


def test_no_recipe_draws_the_poison_or_the_unwritten_integer() -> None:
    layout = Layout.contiguous("i32", (2, 3, 17, 33))
    for recipe in INTEGER_RECIPES:
        raw = inputs_of(cumsum_case(layout, recipe=recipe), OPS["cumsum"])["x"]
        assert not np.isin(raw, [0xA5A5A5A5, 0x5BADC0DE]).any()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_denormals_are_denormal_and_wide_values_are_wide(dtype: str) -> None:
    layout = Layout.contiguous(dtype, (1, 1, 32, 32))
    tiny = layout.type.smallest_normal
    values = {
        name: np.abs(layout.type.decode(inputs_of(cumsum_case(layout, recipe=name), OPS["cumsum"])["x"]))
        for name in ("denormal", "wide", "signed_zero")
    }
    assert 0.3 < np.mean((values["denormal"] < tiny) & (values["denormal"] > 0)) < 0.9
    assert values["wide"].max() / values["wide"][values["wide"] > 0].min() > 2.0**13
    assert set(values["signed_zero"].flat) == {0.0, 1.0}


def test_signed_zeros_of_both_signs_are_drawn() -> None:
    raw = inputs_of(cumsum_case(Layout.contiguous("f32", (1, 1, 8, 8)), recipe="signed_zero"), OPS["cumsum"])["x"]
    assert {0x00000000, 0x80000000} <= set(raw.flat)


def test_index_values_name_their_places() -> None:
    layout = Layout.contiguous("f32", (2, 3, 4, 5))
    raw = inputs_of(cumsum_case(layout, recipe="index"), OPS["cumsum"])["x"]
    assert F32.decode(raw).reshape(-1).tolist() == list(range(1, 121))


def test_an_unknown_recipe_is_refused_with_the_list() -> None:
    with pytest.raises(CaseError, match="small_int, index"):
        inputs_of(cumsum_case(Layout.contiguous("f32", (1, 1, 1, 1)), recipe="salty"), OPS["cumsum"])


@OP_NAMES
def test_elements_that_share_an_address_hold_one_value(op: str) -> None:
    """What a backend reads from memory is what the reference is given."""
    shared = 0
    for number, case in enumerate(drawn_cases(op, 800, 1 << 14)):
        if number >= 200 and shared > 10:
            break
        values, plan = inputs_of(case, OPS[op]), Plan.of(case)
        buffers = Buffers(case, np.zeros(plan.size, np.uint8), plan)
        buffers.fill(values)
        for name in case.inputs:
            assert np.array_equal(buffers.raw(name), values[name])
        shared += any(layout.kind is LayoutClass.BROADCAST for layout in case.inputs.values())
    assert shared > 10


@pytest.mark.parametrize(
    "strides",
    [(64, 32, 0, 4), (64, 32, 16, 0), (0, 0, 0, 0), (64, 32, 4, 4), (64, 32, 8, 4), (4, 4, 4, 4)],
    ids=["repeated rows", "one element a row", "one element", "sliding window", "sliding by two", "all slide"],
)
@pytest.mark.parametrize("exact", [False, True], ids=["recipe", "exact bytes"])
def test_a_right_kernel_passes_on_any_overlapping_input(strides: tuple[int, ...], exact: bool) -> None:
    layout = Layout("f32", (2, 2, 4, 4), strides)
    case = cumsum_case(layout, recipe="index")
    if exact:
        case = case.with_data({"x": np.arange(layout.size, dtype=np.float32).tobytes()})
    assert Bench(case).passes(Correct())


@OP_NAMES
def test_keep_leaves_the_values_of_one_slice_and_nan_elsewhere(op: str) -> None:
    seen = 0
    for number, case in enumerate(drawn_cases(op, 800, 1 << 14)):
        if number >= 200 and seen > 20:
            break
        if case.keep is None or any(layout.kind is LayoutClass.BROADCAST for layout in case.inputs.values()):
            continue
        kept, all_of = inputs_of(case, OPS[op]), inputs_of(replace(case, keep=None), OPS[op])
        for name, layout in case.inputs.items():
            count = layout.shape[0] * layout.shape[1]
            if layout.size == 0:
                continue
            seen += 1
            mine, whole = (raw[name].reshape(count, -1) for raw in (kept, all_of))
            for index in range(count):
                if index == case.keep % count:
                    assert np.array_equal(mine[index], whole[index])
                else:
                    assert np.isnan(layout.type.decode(mine[index])).all()
    assert seen > 5


def test_a_kept_slice_keeps_its_values_where_an_input_is_repeated_over_the_slices() -> None:
    """Otherwise every element is NaN, and the check on isolation sees nothing."""
    layout = Layout("f32", (2, 2, 1, 3), (0, 12, 12, 4))
    bench = Bench(cumsum_case(layout, keep=2))
    expected = bench.expected().value.reshape(4, -1)
    assert np.isfinite(expected[2]).all()


@pytest.mark.parametrize("shape", [(0, 2, 1, 1), (2, 0, 1, 1), (2, 2, 0, 1), (2, 2, 1, 0)])
def test_keep_of_an_empty_input_is_nothing(shape: tuple[int, ...]) -> None:
    assert inputs_of(cumsum_case(Layout.contiguous("f32", shape), keep=1), OPS["cumsum"])["x"].size == 0


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("recipe", FINITE_RECIPES)
def test_solve_tri_gets_a_triangle_it_can_solve_and_nan_where_it_must_not_read(
    recipe: str, left: bool, lower: bool, unit: bool
) -> None:
    n = 17
    case = replace(solve_case(n, left=left, lower=lower, unit=unit), recipe=recipe)
    a = F32.decode(inputs_of(case, OPS["solve_tri"])["a"])
    for i in range(n):
        for j in range(n):
            inside = (j < i) if lower else (j > i)
            read = inside or (i == j and not unit)
            assert np.isfinite(a[..., i, j]).all() == read
            if inside:
                assert (np.abs(a[..., i, j]) <= 1 / np.sqrt(n)).all()
            elif read:
                assert ((np.abs(a[..., i, i]) >= 1) & (np.abs(a[..., i, i]) < 2)).all()
    if recipe != "edges":  # whose largest numbers make solutions that float32 does not have
        solution = Bench(case).expected()
        assert np.isfinite(solution.bound).all()


def test_solve_tri_of_257_stays_inside_float32() -> None:
    for recipe in (name for name in FINITE_RECIPES if name != "edges"):
        expected = Bench(replace(solve_case(257, (1, 2)), recipe=recipe)).expected()
        assert np.isfinite(expected.bound).all()


def test_exact_bytes_are_taken_as_they_are() -> None:
    layout = Layout("f32", (1, 1, 2, 3), (*contiguous_strides((1, 1), 96), 32, 8), 4)
    bytes_in = np.array([1, 2, 3, np.nan, np.inf, -0.0], np.float32).tobytes()
    case = cumsum_case(layout, recipe="no such recipe").with_data({"x": bytes_in})
    assert inputs_of(case, OPS["cumsum"])["x"].tobytes() == bytes_in


# --- special values ---


def special(dtype: str, seed: int, recipe: str = "special") -> tuple[np.ndarray, np.ndarray]:
    """Raw elements, and what they are."""
    layout = Layout.contiguous(dtype, (2, 3, 17, 33))
    raw = inputs_of(cumsum_case(layout, recipe=recipe, seed=seed), OPS["cumsum"])["x"]
    return raw, layout.type.decode(raw)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_infinities_and_nan_of_many_payloads_are_drawn(dtype: str) -> None:
    raw, values = special(dtype, 1)
    assert {np.inf, -np.inf} <= set(values.flat)
    nans = raw[np.isnan(values)]
    ones = (1 << (8 * DTYPES[dtype].itemsize - 1)) - 1
    assert ones in nans  # adding half a unit makes −0 of it
    assert (nans & 3 == 1).any()  # cut off, an f32 of the kind is an infinity
    assert len(set(nans.flat)) > 10
    assert unwritten(DTYPES[dtype]) not in nans
    assert 0.5 < np.mean(np.isfinite(values)) < 1


@pytest.mark.parametrize("recipe", ["special", "edges"])
def test_the_edges_of_f16_and_the_largest_number_are_drawn(recipe: str) -> None:
    sizes = set(np.abs(special("f32", 2, recipe)[1]).flat)
    assert {65504.0, 65520.0, 2.0**-24, 2.0**-25, F32.smallest_normal} <= sizes
    assert (F32.largest in sizes) == (recipe == "special")  # where sums may overflow, nothing could be demanded


def test_what_is_no_float_has_no_edges() -> None:
    layout = Layout.contiguous("i32", (1, 1, 8, 8))
    for recipe in ("special", "edges"):
        usual = inputs_of(cumsum_case(layout, recipe="normal"), OPS["cumsum"])["x"]
        assert np.array_equal(inputs_of(cumsum_case(layout, recipe=recipe), OPS["cumsum"])["x"], usual)


def test_infinities_are_drawn_only_where_they_stay_in_their_place() -> None:
    drawn = {name: "special" in recipes_of(op, "f32") for name, op in ops().items()}
    assert {name for name in ("acc", "set", "cont", "cpy", "pad", "add", "silu", "exp") if drawn[name]} == {
        *("acc", "set", "cont", "cpy", "pad", "add", "silu", "exp")
    }
    assert not any(drawn[name] for name in ("cumsum", "sum_rows", "norm", "l2_norm", "solve_tri", "ssm_conv"))


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_a_seed_gives_the_values_that_choice_would_draw(dtype: str) -> None:
    """Cases in files name a recipe and a seed: what these give stays."""
    shape, its, signs = (2, 3, 5, 7), DTYPES[dtype], [1.0, -1.0]

    def edges(rng: np.random.Generator) -> np.ndarray:
        values = rng.standard_normal(shape)
        numbers = np.array([65504.0, 65519.0, 65520.0, 2.0**-24, 2.0**-25, its.smallest_normal, 0.0])
        chosen = np.clip(rng.choice(numbers, shape) * rng.choice(signs, shape), None, its.largest)
        chosen = np.where(chosen < -its.largest, its.largest, chosen)
        return np.where(rng.random(shape) < 1 / 8, chosen, values)

    def special(rng: np.random.Generator) -> np.ndarray:
        values = edges(rng)
        odd = rng.choice([np.inf, -np.inf, np.nan, its.largest, -its.largest], shape)
        return np.where(rng.random(shape) < rng.choice([1 / 8, 1 / 50]), odd, values)

    for seed in range(8):
        one, other = np.random.default_rng(seed), np.random.default_rng(seed)
        assert np.array_equal(RECIPES["edges"](one, shape, its, 0), edges(other))
        assert np.array_equal(RECIPES["special"](one, shape, its, 0), special(other), equal_nan=True)
        assert one.bit_generator.state == other.bit_generator.state
