"""RWKV_WKV6, RWKV_WKV7, GATED_LINEAR_ATTN and SSM_SCAN in float32, and wrong ones with the hint of each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from tests.kernels.base import F32, Fault, Kernel

#: A token's number and the state before it, to its output and the state after it.
Step = Callable[[int, F32], tuple[F32, F32]]


class Recurrence(Kernel):
    """Right ones. States have shape [sequences, heads, rows, columns]."""

    name = "recurrence"

    def rwkv_wkv6(self, case: Case, buffers: Buffers) -> None:
        x = self.by_sequence(case, buffers, "r")
        bonus = x["tf"][0, 0, :, :, None]

        def step(t: int, state: F32) -> tuple[F32, F32]:
            added = outer(x["k"][:, t], x["v"][:, t])
            after = self.updated(state, x["td"][:, t, :, :, None], added)
            seen = self.seen_early(state, after) + bonus * added
            return (seen * x["r"][:, t, :, :, None]).sum(-2), after

        self.walk(case, buffers, x["state"], x["r"].shape[1], step)

    def rwkv_wkv7(self, case: Case, buffers: Buffers) -> None:
        x = self.by_sequence(case, buffers, "r")

        def step(t: int, state: F32) -> tuple[F32, F32]:
            along = (state * x["a"][:, t, :, None]).sum(-1)
            added = outer(x["v"][:, t], x["k"][:, t]), outer(along, x["b"][:, t])
            after = self.updated(state, x["w"][:, t, :, None], *added)
            return (self.seen_late(state, after) * x["r"][:, t, :, None]).sum(-1), after

        self.walk(case, buffers, x["state"], x["r"].shape[1], step)

    def gated_linear_attn(self, case: Case, buffers: Buffers) -> None:
        x = self.by_sequence(case, buffers, "q")
        scale = np.float32(case.params["scale"])

        def step(t: int, state: F32) -> tuple[F32, F32]:
            after = self.updated(state, x["g"][:, t, :, :, None], outer(x["k"][:, t], x["v"][:, t]))
            return (self.seen_late(state, after) * (x["q"][:, t] * scale)[..., None]).sum(-2), after

        self.walk(case, buffers, x["state"], x["q"].shape[1], step)

    def ssm_scan(self, case: Case, buffers: Buffers) -> None:
        x = {name: self.read(buffers, name) for name in case.inputs}
        groups = np.repeat(np.arange(x["b"].shape[2]), x["x"].shape[2] // x["b"].shape[2])
        b, c = x["b"][:, :, groups], x["c"][:, :, groups]
        delta = np.log1p(np.exp(x["dt"][0].astype(np.float64))).astype(np.float32)

        def step(t: int, state: F32) -> tuple[F32, F32]:
            decay = np.exp(delta[:, t, :, None] * x["a"][0])[:, :, None]
            after = self.updated(state, decay, outer(x["x"][:, t] * delta[:, t, :, None], b[:, t]))
            return (self.seen_late(state, after) * c[:, t, :, None]).sum(-1), after

        self.walk(case, buffers, x["state"][x["ids"].reshape(-1)], x["x"].shape[1], step)

    def by_sequence(self, case: Case, buffers: Buffers, query: str) -> dict[str, F32]:
        """The arguments as [sequences, tokens, heads, size], and the state; those of heads alone as they are."""
        _, total, heads, size = case.inputs[query].shape
        x = {name: self.read(buffers, name) for name in case.inputs}
        sequences = x["state"].shape[2]
        shape = (sequences, total // sequences, heads, size)
        found = {name: its if name == "tf" else its.reshape(shape) for name, its in x.items() if name != "state"}
        return {**found, "state": x["state"].reshape(sequences, heads, size, size)}

    def walk(self, case: Case, buffers: Buffers, state: F32, tokens: int, step: Step) -> None:
        state = first = self.first_state(state)
        outs = []
        for t in range(tokens):
            out, state = step(t, self.carried(state, first))
            outs.append(out)
        self.write(buffers, "out", np.stack(outs, 1).reshape(case.outputs["out"].shape))
        self.write(buffers, "state_out", state.reshape(case.outputs["state_out"].shape))

    def first_state(self, state: F32) -> F32:
        return state

    def carried(self, state: F32, first: F32) -> F32:
        """The state that a token starts from."""
        return state

    def updated(self, state: F32, decay: F32, *added: F32) -> F32:
        return sum(added, state * decay)

    def seen_early(self, before: F32, after: F32) -> F32:
        """The state that an output is made of, where it is that before the token."""
        return before

    def seen_late(self, before: F32, after: F32) -> F32:
        """The same, where it is that after the token."""
        return after


def outer(rows: F32, columns: F32) -> F32:
    return rows[..., :, None] * columns[..., None, :]


class AddsBackwards(Recurrence):
    """Right too: the state comes last of what is added up."""

    def updated(self, state: F32, decay: F32, *added: F32) -> F32:
        first, *rest = added[::-1]
        return sum([*rest, state * decay], first)


# --- wrong ones ---


class IgnoresState(Recurrence):
    def first_state(self, state: F32) -> F32:
        return np.zeros_like(state)


class CarriesNothing(Recurrence):
    def carried(self, state: F32, first: F32) -> F32:
        return first


class DecaysLate(Recurrence):
    def updated(self, state: F32, decay: F32, *added: F32) -> F32:
        return sum(added, state) * decay


class NeverDecays(Recurrence):
    def updated(self, state: F32, decay: F32, *added: F32) -> F32:
        return sum(added, state)


class ReadsOtherState(Recurrence):
    """The output is made of the state after the token in place of that before it, or the other way round."""

    def seen_early(self, before: F32, after: F32) -> F32:
        return after

    def seen_late(self, before: F32, after: F32) -> F32:
        return before


class DoublesOutput(Recurrence):
    """No hint knows it."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        super().write(buffers, name, 2 * values if name == "out" else values)


OPS = ("rwkv_wkv6", "rwkv_wkv7", "gated_linear_attn", "ssm_scan")


FAULTS = tuple(
    Fault(op, kernel, hint)
    for op in OPS
    for kernel, hint in (
        (IgnoresState, "the initial state is ignored: taken as 0"),
        (CarriesNothing, "every token starts from the initial state: none is carried on"),
        (DecaysLate, "the state decays after the update instead of before it"),
        (NeverDecays, "the state does not decay"),
        (ReadsOtherState, f"the output reads the state {'after' if op == 'rwkv_wkv6' else 'before'} the token"),
        (DoublesOutput, ""),
    )
)
