"""Wrong backends whose fault shows in large counts, in two long axes, in long rows, in heads and tokens of a real
size, or in special values, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import DType, Mask, Raw
from opconform.harness.model.numerics import EXACT
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Backend, Device
from tests.backends.sample import Good
from tests.kernels.base import F32
from tests.kernels.delta import Arguments, Delta
from tests.kernels.mla import Mla

GRID = 65535


class OnNumPy:
    """Lists one device."""

    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        return [Device("0", f"NumPy, {cls.__name__}", {"numpy": np.__version__})]


# --- counts ---


class WritesUpTo(Good):
    """What lies past so many rows, matrices or planes is not written."""

    most = GRID
    axis = 2  #: of the output, outermost first

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        kept = (slice(None),) * self.axis + (slice(self.most),)
        buffers.array(name)[kept] = values[kept]


class Rows4096(WritesUpTo):
    most = 4096


class Rows65535(WritesUpTo):
    pass


class Planes65535(WritesUpTo):
    axis = 1


class Outermost65535(WritesUpTo):
    axis = 0


# --- any op, by its reference ---


class ByReference(OnNumPy, Backend):
    """Right for any op: it rounds what the reference says, and writes the bits where they are known.

    `written` and `kept` are the places for a fault.
    """

    def supports(self, case: Case) -> str | None:
        blocks = any(its.type.block > 1 for its in case.outputs.values())
        return "blocks are not written" if blocks else None

    def run(self, case: Case, buffers: Buffers) -> None:
        raw = {name: np.array(buffers.raw(name)) for name in case.inputs}
        with np.errstate(all="ignore"):
            expected = ops()[case.op].expect(case, raw, EXACT)
            for name, layout in case.outputs.items():
                its = expected if name == "out" else expected.others[name]
                found = layout.type.encode(its.value)
                if its.exact is not None and its.bits is not None:
                    found = np.where(its.exact, its.bits, found)
                found = self.written(layout.type, found)
                buffers.raw(name)[self.kept(case)] = found[self.kept(case)]

    def written(self, dtype: DType, found: Raw) -> Raw:
        """What is written."""
        return found

    def kept(self, case: Case) -> tuple[slice, ...]:
        """The part of an output that is written."""
        return ()


class EndsAt(ByReference):
    """What lies past so many places along an axis of the output (outermost first) is not written."""

    axis, most = 2, GRID

    def kept(self, case: Case) -> tuple[slice, ...]:
        return (*(slice(None),) * self.axis, slice(self.most))


class EndsAtRow65535(EndsAt):
    pass


class EndsAtPlane65535(EndsAt):
    axis = 1


class EndsAtOutermost65535(EndsAt):
    axis = 0


class EndsAtOutermost4096(EndsAt):
    axis, most = 0, 4096


class EndsAtRow4096(EndsAt):
    most = 4096


class CapsInfinity(ByReference):
    """An infinity becomes the largest finite number."""

    def written(self, dtype: DType, found: Raw) -> Raw:
        if dtype.block > 1 or not dtype.is_float:
            return found
        x = dtype.decode(found)
        return np.where(np.isinf(x), dtype.encode(np.copysign(dtype.largest, x)), found).astype(found.dtype)


# --- two long axes, long rows ---


class SwapsWithinTiles(Good):
    """A transpose by tiles: in those beyond the first along both axes, two neighbouring columns are exchanged."""

    tile = 32

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        out, there = np.array(values), (..., slice(self.tile, None), slice(self.tile, self.tile + 2))
        out[there] = values[there][..., ::-1]
        super().write(buffers, name, out)


class SwapsWithinTiles64(SwapsWithinTiles):
    tile = 64


class ShortRows(Good):
    """The loop over a row ends after 2,048 elements."""

    def summed(self, x: F32) -> F32:
        return super().summed(x[..., :2048])

    def inclusive(self, case: Case, x: F32) -> F32:
        found = super().inclusive(case, x)
        found[2048:] = x[2048:]
        return found


# --- delta nets ---


class OddDelta(OnNumPy, Delta):
    """The right one; `token` and its like are the place for a fault."""


class SixteenHeads(OddDelta):
    """Heads from number 16 on read the keys of head 0."""

    def key_head(self, case: Case) -> np.ndarray:
        head = super().key_head(case)
        return np.where(np.arange(len(head)) < 16, head, 0)


class ThreeShare(OddDelta):
    """At most three value heads share a key head; others read the next one's."""

    def key_head(self, case: Case) -> np.ndarray:
        head = super().key_head(case)
        key_heads = case.inputs["k"].shape[2]
        return (head + (len(head) > 3 * key_heads)) % key_heads


