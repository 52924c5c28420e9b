"""Right delta-net kernels that compute in another order, another form or another arithmetic. Each must pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.numerics import EXACT, Numerics
from tests.kernels.base import F32
from tests.kernels.delta import BLOCK, Arguments, Delta
from tests.kernels.odd import ToOdd, flushed, loosened

LOG2E = np.float32(1.4426950408889634)


class Backwards(Delta):
    """Sums from the last product to the first."""

    def order(self, n: int) -> range:
        return range(n - 1, -1, -1)


class Pairwise(Delta):
    """Sums as NumPy makes them, in a tree."""

    def dot(self, a: F32, b: F32) -> F32:
        return np.sum(a[..., :, None, :] * b.swapaxes(-1, -2)[..., None, :, :], axis=-1, dtype=np.float32)


class Blas(Delta):
    """Sums as a BLAS makes them."""

    def dot(self, a: F32, b: F32) -> F32:
        return a @ b


class Fused(Delta):
    """Products and sums with one rounding."""

    def fma(self, a: F32, b: F32, c: F32) -> F32:
        return (a.astype(np.float64) * b + c).astype(np.float32)


class FusedBackwards(Fused, Backwards):
    """Fused, from the last product to the first."""


class Wide(Delta):
    """Sums in float64, rounded once."""

    def dot(self, a: F32, b: F32) -> F32:
        return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)


class DecaysKeys(Delta):
    """Sᵀk before the decay, with a decayed key; out from S before the update, and q·k."""

    def token(self, it: Arguments, decay: F32, t: int, state: F32) -> tuple[F32, F32, F32]:
        k, q = it.k[:, t], it.q[:, t]
        delta = self.delta(it, t, self.along(self.mul(decay[..., 0], k), state))
        own = self.dot(q[..., None, :], k[..., None])[..., 0]
        out = self.add(self.along(self.mul(decay[..., 0], q), state), self.mul(own, delta))
        return self.scaled(it, out), delta, self.updated(k, delta, self.mul(decay, state))


class BetaFirst(Delta):
    """βv − Sᵀ(βk), and q with the scale on it."""

    def token(self, it: Arguments, decay: F32, t: int, state: F32) -> tuple[F32, F32, F32]:
        state = self.mul(decay, state)
        beta, k = it.beta[:, t], it.k[:, t]
        delta = self.add(self.mul(beta, it.v[:, t]), -self.along(self.mul(beta, k), state))
        state = self.updated(k, delta, state)
        return self.along(self.mul(it.scale, it.q[:, t]), state), delta, state


class StartsFromValue(Delta):
    """v − Sᵀk summed from v on."""

    def token(self, it: Arguments, decay: F32, t: int, state: F32) -> tuple[F32, F32, F32]:
        state = self.mul(decay, state)
        left = it.v[:, t]
        for i in range(it.k.shape[3]):
            left = self.fma(-it.k[:, t, :, i, None], state[:, :, i], left)
        delta = self.mul(it.beta[:, t], left)
        state = self.updated(it.k[:, t], delta, state)
        return self.scaled(it, self.along(it.q[:, t], state)), delta, state


class Transposed(Delta):
    """The state as [V, K], summed by a BLAS along its rows."""

    def along(self, row: F32, state: F32) -> F32:
        return (np.ascontiguousarray(state.swapaxes(-1, -2)) @ row[..., None])[..., 0]


class ByRow(Blas):
    """Substitution by inner products."""

    def solved(self, akk: F32, right: F32) -> F32:
        found = np.array(right)
        for i in range(1, akk.shape[-1]):
            row = self.dot(akk[..., i, None, :i], found[..., :i, :])[..., 0, :]
            found[..., i, :] = self.add(right[..., i, :], -row)
        return found


class Inverse(Blas):
    """The inverse, by substitution, and products with it."""

    def solved(self, akk: F32, right: F32) -> F32:
        size = akk.shape[-1]
        eye = np.broadcast_to(np.eye(size, dtype=np.float32), akk.shape)
        return self.dot(super().solved(akk, eye), right)


class BlockInverse(Blas):
    """The inverse from those of 16×16 blocks on the diagonal, merged block row by block row."""

    def solved(self, akk: F32, right: F32) -> F32:
        found = np.zeros_like(akk)
        for i in range(0, akk.shape[-1], BLOCK):
            rows = slice(i, i + BLOCK)
            eye = np.broadcast_to(np.eye(BLOCK, dtype=np.float32), akk[..., rows, rows].shape)
            found[..., rows, rows] = own = super().solved(akk[..., rows, rows], eye)
            if i:
                found[..., rows, :i] = -self.dot(own, self.dot(akk[..., rows, :i], found[..., :i, :i]))
        return self.dot(found, right)


class Scan(Blas):
    """Sums of gates in log C steps."""

    def sums(self, g: F32) -> F32:
        found, step = np.array(g), 1
        while step < g.shape[-2]:
            found[..., step:, :] = self.add(found[..., step:, :], found[..., :-step, :].copy())
            step *= 2
        return found


class SolvesOnce(Blas):
    """v_new from one solve per chunk, without w and u."""

    def chunked(self, case: Case, buffers: Buffers) -> dict[str, np.ndarray]:
        found, it = self.arguments(case, buffers)
        tokens, chunk = it.v.shape[1], int(case.params["chunk"])
        g = np.log(it.g) if case.params["gate"] == "decay" else it.g
        q, k, v, g, beta = (self.cut(x, chunk) for x in (self.mul(it.scale, it.q), it.k, it.v, g, it.beta))
        sums = self.sums(g)
        akk = np.tril(self.mul(beta, self.whole(case, k, k, sums)), -1)
        aqk = np.tril(self.whole(case, q, k, sums))
        state, outs = it.state, []
        for n in range(v.shape[2]):
            key = self.mul(k[:, :, n], self.exp(sums[:, :, n]))
            left = self.mul(beta[:, :, n], self.add(v[:, :, n], -self.dot(key, state)))
            new = self.solved(akk[:, :, n], left)
            query = self.mul(q[:, :, n], self.exp(sums[:, :, n]))
            outs.append(self.add(self.dot(query, state), self.dot(aqk[:, :, n], new)))
            last = sums[:, :, n, -1:, :]
            keys = self.mul(k[:, :, n], self.exp(self.add(last, -sums[:, :, n])))
            state = self.fma(self.exp(last).swapaxes(-1, -2), state, self.dot(keys.swapaxes(-1, -2), new))
        out = np.stack(outs, 2)
        out = out.reshape(*out.shape[:2], -1, out.shape[4])[:, :, :tokens].swapaxes(1, 2)
        return {**found, "out": out, "state_out": self.stored(case, [state])}


class InChunks(Inverse):
    """The op token by token, computed in chunks; a snapshot is the state after a shorter last chunk."""

    chunk = 16
    tokens: int | None = None

    def arguments(self, case: Case, buffers: Buffers) -> tuple[dict[str, F32], Arguments]:
        found, it = super().arguments(case, buffers)
        by_token = ("q", "k", "v", "g", "beta")
        return found, replace(it, **{name: getattr(it, name)[:, : self.tokens] for name in by_token})

    def recurrent(self, case: Case, buffers: Buffers) -> dict[str, np.ndarray]:
        whole = replace(case, params={**case.params, "chunk": self.chunk, "form": "whole", "place": "set"})
        alone = replace(whole, params={**whole.params, "snapshots": 1})
        tokens, states, outs = case.inputs["v"].shape[1], [], []
        for self.tokens in range(tokens, max(tokens - int(case.params["snapshots"]), 0), -1):
            found = self.chunked(alone, buffers)
            states.append(found["state_out"])
            outs.append(found["out"])
        self.tokens = None
        missing = int(case.params["snapshots"]) - len(states)
        return {"out": outs[0], "state_out": np.concatenate([*states, *[np.full_like(states[0], 7.0)] * missing])}


class InChunksOf64(InChunks):
    chunk = 64


class ScaledChannels(Blas):
    """Blocks below the diagonal as (q e^{G − G_r})·(k e^{G_r − G}), r the first row of the block: no exponent is above
    0."""

    def blockwise(self, case: Case, left: F32, right: F32, sums: F32) -> F32:
        placed = super().blockwise(case, left, right, sums)
        chunk = left.shape[-2]
        for i in range(BLOCK, chunk, BLOCK):
            rows, before = slice(i, i + BLOCK), slice(0, i)
            first = sums[..., i : i + 1, :]
            query = self.mul(left[..., rows, :], self.exp(self.add(sums[..., rows, :], -first)))
            key = self.mul(right[..., before, :], self.exp(self.add(first, -sums[..., before, :])))
            placed[..., rows, before] = self.dot(query, key.swapaxes(-1, -2))
        return placed


class Exp2(Blas):
    """exp(x) as 2^(x·log2 e), as GPUs have it."""

    def exp(self, x: F32) -> F32:
        return np.exp2(x * LOG2E)


class FlushingExp(Blas):
    """An exp whose denormal results are 0."""

    def exp(self, x: F32) -> F32:
        return flushed(np.exp(x))


class Flushing(Delta):
    """Operands and results below 2^-126 become 0."""

    def add(self, a: F32, b: F32) -> F32:
        return flushed(flushed(a) + flushed(b))

    def mul(self, a: F32, b: F32) -> F32:
        return flushed(flushed(a) * flushed(b))

    def div(self, a: F32, b: F32) -> F32:
        return flushed(flushed(a) / flushed(b))

    def exp(self, x: F32) -> F32:
        return flushed(np.exp(flushed(x)))

    def read(self, buffers: Buffers, name: str) -> np.ndarray:
        return flushed(super().read(buffers, name))


class Directed(Delta):
    """Every inexact sum and product gets the neighbour whose last bit is 1, by the arithmetic of `ToOdd`."""

    _arithmetic = ToOdd()

    def add(self, a: F32, b: F32) -> F32:
        return self._arithmetic.added(*_alike(a, b))

    def mul(self, a: F32, b: F32) -> F32:
        return self._arithmetic.multiplied(*_alike(a, b))


def _alike(a: F32, b: F32) -> tuple[F32, F32]:
    found = np.broadcast_arrays(np.asarray(a, np.float32), np.asarray(b, np.float32))
    return cast("tuple[F32, F32]", tuple(found))


class Vulkan(Flushing):
    """The least that Vulkan promises: denormals flushed, any rounding, loose division, root and exp."""

    _arithmetic = ToOdd()

    def add(self, a: F32, b: F32) -> F32:
        return flushed(self._arithmetic.added(*_alike(flushed(a), flushed(b))))

    def mul(self, a: F32, b: F32) -> F32:
        return flushed(self._arithmetic.multiplied(*_alike(flushed(a), flushed(b))))

    def div(self, a: F32, b: F32) -> F32:
        a, b = _alike(flushed(a), flushed(b))
        return flushed(loosened(a.copy(), a / b))

    def exp(self, x: F32) -> F32:
        x = flushed(x)
        wrong = np.float64(2.0**-23) * (3 + 2 * np.abs(x.astype(np.float64)))
        sign = np.where(np.ascontiguousarray(x).view(np.uint32) & 1, 0.8, -0.8)  # and a rounding
        return flushed((np.exp(x.astype(np.float64)) * (1 + sign * wrong)).astype(np.float32))


@dataclass(frozen=True)
class Odd:
    """A right kernel for some ops, and what its device promises; a slow one computes every `each`-th case."""

    kernel: type[Delta]
    ops: tuple[str, ...]
    numerics: Numerics = EXACT
    each: int = 1

    def __str__(self) -> str:
        return self.kernel.__name__


_RECURRENT, _CHUNK = ("gated_delta_net",), ("gated_delta_net_chunk",)
_BOTH = (*_RECURRENT, *_CHUNK)
_VULKAN = Numerics(flushes_denormals=True, any_rounding=True, division_ulps=2.5, exp_ulps_per_unit=2.0, sqrt_ulps=4.5)

ODD: tuple[Odd, ...] = (
    Odd(Delta, _BOTH),
    Odd(Backwards, _RECURRENT),
    Odd(Pairwise, _RECURRENT),
    Odd(Blas, _BOTH),
    Odd(Fused, _BOTH),
    Odd(FusedBackwards, _BOTH, each=4),
    Odd(Wide, _BOTH),
    Odd(DecaysKeys, _RECURRENT),
    Odd(BetaFirst, _RECURRENT),
    Odd(StartsFromValue, _RECURRENT),
    Odd(Transposed, _RECURRENT),
    Odd(ByRow, _CHUNK),
    Odd(Inverse, _CHUNK),
    Odd(BlockInverse, _CHUNK),
    Odd(Scan, _CHUNK),
    Odd(SolvesOnce, _CHUNK),
    Odd(ScaledChannels, _CHUNK),
    Odd(InChunks, _RECURRENT, Numerics(delta_chunk=16)),
    Odd(InChunksOf64, _RECURRENT, Numerics(delta_chunk=64)),
    Odd(Exp2, _BOTH, Numerics(exp_ulps_per_unit=1.0)),
    Odd(FlushingExp, _BOTH),
    Odd(Flushing, _BOTH, Numerics(flushes_denormals=True), 10),
    Odd(Directed, _BOTH, Numerics(any_rounding=True), 10),
    Odd(Vulkan, _BOTH, _VULKAN, 10),
)
