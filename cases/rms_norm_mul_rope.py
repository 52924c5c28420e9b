"""RMS_NORM_MUL_ROPE: queries or keys are normalised head by head, weighed, and turned by their positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases import rope
from opconform.cases.families.behind import beginning_of
from opconform.cases.families.chains import KEPT, MADE, NONE, check_kept
from opconform.cases.families.choices import check_params, choice, drawn_params, ignored, types_of
from opconform.cases.families.formulas import parts_of_row
from opconform.cases.pieces import weighed
from opconform.cases.rows import EPS
from opconform.cases.shapes import is_aligned
from opconform.harness.draw.strategies import among, composite, integers
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F32, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem

_ROPE: Op = rope.OPS[0]
_STEPS = ("normed", "weighed")
_PARAMS = {"eps": EPS, "kept": choice(NONE, *_STEPS), **MADE}
#: What is turned, of x, w and the parameters.
Weighed = Callable[[Approx, Approx, Mapping[str, Any]], Approx]


def _right(x: Approx, w: Approx, p: Mapping[str, Any]) -> Approx:
    return weighed(x, w, p)[1]


def _beginning(case: Case) -> Case:
    """The ROPE alone."""
    return beginning_of(case, _ROPE, case.outputs["out"])


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """x / √(mean of x² + eps) · w, of which pairs of channels are turned as ROPE does.

    The bound is that of the norm and the product, carried through the sums of ROPE (`rope.expect`).
    """
    return _stored(case, raw, numerics, _right, {})


def _stored(
    case: Case,
    raw: Mapping[str, Raw],
    numerics: Numerics,
    begun: Weighed,
    wrong: Mapping[str, Any],
    part: int | None = None,
) -> Expected:
    """part: how many elements of a row go into its mean; see `Approx`."""
    x, w = (Approx.of(F32.decode(raw[name]), F32, numerics, part) for name in ("x", "w"))
    shape = case.outputs["out"].shape
    found = rope.turned(_beginning(case), begun(x, w, case.params), raw, wrong).all.stored(F32, shape)
    return _with_kept(found, case, x, w)


def _with_kept(found: Expected, case: Case, x: Approx, w: Approx) -> Expected:
    """The same with the result of a first step beside it, where the case keeps one."""
    if KEPT not in case.outputs:
        return found
    kept = weighed(x, w, case.params)[_STEPS.index(str(case.params["kept"]))]
    return replace(found, others={KEPT: kept.stored(F32, case.outputs["out"].shape)})


def _unturned(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    x, w = (Approx.of(F32.decode(raw[name]), F32, numerics) for name in ("x", "w"))
    return _with_kept(_right(x, w, case.params).stored(F32, case.outputs["out"].shape), case, x, w)


def check(case: Case) -> None:
    """Raises `CaseError` for parameters and shapes that do not fit together."""
    check_params(case, _PARAMS)
    _ROPE.check(_beginning(case))
    x, w = case.inputs["x"].shape, case.inputs["w"].shape
    if w not in (x, (1, 1, 1, x[3])):
        raise CaseError(f"w has shape {w}; it must be {x} or {(1, 1, 1, x[3])}")
    if case.inplace is not None:
        raise CaseError("case.inplace must be null: rms_norm_mul_rope does not work in place")
    check_kept(case, "x", x)


def traits(case: Case) -> dict[str, Any]:
    """Those of ROPE, but that every argument counts for `aligned`. grid: whether no size but a row's reaches 65,536."""
    own = {name: value for name, value in _ROPE.traits(_beginning(case)).items() if name not in rope.INPLACE}
    return {**own, "aligned": is_aligned(case), "grid": max(case.inputs["x"].ne[1:]) < 1 << 16}


@composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Problems of ROPE in float32, with weights for each channel or for each element; shrinks to one pair."""
    begun = draw(_ROPE.problems(freedom))
    x = begun.shapes["x"]
    params = {**begun.params, **draw(drawn_params(freedom, _PARAMS))}
    if draw(integers(0, 1)):
        params["kept"] = NONE
    w = draw(among(((1, 1, 1, x[3]), x)))
    shapes = {"x": x, "w": w, **{name: shape for name, shape in begun.shapes.items() if name != "x"}}
    more = {KEPT: x} if params["kept"] != NONE else {}
    return replace(begun, dtype="f32", params=params, shapes=shapes, inplace=None, more_outputs=more)


#: What wrong kernels give, by what a hint says of them: a step left out, or in another order.
MISTAKES: Mapping[str, Expect] = {
    "the rows are not normalised": partial(_stored, begun=lambda x, w, p: x * w, wrong={}),
    "w is left out": partial(_stored, begun=lambda x, w, p: weighed(x, w, p)[0], wrong={}),
    "the norm is that of x·w": partial(_stored, begun=lambda x, w, p: weighed(x * w, w, p)[0], wrong={}),
    "it turns backwards": partial(_stored, begun=_right, wrong={"backwards": True}),
    "nothing is turned": _unturned,
}
IGNORED = {"eps": EPS}  #: the parameters of its own that a wrong kernel may leave out


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """`MISTAKES`, eps or parts of a row left out, and positions of other tokens."""
    for says, expect in MISTAKES.items():
        yield Hypothesis(says, partial(image.with_expect, expect))
    yield from ignored(image, IGNORED)
    right = partial(_stored, begun=_right, wrong={})
    for says, part in parts_of_row(image.case.inputs["x"].shape[-1]):
        yield Hypothesis(says, partial(image.with_expect, partial(right, part=part)))
    pos = image.raw["pos"]
    first = np.broadcast_to(pos[..., :1], pos.shape)
    yield Hypothesis("every token has the first one's position", partial(image.with_inputs, pos=first))


OP = Op(
    name="rms_norm_mul_rope",
    summary="x / √(mean of x² + eps) · w, row by row, its pairs of channels turned by position",
    inputs=("x", "w", "pos", "factors"),
    params={**_ROPE.params, **types_of(_PARAMS)},
    dtypes=("f32",),
    argument_dtypes=_ROPE.argument_dtypes,
    problems=problems,
    expect=expect,
    bound="that of RMS_NORM and MUL, carried through the sums of ROPE",
    check=check,
    traits=traits,
    hypotheses=hypotheses,
    indices=_ROPE.indices,
    composite=replace(_ROPE.composite, optional=(*_ROPE.composite.optional, KEPT), more_outputs=(KEPT,)),
)
