"""What a wrong kernel would return: hypotheses about layouts and precision, as a table of named readings of a case.

A hypothesis is judged like a backend: `diagnosis.py` holds what was returned against the reference of the reading. An
op adds hypotheses of its own with `Op.hypotheses`. They stand from the plainest to the strangest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from functools import partial

import numpy as np

from opconform.harness.model import blocks
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import DTYPES, F32, DType, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Hypothesis, Image, Places, Reading
from opconform.harness.model.layouts import Layout, contiguous_strides
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op

#: How many elements a kernel takes at once: vectors of 2 and 4 first, then tiles and work groups.
TILES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_GRID = 65535  #: the most workgroups that Vulkan and CUDA promise along y and z


def hypotheses(op: Op, image: Image) -> Iterator[Hypothesis]:
    """All hypotheses on a case of `op`: nothing written, the op's own, wrong reads, wrong writes, tails."""
    layout = image.case.outputs[image.out]
    nothing = np.full(layout.shape, -1, dtype=np.int64)
    yield Hypothesis(f"{image.out} is not written at all", partial(image.with_source, nothing))
    if op.hypotheses is not None:
        yield from op.hypotheses(image)
    for name, read_layout in image.case.inputs.items():
        yield from _misread(image, name, read_layout)
    yield from _misdecoded(image)
    yield from _together(image)
    yield from _miswritten(image, layout)
    yield from _tails(image, layout)
    yield from _narrowed(op, image)


def dimension(rank: int, k: int) -> str:
    """Dimension `k` (0 is ne0) in words."""
    return f"the outermost dimension (ne{k})" if k == rank - 1 else f"dimension ne{k}"


def _spread(layout: Layout) -> list[int]:
    """The dimensions (0 is ne0) that have more than one element, the outermost first."""
    return [k for k in reversed(range(len(layout.ne))) if layout.ne[k] > 1]


def _misplacements(layout: Layout) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Wrong strides and offsets that a kernel may take for those of `layout`, with words for `{}`'s place."""
    size, rank, nb = layout.type.itemsize, len(layout.shape), layout.nb
    packed = contiguous_strides(layout.blocks, size)
    yield "the byte offset of {} is dropped", layout.strides, 0
    yield "{} is {} as if it were packed", packed, layout.offset
    for k in _spread(layout):
        inner = nb[k - 1] * layout.blocks[::-1][k - 1] if k else size
        ignored = (*nb[:k], inner, *nb[k + 1 :])[::-1]
        yield f"the stride nb{k} of {{}} is ignored: i{k} is {{}} as if packed", ignored, layout.offset
    yield "{} is {} as if it were packed and at offset 0", packed, 0
    yield "the byte offset of {} is counted in elements", layout.strides, layout.offset * size
    once_more = layout.offset // size // size * size
    yield "the offset of {} is divided by the element size once too often", layout.strides, once_more
    for j, k in itertools.combinations(range(rank), 2):
        if max(layout.ne[j], layout.ne[k]) > 1:
            exchanged = list(nb)
            exchanged[j], exchanged[k] = nb[k], nb[j]
            words = f"i{j} and i{k} of {{}} are exchanged (the strides nb{j} and nb{k} are swapped)"
            yield words, tuple(exchanged[::-1]), layout.offset


