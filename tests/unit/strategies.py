"""Strategies of layouts and cases for the tests of the harness itself."""

from __future__ import annotations

from hypothesis import strategies as st

from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.layouts import Layout

dtypes = st.sampled_from(sorted(name for name, dtype in DTYPES.items() if dtype.block == 1))


@st.composite
def any_layouts(draw: st.DrawFn, largest_size: int = 4, largest_stride: int = 12) -> Layout:
    """Layouts of rank 0 to 4 with any strides, overlapping ones and sizes of 0 included; shrinks to a scalar."""
    dtype = draw(dtypes)
    shape = tuple(draw(st.lists(st.integers(0, largest_size), max_size=4)))
    steps = [draw(st.integers(0, largest_stride)) for _ in shape]
    size = DTYPES[dtype].itemsize
    return Layout(dtype, shape, tuple(step * size for step in steps), draw(st.integers(0, 5)) * size)
