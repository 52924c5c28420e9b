"""The ops in torch's terms. Each takes the case's tensors by argument name and returns a new tensor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from opconform.harness.model.case import Case

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]


@cache
def dtypes() -> dict[str, torch.dtype]:
    """torch's name for each of our element types."""
    import torch

    return {
        "f32": torch.float32,
        "f16": torch.float16,
        "bf16": torch.bfloat16,
        "f64": torch.float64,
        "i8": torch.int8,
        "i16": torch.int16,
        "i32": torch.int32,
        "i64": torch.int64,
    }


def acc(case: Case, tensors: Tensors) -> torch.Tensor:
    """a, with b added to the view of it."""
    packed = _packed(tensors["a"])
    _view(case, packed, tensors["b"]).add_(tensors["b"])
    return packed


def set_(case: Case, tensors: Tensors) -> torch.Tensor:
    """a, with b written over the view of it."""
    packed = _packed(tensors["a"])
    _view(case, packed, tensors["b"]).copy_(tensors["b"])
    return packed


def _packed(a: torch.Tensor) -> torch.Tensor:
    import torch

    return a.clone(memory_format=torch.contiguous_format)


def _view(case: Case, packed: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The elements of `packed` that b meets: nb1, nb2, nb3 and offset count bytes of a packed a."""
    size = packed.element_size()
    strides = [int(case.params[name]) // size for name in ("nb3", "nb2", "nb1")]
    return packed.as_strided(b.shape, [*strides, 1], int(case.params["offset"]) // size)


def cumsum(case: Case, tensors: Tensors) -> torch.Tensor:
    """Sums along one axis. Exclusive ones are those of x moved on by one place, never sum − x, which cancels."""
    import torch

    x = tensors["x"]
    axis = x.ndim - 1 - int(case.params["axis"])
    if case.params["reverse"]:
        x = x.flip(axis)
    if case.params["exclusive"] and x.numel():
        x = torch.cat((torch.zeros_like(x.narrow(axis, 0, 1)), x.narrow(axis, 0, x.shape[axis] - 1)), axis)
    sums = torch.cumsum(x, axis)
    return sums.flip(axis) if case.params["reverse"] else sums


def solve_tri(case: Case, tensors: Tensors) -> torch.Tensor:
    """The solution X of A X = B (left) or X A = B."""
    import torch

    params = case.params
    return torch.linalg.solve_triangular(
        tensors["a"],
        tensors["b"],
        upper=not params["lower"],
        left=bool(params["left"]),
        unitriangular=bool(params["unit"]),
    )
