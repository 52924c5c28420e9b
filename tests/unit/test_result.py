"""Results and failures travel as JSON: between pytest's processes, and into files."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest

from opconform.harness.explain.failure import Failure, Worst
from opconform.harness.model.case import Case
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.ops import ops
from opconform.harness.model.values import data_of, inputs_of
from opconform.harness.run.runner import Runner
from opconform.harness.search.result import KnownBug, Result, Tally
from tests.samples import acc, target

NUMBERS = [0.0, -0.0, 1.5, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan]


def failure_of(name: str, case: Case, **how: Any) -> Failure:
    """The failure of one case on a sample backend."""
    from opconform.harness.explain.failure import describe

    op = ops()[case.op]
    with Runner(target(name), isolated=False, **how) as runner:
        return describe(op, runner, runner.verdicts(op, [case])[0])


def strict_json(plain: Any) -> Any:
    """`plain` as another program reads it: JSON has no NaN and no infinity."""
    return json.loads(json.dumps(plain, allow_nan=False))


def same(one: float, other: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or (
        one == other and math.copysign(1, one) == math.copysign(1, other)
    )


@pytest.mark.parametrize("number", NUMBERS)
def test_every_number_of_a_failure_comes_back(number: float) -> None:
    found = failure_of("IgnoresNe3", acc(2, 1, 1, 2))
    assert found.wrong is not None
    worst = Worst((1, 0, 0, 0), got=number, want=number, error=number, bound=number)
    found = replace(found, wrong=replace(found.wrong, worst=worst, nmse=number))
    again = Failure.from_json(strict_json(found.to_json()))
    assert again.wrong is not None
    back = again.wrong.worst
    assert all(same(number, got) for got in (back.got, back.want, back.error, back.bound, again.wrong.nmse))


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("IgnoresNe3", acc(5, 3, 2, 2)),
        ("IgnoresNe3", acc(1, 1, 1, 2, inplace=True)),
        ("Raises", acc(3)),
        ("IgnoresNe3", replace(acc(2, 1, 2, 2), keep=3)),
    ],
)
def test_a_failure_comes_back_from_json_as_it_was(name: str, case: Case) -> None:
    found = failure_of(name, case)
    again = Failure.from_json(strict_json(found.to_json()))
    assert repr(again) == repr(found)  # NaN differs from itself, its text does not
    assert again.case.data == found.case.data == data_of(inputs_of(case, ops()["acc"]))
    assert again.kind == found.kind


def test_a_result_comes_back_from_json_as_it_was() -> None:
    result = Result(
        op="acc",
        target="ggml:Vulkan0",
        device="a device (driver 1)",
        tally=Tally(7, 2, Counter({"no bf16": 5, "no": 1}), free=3, seconds=1.25),
        failure=failure_of("IgnoresNe3", acc(2, 1, 1, 2)),
        failed_known=("acc/kb001",),
        known_bugs=(KnownBug("acc/kb116", "reads packed", True),),
        limits=("b must be contiguous",),
        left_out=("cumsum/kb053",),
    )
    again = Result.from_json(strict_json(result.to_json()))
    assert again == result
    assert isinstance(again.tally.unsupported, Counter)
    assert again.tally.executed == 9


def test_an_empty_result_comes_back_too() -> None:
    result = Result("acc", "x:0", "", Tally())
    assert Result.from_json(strict_json(result.to_json())) == result


def test_a_failure_says_what_the_packed_twin_does() -> None:
    plain = failure_of("IgnoresNe3", acc(2, 1, 1, 2))
    assert (plain.packed_twin, plain.replay_options) == ("is the case itself", ())
    rows = replace(acc(3).inputs["b"], strides=(16, 16, 16, 4), shape=(2, 1, 1, 3))
    case = acc(3, 1, 1, 2)
    strided = replace(case, inputs={**case.inputs, "b": rows})
    assert failure_of("KnownBug", strided, strict=True).packed_twin == "passes"
    assert failure_of("IgnoresNe3", strided).packed_twin == "fails"


def test_the_command_for_a_large_case_raises_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opconform.harness.explain.failure.DEFAULT_MAX_BYTES", 40)
    assert failure_of("IgnoresNe3", acc(2, 1, 1, 2), max_bytes=1 << 30).replay_options == (f"--max-bytes {1 << 30}",)


def test_the_map_of_a_large_output_is_cut_to_where_it_is_wrong() -> None:
    wrong = failure_of("IgnoresNe3", acc(300, 200, 1, 2)).wrong
    assert wrong is not None
    assert wrong.map_is_cut
    assert (len(wrong.map), len(wrong.map[0])) == (24, 96)
    assert all(all(row) for row in wrong.map)
    assert (wrong.count, wrong.slices_wrong, wrong.slices_total) == (300 * 200, 1, 2)


def test_a_tally_counts_by_the_arithmetic_that_is_declared_and_travels_with_it() -> None:
    half = Numerics(roundoff=2.0**-11, flushes_denormals=True)
    with Runner(target("Good"), isolated=False) as runner:
        verdict = runner.verdicts(ops()["acc"], [acc(3)])[0]
    tally = Tally()
    for numerics in (Numerics(), half, half):
        tally.count(replace(verdict, numerics=numerics))
    assert tally.looser == {"lower precision: u = 2^-11, flushes denormals": 2}
    assert Tally.from_json(strict_json(tally.to_json())) == tally


@pytest.mark.parametrize("field", [field.name for field in fields(Numerics)])
def test_whatever_is_looser_than_float32_is_said(field: str) -> None:
    usual = getattr(Numerics(), field)
    looser = replace(Numerics(), **{field: True if usual is False else max(2 * usual, 2.0**-11)})
    assert looser.looser
    assert Numerics().looser == ""
