"""CPY from and to quantised types: rows of x decoded, rounded to the codes of blocks, or copied block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from hypothesis import strategies as st

from opconform.cases.families.conversions import ROUNDED, decoded, fitted_to_scales, stored
from opconform.cases.families.encoders import ENCODERS, has_top_scales
from opconform.cases.shapes import check_out, is_aligned, tensors
from opconform.harness.draw.strategies import among, composite
from opconform.harness.model import blocks
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DTYPES, QUANTISED, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.layouts import LayoutClass
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Op, Problem

_FROM = tuple(f"{name}-f32" for name in QUANTISED)
_TO = tuple(f"{came}-{name}" for name in ROUNDED for came in ("f32", "f16"))
_SAME = tuple(f"{name}-{name}" for name in QUANTISED)
TYPES = (*_FROM, *_TO * 2, *_SAME)
_MOST = 65537 * 32  #: elements of a tensor: each row of more than a counter of 16 bits holds has a block
_LONGEST = 65536  #: elements of a row, and a block more: a counter of 16 bits holds one less


def cpy_blocks(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The elements of x in the type of out. Blocks become float32 as they are decoded (`conversions.decoded`); numbers
    become blocks, each as near as the encoders of its type come (`encoders.ENCODERS`: half a step of a plain type's
    codes); blocks of one type keep every bit.
    """
    came, goes = case.inputs["x"].type, case.outputs["out"].type
    if came is goes:
        value = came.decode(raw["x"])
        return Expected(value, np.zeros(value.shape), exact=np.ones(value.shape, dtype=bool), bits=raw["x"])
    if goes.block == 1:
        return decoded(raw["x"], came, goes, numerics)
    value, bound, _ = stored(raw["x"], came, goes, numerics)
    return Expected(value, bound)


def _check(case: Case) -> None:
    pair = f"{case.inputs['x'].dtype}-{case.dtype}"
    if pair not in TYPES:
        raise CaseError(f"x is {case.inputs['x'].dtype} and out {case.dtype}; one of them is a type of blocks")
    block = max(layout.type.block for layout in case.layouts.values())
    if case.inputs["x"].shape[-1] % block:
        raise CaseError(f"a row has {case.inputs['x'].shape[-1]} elements; they must fill blocks of {block}")
    check_out(case, case.inputs["x"].shape)


def _traits(case: Case) -> dict[str, object]:
    """spread_blocks: blocks of one type that are not whole tensors, so that a copy of all bytes is not the answer.
    top_scales: as `has_top_scales` tells."""
    came, goes = case.inputs["x"], case.outputs["out"]
    is_whole = max(came.kind, goes.kind) <= LayoutClass.CONTIGUOUS
    return {
        "types": f"{came.dtype}-{goes.dtype}",
        "spread_blocks": came.dtype == goes.dtype and not is_whole,
        "aligned": is_aligned(case),
        "top_scales": came.type.block == 1 and has_top_scales(goes.dtype, case.recipe),
    }


@composite
def _problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Any shape whose rows are whole blocks; shrinks to one block."""
    pairs = [
        pair for pair in freedom.choices("types", TYPES) if pair.partition("-")[2] in freedom.choices("dtype", _OUT)
    ]
    came, _, goes = draw(among(pairs)).partition("-")
    block = max(DTYPES[came].block, DTYPES[goes].block)
    most = _MOST // (ENCODERS[goes].passes if DTYPES[came].block == 1 else 1)
    *outer, n = draw(tensors(Freedom(freedom.limits, min(2 * freedom.max_bytes, 32 * most)), 2 * block))
    shape = (*outer, block * min(n, _LONGEST // block + 1))
    return Problem({}, goes, {"x": shape}, shape, dtypes={"x": came})


def _faults(image: Image) -> Iterator[Hypothesis]:
    shape = image.case.inputs["x"].shape
    block = max(image.case.inputs["x"].type.block, image.case.outputs["out"].type.block)
    if shape[-1] > block:
        yield Hypothesis("every block of a row is its first", partial(image.with_expect, _first_block(block)))
    if len(set(shape[:3])) > 1 or shape[2] > 1:
        yield Hypothesis("every row is the first one of its matrix", partial(image.with_expect, _first_row))


def _first_block(block: int) -> Expect:
    def wrong(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        found = cpy_blocks(case, raw, numerics)
        again = np.arange(found.value.shape[-1]) % block
        return Expected(found.value[..., again], found.bound[..., again])

    return wrong


def _first_row(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    found = cpy_blocks(case, raw, numerics)
    value, bound = (np.broadcast_to(it[:, :, :1], it.shape) for it in (found.value, found.bound))
    return Expected(value, bound)


_OUT = ("f32", *dict.fromkeys((*ROUNDED, *QUANTISED)))

OPS = (
    (
        Op(
            name="cpy_blocks",
            summary="the elements of x in another type, of which one is made of blocks",
            inputs=("x",),
            params={},
            dtypes=_OUT,
            argument_dtypes={"x": ("f32", "f16", *QUANTISED)},
            problems=_problems,
            expect=cpy_blocks,
            bound="γ_c·(|scale·code| + |minimum|) of blocks that are decoded, half a step or so of those that are made",
            check=_check,
            traits=_traits,
            hypotheses=_faults,
            alone=lambda case: (0, 1),
            copies=True,
            composite=Composite(shape_values=fitted_to_scales("x")),
        ),
    )
    if blocks.installed()
    else ()
)
