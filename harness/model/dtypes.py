"""Element types: how many bytes, how they read as float64, and their unit roundoff.

Raw elements are handled as unsigned integers of the element's size, so that copying one never touches its bits
(NaN payloads and signed zeros included) and bfloat16, which NumPy lacks, is a type like the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Raw = npt.NDArray[np.unsignedinteger]
F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DType:
    """An element type.

    `unit_roundoff` is half the distance from 1 to the next number (Higham 2002, section 2.1); `smallest_normal` and
    `largest` are in the type's own scale; all three are 0 for integers, except `largest`.
    """

    name: str
    itemsize: int
    is_float: bool
    unit_roundoff: float
    smallest_normal: float
    largest: float

    @property
    def raw(self) -> np.dtype[np.unsignedinteger]:
        """The unsigned integer of the same size."""
        return _RAW[self.itemsize]

    @property
    def native(self) -> np.dtype:
        """NumPy's own type for these elements (uint16 bits for bfloat16, which NumPy does not have)."""
        return _NATIVE[self.name]

    def decode(self, raw: Raw) -> F64:
        """Raw elements as float64, exactly."""
        native = (raw.astype(np.uint32) << 16).view(np.float32) if self.name == "bf16" else raw.view(self.native)
        with np.errstate(invalid="ignore"):  # a signalling NaN
            return native.astype(np.float64)

    def encode(self, values: F64) -> Raw:
        """The nearest elements to float64 `values`, as raw bits."""
        if self.name == "bf16":
            near = np.ascontiguousarray(values, dtype=np.float32)
            bits: Raw = near.view(np.uint32)
            # Truncated, with the last bit sticky, so that the second rounding cannot mistake it for a tie.
            bits = np.where(np.abs(near) > np.abs(values), bits - 1, bits) | (near != values)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            halves: Raw = np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
            return halves
        if self.name == "i32":
            return np.nan_to_num(values).astype(np.int64).astype(np.int32).view(np.uint32)
        return np.ascontiguousarray(values.astype(self.native)).view(self.raw)


_RAW: dict[int, np.dtype[np.unsignedinteger]] = {2: np.dtype(np.uint16), 4: np.dtype(np.uint32)}
_NATIVE: dict[str, np.dtype] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "i32": np.dtype(np.int32),
}

F32 = DType("f32", 4, True, 2.0**-24, 2.0**-126, float(np.finfo(np.float32).max))
F16 = DType("f16", 2, True, 2.0**-11, 2.0**-14, 65504.0)
BF16 = DType("bf16", 2, True, 2.0**-8, 2.0**-126, (2 - 2.0**-7) * 2.0**127)
I32 = DType("i32", 4, False, 0.0, 0.0, 2.0**31 - 1)

DTYPES = {dtype.name: dtype for dtype in (F32, F16, BF16, I32)}
