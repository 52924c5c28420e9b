"""Gathers: each element of the output is one of x, or a zero; perhaps in another type.

A row gives the source: for each element of the output the flat index (in C order) of the element of x that stands
there, or -1 for a zero. The hints hold other sources against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, update_wrapper

import numpy as np
from hypothesis import strategies as st

from opconform.cases.families.choices import Choices, check_params, drawn_params, ignored, types_of
from opconform.cases.families.conversions import Conversion, converted, misconverted
from opconform.cases.shapes import check_out, is_aligned
from opconform.harness.draw.strategies import among, composite
from opconform.harness.model.case import Case, Param
from opconform.harness.model.dtypes import DTYPES, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Hypothesis, Image, Places, Reading
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem, Sizes

ALL = ("f32", "f16", "bf16", "i32")
#: Types that few ops take: those that move elements, and do not compute with them.
SELDOM = ("i8", "i16", "i64", "f64")
NO_PARAMS: Choices = {}
_LONG = 1025  #: a size above this is that of a rare form

Shape = tuple[int, ...]
Params = Mapping[str, Param]
Shapes = Callable[[Freedom, int], st.SearchStrategy[Shape]]
OutShapes = Callable[[Shape, Params], Sequence[Shape]]
Source = Callable[[Case], Places]
Fit = Callable[[Freedom, Shape, Params], Params]
Problems = Callable[[Freedom], st.SearchStrategy[Problem]]


@dataclass(frozen=True)
class Elsewhere:
    """What a wrong kernel does, in words, and where its elements come from.

    left: what would be a zero is not written instead.
    """

    says: str
    source: Places
    left: bool = False


def flat(layout: Layout) -> Places:
    """Each element's own flat index."""
    return np.arange(layout.size, dtype=np.int64).reshape(layout.shape)


def picked(flat: Raw, source: Places) -> Raw:
    """The elements at the indices `source` of the last axis, and +0 where that is -1."""
    with_zero = np.concatenate([flat, np.zeros((*flat.shape[:-1], 1), flat.dtype)], axis=-1)
    found: Raw = with_zero[..., source]
    return found


def same_shape(shape: Shape, params: Params) -> Sequence[Shape]:
    """The shapes of an output that has that of x."""
    return (shape,)


