"""Variants of a problem: the same shapes and parameters, other layouts and values.

A variant is independent of the sizes it is applied to, so that while Hypothesis shrinks a failing problem the variant
can stay as it is, and once the problem is small the variant itself is simplified, one trait at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.layouts import Layout, LayoutClass, blocks_of, contiguous_strides
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Op, Problem
from opconform.harness.model.values import recipes_of, slices

VARIANTS = 8  #: cases made of one problem; they travel to the worker together


def _inversions(order: tuple[int, ...]) -> int:
    """How many pairs of axes stand the other way round than in a contiguous tensor."""
    return sum(a > b for a, b in itertools.combinations(order, 2))


_ORDERS = tuple(sorted(itertools.permutations(range(4)), key=_inversions))
_ROW_ORDERS = tuple(order for order in _ORDERS if order[0] == 0)
_OFFSETS = (1, 3, 4, 8, 17, 64)
_ALIGNED = 128  #: elements: 256 bytes or more, where every device can start a buffer
_PLAIN_ORDER = (0, 1, 2, 3)
_NO_PADS = (0, 0, 0, 0)


@dataclass(frozen=True)
class Departure:
    """How a layout departs from packed.

    order: the axes from the fastest in memory to the slowest (0 is ne[0]). pads: elements left unused after each
    axis. step: every step-th element along the fastest axis. offset: elements before the first. repeat: the axes
    whose stride is 0.
    """

    order: tuple[int, ...] = _PLAIN_ORDER
    pads: tuple[int, ...] = _NO_PADS
    step: int = 1
    offset: int = 0
    repeat: tuple[int, ...] = ()

    def layout(self, dtype: str, sizes: tuple[int, ...]) -> Layout:
        """This departure as the layout of a 4-dimensional tensor of `sizes` (outermost first)."""
        if self == PACKED:
            return Layout.contiguous(dtype, sizes)
        itemsize, raw = DTYPES[dtype].itemsize, blocks_of(sizes, DTYPES[dtype].block)
        nb, extent = [0] * 4, itemsize * self.step
        for axis in self.order:
            nb[axis] = extent
            extent = extent * max(raw[3 - axis], 1) + self.pads[axis] * itemsize
        for axis in self.repeat:
            nb[axis] = 0
        return Layout(dtype, sizes, tuple(reversed(nb)), self.offset * itemsize)

    def simpler(self) -> Iterator[Departure]:
        """Shapes strictly nearer to packed, the plainest first."""
        if self != PACKED:
            yield PACKED
        if self.repeat:
            yield replace(self, repeat=())
        for step in range(1, self.step):
            yield replace(self, step=step)
        for order in _ORDERS:
            if _inversions(order) < _inversions(self.order):
                yield replace(self, order=order)
        for offset in range(min(self.offset, 2)):
            yield replace(self, offset=offset)
        if self.pads != _NO_PADS:
            yield replace(self, pads=_NO_PADS)
            for axis in range(4):
                for pad in range(self.pads[axis]):
                    yield replace(self, pads=(*self.pads[:axis], pad, *self.pads[axis + 1 :]))


PACKED = Departure()


@dataclass(frozen=True)
class Variant:
    """Departures from packed by argument, a value recipe with its seed, and the batch slice to keep (see `Case.keep`).

    together: the arguments that the op packs lie side by side in one tensor; the first one's departure gives its row
    padding and its offset.
    """

    departures: Mapping[str, Departure] = field(default_factory=dict)
    recipe: str = "small_int"
    seed: int = 0
    keep: int | None = None
    together: bool = False

    def case(self, op: Op, problem: Problem) -> Case:
        """The case that this variant makes of `problem`."""
        inputs = {
            name: self._departure(name).layout(problem.dtype_of(name), sizes) for name, sizes in problem.shapes.items()
        }
        shares: dict[str, str] = {}
        for group, axes in op.composite.packs.items() if self.together else ():
            if problem.inplace not in group and _fit_together(problem, group, axes):
                inputs.update(_side_by_side(problem, group, axes, self._departure(group[0])))
                shares.update(dict.fromkeys(group[1:], group[0]))
        outputs = {}
        for name, sizes in {op.outputs[0]: problem.out_shape, **problem.more_outputs}.items():
            taken_over = inputs[problem.inplace] if problem.inplace and name == op.outputs[0] else None
            outputs[name] = taken_over or self._departure(name).layout(problem.dtype_of(name), sizes)
        keep = None
        count = max((slices(sizes, op.composite.batch_axes) for sizes in problem.shapes.values()), default=1)
        if self.keep is not None and count > 1 and DTYPES[problem.dtype].is_float:
            keep = self.keep % count
        return Case(op.name, problem.params, inputs, outputs, self.recipe, self.seed, keep, problem.inplace, shares)

    def _departure(self, name: str) -> Departure:
        return self.departures.get(name, PACKED)

    def simpler(self, recipes: Sequence[str]) -> Iterator[Variant]:
        """Variants nearer to the plain one, the boldest simplification first; `recipes` stand from the simplest on."""
        if self.keep is not None:
            yield replace(self, keep=None)
        if self.together:
            yield replace(self, together=False)
        if any(departure != PACKED for departure in self.departures.values()):
            yield replace(self, departures={})
        for name, departure in self.departures.items():
            for simpler in departure.simpler():
                yield replace(self, departures={**self.departures, name: simpler})
        for recipe in itertools.takewhile(lambda recipe: recipe != self.recipe, recipes):
            yield replace(self, recipe=recipe)
        for seed in range(min(self.seed, 3)):
            yield replace(self, seed=seed)
        if self.keep:
            yield replace(self, keep=0)


def _fit_together(problem: Problem, group: tuple[str, ...], axes: int) -> bool:
    """Whether all arguments of the group are there, of one type and with the same leading sizes, and not empty."""
    if any(name not in problem.shapes or 0 in problem.shapes[name] for name in group):
        return False
    return len({(problem.shapes[name][:axes], problem.dtype_of(name)) for name in group}) == 1


def _side_by_side(problem: Problem, group: tuple[str, ...], axes: int, departure: Departure) -> dict[str, Layout]:
    """Layouts of arguments that are parts of the rows of one tensor."""
    first = problem.shapes[group[0]]
    dtype = problem.dtype_of(group[0])
    itemsize = DTYPES[dtype].itemsize
    parts = {name: contiguous_strides(problem.shapes[name][axes:], itemsize) for name in group}
    widths = {name: strides[0] * problem.shapes[name][axes] for name, strides in parts.items()}
    row = sum(widths.values()) + departure.pads[0] * itemsize
    rows = tuple(stride // itemsize * row for stride in contiguous_strides(first[:axes], itemsize))
    layouts, start = {}, departure.offset * itemsize
    for name, strides in parts.items():
        layouts[name] = Layout(dtype, problem.shapes[name], (*rows, *strides), start)
        start += widths[name]
    return layouts


def variants(op: Op, problem: Problem, seed: int, freedom: Freedom) -> list[Variant]:
    """The variants of `cases_of`, without the cases."""
    return [variant for variant, _ in cases_of(op, problem, seed, freedom)]


def cases_of(op: Op, problem: Problem, seed: int, freedom: Freedom) -> list[tuple[Variant, Case]]:
    """`VARIANTS` variants of `problem`, the first of them packed. Limits steer them: what the device cannot take is not
    drawn. None where it does not take the problem in any layout, or where it does not fit in `freedom.max_bytes`.

    Equal arguments give equal variants.
    """
    random = Random(seed)
    names = [name for name in (*problem.shapes, *op.outputs) if not (problem.inplace and name in op.outputs)]
    widest = {name: _widest(op, name, problem, freedom) for name in names}
    recipes = freedom.choices("recipe", recipes_of(op, problem.dtype))
    packs = [name for group in op.composite.packs for name in group]
    may_pack = all(widest.get(name, LayoutClass.PACKED) >= LayoutClass.ROWS for name in packs if name in problem.shapes)
    found: list[tuple[Variant, Case]] = []
    for index in range(VARIANTS):
        departures = {name: _departure(random, widest[name]) for name in names} if index else {}
        keep = random.randrange(64) if random.random() < 0.15 else None
        variant = Variant(departures, random.choice(recipes), random.randrange(256), keep)
        if packs and may_pack and index and random.random() < 0.3:
            variant = replace(variant, together=True)
        tried = ((each, each.case(op, problem)) for each in _nearer(variant, problem))
        taken = next((pair for pair in tried if _is_taken(pair[1], op, freedom)), None)
        if taken is None:
            return found
        found.append(taken)
    return found


def _is_taken(case: Case, op: Op, freedom: Freedom) -> bool:
    """Whether a device takes a case, and it fits. Padding and steps can make a large one too large."""
    return case.nbytes <= freedom.max_bytes and freedom.forbids(case, op.traits) is None


def _widest(op: Op, name: str, problem: Problem, freedom: Freedom) -> LayoutClass:
    """The widest layout class for an argument. The blocks of a quantised row always stand side by side, and indices
    that must differ have places of their own."""
    is_unique = name in op.indices and op.indices[name].unique
    widest = freedom.widest(name, name in problem.shapes and name != problem.inplace and not is_unique)
    return min(widest, LayoutClass.ROWS) if DTYPES[problem.dtype_of(name)].block > 1 else widest


def _nearer(variant: Variant, problem: Problem) -> Iterator[Variant]:
    """`variant`, then ever plainer ones: with offsets that any device can start a buffer at, with all inputs laid out
    alike, with both, without offsets, packed."""
    yield variant
    aligned = {name: replace(d, offset=_ALIGNED if d.offset else 0) for name, d in variant.departures.items()}
    yield replace(variant, departures=aligned)
    for departures in (variant.departures, aligned):
        first = next((departures[name] for name in problem.shapes if departures.get(name, PACKED) != PACKED), PACKED)
        alike = {name: first if name in problem.shapes else d for name, d in departures.items()}
        yield replace(variant, departures=alike)
    yield replace(variant, departures={name: replace(d, offset=0) for name, d in variant.departures.items()})
    yield replace(variant, departures={}, together=False)


def _departure(random: Random, widest: LayoutClass) -> Departure:
    """A departure of class `widest` or narrower: none, one trait, or several at once."""
    if widest is LayoutClass.PACKED:
        return PACKED
    rows, wide = widest >= LayoutClass.ROWS, widest >= LayoutClass.STRIDED
    form = random.randrange(8)
    if form == 0:
        return PACKED
    if form == 1 or not rows:
        return Departure(offset=random.choice(_OFFSETS))
    if form == 7 and widest is LayoutClass.BROADCAST:
        return Departure(repeat=random.choice(((3,), (2,), (2, 3))))
    mixed = form >= 5
    orders = _ORDERS if wide else _ROW_ORDERS
    return Departure(
        order=random.choice(orders) if mixed or form == 2 else _PLAIN_ORDER,
        pads=tuple(random.choice((0, 0, 1, 3)) for _ in range(4)) if mixed or form == 3 else _NO_PADS,
        step=random.choice((1, 2, 3)) if wide and (mixed or form == 4) else 1,
        offset=random.choice((0, *_OFFSETS)) if mixed else 0,
    )
