"""PAD: zeros before and after the elements, along every axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from hypothesis import strategies as st

from opconform.cases import moves
from opconform.cases.shapes import check_out, rows
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DTYPES, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem

_PADS = (0, 1, 2, 3, 0, 7)
_LARGEST = 1 << 20  #: elements of padding, which keeps sums of sizes within every API's integers


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out is x with lp{k} zeros before and rp{k} after it along i{k} (0 is the innermost axis).

    Every element of x keeps its bits; the others are +0.
    """
    return moves.moved(case, raw, source(case))


def source(case: Case) -> moves.Places:
    """Which element of x each element of the output is; -1 in the padding."""
    return _placed(case, [before for before, _ in pads(case)])


def pads(case: Case) -> list[tuple[int, int]]:
    """The zeros before and after x along each axis, the innermost first."""
    return [(int(case.params[f"lp{k}"]), int(case.params[f"rp{k}"])) for k in range(4)]


def _placed(case: Case, before: Sequence[int]) -> moves.Places:
    """x with `before` zeros before it along each axis, cut off where the output ends."""
    out = case.outputs["out"].shape
    found = np.full(out, -1, dtype=np.int64)
    corner = tuple(slice(start, start + size) for start, size in zip(before[::-1], case.inputs["x"].shape))
    inside = found[corner]
    inside[...] = moves.flat(case.inputs["x"])[tuple(slice(size) for size in inside.shape)]
    return found


def check(case: Case) -> None:
    """Raises `CaseError` for a negative or a huge padding, or an output of another size."""
    for name, value in case.params.items():
        if not 0 <= int(value) <= _LARGEST:
            raise CaseError(f"{name} is {value}; it must be from 0 to {_LARGEST}")
    sizes = [before + size + after for size, (before, after) in zip(case.inputs["x"].ne, pads(case))]
    check_out(case, tuple(sizes[::-1]))


@st.composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Zeros along any axes, before and after; shrinks to one element without any."""
    dtype = draw(st.sampled_from(freedom.choices("dtype", moves.DTYPES)))
    params = {name: draw(st.sampled_from(freedom.choices(name, _PADS))) for name in PARAMS}
    shape = draw(rows(freedom, DTYPES[dtype].itemsize))
    padded = [size + params[f"lp{k}"] + params[f"rp{k}"] for k, size in enumerate(shape[::-1])]
    while math.prod(padded) * DTYPES[dtype].itemsize > max(freedom.max_bytes // 4, 1):
        widest = max(range(4), key=lambda k: params[f"lp{k}"] + params[f"rp{k}"])
        params[f"lp{widest}"] = params[f"rp{widest}"] = 0
        padded[widest] = shape[3 - widest]
    return Problem(params, dtype, {"x": shape}, tuple(padded[::-1]))


PARAMS: Mapping[str, type] = {f"{side}{k}": int for k in range(4) for side in ("lp", "rp")}


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Faults of PAD's own: zeros on the wrong side, or not written."""
    case = image.case
    before = [start for start, _ in pads(case)]
    if any(before):
        nothing = moves.moves(_placed(case, [0, 0, 0, 0]))
        yield Hypothesis("the padding before x is ignored: x stands at the start", partial(image.with_expect, nothing))
    for k, (start, after) in enumerate(pads(case)):
        if start:
            left_out = moves.moves(_placed(case, [*before[:k], 0, *before[k + 1 :]]))
            yield Hypothesis(f"lp{k} is ignored: all zeros stand after i{k}", partial(image.with_expect, left_out))
        if start != after:
            turned = moves.moves(_placed(case, [*before[:k], after, *before[k + 1 :]]))
            yield Hypothesis(f"lp{k} and rp{k} are exchanged", partial(image.with_expect, turned))
    only = np.where(source(case) < 0, -1, moves.flat(case.outputs["out"]))
    yield Hypothesis("x is written, the padding is not", partial(image.with_source, only))


OP = Op(
    name="pad",
    summary="zeros before and after x along every axis",
    inputs=("x",),
    params=PARAMS,
    dtypes=moves.DTYPES,
    problems=problems,
    expect=expect,
    bound="the bits of x inside, +0 in the padding",
    check=check,
    alone=lambda case: not (case.params["lp3"] or case.params["rp3"]),
    hypotheses=hypotheses,
    sources=lambda case: {"x": source(case)},
)
