"""ROPE_SET_ROWS: keys are turned by their positions and put into rows of a cache, as every layer of a model does.

RMS_NORM_MUL_ROPE_SET_ROWS: keys that are normalised head by head and weighed before that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases import rms_norm_mul_rope, rope
from opconform.cases.families.behind import beginning_of
from opconform.cases.families.chains import MADE
from opconform.cases.families.choices import Choices, drawn_params, ignored, types_of
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


@dataclass(frozen=True)
class _Piece:
    """What is put into the cache: the result of `turning`, whose wrong kernels give `mistakes`, by what a hint says.

    params: those that a kernel may ignore. bound: that of `turning`, in words.
    """

    turning: Op
    bound: str
    mistakes: Mapping[str, Expect]
    params: Choices = field(default_factory=dict)

    def beginning(self, case: Case) -> Case:
        """The case of the op that turns, alone."""
        begun = beginning_of(case, self.turning, case.inputs["x"])
        kept = {
            name: case.outputs[name].packed() for name in self.turning.composite.more_outputs if name in case.outputs
        }
        return replace(begun, outputs={**begun.outputs, **kept})

    def expect(self, case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return self._stored(case, raw, numerics, self.turning.expect)

    def _stored(self, case: Case, raw: Mapping[str, Raw], numerics: Numerics, turn: Expect) -> Expected:
        """The cache with what `turn` gives."""
        cache, beginning = case.inputs["cache"], self.beginning(case)
        own = {name: raw[name] for name in beginning.inputs}
        begun = turn(beginning, own, numerics)
        turned = Approx.about(begun, numerics)
        places = np.clip(raw["rows"].view(case.inputs["rows"].type.native).reshape(-1), 0, cache.shape[2] - 1)
        found = turned.stored(cache.type, turned.value.shape)
        value, bound = cache.type.decode(raw["cache"]), np.zeros(cache.shape)
        exact, bits, shape = np.ones(cache.shape, dtype=bool), raw["cache"].copy(), (len(places), cache.shape[3])
        value[0, 0, places], bound[0, 0, places] = found.value.reshape(shape), found.bound.reshape(shape)
        exact[0, 0, places] = False
        if found.exact is not None and found.bits is not None:  # what every right kernel makes infinite
            exact[0, 0, places], bits[0, 0, places] = found.exact.reshape(shape), found.bits.reshape(shape)
        return Expected(value, bound, exact=exact, bits=bits, others=begun.others)

    def check(self, case: Case) -> None:
        """Raises `CaseError` for parameters and shapes that do not fit together."""
        self.turning.check(self.beginning(case))
        x, cache, rows = (case.inputs[name].shape for name in ("x", "cache", "rows"))
        if x[0] != 1 or cache[:2] != (1, 1) or cache[3] != x[2] * x[3]:
            raise CaseError(
                f"x has shape {x} and cache {cache}; both must have ne3 = 1, the cache rows of {x[2] * x[3]}"
            )
        if rows != (1, 1, 1, x[1]) or x[1] > cache[2]:
            raise CaseError(f"rows have shape {rows}; there must be {x[1]}, a row of {cache[2]} for each token")
        if case.inplace != "cache" or case.outputs["out"].shape != cache:
            raise CaseError(f"case.inplace must be 'cache': {case.op} writes into it")

    def traits(self, case: Case) -> dict[str, Any]:
        """Those of the first op, but that every argument counts for `aligned`. index: the type of rows."""
        found = self.turning.traits(self.beginning(case))
        own = {name: value for name, value in found.items() if name not in rope.INPLACE}
        return {**own, "aligned": is_aligned(case), "index": case.inputs["rows"].dtype}

    def hypotheses(self, image: Image) -> Iterator[Hypothesis]:
        """The first op's faults, positions of other tokens, rows in order."""
        for says, turn in self.mistakes.items():
            yield Hypothesis(says, partial(image.with_expect, partial(self._stored, turn=turn)))
        yield from ignored(image, self.params)
        pos, rows = image.raw["pos"], image.raw["rows"]
        first = np.broadcast_to(pos[..., :1], pos.shape)
        yield Hypothesis("every token has the first one's position", partial(image.with_inputs, pos=first))
        in_order = np.arange(rows.size, dtype=rows.dtype).reshape(rows.shape)
        yield Hypothesis("rows are ignored: tokens go to the first rows", partial(image.with_inputs, rows=in_order))


