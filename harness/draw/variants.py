"""Variants of a problem: the same shapes, other layouts and values, now and then another parameter.

Some variants are twins of the one before them and differ from it in one thing: an offset, a stride, a parameter, or the
values. They run right after it, for a backend that keeps what it made of a case may miss that one thing.

A variant is independent of the sizes it is applied to, so that while Hypothesis shrinks a failing problem the variant
can stay as it is, and once the problem is small the variant itself is simplified, one trait at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from random import Random
from typing import TypeVar

from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.layouts import Layout, LayoutClass, blocks_of, contiguous_strides
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Op, Problem
from opconform.harness.model.values import recipes_of, slices

VARIANTS = 8  #: cases made of one problem; they travel to the worker together
_TWINS = (2, 5)  #: which of them are twins of the one before
_FEWER = ((1 << 14, 8), (1 << 16, 4))  #: of a problem of more elements fewer: time goes into other shapes
_LEAST = 2
_TRIES = 4  #: how many variants are drawn for one that shows something new
_PARAMETERS_TRIED = 4  #: how many other values of parameters are tried for a twin
_TRIES_OF_FEW = 16  #: the same for a large problem, of which the best of all is taken: each one has to show much


def _inversions(order: tuple[int, ...]) -> int:
    """How many pairs of axes stand the other way round than in a contiguous tensor."""
    return sum(a > b for a, b in itertools.combinations(order, 2))


_ORDERS = tuple(sorted(itertools.permutations(range(4)), key=_inversions))
_ROW_ORDERS = tuple(order for order in _ORDERS if order[0] == 0)
_OFFSETS = (1, 3, 4, 8, 17, 64, 128)
_ALIGNED = 128  #: elements: 256 bytes or more, where every device can start a buffer
_ANY_OFFSETS = (0, *_OFFSETS)
_PLAIN_ORDER = (0, 1, 2, 3)
_PADS = (0, 0, 1, 3)
_NO_PADS = (0, 0, 0, 0)
_STEPS = (1, 2, 3)
_REPEATS = ((3,), (2,), (2, 3))
_DEPARTURES = range(8)  #: packed, an offset, an order, pads, a step, several at once (three times)

T = TypeVar("T")


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

    @property
    def width(self) -> LayoutClass:
        """The class of layouts that it makes of sizes above 1."""
        if self.repeat:
            return LayoutClass.BROADCAST
        if self.step > 1 or self.order[0] != 0:
            return LayoutClass.STRIDED
        if self.order != _PLAIN_ORDER or self.pads != _NO_PADS:
            return LayoutClass.ROWS
        return LayoutClass.CONTIGUOUS if self.offset else LayoutClass.PACKED

    def layout(self, dtype: str, sizes: tuple[int, ...]) -> Layout:
        """This departure as the layout of a 4-dimensional tensor of `sizes` (outermost first)."""
        return _laid_out(self, dtype, sizes)

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


@lru_cache(maxsize=1 << 12)
def _laid_out(departure: Departure, dtype: str, sizes: tuple[int, ...]) -> Layout:
    """`Departure.layout`. Variants of a problem have many layouts in common, and each is looked at closely."""
    if departure == PACKED:
        return Layout.contiguous(dtype, sizes)
    itemsize, raw = DTYPES[dtype].itemsize, blocks_of(sizes, DTYPES[dtype].block)
    nb, extent = [0] * 4, itemsize * departure.step
    for axis in departure.order:
        nb[axis] = extent
        extent = extent * max(raw[3 - axis], 1) + departure.pads[axis] * itemsize
    for axis in departure.repeat:
        nb[axis] = 0
    return Layout(dtype, sizes, tuple(reversed(nb)), departure.offset * itemsize)


@dataclass(frozen=True)
class Variant:
    """Departures from packed by argument, a value recipe with its seed, and the batch slice to keep (see `Case.keep`).

    together: the arguments that the op packs lie side by side in one tensor; the first one's departure gives its row
    padding and its offset. params: those that are other than the problem's. after: what runs right before, on the same
    problem, where the case is wrong only then (`Case.before`).
    """

    departures: Mapping[str, Departure] = field(default_factory=dict)
    recipe: str = "small_int"
    seed: int = 0
    keep: int | None = None
    together: bool = False
    params: Mapping[str, Param] = field(default_factory=dict)
    after: Variant | None = None

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
        if self.keep is not None and DTYPES[problem.dtype].is_float:
            count = max((slices(sizes, op.composite.batch_axes) for sizes in problem.shapes.values()), default=1)
            keep = self.keep % count if count > 1 else None
        params = {**problem.params, **self.params} if self.params else problem.params
        before = None if self.after is None else self.after.case(op, problem)
        return Case(
            op.name, params, inputs, outputs, self.recipe, self.seed, keep, problem.inplace, shares, before=before
        )

    def with_other_values(self, recipes: Sequence[str], again: int) -> Variant:
        """The variant with values of another recipe and seed, the `again`-th others; twins stay twins."""
        place = recipes.index(self.recipe) + again if self.recipe in recipes else again
        keep = self.keep if again == 1 else None
        return replace(self, recipe=recipes[place % len(recipes)], seed=(self.seed + 101 * again) % 256, keep=keep)

    def _simpler_after(self, before: Variant, recipes: Sequence[str]) -> Iterator[Variant]:
        """Both variants plainer in the same way, and the one before alone."""
        for simpler in replace(self, after=None).simpler(recipes):
            yield replace(simpler, after=_likewise(before, self, simpler))
        for simpler in before.simpler(recipes):
            yield replace(self, after=simpler)

    def _departure(self, name: str) -> Departure:
        return self.departures.get(name, PACKED)

    def simpler(self, recipes: Sequence[str]) -> Iterator[Variant]:
        """Variants nearer to the plain one, the boldest simplification first; `recipes` stand from the simplest on."""
        if self.after is not None:
            yield from self._simpler_after(self.after, recipes)
        if self.params:
            yield replace(self, params={})
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


def _likewise(other: Variant, variant: Variant, simpler: Variant) -> Variant:
    """`other`, with what is alike in it and in `variant` made as plain as `simpler` has it."""
    names = dict.fromkeys([*other.departures, *variant.departures])
    departures = {
        name: simpler._departure(name) if other._departure(name) == variant._departure(name) else other._departure(name)
        for name in names
    }
    changed = {
        item.name: getattr(simpler, item.name)
        for item in fields(Variant)
        if item.name not in ("departures", "after") and getattr(other, item.name) == getattr(variant, item.name)
    }
    return replace(other, departures=departures, **changed)


def between(one: Variant, other: Variant) -> Iterator[Variant]:
    """`other` with one thing as `one` has it, for each thing in which they differ."""
    if (one.recipe, one.seed) != (other.recipe, other.seed):
        yield replace(other, recipe=one.recipe, seed=one.seed)
    for name in dict.fromkeys([*one.departures, *other.departures]):
        mine, its = one._departure(name), other._departure(name)
        for item in fields(Departure):
            if getattr(mine, item.name) != getattr(its, item.name):
                changed = replace(its, **{item.name: getattr(mine, item.name)})
                yield replace(other, departures={**other.departures, name: changed})
    for trait in ("params", "keep", "together"):
        if getattr(one, trait) != getattr(other, trait):
            yield replace(other, **{trait: getattr(one, trait)})


Choose = Callable[[Sequence[Case]], int]
"""Which of several cases to run, by its index; -1 where the last one adds nothing."""


def variants(op: Op, problem: Problem, seed: int, freedom: Freedom) -> list[Variant]:
    """The variants of `cases_of`, without the cases."""
    return [variant for variant, _ in cases_of(op, problem, seed, freedom)]


def cases_of(
    op: Op,
    problem: Problem,
    seed: int,
    freedom: Freedom,
    choose: Choose = lambda cases: 0,
    more: Callable[[], bool] = lambda: False,
    values: Mapping[str, Sequence[Param]] | None = None,
    refuses: Callable[[Case], bool] = lambda case: False,
) -> list[tuple[Variant, Case]]:
    """Up to `VARIANTS` variants of `problem`, the first of them packed; of a large one fewer.

    Limits steer them: what the device cannot take is not drawn. None where it does not take the problem in any layout,
    or where it does not fit in `freedom.max_bytes`.

    `choose` picks one of the cases that are drawn for a variant. `more` says whether the last one showed so much that a
    large problem gets one variant more, as a small one does. `values` are those that other problems had for a
    parameter: a twin may have one of them. `refuses` says what experience speaks against. Equal arguments give equal
    variants.
    """
    random = Random(seed)
    draw = _Draw(op, problem, freedom, random, refuses)
    found: list[tuple[Variant, Case]] = []
    count = _count(problem)
    for index in range(VARIANTS):
        if index >= count and not more():
            break
        if index in _TWINS and index < count:
            twin = draw.twin(found[-1][0], values or {})
            if twin is not None:
                found.append(twin)
                continue
        tried: list[tuple[Variant, Case]] = []
        chosen = -1
        while len(tried) < (_TRIES if count == VARIANTS else _TRIES_OF_FEW) and (chosen < 0 or count < VARIANTS):
            drawn = draw.variant(packed=index == 0)
            if drawn is None:
                return found
            tried.append(drawn)
            chosen = choose([case for _, case in tried])
        found.append(tried[max(chosen, 0)])
    return found


def _count(problem: Problem) -> int:
    """How many variants are made of a problem."""
    sizes = [math.prod(shape) for shape in problem.every_shape]
    if 0 in sizes:
        return _LEAST
    largest = max(sizes)
    return next((count for size, count in _FEWER if largest <= size), _LEAST)


def _others(now: Param, values: Sequence[Param]) -> list[Param]:
    """Other values of a parameter: those that problems had for it, and for a number its neighbours."""
    if isinstance(now, bool):
        return [not now]
    near = [now + step for step in (1, -1, 4, -4)] if isinstance(now, int) else []
    return [value for value in values if value != now][-4:] + near


class _Draw:
    """Draws variants of one problem for one device."""

    def __init__(
        self, op: Op, problem: Problem, freedom: Freedom, random: Random, refuses: Callable[[Case], bool]
    ) -> None:
        self._refuses = refuses
        self._op, self._problem, self._freedom, self._random = op, problem, freedom, random
        shapes = problem.shapes
        names = [name for name in (*shapes, *op.outputs) if not (problem.inplace and name in op.outputs)]
        self._widest = {name: _widest(op, name, problem, freedom) for name in names}
        self._recipes = freedom.choices("recipe", recipes_of(op, problem.dtype))
        self._packs = [name for group in op.composite.packs for name in group]
        widths = [self._widest.get(name, LayoutClass.PACKED) for name in self._packs if name in shapes]
        self._may_pack = bool(self._packs) and min(widths, default=LayoutClass.PACKED) >= LayoutClass.ROWS

    def variant(self, packed: bool) -> tuple[Variant, Case] | None:
        """A variant and its case; None where the device takes none."""
        random = self._random
        departures = {} if packed else {name: _departure(random, widest) for name, widest in self._widest.items()}
        keep = random.randrange(64) if random.random() < 0.15 else None
        variant = Variant(departures, random.choice(self._recipes), random.randrange(256), keep)
        if self._may_pack and not packed and random.random() < 0.3:
            variant = replace(variant, together=True)
        nearer = _nearer(variant, self._problem, self._widest)
        return self._first_taken(nearer) or self._first_taken(self._others_of(variant))

    def _others_of(self, variant: Variant) -> Iterator[Variant]:
        """The plainest variants with other values: a limit may be on what values an element type has."""
        plainest = replace(variant, departures={}, together=False)
        yield from (replace(plainest, recipe=recipe) for recipe in self._recipes if recipe != variant.recipe)

    def twin(self, variant: Variant, values: Mapping[str, Sequence[Param]]) -> tuple[Variant, Case] | None:
        """A variant that differs from another one in one thing: an offset, a stride, a parameter, or the values."""
        ways = [self._other_offset, self._other_stride, self._other_values]
        self._random.shuffle(ways)
        candidates = [way(variant) for way in ways]
        if self._problem.params and self._random.random() < 0.4:
            candidates.insert(0, itertools.islice(self._other_parameter(variant, values), 1))
        return self._first_taken(itertools.chain.from_iterable(candidates))

    def _first_taken(self, candidates: Iterable[Variant]) -> tuple[Variant, Case] | None:
        """The first one that the device takes and that fits, or else, of those, the last. Padding and steps can make a
        large case too large."""
        last = None
        for candidate in candidates:
            case = candidate.case(self._op, self._problem)
            if case.nbytes <= self._freedom.max_bytes and self._freedom.forbids(case, self._op.traits) is None:
                if not self._refuses(case):
                    return candidate, case
                last = candidate, case
        return last

    def _arguments(self, variant: Variant, least: LayoutClass) -> list[str]:
        """Those whose place may be changed alone, in any order."""
        fixed = self._packs if variant.together else ()
        names = [name for name, widest in self._widest.items() if widest >= least and name not in fixed]
        self._random.shuffle(names)
        return names

    def _other_offset(self, variant: Variant) -> Iterator[Variant]:
        for name in self._arguments(variant, LayoutClass.CONTIGUOUS):
            departure = variant._departure(name)
            for offset in (departure.offset + 1, 0 if departure.offset else _ALIGNED):
                changed = replace(departure, offset=offset)
                yield replace(variant, departures={**variant.departures, name: changed})

    def _other_stride(self, variant: Variant) -> Iterator[Variant]:
        for name in self._arguments(variant, LayoutClass.ROWS):
            departure = variant._departure(name)
            slowest = self._slowest(name, departure)
            if slowest and not departure.repeat:  # what is padded is the axis below it
                pads = list(departure.pads)
                pads[departure.order[slowest - 1]] += 1
                changed = replace(departure, pads=(pads[0], pads[1], pads[2], pads[3]))
                yield replace(variant, departures={**variant.departures, name: changed})

    def _slowest(self, name: str, departure: Departure) -> int:
        """The place in `departure.order` of the slowest axis that has a stride to speak of; 0 where none has."""
        problem = self._problem
        sizes = problem.shapes.get(name) or problem.more_outputs.get(name) or problem.out_shape
        return next((place for place in (3, 2, 1) if sizes[3 - departure.order[place]] > 1), 0)

    def _other_values(self, variant: Variant) -> Iterator[Variant]:
        yield replace(variant, seed=(variant.seed + 1) % 256)

    def _other_parameter(self, variant: Variant, values: Mapping[str, Sequence[Param]]) -> Iterator[Variant]:
        """Variants with another value of a parameter, of the first few that are tried: most ops take few of them."""
        others = [
            (name, value) for name, now in self._problem.params.items() for value in _others(now, values.get(name, ()))
        ]
        self._random.shuffle(others)
        tried = (replace(variant, params={**variant.params, name: value}) for name, value in others[:_PARAMETERS_TRIED])
        yield from filter(self._is_case, tried)

    def _is_case(self, variant: Variant) -> bool:
        try:
            self._op.check(variant.case(self._op, self._problem))
        except (CaseError, ArithmeticError, LookupError):
            return False
        return True


def _widest(op: Op, name: str, problem: Problem, freedom: Freedom) -> LayoutClass:
    """The widest layout class for an argument. The blocks of a quantised row always stand side by side, and indices
    that must differ have places of their own."""
    is_unique = name in op.indices and op.indices[name].unique
    widest = freedom.widest(name, name in problem.shapes and name != problem.inplace and not is_unique)
    return min(widest, LayoutClass.ROWS) if DTYPES[problem.dtype_of(name)].block > 1 else widest


def _nearer(variant: Variant, problem: Problem, widest: Mapping[str, LayoutClass]) -> Iterator[Variant]:
    """`variant`, then ever plainer ones: with offsets that any device can start a buffer at, with all inputs laid out
    alike that may be (`widest`), with both, without offsets, packed."""
    yield variant
    aligned = {name: replace(d, offset=_ALIGNED) if d.offset else d for name, d in variant.departures.items()}
    yield replace(variant, departures=aligned)
    for departures in (variant.departures, aligned):
        first = next((departures[name] for name in problem.shapes if departures.get(name, PACKED) != PACKED), PACKED)
        alike = {
            name: first if name in problem.shapes and widest[name] >= first.width else own
            for name, own in departures.items()
        }
        yield replace(variant, departures=alike)
    yield replace(
        variant, departures={name: replace(d, offset=0) if d.offset else d for name, d in variant.departures.items()}
    )
    yield replace(variant, departures={}, together=False)


def _departure(random: Random, widest: LayoutClass) -> Departure:
    """A departure of class `widest` or narrower: none, one trait, or several at once."""
    if widest is LayoutClass.PACKED:
        return PACKED
    rows, wide = widest >= LayoutClass.ROWS, widest >= LayoutClass.STRIDED
    bits = random.getrandbits
    form = one_of(_DEPARTURES, bits)
    if form == 0:
        return PACKED
    if form == 1 or not rows:
        return Departure(offset=one_of(_OFFSETS, bits))
    if form == 7 and widest is LayoutClass.BROADCAST:
        return Departure(repeat=one_of(_REPEATS, bits))
    mixed = form >= 5
    order: tuple[int, ...] = _PLAIN_ORDER
    pads: tuple[int, ...] = _NO_PADS
    step = 1
    offset = 0
    if mixed or form == 2:
        order = one_of(_ORDERS if wide else _ROW_ORDERS, bits)
    if mixed or form == 3:
        pads = (one_of(_PADS, bits), one_of(_PADS, bits), one_of(_PADS, bits), one_of(_PADS, bits))
    if wide and (mixed or form == 4):
        step = one_of(_STEPS, bits)
    if mixed:
        offset = one_of(_ANY_OFFSETS, bits)
    return Departure(order, pads, step, offset)


def one_of(options: Sequence[T], bits: Callable[[int], int]) -> T:
    """`Random.choice`, in half the time: each variant has dozens of choices."""
    count = len(options)
    size = count.bit_length()
    place = bits(size)
    while place >= count:
        place = bits(size)
    return options[place]
