"""Elementwise ops and row ops: a formula on `Approx` values gives the reference, the bound and the hints.

The output has the shape of the first argument; a row op may keep one place of each row. Any other argument is repeated
over the first one, as ggml repeats it: along an axis of n elements for every n-th index, i mod n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases.families.choices import Choices, check_params, drawn_params, ignored, types_of
from opconform.cases.shapes import check_out, is_aligned, rows, tensors
from opconform.harness.draw.strategies import among, composite, integers, within
from opconform.harness.explain.hypotheses import TILES
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DTYPES, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Op, Problem, ShapeValues

#: Takes the arguments, then the case's parameters by name if the op has any.
Formula = Callable[..., Approx]
NO_PARAMS: Choices = {}
BOUND = "the rounding of each step, carried through the formula"


@dataclass(frozen=True)
class Row:
    """What a row of the table says, as `elementwise` and `row_op` document it."""

    inputs: tuple[str, ...]
    formula: Formula
    params: Choices
    dtypes: tuple[str, ...]
    mistakes: Mapping[str, Formula]
    copied: str = "computed"
    along_rows: bool = False
    to_one: bool = False
    inplace: bool = False
    scalars: tuple[str, ...] = ()

    def out_shape(self, first: tuple[int, ...]) -> tuple[int, ...]:
        return (*first[:-1], 1) if self.to_one else first

    def others(self, case: Case) -> list[str]:
        """The arguments after the first."""
        return [name for name in self.inputs[1:] if name in case.inputs]

    def expect(
        self, formula: Formula, part: int | None, case: Case, raw: Mapping[str, Raw], numerics: Numerics
    ) -> Expected:
        """What `formula` gives on the elements `raw`, where sums take `part` elements of each row."""
        shape, out = case.inputs[self.inputs[0]].shape, case.outputs["out"]
        stacked = raw[self.inputs[0]].shape[: -len(shape)]
        arguments = [
            Approx.of(layout.type.decode(_repeated(raw[name], shape)), layout.type, numerics, part)
            for name, layout in ((name, case.inputs[name]) for name in self.inputs if name in case.inputs)
        ]
        found = formula(*arguments, case.params) if self.params else formula(*arguments)
        return found.stored(out.type, (*stacked, *out.shape))

    def check(self, case: Case) -> None:
        """Raises `CaseError` for parameters beyond their limits and for shapes that do not fit together."""
        check_params(case, self.params)
        first = case.inputs[self.inputs[0]].shape
        for name in self.others(case):
            its = case.inputs[name].shape
            if name in self.scalars and its != (1, 1, 1, 1):
                raise CaseError(f"{name} has shape {its}; it must be one element")
            if name not in self.scalars and any(n % max(m, 1) or (m == 0) != (n == 0) for n, m in zip(first, its)):
                raise CaseError(f"{name} has shape {its}; repeated, it must fill that of {self.inputs[0]}, {first}")
        if not self.inplace or case.inplace != self.inputs[0]:
            check_out(case, self.out_shape(first))
        elif case.outputs["out"].shape != first:
            raise CaseError(f"out has shape {case.outputs['out'].shape}; in place it must be that of x, {first}")

    def traits(self, case: Case) -> dict[str, Any]:
        """aligned: see `is_aligned`. grid: whether no size but ne0 is above 65535, the most that every GPU takes along
        an axis of workgroups. repeats: whether an argument is smaller than the first one. inplace: whether the output
        takes over the memory of the first."""
        found: dict[str, Any] = {"aligned": is_aligned(case), "grid": max(case.inputs[self.inputs[0]].ne[1:]) < 1 << 16}
        if self.inplace:
            found["inplace"] = case.inplace is not None
        if len(self.inputs) > 1 and not self.scalars:
            found["repeats"] = len({layout.shape for layout in case.inputs.values()}) > 1
        return found

    def alone(self, case: Case) -> tuple[int, ...]:
        """Both batch axes: what is repeated along them is repeated for each slice."""
        return (0, 1)

    def hypotheses(self, image: Image) -> Iterator[Hypothesis]:
        """The row's own mistakes, parameters left out, arguments repeated in another way, parts of a row left out."""
        case = image.case
        for says, formula in self.mistakes.items():
            yield Hypothesis(says, partial(image.with_expect, partial(self.expect, formula, None)))
        yield from ignored(image, self.params)
        if not self.to_one:
            for name in filter(case.inputs.__contains__, self.inputs[: len(self.inputs) - len(self.scalars)]):
                says = f"{name} is copied, not {self.copied}"
                yield Hypothesis(says, partial(image.with_expect, _copy_of(name)))
        for name in self.others(case):
            if name in self.scalars:
                continue
            yield from _repeated_otherwise(image, name, case.inputs[self.inputs[0]].shape)
        if self.along_rows:
            for says, part in parts_of_row(case.inputs[self.inputs[0]].shape[-1]):
                yield Hypothesis(says, partial(image.with_expect, partial(self.expect, self.formula, part)))


