"""A failing case made smaller by itself: sizes at their true minimum, plain layouts and values, and still a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from opconform.harness.draw.known import known_cases
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops
from opconform.harness.model.values import data_of, inputs_of, recipes_of
from opconform.harness.search.smaller import smallest, why_sizes_stay
from tests.samples import acc


def shrunk(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The smallest case, and whether every case that was asked about is one."""
    op = ops()[case.op]
    asked: set[str] = set()

    def ask(candidate: Case) -> bool:
        op.check(candidate)
        assert not any(layout.overlaps for layout in candidate.outputs.values())
        assert f"{candidate.key}{candidate.data}" not in asked
        asked.add(f"{candidate.key}{candidate.data}")
        Case.from_json(candidate.to_json())
        return fails(candidate)

    assert fails(case)
    found = smallest(op, case, recipes_of(op, case.dtype), ask)
    assert fails(found)
    return found


def ne(case: Case, name: str = "b") -> tuple[int, ...]:
    return case.inputs[name].ne


@pytest.mark.parametrize("least", [2, 3, 4, 17, 41, 62, 63])
def test_a_size_is_reduced_to_its_true_minimum(least: int) -> None:
    found = shrunk(acc(63, 5, 3, 2), lambda case: ne(case)[0] >= least)
    assert found.inputs == acc(least).inputs


def test_every_axis_is_reduced_and_the_view_follows() -> None:
    found = shrunk(acc(60, 33, 4, 9, a=(64, 40, 5, 12)), lambda case: ne(case)[3] > 1)
    assert found == acc(1, 1, 1, 2)
    found = shrunk(acc(60, 33, 4, 9, a=(64, 40, 5, 12)), lambda case: ne(case, "a")[1] > 7)
    assert found.inputs == acc(1, 1, 1, 1, a=(1, 8)).inputs


def test_a_view_that_needs_its_place_keeps_it() -> None:
    case = acc(4, 2, a=(9, 5, 3))
    case = replace(case, params={**case.params, "offset": 9 * 5 * 4 + 2 * 9 * 4})
    assert shrunk(case, lambda case: int(case.params["offset"]) > 0).params["offset"] == 4
    assert shrunk(case, lambda case: ne(case)[0] > 1).params["offset"] == 0


def test_layouts_and_values_become_plain_unless_the_failure_needs_them() -> None:
    padded = Layout("f32", (2, 2, 3, 8), (4096, 1024, 128, 8), 64)
    case = acc(8, 3, 2, 2)
    case = replace(case, inputs={**case.inputs, "b": padded}, recipe="wide", seed=77, keep=1)
    plain = shrunk(case, lambda case: ne(case)[0] > 1)
    assert (plain.inputs, plain.recipe, plain.seed, plain.keep) == (acc(2).inputs, "small_int", 0, None)
    strided = shrunk(case, lambda case: ne(case)[0] > 1 and case.inputs["b"].nb[0] > 4)
    assert strided.inputs["b"] == Layout("f32", (1, 1, 1, 2), strided.inputs["b"].strides, 0)
    assert strided.inputs["b"].nb[0] == 8
    gap = shrunk(case, lambda case: ne(case)[1] > 1 and case.inputs["b"].nb[1] > 4 * ne(case)[0])
    assert (ne(gap), gap.inputs["b"].nb[1]) == ((1, 2, 1, 1), 8)
    kept = shrunk(case, lambda case: case.recipe == "wide" and case.inputs["b"].offset > 0)
    assert (kept.recipe, kept.seed, kept.inputs["b"].offset, ne(kept)) == ("wide", 0, 4, (1, 1, 1, 1))


def test_in_place_stays_where_the_failure_needs_it() -> None:
    case = acc(4, 3, 2, 2, inplace=True)
    found = shrunk(case, lambda case: case.inplace == "a" and ne(case)[2] > 1)
    assert found == acc(1, 1, 2, inplace=True)
    assert shrunk(case, lambda case: ne(case)[2] > 1) == acc(1, 1, 2)


def test_exact_bytes_are_given_up_where_a_recipe_fails_too_and_kept_where_none_does() -> None:
    case = acc(4, 3)
    exact = case.with_data(data_of(inputs_of(case, ops()["acc"])))
    assert shrunk(exact, lambda case: ne(case)[1] > 1) == acc(1, 2)
    found = shrunk(exact, lambda case: case.data is not None)
    assert (found, found.data) == (exact, exact.data)


#: The sizes that an op has no smaller ones of: rows of 4 streams with 2 weights each and 4 × 4 of their mixture.
LEAST = {"dsv4_hc_comb": 24}


@pytest.mark.parametrize("name", [known.id for known in known_cases().values() if known.case.nbytes < 1 << 22])
def test_every_known_case_shrinks_to_a_case(name: str) -> None:
    case = known_cases()[name].case
    found = shrunk(case, lambda case: True)
    assert found.nbytes <= (case if found.inplace else replace(case, inplace=None)).nbytes
    rows = max(max(layout.ne) for layout in case.layouts.values())
    if rows > 8:
        least = max(LEAST.get(case.op, 1), *(layout.type.block for layout in found.layouts.values()))
        assert max(max(layout.ne) for layout in found.layouts.values()) < max(rows, least + 1)


def test_a_row_of_blocks_shrinks_by_whole_blocks() -> None:
    """A case with rows that are no whole blocks cannot be laid out."""
    a, b = Layout.contiguous("q4_0", (1, 1, 3, 96)), Layout.contiguous("f32", (1, 1, 2, 96))
    case = Case("mul_mat", {}, {"a": a, "b": b}, {"out": Layout.contiguous("f32", (1, 1, 2, 3))})
    tried: list[Case] = []
    found = smallest(ops()["mul_mat"], case, ["small_int"], lambda it: not tried.append(it))  # type: ignore[func-returns-value]
    assert all(it.inputs["a"].shape[-1] % 32 == 0 for it in tried)
    assert found.inputs["a"].shape[:3] == (1, 1, 1)


def test_why_sizes_stay_is_said_only_where_they_do() -> None:
    case = acc(3)
    assert why_sizes_stay(case) == ""
    assert "those of two cases do not change together" in why_sizes_stay(replace(case, before=acc(2)))
    for one, large in (
        (replace(acc(1), shares={"b": "a"}), replace(case, shares={"b": "a"})),
        (exact(acc(1)), exact(case)),
    ):
        assert why_sizes_stay(one) == ""
        assert why_sizes_stay(large).endswith(": a smaller case may fail too")


def exact(case: Case) -> Case:
    return case.with_data(data_of(inputs_of(case, ops()[case.op])))
