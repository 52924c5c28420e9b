"""A failing case made smaller by itself, without the strategy that drew it: values simpler, layouts plainer, and each
size as small as it can be.

Hypothesis shrinks what it has drawn, among the sizes that it draws; a known case it cannot draw at all. So each failure
ends here: a size is at its minimum if the case passes with one less.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from opconform.harness.explain.probes import resized
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.layouts import Layout, contiguous_strides
from opconform.harness.model.op import Op, Sizes
from opconform.harness.model.values import check_indices

Fails = Callable[[Case], bool]
Place = tuple[str, int]  #: a dimension: an argument's name and its axis, 0 for ne0


@dataclass(frozen=True)
class Knob:
    """Dimensions that change together: `places`, all of one size, become another size; `others` become smaller by as
    much ("shift": a row that also holds the other's, padding), or in proportion ("scale": elements in flat order)."""

    places: frozenset[Place]
    others: frozenset[Place] = frozenset()
    mode: Literal["shift", "scale"] = "shift"

    def sizes(self, case: Case, size: int) -> dict[Place, int] | None:
        """The sizes of all these dimensions once `places` have `size`; None where that cannot be."""
        name, k = next(iter(self.places))
        now = case.layouts[name].ne[k]
        found = dict.fromkeys(self.places, size)
        for other, axis in self.others:
            old = case.layouts[other].ne[axis]
            new = old - now + size if self.mode == "shift" else old * size // now
            if new < 1 or (self.mode == "scale" and old % now):
                return None
            found[other, axis] = new
        return found


_FIRST = (1, 2, 3)  #: sizes that are tried before a size is halved


def smallest(op: Op, case: Case, recipes: Sequence[str], fails: Fails) -> Case:
    """The smallest case like `case` for which `fails` holds, as far as one change after the other leads.

    `recipes` are the op's, the simplest first. `fails` is asked of cases that the op takes, and of none twice.
    """
    asked: dict[str, bool] = {_name(case): True}

    def still(candidate: Case) -> bool:
        name = _name(candidate)
        if name not in asked:
            asked[name] = _is_case(op, candidate) and fails(candidate)
        return asked[name]

    while True:
        before = _name(case)
        case = _first(_simpler(case, recipes), still, case)
        case = _first(_plainer(case), still, case)
        case = _smaller(_remade(op, case, still), still)
        case = _first(_at_the_start(case), still, case)
        if _name(case) == before:
            return case


def why_sizes_stay(case: Case) -> str:
    """Why a case's sizes were not made smaller one by one, so that a smaller case may fail too; "" where they were, or
    are all 1."""
    if case.before is not None:
        why = "those of two cases do not change together"  # and without the other one it passes
    elif all(n <= 1 for layout in case.layouts.values() for n in layout.ne):
        return ""
    elif case.shares:
        why = "its inputs lie in one memory"
    elif case.data is not None:
        why = "it fails with its own values alone"
    else:
        return ""
    return f"its sizes were not made smaller one by one, for {why}: a smaller case may fail too"


def _name(case: Case) -> str:
    """What tells cases apart, those of one key with and without exact bytes too."""
    return f"{case.key} {case.data is not None}"


def _first(candidates: Iterable[Case], still: Fails, otherwise: Case) -> Case:
    return next((candidate for candidate in candidates if still(candidate)), otherwise)


def _is_case(op: Op, case: Case) -> bool:
    """Whether the op takes the case, its rows are whole blocks, and no two elements of an output share their memory."""
    if not all(layout.is_whole for layout in case.layouts.values()):
        return False
    try:
        op.check(case)
        check_indices(case, op)
    except (CaseError, ArithmeticError, LookupError):
        return False
    return not any(layout.overlaps for layout in case.outputs.values())


def _simpler(case: Case, recipes: Sequence[str]) -> Iterator[Case]:
    """The case with simpler values: without NaN in other slices, by a simpler recipe, from a smaller seed."""
    if case.data is not None:
        for recipe, seed in itertools.product(recipes, range(3)):
            yield replace(case, recipe=recipe, seed=seed, keep=None, data=None)
        return
    if case.keep is not None:
        yield replace(case, keep=None)
    before = itertools.takewhile(lambda recipe: recipe != case.recipe, recipes)
    for recipe in before:
        yield replace(case, recipe=recipe, seed=0)
        yield replace(case, recipe=recipe)
    for seed in range(min(case.seed, 3)):
        yield replace(case, seed=seed)


def _at_the_start(case: Case) -> Iterator[Case]:
    """The case with its view, where it has one, at the start of what it is a view of."""
    if case.data is None and case.params.get("offset"):
        yield replace(case, params={**case.params, "offset": 0})


def _plainer(case: Case) -> Iterator[Case]:
    """The case with plainer layouts, the plainest first; it may take several turns."""
    if case.data is not None:
        return
    if case.packed() != case:
        yield case.packed()
    if case.inplace is not None:
        yield _with_out(replace(case, inplace=None), lambda layout: layout.packed())
    if case.shares:
        return
    for name, layout in case.layouts.items():
        if case.inplace and name in case.outputs:
            continue
        for plainer in _plainer_layouts(layout):
            yield _with(case, {name: plainer})


def _plainer_layouts(layout: Layout) -> Iterator[Layout]:
    size, rank = layout.type.itemsize, len(layout.shape)
    if layout.packed() == layout:
        return
    yield layout.packed()
    if layout.offset:
        yield replace(layout, offset=0)
    packed = contiguous_strides(layout.blocks, size)
    if layout.strides != packed:
        yield replace(layout, strides=packed)
    order = sorted(range(rank), key=lambda k: (layout.nb[k], k))
    gaps = _gaps(layout, order)
    if order != list(range(rank)) and all(layout.nb):
        yield _laid(layout, range(rank), gaps)
    for k in range(rank):
        for gap in (0, size):
            if gap < gaps[k]:
                yield _laid(layout, order, [*gaps[:k], gap, *gaps[k + 1 :]])
    if layout.offset > size:
        yield replace(layout, offset=size)


def _gaps(layout: Layout, order: Sequence[int]) -> list[int]:
    """By axis, the bytes between what stands inside an index of it and the next index."""
    gaps, extent = [0] * len(layout.shape), layout.type.itemsize
    for k in order:
        if layout.nb[k]:
            gaps[k] = max(layout.nb[k] - extent, 0)
            extent = layout.nb[k] * max(layout.blocks[::-1][k], 1)
    return gaps


def _laid(layout: Layout, order: Iterable[int], gaps: Sequence[int]) -> Layout:
    """The layout with its axes in another order, or other gaps; what is repeated stays so."""
    nb, extent = list(layout.nb), layout.type.itemsize
    for k in order:
        if layout.nb[k]:
            nb[k] = extent + gaps[k]
            extent = nb[k] * max(layout.blocks[::-1][k], 1)
    return replace(layout, strides=tuple(nb[::-1]))


def _with(case: Case, changed: Mapping[str, Layout], params: Mapping[str, Param] | None = None) -> Case:
    """The case with other layouts; an output in place follows its input."""
    inputs = {name: changed.get(name, layout) for name, layout in case.inputs.items()}
    outputs = {name: changed.get(name, layout) for name, layout in case.outputs.items()}
    if case.inplace is not None:
        outputs[next(iter(outputs))] = inputs[case.inplace]
    return replace(case, inputs=inputs, outputs=outputs, params=dict(params or case.params))


def _with_out(case: Case, change: Callable[[Layout], Layout]) -> Case:
    name = next(iter(case.outputs))
    return replace(case, outputs={**case.outputs, name: change(case.outputs[name])})


def _remade(op: Op, case: Case, still: Fails) -> Case:
    """The case with the numbers that all its shapes follow from (`Op.sizes`) as small as they can be."""
    if op.sizes is None or case.data is not None or case.shares:
        return case
    for name in op.sizes(case).now:
        sizes = op.sizes(case)
        case = _bisected(case, sizes.now[name], partial(_made, case, sizes, name), still)
    return case


def _made(case: Case, sizes: Sizes, name: str, size: int) -> Iterator[Case]:
    """The case with another number in the place of one that its shapes follow from."""
    try:
        shapes, params = sizes.made({**sizes.now, name: size})
    except (CaseError, ArithmeticError, LookupError):
        return
    changed = {its: resized(case.layouts[its], shape[::-1]) for its, shape in shapes.items()}
    yield _with(case, changed, {**case.params, **params})


def _smaller(case: Case, still: Fails) -> Case:
    """The case with every size as small as it can be, the largest first."""
    if case.data is not None or case.shares:
        return case
    done: set[Knob] = set()
    while True:
        knob = next((knob for knob in _knobs(case) if knob not in done), None)
        if knob is None:
            return case
        done.add(knob)
        case = _least(case, knob, still)


def _knobs(case: Case) -> list[Knob]:
    """What may change: all dimensions of one size, those of one axis, those of one input and the outputs, each alone;
    then those of two sizes. The largest size comes first."""
    sized: dict[int, list[Place]] = {}
    for name, layout in case.layouts.items():
        for k, n in enumerate(layout.ne):
            if n > 1:
                sized.setdefault(n, []).append((name, k))
    classes = sorted(sized.items(), reverse=True)
    found: dict[Knob, None] = {}
    for _, places in classes:
        axes = sorted({k for _, k in places})
        chosen = [places, *([place for place in places if place[1] == k] for k in axes)]
        for name in case.inputs:
            own = [place for place in places if place[0] in (name, *case.outputs)]
            chosen += [own, *([place for place in own if place[1] == k] for k in axes)]
        chosen += [[place] for place in places]
        found |= {Knob(frozenset(some)): None for some in chosen if some}
    for (large, places), (small, others) in itertools.permutations(classes, 2):
        for k in {axis for _, axis in places} & {axis for _, axis in others}:
            here, there = ([place for place in some if place[1] == k] for some in (places, others))
            found[Knob(frozenset(here), frozenset(there))] = None
        found[Knob(frozenset(places), frozenset(others))] = None
        if small > large:
            found[Knob(frozenset(places), frozenset(others), "scale")] = None
    return list(found)


def _least(case: Case, knob: Knob, still: Fails) -> Case:
    """The case with the dimensions of a knob as small as they can be: with one less it passes."""
    name, k = next(iter(knob.places))
    return _bisected(case, case.layouts[name].ne[k], partial(_resized, case, knob), still)


def _bisected(case: Case, size: int, candidates: Callable[[int], Iterable[Case]], still: Fails) -> Case:
    """The case with a size as small as it can be: `candidates` has those of another size."""

    def at(n: int) -> Case | None:
        return next((candidate for candidate in candidates(n) if still(candidate)), None)

    for n in _FIRST:
        if n < size:
            found = at(n)
            if found is not None:
                return found
    passes, best = min(_FIRST[-1], size), case
    while size - passes > 1:
        middle = (passes + size) // 2
        found = at(middle)
        if found is None:
            passes = middle
        else:
            size, best = middle, found
    return best


def _resized(case: Case, knob: Knob, size: int) -> Iterator[Case]:
    """The case with another size at a knob, and with parameters that follow it: byte strides and the offset of a view
    of an input (as ACC has it), numbers that are the size itself; else with its parameters as they are."""
    sizes = knob.sizes(case, size)
    if sizes is None:
        return
    changed = {
        name: resized(layout, tuple(sizes.get((name, k), n) for k, n in enumerate(layout.ne)))
        for name, layout in case.layouts.items()
        if any(place[0] == name for place in sizes)
    }
    params = case.params
    for name in changed:
        if name in case.inputs and params is case.params:
            params = moved_view(case.params, case.inputs[name], changed[name])
    yield _with(case, changed, params)
    now = case.layouts[next(iter(knob.places))[0]].ne[next(iter(knob.places))[1]]
    numbers = {name: size for name, value in params.items() if type(value) is int and size < value <= now}
    if numbers:
        yield _with(case, changed, {**params, **numbers})


def moved_view(params: Mapping[str, Param], old: Layout, new: Layout) -> Mapping[str, Param]:
    """Parameters nb1 … and offset that speak of the packed `old` as they are for the packed `new`."""
    size = old.type.itemsize
    before = contiguous_strides(old.shape, size)[::-1]
    after = contiguous_strides(new.shape, size)[::-1]
    strides = {f"nb{k}": after[k] for k in range(len(before)) if params.get(f"nb{k}") == before[k]}
    moved: Mapping[str, Param] = {**params, **strides}
    rest = params.get("offset")
    if moved == params or not isinstance(rest, int):
        return params
    start = 0
    for k in reversed(range(len(before))):
        index, rest = divmod(rest, before[k])
        start += min(index, new.ne[k] - 1) * after[k]
    return {**moved, "offset": start}
