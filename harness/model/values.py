"""The values of a case's inputs: from a recipe and a seed, or from the exact bytes that a case file holds.

Recipes stand from the simplest to the strangest, so that shrinking ends in small integers unless the failure needs
something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from opconform.harness.model import blocks
from opconform.harness.model.buffers import unwritten
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DTYPES, F64, DType, Mask, Raw
from opconform.harness.model.layouts import Layout, LayoutClass
from opconform.harness.model.op import Index, Op

_SMALL = np.array([1.0, 2.0, 3.0, 4.0, -1.0, -2.0, -3.0, -4.0])
_ZEROS = np.array([0.0, -0.0, 1.0, -1.0])
_SIGNS = np.array([1.0, -1.0])
_SHARES = (1 / 8, 1 / 50)
_LARGEST_EDGE = 65520.0


def _small_int(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, argument: int) -> F64:
    """±1 … ±4: the right answer is exact, and every element counts."""
    return _SMALL[rng.integers(0, 8, shape)]


def _index(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, argument: int) -> F64:
    """Each element names its own flat index, from 1; the sign says which argument it stands in. Other float arguments
    than the first hold twice as much, or a sum of two arguments would be 0 everywhere."""
    size = math.prod(shape)
    limit = int(min(1 / dtype.unit_roundoff if dtype.is_float else dtype.largest, 2**31 - 1))
    places = (np.arange(size) % limit + 1).astype(np.float64).reshape(shape)
    if argument == 0:
        return places
    return -2 * places if dtype.is_float else -places


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, argument: int) -> F64:
    """Standard normal (integers: uniform over ±1000)."""
    return rng.standard_normal(shape) if dtype.is_float else rng.integers(-1000, 1001, shape).astype(np.float64)


def _whole(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, argument: int) -> F64:
    """Odd numbers of up to 12 bits (5 in arguments after the first): too many for float16's, bfloat16's and TF32's
    significands, and few enough that a row of them, or of their products with the others, is summed exactly."""
    if not dtype.is_float:
        return _normal(rng, shape, dtype, argument)
    room = round(-np.log2(dtype.unit_roundoff)) - max(max(shape, default=1) - 1, 0).bit_length()
    bits = min(5 if argument else 12, max(room, 1))
    found: F64 = (2.0 * rng.integers(0, 1 << bits - 1, shape) + 1) * -_SIGNS[rng.integers(0, 2, shape)]
    return found


def _signed_zero(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, argument: int) -> F64:
    """+0, −0 and ±1."""
    return _ZEROS[rng.integers(0, 4, shape)]


def _denormal(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, argument: int) -> F64:
    """Around the smallest normal number, most of them below it."""
    return rng.uniform(-1.5, 1.5, shape) * dtype.smallest_normal


def _wide(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, argument: int) -> F64:
    """Magnitudes over 60 binary orders (16 for f16, 31 for integers, 63 for i64)."""
    if not dtype.is_float:
        return np.floor(np.ldexp(rng.uniform(-1, 1, shape), rng.integers(0, 64 if dtype.itemsize > 4 else 32, shape)))
    span = 30 if dtype.smallest_normal < 2.0**-100 else 8
    return np.ldexp(rng.uniform(-1, 1, shape), rng.integers(-span, span + 1, shape))


def _edges(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, argument: int) -> F64:
    """Standard normal, and in every eighth place a number at an edge: those that f16 has last and has no more (65504
    and 65520, 2^-24 and 2^-25), the smallest normal one, 0. The largest finite ones are in `special`: a sum of them
    may overflow, and nothing could be demanded of it.
    """
    values = rng.standard_normal(shape)
    edges = _of_edges(dtype)
    chosen = edges[rng.integers(0, len(edges), shape)] * _SIGNS[rng.integers(0, 2, shape)]  # `rng.choice`, but faster
    if dtype.largest < _LARGEST_EDGE:
        chosen = np.where(np.abs(chosen) > dtype.largest, dtype.largest, chosen)
    return np.where(rng.random(shape) < 1 / 8, chosen, values)


@cache
def _of_edges(dtype: DType) -> F64:
    return np.array([65504.0, 65519.0, _LARGEST_EDGE, 2.0**-24, 2.0**-25, dtype.smallest_normal, 0.0])


@cache
def _of_odd(dtype: DType) -> F64:
    return np.array([np.inf, -np.inf, np.nan, dtype.largest, -dtype.largest])


def _special(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, argument: int) -> F64:
    """As `edges`, with infinities, NaN and the largest finite numbers besides: one value in eight, or one in fifty, is
    none of the usual ones.

    The bits of a NaN are drawn too (`_with_payloads`).
    """
    values = _edges(rng, shape, dtype, argument)
    odd = _of_odd(dtype)
    drawn = odd[rng.integers(0, len(odd), shape)]
    return np.where(rng.random(shape) < _SHARES[rng.integers(0, 2)], drawn, values)


_FRACTIONS = {"f64": 52, "f32": 23, "f16": 10, "bf16": 7}  #: bits


def _with_payloads(raw: Raw, dtype: DType, rng: np.random.Generator) -> Raw:
    """The elements, each NaN with a sign and a payload of its own: any bits of the fraction but none at all. Those with
    only the lowest bits set, which a conversion that cuts off turns into infinities, and with all bits set, which one
    that rounds turns into zeros, are among them. None is what a gap or an output that was not written holds.
    """
    is_nan = np.isnan(dtype.decode(raw))
    fraction = _FRACTIONS[dtype.name]
    exponent = ((1 << (8 * dtype.itemsize - 1 - fraction)) - 1) << fraction
    payload = rng.integers(1, 1 << fraction, raw.shape)
    payload = np.where(rng.random(raw.shape) < 1 / 3, 1, payload)
    payload = np.where(rng.random(raw.shape) < 1 / 4, (1 << fraction) - 1, payload)
    sign = np.where(payload == (1 << fraction) - 1, 0, rng.integers(0, 2, raw.shape)) << (8 * dtype.itemsize - 1)
    bits = (sign | exponent | payload).astype(raw.dtype)
    bits = np.where(bits == unwritten(dtype), raw.dtype.type(exponent | 1), bits)
    return np.where(is_nan, bits, raw)


Recipe = Callable[[np.random.Generator, tuple[int, ...], DType, int], F64]

RECIPES: dict[str, Recipe] = {
    "small_int": _small_int,
    "index": _index,
    "whole": _whole,
    "normal": _normal,
    "signed_zero": _signed_zero,
    "denormal": _denormal,
    "wide": _wide,
    "edges": _edges,
    "special": _special,
}
_MANY_PERMUTATIONS = 1 << 10
INTEGER_RECIPES = ("small_int", "index", "normal", "wide")
_FLOATS_ONLY = ("edges", "special")  #: an index, or a block, is "normal" beside them
FINITE_RECIPES = tuple(name for name in RECIPES if name != "special")


def recipes_of(op: Op, dtype: str) -> tuple[str, ...]:
    """The recipes that an op is tried with on elements of a type, the simplest first.

    Infinities and NaN are for ops of which each element of the output comes from a few elements: in a sum right kernels
    carry them in other ways (a scan as a product of matrices makes NaN of what stands before an infinity). No block of
    a quantised type holds one.
    """
    if op.composite.recipes:
        return op.composite.recipes
    if not DTYPES[dtype].is_float:
        return INTEGER_RECIPES
    return tuple(RECIPES) if op.pointwise and DTYPES[dtype].block == 1 else FINITE_RECIPES


class _NoEntropy(np.random.bit_generator.ISeedSequence):
    """Zeros, for a generator whose state is set at once."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return np.zeros(n_words, dtype)