class WideKeys(OddDelta):
    """Sums over K end at 128."""

    def order(self, n: int) -> range:
        return range(min(n, 128))


class LargeAndUneven(OddDelta):
    """K and V are mixed up, where both are above 64 and not the same."""

    def updated(self, k: F32, delta: F32, state: F32) -> F32:
        found = super().updated(k, delta, state)
        keys, width = state.shape[-2:]
        if min(keys, width) > 64 and keys != width:
            found[..., -1] = state[..., -1]
        return found


class ManyTokens(OddDelta):
    """After 64 tokens the state is no longer carried."""

    def token(self, it: Arguments, decay: F32, t: int, state: F32) -> tuple[F32, F32, F32]:
        return super().token(it, decay, t, state if t < 64 else np.zeros_like(state))


class ThirdChunk(OddDelta):
    """The third chunk and those after it begin with the initial state."""

    begun = 0

    def chunked(self, case: Case, buffers: Buffers) -> dict[str, np.ndarray]:
        self.begun = 0
        return super().chunked(case, buffers)

    def begins(self, it: Arguments, state: F32) -> F32:
        self.begun += 1
        return state if self.begun < 3 else it.state


class ManySnapshots(OddDelta):
    """Keeps the last seven states; older ones are the oldest of these."""

    def snapshots(self, states: list[F32], kept: int) -> list[F32]:
        found = super().snapshots(states, kept)
        return [*found[:7], *[found[min(6, len(found) - 1)]] * (len(found) - 7)]


class ManySequences(OddDelta):
    """Sequences from number 7 on begin with the state of the first."""

    def first_state(self, case: Case, x: Mapping[str, F32]) -> F32:
        state = np.array(super().first_state(case, x))
        state[7:] = state[:1]
        return state


class ManyHeads(OddDelta):
    """What lies past 65,535 heads of all sequences is not written."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        if name != "out":
            super().write(buffers, name, values)
            return
        sequences, _, heads, _ = values.shape
        number = np.arange(sequences)[:, None, None, None] * heads + np.arange(heads)[None, None, :, None]
        written = np.broadcast_to(number < GRID, values.shape)
        buffers.array(name)[written] = values[written]


class BetaUpTo1(OddDelta):
    """β is taken as 1 where it is more."""

    def delta(self, it: Arguments, t: int, seen: F32) -> F32:
        return self.mul(np.minimum(it.beta[:, t], np.float32(1)), self.add(it.v[:, t], -seen))


class GatesUpTo0(OddDelta):
    """A log gate is taken as 0 where it is more."""

    def exp(self, x: F32) -> F32:
        return super().exp(np.minimum(x, np.float32(0)))


# --- latent attention ---


class OddMla(OnNumPy, Mla):
    """The right one."""


class DecodesWithOneHead(OddMla):
    """For a single query all heads read the first one's rotary part."""

    def scores(self, case: Case, q: F32, q_pe: F32, c: F32, k_pe: F32) -> F32:
        return super().scores(case, q, q_pe[:, :1] if q.shape[2] == 1 else q_pe, c, k_pe)


class SixteenHeadsOfMla(OddMla):
    """Heads from number 16 on read the rotary part of head 0."""

    def scores(self, case: Case, q: F32, q_pe: F32, c: F32, k_pe: F32) -> F32:
        q_pe = np.concatenate([q_pe[:, :16], np.broadcast_to(q_pe[:, :1], q_pe[:, 16:].shape)], 1)
        return super().scores(case, q, q_pe, c, k_pe)