def elementwise(
    name: str,
    summary: str,
    formula: Formula,
    *,
    inputs: tuple[str, ...] = ("x",),
    params: Choices = NO_PARAMS,
    dtypes: tuple[str, ...] = ("f32", "f16"),
    mistakes: Mapping[str, Formula] | None = None,
    bound: str = BOUND,
    scalars: tuple[str, ...] = (),
    shape_values: ShapeValues | None = None,
) -> Op:
    """An op that computes each element of `out` from those in its place.

    formula: takes an `Approx` for each of `inputs`, then the parameters where there are any. mistakes: formulas that a
    wrong kernel may compute, by what a hint says of it. bound: the bound in one line, where that says more than that it
    follows from the formula. scalars: the last inputs, where they are one element each. shape_values: see `Composite`.
    """
    row = Row(inputs, formula, params, dtypes, mistakes or {}, "computed", inplace=True, scalars=scalars)
    return as_op(row, name, summary, bound, shape_values=shape_values)


def row_op(
    name: str,
    summary: str,
    formula: Formula,
    *,
    inputs: tuple[str, ...] = ("x",),
    params: Choices = NO_PARAMS,
    dtypes: tuple[str, ...] = ("f32",),
    mistakes: Mapping[str, Formula] | None = None,
    to_one: bool = False,
    copied: str = "computed",
    bound: str = BOUND,
) -> Op:
    """An op that computes each row of `out` from the row in its place, or (`to_one`) one element from each row.

    copied: what is done with x that a kernel leaves undone which copies it, as the hint says it. The others are as
    `elementwise` has them.
    """
    row = Row(inputs, formula, params, dtypes, mistakes or {}, copied, along_rows=True, to_one=to_one)
    return as_op(row, name, summary, bound)


def as_op(
    row: Row,
    name: str,
    summary: str,
    bound: str,
    derivation: Callable[..., Any] | None = None,
    shape_values: ShapeValues | None = None,
) -> Op:
    """The op that a row says. derivation: where a failure says that its bound comes from, if not from the formula."""

    def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return row.expect(row.formula, None, case, raw, numerics)

    return Op(
        name=name,
        summary=summary,
        inputs=row.inputs,
        params=types_of(row.params),
        dtypes=row.dtypes,
        problems=partial(_problems, row=row),
        expect=update_wrapper(expect, derivation or row.formula),  # so that a failure names the line of the formula
        bound=bound,
        check=row.check,
        traits=row.traits,
        alone=row.alone,
        hypotheses=row.hypotheses,
        pointwise=not row.along_rows,
        stacks=True,
        composite=Composite(shape_values=shape_values),
    )


