"""Cases like a failing one, to tell hypotheses on it apart: other values, larger sizes, other layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.layouts import Layout, blocks_of
from opconform.harness.model.op import Op

LARGEST_PROBE = 1 << 18  #: bytes of a probe
_VALUES = (("normal", 101), ("normal", 102), ("index", 0))
_SIZES = (3, 5, 37, 2047)  #: what a size grows to; 2047 leaves another rest for every tile of 8 to 1024

Growth = Callable[[str, tuple[int, ...]], tuple[int, ...]]


def other_values(case: Case) -> Iterator[Case]:
    """The same case with values that hardly ever agree by chance, and without NaN in other batch slices."""
    for recipe, seed in _VALUES:
        yield replace(case, recipe=recipe, seed=seed, keep=None, data=None)


def grown(op: Op, case: Case) -> Iterator[Case]:
    """The case with larger sizes, as far as its op takes them: every dimension, one dimension of every argument or of
    one input, or all dimensions of one size."""
    plain = next(other_values(case))
    tried = {case.key}
    for grow in _growths(case):
        larger = replace(
            plain,
            inputs={name: resized(layout, grow(name, layout.ne)) for name, layout in case.inputs.items()},
            outputs={name: resized(layout, grow(name, layout.ne)) for name, layout in case.outputs.items()},
            shares={},
        )
        if larger.key not in tried and larger.nbytes <= LARGEST_PROBE and _takes(op, larger):
            tried.add(larger.key)
            yield larger


def _growths(case: Case) -> Iterator[Growth]:
    """Functions of an argument's name and sizes (innermost first) that give its new sizes."""

    def at(place: int, size: int, *names: str) -> Growth:
        return lambda name, ne: tuple(size if k == place and name in names else n for k, n in enumerate(ne))

    def instead_of(old: int, size: int) -> Growth:
        return lambda name, ne: tuple(size if n == old else n for n in ne)

    yield lambda name, ne: (37, 5, 3, 2)[: len(ne)]
    yield lambda name, ne: (7, 7, 3, 2)[: len(ne)]
    rank = max(len(layout.shape) for layout in case.layouts.values())
    for name in case.inputs:
        yield at(rank - 1, 3, name, *case.outputs)
    for size in _SIZES:
        for place in range(rank):
            yield at(place, size, *case.layouts)
        for old in sorted({n for layout in case.layouts.values() for n in layout.ne}):
            yield instead_of(old, size)


def resized(layout: Layout, ne: tuple[int, ...]) -> Layout:
    """`layout` with other sizes: its order of dimensions, gaps, repetitions and offset stay."""
    nb, extent, reach = list(layout.nb), layout.type.itemsize, layout.type.itemsize
    before, after = (blocks_of(shape, layout.type.block)[::-1] for shape in (layout.shape, ne[::-1]))
    for k in sorted(range(len(ne)), key=lambda k: (layout.nb[k], k)):
        if layout.nb[k]:
            nb[k] = reach + max(layout.nb[k] - extent, 0)
            extent, reach = layout.nb[k] * max(before[k], 1), nb[k] * max(after[k], 1)
    return Layout(layout.dtype, tuple(ne[::-1]), tuple(nb[::-1]), layout.offset)


def _takes(op: Op, case: Case) -> bool:
    try:
        op.check(case)
    except CaseError:
        return False
    return all(layout.is_whole for layout in case.layouts.values())


def spread(case: Case) -> tuple[int, int]:
    """How much a case shows of layouts: its dimensions of more than one element; of as many, the small ones first."""
    return sum(n > 1 for layout in case.layouts.values() for n in layout.ne), -case.nbytes


def relaid(op: Op, cases: Sequence[Case]) -> Iterator[Case]:
    """Each case with one argument at another offset, with gaps after its rows and outer dimensions, or with both."""
    for case in cases:
        plain = next(other_values(case))
        for name in case.layouts:
            if case.inplace and name in case.outputs:
                continue
            together = {name, *(case.outputs if name == case.inplace else ())}
            for offset, gaps in ((3, 0), (0, 1), (3, 1)):
                moved = replace(
                    plain,
                    inputs={key: _moved(it, offset, gaps, key in together) for key, it in case.inputs.items()},
                    outputs={key: _moved(it, offset, gaps, key in together) for key, it in case.outputs.items()},
                    shares={},
                )
                if moved.nbytes <= 2 * LARGEST_PROBE and _takes(op, moved):
                    yield moved


def _moved(layout: Layout, offset: int, gaps: int, at_all: bool) -> Layout:
    """`layout` that many elements farther on, and with as many more elements of gap around each outer dimension."""
    if not at_all:
        return layout
    nb, room, inner = list(layout.nb), 0, None
    for k in sorted(range(len(nb)), key=lambda k: (layout.nb[k], k)):
        if layout.nb[k]:
            room = 0 if inner is None else room * layout.blocks[::-1][inner] + gaps * layout.type.itemsize
            nb[k], inner = nb[k] + room, k
    return replace(layout, strides=tuple(nb[::-1]), offset=layout.offset + offset * layout.type.itemsize)