_NO_ENTROPY = _NoEntropy()


def _generator(seed: int | tuple[int, int]) -> np.random.Generator:
    """`numpy.random.default_rng(seed)`; what the seed makes of the state is kept, for variants have few seeds."""
    bits = np.random.PCG64(_NO_ENTROPY)  # type: ignore[arg-type]  # NumPy takes any ISeedSequence; its stubs do not
    bits.state = _state(seed)
    return np.random.Generator(bits)


@lru_cache(maxsize=1024)
def _state(seed: int | tuple[int, int]) -> Any:
    return np.random.PCG64(seed).state


def inputs_of(case: Case, op: Op) -> dict[str, Raw]:
    """The raw elements of every input, C-contiguous and of its shape.

    Raises `CaseError` for a recipe that does not exist.
    """
    if case.data is not None:
        check_indices(case, op)
        return {name: _as_stored(_from_bytes(case.data[name], layout), layout) for name, layout in case.inputs.items()}
    if case.recipe not in RECIPES and case.recipe not in op.composite.recipes:
        known = dict.fromkeys([*op.composite.recipes, *RECIPES])
        raise CaseError(f"case.recipe is {case.recipe!r}; it must be one of {', '.join(known)}")
    recipe = RECIPES.get(case.recipe, _normal)
    rng = _generator(case.seed)
    values = {
        name: (recipe if _has_edges(layout) or case.recipe not in _FLOATS_ONLY else _normal)(
            rng, layout.shape, layout.type, index
        )
        for index, (name, layout) in enumerate(case.inputs.items())
    }
    for name, index in op.indices.items():
        if name in values:
            values[name] = _places(case, name, index)
    if op.composite.shape_values is not None:
        op.composite.shape_values(case, values, rng)
    if case.keep is not None:
        for name, layout in case.inputs.items():
            if layout.type.is_float:
                _spoil_other_slices(values[name], layout, op.composite.batch_axes, case.keep)
    raw = {}
    for number, (name, layout) in enumerate(case.inputs.items()):
        if layout.type.block > 1 and case.seed % 2:  # of two seeds one draws the blocks themselves
            own = _generator((case.seed, number))
            found = blocks.drawn(layout.dtype, own, layout.blocks, widest=case.recipe == "wide")
        else:
            found = layout.type.encode(values[name])
        if case.recipe == "special" and layout.dtype in _FRACTIONS:
            found = _with_payloads(found, layout.type, rng)
        raw[name] = _as_stored(found, layout)
    return raw


