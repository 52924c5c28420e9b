"""MLA in float32, step by step: a right kernel whose steps the odd and the wrong ones replace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64, Mask
from tests.kernels.base import F32, Kernel

ONE = np.float32(1)


class Mla(Kernel):
    """The absorbed computation in two parts, softmax in one pass, every operation rounded to float32."""

    name = "mla"

    def mla_absorbed(self, case: Case, buffers: Buffers) -> None:
        self.write(buffers, "out", self.computed(case, buffers)["out"])

    def stages(self, case: Case, buffers: Buffers) -> Mapping[str, np.ndarray]:
        with np.errstate(all="ignore"):
            found = self.computed(case, buffers)
            self.write(buffers, "out", found["out"])
        return found

    def computed(self, case: Case, buffers: Buffers) -> dict[str, np.ndarray]:
        """Every stage by its name."""
        x = {name: self.f32(case, buffers, name) for name in case.inputs}
        c, k_pe = self.cache(case, x["c_kv"]), self.cache(case, x["k_pe"])
        seen, mask = self.seen(case, x), self.mask(case, x)
        q = self.dot(x["q_nope"], x["w_uk"])
        scores = np.where(seen, self.scores(case, q, x["q_pe"], c, k_pe) + mask, np.float32(-np.inf))
        weights = self.weights(scores)
        context = self.context(case, weights, self.values(c, k_pe))
        out = self.dot(context, x["w_uv"]).swapaxes(1, 2)
        return {
            "q_absorbed": q,
            "scores": self.whole(case, scores, -np.inf),
            "weights": self.whole(case, weights, 0),
            "context": context,
            "out": out,
        }

    def f32(self, case: Case, buffers: Buffers, name: str) -> F32:
        """The elements of an input as float32, which holds every f16 and bf16 exactly."""
        raw = np.array(buffers.raw(name))
        return case.inputs[name].type.decode(raw).astype(np.float32)

    def cache(self, case: Case, rows: F32) -> F32:
        """The rows that are no padding."""
        return rows[:, :, : int(case.params["kv_len"])]

    def whole(self, case: Case, x: F32, padding: float) -> F32:
        """[B,H,T,kv_len] as [B,H,T,N]."""
        missing = case.inputs["c_kv"].shape[2] - x.shape[-1]
        return np.concatenate([x, np.full((*x.shape[:-1], missing), padding, np.float32)], -1)

    def seen(self, case: Case, x: Mapping[str, F32]) -> Mask:
        """Which keys each query sees."""
        kv_len, queries = self.cache(case, x["c_kv"]).shape[2], case.inputs["q_nope"].shape[2]
        if not case.params["causal"]:
            return np.ones((queries, kv_len), dtype=bool)
        return np.arange(kv_len) <= self.position(case, np.arange(queries))[:, None]

    def position(self, case: Case, query: np.ndarray) -> np.ndarray:
        return int(case.params["kv_len"]) - case.inputs["q_nope"].shape[2] + query

    def mask(self, case: Case, x: Mapping[str, F32]) -> F32:
        kv_len = self.cache(case, x["c_kv"]).shape[2]
        return x["mask"][..., :kv_len] if "mask" in x else np.zeros((1, 1, 1, 1), np.float32)

    def scale(self, case: Case) -> np.float32:
        return np.float32(case.params["scale"])

    def k_scale(self, case: Case) -> np.float32:
        return np.float32(case.params["k_scale"])

    def v_scale(self, case: Case) -> np.float32:
        return np.float32(case.params["v_scale"])

    def dot(self, a: F32, b: F32) -> F32:
        """a·b over the last axis of a and the last but one of b, summed from the first product to the last."""
        total = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), np.float32)
        for k in range(a.shape[-1]):
            total = total + a[..., k, None] * b[..., k, None, :]
        return total

    def scores(self, case: Case, q: F32, q_pe: F32, c: F32, k_pe: F32) -> F32:
        parts = self.dot(q, c.swapaxes(-1, -2)) + self.dot(q_pe, k_pe.swapaxes(-1, -2))
        return parts * self.scale(case) * self.k_scale(case)

    def weights(self, scores: F32) -> F32:
        top = scores.max(-1, keepdims=True, initial=np.float32(-np.inf))
        shifted = np.where(scores > -np.inf, scores - np.where(top > -np.inf, top, 0), np.float32(-np.inf))
        p = self.exp(shifted.astype(scores.dtype))
        total = self.total(p)
        return self.divided(p, total)

    def exp(self, x: F32) -> F32:
        return np.exp(x)

    def total(self, p: F32) -> F32:
        total = np.zeros((*p.shape[:-1], 1), np.float32)
        for j in range(p.shape[-1]):
            total = total + p[..., j : j + 1]
        return total

    def divided(self, p: F32, total: F32) -> F32:
        return np.where(total > 0, p / np.where(total > 0, total, ONE), np.float32(0))

    def values(self, c: F32, k_pe: F32) -> F32:
        """The latent values: a view of the keys."""
        return c

    def context(self, case: Case, weights: F32, values: F32) -> F32:
        return self.dot(weights, values) * self.v_scale(case)


# --- odd ones: right, in another order or another arithmetic ---


class Blas(Mla):
    """Sums in whatever order BLAS takes."""

    def dot(self, a: F32, b: F32) -> F32:
        return np.ascontiguousarray(a) @ np.ascontiguousarray(b)


class Concatenated(Mla):
    """Scores of concatenated rows."""

    def scores(self, case: Case, q: F32, q_pe: F32, c: F32, k_pe: F32) -> F32:
        query, rows = np.concatenate([q, q_pe], -1), np.concatenate([c, k_pe], -1)
        return self.dot(query, rows.swapaxes(-1, -2)) * (self.scale(case) * self.k_scale(case))


class Pairwise(Concatenated):
    """Sums over a tree of halves, the rotary part first."""

    def dot(self, a: F32, b: F32) -> F32:
        products = a[..., :, :, None] * b[..., None, :, :]
        return halved(np.moveaxis(products, -2, 0))

    def total(self, p: F32) -> F32:
        return halved(np.moveaxis(p, -1, 0))[..., None]


def halved(terms: F32) -> F32:
    """The sum over axis 0 of halves that are summed on their own."""
    if len(terms) == 0:
        return np.zeros(terms.shape[1:], np.float32)
    while len(terms) > 1:
        half = len(terms) // 2
        rest = terms[2 * half :]
        terms = np.concatenate([terms[:half] + terms[half : 2 * half], rest])
    return terms[0]


class Fused(Mla):
    """Every multiply-add rounded once (float64 holds the product of two float32 numbers exactly)."""

    def dot(self, a: F32, b: F32) -> F32:
        total = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), np.float32)
        for k in range(a.shape[-1]):
            total = (total + a[..., k, None].astype(np.float64) * b[..., k, None, :]).astype(np.float32)
        return total


class ScaledQuery(Mla):
    """scale is folded into the queries before absorption, k_scale into the rows."""

    def computed(self, case: Case, buffers: Buffers) -> dict[str, np.ndarray]:
        found = super().computed(case, buffers)
        return {name: found[name] for name in ("out",)}

    def f32(self, case: Case, buffers: Buffers, name: str) -> F32:
        x = super().f32(case, buffers, name)
        return x * self.scale(case) if name in ("q_nope", "q_pe") else x

    def scores(self, case: Case, q: F32, q_pe: F32, c: F32, k_pe: F32) -> F32:
        k = self.k_scale(case)
        return self.dot(q, (c * k).swapaxes(-1, -2)) + self.dot(q_pe, (k_pe * k).swapaxes(-1, -2))


class Base2(Mla):
    """Scores held in base 2, exponentials taken by exp2."""

    def weights(self, scores: F32) -> F32:
        return super().weights(scores * np.float32(np.log2(np.e)))

    def exp(self, x: F32) -> F32:
        return np.exp2(x)


class Float64(Mla):
    """Everything in float64, rounded once."""

    def scale(self, case: Case) -> np.float64:  # type: ignore[override]
        return np.float64(case.params["scale"])

    def k_scale(self, case: Case) -> np.float64:  # type: ignore[override]
        return np.float64(case.params["k_scale"])

    def v_scale(self, case: Case) -> np.float64:  # type: ignore[override]
        return np.float64(case.params["v_scale"])

    def f32(self, case: Case, buffers: Buffers, name: str) -> F64:  # type: ignore[override]
        return super().f32(case, buffers, name).astype(np.float64)

    def dot(self, a: F32, b: F32) -> F32:
        return a @ b


class Online(Concatenated):
    """Flash attention: online softmax over tiles of the cache."""

    tile = 1

    def computed(self, case: Case, buffers: Buffers) -> dict[str, np.ndarray]:
        x = {name: self.f32(case, buffers, name) for name in case.inputs}
        c, k_pe = self.cache(case, x["c_kv"]), self.cache(case, x["k_pe"])
        seen, mask = self.seen(case, x), self.mask(case, x)
        q = self.dot(x["q_nope"], x["w_uk"])
        shape = (*q.shape[:-1], 1)
        top, total = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.float32)
        context = np.zeros(q.shape, np.float32)
        for first in self.starts(c.shape[2]):
            tile = slice(first, first + self.tile)
            scores = self.scores(case, q, x["q_pe"], c[:, :, tile], k_pe[:, :, tile])
            here = mask[..., tile] if mask.shape[-1] > 1 else mask
            there = np.broadcast_to(seen, (*seen.shape[:-1], c.shape[2]))[..., tile]
            scores = np.where(there, scores + here, np.float32(-np.inf))
            new = np.maximum(top, scores.max(-1, keepdims=True))
            finite = np.where(new > -np.inf, new, np.float32(0))
            p, rescale = self.exp(scores - finite), self.exp(np.where(top > -np.inf, top - finite, -np.inf))
            total = total * self.rescaled(rescale) + self.total(p)
            context = context * rescale + self.dot(p, self.values(c, k_pe)[:, :, tile])
            top = new
        context = self.divided(context, total) * self.v_scale(case)
        return {"q_absorbed": q, "context": context, "out": self.dot(context, x["w_uv"]).swapaxes(1, 2)}

    def starts(self, rows: int) -> range:
        return range(0, rows, self.tile)

    def rescaled(self, factor: F32) -> F32:
        return factor


class Online5(Online):
    tile = 5


class Online32(Online):
    tile = 32


class LooseExponentials(Online):
    """Exponentials as many units in the last place off as Vulkan allows, 3 + 2·|x|, all of them too large."""

    def exp(self, x: F32) -> F32:
        near = np.exp(x)
        off = np.where(np.isfinite(x) & (x != 0), np.floor(3 + 2 * np.abs(x)), np.float32(0)) * np.spacing(near)
        return np.where(near > 0, near + off, near).astype(np.float32)


class ScatteredExponentials(LooseExponentials):
    """The same, up or down by the last bit of the argument."""

    tile = 3

    def exp(self, x: F32) -> F32:
        near, large = np.exp(x), super().exp(x)
        return np.where(np.ascontiguousarray(x).view(np.uint32) & 1, large, near - (large - near)).astype(np.float32)


class Backwards(Online):
    """The last tile first."""

    tile = 3

    def starts(self, rows: int) -> range:
        return range(0, rows, self.tile)[::-1]


class NarrowOperands(Mla):
    """What is multiplied with the cache is rounded to the cache's type first, as ggml's CPU does."""

    def mla_absorbed(self, case: Case, buffers: Buffers) -> None:
        self.cache_type = case.inputs["c_kv"].type
        super().mla_absorbed(case, buffers)

    def rounded(self, x: F32) -> F32:
        return self.cache_type.decode(self.cache_type.encode(x.astype(np.float64))).astype(np.float32)

    def scores(self, case: Case, q: F32, q_pe: F32, c: F32, k_pe: F32) -> F32:
        return super().scores(case, self.rounded(q), self.rounded(q_pe), c, k_pe)

    def context(self, case: Case, weights: F32, values: F32) -> F32:
        return super().context(case, self.rounded(weights), values)


class NarrowSums(NarrowOperands, Online):
    """Flash attention that keeps its weighted sums in f16 for an f16 cache."""

    def computed(self, case: Case, buffers: Buffers) -> dict[str, np.ndarray]:
        x = {name: self.f32(case, buffers, name) for name in case.inputs}
        c, k_pe = self.cache(case, x["c_kv"]), self.cache(case, x["k_pe"])
        rows = c.shape[2]
        seen = np.broadcast_to(self.seen(case, x), (*self.seen(case, x).shape[:-1], rows))
        mask = np.broadcast_to(self.mask(case, x), (*self.mask(case, x).shape[:-1], rows))
        q = self.dot(x["q_nope"], x["w_uk"])
        scores = np.where(seen, self.scores(case, q, x["q_pe"], c, k_pe) + mask, np.float32(-np.inf))
        top, total = np.full((*q.shape[:-1], 1), -np.inf, np.float32), np.zeros((*q.shape[:-1], 1), np.float32)
        context = np.zeros(q.shape, np.float32)
        for j in range(rows):
            s = scores[..., j : j + 1]
            new = np.maximum(top, s)
            finite = np.where(new > -np.inf, new, np.float32(0))
            p, rescale = np.exp(s - finite), np.exp(np.where(top > -np.inf, top - finite, -np.inf))
            total, top = total * rescale + p, new
            context = self.narrow(self.narrow(context * rescale) + p * c[:, :, j : j + 1])
        context = np.where(total > 0, context * (np.float32(1) / total), np.float32(0)) * self.v_scale(case)
        return {"out": self.dot(context, x["w_uv"]).swapaxes(1, 2)}

    def narrow(self, x: F32) -> F32:
        return self.rounded(x) if self.cache_type.name == "f16" else x


# --- wrong ones ---


class ScaleOfWidth(Mla):
    """1/√(d_c + d_r), the width of a cache row, as if the latent rows were the heads."""

    def scale(self, case: Case) -> np.float32:
        return np.float32(1 / np.sqrt(case.inputs["c_kv"].shape[3] + case.inputs["k_pe"].shape[3]))


class NoScale(Mla):
    def scale(self, case: Case) -> np.float32:
        return ONE


class NoRotaryPart(Mla):
    def scores(self, case: Case, q: F32, q_pe: F32, c: F32, k_pe: F32) -> F32:
        return super().scores(case, q, np.zeros_like(q_pe), c, k_pe)


class NoLatentPart(Mla):
    def scores(self, case: Case, q: F32, q_pe: F32, c: F32, k_pe: F32) -> F32:
        return super().scores(case, np.zeros_like(q), q_pe, c, k_pe)


class ValueScaleForKeys(Mla):
    """KB112."""

    def k_scale(self, case: Case) -> np.float32:
        return np.float32(case.params["v_scale"])


class KeyScaleForValues(Mla):
    """KB112."""

    def v_scale(self, case: Case) -> np.float32:
        return np.float32(case.params["k_scale"])


class NoKeyScale(Mla):
    def k_scale(self, case: Case) -> np.float32:
        return ONE


class NoValueScale(Mla):
    def v_scale(self, case: Case) -> np.float32:
        return ONE


class SeesOneMore(Mla):
    """The causal mask one too far: position < key instead of ≤."""

    def position(self, case: Case, query: np.ndarray) -> np.ndarray:
        return super().position(case, query) + 1


class SeesOneLess(Mla):
    """A query does not see its own key."""

    def position(self, case: Case, query: np.ndarray) -> np.ndarray:
        return super().position(case, query) - 1


class CausalFromStart(Mla):
    """The first query stands at the first key, as it does only in a prefill from nothing."""

    def position(self, case: Case, query: np.ndarray) -> np.ndarray:
        return query


class NotCausal(Mla):
    def position(self, case: Case, query: np.ndarray) -> np.ndarray:
        return np.full_like(query, case.inputs["c_kv"].shape[2])


class NoMask(Mla):
    def mask(self, case: Case, x: Mapping[str, F32]) -> F32:
        return np.zeros((1, 1, 1, 1), np.float32)


class MaskOfFirstSequence(Mla):
    def mask(self, case: Case, x: Mapping[str, F32]) -> F32:
        return super().mask(case, x)[:1]


class ReadsPadding(Mla):
    """Every row of the cache is looked at, whatever kv_len says."""

    def cache(self, case: Case, rows: F32) -> F32:
        return rows


class PaddingTimesZero(Mla):
    """KB079: rows after kv_len get no weight, but 0 · NaN is NaN."""

    def cache(self, case: Case, rows: F32) -> F32:
        return rows

    def scores(self, case: Case, q: F32, q_pe: F32, c: F32, k_pe: F32) -> F32:
        scores = super().scores(case, q, q_pe, c, k_pe)
        scores[..., int(case.params["kv_len"]) :] = -np.inf
        return scores


class MaskedRowIsNaN(Mla):
    """0 / 0 where a query sees no key."""

    def divided(self, p: F32, total: F32) -> F32:
        return p / total


class MaskedRowIsMean(Mla):
    """−FLT_MAX for −inf: where a query sees no key, all keys weigh the same."""

    def weights(self, scores: F32) -> F32:
        return super().weights(np.maximum(scores, np.finfo(np.float32).min))


class NoMaximum(Mla):
    """exp of the scores themselves."""

    def weights(self, scores: F32) -> F32:
        p = self.exp(scores)
        return self.divided(p, self.total(p))


class FullTilesOfKeys(Mla):
    """Keys that a tile of 8 does not fill are left out (where there is a full one)."""

    def seen(self, case: Case, x: Mapping[str, F32]) -> Mask:
        seen = super().seen(case, x)
        n = seen.shape[-1]
        return seen & (np.arange(n) < (n // 8 * 8 if n > 8 else n))


class AllButLastKey(Mla):
    """The loop over keys ends one too early."""

    def seen(self, case: Case, x: Mapping[str, F32]) -> Mask:
        seen = super().seen(case, x)
        n = seen.shape[-1]
        return seen & (np.arange(n) < max(n - 1, 1))


class FirstTileOfKeys(Mla):
    """No loop over tiles of 32 keys."""

    def seen(self, case: Case, x: Mapping[str, F32]) -> Mask:
        seen = super().seen(case, x)
        return seen & (np.arange(seen.shape[-1]) < 32)


class ValuesFromWrongColumns(Mla):
    """The value begins d_r columns into the cache row."""

    def values(self, c: F32, k_pe: F32) -> F32:
        return np.concatenate([c, k_pe], -1)[..., k_pe.shape[-1] :]


class HalfProducts(Mla):
    """KB062: products and sums of scores in f16, on a device that promises float32."""

    def scores(self, case: Case, q: F32, q_pe: F32, c: F32, k_pe: F32) -> F32:
        half = [x.astype(np.float16) for x in (q, q_pe, c, k_pe)]
        return super().scores(case, *half).astype(np.float32)


class FirstHeadsKeys(Mla):
    """W_UK of head 0 for all heads."""

    def f32(self, case: Case, buffers: Buffers, name: str) -> F32:
        x = super().f32(case, buffers, name)
        return np.repeat(x[:, :1], x.shape[1], 1) if name == "w_uk" else x


class FirstHeadsValues(Mla):
    """W_UV of head 0 for all heads."""

    def f32(self, case: Case, buffers: Buffers, name: str) -> F32:
        x = super().f32(case, buffers, name)
        return np.repeat(x[:, :1], x.shape[1], 1) if name == "w_uv" else x


class NotRescaled(Online5):
    """Flash attention that forgets to scale down the sum of weights when the maximum rises."""

    def rescaled(self, factor: F32) -> F32:
        return ONE


class SequencesSwapped(Mla):
    """Every sequence reads the cache of the one after it."""

    def cache(self, case: Case, rows: F32) -> F32:
        return super().cache(case, np.roll(rows, 1, 0))


@dataclass(frozen=True)
class Fault:
    """A wrong kernel, the stage that its report must name, and the hint that must be given ("": none is known). `also`:
    a kind that some of its failures have; `recipe`: of the smallest case that shows it."""

    kernel: type[Mla]
    stage: str
    hint: str = ""
    kind: str = "WRONG VALUES"
    also: str = ""
    recipe: str = "small_int"

    def __str__(self) -> str:
        return self.kernel.__name__


FAULTS = (
    Fault(ScaleOfWidth, "scores", "scale is 1/√"),
    Fault(NoScale, "scores", "scale is left out"),
    Fault(NoRotaryPart, "scores", "the rotary part (q_pe·k_pe) is left out of the scores"),
    Fault(NoLatentPart, "scores", "the latent part (q_nope·W_UK·c) is left out of the scores"),
    Fault(ValueScaleForKeys, "scores", "v_scale is used for the keys"),
    Fault(KeyScaleForValues, "context", "k_scale is used for the values"),
    Fault(NoKeyScale, "scores", "k_scale is left out"),
    Fault(NoValueScale, "context", "v_scale is left out"),
    Fault(SeesOneMore, "scores", "the causal mask is off by one: a query sees the key after it"),
    Fault(SeesOneLess, "scores", "the causal mask is off by one: a query does not see itself"),
    Fault(CausalFromStart, "scores", "the causal mask counts from the first key: query i sees keys up to i"),
    Fault(NotCausal, "scores", "causal is ignored: queries see keys after them"),
    Fault(NoMask, "scores", "the mask is ignored"),
    Fault(MaskOfFirstSequence, "scores", "every i3 of mask is read from i3 = 0"),
    Fault(ReadsPadding, "scores", "kv_len is ignored: padding rows of the cache are read", "NAN/INF"),
    Fault(PaddingTimesZero, "context", "kv_len is ignored: padding rows of the cache are read", "NAN/INF"),
    Fault(MaskedRowIsNaN, "weights", "a query that sees no key gets NaN: 0 / 0", "NAN/INF"),
    Fault(
        NoMaximum,
        "weights",
        "the largest score is not subtracted before the exponentials",
        "NAN/INF",
        also="WRONG VALUES",
        recipe="large_logits",
    ),
    Fault(FullTilesOfKeys, "scores", "the last keys are left out: what a tile of 8 does not fill"),
    Fault(FirstTileOfKeys, "scores", "only the first tile of 32 keys is looked at"),
    Fault(MaskedRowIsMean, "weights", "a query that sees no key gets the mean of all values"),
    Fault(ValuesFromWrongColumns, "context", "the value is read from the wrong columns of a cache row"),
    Fault(
        HalfProducts,
        "scores",
        "the error is what f16 gives: operands, products or sums go through 16 bits",
        recipe="",  # any whose products f16 does not hold
    ),
    Fault(FirstHeadsKeys, "q_absorbed", "every i2 of w_uk is read from i2 = 0"),
    Fault(FirstHeadsValues, "out", "every i2 of w_uv is read from i2 = 0"),
    Fault(SequencesSwapped, "scores"),
    Fault(NotRescaled, "context"),
)
