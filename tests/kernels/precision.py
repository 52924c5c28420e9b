"""What a kernel loses that computes in a lower precision: operands of 16 bits, or of TF32's 19."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from opconform.harness.judge.oracle import compare, expectation
from opconform.harness.model.dtypes import BF16, F16, F64
from opconform.harness.model.numerics import EXACT
from tests.judge import Bench
from tests.kernels import delta_odd, mla
from tests.kernels.base import F32


def tf32(x: F64) -> F64:
    """To nearest, with the 10 stored bits of TF32's fraction."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x0FFF) + ((bits >> 13) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded.view(np.float32), x).astype(np.float64)


ROUNDED: Mapping[str, Callable[[F64], F64]] = {
    "f16": lambda x: F16.decode(F16.encode(x)),
    "bf16": lambda x: BF16.decode(BF16.encode(x)),
    "tf32": tf32,
}


def is_caught(bench: Bench, precision: str) -> bool:
    """Whether a case is failed by a kernel that rounds its float inputs and then makes no error at all: of all that
    compute in that precision the best one."""
    case, blunt = bench.case, {}
    for name, raw in bench.values.items():
        dtype = case.inputs[name].type
        with np.errstate(all="ignore"):
            blunt[name] = dtype.encode(ROUNDED[precision](dtype.decode(raw))) if dtype.is_float else raw
    found = expectation(case, bench.op, blunt, EXACT)
    for name, layout in case.outputs.items():
        value = found.value if name == bench.op.outputs[0] else found.others[name].value
        raw = layout.type.encode(value)
        if compare(case, bench.op, bench.values, bench.expected(), raw, EXACT, name).wrong.any():
            return True
    return False


def off_by_a_ten_thousandth(x: F32) -> F32:
    """e^x, off by 1e-4 of itself one way or the other."""
    sign = np.where(np.ascontiguousarray(x).view(np.uint32) & 1, 1e-4, -1e-4)
    off: F32 = (np.exp(x.astype(np.float64)) * (1 + sign)).astype(np.float32)
    return off


class BluntAttention(mla.Blas):
    def exp(self, x: F32) -> F32:
        return off_by_a_ten_thousandth(x)


class BluntFlash(mla.Online32):
    def exp(self, x: F32) -> F32:
        return off_by_a_ten_thousandth(x)


class BluntDelta(delta_odd.Blas):
    def exp(self, x: F32) -> F32:
        return off_by_a_ten_thousandth(x)
