"""Numbers with what a device may make of them: a formula written once gives a value and the bound of its error.

    squares = (x * x).sum()
    out = x * (squares / n + eps).rsqrt()

An `Approx` holds the formula's value in float64, and an interval that holds every result that a right kernel may have
at this point: each operation takes the intervals of its operands to that of its result, widened by the rounding of the
operation itself. This is how the WebGPU conformance tests derive their bounds (gpuweb/cts, docs/fp_primer.md).

What an interval covers:
* every rounding to the compute precision, to nearest or (`Numerics.any_rounding`) either way, or none: products that
  are fused into additions, and kernels that compute in float64, lie inside;
* underflow: results below 2^-126 are off by a part of 2^-149, and may be 0, as operands may, where the device flushes;
* overflow: past the largest float32 a result may be infinite; a sum may end as NaN, and nothing is demanded of it;
* sums in any order, also compensated or blocked (Higham 2002, eq. 4.4 and the remark after it), and nothing more where
  no order rounds; sums, differences and products of exact numbers that float32 holds are exact;
* a / b as a division or as a·(1/b), where 1/b does not overflow; 1/√s as one operation of 2 units in the last place
  (CUDA C++ Programming Guide, "Mathematical Functions"; OpenCL C specification, "Relative error as ULPs"; Vulkan
  specification, "Precision of core SPIR-V instructions") or as a root and a division;
* functions with the errors that `Numerics` has for them;
* constants, which a kernel holds rounded.

What it does not cover: forms that cancel where the formula does not, such as Σx² − (Σx)²/n for a sum of squares, or
1 + tanh(x/2) for 2/(1 + e^-x). Where right kernels differ in such a way, the formula says so with `either` or with
`besides`.

Intervals forget that two operands depend on each other: x − x is not 0. A formula is written so that no argument
matters twice, or the bound is wider than it need be; it is never narrower.

A NaN at the ends of an interval stands for anything at all. The float64 arithmetic itself is off by 2^-29 of the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from opconform.harness.model.dtypes import F16, F32, F64, DType, Mask
from opconform.harness.model.expected import Expected
from opconform.harness.model.numerics import Numerics, holds_sum, quanta

_TINY = F32.smallest_normal
_INVERSE_ROOT_ULPS = 2.0
_SHORT = 8  #: elements of rows that are added up all rows at once
_ERF_SLOPE = 2 / np.sqrt(np.pi)  #: of erf at 0, where it is steepest


@dataclass(frozen=True, eq=False)
class Approx:
    """A tensor's exact value, and the interval of what a device may have there.

    value, low, high: float64 arrays of one shape. `low` and `high` are `value` itself where nothing has been rounded.
    off: how far the ends are from the value, where both are as far; None where that is found by subtraction.
    rounded: whether an operation has been carried out; elements of arguments, and numbers, may be known exactly.
    part: how many elements of a row its sums, means and maxima take; None for all of them. Only hypotheses about wrong
    kernels set it.
    """

    value: F64
    low: F64
    high: F64
    numerics: Numerics
    part: int | None = None
    off: F64 | None = None
    rounded: bool = False

    @classmethod
    def of(cls, values: F64, dtype: DType, numerics: Numerics, part: int | None = None) -> Approx:
        """Elements of an argument, as a kernel reads them: exact, but for denormals that the device flushes and for the
        conversion to a compute precision below float32's."""
        low = high = values
        if numerics.conversions:
            step = numerics.u * np.abs(values)
            low, high = values - step, values + step
        if numerics.flushes_denormals and ((np.abs(values) < dtype.smallest_normal) & (values != 0)).any():
            low, high = _with_zero(low, high, dtype.smallest_normal)
        return cls(values, low, high, numerics, part)

    @classmethod
    def about(cls, expected: Expected, numerics: Numerics) -> Approx:
        """What another op may have given, as a formula goes on with it."""
        bound = np.where(np.isinf(expected.bound), np.nan, expected.bound)
        return cls(expected.value, expected.value - bound, expected.value + bound, numerics, rounded=True)

    # --- constants, and choices between forms ---

    def constant(self, value: float, roundings: int = 1) -> Approx:
        """A number that the kernel holds, after so many roundings; none where float32 has it."""
        exact = np.float64(value)
        if np.float32(value) == exact and not self.numerics.conversions:
            return self._made(exact, exact, exact)
        step = self.numerics.gamma(float(roundings)) * abs(exact)
        return self._made(exact, exact - step, exact + step)

    def held(self, values: F64, roundings: F64 | float = 1.0) -> Approx:
        """Numbers that the kernel holds, each after so many roundings."""
        step = self.numerics.gamma(np.asarray(roundings, np.float64)) * np.abs(values)
        step = np.where(np.isfinite(values), step, 0.0)
        return self._made(values, values - step, values + step)

    def either(self, other: Approx) -> Approx:
        """The same value where right kernels compute it in one of two ways."""
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return self._made(self.value, low, high, other.rounded)

    def besides(self, *terms: Approx) -> Approx:
        """The same value where some right kernels compute it as a sum of these terms, which they round."""
        step = self.numerics.u * sum((term._farthest for term in terms), np.zeros(()))
        return self._made(self.value, self.low - step, self.high + step)

    @staticmethod
    def total(terms: Sequence[Approx]) -> Approx:
        """The sum of several numbers, added up in any order, as `sum` has it."""
        first = terms[0]
        if all(term._is_exact for term in terms):
            value = np.stack([term.value for term in terms], -1)
            made = first._made(value, value, value)
        else:
            value, low, high = (np.stack(ends, -1) for ends in zip(*(term._ends for term in terms)))
            made = first._made(value, low, high, any(term.rounded for term in terms))
        found = replace(made, part=None).sum()
        value, low, high = (ends[..., 0] for ends in found._ends)
        return first._made(value, low, high, rounded=True)

    def times(self, one: Approx, other: Approx) -> Approx:
        """The product of three factors in any order, each of which may underflow or overflow on its way."""
        return (self * one * other).either(self * (one * other)).either(self * other * one)

    @staticmethod
    def where(condition: Mask, one: Approx, other: Approx) -> Approx:
        """`one` where the condition holds, else `other`. The condition must be one on exact arguments."""
        value, low, high = (np.where(condition, *ends) for ends in zip(one._ends, other._ends))
        return one._made(value, low, high, other.rounded)

    # --- arithmetic ---

    def __neg__(self) -> Approx:
        return self._made(-self.value, -self.high, -self.low)

    def __abs__(self) -> Approx:
        size = np.abs(self.value)
        if self._is_exact:
            return self._made(size, size, size)
        ends = np.abs(self.low), np.abs(self.high)
        least = np.where((self.low <= 0) & (self.high >= 0), 0.0, np.minimum(*ends))
        return self._made(size, least, np.maximum(*ends))

    def __add__(self, other: Approx | float) -> Approx:
        """One rounding. A sum that is a denormal is exact (Higham 2002, problem 2.19)."""
        its = self._lifted(other)
        if its._is_zero:
            return self
        value = self.value + its.value
        exact = self._exact_with(its)
        relative = self.numerics.u if exact is False else self._unless(exact & holds_sum(self.value, its.value))
        if exact is True:
            return self._rounded(value, value, value, relative, denormal=0.0)
        return self._rounded(value, self.low + its.low, self.high + its.high, relative, denormal=0.0)

    __radd__ = __add__

    def __sub__(self, other: Approx | float) -> Approx:
        return self + (-self._lifted(other))

    def __rsub__(self, other: float) -> Approx:
        return -self + other

    def __mul__(self, other: Approx | float) -> Approx:
        """One rounding."""
        its = self._lifted(other)
        value = self.value * its.value
        exact = self._exact_with(its)
        # Float64 holds every product of two float32 numbers.
        relative = self.numerics.u if exact is False else self._unless(exact & (value.astype(np.float32) == value))
        if exact is True:
            return self._rounded(value, value, value, relative)
        if its is self:
            least, most = abs(self)._ends[1:]
            return self._rounded(value, least * least, most * most, relative)
        return self._rounded(value, *_products(self, its), relative)

    __rmul__ = __mul__

    def __truediv__(self, other: Approx | float) -> Approx:
        """A division, or a product with the reciprocal.

        The reciprocal of a number above 2^126 is a denormal: it is off by a part of 2^-149, or 0 where the device
        flushes, and what it is multiplied with carries that on.
        """
        its, numerics = self._lifted(other), self.numerics
        value, roundings = self.value / its.value, numerics.division_roundings
        inverse, relative = its._inverse(), numerics.gamma(roundings + 1)
        ends = (value, value) if self._is_exact and its._is_exact else _products(self, inverse)
        found = self._rounded(value, *ends, relative)
        tiny = np.abs(inverse.value) < _TINY
        if not tiny.any():
            return found
        inverse = inverse._rounded(*inverse._ends, roundings * numerics.u)
        return Approx.where(tiny, self._rounded(value, *_products(self, inverse), numerics.u), found)

    def __rtruediv__(self, other: float) -> Approx:
        return self._lifted(other) / self

    def _inverse(self) -> Approx:
        """1/x before any rounding. Where x may be 0 with one sign only, an infinity of that sign."""
        inverse = 1 / self.value
        if self._is_exact:
            return self._made(inverse, inverse, inverse)
        exact = self._exact_at
        low = np.where((self.high == 0) & ~exact, -np.inf, 1 / self.high)
        high = np.where((self.low == 0) & ~exact, np.inf, 1 / self.low)
        both = (self.low < 0) & (self.high > 0)
        return self._made(inverse, np.where(both, np.nan, low), np.where(both, np.nan, high))

    def sqrt(self) -> Approx:
        """√x."""
        return self._monotone(np.sqrt, self.numerics.sqrt_error)

    def rsqrt(self) -> Approx:
        """1/√x, in one operation or in two."""
        numerics = self.numerics
        in_two = numerics.sqrt_error + numerics.division_roundings * numerics.u
        value = 1 / np.sqrt(self.value)
        relative = max(in_two * (1 + numerics.u), 2 * _INVERSE_ROOT_ULPS * numerics.roundoff)
        if self._is_exact:
            return self._rounded(value, value, value, relative)
        return self._rounded(value, 1 / np.sqrt(self.high), 1 / np.sqrt(self.low + 0.0), relative)  # −0 + 0 = 0

    def over_root(self, squares: Approx) -> Approx:
        """x / √squares, as a division by the root or as a product with the inverse root."""
        inverse, numerics = squares.rsqrt(), self.numerics
        value = self.value / np.sqrt(squares.value)
        denormal = numerics.ulps(numerics.division_ulps)
        return self._rounded(value, *_products(self, inverse), numerics.u, denormal=denormal)

    def over_norm(self, squares: Approx) -> Approx:
        """x / √squares of a row, or as some make it of RMS_NORM (mlx-lm): x·r·c, r the inverse root of squares / n and
        c = 1/√n.

        The second form rounds more often, so that its interval holds that of the first. Only a denormal may be farther
        off in the first, by the division.
        """
        numerics, n = self.numerics, float(max(self.value.shape[-1], 1))
        by_mean = self * (squares / n).rsqrt()
        ends = _products(by_mean, self.constant(n**-0.5, roundings=2))
        denormal = max(numerics.u, numerics.ulps(numerics.division_ulps))
        return self._rounded(self.value / np.sqrt(squares.value), *ends, numerics.u, denormal=denormal)

    # --- functions ---

    def exp(self) -> Approx:
        """e^x, off by `Numerics.exp_ulps` and by `Numerics.exp_ulps_per_unit` for each unit of |x|."""
        return self._monotone(np.exp, self.numerics.exp_error(self._farthest))

    def log(self) -> Approx:
        """ln x, off by `Numerics.log_ulps`, or from 1/2 to 2 by `Numerics.log_absolute` if that is more."""
        numerics = self.numerics
        near_one = (self.high >= 0.5) & (self.low <= 2)
        absolute = np.where(near_one, numerics.log_absolute, 0.0) if numerics.log_absolute else 0.0
        return self._monotone(np.log, numerics.ulps(numerics.log_ulps), absolute)

    def tanh(self) -> Approx:
        """tanh x, off by `Numerics.tanh_ulps`, or by `Numerics.tanh_absolute` if that is more."""
        numerics = self.numerics
        return self._monotone(np.tanh, numerics.ulps(numerics.tanh_ulps), numerics.tanh_absolute)

    def erf(self) -> Approx:
        """erf x, off by `Numerics.erf_ulps`, or by `Numerics.erf_absolute` if that is more.

        An end of the interval is as far from the value as the greatest slope between them allows: 2/√π·e^(−m²), where m
        is the least |x| of the interval.
        """
        numerics, value = self.numerics, _erf(self.value)
        if self._is_exact:
            return self._rounded(value, value, value, numerics.ulps(numerics.erf_ulps), numerics.erf_absolute)
        slope = _ERF_SLOPE * np.exp(-(abs(self).low ** 2))
        below, above = (
            np.where((end == self.value) | (slope == 0), 0.0, slope * np.abs(end - self.value))
            for end in (self.low, self.high)
        )
        low, high = np.maximum(value - below, -1.0), np.minimum(value + above, 1.0)
        return self._rounded(value, low, high, numerics.ulps(numerics.erf_ulps), numerics.erf_absolute)

    def sin(self) -> Approx:
        """sin x, off by `Numerics.sin_ulps`, or by `Numerics.sin_absolute` if that is more."""
        return self._wave(np.sin)

    def cos(self) -> Approx:
        """cos x, off as sin x is."""
        return self._wave(np.cos)

    def _wave(self, function: Callable[[F64], F64]) -> Approx:
        """A function whose slope is never above 1 and whose values are never beyond ±1."""
        value, numerics = function(self.value), self.numerics
        reach = np.maximum(self.high - self.value, self.value - self.low)
        low, high = np.maximum(value - reach, -1.0), np.minimum(value + reach, 1.0)
        if np.isinf(reach).any():  # of what may have become infinite there is neither
            low, high = (np.where(np.isinf(reach), np.nan, end) for end in (low, high))
        if numerics.sin_within_pi:
            beyond = np.abs(self.value) > np.pi
            low, high = np.where(beyond, np.nan, low), np.where(beyond, np.nan, high)
        return self._rounded(value, low, high, numerics.ulps(numerics.sin_ulps), numerics.sin_absolute)

    # --- comparisons, which round nothing ---

    def minimum(self, other: Approx | float) -> Approx:
        """The lesser of the two, element by element."""
        return self._compared(self._lifted(other), np.minimum)

    def maximum(self, other: Approx | float) -> Approx:
        """The greater of the two, element by element."""
        return self._compared(self._lifted(other), np.maximum)

    def stepped(self, function: Callable[[F64], F64]) -> Approx:
        """A function that never falls and whose results are numbers that float32 holds: floor, sign."""
        return self._each(function)

    def tabled(self, below: float = np.inf) -> Approx:
        """The same, but rounded to float16 where the device looks such values up in a table (`half_tables`), which has
        those of |x| < `below`."""
        if not self.numerics.half_tables:
            return self
        inside = ~((self.low >= below) | (self.high <= -below))
        low, high = (np.where(inside, F16.decode(F16.encode(end)), end) for end in (self.low, self.high))
        return self._made(self.value, np.minimum(self.low, low), np.maximum(self.high, high))

    def _compared(self, other: Approx, chosen: Callable[[F64, F64], F64]) -> Approx:
        value = chosen(self.value, other.value)
        if self._is_exact and other._is_exact:
            return self._made(value, value, value)
        return self._made(value, chosen(self.low, other.low), chosen(self.high, other.high), other.rounded)

    # --- along a row: the last axis, which keeps one place ---

    def sum(self) -> Approx:
        """The sum of a row of n terms with n − 1 additions in any order (`Numerics.of_sum`), nothing where no order
        rounds (`Numerics.rounds`).

        A device that flushes may lose 2^-126 in each addition. Where Σ|x| passes the largest float32 some order
        overflows on its way, and nothing is demanded.
        """
        return self._summed(may_be_exact=True)

    def _summed(self, may_be_exact: bool) -> Approx:
        it = self._taken
        numerics, additions = self.numerics, max(it.value.shape[-1] - 1, 0)
        value = _over_rows(np.add, it.value)
        if it._is_exact:
            low = high = value
            magnitude = _over_rows(np.add, np.abs(it.value))
        else:
            low, high = _over_rows(np.add, it.low), _over_rows(np.add, it.high)
            magnitude = _over_rows(np.add, it._farthest)
        if may_be_exact:
            step = numerics.of_sum(float(additions), magnitude, np.maximum(np.abs(low), np.abs(high)))
        else:  # a running mean rounds what is no sum of some terms
            step = numerics.gamma(float(additions)) * magnitude
        if numerics.flushes_denormals:
            step = step + additions * numerics.underflow
        if may_be_exact:
            step = np.where(it._rounds_in_sum(magnitude), step, 0.0)
        free = ~(magnitude + step <= F32.largest)
        step = np.where(free, np.nan, step)
        least = np.where(low >= 0, np.maximum(low - step, 0.0), low - step)
        return Approx(value, least, high + step, numerics, self.part, step if low is value else None, rounded=True)

    def _rounds_in_sum(self, magnitude: F64) -> Mask:
        """The rows whose sum may round (see `Numerics.rounds`): all in which a term is not exact are among them."""
        n = self.value.shape[-1]
        if not n:
            return np.zeros_like(magnitude, dtype=bool)
        # What the first element is a multiple of bounds what all of them are: for most rows that says enough.
        rounding = self.numerics.rounds(quanta(self.value[..., :1]), magnitude)
        if not self._is_exact:
            rounding |= _over_rows(np.logical_or, (self.low != self.value) | (self.high != self.value))
        left = ~rounding[..., 0]
        if n > 1 and left.any():
            least = _over_rows(np.minimum, quanta(self.value[left]))
            rounding[left] = self.numerics.rounds(least, magnitude[left])
        return rounding

    def mean(self) -> Approx:
        """The sum of a row over the number of its elements. A running mean (Welford) rounds where a sum does not. Of no
        elements it is NaN, as 0 / 0 is, and nothing is demanded."""
        n = self.value.shape[-1]
        if not n:
            none = np.full((*self.value.shape[:-1], 1), np.nan)
            return self._made(none, none, none, rounded=True)
        exact = n < 2 and self.numerics.division_ulps <= 0.5  # a division by 1
        return self.sum() if exact else self._summed(may_be_exact=False) / float(n)

    def variance(self) -> Approx:
        """The mean of the squared distances from the mean, in two passes, or updated as Welford does.

        A device with `Numerics.one_pass_variance` may compute Σx²/n − (Σx/n)² instead, whose error grows with the mean.
        """
        apart = self - self.mean()
        found = (apart * apart).mean()
        if not self.numerics.one_pass_variance:
            return found
        mean = self.mean()
        return found.either((self * self).mean() - mean * mean)

    def taken(self, places: np.ndarray) -> Approx:
        """The elements at `places` of each row."""
        return self._each(lambda ends: np.take_along_axis(ends, places, -1))

    def at(self, places: np.ndarray) -> Approx:
        """The same elements of every row."""
        return self._each(lambda ends: np.ascontiguousarray(ends[..., places]))

    def replaced(self, places: np.ndarray, its: Approx) -> Approx:
        """The rows, with other numbers in some of their places."""
        value, low, high = (np.array(ends) for ends in self._ends)
        for ends, others in zip((value, low, high), its._ends):
            ends[..., places] = others
        return self._made(value, low, high, its.rounded)

    def largest(self) -> Approx:
        """The greatest element of a row."""
        value, low, high = (_over_rows(np.maximum, ends) for ends in self._taken._ends)
        return self._made(value, low, high)

    def through(self, dtype: DType) -> Approx:
        """The value once it has been stored in a narrower type; a kernel that does so on its way is wrong."""
        value = dtype.decode(dtype.encode(self.value))
        return self._made(value, *self._narrowed(dtype, self.low, self.high))

    # --- the end ---

    def stored(self, dtype: DType, shape: tuple[int, ...]) -> Expected:
        """What is expected of an output: rounded once more where its type is narrower than float32.

        Where every right kernel overflows, the output must be that very infinity.
        """
        value, low, high = (np.broadcast_to(ends, shape) for ends in self._ends)
        if dtype.itemsize < 4:
            low, high = self._narrowed(dtype, low, high)
        if self.off is None or dtype.itemsize < 4:
            bound = np.maximum(high - value, value - low)
        else:
            bound = np.broadcast_to(self.off, shape)
        bound = np.where(np.isnan(bound), np.inf, np.maximum(bound, 0.0))
        if self.numerics.any_rounding or not np.isinf(bound).any():
            return Expected(value, bound)
        ends = (dtype.decode(dtype.encode(end)) for end in (low, high))
        infinite = np.isinf(low + high) & np.equal(*ends)
        if not infinite.any():
            return Expected(value, bound)
        value = np.where(infinite, np.copysign(np.inf, low), value)
        return Expected(value, np.where(infinite, 0.0, bound), exact=infinite, bits=dtype.encode(value))

    def _narrowed(self, dtype: DType, low: F64, high: F64) -> tuple[F64, F64]:
        if self.numerics.any_rounding:
            relative = 2 * dtype.unit_roundoff
            low = low - relative * np.maximum(np.abs(low), dtype.smallest_normal)
            high = high + relative * np.maximum(np.abs(high), dtype.smallest_normal)
            low = np.where(low > dtype.largest, dtype.largest, np.where(low < -dtype.largest, -np.inf, low))
            high = np.where(high < -dtype.largest, -dtype.largest, np.where(high > dtype.largest, np.inf, high))
        else:
            low, high = dtype.decode(dtype.encode(low)), dtype.decode(dtype.encode(high))
        if self.numerics.flushes_denormals:
            low, high = _with_zero(low, high, dtype.smallest_normal)
        return low, high

    # --- how intervals are made ---

    @property
    def _ends(self) -> tuple[F64, F64, F64]:
        return self.value, self.low, self.high

    @property
    def _farthest(self) -> F64:
        """The greatest size that a number may have."""
        if self._is_exact:
            return np.abs(self.value)
        ends = np.abs(self.low), np.abs(self.high)
        return np.maximum(*ends, out=ends[0])

    @property
    def _is_exact(self) -> bool:
        return self.low is self.value and self.high is self.value

    @property
    def _exact_at(self) -> Mask:
        """The elements that are known exactly: none after an operation, which may have rounded.

        Each element is looked at by itself, so that its bound is that which it has in any other tensor.
        """
        if self.rounded or self._is_exact:
            return np.array(not self.rounded)
        exact: Mask = (self.low == self.value) & (self.high == self.value)
        return exact

    def _exact_with(self, its: Approx) -> Mask | bool:
        """Where both numbers are known exactly; True for everywhere, and False for nowhere."""
        if self._is_exact and its._is_exact:
            return True
        return False if self.rounded or its.rounded else self._exact_at & its._exact_at

    @property
    def _is_zero(self) -> bool:
        """Whether this is the constant 0, which nobody adds."""
        return self._is_exact and self.value.ndim == 0 and self.value == 0

    @property
    def _taken(self) -> Approx:
        """The elements of a row that go into its sums."""
        return self if self.part is None else self._each(lambda ends: ends[..., : self.part])

    def _each(self, function: Callable[[F64], F64]) -> Approx:
        """A function that rounds nothing, of the value and of both ends; of an exact number once for all three."""
        if self._is_exact:
            value = function(self.value)
            return self._made(value, value, value)
        value, low, high = (function(ends) for ends in self._ends)
        return self._made(value, low, high)

    def _made(self, value: F64, low: F64, high: F64, rounded: bool = False) -> Approx:
        return Approx(value, low, high, self.numerics, self.part, rounded=rounded or self.rounded)

    def _unless(self, held: Mask) -> float | F64:
        """The relative error of an operation on exact numbers: none where float32 holds the result."""
        return self.numerics.u if self.numerics.conversions else np.where(held, 0.0, self.numerics.u)

    def _lifted(self, other: Approx | float) -> Approx:
        return other if isinstance(other, Approx) else self.constant(other)

    def _monotone(self, function: Callable[[F64], F64], relative: float | F64, absolute: float | F64 = 0.0) -> Approx:
        """A function that never falls, with its errors."""
        value = function(self.value)
        if self._is_exact:
            return self._rounded(value, value, value, relative, absolute)
        return self._rounded(value, function(self.low), function(self.high), relative, absolute)

    def _rounded(
        self,
        value: F64,
        low: F64,
        high: F64,
        relative: float | F64,
        absolute: float | F64 = 0.0,
        denormal: float | None = None,
    ) -> Approx:
        """The result of one operation whose exact result lies from `low` to `high`.

        The result is off by `relative`, or by `absolute` if that is more. A denormal is off by `denormal` (by default
        `relative`) of the smallest normal number, for the spacing of denormals is that of the numbers just above it.
        Rounding never crosses 0.
        """
        numerics = self.numerics
        least = (relative if denormal is None else denormal) * _TINY * F32.unit_roundoff / numerics.roundoff
        step = _step(low, relative, absolute, least)
        below = np.asarray(low - step)
        above = np.asarray(high + (step if low is high else _step(high, relative, absolute, least)))
        if _is_nothing(absolute):
            np.copyto(below, 0.0, where=(below < 0) & (low >= 0))
            np.copyto(above, 0.0, where=(above > 0) & (high <= 0))
        if numerics.flushes_denormals:
            below, above = _with_zero(below, above, _TINY)
        beyond = (above > F32.largest) | (below < -F32.largest)
        if beyond.any():  # of what is NaN on both sides, as an exact product of an infinity is, nothing is demanded
            known = ~(np.isnan(below) & np.isnan(above))
            below = np.where(np.isinf(low) & known, low, below)
            above = np.where(np.isinf(high) & known, high, above)
            below, above = _overflowed(below, above, numerics)
        return self._made(value, below, above, rounded=True)


