"""FLASH_ATTN_EXT and SOFT_MAX in float32, with the softmax of the MLA kernels, and wrong ones with the hint of each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from opconform.cases.softmax import slopes
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Mask
from tests.kernels import mla
from tests.kernels.base import F32, Fault
from tests.kernels.mla import Mla


class Attention(Mla):
    """Right ones."""

    name = "attention"
    columns = 0  #: of a row, without its sink

    def soft_max(self, case: Case, buffers: Buffers) -> None:
        x = {name: self.f32(case, buffers, name) for name in case.inputs}
        z = x["x"] * self.scale(case) + self.mask(case, x)
        self.columns = z.shape[-1]
        self.write(buffers, "out", self.weights(self.with_sinks(z, x))[..., -z.shape[-1] :])

    def flash_attn_ext(self, case: Case, buffers: Buffers) -> None:
        x = {name: self.f32(case, buffers, name) for name in case.inputs}
        k, v = (x[name][:, self.key_head(case)] for name in "kv")
        scores = self.capped(case, self.dot(x["q"], k.swapaxes(-1, -2)) * self.scale(case)) + self.mask(case, x)
        scores = np.where(self.seen(case, x), scores, np.float32(-np.inf))
        weights = self.weights(self.with_sinks(scores, x))[..., -scores.shape[-1] :]
        self.write(buffers, "out", self.dot(weights, v).swapaxes(1, 2))

    def key_head(self, case: Case) -> np.ndarray:
        """The head of k and v that each head of q reads."""
        heads, shared = case.inputs["q"].shape[1], case.inputs["k"].shape[1]
        return np.arange(heads) // (heads // shared)

    def seen(self, case: Case, x: Mapping[str, F32]) -> Mask:
        """All keys: the mask hides some."""
        return np.ones((1, x["k"].shape[2]), dtype=bool)

    def mask(self, case: Case, x: Mapping[str, F32]) -> F32:
        if "mask" not in x:
            return np.zeros((1, 1, 1, 1), np.float32)
        batch, heads, rows, _ = next(case.inputs[name] for name in ("q", "x") if name in case.inputs).shape
        mask = x["mask"][:, :, :rows]
        mask = np.tile(mask, (batch // mask.shape[0], heads // mask.shape[1], 1, 1))
        return self.slope(case, heads).reshape(-1, 1, 1) * mask

    def slope(self, case: Case, heads: int) -> F32:
        return slopes(heads, float(case.params["max_bias"])).astype(np.float32)

    def capped(self, case: Case, scores: F32) -> F32:
        cap = np.float32(case.params["logit_softcap"])
        return cap * np.tanh(scores / cap) if cap else scores

    def with_sinks(self, scores: F32, x: Mapping[str, F32]) -> F32:
        """The sink of each head in front of its scores, where there are sinks."""
        if "sinks" not in x:
            return scores
        return np.concatenate([np.broadcast_to(x["sinks"].reshape(-1, 1, 1), (*scores.shape[:3], 1)), scores], -1)


# --- right ones that compute otherwise ---


class Blas(mla.Blas, Attention):
    pass


class Pairwise(mla.Pairwise, Attention):
    pass


class Fused(mla.Fused, Attention):
    pass


class Float64(mla.Float64, Attention):
    pass


RIGHT = (Attention, Blas, Pairwise, Fused, Float64)


# --- wrong ones ---


class NoScale(mla.NoScale, Attention):
    pass


class NoMask(mla.NoMask, Attention):
    pass


class NoSlope(Attention):
    def slope(self, case: Case, heads: int) -> F32:
        return np.ones(heads, np.float32)


class NoCap(Attention):
    def capped(self, case: Case, scores: F32) -> F32:
        return scores


class NoSinks(Attention):
    def with_sinks(self, scores: F32, x: Mapping[str, F32]) -> F32:
        return super().with_sinks(scores, {})


class HeadsInTurn(Attention):
    """Head h reads head h mod n of k and v."""

    def key_head(self, case: Case) -> np.ndarray:
        return np.arange(case.inputs["q"].shape[1]) % case.inputs["k"].shape[1]


class NoMaximum(mla.NoMaximum, Attention):
    pass


class MaskedRowIsNaN(mla.MaskedRowIsNaN, Attention):
    pass


class MaskedRowIsMean(mla.MaskedRowIsMean, Attention):
    pass


class FullTilesOfKeys(mla.FullTilesOfKeys, Attention):
    pass


class AllButLastKey(mla.AllButLastKey, Attention):
    pass


class FirstTileOfKeys(mla.FirstTileOfKeys, Attention):
    pass


class SumsPart(Attention):
    """Adds up the first elements of each row only."""

    def total(self, p: F32) -> F32:
        sinks = p.shape[-1] - self.columns
        return super().total(p[..., : sinks + self.taken(self.columns)])

    def taken(self, n: int) -> int:
        return n


class SumsFullTiles(SumsPart):
    """What a tile of 8 does not fill is lost (where there is a full one)."""

    def taken(self, n: int) -> int:
        return n // 8 * 8 if n > 8 else n


class SumsFirstTile(SumsPart):
    """No loop over tiles of 32 elements."""

    def taken(self, n: int) -> int:
        return min(n, 32)


class SumsAllButLast(SumsPart):
    def taken(self, n: int) -> int:
        return max(n - 1, 1)


class HalfReciprocal(Attention):
    """1 / sum is stored in f16."""

    def divided(self, p: F32, total: F32) -> F32:
        with np.errstate(divide="ignore"):
            return p * (1 / total).astype(np.float16).astype(np.float32)


class HiddenTileIsNaN(Attention):
    """A running maximum that is −infinity behind the first 32 elements spoils the row."""

    def weights(self, scores: F32) -> F32:
        sinks = scores.shape[-1] - self.columns
        seen = (scores[..., : sinks + 32] > -np.inf).any(-1, keepdims=True)
        return np.where(seen, super().weights(scores), np.float32(np.nan))


# --- wrong in a way that no hint knows ---


class DoublesHeaviest(Attention):
    """The largest weight of each row is twice as large."""

    def divided(self, p: F32, total: F32) -> F32:
        weights = super().divided(p, total)
        return np.where(weights == weights.max(-1, keepdims=True), 2 * weights, weights)


_FLASH, _SOFT_MAX = "flash_attn_ext", "soft_max"

FAULTS = (
    *(
        Fault(op, kernel, hint)
        for op in (_FLASH, _SOFT_MAX)
        for kernel, hint in (
            (NoScale, "scale is left out"),
            (NoMask, "the mask is left out"),
            (NoSlope, "max_bias is left out: every slope is 1"),
            (NoSinks, "the sinks are left out"),
            (DoublesHeaviest, ""),
        )
    ),
    Fault(_FLASH, NoCap, "logit_softcap is left out"),
    Fault(_FLASH, HeadsInTurn, "heads share keys and values as h mod n, not as h / r"),
    Fault(_FLASH, NoMaximum, "the largest score is not subtracted before the exponentials: they overflow"),
    Fault(_FLASH, MaskedRowIsNaN, "a query that sees no key gets NaN: 0 / 0"),
    Fault(_FLASH, MaskedRowIsMean, "a query that sees no key gets the mean of all values"),
    Fault(_FLASH, FullTilesOfKeys, "the last keys are left out: what a tile of 8 does not fill"),
    Fault(_FLASH, AllButLastKey, "the last key is left out"),
    Fault(_FLASH, FirstTileOfKeys, "only the first tile of 32 keys is looked at"),
    Fault(_SOFT_MAX, NoMaximum, "the largest z is not subtracted before the exponentials: they overflow"),
    Fault(_SOFT_MAX, HalfReciprocal, "1 / sum is rounded to f16"),
    Fault(_SOFT_MAX, HiddenTileIsNaN, "a row whose first 32 elements are masked is NaN: −infinity less −infinity"),
    Fault(_SOFT_MAX, SumsFullTiles, "what a tile of 8 does not fill is left out of the sum"),
    Fault(_SOFT_MAX, SumsFirstTile, "only the first tile of 32 is summed"),
    Fault(_SOFT_MAX, SumsAllButLast, "the last element of each row is left out"),
)
