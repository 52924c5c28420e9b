"""The gated delta rule in float32, step by step: a right kernel whose steps the odd and the wrong ones replace.

Arrays are [B, T, H_v, n] and, in chunks, [B, H_v, N, C, n].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from tests.kernels.base import F32, Kernel, below_diagonal

ONE = np.float32(1)
BLOCK = 16


@dataclass
class Arguments:
    """The inputs as float32, with one row of q and k per value head; the state as [B, H_v, K, V]."""

    q: F32
    k: F32
    v: F32
    g: F32
    beta: F32
    state: F32
    scale: np.float32


class Delta(Kernel):
    """Token by token and in chunks, every operation rounded to float32."""

    name = "delta"

    def gated_delta_net(self, case: Case, buffers: Buffers) -> None:
        self.stages(case, buffers)

    def gated_delta_net_chunk(self, case: Case, buffers: Buffers) -> None:
        self.stages(case, buffers)

    def stages(self, case: Case, buffers: Buffers) -> Mapping[str, np.ndarray]:
        with np.errstate(all="ignore"):
            found = self.recurrent(case, buffers) if case.op == "gated_delta_net" else self.chunked(case, buffers)
        for name in case.outputs:
            self.write(buffers, name, found.pop(name))
        return found

    # --- one operation at a time ---

    def add(self, a: F32, b: F32) -> F32:
        return a + b

    def mul(self, a: F32, b: F32) -> F32:
        return a * b

    def div(self, a: F32, b: F32) -> F32:
        return a / b

    def fma(self, a: F32, b: F32, c: F32) -> F32:
        """a·b + c."""
        return self.add(self.mul(a, b), c)

    def sqrt(self, x: F32) -> F32:
        return np.sqrt(x)

    def exp(self, x: F32) -> F32:
        return np.exp(x)

    def order(self, n: int) -> range:
        """The order in which n products are summed."""
        return range(n)

    def dot(self, a: F32, b: F32) -> F32:
        """a·b over the last axis of a and the last but one of b."""
        shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        total = np.zeros(shape, np.float32)
        for i in self.order(a.shape[-1]):
            total = self.fma(a[..., i, None], b[..., i, None, :], total)
        return total

    def total(self, x: F32) -> F32:
        """The sum over the last axis, which stays."""
        return self.dot(x, np.ones((x.shape[-1], 1), np.float32))

    # --- what both forms begin and end with ---

    def arguments(self, case: Case, buffers: Buffers) -> tuple[dict[str, F32], Arguments]:
        x = {name: np.array(self.read(buffers, name)) for name in case.inputs}
        found: dict[str, F32] = {}
        if case.params["l2norm"]:
            found = {f"{name}_norm": self.normalised(case, x[name]) for name in ("q", "k")}
            x |= {name: found[f"{name}_norm"] for name in ("q", "k")}
        head = self.key_head(case)
        q, k = x["q"][:, :, head], x["k"][:, :, head]
        return found, Arguments(q, k, x["v"], x["g"], x["beta"], self.first_state(case, x), self.scale(case))

    def normalised(self, case: Case, x: F32) -> F32:
        return self.div(x, self.sqrt(self.add(self.total(self.mul(x, x)), np.float32(case.params["eps"]))))

    def key_head(self, case: Case) -> np.ndarray:
        heads, key_heads = case.inputs["v"].shape[2], case.inputs["k"].shape[2]
        if case.params["heads"] == "tiled":
            return np.arange(heads) % key_heads
        return np.arange(heads) // (heads // key_heads)

    def scale(self, case: Case) -> np.float32:
        return np.float32(case.params["scale"])

    def first_state(self, case: Case, x: Mapping[str, F32]) -> F32:
        """The initial state; in the memory of a transposed one K runs fastest."""
        (sequences, _, heads, width), keys = case.inputs["v"].shape, case.inputs["k"].shape[3]
        if "state" not in x:
            return np.zeros((sequences, heads, keys, width), np.float32)
        return x["state"] if case.params["state_layout"] == "kv" else x["state"].swapaxes(-1, -2)

    def stored(self, case: Case, states: list[F32]) -> F32:
        """Snapshots, the newest first, one below the other."""
        kept = int(case.params.get("snapshots", 1))
        shown = self.snapshots(states, kept)
        shown += [np.full_like(shown[0], 7.0)] * (kept - len(shown))
        stacked = np.concatenate(shown)
        return stacked if case.params["state_layout"] == "kv" else stacked.swapaxes(-1, -2)

    def snapshots(self, states: list[F32], kept: int) -> list[F32]:
        return states[: -kept - 1 : -1]

    # --- token by token ---

    def recurrent(self, case: Case, buffers: Buffers) -> dict[str, np.ndarray]:
        """Every stage by its name."""
        found, it = self.arguments(case, buffers)
        decay = it.g
        if case.params["gate"] == "log":
            found["decay"] = decay = self.exp(it.g)
        state = it.state
        deltas, states, outs = [], [], []
        for t in range(it.v.shape[1]):
            out, delta, state = self.token(it, decay[:, t, :, :, None], t, state)
            outs.append(out)
            deltas.append(delta)
            states.append(state)
        found |= {name: np.stack(x, 1) for name, x in (("delta", deltas), ("states", states), ("out", outs))}
        return {**found, "state_out": self.stored(case, states)}

    def token(self, it: Arguments, decay: F32, t: int, state: F32) -> tuple[F32, F32, F32]:
        """out, delta and the state after token t."""
        state = self.mul(decay, state)
        delta = self.delta(it, t, self.along(it.k[:, t], state))
        state = self.updated(it.k[:, t], delta, state)
        return self.scaled(it, self.along(it.q[:, t], state)), delta, state

    def along(self, row: F32, state: F32) -> F32:
        """rowᵀ·state."""
        return self.dot(row[..., None, :], state)[..., 0, :]

    def delta(self, it: Arguments, t: int, seen: F32) -> F32:
        return self.mul(it.beta[:, t], self.add(it.v[:, t], -seen))

    def updated(self, k: F32, delta: F32, state: F32) -> F32:
        return self.fma(k[..., None], delta[..., None, :], state)

    def scaled(self, it: Arguments, x: F32) -> F32:
        return self.mul(it.scale, x)

    # --- in chunks ---

    def chunked(self, case: Case, buffers: Buffers) -> dict[str, np.ndarray]:
        """Every stage by its name."""
        found, it = self.arguments(case, buffers)
        tokens, chunk = it.v.shape[1], int(case.params["chunk"])
        g = np.log(it.g) if case.params["gate"] == "decay" else it.g
        q, k, v, g, beta = (self.cut(x, chunk) for x in (it.q, it.k, it.v, g, it.beta))
        sums = self.sums(g)
        key = self.mul(beta, k)
        square = self.whole if case.params["form"] == "whole" else self.blockwise
        akk, aqk = square(case, key, k, sums), square(case, q, k, sums)
        akk, aqk = np.where(below_diagonal(chunk), akk, 0), np.where(self.seen(chunk), aqk, 0)
        if sums.shape[-1] == 1:
            found["decay"] = self.decay(sums, sums)[..., 0]
        decayed = self.mul(key, self.exp(sums))
        w, u = self.solved(akk, decayed), self.solved(akk, self.mul(beta, v))
        state = it.state
        outs, news, states = [], [], []
        for n in range(v.shape[2]):
            state = self.begins(it, state)
            new = self.add(u[:, :, n], -self.dot(w[:, :, n], state))
            query = self.mul(q[:, :, n], self.exp(sums[:, :, n]))
            out = self.add(self.dot(query, state), self.dot(aqk[:, :, n], new))
            outs.append(self.scaled(it, out))
            last = sums[:, :, n, -1:, :]
            keys = self.mul(k[:, :, n], self.exp(self.add(last, -sums[:, :, n])))
            state = self.mul(self.exp(last).swapaxes(-1, -2), state)
            state = self.add(state, self.dot(keys.swapaxes(-1, -2), new))
            news.append(new)
            states.append(state)
        found |= {"G": sums, "Akk": akk, "Aqk": aqk, "w": w, "u": u}
        found |= {"v_new": np.stack(news, 2), "states": np.stack(states, 2)}
        out = np.stack(outs, 2)
        out = out.reshape(*out.shape[:2], -1, out.shape[4])[:, :, :tokens].swapaxes(1, 2)
        return {**found, "out": out, "state_out": self.stored(case, states[-1:])}

    def begins(self, it: Arguments, state: F32) -> F32:
        """The state that a chunk begins with, given what the one before it left."""
        return state

    def cut(self, x: F32, chunk: int) -> F32:
        """[B, T, H, n] as [B, H, N, C, n]; zeros beyond the last token."""
        padded = np.concatenate([x, self.beyond(x, -x.shape[1] % chunk)], axis=1)
        return padded.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1, chunk, x.shape[3])

    def beyond(self, x: F32, more: int) -> F32:
        return np.zeros((x.shape[0], more, *x.shape[2:]), np.float32)

    def sums(self, g: F32) -> F32:
        found = np.array(g)
        for i in range(1, g.shape[-2]):
            found[..., i, :] = self.add(found[..., i - 1, :], g[..., i, :])
        return found

    def seen(self, chunk: int) -> np.ndarray:
        """The tokens that a token sees: those before it, and itself."""
        return np.tri(chunk, dtype=bool)

    def decay(self, rows: F32, columns: F32, apart: int = 0) -> F32:
        """e^{G_i − G_j}, 0 where i < j; the first of `rows` lies `apart` tokens after the first of `columns`."""
        gaps = self.add(rows[..., :, None, :], -columns[..., None, :, :])
        seen = np.tri(rows.shape[-2], columns.shape[-2], apart, dtype=bool)[..., None]
        return np.where(seen, self.exp(np.where(seen, gaps, np.float32(0))), np.float32(0))

    def products(self, left: F32, right: F32, rows: F32, columns: F32, apart: int) -> F32:
        """Σ_d left_id right_jd e^{G_id − G_jd} for i ≥ j."""
        decay = self.decay(rows, columns, apart)
        if decay.shape[-1] == 1:
            return self.mul(self.dot(left, right.swapaxes(-1, -2)), decay[..., 0])
        keyed = self.mul(right[..., None, :, :], decay)
        return self.dot(keyed, left[..., :, :, None])[..., 0]

    def whole(self, case: Case, left: F32, right: F32, sums: F32) -> F32:
        return self.products(left, right, sums, sums, 0)

    def blockwise(self, case: Case, left: F32, right: F32, sums: F32) -> F32:
        chunk = left.shape[-2]
        placed = np.zeros((*left.shape[:-1], chunk), np.float32)
        for i in range(0, chunk, BLOCK):
            for j in range(0, i + 1, BLOCK):
                rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
                parts = left[..., rows, :], right[..., columns, :], sums[..., rows, :], sums[..., columns, :]
                self.place(case, placed[..., rows, columns], self.products(*parts, i - j))
        return placed

    def place(self, case: Case, view: F32, block: F32) -> None:
        view[...] = self.add(view, block) if case.params["place"] == "acc" else block

    def solved(self, akk: F32, right: F32) -> F32:
        """(I + Akk)^-1 right: each row, once known, is taken off the rows below it."""
        found = np.array(right)
        for i in range(akk.shape[-1] - 1):
            column, row = akk[..., i + 1 :, i, None], found[..., i, None, :]
            found[..., i + 1 :, :] = self.fma(-column, row, found[..., i + 1 :, :])
        return found
