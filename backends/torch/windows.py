"""Ops that shift elements, cut images into windows, and make numbers, in torch's terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from opconform.backends.torch.ops import Tensors
from opconform.harness.model.case import Case

if TYPE_CHECKING:
    import torch


def _number(case: Case, name: str) -> int:
    return int(case.params[name])


def roll(case: Case, tensors: Tensors) -> torch.Tensor:
    """x moved on along each axis."""
    return tensors["x"].roll([_number(case, f"shift{k}") for k in (3, 2, 1, 0)], (0, 1, 2, 3))


def pad_reflect_1d(case: Case, tensors: Tensors) -> torch.Tensor:
    """Rows with their mirror images before and after them."""
    x, p0, p1 = tensors["x"], _number(case, "p0"), _number(case, "p1")
    n = x.shape[-1]
    import torch

    return torch.cat((x[..., 1 : p0 + 1].flip(-1), x, x[..., n - 1 - p1 : n - 1].flip(-1)), -1)


def pad_circular(case: Case, tensors: Tensors) -> torch.Tensor:
    """x again and again: elements are picked axis by axis, for torch's own circular pad goes round once only."""
    import torch

    x, out = tensors["x"], tensors["out"]
    for axis in range(4):
        at = torch.arange(out.shape[axis], device=x.device) - _number(case, f"lp{3 - axis}")
        x = x.index_select(axis, at.remainder(x.shape[axis]))
    return x


def win_part(case: Case, tensors: Tensors) -> torch.Tensor:
    """The padded image, seen as windows."""
    import torch

    x, w = tensors["x"][0], _number(case, "w")
    height, width, channels = x.shape
    x = torch.nn.functional.pad(x, (0, 0, 0, -width % w, 0, -height % w))
    parts = x.reshape(x.shape[0] // w, w, x.shape[1] // w, w, channels).permute(0, 2, 1, 3, 4)
    return parts.reshape(-1, w, w, channels)


def win_unpart(case: Case, tensors: Tensors) -> torch.Tensor:
    """Windows side by side, less what stands beyond the image."""
    x, w, width, height = tensors["x"], _number(case, "w"), _number(case, "w0"), _number(case, "h0")
    across, down = -(-width // w), -(-height // w)
    whole = x.reshape(down, across, w, w, x.shape[-1]).permute(0, 2, 1, 3, 4)
    return whole.reshape(1, down * w, across * w, x.shape[-1])[:, :height, :width]


def get_rel_pos(case: Case, tensors: Tensors) -> torch.Tensor:
    """Rows of x by the distance of two places."""
    import torch

    x, out = tensors["x"][0, 0], tensors["out"]
    place = torch.arange(out.shape[1], device=x.device)
    return x[place[:, None] - place[None, :] + out.shape[1] - 1][None].to(out.dtype)


def add_rel_pos(case: Case, tensors: Tensors) -> torch.Tensor:
    """a and what belongs to the rows and to the columns of the window."""
    a, pw, ph = tensors["a"], tensors["pw"], tensors["ph"]
    n = pw.shape[-1]
    count, queries = a.shape[1:3]
    whole = a.reshape(count, queries, n, n) + ph.reshape(count, queries, n, 1) + pw.reshape(count, queries, 1, n)
    return whole.reshape(a.shape)


def arange(case: Case, tensors: Tensors) -> torch.Tensor:
    """start + step·i, in float32."""
    import torch

    out = tensors["out"]
    i = torch.arange(out.shape[-1], device=out.device, dtype=torch.float32)
    start, step = (torch.tensor(float(case.params[name]), device=out.device) for name in ("start", "step"))
    return (start + step * i).reshape(out.shape)


def fill(case: Case, tensors: Tensors) -> torch.Tensor:
    """One value everywhere."""
    import torch

    out = tensors["out"]
    return torch.full(out.shape, float(case.params["value"]), device=out.device, dtype=torch.float32).to(out.dtype)


def timestep_embedding(case: Case, tensors: Tensors) -> torch.Tensor:
    """Cosines, sines, and a zero at the end of rows of odd length."""
    import math

    import torch

    x, dim = tensors["x"].reshape(-1, 1), _number(case, "dim")
    half = dim // 2
    j = torch.arange(half, device=x.device, dtype=torch.float32)
    angle = x * torch.exp(-math.log(_number(case, "max_period")) * j / max(half, 1))
    found = torch.cat((angle.cos(), angle.sin(), x.new_zeros((len(x), dim % 2))), -1)
    return found[None, None]


OPS: Mapping[str, Callable[[Case, Tensors], torch.Tensor]] = {
    "roll": roll,
    "pad_reflect_1d": pad_reflect_1d,
    "pad_circular": pad_circular,
    "win_part": win_part,
    "win_unpart": win_unpart,
    "get_rel_pos": get_rel_pos,
    "add_rel_pos": add_rel_pos,
    "arange": arange,
    "fill": fill,
    "timestep_embedding": timestep_embedding,
}
