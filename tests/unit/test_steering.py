"""Limits steer what is drawn: what a device cannot take is not drawn, and what it can take still is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from opconform.harness.draw.sample import batches_drawn
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import LayoutClass
from opconform.harness.model.limits import Freedom, Limit
from opconform.harness.model.ops import ops

OPS = ops()


def limit(op: str, subject: str, allowed: Any) -> Limit:
    return Limit(op, subject, allowed, f"{subject} must be {allowed}", "the manual")


def drawn(op: str, limits: Sequence[Limit], count: int = 50) -> tuple[list[Case], int]:
    """The cases of `count` problems, and how many problems were turned away."""
    batches = list(batches_drawn(OPS[op], Freedom(tuple(limits), 1 << 20), count, 1))
    return [case for batch in batches for case in batch], sum(not batch for batch in batches)


@pytest.mark.parametrize(
    ("op", "limits"),
    [
        ("acc", [limit("acc", "aligned", (True,))]),
        ("acc", [limit("acc", "b", LayoutClass.ROWS), limit("acc", "aligned", (True,))]),
        ("ssm_conv", [limit("ssm_conv", "aligned", (True,)), limit("ssm_conv", "x", LayoutClass.ROWS)]),
        ("gated_delta_net", [limit("gated_delta_net", "alike", (True,))]),
        ("gated_delta_net", [limit("gated_delta_net", "alike", (True,)), limit("gated_delta_net", "aligned", (True,))]),
        ("mla_absorbed", [limit("mla_absorbed", "form_mask", ("flash none", "two_part f16"))]),
        ("cpy_blocks", [limit("cpy_blocks", "top_scales", (False,))]),
        ("top_k", [limit("top_k", "single", (False,))]),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(each.subject for each in value),
)
def test_what_limits_forbid_is_not_drawn_and_no_draw_is_wasted(op: str, limits: list[Limit]) -> None:
    cases, turned_away = drawn(op, limits)
    assert not any(each.forbids(case, OPS[op].traits(case)) for each in limits for case in cases)
    assert turned_away <= len(cases) / 100
    assert len(cases) > 200


def test_an_aligned_offset_is_drawn_where_offsets_must_be_aligned() -> None:
    cases, _ = drawn("acc", [limit("acc", "aligned", (True,))])
    offsets = Counter(layout.offset for case in cases for layout in case.layouts.values())
    assert sum(count for offset, count in offsets.items() if offset) > len(cases) / 10


def test_strided_inputs_are_drawn_where_two_must_be_laid_out_alike() -> None:
    cases, _ = drawn("gated_delta_net", [limit("gated_delta_net", "alike", (True,))])
    assert sum(case.inputs["q"].kind > LayoutClass.CONTIGUOUS for case in cases) > len(cases) / 10


def test_without_limits_every_variant_is_as_it_was_drawn() -> None:
    cases, turned_away = drawn("acc", [])
    assert not turned_away
    assert {layout.offset % 256 == 0 for case in cases for layout in case.layouts.values()} == {True, False}


def test_the_first_limit_that_forbids_a_case_is_named() -> None:
    limits = [
        limit("acc", "view", ("block", "nested")),
        limit("acc", "b", LayoutClass.ROWS),
        limit("acc", "aligned", (True,)),
        limit("acc", "b", LayoutClass.CONTIGUOUS),
    ]
    cases = [case for batch in batches_drawn(OPS["acc"], Freedom(), 40, 1) for case in batch]
    named: Counter[str] = Counter()
    for order in (limits, limits[::-1]):
        freedom = Freedom(tuple(order))
        for case in cases:
            traits = OPS["acc"].traits(case)
            first = next((each for each in order if each.forbids(case, traits)), None)
            assert freedom.forbids(case, OPS["acc"].traits) is first
            named[first.subject if first else ""] += 1
    assert set(named) == {"", "view", "b", "aligned"}
