"""Products of matrices and selections of rows in torch's terms. Blocks are decoded first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from opconform.backends.torch.ops import Tensors
from opconform.harness.model.case import Case

if TYPE_CHECKING:
    import torch


def wide(case: Case, tensors: Tensors, name: str) -> torch.Tensor:
    """An argument in float32. Blocks come as bytes."""
    import torch

    found = tensors[name]
    if found.dtype != torch.uint8:
        return found.float()
    layout = case.inputs[name]
    raw = np.ascontiguousarray(found.cpu().numpy()).view(layout.type.raw)[..., 0]
    return torch.from_numpy(layout.type.decode(raw).astype(np.float32)).to(found.device)


def mul_mat(case: Case, tensors: Tensors) -> torch.Tensor:
    """b times a transposed; matrix i of b meets matrix i / r of a."""
    a, b = wide(case, tensors, "a"), wide(case, tensors, "b")
    for axis in (0, 1):
        a = a.repeat_interleave(b.shape[axis] // max(a.shape[axis], 1), axis)
    return b @ a.mT


def out_prod(case: Case, tensors: Tensors) -> torch.Tensor:
    """b transposed times a."""
    a, b = wide(case, tensors, "a"), tensors["b"]
    for axis in (0, 1):
        a = a.repeat_interleave(b.shape[axis] // max(a.shape[axis], 1), axis)
    return b.mT @ a


def mul_mat_id(case: Case, tensors: Tensors) -> torch.Tensor:
    """Each row of b times the transposed matrix that ids choose."""
    a, b, ids = wide(case, tensors, "a")[0], tensors["b"][0], tensors["ids"][0, 0].long()
    b = b.repeat(1, ids.shape[1] // max(b.shape[1], 1), 1)
    return (a[ids] @ b.unsqueeze(-1)).squeeze(-1)[None]


def get_rows(case: Case, tensors: Tensors) -> torch.Tensor:
    """The rows that b names, matrix by matrix."""
    import torch

    a = tensors["a"] if tensors["a"].dtype == torch.int32 else wide(case, tensors, "a")
    at = tensors["b"][0].long().unsqueeze(-1)
    return a.take_along_dim(at.expand(*at.shape[:-1], a.shape[-1]), 2)


def set_rows(case: Case, tensors: Tensors) -> torch.Tensor:
    """a with the rows of b where c says."""
    a, b, c = tensors["a"].clone(), tensors["b"], tensors["c"][0].long()
    c = c.repeat(b.shape[0] // max(c.shape[0], 1), b.shape[1] // max(c.shape[1], 1), 1).unsqueeze(-1)
    return a.scatter(2, c.expand(*c.shape[:-1], a.shape[-1]), b.to(a.dtype))


def add_id(case: Case, tensors: Tensors) -> torch.Tensor:
    """a and the rows of b that ids name."""
    return tensors["a"] + tensors["b"][0, 0][tensors["ids"][0, 0].long()]


def argsort(case: Case, tensors: Tensors) -> torch.Tensor:
    """The places in order."""
    return tensors["x"].argsort(-1, descending=case.params["order"] == "desc")


def top_k(case: Case, tensors: Tensors) -> torch.Tensor:
    """The places of the k largest."""
    return tensors["x"].topk(int(case.params["k"]), -1).indices


def argmax(case: Case, tensors: Tensors) -> torch.Tensor:
    """The place of the largest of each row."""
    return tensors["x"][0, 0].argmax(-1)[None, None, None]


def count_equal(case: Case, tensors: Tensors) -> torch.Tensor:
    """How many are equal."""
    return (tensors["a"] == tensors["b"]).sum().reshape(1, 1, 1, 1)


OPS: Mapping[str, Callable[[Case, Tensors], torch.Tensor]] = {
    "mul_mat": mul_mat,
    "mul_mat_id": mul_mat_id,
    "out_prod": out_prod,
    "get_rows": get_rows,
    "set_rows": set_rows,
    "add_id": add_id,
    "argsort": argsort,
    "top_k": top_k,
    "argmax": argmax,
    "count_equal": count_equal,
}
