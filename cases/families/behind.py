"""Pieces that begin with an op of another family: each element of its result goes through a formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial, update_wrapper
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases.families.chains import KEPT, MADE, NONE, Chain, check_kept
from opconform.cases.families.choices import check_params, choice, drawn_params, types_of
from opconform.cases.shapes import is_aligned
from opconform.harness.draw.strategies import among, composite, integers
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F64, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem

Shape = tuple[int, ...]
#: How large an argument of the formula is: of the shapes of the first op's arguments and of its result.
KINDS: Mapping[str, Callable[[Mapping[str, Shape], Shape], Shape]] = {
    "row": lambda shapes, out: (1, 1, 1, out[3]),
    "whole": lambda shapes, out: out,
    "one": lambda shapes, out: (1, 1, 1, 1),
    "column": lambda shapes, out: (*out[:3], 1),
    "channel": lambda shapes, out: (1, out[1], 1, 1),
    "experts": lambda shapes, out: (1, 1, shapes["a"][1], out[3]),
    "weights": lambda shapes, out: shapes["a"],
}
_AGAIN = ("weights",)  #: an argument that stands for a in the first op once more: its formula takes that result


def beginning_of(case: Case, first: Op, out: Layout) -> Case:
    """The case of the op that a piece begins with, alone, whose result has the shape and the type of `out`."""
    inputs = {name: layout for name, layout in case.inputs.items() if name in first.inputs}
    params = {name: case.params[name] for name in first.params}
    outputs = {"out": out.packed()}
    return replace(case, op=first.name, params=params, inputs=inputs, outputs=outputs, inplace=None, data=None)


@dataclass(frozen=True)
class _Piece:
    """What a row of the table says, as `behind` documents it."""

    first: Op
    arguments: Mapping[str, tuple[str, ...]]
    steps: tuple[str, ...]
    chain: Chain
    mistakes: Mapping[str, Callable[..., Approx]]
    vector: Callable[[Problem], Problem] | None = None

    @property
    def params(self) -> dict[str, Any]:
        return {"kept": choice(NONE, *self.steps), **MADE}

    @property
    def again(self) -> dict[str, str]:
        """The arguments that stand for another one once more, and for which."""
        return {name: "a" for name, kinds in self.arguments.items() if kinds == _AGAIN}

    def beginning(self, case: Case) -> Case:
        """The case of the first op alone."""
        return beginning_of(case, self.first, case.outputs["out"])

    def results(self, case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> tuple[Approx, tuple[Approx, ...]]:
        """The first op's result, and the arguments of the formula, each as large."""
        shape = case.outputs["out"].shape
        given = []
        for name, kinds in self.arguments.items():
            if kinds == _AGAIN:
                given.append(self._begun(case, raw, numerics, name))
                continue
            values = case.inputs[name].type.decode(raw[name])
            values = _chosen(values, raw["ids"]) if kinds == ("experts",) else np.tile(values, _times(shape, values))
            given.append(Approx.of(values, case.inputs[name].type, numerics))
        return self._begun(case, raw, numerics, "a"), tuple(given)

    def _begun(self, case: Case, raw: Mapping[str, Raw], numerics: Numerics, weights: str) -> Approx:
        """The first op's result, with these weights in place of a."""
        beginning = self.beginning(case)
        own = {name: raw[name] for name in beginning.inputs}
        if weights != "a":
            beginning = replace(beginning, inputs={**beginning.inputs, "a": case.inputs[weights]})
            own["a"] = raw[weights]
        return Approx.about(self.first.expect(beginning, own, numerics), numerics)

    def expect(self, case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return self._stored(case, raw, numerics, lambda *given: self.chain(*given)[-1])

    def _stored(self, case: Case, raw: Mapping[str, Raw], numerics: Numerics, last: Callable[..., Approx]) -> Expected:
        begun, given = self.results(case, raw, numerics)
        out = case.outputs["out"]
        found = last(begun, *given).stored(out.type, out.shape)
        if KEPT not in case.outputs:
            return found
        kept = self.chain(begun, *given)[self.steps.index(str(case.params["kept"]))]
        return replace(found, others={KEPT: kept.stored(out.type, out.shape)})

    def check(self, case: Case) -> None:
        """Raises `CaseError` for parameters and shapes that do not fit together."""
        check_params(case, self.params)
        beginning = self.beginning(case)
        self.first.check(beginning)
        if case.inplace is not None:
            raise CaseError(f"case.inplace must be null: {case.op} does not work in place")
        shapes, out = {name: it.shape for name, it in case.inputs.items()}, case.outputs["out"].shape
        for name, kinds in self.arguments.items():
            allowed = [KINDS[kind](shapes, out) for kind in kinds]
            if shapes[name] not in allowed:
                raise CaseError(f"{name} has shape {shapes[name]}; it must be {' or '.join(map(str, allowed))}")
        check_kept(case, "out", out)

    def traits(self, case: Case) -> dict[str, Any]:
        """Those of the first op, but that every argument counts for `aligned`."""
        return {**self.first.traits(self.beginning(case)), "aligned": is_aligned(case)}

    def hypotheses(self, image: Image) -> Iterator[Hypothesis]:
        """The row's own mistakes."""
        for says, formula in self.mistakes.items():
            yield Hypothesis(says, partial(image.with_expect, partial(self._mistaken, formula)))

    def _mistaken(
        self, formula: Callable[..., Approx], case: Case, raw: Mapping[str, Raw], numerics: Numerics
    ) -> Expected:
        return self._stored(case, raw, numerics, formula)


def _times(shape: Shape, values: F64) -> list[int]:
    return [n // max(m, 1) for n, m in zip(shape, values.shape)]


def _chosen(values: F64, ids: Raw) -> F64:
    """The rows that ids choose, as (1, tokens, used, n)."""
    found: F64 = values[0, 0][np.clip(ids.view(np.int32)[0, 0], 0, values.shape[2] - 1)][None]
    return found


def behind(
    first: Op,
    name: str,
    summary: str,
    chain: Chain,
    *,
    arguments: Mapping[str, tuple[str, ...]],
    steps: tuple[str, ...],
    mistakes: Mapping[str, Callable[..., Approx]],
    vector: Callable[[Problem], Problem] | None = None,
) -> Op:
    """The op `first`, and ops on each element of its result.

    arguments: the further arguments with the sizes that each may have (`KINDS`); one of kind "weights" is of a's type
    too. chain: takes the result of `first` and an `Approx` for each of those (of weights, the result of `first` with
    them in place of a); gives the result of each op, that of `first` included, of which those before the last are
    called `steps`. mistakes: what a wrong kernel may give instead of the last one, by what a hint says of it.
    vector: what makes a problem of one vector, where kernels take only that together; a half of the problems are such.
    """
    row = _Piece(first, arguments, steps, chain, mistakes, vector)

    def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return row.expect(case, raw, numerics)

    composite = replace(first.composite, optional=(*first.composite.optional, KEPT), more_outputs=(KEPT,))
    return Op(
        name=name,
        summary=summary,
        inputs=(*first.inputs, *arguments),
        params={**first.params, **types_of(row.params)},
        dtypes=("f32",),
        argument_dtypes={
            **first.argument_dtypes,
            **{name: first.argument_dtypes[its] for name, its in row.again.items()},
        },
        problems=partial(_problems, row=row),
        expect=update_wrapper(expect, chain),
        bound=f"that of {first.name}, and the rounding of each further step, carried through the formula",
        check=row.check,
        traits=row.traits,
        hypotheses=row.hypotheses,
        indices=first.indices,
        composite=composite,
    )


@composite
def _problems(draw: st.DrawFn, freedom: Freedom, row: _Piece) -> Problem:
    """Problems of the first op, with arguments of each size that they may have; nothing is kept at first."""
    begun = draw(row.first.problems(freedom))
    if row.vector is not None and draw(integers(0, 1)):
        begun = row.vector(begun)
    params = {**begun.params, **draw(drawn_params(freedom, row.params))}
    if draw(integers(0, 1)):
        params["kept"] = NONE
    shapes = dict(begun.shapes)
    for name, kinds in row.arguments.items():
        shapes[name] = KINDS[draw(among(kinds))](begun.shapes, begun.out_shape)
    more = {KEPT: begun.out_shape} if params["kept"] != NONE else {}
    dtypes = {**begun.dtypes, **{name: begun.dtypes[its] for name, its in row.again.items()}}
    return replace(begun, params=params, shapes=shapes, more_outputs=more, dtypes=dtypes)
