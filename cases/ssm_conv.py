"""SSM_CONV: the short causal convolution of Mamba and of the delta-net models, one filter for each channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from hypothesis import strategies as st

from opconform.cases.shapes import check_out, is_aligned
from opconform.harness.draw.strategies import (
    among,
    composite,
    counts,
    few,
    forms,
    inner_sizes,
    integers,
    lengths,
    outer_sizes,
    scales,
    tile_sizes,
    within,
)
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F32, F64, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics, quanta
from opconform.harness.model.op import Composite, Op, Problem


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[s,t,i] = Σ_j x[s,i,t+j]·c[i,j] over the d taps of channel i.

    x [1,n_s,d_inner,d−1+n_t] holds, for each of the n_s sequences, the d−1 tokens before (the conv state) and the n_t
    new ones; c is [1,1,d_inner,d]. An inner product of d terms in any order, with or without fused operations, is off
    by at most γ_d·Σ|x||c| (Higham 2002, eq. 3.5), and by nothing where no order rounds (`Numerics.rounds`). Each
    product and each addition may underflow by η besides, and a device that flushes may lose as much of every operand,
    scaled by what it is multiplied with. Where Σ|x||c| passes the largest float32 nothing is demanded.
    """
    return _convolved(F32.decode(raw["x"]), F32.decode(raw["c"]), numerics)


def _convolved(x: F64, c: F64, numerics: Numerics) -> Expected:
    windows, taps = _windows(x, c.shape[-1]), c[..., None, :, :]
    products, d = windows * taps, c.shape[-1]
    value = products.sum(-1)
    magnitude = np.abs(products).sum(-1)
    bound = numerics.gamma(float(d + 2 * numerics.conversions)) * magnitude + 2 * d * numerics.underflow
    if numerics.flushes_denormals:
        operands = np.abs(windows).sum(-1) + np.abs(taps).sum(-1)
        bound = bound + numerics.underflow * operands
    bound = np.where(numerics.rounds(quanta(products).min(-1), magnitude), bound, 0.0)
    return Expected(value, np.where(magnitude + bound <= F32.largest, bound, np.inf))


def _windows(x: F64, d: int) -> F64:
    """The d elements under the filter, as [1, n_s, n_t, d_inner, d]."""
    found: F64 = np.swapaxes(np.lib.stride_tricks.sliding_window_view(x, d, axis=-1), -3, -2)
    return found


def shape_values(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """denormal: filters of small whole numbers. The products of two denormals are 0, and any kernel is right there."""
    if case.recipe == "denormal":
        values["c"][...] = rng.integers(1, 5, values["c"].shape) * rng.choice((-1.0, 1.0), values["c"].shape)


def check(case: Case) -> None:
    """Raises `CaseError` unless x, c and the output fit together."""
    x, c = case.inputs["x"].shape, case.inputs["c"].shape
    if x[0] != 1:
        raise CaseError(f"x has shape {x}; its outermost size must be 1")
    if c[:3] != (1, 1, x[2]):
        raise CaseError(f"c has shape {c}; it must be (1, 1, {x[2]}, taps), a filter for each channel of x")
    tokens = x[3] - c[3] + 1
    if c[3] < 1 or tokens < 0:
        raise CaseError(f"x holds {x[3]} tokens and c {c[3]} taps; there must be a tap, and d − 1 tokens at least")
    check_out(case, (1, x[1], tokens, x[2]))


@composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Filters of up to 9 taps, 4 above all, over up to 1025 tokens or channels, now and then in a rare form; shrinks to
    one token of one channel."""
    taps = draw(among(freedom.choices("taps", (1, 2, 4, 3, 4, 5, 9, 4))))
    form = draw(forms())
    if form == "usual":
        scale = draw(scales())
        tokens, channels = draw(inner_sizes(scale)), draw(inner_sizes(min(scale, 33)))
    elif form == "tiles":
        tokens, channels = draw(tile_sizes()), draw(tile_sizes())
    else:
        tokens, channels = draw(few()) if form == "many" else draw(lengths()), draw(few())
    if draw(st.booleans()):
        tokens, channels = channels, tokens
    sequences = draw({"usual": outer_sizes(), "many": counts()}.get(form, few()))
    if form == "usual" and freedom.choices("empty", (True,)) and draw(integers(0, 31)) == 31:
        sequences = 0
    tokens, channels, sequences = within((tokens, channels, sequences), 4 if form == "usual" else 4 * taps, freedom)
    x, c = (1, sequences, channels, taps - 1 + tokens), (1, 1, channels, taps)
    return Problem({}, "f32", {"x": x, "c": c}, (1, sequences, tokens, channels))


def traits(case: Case) -> dict[str, int | bool]:
    """taps: the length of a filter. aligned: see `is_aligned`."""
    return {"taps": case.inputs["c"].shape[-1], "aligned": is_aligned(case)}


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Faults of SSM_CONV's own: windows off by one, a filter turned round, the state of another sequence."""
    case = image.case
    d = case.inputs["c"].shape[-1]
    yield Hypothesis("the last tap is left out", partial(image.with_expect, _without(-1)))
    yield Hypothesis("the first tap is left out", partial(image.with_expect, _without(0)))
    yield Hypothesis("the window starts one token late", partial(image.with_inputs, x=_later(image.raw["x"])))
    if d > 1:
        turned = image.raw["c"][..., ::-1]
        yield Hypothesis("the taps are read backwards", partial(image.with_inputs, c=turned))
    if d > 1 and case.inputs["x"].shape[1] > 1:
        state = np.broadcast_to(image.raw["x"][:, :1, :, : d - 1], image.raw["x"][..., : d - 1].shape)
        x = np.concatenate([state, image.raw["x"][..., d - 1 :]], axis=-1)
        yield Hypothesis("every sequence starts from the first one's conv state", partial(image.with_inputs, x=x))


def _later(x: Raw) -> Raw:
    """Each token read from the place after it; past the end of a row stand zeros."""
    return np.concatenate([x[..., 1:], np.zeros_like(x[..., :1])], axis=-1)


def _without(tap: int) -> Expect:
    def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        c = F32.decode(raw["c"])
        c[..., tap] = 0
        return _convolved(F32.decode(raw["x"]), c, numerics)

    return expect


OP = Op(
    name="ssm_conv",
    summary="out[s,t,i] = sum of x[s,i,t+j]*c[i,j] over the taps of channel i",
    inputs=("x", "c"),
    params={},
    dtypes=("f32",),
    problems=problems,
    expect=expect,
    bound="γ_d·Σ|x||c| over the d taps, + underflow; 0 where no order rounds",
    check=check,
    traits=traits,
    alone=lambda case: (1,),
    hypotheses=hypotheses,
    stacks=True,
    flops=lambda case: 2 * case.inputs["c"].shape[-1] * case.outputs["out"].size,
    composite=Composite(shape_values=shape_values),
)
