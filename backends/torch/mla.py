"""Absorbed MLA in torch's terms, with every stage that it goes through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opconform.backends.torch.ops import Tensors
from opconform.harness.model.case import Case

if TYPE_CHECKING:
    import torch


def mla_absorbed(case: Case, tensors: Tensors) -> dict[str, torch.Tensor]:
    """The output and the stages before it, by name. Queries are absorbed first; heads share the rows of the cache."""
    import torch

    params = case.params
    kv_len, scale = int(params["kv_len"]), float(params["scale"]) * float(params["k_scale"])
    c, k_pe = (tensors[name].narrow(2, 0, kv_len).float() for name in ("c_kv", "k_pe"))
    q_pe, bias = tensors["q_pe"], _bias(case, tensors)
    q = torch.matmul(tensors["q_nope"], tensors["w_uk"])
    found = {"q_absorbed": q}
    if params["form"] == "flash":
        context = _flash(torch.cat((q, q_pe), -1), torch.cat((c, k_pe), -1), c, bias, scale)
    else:
        if params["form"] == "two_part":
            products = torch.matmul(q, c.mT) + torch.matmul(q_pe, k_pe.mT)
        else:
            products = torch.matmul(torch.cat((q, q_pe), -1), torch.cat((c, k_pe), -1).mT)
        scores = products * scale + bias
        weights = _where_seen(torch.softmax(scores, -1), bias)
        padding = (0, case.inputs["c_kv"].shape[2] - kv_len)
        found["scores"] = torch.nn.functional.pad(scores, padding, value=-torch.inf)
        found["weights"] = torch.nn.functional.pad(weights, padding)
        context = torch.matmul(weights, c)
    found["context"] = context * float(params["v_scale"])
    found["out"] = torch.matmul(found["context"], tensors["w_uv"]).transpose(1, 2)
    return found


def _bias(case: Case, tensors: Tensors) -> torch.Tensor:
    """What is added to the scores, [B or 1,1,T,kv_len]: the mask, and -inf for keys after their query."""
    import torch

    kv_len, queries = int(case.params["kv_len"]), case.inputs["q_nope"].shape[2]
    bias = torch.zeros((1, 1, queries, kv_len), device=tensors["q_nope"].device)
    if case.params["causal"]:
        later = torch.ones_like(bias, dtype=torch.bool).triu(kv_len - queries + 1)
        bias = bias.masked_fill(later, -torch.inf)
    return bias + tensors["mask"].narrow(3, 0, kv_len).float() if "mask" in tensors else bias


def _where_seen(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """0 for the queries that see no key: softmax has NaN there."""
    return x.masked_fill((bias == -float("inf")).all(-1, keepdim=True), 0.0)


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float) -> torch.Tensor:
    """torch's fused attention, whichever of its kernels takes values that are narrower than keys."""
    import torch

    if k.shape[2] == 0:
        return torch.zeros((*q.shape[:-1], v.shape[-1]), device=q.device)
    batch, heads = q.shape[:2]
    k, v = (x.expand(batch, heads, *x.shape[2:]) for x in (k, v))
    mask = bias.expand(batch, heads, *bias.shape[2:])
    found = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return _where_seen(found, bias)
