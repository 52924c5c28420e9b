"""What may be demanded of blocks that are made of numbers: how far each element may be off once it is rounded.

Paths are those of the ggml repository. A bound admits every encoder of the kind that its type's function describes,
whichever way it breaks ties, and in whichever order it sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from opconform.harness.model.dtypes import F16, F32, F64

Places = npt.NDArray[np.int64]

#: What a scale is off by, in float16: of its own, and at least.
_HALF, _HALF_TINY = F16.unit_roundoff, F16.unit_roundoff * F16.smallest_normal
_HALF_LARGEST = F16.largest
_U = F32.unit_roundoff


class _Codes:
    """The values that codes stand for: multiples of 1/2, ascending."""

    def __init__(self, values: Iterable[float]) -> None:
        its = np.array(tuple(values), dtype=np.float64)
        self.least, self.most = float(its[0]), float(its[-1])
        from_zero = np.where(its[1:] * its[:-1] > 0, np.minimum(np.abs(its[1:]), np.abs(its[:-1])), 0.0)
        order = from_zero.argsort()
        self._gaps_from = from_zero[order]  #: where each gap between two values begins, whichever way one goes
        self._half_gaps = np.maximum.accumulate(np.diff(its)[order]) / 2  #: the widest one up to there, half of it
        fine = np.arange(4 * self.least, 4 * self.most) / 4 + 1 / 8
        self._nearest = its[np.abs(fine[:, None] - its).argmin(-1)]  #: to numbers between two multiples of 1/4

    def nearest(self, t: F64) -> F64:
        """The value nearest to each number; of two that are as near, either. The middle of two is a multiple of 1/4."""
        with np.errstate(invalid="ignore"):  # NaN has any place; the greatest one stands beyond the table
            places = ((np.clip(t, self.least, self.most) - self.least) * 4).astype(np.intp)
        found: F64 = self._nearest.take(places, mode="clip")
        return found

    def half_gap(self, size: F64) -> F64:
        """Half the widest gap between two values from −size to size: no number there is farther from all values."""
        found: F64 = self._half_gaps[self._gaps_from.searchsorted(size, "right") - 1]
        return found


#: The values of the 16 codes of IQ4_NL and IQ4_XS (src/ggml-common.h, kvalues_iq4nl).
_IQ4 = _Codes((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))
#: Those of MXFP4 and NVFP4, E2M1 numbers (OCP Microscaling Formats 1.0, section 5.3.3).
_E2M1 = _Codes((-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6))
#: The scales of NVFP4: UE4M3, 0 to 448.
_UE4M3 = np.array([k * 2.0**-9 if k < 8 else (8 + k % 8) * 2.0 ** (k // 8 - 10) for k in range(0x7F)])
_UE4M3_MIDDLES = (_UE4M3[1:] + _UE4M3[:-1]) / 2


#: Recipes of which some numbers are beyond 6·240.
_LARGE = ("index", "whole", "wide", "edges")


@dataclass(frozen=True)
class Encoder:
    """How numbers become blocks of a type.

    off: for the numbers of blocks, [elements of a block, blocks], how far each may be off; infinite where nothing can
    be demanded. (NumPy takes several times as long where the last axis is a short one.)
    reach: how many times its scale a block's largest element may be. least: blocks whose largest element is smaller are
    beyond the type's scales (0 if those end in 0, as float16 does). passes: how many times `off` goes through all
    elements, about; tensors are so much smaller.
    """

    off: Callable[[F64], F64]
    reach: float
    least: float = 0.0
    passes: int = 1


def _symmetric(low: int, high: int, parts: F64) -> F64:
    """Codes from −low to high, d = the largest element / −low (or amax/low): |error| ≤ d/2, but d at the other end
    where a code is missing.

    q8_0: 127 and 127; q4_0: 8 and 7; q5_0: 16 and 15; tq1_0 and tq2_0, d = amax: 1 and 1 (src/ggml-quants.c,
    quantize_row_*_ref). A scale is stored in float16, off by 2^-11·d + 2^-25, which the largest code multiplies.
    8u·amax are the roundings on the way.
    """
    amax = np.abs(parts).max(0, keepdims=True)
    d = amax / low
    off = np.where((low > high) & (np.abs(parts) > (high - 0.5) * d), d, d / 2)
    off = off + max(low, high) * (_HALF * d + _HALF_TINY) + 8 * _U * amax
    return np.where(d > _HALF_LARGEST, np.inf, off)


def _from_minimum(high: int, parts: F64) -> F64:
    """Codes from 0 to high above a minimum, d = (max − min)/high: d/2. q4_1: 15, q5_1: 31.

    Scale and minimum are stored in float16, as in `_symmetric`.
    """
    amax = np.abs(parts).max(0, keepdims=True)
    d = (parts.max(0, keepdims=True) - parts.min(0, keepdims=True)) / high
    off = d / 2 + high * (_HALF * d + _HALF_TINY) + _HALF * amax + _HALF_TINY + 8 * _U * amax
    return np.where((d > _HALF_LARGEST) | (amax > _HALF_LARGEST), np.inf, off)


def _fitted(parts: F64) -> F64:
    """IQ4_NL: codes for a first scale d0 = max/−127, max the element of the largest magnitude; then the scale d that
    fits them best, in squares weighted with w = x² (src/ggml-quants.c, quantize_row_iq4_nl_impl with ntry = -1;
    vulkan-shaders/copy_to_quant.comp; src/ggml-cuda/cpy-utils.cuh).

    With e_j the distance of x_j from the nearest q_j·d0, E0 = Σ w e²:
    * d − d0 = Σ w q (x − d0 q) / Σ w q², so by Cauchy and Schwarz |d − d0| ≤ δ = √(E0 / Σ w q²).
    * |x_j − d q_j| ≤ e_j + |q_j| δ. The code nearest to x_j/d is nearer still: an encoder that rounds again once it has
      d, one that keeps d0, and any d between them are admitted.
    * Of a tie either code may be taken: e_j is the same, and |q_j| d0 lies within e_j of |x_j|. So |q_j| stands as
      (|x_j| + e_j)/d0, and in Σ w q² as (|x_j| − e_j)/d0, or 0. A block with both +amax and −amax may take either sign.
    * 80u·amax: d is a quotient of sums of 32 terms, of three roundings each, on either side: γ_34 twice and a division;
      a code may be missed by the 8u of `_symmetric`. A scale in float16 is off by 2^-11·(d0 + δ) + 2^-25, times 127.
    """
    largest, least = parts.max(0, keepdims=True), parts.min(0, keepdims=True)
    off = _fitted_to(parts, np.where(largest >= -least, largest, least))
    has_both = largest == -least
    return np.where(has_both, np.maximum(off, _fitted_to(parts, least)), off) if has_both.any() else off


def _fitted_to(parts: F64, largest: F64) -> F64:
    """The bound of `_fitted` with d0 = largest/−127."""
    d0 = largest / _IQ4.least
    size = np.abs(parts)
    e = _distance(parts, d0, _IQ4)
    share = _share(parts, e)
    d = np.abs(d0) * (1 + share)
    off = e + (size + e) * share + 127 * (_HALF * d + _HALF_TINY) + 80 * _U * np.abs(largest)
    return np.where(d > _HALF_LARGEST, np.inf, off)


def _searched(group: int, codes: _Codes, tries: tuple[float, ...], levels: int, parts: F64) -> F64:
    """Q6_K and IQ4_XS: groups of 16 (32) elements, each with a scale s of its own, which is rounded in turn: to whole
    multiples, −levels to levels − 1, of a step d that the block stores in float16. Then the nearest codes for d times
    the multiple (src/ggml-quants.c, quantize_row_q6_K_ref with make_qx_quants, and quantize_row_iq4_nl_impl).

    s is the best of several first scales s_t = largest/t, t around the code at the end, each fitted as in `_fitted`:
    |s − s_t| ≤ δ_t. Which of them is best depends on how one rounds; any may be. So |s| lies between the least of
    |s_t| − δ_t and the greatest of |s_t| + δ_t, of which bounds for elements follow:
    * d is the largest |s| of the block by `levels`. The multiple nearest to s is off by d/2, and by d where the end
      that is missing is wanted: the group's scale is within d of s, and in float16 off by 2^-11 of it and levels·2^-25.
    * For a scale between low and high an element x is at most |x|/low scales from 0: it is off by half the widest gap
      of the codes up to there, times high, or it stands beyond their end, times low.
    """
    groups = parts.reshape(-1, group, parts.shape[-1])
    size = np.abs(groups)
    amax = size.max(1, keepdims=True)
    is_plus, is_minus = ((groups == it).any(1, keepdims=True) for it in (amax, -amax))
    largest = np.where(is_plus, amax, -amax)
    low, high = np.full(amax.shape, np.inf), np.zeros(amax.shape)
    for first, may_be in ((largest, is_plus | is_minus), (-largest, is_plus & is_minus)):
        for t in tries if may_be.any() else ():
            share = _share(groups, _distance(groups, first / t, codes), 1)
            low = np.where(may_be, np.minimum(low, amax / abs(t) * (1 - share)), low)
            high = np.where(may_be, np.maximum(high, amax / abs(t) * (1 + share)), high)
    step = high.max(0, keepdims=True) / levels
    stored = high * _HALF + levels * _HALF_TINY
    low, high = np.maximum(low - step - stored, 0.0), high + step + stored
    end = min(-codes.least, codes.most)
    farthest = np.divide(size, low, out=np.full(size.shape, np.inf), where=low > 0)
    off = np.maximum(high * codes.half_gap(farthest), size - end * low) + 80 * _U * amax
    return np.where(step > _HALF_LARGEST, np.inf, off).reshape(parts.shape)


def _share(parts: F64, e: F64, axis: int = 0) -> F64:
    """δ of `_fitted`, as a share of the first scale. axis: the one along a block."""
    weighed = (parts**2 * np.maximum(np.abs(parts) - e, 0.0) ** 2).sum(axis, keepdims=True)
    found: F64 = np.sqrt((parts**2 * e**2).sum(axis, keepdims=True) / np.where(weighed > 0, weighed, 1.0))
    return found


def _distance(x: F64, scale: F64, codes: _Codes) -> F64:
    """How far each x is from the nearest of scale·codes."""
    found: F64 = np.abs(x - scale * codes.nearest(x / np.where(scale == 0, 1.0, scale)))
    return found


def _shared_exponent(parts: F64) -> F64:
    """MXFP4: the scale 2^(⌊log2 amax⌋ − 2), and the nearest E2M1 number (OCP Microscaling Formats 1.0, section 6.3;
    src/ggml-quants.c, quantize_row_mxfp4_ref).

    A scale is a power of two and exact: an element is off by its distance from the nearest code, a tie broken either
    way, and by 4u·amax, what float32 may be off in comparing two distances. A float32 logarithm below 128 is off by a
    few times 2^-18: within 2^-15 of a power of two the exponent on either side is right.
    """
    amax = np.abs(parts).max(0, keepdims=True)
    off: F64 = np.zeros(parts.shape)
    for near in (1 - 2.0**-15, 1.0, 1 + 2.0**-15):
        _, exponent = np.frexp(amax * near)
        off = np.maximum(off, _distance(parts, np.ldexp(1.0, exponent - 3), _E2M1))
    found: F64 = off + 4 * _U * amax
    return found


def _small_floats(parts: F64) -> F64:
    """NVFP4: for each 16 elements the scale amax/6 as UE4M3, three bits after the point and nothing below 2^-9, and the
    nearest E2M1 number (src/ggml-quants.c, quantize_row_nvfp4_ref; src/ggml-impl.h, ggml_fp32_to_ue4m3). An encoder
    may also take a scale up to two further, if the squares of the errors then have no larger sum
    (src/ggml-cuda/quantize.cu; llama.cpp pull request 23692).

    Elements are judged as in `_shared_exponent`, by the worst of these scales. Where amax/6 is within 8u of the middle
    of two scales, either is right, and 1e-5 of a sum of squares is what float32 may be off in comparing two. Above 448,
    the largest scale, nothing is demanded.
    """
    groups = parts.reshape(-1, 16, parts.shape[-1])
    amax = np.abs(groups).max(1, keepdims=True)
    ends = [np.searchsorted(_UE4M3_MIDDLES, amax / 6 * near) for near in (1 - 8 * _U, 1 + 8 * _U)]
    allowed = np.maximum(*(_errors(groups, code)[1] for code in ends)) * (1 + 1e-5)
    off = np.zeros(groups.shape)
    for further in range(-2, 4):  # from the lower of two middle ones
        e, total = _errors(groups, np.clip(ends[0] + further, 0, len(_UE4M3) - 1))
        off = np.where((total <= allowed) & (ends[0] + further <= ends[1] + 2), np.maximum(off, e), off)
    off = np.where(amax > 448.0 * 6, np.inf, off + 4 * _U * amax)
    return off.reshape(parts.shape)


def _errors(groups: F64, code: Places) -> tuple[F64, F64]:
    """How far each element of a group is from the nearest that a UE4M3 scale gives, and the sum of the squares."""
    e = _distance(groups, _UE4M3[code], _E2M1)
    return e, (e**2).sum(1, keepdims=True)


def has_top_scales(goes: str, recipe: str) -> bool:
    """Whether numbers of a recipe become blocks of NVFP4 with scales above 240, that of the last exponent but one."""
    return goes == "nvfp4" and recipe in _LARGE


_TRIES = tuple(-(32 + 0.1 * k) for k in range(-9, 10))
_WHOLE_TRIES = (127.0, *np.arange(-134.0, -119.0))

#: The quantised types into which numbers are rounded.
ENCODERS: Mapping[str, Encoder] = {
    **{
        name: Encoder(partial(_symmetric, low, high), low)
        for name, low, high in (
            *(("q8_0", 127, 127), ("q4_0", 8, 7), ("q5_0", 16, 15)),
            *(("tq1_0", 1, 1), ("tq2_0", 1, 1)),
        )
    },
    **{name: Encoder(partial(_from_minimum, high), 1) for name, high in (("q4_1", 15), ("q5_1", 31))},
    "iq4_nl": Encoder(_fitted, 63),  # the fit may make a scale twice as large
    # scales below 2^-14 are as coarse as the groups' scales: a block is too small from a quarter on
    "q6_K": Encoder(partial(_searched, 16, _Codes(range(-32, 32)), _TRIES, 128), 2000, 0.25, len(_TRIES)),
    "iq4_xs": Encoder(partial(_searched, 32, _IQ4, _WHOLE_TRIES, 32), 2000, 0.25, len(_WHOLE_TRIES)),
    "mxfp4": Encoder(_shared_exponent, 2.0**100, 2.0**-100),
    "nvfp4": Encoder(_small_floats, 448 * 6 / _HALF_LARGEST, 6 * 2.0**-9, 8),
}
