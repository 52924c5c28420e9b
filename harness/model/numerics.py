"""What arithmetic a device promises, as far as error bounds depend on it."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields
from functools import cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from opconform.harness.model.dtypes import F32, F64, Mask

_LARGEST_COUNT = 2**31 - 1

Count = TypeVar("Count", float, npt.NDArray[np.float64])


@dataclass(frozen=True)
class Numerics:
    """A device's promises about float32 arithmetic.

    Errors "in ulps" are units in the last place of the result. The defaults are those of the OpenCL C specification
    ("Relative error as ULPs", full profile). The CUDA C++ Programming Guide ("Mathematical Functions") has 2 for exp,
    tanh, erf, sin and cos and 1 for log, glibc's manual 1 or 2 for each, ggml's own vector exp 1.96
    (src/ggml-cpu/vec.h, ggml_v_expf), and NumPy's exp measures 2.5. A library that makes exp of exp2 is far beyond
    them: `exp_ulps_per_unit` is for it.

    The last four say that a device computes in another way, of which nothing better can be promised; a device that
    does not say so is held to the way that the op demands.

    flushes_denormals: results and operands below 2^-126 may become 0 (Vulkan without DenormPreserve, OpenCL without
    CL_FP_DENORM).
    any_rounding: a correctly rounded result may be either neighbour (Vulkan promises no rounding mode without
    RoundingModeRTE).
    division_ulps: the error of a division (2.5 in the Vulkan and OpenCL specifications, 0.5 where it is correctly
    rounded).
    sqrt_ulps: that of a square root (OpenCL 3 unless asked for better; Vulkan that of 1 / inversesqrt: 2 and a
    division).
    exp_ulps, exp_ulps_per_unit: that of exp(x) is exp_ulps + exp_ulps_per_unit·|x|. The Vulkan specification
    ("Precision of core SPIR-V instructions") has 3 + 2·|x|. A library that computes exp(x) as exp2(x·log₂e) in float32
    is off by up to 63 ulps near −87 (mlx and torch.exp2 are): it declares exp_ulps_per_unit = 1.
    log_ulps, log_absolute: log; the absolute error counts from 1/2 to 2, if it is more (Vulkan: 3, 2^-21).
    tanh_ulps, tanh_absolute, erf_ulps, erf_absolute: tanh and erf; the absolute error counts if it is more (WebGPU, as
    Vulkan inherits tanh from the quotient of two differences of exponentials: 1e-5).
    sin_ulps, sin_absolute: sin and cos; the absolute error counts if it is more (Vulkan: 2^-11 from −π to π).
    sin_within_pi: nothing is promised of sin and cos beyond ±π (Vulkan).
    roundoff: the unit roundoff of an operation in the compute precision, before `any_rounding`.
    narrow_operands: a product with an f16 or bf16 tensor first rounds its other operand to that type, and adds up in
    float32 (ggml's matrix products and attention on the CPU).
    narrow_sums: attention adds up the weighted rows of an f16 tensor in f16 (ggml's on the CPU).
    half_tables: GELU is looked up in a table of float16, by x rounded to float16 (ggml's on the CPU).
    block_operands: a product with a quantised tensor first rounds its other operand to 8 bits in blocks of so many
    elements, with one scale a block; 0 for none (ggml's q8_0, q8_1 and q8_K).
    stored_codes: a product with a quantised tensor multiplies codes as they are stored, from 0 on, and subtracts what
    centres them times the sum of the other operand (q4_0 and q5_0 beside q8_1 in ggml's CUDA kernels and Vulkan
    shaders, vec_dot_q4_0_q8_1_impl and mul_mmq_funcs.glsl; q4_0, q5_0 and q3_K in its Metal kernels).
    narrow_weights: a product with a quantised tensor decodes its blocks to float16 (ggml's on Vulkan, beside an operand
    of float16).
    one_pass_variance: a variance may be computed as Σx²/n − (Σx/n)² (ggml's norm shaders and CUDA kernel do).
    inverted_blocks: triangular solves may invert diagonal blocks of up to so many rows and multiply with the inverses
    (rocBLAS, MAGMA and cuBLAS do); 0 for substitution.
    delta_chunk: `gated_delta_net` may be computed in chunks of so many tokens; 0 for token by token only.
    subtracted_sums: an exclusive sum may be computed as the inclusive one less the element.
    """

    flushes_denormals: bool = False
    any_rounding: bool = False
    division_ulps: float = 0.5
    exp_ulps: float = 3.0
    exp_ulps_per_unit: float = 0.0
    sqrt_ulps: float = 0.5
    roundoff: float = 2.0**-24
    narrow_operands: bool = False
    narrow_sums: bool = False
    log_ulps: float = 3.0
    log_absolute: float = 0.0
    tanh_ulps: float = 5.0
    tanh_absolute: float = 0.0
    erf_ulps: float = 16.0
    erf_absolute: float = 0.0
    sin_ulps: float = 4.0
    sin_absolute: float = 0.0
    sin_within_pi: bool = False
    one_pass_variance: bool = False
    inverted_blocks: int = 0
    delta_chunk: int = 0
    subtracted_sums: bool = False
    half_tables: bool = False
    block_operands: int = 0
    narrow_weights: bool = False
    stored_codes: bool = False

    def checked(self) -> Numerics:
        """These promises, if they can be meant. Raises `ValueError`, one line that names the field."""
        for item in fields(self):
            value = getattr(self, item.name)
            wanted = _wanted(item.type, value)
            if wanted:
                raise ValueError(f"Numerics.{item.name} is {value!r:.80}; it must be {wanted}")
        if not 2.0**-64 <= self.roundoff <= 2.0**-4:
            raise ValueError(f"Numerics.roundoff is {self.roundoff!r}; float32's is 2^-24, bfloat16's 2^-9")
        return self

    @property
    def u(self) -> float:
        """The relative error bound of one operation."""
        return 2 * self.roundoff if self.any_rounding else self.roundoff

    @property
    def underflow(self) -> float:
        """The absolute error one operation can make by underflow: flushed to 0, or rounded to a denormal."""
        if self.flushes_denormals:
            return 2.0**-126
        return 2.0**-149 if self.any_rounding else 2.0**-150

    @property
    def division_underflow(self) -> float:
        """The absolute error of a quotient that is a denormal, whose unit in the last place is 2^-149."""
        return max(self.underflow, self.division_ulps * 2.0**-149)

    @property
    def division_roundings(self) -> float:
        """The relative error of a division in units of `u`: one rounding at least."""
        return max(1.0, 2 * self.division_ulps * self.roundoff / self.u)

    def exp_error(self, x: F64) -> F64:
        """The relative error of a computed exp(x) for exact x, element by element."""
        return 2 * self.roundoff * (self.exp_ulps + self.exp_ulps_per_unit * np.abs(x))

    @property
    def sqrt_error(self) -> float:
        """The relative error of a computed square root of an exact number: one rounding at least."""
        return self.ulps(self.sqrt_ulps)

    def ulps(self, count: float) -> float:
        """The relative error of a result that is off by `count` units in the last place: one rounding at least."""
        return max(self.u, 2 * self.roundoff * count)

    @property
    def conversions(self) -> int:
        """How often an operand is rounded before it is used: once where the compute precision is below float32's."""
        return int(self.roundoff > 2.0**-24)

    @property
    def lower(self) -> str:
        """What is declared below float32's precision, in words; "" where nothing is."""
        said = [f"u = 2^{math.log2(self.roundoff):g}"] if self.conversions else []
        said += ["operands of products rounded to 16 bits"] if self.narrow_operands else []
        said += ["sums of f16 in f16"] if self.narrow_sums else []
        said += ["GELU from a table of 16 bits"] if self.half_tables else []
        if self.block_operands:
            said.append(f"operands of quantised products rounded to 8 bits in blocks of {self.block_operands}")
        said += ["blocks of products decoded to 16 bits"] if self.narrow_weights else []
        said += ["codes of blocks centred behind the sum"] if self.stored_codes else []
        said += ["variances in one pass"] if self.one_pass_variance else []
        return ", ".join(said)

    @property
    def is_lower(self) -> bool:
        """Whether the compute precision is below float32's."""
        return any(getattr(self, name) != getattr(EXACT, name) for name in _PRECISION)

    @property
    def looser(self) -> str:
        """What is declared looser than IEEE float32 and the usual libraries, in words; "" where nothing is. Below
        float32's precision it begins with "lower precision"."""
        return _looser(self)

    def gamma(self, n: Count) -> Count:
        """γ_n = n·u / (1 − n·u), the relative error of n roundings (Higham 2002, lemma 3.1); infinite from n·u = 1."""
        with np.errstate(divide="ignore"):
            relative: Count = n * self.u / np.maximum(1 - n * self.u, 0.0)
        return relative

    def of_sum(self, additions: float, magnitude: F64, total: F64) -> F64:
        """The error of so many additions, in any order and any tree, of numbers whose sizes add up to `magnitude`, and
        which themselves add up to `total`.

        Each addition is off by u of its result (Higham 2002, eq. 4.3). That is the sum of some of the numbers, and lies
        between the sum of all negative ones and that of all positive ones. The larger of both is M = (Σ|x| + |Σx|)/2.
        So the error of m additions is below m·u·(M + γ_m·Σ|x|), a half of γ_m·Σ|x| where signs are mixed. A compensated
        sum is off by 2u·Σ|x| (section 4.3 there), which is more where there are few additions: up to 4 the bound is
        γ_m·Σ|x|.
        """
        gamma = self.gamma(additions)
        if additions < 5:
            return gamma * magnitude
        most = np.minimum((magnitude + np.abs(total)) / 2, magnitude)
        found: F64 = np.minimum(additions * self.u * (most + gamma * magnitude), gamma * magnitude)
        return found

    def rounds(self, quantum: F64, magnitude: F64) -> Mask:
        """Where a sum may round: everywhere but where all its addends are multiples of one power of two, `quantum`, and
        the sum of their magnitudes fits the significand.

        Every sum of some of them, in any order and any tree, is then a multiple of the quantum too and no larger than
        2^24 quanta: a float32, which every rounding mode leaves alone. Addends that are products are such numbers
        themselves, so that neither a product nor a fused one rounds. Nothing is said of a device that rounds its
        operands to a lower precision.
        """
        if self.conversions:
            return np.ones(np.broadcast_shapes(quantum.shape, magnitude.shape), dtype=bool)
        least = F32.smallest_normal * (1 if self.flushes_denormals else 2 * F32.unit_roundoff)
        fits = (magnitude <= quantum / self.roundoff) & (magnitude <= F32.largest) & (quantum >= least)
        rounding: Mask = ~fits
        return rounding


EXACT = Numerics()


def _wanted(kind: object, value: object) -> str:
    """What a field of this type must be, where `value` is not; "" where it is."""
    if kind in ("bool", bool):
        return "" if isinstance(value, bool) else "True or False"
    whole = kind in ("int", int)
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if is_number and 0 <= value <= (_LARGEST_COUNT if whole else sys.float_info.max):  # type: ignore[operator]
        return ""
    return "a whole number from 0 to 2^31 − 1" if whole else "a number from 0 on"


def quanta(x: F64) -> F64:
    """The largest power of two that each number is a multiple of: ∞ for 0, and 0 for what is not finite.

    The numbers must be normal in float64, as every float32 and every product of two of them is.
    """
    size = np.abs(x)
    bits = size.view(np.int64)
    fraction = bits & ((1 << 52) - 1)
    without = np.where(fraction == 0, 0, bits & (bits - 1)).view(np.float64)  # less the last bit of the fraction
    found: F64 = np.where(size == 0, np.inf, np.where(np.isfinite(size), size - without, 0.0))
    return found


def holds_sum(a: F64, b: F64) -> Mask:
    """Where float32 holds a + b. The sum of two float32 numbers may not fit float64 either: what is lost there is what
    the two-sum leaves (Knuth, The Art of Computer Programming 2, theorem 4.2.2 B)."""
    total = a + b
    of_b = total - a
    lost = (a - (total - of_b)) + (b - of_b)
    held: Mask = (lost == 0) & (total.astype(np.float32) == total)
    return held


#: Fields below whose usual value the compute precision itself is lower.
_PRECISION = ("roundoff", "narrow_operands", "narrow_sums", "half_tables", "block_operands", "narrow_weights")
_IN_WORDS = (*_PRECISION, "one_pass_variance", "stored_codes")  #: fields that `Numerics.lower` has words for


@cache
def _looser(numerics: Numerics) -> str:
    said = [numerics.lower] if numerics.lower else []
    for item in fields(numerics):
        value, usual = getattr(numerics, item.name), getattr(EXACT, item.name)
        if value > usual and item.name not in _IN_WORDS:
            words = item.name.replace("_", " ")
            said.append(words if value is True else f"{words} {value:g} instead of {usual:g}")
    kind = "lower precision" if numerics.is_lower else "looser arithmetic"
    return f"{kind}: {', '.join(said)}" if said else ""
