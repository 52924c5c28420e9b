"""The arena: which bytes belong to elements, and that all others are poison or pattern."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opconform.harness.model.buffers import ALIGNMENT, GUARD, Buffers, Plan, unwritten
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.layouts import Layout
from opconform.harness.model.values import inputs_of
from tests.judge import OPS, Bench, drawn_cases
from tests.unit.strategies import any_layouts, dtypes

OP_NAMES = pytest.mark.parametrize("op", OPS)


def owned(case: Case, plan: Plan, name: str) -> set[int]:
    """The places in the arena that the elements of an argument take, one by one."""
    layout, start = case.layouts[name], plan.slots[name].start
    return {
        start + layout.offset + sum(i * stride for i, stride in zip(place, layout.strides)) + byte
        for place in itertools.product(*(range(size) for size in layout.shape))
        for byte in range(layout.type.itemsize)
    }


def filled(case: Case) -> Buffers:
    plan = Plan.of(case)
    buffers = Buffers(case, np.full(plan.size + 100, 0x11, np.uint8), plan)
    buffers.fill(inputs_of(case, OPS[case.op]))
    return buffers


@OP_NAMES
def test_every_byte_that_no_element_of_an_input_owns_is_poison(op: str) -> None:
    for case in drawn_cases(op, 120, 1 << 13):
        buffers = filled(case)
        for name, layout in case.inputs.items():
            if name == case.inplace:
                continue
            slot = buffers.plan.slots[name]
            window = set(range(slot.start - GUARD, slot.start + slot.size + GUARD))
            gaps = buffers.memory[sorted(window - owned(case, buffers.plan, name))]
            poison = gaps[: gaps.size // layout.type.itemsize * layout.type.itemsize].view(layout.type.raw)
            assert (gaps == gaps[0]).all()
            if layout.type.is_float:
                assert np.isnan(layout.type.decode(poison)).all()


@OP_NAMES
def test_the_bytes_around_an_outputs_elements_hold_a_pattern_that_differs_from_place_to_place(op: str) -> None:
    for case in drawn_cases(op, 120, 1 << 13):
        buffers = filled(case)
        for name in case.outputs:
            slot = buffers.plan.slots[name]
            window = set(range(slot.start - GUARD, slot.start + slot.size + GUARD))
            places = np.array(sorted(window - owned(case, buffers.plan, name)))
            neighbours = places[1:][np.diff(places) == 1]
            assert (buffers.memory[neighbours] != buffers.memory[neighbours - 1]).all()


@OP_NAMES
def test_outputs_start_unwritten_and_inputs_hold_their_values(op: str) -> None:
    for case in drawn_cases(op, 120, 1 << 13):
        buffers, values = filled(case), inputs_of(case, OPS[op])
        for name, layout in case.inputs.items():
            for place in itertools.islice(np.ndindex(*layout.shape), 0, None, 7):
                start = buffers.plan.slots[name].start + layout.offset
                start += sum(i * stride for i, stride in zip(place, layout.strides))
                word = struct.unpack_from({2: "<H", 4: "<I"}[layout.type.itemsize], buffers.memory.data, start)[0]
                assert word == values[name][place]
        if case.inplace is None:
            assert (buffers.raw("out") == unwritten(case.outputs["out"].type)).all()


def test_an_in_place_output_is_its_input() -> None:
    case = next(case for case in drawn_cases("acc", 400, 1 << 13) if case.inplace and case.inputs["a"].size)
    buffers = filled(case)
    assert set(buffers.plan.slots) == {"a", "b", "out"}
    assert buffers.plan.slots["out"].start == buffers.plan.slots["a"].start
    assert owned(case, buffers.plan, "out") == owned(case, buffers.plan, "a")
    assert np.array_equal(buffers.raw("out"), inputs_of(case, OPS["acc"])["a"])
    buffers.raw("out")[...] = 5
    assert (buffers.raw("a") == 5).all()


@OP_NAMES
def test_slots_keep_apart_are_aligned_and_fill_the_arena(op: str) -> None:
    for case in drawn_cases(op, 200, 1 << 16):
        plan = Plan.of(case)
        slots = sorted({(slot.start, slot.size) for slot in plan.slots.values()})
        end = 0
        for start, size in slots:
            assert start == end + GUARD
            assert start % ALIGNMENT == 0
            end = start + size + GUARD
        assert end == plan.size
        for slot in plan.slots.values():
            assert slot.layout.end <= slot.size


@given(st.data())
def test_elements_are_read_where_the_layout_says(data: st.DataObject) -> None:
    layout = data.draw(any_layouts().filter(lambda layout: not layout.overlaps))
    case = Case("any", {}, {"x": layout}, {"out": Layout.contiguous("f32", (1,))})
    buffers = Buffers(case, np.zeros(Plan.of(case).size, np.uint8))
    values = np.arange(1, layout.size + 1).astype(layout.type.raw).reshape(layout.shape)
    buffers.fill({"x": values})
    assert np.array_equal(buffers.raw("x"), values)
    assert buffers.array("x").dtype == layout.type.native


@given(dtypes)
def test_unwritten_is_a_value_of_its_own(dtype: str) -> None:
    kind = DTYPES[dtype]
    word = np.array([unwritten(kind)], dtype=kind.raw)
    assert word[0] == unwritten(kind)
    if kind.is_float:
        assert np.isnan(kind.decode(word)).all()
        assert unwritten(kind) != np.iinfo(kind.raw).max  # the poison
        assert unwritten(kind) != int(kind.encode(np.array([np.nan]))[0])  # what arithmetic makes


def test_unwritten_elements_do_not_survive_arithmetic() -> None:
    """A signalling NaN: adding to it sets its quiet bit, so that only what was never written looks unwritten."""
    word = np.array([unwritten(DTYPES["f32"])], dtype=np.uint32)
    with np.errstate(all="ignore"):
        assert (word.view(np.float32) + np.float32(1)).view(np.uint32)[0] != word[0]


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_poison_spoils_whatever_reads_it(value: float) -> None:
    layout = Layout("f32", (1, 1, 1, 3), (4, 4, 4, 8))
    case = Case("cumsum", {"axis": 0, "exclusive": False, "reverse": False}, {"x": layout}, {"out": layout})
    memory = Bench(case).before.view(np.float32)
    gap = memory[(GUARD + 4) // 4]
    assert np.isnan(gap * np.float32(value))


def test_a_view_at_the_end_of_its_memory_may_be_empty() -> None:
    layout = Layout("f32", (1, 0, 1, 1), (4, 4, 4, 4), ALIGNMENT)
    case = Case("acc", {"nb1": 4, "nb2": 4, "nb3": 4, "offset": 4}, {"a": layout, "b": layout}, {"out": layout})
    assert filled(case).array("b").size == 0


def test_more_memory_than_the_case_needs_is_left_alone() -> None:
    case = drawn_cases("cumsum", 8, 1 << 13)[0]
    memory = np.full(Plan.of(case).size + 64, 0x11, np.uint8)
    Buffers(case, memory).fill(inputs_of(case, OPS["cumsum"]))
    assert (memory[-64:] == 0x11).all()