class ShortCache(OddMla):
    """Rows from number 512 on are not seen."""

    def seen(self, case: Case, x: Mapping[str, F32]) -> Mask:
        seen = np.array(super().seen(case, x))
        seen[..., 512:] = False
        return seen


# --- values ---


class LosesInfinity(Good):
    """An infinity becomes the largest finite number, as it does where kernels are compiled for finite numbers only."""

    def read(self, buffers: Buffers, name: str) -> np.ndarray:
        x = super().read(buffers, name)
        if x.dtype.kind != "f":
            return x
        largest = np.finfo(x.dtype).max
        return np.where(np.isinf(x), np.copysign(largest, x), x)


class RoundsNan(Good):
    """float32 becomes bf16 by adding half a unit, without a look at NaN: one with all bits set becomes −0."""

    def narrowed(self, goes: str, x: F32) -> np.ndarray:
        if goes != "bf16":
            return super().narrowed(goes, x)
        bits = x.view(np.uint32)
        with np.errstate(over="ignore"):
            return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype(np.uint16)


class EndsAt65504(Good):
    """A float32 beyond the largest f16 becomes that; below half of the smallest one, 0 is right."""

    def narrowed(self, goes: str, x: F32) -> np.ndarray:
        return super().narrowed(goes, np.clip(x, -65504, 65504) if goes == "f16" else x)


class SumsInHalf(Good):
    """Addends beyond 65504 count as that."""

    def summed(self, x: F32) -> F32:
        return super().summed(np.clip(x, -65504, 65504))


@dataclass(frozen=True)
class Missed:
    """An op, and a backend that is wrong for it in sizes or values that few cases have."""

    op: str
    backend: str

    def __str__(self) -> str:
        return f"{self.op}-{self.backend}"


MISSED: tuple[Missed, ...] = tuple(
    Missed(op, backend)
    for backend, ops in {
        "Rows4096": ("acc", "cumsum", "cpy"),
        "Rows65535": ("acc", "set", "cumsum", "cont", "l2_norm"),
        "Planes65535": ("cumsum", "tri", "solve_tri", "ssm_conv"),
        "Outermost65535": ("cont", "tri", "cpy"),
        "EndsAtRow65535": ("mul_mat", "get_rows"),
        "EndsAtPlane65535": ("mul_mat_id", "rope"),
        "EndsAtOutermost65535": ("set_rows",),
        "EndsAtOutermost4096": ("flash_attn_ext", "conv_2d"),
        "EndsAtRow4096": ("rope_set_rows", "rwkv_wkv6", "ssm_scan"),
        "CapsInfinity": ("concat", "get_rows", "set_rows"),
        "SwapsWithinTiles": ("cont", "cpy", "solve_tri"),
        "SwapsWithinTiles64": ("cont", "cpy"),
        "ShortRows": ("cumsum", "sum_rows", "l2_norm"),
        "SixteenHeads": ("gated_delta_net", "gated_delta_net_chunk"),
        "ThreeShare": ("gated_delta_net", "gated_delta_net_chunk"),
        "WideKeys": ("gated_delta_net", "gated_delta_net_chunk"),
        "LargeAndUneven": ("gated_delta_net",),
        "ManyTokens": ("gated_delta_net",),
        "ThirdChunk": ("gated_delta_net_chunk",),
        "ManySnapshots": ("gated_delta_net",),
        "ManySequences": ("gated_delta_net", "gated_delta_net_chunk"),
        "ManyHeads": ("gated_delta_net",),
        "BetaUpTo1": ("gated_delta_net",),
        "GatesUpTo0": ("gated_delta_net",),
        "DecodesWithOneHead": ("mla_absorbed",),
        "SixteenHeadsOfMla": ("mla_absorbed",),
        "ShortCache": ("mla_absorbed",),
        "LosesInfinity": ("cpy",),
        "RoundsNan": ("cpy",),
        "EndsAt65504": ("cpy",),
        "SumsInHalf": ("sum_rows",),
    }.items()
    for op in ops
)

#: The right ones, by op.
RIGHT = {"gated_delta_net": "OddDelta", "mla_absorbed": "OddMla"}
