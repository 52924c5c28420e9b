"""A backend that keeps what it made of a case is caught, and the report holds the case that must run before."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opconform.harness.draw.known import checked
from opconform.harness.explain.failure import Failure
from opconform.harness.explain.history import kept
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Device
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings
from opconform.reports.repro.bundle import files_of
from tests.samples import acc

KEEPING = Path(__file__).parents[1] / "backends" / "keeping.py"
MISSES = ("MissesOffset", "MissesOuterStride", "MissesParameter", "MissesValues", "MissesValuesOfTheLast")


def runner(name: str) -> Runner:
    return Runner(Target(f"{KEEPING}:{name}", Device("0", name, {})), isolated=False)


def found(name: str, op: str, seed: int = 1) -> Failure | None:
    with runner(name) as one:
        return Search(ops()[op], one, Settings(examples=1000, seed=seed)).run().failure


def verdict(name: str, case: Case) -> Verdict:
    """The verdict of a backend that has run nothing yet."""
    with runner(name) as one:
        return one.verdicts(ops()[case.op], [case])[0]


@pytest.mark.parametrize("op", ["acc", "cumsum"])
@pytest.mark.parametrize("name", MISSES)
def test_what_a_backend_misses_between_two_cases_is_found_with_both(name: str, op: str) -> None:
    failure = found(name, op)
    assert failure is not None
    assert failure.kind == "STATE KEPT"
    case = Case.from_json(failure.case.to_json())
    assert case.before is not None
    assert "those of two cases do not change together: a smaller case may fail too" in failure.unfinished
    assert verdict(name, case).kind == "STATE KEPT"
    assert verdict(name, replace(case, before=None)).passed
    assert verdict("MissesNothing", case).passed


def test_a_backend_that_misses_nothing_passes() -> None:
    assert found("MissesNothing", "cumsum") is None


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("MissesOffset", lambda case: [layout.strides for layout in case.layouts.values()] + [case.params]),
        ("MissesValues", lambda case: [*case.layouts.values(), case.params]),
        ("MissesParameter", lambda case: [*case.layouts.values(), case.recipe, case.seed]),
    ],
)
def test_the_two_cases_differ_in_little_more_than_what_was_missed(name: str, same: Callable[[Case], list[Any]]) -> None:
    failure = found(name, "cumsum")
    assert failure is not None
    assert failure.case.before is not None
    assert same(failure.case) == same(failure.case.before)


def test_what_a_dead_worker_kept_is_not_held_against_a_case() -> None:
    """A verdict on a case with another one before it says so only where the case fails."""
    case = replace(acc(3, 2), before=acc(3, 2, seed=1))
    assert verdict("Keeps", case).passed


# --- the case and its file ---


def test_the_case_before_is_part_of_the_case_and_of_its_file() -> None:
    case = replace(acc(3, 2), before=acc(3, 2, seed=1))
    again = Case.from_json(case.to_json())
    assert again == case
    assert again.before == case.before
    assert case.id != acc(3, 2).id
    assert " after ACC(" in str(case)
    assert checked(case) is case


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plain: plain["before"].update(op="cumsum"), "must be of 'acc'"),
        (lambda plain: plain["before"].update(before=plain["before"].copy()), "only one case runs before"),
        (lambda plain: plain.update(before=3), "case.before is a whole number"),
        (lambda plain: plain["before"].update(recipe=0), "recipe"),
    ],
)
def test_a_case_before_that_cannot_be_is_refused_in_one_line(
    change: Callable[[dict[str, Any]], None], says: str
) -> None:
    plain = replace(acc(3, 2), before=acc(3, 2, seed=1)).to_json()
    change(plain)
    with pytest.raises(CaseError, match=says):
        Case.from_json(plain)


def test_a_case_before_that_its_op_does_not_take_is_refused() -> None:
    outside = replace(acc(3, 2), params={**acc(3, 2).params, "offset": 400})
    with pytest.raises(CaseError, match="the view ends at byte"):
        checked(replace(acc(3, 2), before=outside))


def test_a_packed_twin_stands_alone() -> None:
    layout = Layout("f32", (1, 1, 2, 3), (32, 32, 16, 4))
    case = replace(acc(3, 2), before=acc(3, 2, seed=1))
    assert replace(case, inputs={**case.inputs, "b": layout}).packed().before is None


# --- what a report says of it ---


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 3}, "nothing but the values is other than"),
        ({"params": {**acc(3, 2).params, "offset": 4}}, "nothing but the parameter offset (0, now 4) is other than"),
        (
            {"inputs": {**acc(3, 2).inputs, "b": Layout("f32", (1, 1, 2, 3), (24, 24, 12, 4), 8)}},
            "the offset of b (0, now 8)",
        ),
        (
            {"inputs": {**acc(3, 2).inputs, "b": Layout("f32", (1, 1, 2, 3), (24, 24, 16, 4))}},
            "nothing but nb1 of b is",
        ),
        ({}, "the same one"),
    ],
)
def test_the_hint_names_what_was_missed(change: dict[str, Any], says: str) -> None:
    assert says in kept(replace(acc(3, 2), before=acc(3, 2), **change))


def test_a_bundle_says_why_it_has_no_script() -> None:
    failure = found("MissesValues", "acc")
    assert failure is not None
    files = files_of(failure, Target(f"{KEEPING}:MissesValues", Device("0", "", {})))
    assert "repro.py" not in files
    assert b"right after another" in files["issue.md"]
    assert json.loads(files["case.json"])["before"]["op"] == "acc"
