"""Element types: decoding is exact, encoding gives the nearest element."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opconform.harness.model.dtypes import BF16, DTYPES, F16, F32, I32, DType

ALL_16 = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
FLOATS = pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda dtype: dtype.name)
SHORT = pytest.mark.parametrize("dtype", [F16, BF16], ids=lambda dtype: dtype.name)


@SHORT
def test_every_16_bit_pattern_comes_back(dtype: DType) -> None:
    numbers = ~np.isnan(dtype.decode(ALL_16))
    assert np.array_equal(dtype.encode(dtype.decode(ALL_16[numbers])), ALL_16[numbers])
    assert np.isnan(dtype.decode(dtype.encode(dtype.decode(ALL_16[~numbers])))).all()


def test_float32_patterns_come_back() -> None:
    edges = np.array([0, 1, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000], dtype=np.uint32)
    raw = np.concatenate([edges, edges | 0x80000000, np.arange(0, 0x7F800000, 104729, dtype=np.uint32)])
    assert np.array_equal(F32.encode(F32.decode(raw)), raw)


def test_int32_comes_back() -> None:
    raw = np.array([0, 1, 2**31 - 1, -(2**31), -1], dtype=np.int64).astype(np.int32).view(np.uint32)
    assert np.array_equal(I32.encode(I32.decode(raw)), raw)


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.from_numpy(ALL_16.view(np.int16)).view(torch.bfloat16).to(torch.float64).numpy()
    assert np.array_equal(BF16.decode(ALL_16), theirs, equal_nan=True)


def test_bfloat16_rounds_float32_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(BF16.encode(values.astype(np.float64)), theirs)


def nearest(dtype: DType, value: float) -> int:
    """The pattern nearest to `value`, ties to the even one, by looking at all of them."""
    positive = ALL_16[: 1 << 15]
    numbers = dtype.decode(positive)
    finite = numbers[np.isfinite(numbers)]
    above = int(np.searchsorted(finite, abs(value)))
    candidates = [pattern for pattern in (above - 1, above) if 0 <= pattern < finite.size]
    exact = Fraction(abs(value))
    best = min(candidates, key=lambda pattern: (abs(exact - Fraction(float(finite[pattern]))), pattern % 2))
    return best | (0x8000 if np.signbit(value) else 0)


@SHORT
@given(value=st.floats(-60000, 60000))
@example(value=1 + 2.0**-8 + 2.0**-40)
@example(value=1 + 2.0**-11 + 2.0**-40)
@example(value=-(1 + 2.0**-8 + 2.0**-40))
@example(value=2.0**-133)
@example(value=3 * 2.0**-135)
@example(value=2.0**-149)
@example(value=-0.0)
def test_encoding_gives_the_nearest_element(dtype: DType, value: float) -> None:
    """Also where rounding to float32 first would end on a tie."""
    assert int(dtype.encode(np.array([value]))[0]) == nearest(dtype, value)


@FLOATS
def test_unit_roundoff_is_half_the_distance_from_1_to_the_next_number(dtype: DType) -> None:
    one = dtype.encode(np.array([1.0]))
    assert dtype.decode(one + one.dtype.type(1))[0] - 1.0 == 2 * dtype.unit_roundoff


@FLOATS
def test_largest_and_smallest_normal_are_the_types_own(dtype: DType) -> None:
    mantissa = dtype.encode(np.array([dtype.smallest_normal]))
    assert dtype.decode(mantissa)[0] == dtype.smallest_normal
    assert dtype.decode(mantissa - mantissa.dtype.type(1))[0] < dtype.smallest_normal
    top = dtype.encode(np.array([dtype.largest]))
    assert dtype.decode(top)[0] == dtype.largest
    assert np.isinf(dtype.decode(top + top.dtype.type(1)))[0]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_raw_and_native_elements_have_the_same_size(dtype: DType) -> None:
    assert dtype.raw.itemsize == dtype.native.itemsize == dtype.itemsize


@SHORT
def test_strided_raw_elements_decode_in_place(dtype: DType) -> None:
    assert np.array_equal(dtype.decode(ALL_16[:64:3]), dtype.decode(ALL_16[:64])[::3])