@composite
def _problems(draw: st.DrawFn, freedom: Freedom, row: Row) -> Problem:
    """Rows up to 1025 long, elementwise along any axis, with other arguments that are repeated along some axes; shrinks
    to one element."""
    params = draw(drawn_params(freedom, row.params))
    dtype = draw(among(freedom.choices("dtype", row.dtypes)))
    shape = draw((rows if row.along_rows else tensors)(freedom, DTYPES[dtype].itemsize))
    if row.along_rows and shape[-1] == 1 and draw(integers(0, 15)) < 15:  # rows of one are their own sums
        shape = (*shape[:-1], 2)
    shapes = {row.inputs[0]: shape}
    for name in row.inputs[1:]:
        shapes[name] = (1, 1, 1, 1) if name in row.scalars else shape
        if name not in row.scalars and draw(among(freedom.choices("repeats", (False, False, True)))):
            shape, shapes[name] = draw(repeatable(shape, DTYPES[dtype].itemsize, freedom))
    shapes[row.inputs[0]] = shape
    inplace = row.inplace and draw(among(freedom.choices("inplace", (False, False, True))))
    return Problem(params, dtype, shapes, row.out_shape(shape), row.inputs[0] if inplace else None)


@composite
def repeatable(
    draw: st.DrawFn, shape: tuple[int, ...], itemsize: int, freedom: Freedom
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`shape`, perhaps larger, and one that fills it if it is repeated.

    Along each axis the other one has all elements, one, or a part of them; it shrinks to one.
    """
    whole, part = list(shape), [1] * len(shape)
    for axis, n in enumerate(shape):
        kind = draw(among(("one", "whole", "part", "whole"))) if n > 1 else "whole"
        if kind == "whole":
            part[axis] = n
        elif kind == "part":
            part[axis] = n // next((p for p in (2, 3) if n % p == 0 and n > p), 1)
            doubled = [*whole[:axis], 2 * n, *whole[axis + 1 :]]
            if part[axis] == n and within(doubled, itemsize, freedom) == tuple(doubled):
                whole = doubled
    return tuple(whole), tuple(part)


def _repeated(raw: Raw, shape: tuple[int, ...]) -> Raw:
    """An argument's elements, repeated as often as `shape` has them."""
    its = raw.shape[-len(shape) :]
    if its == shape:
        return raw
    return np.tile(raw, [n // max(m, 1) for n, m in zip(shape, its)])


def _repeated_otherwise(image: Image, name: str, shape: tuple[int, ...]) -> Iterator[Hypothesis]:
    """Wrong ways to repeat an argument along an axis."""
    raw = image.raw[name]
    rank = len(shape)
    for axis, (n, m) in enumerate(zip(shape, raw.shape)):
        if not 1 < m < n:
            continue
        k = rank - 1 - axis
        each = np.repeat(raw, n // m, axis)
        says = f"{name} is repeated element by element along i{k} (i{k} / r), not as a whole (i{k} mod n)"
        yield Hypothesis(says, partial(image.with_inputs, **{name: each}))
        last = np.take(raw, np.minimum(np.arange(n), m - 1), axis)
        says = f"{name} is not repeated along i{k}: its last element stands for all beyond"
        yield Hypothesis(says, partial(image.with_inputs, **{name: last}))


def parts_of_row(n: int, row: str = "row") -> Iterator[tuple[str, int]]:
    """Parts of a row of n elements that a sum may take, in words."""
    if n > 1:
        yield f"the last element of each {row} is left out", n - 1
    for tile in TILES:
        if n > tile and n % tile:
            yield f"what a tile of {tile} does not fill is left out of the sum", n // tile * tile
        if n > tile:
            yield f"only the first tile of {tile} is summed", tile


def _copy_of(name: str) -> Expect:
    def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        layout, out = case.inputs[name], case.outputs["out"]
        copied = Approx.of(layout.type.decode(_repeated(raw[name], out.shape)), layout.type, numerics)
        return copied.stored(out.type, out.shape)

    return expect
