"""Ops that shift elements, cut images into windows, make numbers, pool and convolve, in torch's terms."""

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


def upscale(case: Case, tensors: Tensors) -> torch.Tensor:
    """torch's own interpolation of planes; the outer axes, and what it does not have, by whole numbers."""
    import torch

    x, out, mode = tensors["x"], tensors["out"], str(case.params["mode"])
    kind, _, more = mode.partition("+")
    for axis in range(2 if kind != "nearest" else 4):
        n, m = x.shape[axis], out.shape[axis]
        if axis > 1 and more and n > 1 and m > 1:
            n, m = n - 1, m - 1
        at = torch.arange(out.shape[axis], device=x.device) * n // m
        x = x.index_select(axis, at.clamp(max=x.shape[axis] - 1))
    if kind == "nearest":
        return x
    flags = {"align_corners": more == "align_corners", "antialias": more == "antialias"}
    return torch.nn.functional.interpolate(x, tuple(out.shape[2:]), mode=kind, **flags)


# --- windows ---


def _pair(case: Case, name: str, number: int = 2) -> tuple[int, ...]:
    """A parameter along each axis, the outermost first, as torch has them."""
    return tuple(_number(case, f"{name}{axis}") for axis in reversed(range(number)))


def _unfolded(case: Case, x: torch.Tensor, kernel: tuple[int, ...]) -> torch.Tensor:
    """torch's own windows of images, [n, (c, j, i), place], in float32."""
    import torch

    where = {"padding": _pair(case, "p"), "dilation": _pair(case, "d"), "stride": _pair(case, "s")}
    if not case.params["is_2d"]:
        where = {name: (1 if name != "padding" else 0, pair[1]) for name, pair in where.items()}
    return torch.nn.functional.unfold(x.float(), kernel, **where)


def im2col(case: Case, tensors: Tensors) -> torch.Tensor:
    """Windows as rows."""
    x, kernel, out = tensors["x"], tensors["kernel"].shape, tensors["out"]
    if case.params["is_2d"]:
        rows = _unfolded(case, x, tuple(kernel[-2:]))
    else:
        rows = _unfolded(case, x[0].unsqueeze(2), (1, kernel[-1]))
    return rows.transpose(1, 2).reshape(out.shape).to(out.dtype)


def im2col_3d(case: Case, tensors: Tensors) -> torch.Tensor:
    """Windows as rows, by views of the padded volumes: torch unfolds images only."""
    import torch

    x, out, channels = tensors["x"], tensors["out"], _number(case, "ic")
    kernel = tensors["kernel"].shape[1:]
    pads = [_number(case, f"p{axis}") for axis in (0, 0, 1, 1, 2, 2)]
    x = torch.nn.functional.pad(x.reshape(-1, channels, *x.shape[1:]), pads)
    for axis, (k, s, d) in enumerate(zip(kernel, _pair(case, "s", 3), _pair(case, "d", 3))):
        x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    return x.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(out.shape).to(out.dtype)


def im2col_back(case: Case, tensors: Tensors) -> torch.Tensor:
    """The gradient of im2col, which torch takes of its own unfold."""
    import torch

    x, kernel, out = tensors["x"], tensors["kernel"].shape, tensors["out"]
    where = {"padding": _pair(case, "p"), "dilation": _pair(case, "d"), "stride": _pair(case, "s")}
    if not case.params["is_2d"]:
        where = {name: (1 if name != "padding" else 0, pair[1]) for name, pair in where.items()}
        _, images, places, taps = x.shape
        rows, size, kernel = x.reshape(images, places, taps), (1, out.shape[3]), (1, kernel[3])
    else:
        rows, size = x.reshape(x.shape[0], -1, x.shape[3]), tuple(out.shape[2:])
    folded = torch.nn.functional.fold(rows.transpose(1, 2), size, tuple(kernel[-2:]), **where)
    return folded.reshape(out.shape)


def col2im_1d(case: Case, tensors: Tensors) -> torch.Tensor:
    """Columns added up in float32."""
    import torch

    x, out = tensors["x"][0, 0].float(), tensors["out"]
    channels, length = out.shape[2:]
    k, stride, padding = x.shape[1] // channels, _number(case, "s0"), _number(case, "p0")
    columns = x.T.reshape(1, channels * k, x.shape[0])
    where = {"padding": (0, padding), "stride": (1, stride)}
    return torch.nn.functional.fold(columns, (1, length), (1, k), **where).reshape(out.shape).to(out.dtype)