@composite
def _problems(draw: st.DrawFn, freedom: Freedom, first: Op) -> Problem:
    """Problems of the first op without batches, and caches of some more rows; shrinks to one pair of one token."""
    begun = draw(first.problems(freedom))
    whole, x = begun.shapes["x"], (1, *begun.shapes["x"][1:])
    table = draw(among([n for n in (1, 2, 3, 8, 33, 64) if n >= x[1]] or [x[1], x[1] + 1]))
    cache = (1, 1, table, x[2] * x[3])
    shapes = {name: x if shape == whole else shape for name, shape in begun.shapes.items()}
    shapes |= {"cache": cache, "rows": (1, 1, 1, x[1])}
    floats = [name for name in _in_float32(first) if name in {*shapes, *begun.more_outputs}]
    index = draw(among(freedom.choices("index", ("i64", "i64", "i32"))))
    kinds = {**begun.dtypes, **dict.fromkeys(floats, "f32"), "rows": index}
    dtype = draw(among(freedom.choices("dtype", ("f32", "f16"))))
    params = {**begun.params, **draw(drawn_params(freedom, MADE))}
    more = dict.fromkeys(begun.more_outputs, x)
    return Problem(params, dtype, shapes, cache, "cache", more_outputs=more, dtypes=kinds)


def _in_float32(first: Op) -> tuple[str, ...]:
    """What is float32 whatever the cache's type."""
    return (*(name for name in first.inputs if name not in first.argument_dtypes), *first.composite.more_outputs)


def _copied(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    value = case.inputs["x"].type.decode(raw["x"])
    return Expected(value, np.zeros(value.shape))


def _op(name: str, summary: str, piece: _Piece) -> Op:
    def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        """out = cache, but row rows[t] holds the channels of all heads of token t as the first op gives them, in the
        cache's type.

        The bound is that op's, and one more rounding where the cache has 16 bits. Other rows keep their bits.
        """
        return piece.expect(case, raw, numerics)

    first = piece.turning
    return Op(
        name=name,
        summary=summary,
        inputs=(*first.inputs, "cache", "rows"),
        params={**first.params, **types_of(MADE)},
        dtypes=("f32", "f16"),
        argument_dtypes={
            **first.argument_dtypes,
            **dict.fromkeys(_in_float32(first), ("f32",)),
            "rows": ("i64", "i32"),
        },
        problems=partial(_problems, first=first),
        expect=expect,
        bound=f"{piece.bound}, and one rounding to the cache's type; the bits of other rows",
        check=piece.check,
        traits=piece.traits,
        hypotheses=piece.hypotheses,
        indices={**first.indices, "rows": Index("cache", 2, unique=True)},
        composite=first.composite,
    )


OPS = (
    _op(
        "rope_set_rows",
        "cache, with the keys of each token, turned by its position, in the row that rows names",
        _Piece(rope.OPS[0], "that of ROPE", {"the keys are not turned": _copied}),
    ),
    _op(
        "rms_norm_mul_rope_set_rows",
        "cache, with the keys of each token, normalised, weighed and turned by position, in the row that rows names",
        _Piece(
            rms_norm_mul_rope.OP,
            "that of RMS_NORM and MUL, carried through the sums of ROPE",
            rms_norm_mul_rope.MISTAKES,
            rms_norm_mul_rope.IGNORED,
        ),
    ),
)