@dataclass(frozen=True)
class _Row:
    """What a row of the table says, as `gather` documents it."""

    source: Source
    shapes: Shapes
    out: OutShapes
    params: Choices
    elsewhere: Callable[[Case], Iterable[Elsewhere]] | None
    check: Callable[[Case], None] | None
    types: tuple[str, ...]
    dtypes: tuple[str, ...] = ALL
    fit: Fit | None = None
    traits_too: Callable[[Case], Mapping[str, bool]] | None = None

    def expect(self, case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return _gathered(self.source(case), converted, case, raw, numerics)

    def fitted(self, freedom: Freedom, shape: Shape, params: Params) -> dict[str, Param]:
        """Parameters that suit a shape, made of those that were drawn."""
        return dict(params if self.fit is None else self.fit(freedom, shape, params))

    def checked(self, case: Case) -> None:
        """Raises `CaseError` for parameters beyond their limits and for shapes that do not fit together."""
        check_params(case, self.params)
        if self.check is not None:
            self.check(case)
        else:
            check_out(case, self.out(case.inputs["x"].shape, case.params)[0])

    def traits(self, case: Case) -> dict[str, str | bool]:
        """aligned: see `is_aligned`. types: those of x and of the output, as in "f32-f16", of an op that converts.
        shortens_nan: whether NaN of any payload lose half of their bits."""
        found: dict[str, str | bool] = {"aligned": is_aligned(case)}
        if self.types:
            found["types"] = f"{case.inputs['x'].dtype}-{case.dtype}"
            found["shortens_nan"] = found["types"] == "f32-bf16" and case.recipe == "special"
        if self.traits_too is not None:
            found.update(self.traits_too(case))
        return found

    def sources(self, case: Case) -> dict[str, Places]:
        """Nothing is told where a number that names an element is rounded."""
        return {"x": self.source(case)} if case.inputs["x"].type is case.outputs["out"].type else {}

    def hypotheses(self, image: Image) -> Iterator[Hypothesis]:
        """Parameters left out, the row's own wrong sources, and wrong conversions."""
        case = image.case
        yield from ignored(image, self.params)
        for wrong in self.elsewhere(case) if self.elsewhere else ():
            if wrong.left:
                written = np.where(wrong.source < 0, -1, flat(case.outputs["out"]))
                yield Hypothesis(wrong.says, partial(image.with_source, written))
            else:
                yield Hypothesis(wrong.says, _moved(image, wrong.source, converted))
        if self.types:
            for says, conversion in misconverted(case):
                yield Hypothesis(says, _moved(image, self.source(case), conversion))


def gather(
    name: str,
    summary: str,
    source: Source,
    *,
    shapes: Shapes,
    out: OutShapes = same_shape,
    params: Choices = NO_PARAMS,
    elsewhere: Callable[[Case], Iterable[Elsewhere]] | None = None,
    check: Callable[[Case], None] | None = None,
    types: tuple[str, ...] = (),
    seldom: tuple[str, ...] = (),
    alone: Callable[[Case], tuple[int, ...] | str] = lambda case: (0, 1),
    copies: bool = False,
    bound: str = "the bits of x",
    unread: tuple[str, ...] = (),
    problems: Problems | None = None,
    fit: Fit | None = None,
    traits: Callable[[Case], Mapping[str, bool]] | None = None,
    sizes: Callable[[Case], Sizes] | None = None,
) -> Op:
    """An op that moves elements of x.

    source: where each element of the output comes from. shapes: the strategy of x's shapes for elements of so many
    bytes. out: the output's shape for a shape of x, or several to draw one from (then `check` says what else fits);
    raises `CaseError` for a shape of x that does not fit. elsewhere: what wrong kernels do. types: the pairs of types
    ("f32-f16") between which the op converts; without them the output has the type of x, any of `ALL`. seldom: types
    that the op takes besides, of which one draw in six has one. alone, copies, sizes: as `Op` has them. unread:
    arguments before x of which the shape alone matters. problems: the strategy, where shapes and parameters depend on
    each other. fit: parameters that suit a shape, for a strategy that draws both apart. traits: what limits may speak
    of beside alignment and types.
    """
    dtypes = (*ALL, *seldom)
    row = _Row(source, shapes, out, params, elsewhere, check, types, dtypes, fit, traits)

    def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return row.expect(case, raw, numerics)

    return Op(
        name=name,
        summary=summary,
        inputs=(*unread, "x"),
        params=types_of(params),
        dtypes=dtypes,
        argument_dtypes=dict.fromkeys((*unread, "x"), dtypes) if types else {},
        problems=problems or partial(_problems, row=row),
        expect=update_wrapper(expect, source),  # so that a failure names the line of the source
        bound=bound,
        check=row.checked,
        traits=row.traits,
        alone=alone,
        sizes=sizes,
        hypotheses=row.hypotheses,
        sources=row.sources,
        pointwise=True,
        copies=copies,
        shape_only=unread,
        stacks=True,
    )


@composite
def _problems(draw: st.DrawFn, freedom: Freedom, row: _Row) -> Problem:
    """Any shape and parameters that the row has, within the bytes allowed; shrinks to its simplest shape, and to the
    same type on both sides."""
    params = draw(drawn_params(freedom, row.params))
    came = dtype = draw(among(drawn_types(freedom, row.types, row.dtypes)))
    if row.types:
        came, _, dtype = came.partition("-")
    shape = draw(row.shapes(freedom, max(DTYPES[came].itemsize, DTYPES[dtype].itemsize)))
    most = max(freedom.max_bytes // 16 // DTYPES[dtype].itemsize, 1)
    drawn = params
    params = row.fitted(freedom, shape, drawn)
    innermost_first = list(row.params)  # those of the axis that is long go last, and it stays so
    for name in innermost_first[:: -1 if shape[-1] == max(shape) else 1] if max(shape) > _LONG else ():
        if math.prod(row.out(shape, params)[0]) <= most:
            break
        drawn = {**drawn, name: freedom.choices(name, row.params[name].values)[0]}
        params = row.fitted(freedom, shape, drawn)
    while row.params and max(shape) > 2 and math.prod(row.out(shape, params)[0]) > most:
        axis = shape.index(max(shape))  # padding can make a large tensor too large
        shape = (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :])
        params = row.fitted(freedom, shape, drawn)
    for name in row.params:
        if math.prod(row.out(shape, params)[0]) <= most:
            break
        params[name] = freedom.choices(name, row.params[name].values)[0]
    out = draw(among(row.out(shape, params)))
    return Problem(params, dtype, {"x": shape}, out, dtypes={"x": came} if row.types else {})


def drawn_types(freedom: Freedom, types: tuple[str, ...], dtypes: tuple[str, ...] = ALL) -> list[str]:
    """What may be drawn of types, or of pairs of them. Those of `SELDOM` are a sixth of the list."""
    outs = freedom.choices("dtype", dtypes)
    if types:
        outs = [pair for pair in freedom.choices("types", types) if pair.partition("-")[2] in outs]
    usual = [each for each in outs if each.partition("-")[2] not in SELDOM and each not in SELDOM]
    rest = [each for each in outs if each not in usual]
    return [*usual * max(-(-5 * len(rest) // len(usual)), 1), *rest] if usual else rest


def _gathered(
    source: Places, conversion: Conversion, case: Case, raw: Mapping[str, Raw], numerics: Numerics
) -> Expected:
    x = raw["x"]
    stacked = x.shape[: x.ndim - len(case.inputs["x"].shape)]
    elements = picked(x.reshape(*stacked, -1), source)
    return conversion(elements, case.inputs["x"].type, case.outputs["out"].type, numerics)


def _moved(image: Image, source: Places, conversion: Conversion) -> Callable[[], Reading]:
    return partial(image.with_expect, partial(_gathered, source, conversion))