def _over_rows(function: np.ufunc, rows: np.ndarray) -> np.ndarray:
    """The sum, the least … along the last axis, which keeps one place. Short rows are gone through element by element
    of all rows: to begin with a row costs NumPy as much as dozens of elements."""
    n = rows.shape[-1]
    if not 0 < n <= _SHORT or rows.size < _SHORT * n:
        reduced: np.ndarray = function.reduce(rows, -1, keepdims=True)
        return reduced
    found: np.ndarray = rows[..., :1].copy()
    for i in range(1, n):
        function(found, rows[..., i : i + 1], out=found)
    return found


def _step(end: F64, relative: float | F64, absolute: float | F64, least: float | F64) -> F64:
    """How far a result near `end` may be off."""
    step: F64 = np.asarray(np.abs(end) * relative)
    if not np.isscalar(least) and np.shape(least) != step.shape:
        step = np.maximum(step, least)
    else:
        np.maximum(step, least, out=step)
    return step if _is_nothing(absolute) else np.maximum(step, absolute)


def _is_nothing(number: float | F64) -> bool:
    return isinstance(number, float) and number == 0.0


def _with_zero(low: F64, high: F64, smallest_normal: float) -> tuple[F64, F64]:
    """The interval with 0 in it, where a result in it may be a denormal that is flushed."""
    above, below = (low > 0) & (low < smallest_normal), (high < 0) & (high > -smallest_normal)
    low = np.where(above, 0.0, low) if above.any() else low
    return low, np.where(below, 0.0, high) if below.any() else high


