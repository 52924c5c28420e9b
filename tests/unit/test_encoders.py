"""Numbers that become blocks: wrong encoders are caught, and right ones of other kinds than ggml's are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from opconform.cases.families.encoders import ENCODERS
from opconform.harness.draw.sample import problems_drawn
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Problem
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Backend
from tests import encoding
from tests.encoding import E2M1, IQ4, as_raw, encoded, first_scale, fitted, halves, nearest, nibbles
from tests.judge import Bench

pytest.importorskip("gguf")
NVFP4 = DTYPES["nvfp4"]
Encodes = Callable[[np.ndarray], np.ndarray]


class Encoder(Backend):
    """Makes blocks as `how` does."""

    def __init__(self, how: Encodes | None = None) -> None:
        super().__init__("0", {})
        self._how = how

    def run(self, case: Case, buffers: Buffers) -> None:
        x, out = case.inputs["x"].type, case.outputs["out"].dtype
        buffers.raw("out")[...] = encoded(out, x.decode(np.array(buffers.raw("x"))), self._how)


def case_of(name: str, recipe: str = "normal", seed: int = 3) -> Case:
    x, out = (Layout.contiguous(dtype, (1, 1, 3, 1024)) for dtype in ("f32", name))
    return Case("cpy_blocks", {}, {"x": x}, {"out": out}, recipe, seed)


def iq4_nl(x: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.concatenate([halves(scale), nibbles(codes, 16)], -1)


def keeps_the_first_scale(x: np.ndarray) -> np.ndarray:
    return iq4_nl(x, nearest(x, first_scale(x), IQ4), first_scale(x))


def rounds_again(x: np.ndarray) -> np.ndarray:
    scale = fitted(x, nearest(x, first_scale(x), IQ4))
    return iq4_nl(x, nearest(x, scale, IQ4), scale)


def takes_the_later_of_two(x: np.ndarray) -> np.ndarray:
    """The last of the largest magnitudes gives the first scale, and of two codes the larger one is taken."""
    d = first_scale(x[:, ::-1])
    codes = 15 - nearest(x, d, IQ4[::-1])
    return iq4_nl(x, codes, fitted(x, codes))


def takes_the_second_of_two(x: np.ndarray) -> np.ndarray:
    _, exponent = np.frexp(np.abs(x).max(-1, keepdims=True))
    codes = 15 - nearest(x, np.ldexp(np.float32(1), exponent - 3), E2M1[::-1])
    return np.concatenate([(exponent - 3 + 127).astype(np.uint8), nibbles(codes, 16)], -1)


def looks_for_a_better_scale(x: np.ndarray) -> np.ndarray:
    """For each group of 16 the scale of five whose errors have the least sum of squares."""
    usual = encoding.nvfp4(x)
    tried = np.stack([usual, *(encoding.nvfp4(x, by=by) for by in (-2, -1, 1, 2))])
    values = np.stack([NVFP4.decode(as_raw("nvfp4", made)) for made in tried]).reshape(5, len(x), 4, 16)
    best = ((values - x.reshape(len(x), 4, 16)) ** 2).sum(-1).argmin(0)
    block, group = np.ogrid[: len(x), :4]
    scales = tried[best, block, group]
    codes = tried[:, :, 4:].reshape(5, len(x), 4, 8)[best, block, group]
    return np.concatenate([scales, codes.reshape(len(x), -1)], -1)


#: Where the search for a scale may end: at its first try, at its last, and at each of them in turn.
Q6_K_ENDS = (-31.1, -32.9, np.resize((-31.1, -32.9), 16))
IQ4_XS_ENDS = (127, -134, -120, np.resize((-134, -120), 8))


@pytest.mark.parametrize("recipe", ["small_int", "index", "whole", "normal", "denormal", "wide", "edges"])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, None) for name in encoding.OWN),
        *(("q6_K", partial(encoding.q6_k, end=end)) for end in Q6_K_ENDS),
        *(("iq4_xs", partial(encoding.iq4_xs, end=end)) for end in IQ4_XS_ENDS),
        ("iq4_nl", keeps_the_first_scale),
        ("iq4_nl", rounds_again),
        ("iq4_nl", takes_the_later_of_two),
        ("mxfp4", takes_the_second_of_two),
        ("nvfp4", looks_for_a_better_scale),
    ],
)
def test_right_encoders_of_any_kind_pass(name: str, how: Encodes | None, recipe: str) -> None:
    for seed in range(2):
        assert Bench(case_of(name, recipe, seed)).passes(Encoder(how))


def with_scale(factor: float) -> Encodes:
    """The scale that fits, times a factor."""

    def how(x: np.ndarray) -> np.ndarray:
        codes = nearest(x, first_scale(x), IQ4)
        return iq4_nl(x, codes, fitted(x, codes) * np.float32(factor))

    return how


def next_code(x: np.ndarray) -> np.ndarray:
    return iq4_nl(x, np.minimum(nearest(x, first_scale(x), IQ4) + 1, 15), first_scale(x))


def linear_codes(x: np.ndarray) -> np.ndarray:
    """The codes as q4_0 has them: 16 equal steps."""
    d = first_scale(x) * np.float32(127 / 8)
    return iq4_nl(x, np.clip(np.rint(x / d) + 8, 0, 15).astype(np.int64), first_scale(x))


def exponent_off(by: int) -> Encodes:
    def how(x: np.ndarray) -> np.ndarray:
        made = encoding.mxfp4(x)
        made[:, 0] = (made[:, 0].astype(np.int64) + by).astype(np.uint8)
        return made

    return how


def too_fine(x: np.ndarray) -> np.ndarray:
    """The exponent of amax itself, one too small for codes up to 6: the largest ones saturate."""
    _, exponent = np.frexp(np.abs(x).max(-1, keepdims=True))
    codes = nearest(x, np.ldexp(np.float32(1), exponent - 4), E2M1)
    return np.concatenate([(exponent - 4 + 127).astype(np.uint8), nibbles(codes, 16)], -1)


def swapped(name: str, scales: int) -> Encodes:
    """Lower and upper four bits exchanged."""

    def how(x: np.ndarray) -> np.ndarray:
        made = encoding.OWN[name](x)
        made[:, scales:] = made[:, scales:] >> 4 | made[:, scales:] << 4
        return made

    return how


def one_group_scaled(x: np.ndarray) -> np.ndarray:
    return encoding.nvfp4(x, np.array((1, 1, 1.5, 1), dtype=np.float32))


def groups_exchanged(x: np.ndarray) -> np.ndarray:
    made = encoding.nvfp4(x)
    made[:, :4] = made[:, 3::-1]
    return made


def exchanged(scales: np.ndarray) -> np.ndarray:
    """Two groups of unlike scales have each other's."""
    made = scales.copy()
    order = np.abs(scales).argsort(-1)
    for to, come in ((0, -1), (-1, 0)):
        np.put_along_axis(made, order[:, [to]], np.take_along_axis(scales, order[:, [come]], -1), -1)
    return made


