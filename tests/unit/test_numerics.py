"""What a device promises of its arithmetic is looked at before anything is computed with it."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from opconform.harness.model.numerics import EXACT, Numerics

WHOLE = ("inverted_blocks", "delta_chunk", "block_operands")
A_NUMBER, A_WHOLE_NUMBER = "a number from 0 on", "a whole number from 0 to 2^31 − 1"


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *((name, 16.0, A_WHOLE_NUMBER) for name in WHOLE),
        *((name, True, A_WHOLE_NUMBER) for name in WHOLE),
        *((name, -1, A_WHOLE_NUMBER) for name in WHOLE),
        *((name, 2**31, A_WHOLE_NUMBER) for name in WHOLE),
        pytest.param("exp_ulps", 10**400, A_NUMBER, id="exp_ulps-too-large-for-a-float"),
        ("exp_ulps", float("inf"), A_NUMBER),
        ("exp_ulps", float("nan"), A_NUMBER),
        ("exp_ulps", "3", A_NUMBER),
        ("exp_ulps", False, A_NUMBER),
        ("any_rounding", 1, "True or False"),
    ],
)
def test_a_promise_of_another_type_is_refused(name: str, value: object, wanted: str) -> None:
    says = f"Numerics.{name} is {value!r:.80}; it must be {wanted}"
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        Numerics(**{name: value}).checked()  # type: ignore[arg-type]


def test_what_can_be_meant_is_taken() -> None:
    assert EXACT.checked() is EXACT
    assert Numerics(inverted_blocks=128, delta_chunk=64, block_operands=32, exp_ulps=3, log_ulps=1e30).checked()


def test_every_whole_number_is_looked_at() -> None:
    assert {item.name for item in fields(Numerics) if item.type == "int"} == set(WHOLE)
