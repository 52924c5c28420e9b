"""Element types: how many bytes, how they read as float64, and their unit roundoff.

Raw elements are handled as unsigned integers of the element's size, so that copying one never touches its bits
(NaN payloads and signed zeros included) and bfloat16, which NumPy lacks, is a type like the others. Of a quantised type
a raw element is a whole block, as bytes that NumPy does not look into.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opconform.harness.model import blocks

Raw = npt.NDArray[np.unsignedinteger]
F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DType:
    """An element type.

    `unit_roundoff` is half the distance from 1 to the next number (Higham 2002, section 2.1); `smallest_normal` and
    `largest` are in the type's own scale; all three are 0 for integers, except `largest`.

    block: how many elements a raw one holds, 1 but for quantised types, whose `itemsize` is the bytes of a block.
    is_float: whether poison reads as NaN (in most quantised types it makes NaN of a whole block).
    """

    name: str
    itemsize: int
    is_float: bool
    unit_roundoff: float
    smallest_normal: float
    largest: float
    block: int = 1

    @property
    def raw(self) -> np.dtype[np.unsignedinteger]:
        """The unsigned integer of the same size; of a quantised type the bytes of a block."""
        if self.block > 1:
            whole: Any = np.dtype(f"V{self.itemsize}")
            return whole  # type: ignore[no-any-return]
        return _RAW[self.itemsize]

    @property
    def native(self) -> np.dtype:
        """NumPy's own type for these elements (raw ones of the types that NumPy does not have)."""
        return _NATIVE[self.name] if self.block == 1 else self.raw

    def decode(self, raw: Raw) -> F64:
        """Raw elements as float64, exactly but for i64 beyond 2^53 and blocks (see `blocks.py`)."""
        if self.block > 1:
            return blocks.decode(self.name, raw)
        native = (raw.astype(np.uint32) << 16).view(np.float32) if self.name == "bf16" else raw.view(self.native)
        with np.errstate(invalid="ignore"):  # a signalling NaN
            return native.astype(np.float64)

    def encode(self, values: F64) -> Raw:
        """The nearest elements to float64 `values`, as raw bits; blocks that stand for them, see `blocks.py`."""
        if self.block > 1:
            return blocks.encode(self.name, values)
        if self.name == "bf16":
            near = np.ascontiguousarray(values, dtype=np.float32)
            bits: Raw = near.view(np.uint32)
            # Truncated, with the last bit sticky, so that the second rounding cannot mistake it for a tie.
            bits = np.where(np.abs(near) > np.abs(values), bits - 1, bits) | (near != values)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            halves: Raw = np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
            return halves
        if not self.is_float:
            return np.nan_to_num(values).astype(np.int64).astype(self.native).view(self.raw)
        return np.ascontiguousarray(values.astype(self.native)).view(self.raw)


_RAW: dict[int, np.dtype[np.unsignedinteger]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}
_NATIVE: dict[str, np.dtype] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "f64": np.dtype(np.float64),
    "i8": np.dtype(np.int8),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
}

F32 = DType("f32", 4, True, 2.0**-24, 2.0**-126, float(np.finfo(np.float32).max))
F16 = DType("f16", 2, True, 2.0**-11, 2.0**-14, 65504.0)
BF16 = DType("bf16", 2, True, 2.0**-8, 2.0**-126, (2 - 2.0**-7) * 2.0**127)
DOUBLE = DType("f64", 8, True, 2.0**-53, 2.0**-1022, float(np.finfo(np.float64).max))
I8 = DType("i8", 1, False, 0.0, 0.0, 2.0**7 - 1)
I16 = DType("i16", 2, False, 0.0, 0.0, 2.0**15 - 1)
I32 = DType("i32", 4, False, 0.0, 0.0, 2.0**31 - 1)
I64 = DType("i64", 8, False, 0.0, 0.0, 2.0**63 - 1)

#: The quantised types. Their largest element and roundoff are those of a block's, and no type's.
QUANTISED = {
    name: DType(name, its.bytes, True, 0.5, 2.0**-14, 65504.0, its.block) for name, its in blocks.BLOCKS.items()
}
DTYPES = {dtype.name: dtype for dtype in (F32, F16, BF16, DOUBLE, I8, I16, I32, I64)} | QUANTISED