def places_of(case: Case, op: Op, name: str) -> np.ndarray:
    """The whole numbers in an argument that `Op.indices` has, without the values of all others."""
    layout = case.inputs[name]
    if case.data is not None:
        return _from_bytes(case.data[name], layout).view(layout.type.native)
    drawn = layout.type.encode(_places(case, name, op.indices[name]))
    return _as_stored(drawn, layout).view(layout.type.native)


def check_indices(case: Case, op: Op) -> None:
    """Raises `CaseError` for a case whose exact bytes hold an index that there is not, or one twice in a row whose
    indices must differ."""
    for name, index in op.indices.items():
        if case.data is None or name not in case.inputs:
            continue
        size, found = index.size(case), places_of(case, op, name)
        for bad in found[(found < 0) | (found >= size)].reshape(-1)[:1]:
            where = f"{index.of} has {size} there" if index.of else f"it must be below {size}"
            raise CaseError(f"case.data.{name} holds the index {bad}; {where}")
        rows = np.sort(found.reshape(-1, found.shape[-1]) if found.size else found, axis=-1)
        if index.unique and found.size and (rows[:, 1:] == rows[:, :-1]).any():
            raise CaseError(f"case.data.{name} holds an index twice in a row; all of a row must differ")


def _places(case: Case, name: str, index: Index) -> F64:
    """Places below the index's size: in any order, ascending, backwards, at both ends, all the same one."""
    rng = _generator((case.seed, len(name)))
    shape, size = case.inputs[name].shape, max(index.size(case), 1)
    count = shape[-1]
    rows = math.prod(shape[:-1])
    form = rng.integers(0, 6)
    if index.unique:
        if rows > _MANY_PERMUTATIONS:  # at once: one by one they take longer than all else
            drawn = rng.permuted(np.tile(np.arange(size, dtype=np.float64), (rows, 1)), axis=1)[:, :count]
        else:
            drawn = np.array([rng.permutation(size)[:count] for _ in range(rows)], dtype=np.float64).reshape(rows, -1)
        drawn = np.sort(drawn, axis=-1) if form == 1 else np.sort(drawn, axis=-1)[:, ::-1] if form == 2 else drawn
        return drawn.reshape(shape)
    drawn = rng.integers(0, size, (rows, count)).astype(np.float64)
    if form in (1, 2):
        drawn = np.sort(drawn, axis=-1)[:, :: -1 if form == 2 else 1]
    elif form == 3:
        drawn = rng.choice((0.0, size - 1.0), (rows, count))
    elif form == 4:
        drawn[:] = drawn[:, :1] if count else drawn
    return drawn.reshape(shape)


def _has_edges(layout: Layout) -> bool:
    return layout.type.is_float and layout.type.block == 1