def _overflowed(low: F64, high: F64, numerics: Numerics) -> tuple[F64, F64]:
    """The interval where what lies beyond the largest float32 may be an infinity, and all of it both may be anything.

    A result beyond it stays in the interval as well: a kernel in float64 has it, and what is made of it is finite.
    """
    if numerics.any_rounding:  # toward 0 there is no overflow
        low, high = np.minimum(low, F32.largest), np.maximum(high, -F32.largest)
    high = np.where(high > F32.largest, np.inf, high)
    low = np.where(low < -F32.largest, -np.inf, low)
    anything = (low == -np.inf) & (high == np.inf)
    return np.where(anything, np.nan, low), np.where(anything, np.nan, high)


def _products(one: Approx, other: Approx) -> tuple[F64, F64]:
    """The least and the greatest product of two intervals."""
    if one._is_exact or other._is_exact:
        number, interval = (one, other) if one._is_exact else (other, one)
        ends = number.value * interval.low, number.value * interval.high
        return np.minimum(*ends), np.maximum(*ends)
    first, *others = (one.low * other.low, one.low * other.high, one.high * other.low, one.high * other.high)
    least, most = np.minimum(first, others[0]), np.maximum(first, others[0])
    for product in others[1:]:
        least, most = np.minimum(least, product), np.maximum(most, product)
    return least, most


def _erf(x: F64) -> F64:
    from math import erf

    found: F64 = np.vectorize(erf, otypes=[np.float64])(x)
    return found