def pool(case: Case, tensors: Tensors) -> torch.Tensor:
    """Windows by views of the padded planes: torch's own pools take less padding than ggml's."""
    import torch

    x, number = tensors["x"].float(), 2 if "k1" in case.params else 1
    is_max = case.params["kind"] == "max"
    pads = [_number(case, f"p{axis}") for axis in range(number) for _ in (0, 1)]
    found = torch.nn.functional.pad(x, pads, value=torch.finfo(torch.float32).min if is_max else 0.0)
    there = torch.nn.functional.pad(torch.ones_like(x[:1, :1]), pads)
    for axis in range(number):
        k, s = _number(case, f"k{number - 1 - axis}"), _number(case, f"s{number - 1 - axis}")
        found, there = (it.unfold(4 - number + axis, k, s) for it in (found, there))
    inner = tuple(range(4, 4 + number))
    if is_max:
        return found.amax(inner)
    size = there.sum(inner).clamp_min(1) if number == 1 else float(_number(case, "k0") * _number(case, "k1"))
    return found.sum(inner) / size


def pool_2d_back(case: Case, tensors: Tensors) -> torch.Tensor:
    """What torch's autograd makes of a pool."""
    import torch

    x, y = tensors["x"], tensors["y"].clone().requires_grad_()
    pads = [_number(case, f"p{axis}") for axis in (0, 0, 1, 1)]
    kernel, stride = _pair(case, "k"), _pair(case, "s")
    if case.params["kind"] == "max":
        padded = torch.nn.functional.pad(y, pads, value=-torch.inf)
        found = torch.nn.functional.max_pool2d(padded, kernel, stride)
    else:
        found = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(y, pads), kernel, stride)
    (gradient,) = torch.autograd.grad(found, y, x)
    return gradient


# --- convolutions ---


def conv_2d(case: Case, tensors: Tensors) -> torch.Tensor:
    """torch's convolution, in float32; channel by channel with a group for each."""
    import torch

    x, groups = tensors["x"], tensors["x"].shape[1] if case.op == "conv_2d_dw" else 1
    stride, padding, dilation = (_pair(case, name) for name in "spd")
    return torch.nn.functional.conv2d(x, tensors["kernel"].float(), None, stride, padding, dilation, groups)


def conv_3d(case: Case, tensors: Tensors) -> torch.Tensor:
    """The same over volumes."""
    import torch

    n, c, outs = (_number(case, name) for name in ("n", "c", "oc"))
    x, kernel = tensors["x"], tensors["kernel"].float()
    stride, padding, dilation = (_pair(case, name, 3) for name in "spd")
    x, kernel = x.reshape(n, c, *x.shape[1:]), kernel.reshape(outs, c, *kernel.shape[1:])
    return torch.nn.functional.conv3d(x, kernel, None, stride, padding, dilation).reshape(tensors["out"].shape)


def conv_transpose_1d(case: Case, tensors: Tensors) -> torch.Tensor:
    """torch's transposed convolution, in float32."""
    import torch

    x, kernel = tensors["x"][0], tensors["kernel"][0].float()
    return torch.nn.functional.conv_transpose1d(x, kernel, stride=_number(case, "s0"))[None]


def conv_transpose_2d(case: Case, tensors: Tensors) -> torch.Tensor:
    """The same over images."""
    import torch

    kernel = tensors["kernel"].float()
    return torch.nn.functional.conv_transpose2d(tensors["x"], kernel, stride=_number(case, "stride"))


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
    "upscale": upscale,
    "im2col": im2col,
    "im2col_3d": im2col_3d,
    "im2col_back": im2col_back,
    "col2im_1d": col2im_1d,
    "pool_1d": pool,
    "pool_2d": pool,
    "pool_2d_back": pool_2d_back,
    "conv_2d": conv_2d,
    "conv_2d_dw": conv_2d,
    "conv_3d": conv_3d,
    "conv_transpose_1d": conv_transpose_1d,
    "conv_transpose_2d": conv_transpose_2d,
}
