"""Keys that are normalised, weighed, turned and stored: kernels that multiply in another order, or in float64, pass;
those that round on the way to float16, turn by another token's position or store in the wrong place are caught."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.run.backend import Backend
from tests.judge import Benches, drawn_cases

OP = "rms_norm_mul_rope_set_rows"
NORMAL, NEOX = 0, 2


def is_plain(case: Case) -> bool:
    """Whether pairs turn as in most models: no frequency factors, no sections, no YaRN."""
    return case.params["mode"] in (NORMAL, NEOX) and "factors" not in case.inputs and not case.params["ext_factor"]


@cache
def benches() -> Benches:
    return Benches([case for case in drawn_cases(OP, 300, 1 << 16) if is_plain(case)])


class Keys(Backend):
    """The steps one after another, in an arithmetic."""

    arithmetic: type[np.floating] = np.float32

    def __init__(self) -> None:
        super().__init__("0", {})

    def run(self, case: Case, buffers: Buffers) -> None:
        x, w = (np.array(buffers.array(name)).astype(self.arithmetic) for name in ("x", "w"))
        square = (x * x).mean(-1, keepdims=True, dtype=self.arithmetic) + self.arithmetic(case.params["eps"])
        weighed = self.between(self.weighed(x, w, square))
        turned = self.turned(case, weighed, np.array(buffers.array("pos")).reshape(-1))
        if "mid" in case.outputs:
            normed = x / np.sqrt(square)
            buffers.array("mid")[...] = normed if case.params["kept"] == "normed" else weighed
        out, rows = buffers.array("out"), self.rows(np.array(buffers.array("rows")).reshape(-1))
        out[0, 0, rows] = turned.reshape(len(rows), -1)

    def weighed(self, x: np.ndarray, w: np.ndarray, square: np.ndarray) -> np.ndarray:
        return x / np.sqrt(square) * w

    def between(self, weighed: np.ndarray) -> np.ndarray:
        return weighed

    def rows(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def turned(self, case: Case, x: np.ndarray, pos: np.ndarray) -> np.ndarray:
        params, made = case.params, self.arithmetic
        n = int(params["n_dims"])
        i = np.arange(n // 2)
        first, second = (2 * i, 2 * i + 1) if params["mode"] == NORMAL else (i, i + n // 2)
        theta = pos.astype(made)[:, None] * made(params["freq_base"]) ** (made(-2) * i.astype(made) / made(n))
        theta = (theta * made(params["freq_scale"]))[None, :, None]
        scale = made(params["attn_factor"])
        cos, sin = np.cos(theta) * scale, np.sin(theta) * scale
        out = x.copy()
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., first] * sin + x[..., second] * cos
        return out


class ScaledFirst(Keys):
    """The weights are divided by the root before x is multiplied."""

    def weighed(self, x: np.ndarray, w: np.ndarray, square: np.ndarray) -> np.ndarray:
        return x * (w * (np.float32(1) / np.sqrt(square)))


class Wide(Keys):
    """In float64, with nothing rounded on the way."""

    arithmetic = np.float64


class Halved(Keys):
    """What is turned goes through float16."""

    def between(self, weighed: np.ndarray) -> np.ndarray:
        return weighed.astype(np.float16).astype(np.float32)


class OneBehind(Keys):
    """Every token goes where the next one should."""

    def rows(self, rows: np.ndarray) -> np.ndarray:
        return np.roll(rows, 1)


class LastPosition(Keys):
    """Every token is turned by the last one's position."""

    def turned(self, case: Case, x: np.ndarray, pos: np.ndarray) -> np.ndarray:
        return super().turned(case, x, np.full_like(pos, pos[-1]))


@pytest.mark.parametrize("kernel", [Keys, ScaledFirst, Wide])
def test_right_kernels_pass(kernel: type[Keys]) -> None:
    assert len(list(benches())) > 20
    for bench in benches():
        with np.errstate(all="ignore"):
            assert bench.passes(kernel()), f"{bench.case}: {bench.verdict(kernel()).findings}"


@pytest.mark.parametrize("kernel", [Halved, OneBehind, LastPosition])
def test_wrong_kernels_are_caught(kernel: type[Keys]) -> None:
    with np.errstate(all="ignore"):
        assert sum(not bench.passes(kernel()) for bench in benches()) > 10
