"""The gated delta rule in torch's terms, token by token and in chunks, with every stage that it goes through."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from opconform.backends.torch.ops import Tensors
from opconform.harness.model.case import Case

if TYPE_CHECKING:
    import torch

_BLOCK = 16  #: rows and columns of a block of Akk and Aqk in the blockwise form


class _Arguments(NamedTuple):
    """q and k as [B,T,H,K], one row per value head; the gate as the case has it; the first state as [B,H,K,V]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    state: torch.Tensor


def gated_delta_net(case: Case, tensors: Tensors) -> dict[str, torch.Tensor]:
    """The outputs and the stages before them, by name, one token after the other."""
    import torch

    found, it = _begin(case, tensors)
    decay = it.g
    if case.params["gate"] == "log":
        found["decay"] = decay = torch.exp(it.g)
    state, states, deltas, outs = it.state, [], [], []
    for t in range(it.v.shape[1]):
        state = decay[:, t].unsqueeze(-1) * state
        delta = it.beta[:, t] * (it.v[:, t] - _times(it.k[:, t], state))
        state = state + it.k[:, t].unsqueeze(-1) * delta.unsqueeze(-2)
        states.append(state)
        deltas.append(delta)
        outs.append(_times(it.q[:, t], state) * float(case.params["scale"]))
    found |= {name: torch.stack(rows, 1) for name, rows in (("delta", deltas), ("states", states), ("out", outs))}
    kept = int(case.params["snapshots"])
    newest_first = states[: -kept - 1 : -1]
    newest_first += [torch.zeros_like(state)] * (kept - len(newest_first))
    return {**found, "state_out": _stored(case, torch.cat(newest_first))}


def gated_delta_net_chunk(case: Case, tensors: Tensors) -> dict[str, torch.Tensor]:
    """The outputs and the stages before them, by name, one chunk after the other.

    Only G_i − G_j with i ≥ j is exponentiated. Tokens beyond the last one are zeros, which change nothing.
    """
    import torch

    found, it = _begin(case, tensors)
    chunk, tokens = int(case.params["chunk"]), it.v.shape[1]
    q, k, v, g, beta = (_cut(x, chunk) for x in it[:5])
    if case.params["gate"] == "decay":
        g = _cut(torch.log(it.g), chunk)
    sums = torch.cumsum(g, -2)
    if g.shape[-1] == 1:
        found["decay"] = _decay(sums, sums).squeeze(-1)
    blockwise = case.params["form"] == "blockwise"
    products = _products_by_block if blockwise else _products
    add = case.params["place"] == "acc"
    akk = products(k * beta, k, sums, add).tril(-1)
    aqk = products(q, k, sums, add).tril()
    from_start = torch.exp(sums)
    to_end = torch.exp(sums[..., -1:, :] - sums)
    w = _solved(akk, beta * from_start * k)
    u = _solved(akk, beta * v)
    state, states, news, outs = it.state, [], [], []
    for n in range(v.shape[2]):
        new = u[:, :, n] - w[:, :, n] @ state
        out = (q[:, :, n] * from_start[:, :, n]) @ state + aqk[:, :, n] @ new
        outs.append(out * float(case.params["scale"]))
        state = from_start[:, :, n, -1].unsqueeze(-1) * state + (k[:, :, n] * to_end[:, :, n]).mT @ new
        states.append(state)
        news.append(new)
    found |= {"G": sums, "Akk": akk, "Aqk": aqk, "w": w, "u": u}
    found |= {"v_new": torch.stack(news, 2), "states": torch.stack(states, 2)}
    return {**found, "out": _joined(torch.stack(outs, 2), tokens), "state_out": _stored(case, state)}


def _begin(case: Case, tensors: Tensors) -> tuple[dict[str, torch.Tensor], _Arguments]:
    """The stages q_norm and k_norm, if the case has them, and the arguments as the rule reads them."""
    import torch

    found, q, k, v = {}, tensors["q"], tensors["k"], tensors["v"]
    if case.params["l2norm"]:
        eps = float(case.params["eps"])
        q, k = (x / torch.sqrt((x * x).sum(-1, keepdim=True) + eps) for x in (q, k))
        found = {"q_norm": q, "k_norm": k}
    shared = v.shape[2] // k.shape[2]
    if case.params["heads"] == "tiled":
        q, k = (x.repeat(1, 1, shared, 1) for x in (q, k))
    else:
        q, k = (x.repeat_interleave(shared, 2) for x in (q, k))
    if "state" in tensors:
        state = tensors["state"] if case.params["state_layout"] == "kv" else tensors["state"].mT
    else:
        state = torch.zeros((v.shape[0], v.shape[2], k.shape[3], v.shape[3]), device=v.device)
    return found, _Arguments(q, k, v, tensors["g"], tensors["beta"], state)


def _times(row: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """rowᵀ·state: [B,H,K] and [B,H,K,V] to [B,H,V]."""
    return (row.unsqueeze(-2) @ state).squeeze(-2)


def _stored(case: Case, state: torch.Tensor) -> torch.Tensor:
    return state if case.params["state_layout"] == "kv" else state.mT


def _cut(x: torch.Tensor, chunk: int) -> torch.Tensor:
    """[B,T,H,n] as [B,H,N,C,n], zeros beyond the last token."""
    import torch

    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % chunk))
    return padded.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1, chunk, x.shape[3])


def _joined(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """[B,H,N,C,n] as [B,T,H,n]."""
    return x.flatten(2, 3)[:, :, :tokens].transpose(1, 2)


def _decay(rows: torch.Tensor, columns: torch.Tensor, apart: int = 0) -> torch.Tensor:
    """e^{G_i − G_j}, 0 above the diagonal; the first of `rows` lies `apart` tokens after the first of `columns`."""
    import torch

    gaps = rows.unsqueeze(-2) - columns.unsqueeze(-3)
    above = torch.ones(gaps.shape[-3:-1], dtype=torch.bool, device=gaps.device).triu(1 + apart)
    return torch.exp(gaps.masked_fill(above.unsqueeze(-1), -torch.inf))


def _products(left: torch.Tensor, right: torch.Tensor, sums: torch.Tensor, add: bool = False) -> torch.Tensor:
    """Σ_d left_id right_jd e^{G_id − G_jd} for i ≥ j, all C×C at once."""
    return _weighed(left, right, _decay(sums, sums))


def _products_by_block(left: torch.Tensor, right: torch.Tensor, sums: torch.Tensor, add: bool) -> torch.Tensor:
    """The same from 16×16 blocks on and below the diagonal, each added to zeros or written over them."""
    import torch

    chunk = left.shape[-2]
    placed = torch.zeros((*left.shape[:-1], chunk), device=left.device)
    for i in range(0, chunk, _BLOCK):
        rows = slice(i, i + _BLOCK)
        for j in range(0, i + 1, _BLOCK):
            columns = slice(j, j + _BLOCK)
            decay = _decay(sums[..., rows, :], sums[..., columns, :], i - j)
            block = _weighed(left[..., rows, :], right[..., columns, :], decay)
            view = placed[..., rows, columns]
            view.add_(block) if add else view.copy_(block)
    return placed


def _weighed(left: torch.Tensor, right: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    if decay.shape[-1] == 1:
        return (left @ right.mT) * decay.squeeze(-1)
    return (left.unsqueeze(-2) * right.unsqueeze(-3) * decay).sum(-1)


def _solved(akk: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(I + Akk)^-1 right."""
    import torch

    return torch.linalg.solve_triangular(akk, right, upper=False, unitriangular=True)
