"""Wrong delta-net kernels: each has one fault of the kind that real ones had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from tests.kernels.base import F32
from tests.kernels.delta import ONE, Arguments, Delta


class DecaysLate(Delta):
    """S decays after the update, not before it."""

    def token(self, it: Arguments, decay: F32, t: int, state: F32) -> tuple[F32, F32, F32]:
        delta = self.delta(it, t, self.along(it.k[:, t], state))
        state = self.mul(decay, self.updated(it.k[:, t], delta, state))
        return self.scaled(it, self.along(it.q[:, t], state)), delta, state


class ReadsEarly(Delta):
    """out is made of the decayed state, before the update."""

    def token(self, it: Arguments, decay: F32, t: int, state: F32) -> tuple[F32, F32, F32]:
        out = self.scaled(it, self.along(it.q[:, t], self.mul(decay, state)))
        _, delta, state = super().token(it, decay, t, state)
        return out, delta, state


class WithoutBeta(Delta):
    """β is not multiplied with."""

    def arguments(self, case: Case, buffers: Buffers) -> tuple[dict[str, F32], Arguments]:
        found, it = super().arguments(case, buffers)
        return found, replace(it, beta=np.ones_like(it.beta))


class TransposesState(Delta):
    """The initial state is read with its last two axes exchanged, where they are of one size."""

    def first_state(self, case: Case, x: Mapping[str, F32]) -> F32:
        state = super().first_state(case, x)
        return state.swapaxes(-1, -2) if state.shape[-1] == state.shape[-2] else state


class WritesStateTransposed(Delta):
    """The last state is written with its last two axes exchanged, where they are of one size."""

    def stored(self, case: Case, states: list[F32]) -> F32:
        found = super().stored(case, states)
        return found.swapaxes(-1, -2) if found.shape[-1] == found.shape[-2] else found


class SharesHeadsOtherwise(Delta):
    """Tiled heads are read as interleaved ones, and the other way round."""

    def key_head(self, case: Case) -> np.ndarray:
        other = "interleaved" if case.params["heads"] == "tiled" else "tiled"
        return super().key_head(replace(case, params={**case.params, "heads": other}))


class SwapsSequences(Delta):
    """The outputs of the sequences stand in reverse order."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        sequences = buffers.case.inputs["v"].shape[0]
        rows = values.reshape(-1, sequences, *values.shape[1:])[:, ::-1]
        super().write(buffers, name, rows.reshape(values.shape))


class OldestFirst(Delta):
    """Snapshots stand in the order of time."""

    def snapshots(self, states: list[F32], kept: int) -> list[F32]:
        return states[-kept:]


class IgnoresState(Delta):
    """Every sequence starts from 0."""

    def first_state(self, case: Case, x: Mapping[str, F32]) -> F32:
        return np.zeros_like(super().first_state(case, x))


class WithoutScale(Delta):
    """q is not scaled."""

    def scale(self, case: Case) -> np.float32:
        return ONE


class WithoutNorm(Delta):
    """q and k are taken as they are."""

    def normalised(self, case: Case, x: F32) -> F32:
        return x


class TurnsGate(Delta):
    """exp(−g): the state grows."""

    def arguments(self, case: Case, buffers: Buffers) -> tuple[dict[str, F32], Arguments]:
        found, it = super().arguments(case, buffers)
        return found, replace(it, g=-it.g) if case.params["gate"] == "log" else it


class UnguardedExp(Delta):
    """e^G and e^−G by themselves, which overflows."""

    def products(self, left: F32, right: F32, rows: F32, columns: F32, apart: int) -> F32:
        query, key = self.mul(left, self.exp(rows)), self.mul(right, self.exp(-columns))
        return self.dot(query, key.swapaxes(-1, -2))


class Unmasked(Delta):
    """The last chunk is filled up with the last token instead of zeros."""

    def beyond(self, x: F32, more: int) -> F32:
        return np.repeat(x[:, -1:], more, axis=1)


class RunsOn(Delta):
    """The last chunk is filled up with what follows in a packed tensor, NaN after the last sequence."""

    def beyond(self, x: F32, more: int) -> F32:
        sequences, tokens = x.shape[:2]
        after = np.full((tokens + more, *x.shape[2:]), np.nan, np.float32)
        rows = np.concatenate([x.reshape(-1, *x.shape[2:]), after])
        return rows[(np.arange(sequences)[:, None] + 1) * tokens + np.arange(more)]


class DropsDiagonal(Delta):
    """Aqk without its diagonal: a token does not see itself."""

    def seen(self, chunk: int) -> np.ndarray:
        return np.tri(chunk, k=-1, dtype=bool)