def one_smaller(scales: np.ndarray) -> np.ndarray:
    """One group's scale is half as large."""
    made = scales.copy()
    made[:, 1] = np.trunc(made[:, 1] / 2)
    return made


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("q6_K", partial(encoding.q6_k, spoil=exchanged)),
        ("q6_K", partial(encoding.q6_k, spoil=one_smaller)),
        ("q6_K", partial(encoding.q6_k, end=-24)),
        ("q6_K", partial(encoding.q6_k, end=np.resize((-32, -24), 16))),
        ("iq4_xs", partial(encoding.iq4_xs, spoil=exchanged)),
        ("iq4_xs", partial(encoding.iq4_xs, spoil=one_smaller)),
        ("iq4_xs", partial(encoding.iq4_xs, end=-96)),
        ("iq4_xs", partial(encoding.iq4_xs, end=np.resize((-127, -96), 8))),
        ("iq4_xs", swapped("iq4_xs", 8)),
        ("iq4_nl", with_scale(0.5)),
        ("iq4_nl", with_scale(1.25)),
        ("iq4_nl", with_scale(-1)),
        ("iq4_nl", next_code),
        ("iq4_nl", linear_codes),
        ("iq4_nl", swapped("iq4_nl", 2)),
        ("mxfp4", exponent_off(1)),
        ("mxfp4", exponent_off(-1)),
        ("mxfp4", too_fine),
        ("mxfp4", swapped("mxfp4", 1)),
        ("nvfp4", one_group_scaled),
        ("nvfp4", groups_exchanged),
        ("nvfp4", swapped("nvfp4", 4)),
    ],
)
def test_wrong_encoders_are_caught(name: str, how: Encodes) -> None:
    assert not Bench(case_of(name)).passes(Encoder(how))


def test_the_scale_of_mxfp4_beside_a_power_of_two_may_be_either() -> None:
    x = np.zeros((1, 1, 1, 32))
    x[..., 0], x[..., 1] = 1 - 2.0**-20, 0.37
    bench = Bench(case_of_one("mxfp4"), {"x": x.astype(np.float32).view(np.uint32)})
    for exponent in (0, 1):
        assert bench.passes(Encoder(lambda x, at=exponent: at_exponent(x, at)))
    assert not bench.passes(Encoder(lambda x: at_exponent(x, 2)))


def case_of_one(name: str) -> Case:
    x, out = (Layout.contiguous(dtype, (1, 1, 1, 32)) for dtype in ("f32", name))
    return Case("cpy_blocks", {}, {"x": x}, {"out": out})


def at_exponent(x: np.ndarray, exponent: int) -> np.ndarray:
    codes = nearest(x, np.full((len(x), 1), np.ldexp(np.float32(1), exponent - 3)), E2M1)
    scale = np.full((len(x), 1), exponent - 3 + 127, np.uint8)
    return np.concatenate([scale, nibbles(codes, 16)], -1)


def drawn_for_encoders() -> list[Problem]:
    made = problems_drawn(ops()["cpy_blocks"], Freedom(), 800, 1)
    return [problem for problem in made if problem.dtype in ENCODERS and DTYPES[problem.dtypes["x"]].block == 1]


def test_no_problem_is_so_large_that_its_reference_takes_long() -> None:
    worth = [(math.prod(it.out_shape) * ENCODERS[it.dtype].passes, it) for it in drawn_for_encoders()]
    assert max(elements for elements, _ in worth) <= 65537 * 32
    assert sum(elements > 19 * 80_000 for elements, _ in worth) < len(worth) / 5


@pytest.mark.parametrize("name", ENCODERS)
def test_each_encoder_gets_several_blocks_in_several_rows_and_long_rows(name: str) -> None:
    shapes = [it.out_shape for it in drawn_for_encoders() if it.dtype == name]
    blocks_and_rows = [(shape[-1] // DTYPES[name].block, math.prod(shape[:-1])) for shape in shapes]
    assert sum(blocks > 1 and rows > 1 for blocks, rows in blocks_and_rows) > len(shapes) / 3
    assert max(blocks for blocks, _ in blocks_and_rows) > 64
    assert max(rows for _, rows in blocks_and_rows) > 64