def _departures(layout: Layout) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Those of `_misplacements` that make a difference."""
    spread = [axis for axis, n in enumerate(layout.shape) if n > 1]
    for words, strides, offset in _misplacements(layout):
        if offset != layout.offset or any(strides[axis] != layout.strides[axis] for axis in spread):
            yield words, strides, offset


def _misread(image: Image, name: str, layout: Layout) -> Iterator[Hypothesis]:
    def read(strides: tuple[int, ...], offset: int) -> Callable[[], Reading]:
        return lambda: image.with_inputs(**{name: image.read(name, strides, offset)})

    for words, strides, offset in _departures(layout):
        yield Hypothesis(words.format(name, "read"), read(strides, offset))
    for k in _spread(layout):
        still = (*layout.nb[:k], 0, *layout.nb[k + 1 :])[::-1]
        yield Hypothesis(f"every i{k} of {name} is read from i{k} = 0", read(still, layout.offset))


def _misdecoded(image: Image) -> Iterator[Hypothesis]:
    """Blocks whose codes are taken for those of other elements."""
    for name, layout in image.case.inputs.items():
        if layout.type.block > 1:
            for says, raw in blocks.misread(layout.dtype, image.raw[name]):
                yield Hypothesis(f"{name} ({layout.dtype}): {says}", partial(image.with_inputs, **{name: raw}))


def _together(image: Image) -> Iterator[Hypothesis]:
    """Faults of all inputs at once."""
    inputs, raw = image.case.inputs, image.raw

    def packed() -> Reading:
        strides = {name: contiguous_strides(layout.blocks, layout.type.itemsize) for name, layout in inputs.items()}
        return image.with_inputs(**{name: image.read(name, strides[name], inputs[name].offset) for name in inputs})

    if len(inputs) > 1 and any(not layout.is_contiguous for layout in inputs.values()):
        yield Hypothesis("every input is read as if it were packed", packed)
    for one, other in itertools.combinations(inputs, 2):
        if raw[one].shape == raw[other].shape and raw[one].dtype == raw[other].dtype:
            exchanged = {one: raw[other], other: raw[one]}
            yield Hypothesis(f"{one} and {other} are exchanged", partial(image.with_inputs, **exchanged))


def _miswritten(image: Image, layout: Layout) -> Iterator[Hypothesis]:
    name, shape, rank = image.out, layout.shape, len(layout.shape)
    right = np.arange(layout.size, dtype=np.int64).reshape(shape)

    def write(strides: tuple[int, ...], offset: int) -> Callable[[], Reading]:
        return lambda: image.with_source(image.written(strides, offset))

    for k in _spread(layout):
        first = _along(shape, rank - 1 - k)
        only = np.where(first == 0, right, -1)
        says = f"{dimension(rank, k)} of {name} is not handled: only i{k} = 0 is written"
        yield Hypothesis(says, partial(image.with_source, only))
        if len(image.case.inputs) == 1:  # the same as reading every i{k} of it from i{k} = 0
            continue
        again = np.broadcast_to(right[_only(rank - 1 - k, 0)], shape)
        says = f"{dimension(rank, k)} is not handled: every i{k} of {name} gets the result of i{k} = 0"
        yield Hypothesis(says, partial(image.with_source, again))
    for words, strides, offset in _departures(layout):
        yield Hypothesis(words.format(name, "written"), write(strides, offset))
    if rank >= 2 and min(shape[-2:]) > 1:
        transposed = np.ascontiguousarray(right.swapaxes(-1, -2)).reshape(shape)
        yield Hypothesis(f"{name} is written transposed", partial(image.with_source, transposed))


def _tails(image: Image, layout: Layout) -> Iterator[Hypothesis]:
    """What is left of a dimension, or of the whole, once it has been cut into full tiles is not written."""
    rank = len(layout.shape)

    def elements() -> Places:
        return np.arange(layout.size, dtype=np.int64).reshape(layout.shape)

    def kept(index: Callable[[], Places], below: int) -> Callable[[], Reading]:
        """As if only those were written whose index is below one; of dozens of tails few are looked at."""
        return lambda: image.with_source(np.where(index() < below, elements(), -1))

    for k, n in enumerate(layout.ne):
        along = partial(_along, layout.shape, rank - 1 - k)
        for tile in TILES if k < 2 else ():
            if n > tile:
                yield Hypothesis(f"only the first {tile} along i{k} are written", kept(along, tile))
        for tile in TILES:
            if n % tile and (k < 2 or n > 1):
                says = f"the tail along i{k} is not written: what a tile of {tile} does not fill"
                yield Hypothesis(says, kept(along, n // tile * tile))
    for tile in TILES:
        if layout.size % tile:
            says = f"the last elements are not written: what a workgroup of {tile} does not fill"
            yield Hypothesis(says, kept(elements, layout.size // tile * tile))
    if layout.ne and layout.size // max(layout.ne[0], 1) > _GRID:
        says = f"rows from number {_GRID} on are not written"
        yield Hypothesis(says, kept(lambda: elements() // layout.ne[0], _GRID))


_NARROW = ("f16", "bf16")
_ABSOLUTE = ("log_absolute", "tanh_absolute", "erf_absolute", "sin_absolute")  #: of `Numerics`: errors of no rounding
#: Hypotheses that only say how large an error is, the narrowest first; any other one says more.
COARSE = tuple(f"the error is what {name} gives: operands, products or sums go through 16 bits" for name in _NARROW)


def _narrowed(op: Op, image: Image) -> Iterator[Hypothesis]:
    """Values that go through a narrower type: the result, or what it is computed from; then any of them."""
    case = image.case
    if case.outputs[image.out].dtype != "f32":
        return
    for name in _NARROW:
        says = f"{image.out} is rounded to {name}"
        yield Hypothesis(says, partial(image.with_expect, partial(_through, op, DTYPES[name], image.out)))
    if op.sources is not None or op.composite.judge is not None:
        return
    wide = [name for name, layout in case.inputs.items() if layout.dtype == "f32"]
    for name in _NARROW:
        narrowed = {each: _narrow(image.raw[each], DTYPES[name]) for each in wide}
        of = "every input" if len(case.inputs) > 1 else next(iter(case.inputs))
        if narrowed:
            yield Hypothesis(f"{of} is rounded to {name} before it is used", partial(image.with_inputs, **narrowed))
        for each in wide if len(case.inputs) > 1 else ():
            says = f"{each} is rounded to {name} before it is used"
            yield Hypothesis(says, partial(image.with_inputs, **{each: narrowed[each]}))
    for says, name in zip(COARSE, _NARROW):
        yield Hypothesis(says, partial(image.with_expect, partial(_coarse, op, DTYPES[name])))


def _narrow(raw: Raw, dtype: DType) -> Raw:
    """float32 elements once they have been stored in a narrower type."""
    with np.errstate(all="ignore"):
        return F32.encode(dtype.decode(dtype.encode(F32.decode(raw))))


def _through(op: Op, dtype: DType, name: str, case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The op with its output `name` rounded to a narrower type: what lies within the bound may round to either side."""
    expected = op.expect(case, raw, numerics)
    first = name == op.outputs[0]
    right = expected if first else expected.others[name]
    low, high = (dtype.decode(dtype.encode(right.value + sign * right.bound)) for sign in (-1, 1))
    half = (high - low) / 2
    narrowed = Expected(np.where(half > 0, low + half, low), np.where(np.isnan(half), 0.0, half))
    if first:
        return replace(narrowed, others=expected.others)
    return replace(expected, others={**expected.others, name: narrowed})