def index_coded(layout: Layout) -> Raw | None:
    """Elements that name their own flat index, from 1; None where the type cannot hold so many numbers."""
    if layout.type.block > 1:
        return None
    if layout.size > min(1 / layout.type.unit_roundoff if layout.type.is_float else layout.type.largest, 2**31 - 1):
        return None
    codes = layout.type.encode(np.arange(1.0, layout.size + 1).reshape(layout.shape))
    return _as_stored(codes, layout)


def slices(shape: tuple[int, ...], batch_axes: tuple[int, ...]) -> int:
    """How many batch slices a tensor of `shape` has."""
    return math.prod(shape[axis] for axis in batch_axes)


def _spoil_other_slices(values: F64, layout: Layout, batch_axes: tuple[int, ...], keep: int) -> None:
    if values.size:
        values[_other_slices(layout, batch_axes, keep)] = np.nan


def _other_slices(layout: Layout, batch_axes: tuple[int, ...], keep: int) -> Mask:
    """Every batch slice but number `keep` (modulo the number of slices); batch axes are the leading ones.

    Slices that share their memory with the kept one, along an axis of stride 0, are not among them.
    """
    sizes = tuple(layout.shape[axis] for axis in batch_axes)
    kept = np.unravel_index(keep % slices(layout.shape, batch_axes), sizes)
    others = np.zeros(sizes, dtype=bool)
    for axis in batch_axes:
        if layout.strides[axis]:
            others |= np.expand_dims(np.arange(sizes[axis]) != kept[axis], tuple(range(1, len(sizes) - axis)))
    return others


def spoilt_by_itself(case: Case, op: Op, output: str) -> Mask:
    """Which elements of an output may stand in a batch slice that `keep` has spoilt: NaN there may be that slice's own.

    An element that comes from one of x, as `Op.sources` tells, stands in that one's slice; one that comes from none may
    stand in any. Otherwise a slice of the output is that of the input with the most slices, if it has as many along
    each batch axis, or several times as many along the outermost one (states, kept at several times). Where it has not,
    nobody can tell, and any element may be spoilt.
    """
    shape = case.outputs[output].shape
    if case.keep is None or not case.outputs[output].size:
        return np.zeros(shape, dtype=bool)
    axes = op.composite.batch_axes
    name, layout = max(case.inputs.items(), key=lambda item: slices(item[1].shape, axes))
    if not layout.size:
        return np.ones(shape, dtype=bool)
    others = _other_slices(layout, axes, case.keep)
    inner = tuple(range(len(axes), len(layout.shape)))
    if op.sources is not None and name in (sources := op.sources(case)):
        of_input = np.broadcast_to(np.expand_dims(others, inner), layout.shape)
        found: Mask = np.append(of_input, True)[sources[name]]
        return found
    times, rest = divmod(shape[axes[0]], layout.shape[axes[0]])
    if rest or any(shape[axis] != layout.shape[axis] for axis in axes[1:]):
        return np.ones(shape, dtype=bool)
    return np.broadcast_to(np.expand_dims(np.concatenate([others] * times), inner), shape)


def _as_stored(raw: Raw, layout: Layout) -> Raw:
    """What memory holds once `raw` is laid out: elements that share an address hold one value, the one at index 0 where
    a stride is 0, the last one otherwise."""
    if layout.kind is not LayoutClass.BROADCAST:
        return raw
    first = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in layout.strides)
    raw = np.ascontiguousarray(np.broadcast_to(raw[first], raw.shape))
    spread = replace(layout, shape=tuple(n if s else 1 for n, s in zip(layout.shape, layout.strides)))
    if not spread.overlaps:
        return raw
    place = np.zeros((), dtype=np.int64)
    for size, stride in zip(layout.shape, layout.strides):
        place = place[..., None] + np.arange(size) * (stride // layout.type.itemsize)
    memory = np.zeros(int(np.max(place)) + 1, raw.dtype)
    memory[place] = raw
    return memory[place]


def _from_bytes(data: bytes, layout: Layout) -> Raw:
    return np.frombuffer(data, dtype=layout.type.raw).reshape(layout.blocks)


def data_of(values: dict[str, Raw]) -> dict[str, bytes]:
    """The exact bytes of raw elements, as a case file holds them."""
    return {name: np.ascontiguousarray(raw).tobytes() for name, raw in values.items()}
