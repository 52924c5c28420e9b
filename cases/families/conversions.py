"""Elements in another type: what is expected of a conversion, and what wrong ones give."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from opconform.cases.families.encoders import ENCODERS
from opconform.harness.model import blocks
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F16, F64, DType, Mask, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import ShapeValues

#: The quantised types whose rounding has a derived bound.
ROUNDED = tuple(ENCODERS)
_ELEMENTS_TOGETHER = 1 << 14  #: whose bounds are computed at once: all that is held of them fits into a cache

Conversion = Callable[[Raw, DType, DType, Numerics], Expected]


def converted(elements: Raw, came: DType, goes: DType, numerics: Numerics) -> Expected:
    """`elements` of type `came` as `goes`, each rounded to nearest, ties to even, where that is narrower.

    Where the type stays, or holds the value, every bit counts: a conversion is exact if it can be (IEEE 754-2019,
    section 5.4.2). Elsewhere it has one right answer on a device that rounds to nearest; one past the largest number by
    half a unit or more is an infinity (section 7.4). Where a device may round either way (`any_rounding`), either
    neighbour is right: the error stays below the distance between them, 2u·2^e for values from 2^e to 2^(e+1); an
    overflow may then end at the largest number, and nothing is demanded. A device that flushes may make 0 of a denormal
    of either type.
    """
    if came is goes:
        return _bits(elements, goes)
    x = came.decode(elements)
    bits = goes.encode(x)
    value = goes.decode(bits)
    bound = np.zeros(x.shape)
    exact = np.ones(x.shape, dtype=bool)
    if numerics.any_rounding:
        exact = (value == x) | ~np.isfinite(x)
        spacing = 2 * goes.unit_roundoff * np.exp2(np.floor(np.log2(np.maximum(np.abs(x), goes.smallest_normal))))
        bound = np.where(exact, 0.0, np.where(np.abs(x) > goes.largest, np.inf, spacing))
    if numerics.flushes_denormals:
        denormal = _is_denormal(x, came) | _is_denormal(x, goes)
        exact = exact & ~denormal
        bound = np.where(denormal, np.maximum(bound, np.abs(x)), bound)
    return Expected(np.where(exact, value, x), bound, exact=exact, bits=bits)


def decoded(raw: Raw, came: DType, goes: DType, numerics: Numerics) -> Expected:
    """Elements of any type in a wider one: exact, but for blocks.

    An element of a block is scale times code, perhaps with a minimum: `blocks.ROUNDINGS` roundings, the reference's own
    among them, of parts that may cancel: γ_c·(|part| + |minimum|). A device that flushes may take a scale that is a
    denormal float16 for 0.
    """
    if came.block == 1:
        return converted(raw, came, goes, numerics)
    value = came.decode(raw)
    scaled, least = blocks.magnitudes(came.name, raw)
    size = scaled + least
    bound = numerics.gamma(float(blocks.ROUNDINGS)) * size + 4 * numerics.underflow
    if numerics.flushes_denormals:
        bound = np.where(blocks.with_tiny_scale(came.name, raw), size, bound)
    return Expected(value, bound)


def stored(raw: Raw, came: DType, goes: DType, numerics: Numerics) -> tuple[F64, F64, Raw | None]:
    """Rows as they are stored: value, bound, and the bits where they are known."""
    if goes.block == 1:
        found = converted(raw, came, goes, numerics)
        return found.value, found.bound, found.bits
    value = came.decode(raw)
    flushed = np.where(np.abs(value) < came.smallest_normal, np.abs(value), 0.0) if numerics.flushes_denormals else 0.0
    return value, rounded(value, goes) + flushed, None


def rounded(value: F64, goes: DType) -> F64:
    """How far each element may be from `value` once it is rounded to the codes of blocks: `ENCODERS` says it."""
    parts, together = value.reshape(-1, goes.block), _ELEMENTS_TOGETHER // goes.block
    off = np.empty(parts.shape)
    for start in range(0, len(parts), together):
        some = slice(start, start + together)
        off[some] = ENCODERS[goes.name].off(np.ascontiguousarray(parts[some].T)).T
    return off.reshape(value.shape)


def fitted_to_scales(name: str) -> ShapeValues:
    """Brings elements of an input that become blocks to where the type holds the blocks' scales.

    A block that is too large comes down by a power of two, and one that is too small for any scale of the type comes
    up: nothing could be demanded of it. Denormals come up to where those of a scale begin: a block of such small ones
    is 0 in every kernel, right or wrong.
    """

    def fit(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
        x, came, goes = values[name], case.inputs[name].type, case.outputs["out"].type
        if goes.block == 1 or came.block > 1:
            return
        if case.recipe == "denormal":
            x *= goes.smallest_normal / came.smallest_normal
        encoder, parts = ENCODERS[goes.name], _in_blocks(x, goes)
        amax = np.abs(parts).max(-1, keepdims=True, initial=0.0)
        parts *= np.exp2(-np.ceil(np.log2(np.maximum(amax / (goes.largest * encoder.reach), 1.0))))
        lacking = np.where(amax > 0, encoder.least / np.where(amax > 0, amax, 1.0), 0.0)
        parts *= np.exp2(np.ceil(np.log2(np.maximum(lacking, 1.0))))

    return fit


def _in_blocks(values: F64, goes: DType) -> F64:
    """[..., elements of a row] as [..., blocks, elements of a block]."""
    return values.reshape(*values.shape[:-1], values.shape[-1] // goes.block, goes.block)


def misconverted(case: Case) -> Iterator[tuple[str, Conversion]]:
    """Wrong conversions of x, by what a hint says of them."""
    came, goes = case.inputs["x"].type, case.outputs["out"].type
    if came is not goes and goes.name != "f32":
        yield "conversions cut off instead of rounding", _cut_off
        yield "conversions saturate instead of giving infinities", _saturated
    if {came.name, goes.name} == {"f32", "bf16"} or came.name == goes.name == "bf16":
        yield "elements go through f16 on their way", _through_f16


def _is_denormal(x: F64, dtype: DType) -> Mask:
    """Which elements are denormal in their type."""
    found: Mask = (x != 0) & (np.abs(x) < dtype.smallest_normal)
    return found


def _bits(bits: Raw, goes: DType) -> Expected:
    value = goes.decode(bits)
    return Expected(value, np.zeros(value.shape), exact=np.ones(value.shape, dtype=bool), bits=bits)


def _cut_off(elements: Raw, came: DType, goes: DType, numerics: Numerics) -> Expected:
    """Rounded toward zero: the nearest element, or the one below it in magnitude (their bits are neighbours)."""
    x = came.decode(elements)
    near = goes.encode(x)
    beyond = np.abs(goes.decode(near)) > np.abs(x)
    return _bits(np.where(beyond, near - 1, near).astype(goes.raw), goes)


def _saturated(elements: Raw, came: DType, goes: DType, numerics: Numerics) -> Expected:
    x = came.decode(elements)
    return _bits(goes.encode(np.where(np.isfinite(x), np.clip(x, -goes.largest, goes.largest), x)), goes)


def _through_f16(elements: Raw, came: DType, goes: DType, numerics: Numerics) -> Expected:
    return _bits(goes.encode(F16.decode(F16.encode(came.decode(elements)))), goes)
