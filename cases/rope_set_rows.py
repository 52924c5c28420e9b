"""ROPE_SET_ROWS: keys are turned by their positions and put into rows of a cache, as every layer of a model does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases import rope
from opconform.cases.families.behind import beginning_of
from opconform.cases.families.chains import MADE
from opconform.cases.families.choices import drawn_params, types_of
from opconform.cases.shapes import is_aligned
from opconform.harness.draw.strategies import among, composite
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Index, Op, Problem

_ROPE: Op = rope.OPS[0]


def _beginning(case: Case) -> Case:
    """The ROPE alone."""
    return beginning_of(case, _ROPE, case.inputs["x"])


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = cache, but row rows[t] holds the channels of all heads of token t as ROPE turns them, in the cache's type.

    The bound is that of ROPE, and one more rounding where the cache has 16 bits. Other rows keep their bits.
    """
    return _stored(case, raw, numerics, _ROPE.expect)


def _stored(case: Case, raw: Mapping[str, Raw], numerics: Numerics, turn: Expect) -> Expected:
    """The cache with what `turn` gives."""
    cache = case.inputs["cache"]
    own = {name: raw[name] for name in _ROPE.inputs if name in case.inputs}
    turned = Approx.about(turn(_beginning(case), own, numerics), numerics)
    places = np.clip(raw["rows"].view(case.inputs["rows"].type.native).reshape(-1), 0, cache.shape[2] - 1)
    found = turned.stored(cache.type, turned.value.shape)
    value, bound, exact = cache.type.decode(raw["cache"]), np.zeros(cache.shape), np.ones(cache.shape, dtype=bool)
    bits, shape = raw["cache"].copy(), (len(places), cache.shape[3])
    value[0, 0, places], bound[0, 0, places] = found.value.reshape(shape), found.bound.reshape(shape)
    exact[0, 0, places] = False
    if found.exact is not None and found.bits is not None:  # what every right kernel makes infinite
        exact[0, 0, places], bits[0, 0, places] = found.exact.reshape(shape), found.bits.reshape(shape)
    return Expected(value, bound, exact=exact, bits=bits)


def check(case: Case) -> None:
    """Raises `CaseError` for parameters and shapes that do not fit together."""
    _ROPE.check(_beginning(case))
    x, cache, rows = (case.inputs[name].shape for name in ("x", "cache", "rows"))
    if x[0] != 1 or cache[:2] != (1, 1) or cache[3] != x[2] * x[3]:
        raise CaseError(f"x has shape {x} and cache {cache}; both must have ne3 = 1, the cache rows of {x[2] * x[3]}")
    if rows != (1, 1, 1, x[1]) or x[1] > cache[2]:
        raise CaseError(f"rows have shape {rows}; there must be {x[1]}, a row of {cache[2]} for each token")
    if case.inplace != "cache" or case.outputs["out"].shape != cache:
        raise CaseError("case.inplace must be 'cache': rope_set_rows writes into it")


def traits(case: Case) -> dict[str, Any]:
    """Those of ROPE, but that every argument counts for `aligned`. index: the type of rows."""
    own = {name: value for name, value in _ROPE.traits(_beginning(case)).items() if name != "inplace"}
    return {**own, "aligned": is_aligned(case), "index": case.inputs["rows"].dtype}


@composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Problems of ROPE without batches, and caches of some more rows; shrinks to one pair of one token."""
    begun = draw(_ROPE.problems(freedom))
    x = (1, *begun.shapes["x"][1:])
    table = draw(among([n for n in (1, 2, 3, 8, 33, 64) if n >= x[1]]))
    cache = (1, 1, table, x[2] * x[3])
    shapes = {**begun.shapes, "x": x, "cache": cache, "rows": (1, 1, 1, x[1])}
    shapes = {name: shapes[name] for name in OP.inputs if name in shapes}
    kinds = {**begun.dtypes, "x": "f32", "rows": draw(among(freedom.choices("index", ("i64", "i64", "i32"))))}
    dtype = draw(among(freedom.choices("dtype", ("f32", "f16"))))
    params = {**begun.params, **draw(drawn_params(freedom, MADE))}
    return Problem(params, dtype, shapes, cache, "cache", dtypes=kinds)


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """ROPE left out, positions of other tokens, rows in order."""
    plain = partial(_stored, turn=lambda case, raw, numerics: _copied(case, raw))
    yield Hypothesis("the keys are not turned", partial(image.with_expect, plain))
    pos, rows = image.raw["pos"], image.raw["rows"]
    first = np.broadcast_to(pos[..., :1], pos.shape)
    yield Hypothesis("every token has the first one's position", partial(image.with_inputs, pos=first))
    in_order = np.arange(rows.size, dtype=rows.dtype).reshape(rows.shape)
    yield Hypothesis("rows are ignored: tokens go to the first rows", partial(image.with_inputs, rows=in_order))


def _copied(case: Case, raw: Mapping[str, Raw]) -> Expected:
    value = case.inputs["x"].type.decode(raw["x"])
    return Expected(value, np.zeros(value.shape))


OP = Op(
    name="rope_set_rows",
    summary="cache, with the keys of each token, turned by its position, in the row that rows names",
    inputs=("x", "pos", "factors", "cache", "rows"),
    params={**_ROPE.params, **types_of(MADE)},
    dtypes=("f32", "f16"),
    argument_dtypes={**_ROPE.argument_dtypes, "x": ("f32",), "rows": ("i64", "i32")},
    problems=problems,
    expect=expect,
    bound="that of ROPE, and one rounding to the cache's type; the bits of other rows",
    check=check,
    traits=traits,
    hypotheses=hypotheses,
    indices={**_ROPE.indices, "rows": Index("cache", 2, unique=True)},
    composite=_ROPE.composite,
)
