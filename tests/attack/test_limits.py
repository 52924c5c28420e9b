"""Limits that cannot be meant are a plain reason on their device, and other ops run on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opconform.harness.model.limits import Limit
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Device, Unavailable
from opconform.harness.run.limits import limits_of
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings
from tests.samples import acc


def runner(name: str, strict: bool = False) -> Runner:
    spec = f"{Path(__file__).with_name('evil.py')}:{name}"
    return Runner(Target(spec, Device("0", "NumPy")), isolated=False, strict=strict)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "LimitsAWord",
            "a limit is on 'colour', which is no parameter or trait of acc; it has aligned, dtype, empty, ",
        ),
        ("LimitsAnArgumentByValues", "a limit is on 'b', which is no parameter or trait of acc"),
        ("LimitsTheLayoutOfNothing", "a limit is on 'c', which is no argument of acc; it has a, b, out"),
        ("PinsNothing", "a limit on 'b' pins 'acc/none', which is no known case"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_told_before_anything_runs(name: str, says: str, strict: bool) -> None:
    with runner(name, strict) as device:
        with pytest.raises(Unavailable) as found:
            device.limits(ops()["acc"])
        assert found.value.reason.startswith(says)
        assert device.limits(ops()["cumsum"]) == ()


def test_a_limit_of_all_ops_is_on_those_that_have_its_subject() -> None:
    with runner("LimitsTheAxisOfAnyOp") as device:
        assert device.verdicts(ops()["acc"], [acc(3)])[0].passed
        assert device.limits(ops()["acc"]) == ()
        assert [limit.subject for limit in device.limits(ops()["cumsum"])] == ["axis"]


def test_the_traits_of_an_op_without_known_cases_are_those_of_a_case_drawn() -> None:
    mine = replace(ops()["acc"], name="mine")
    limit = Limit("mine", "inplace", (False,), "r", "s")
    assert limits_of(mine, [limit]) == (limit,)
    with pytest.raises(Unavailable, match=r"no parameter or trait of mine; it has .*inplace"):
        limits_of(mine, [replace(limit, subject="colour")])


def test_limits_that_leave_nothing_to_draw_are_told() -> None:
    op = ops()["cumsum"]
    with runner("LimitsTheAxisToNone") as device, pytest.raises(Unavailable) as found:
        Search(op, device, Settings(examples=10)).run()
    assert found.value.reason == "the limits leave nothing of axis to draw"