class _Rounding(Numerics):
    """Arithmetic whose functions are right but for one rounding."""

    def ulps(self, count: float) -> float:
        return self.u

    @staticmethod
    def of(numerics: Numerics) -> _Rounding:
        """A little below float32, and without the errors that a device allows itself beside rounding."""
        given = {item.name: getattr(numerics, item.name) for item in fields(numerics)}
        return _Rounding(**{**given, **dict.fromkeys(_ABSOLUTE, 0.0), "roundoff": max(2.0**-23, numerics.roundoff)})


def _coarse(op: Op, dtype: DType, case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The op with a bound that is wider by as much as a narrower type is coarser, and infinities where it overflows.
    The bound stays finite for any number of terms, and so says something of each element. It is that of an arithmetic
    a little below float32's: what float32 adds up exactly, 16 bits round.

    Only what rounding gives grows with the unit roundoff. That a power may be off by 16 ulps, or a device's sine by
    2^-11 whatever it gives, is no rounding: 2^14 times that would take any value for one of 16 bits. The ulps vanish
    beside one rounding to 16 bits; where a device allows itself more, its own bound is added once.
    """
    rounding = _Rounding.of(numerics)
    expected = op.expect(case, raw, rounding)
    allowed = op.expect(case, raw, numerics) if any(getattr(numerics, name) for name in _ABSOLUTE) else None
    others = {
        name: _wider(other, dtype, rounding, allowed.others[name] if allowed else None)
        for name, other in expected.others.items()
    }
    return replace(_wider(expected, dtype, rounding, allowed), others=others)


def _wider(expected: Expected, dtype: DType, numerics: Numerics, allowed: Expected | None) -> Expected:
    value, unit = expected.value, 2 * dtype.unit_roundoff
    bound = unit / numerics.u * expected.bound + unit * (np.abs(value) + 2 * dtype.smallest_normal)
    bound = bound if allowed is None else bound + allowed.bound
    overflows = np.isinf(dtype.decode(dtype.encode(value)))
    bound = np.where(overflows, 0.0, np.where(np.isnan(bound), np.inf, bound))
    return Expected(np.where(overflows, np.copysign(np.inf, value), value), bound)


def _along(shape: tuple[int, ...], axis: int) -> Places:
    """Each element's index along `axis`."""
    return np.broadcast_to(np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


def _only(axis: int, index: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(index, index + 1))


def named(found: Iterable[Hypothesis]) -> dict[str, Hypothesis]:
    """Hypotheses by name; of two with one name, the first."""
    table: dict[str, Hypothesis] = {}
    for hypothesis in found:
        table.setdefault(hypothesis.says, hypothesis)
    return table