class PlacesFirstOnly(Delta):
    """ACC drops the outermost dimensions: blocks are placed for the first head of the first sequence."""

    def place(self, case: Case, view: F32, block: F32) -> None:
        if case.params["place"] == "acc":
            super().place(case, view[:1, :1], block[:1, :1])
        else:
            super().place(case, view, block)


class SolvesHalf(Delta):
    """The substitution ends one row early."""

    def solved(self, akk: F32, right: F32) -> F32:
        found = super().solved(akk, right)
        found[..., -1, :] = right[..., -1, :]
        return found


class RestartsChunks(Delta):
    """Every chunk starts from the initial state."""

    def begins(self, it: Arguments, state: F32) -> F32:
        return it.state


class OnlyFirstHeadHasBeta(Delta):
    """β is multiplied with for the first head only."""

    def arguments(self, case: Case, buffers: Buffers) -> tuple[dict[str, F32], Arguments]:
        found, it = super().arguments(case, buffers)
        beta = it.beta.copy()
        beta[:, :, 1:] = 1
        return found, replace(it, beta=beta)


class LosesLoneSequence(Delta):
    """β is not multiplied with where there is one sequence only."""

    def arguments(self, case: Case, buffers: Buffers) -> tuple[dict[str, F32], Arguments]:
        found, it = super().arguments(case, buffers)
        return found, replace(it, beta=np.ones_like(it.beta)) if len(it.v) == 1 else it


class DropsDiagonalOf32(DropsDiagonal):
    """Aqk without its diagonal in chunks of 32."""

    def seen(self, chunk: int) -> np.ndarray:
        return np.tri(chunk, k=-int(chunk == 32), dtype=bool)


@dataclass(frozen=True)
class Wrong:
    """A wrong kernel, for one op, and what must be said of it.

    kind: what heads the report on the smallest failure. stage: what the stage report on it begins with. Either may be
    one of several. hint: the fault that it names; "" where there is none to tell.
    """

    op: str
    kernel: type[Delta]
    kind: str | tuple[str, ...]
    stage: str | tuple[str, ...] = ""
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.kernel.__name__}"


_VALUES, _NAN = "WRONG VALUES", "NAN/INF"
_RECURRENT, _CHUNK = "gated_delta_net", "gated_delta_net_chunk"
_SHARED = "value heads share key heads the other way"

WRONG: tuple[Wrong, ...] = (
    Wrong(_RECURRENT, DecaysLate, _VALUES, "states", "the state decays after the update instead of before it"),
    Wrong(_RECURRENT, ReadsEarly, _VALUES, "out", "out reads the state before the token's update"),
    Wrong(_RECURRENT, WithoutBeta, _VALUES, "delta", "β is left out"),
    Wrong(_RECURRENT, TransposesState, _VALUES, "delta", "the initial state is read transposed"),
    Wrong(_RECURRENT, WritesStateTransposed, _VALUES, "state_out", "state_out is written transposed"),
    Wrong(_RECURRENT, SharesHeadsOtherwise, _VALUES, ("states", "out"), _SHARED),  # as k or only q differs among heads
    Wrong(_RECURRENT, SwapsSequences, _VALUES, "out", "the sequences are in the wrong order"),
    Wrong(_RECURRENT, OldestFirst, _VALUES, "state_out", "the snapshots stand oldest first"),
    Wrong(_RECURRENT, IgnoresState, _VALUES),
    Wrong(_RECURRENT, WithoutScale, _VALUES, "out", "scale is left out"),
    Wrong(_RECURRENT, WithoutNorm, _VALUES, "q_norm", "q and k are not normalised"),
    Wrong(_RECURRENT, TurnsGate, (_VALUES, "NAN/INF"), "decay"),
    Wrong(_CHUNK, WithoutBeta, _VALUES, "w", "β is left out"),
    Wrong(_CHUNK, SharesHeadsOtherwise, _VALUES, "Aqk", _SHARED),
    Wrong(_CHUNK, TransposesState, _VALUES, "v_new", "the initial state is read transposed"),
    Wrong(_CHUNK, SwapsSequences, _VALUES, "out", "the sequences are in the wrong order"),
    Wrong(_CHUNK, UnguardedExp, _NAN, "Aqk"),
    Wrong(_CHUNK, Unmasked, _VALUES, "states"),
    Wrong(_CHUNK, RunsOn, _NAN, "states"),
    Wrong(_CHUNK, DropsDiagonal, _VALUES, "Aqk", "the diagonal of Aqk is left out"),
    Wrong(_CHUNK, PlacesFirstOnly, _VALUES, "Aqk: Σ q_i k_j e^(G_i − G_j), i ≥ j, its 16×16 blocks placed with ACC"),
    Wrong(_CHUNK, SolvesHalf, _VALUES, "w"),
    Wrong(_CHUNK, RestartsChunks, _VALUES, "", "each chunk starts from the initial state"),
)
