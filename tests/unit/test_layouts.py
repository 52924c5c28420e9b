"""Layouts: addresses, classes and overlap, against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opconform.harness.model.layouts import Layout, LayoutClass, contiguous_strides
from tests.unit.strategies import any_layouts, dtypes


def addresses(layout: Layout) -> list[int]:
    """The first byte of every element, in C order."""
    places = itertools.product(*(range(size) for size in layout.shape))
    return [layout.offset + sum(i * stride for i, stride in zip(place, layout.strides)) for place in places]


@given(any_layouts())
def test_element_i_stands_at_offset_plus_the_sum_of_i_times_stride(layout: Layout) -> None:
    memory = np.arange(layout.end + 64, dtype=np.uint32).astype(np.uint8)
    found = layout.array(memory)
    size = layout.type.itemsize
    want = [int.from_bytes(memory[start : start + size].tobytes(), "little") for start in addresses(layout)]
    assert found.shape == layout.shape
    assert found.reshape(-1).tolist() == want


@given(any_layouts())
def test_writing_through_the_array_changes_the_elements_and_no_other_byte(layout: Layout) -> None:
    memory = np.zeros(layout.end + 64, np.uint8)
    layout.array(memory)[...] = np.iinfo(layout.type.raw).max
    owned = {start + byte for start in addresses(layout) for byte in range(layout.type.itemsize)}
    assert set(np.flatnonzero(memory)) == owned


@given(any_layouts())
def test_end_is_just_past_the_last_element(layout: Layout) -> None:
    starts = addresses(layout)
    assert layout.end == (max(starts) + layout.type.itemsize if starts else layout.offset)
    assert layout.size == len(starts)


@given(any_layouts())
def test_overlaps_agrees_with_counting_bytes(layout: Layout) -> None:
    owned = [start + byte for start in addresses(layout) for byte in range(layout.type.itemsize)]
    assert layout.overlaps == (len(owned) != len(set(owned)))


@given(any_layouts())
def test_ne_and_nb_are_shape_and_strides_innermost_first(layout: Layout) -> None:
    assert layout.ne == tuple(reversed(layout.shape))
    assert layout.nb == tuple(reversed(layout.strides))


@given(dtypes, st.lists(st.integers(0, 5), max_size=4).map(tuple))
def test_contiguous_layouts_are_packed_and_as_numpy_lays_them_out(dtype: str, shape: tuple[int, ...]) -> None:
    layout = Layout.contiguous(dtype, shape)
    assert layout.kind is LayoutClass.PACKED
    assert layout.is_contiguous
    assert not layout.overlaps
    assert layout == layout.packed()
    assert addresses(layout) == [i * layout.type.itemsize for i in range(layout.size)]
    assert layout.strides == contiguous_strides(shape, layout.type.itemsize)


@given(any_layouts())
def test_a_packed_twin_has_the_same_shape_at_offset_0(layout: Layout) -> None:
    assert layout.packed() == Layout.contiguous(layout.dtype, layout.shape)


@given(any_layouts())
def test_contiguous_means_that_elements_follow_each_other(layout: Layout) -> None:
    starts = addresses(layout)
    size = layout.type.itemsize
    follow = all(later - earlier == size for earlier, later in itertools.pairwise(starts))
    if layout.is_contiguous:
        assert follow
    if follow and layout.size and layout.kind > LayoutClass.CONTIGUOUS:
        assert layout.shape[-1] == 1  # only a row of one element, whose stride must be the element size all the same
        assert layout.strides[-1] != size


@given(any_layouts())
def test_only_a_broadcast_layout_overlaps(layout: Layout) -> None:
    """A kernel that is promised STRIDED or less may count on elements that keep apart."""
    if layout.overlaps:
        assert layout.kind is LayoutClass.BROADCAST


@pytest.mark.parametrize(
    ("strides", "offset", "kind"),
    [
        ((96, 32, 16, 4), 0, LayoutClass.PACKED),
        ((96, 32, 16, 4), 4, LayoutClass.CONTIGUOUS),
        ((120, 32, 16, 4), 0, LayoutClass.ROWS),
        ((16, 48, 144, 4), 0, LayoutClass.ROWS),
        ((192, 64, 32, 8), 0, LayoutClass.STRIDED),
        ((4, 12, 36, 72), 8, LayoutClass.STRIDED),
        ((0, 32, 16, 4), 0, LayoutClass.BROADCAST),
        ((96, 32, 16, 0), 0, LayoutClass.BROADCAST),
    ],
)
def test_each_class_is_recognised(strides: tuple[int, ...], offset: int, kind: LayoutClass) -> None:
    assert Layout("f32", (3, 3, 2, 4), strides, offset).kind is kind


def test_strides_of_dimensions_of_one_element_do_not_count_but_nb0_does() -> None:
    assert Layout("f32", (1, 3, 1, 4), (12345 * 4, 16, 400, 4)).kind is LayoutClass.PACKED
    assert Layout("f32", (1, 1, 1, 1), (4, 4, 4, 8)).kind is LayoutClass.STRIDED


def test_an_overlap_of_many_elements_is_decided_in_little_memory() -> None:
    import tracemalloc

    layout = Layout("f16", (2, 1 << 22), (2, 2))
    tracemalloc.start()
    try:
        assert layout.overlaps
        assert tracemalloc.get_traced_memory()[1] < 4 * layout.end
    finally:
        tracemalloc.stop()
