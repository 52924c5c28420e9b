"""The small ops in torch's terms. Each takes the case's tensors by argument name, and has its row in `OPS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from opconform.backends.torch.ops import Tensors
from opconform.harness.model.case import Case

if TYPE_CHECKING:
    import torch


def tri(case: Case, tensors: Tensors) -> torch.Tensor:
    """One triangle of x, with the diagonal or without it."""
    kind = str(case.params["kind"])
    without = not kind.endswith("_diag")
    if kind.startswith("lower"):
        return tensors["x"].tril(-1 if without else 0)
    return tensors["x"].triu(1 if without else 0)


def diag(case: Case, tensors: Tensors) -> torch.Tensor:
    """x along the diagonals of square matrices."""
    import torch

    return torch.diag_embed(tensors["x"].squeeze(2))


def pad(case: Case, tensors: Tensors) -> torch.Tensor:
    """x with zeros around it: torch counts axes from the innermost, as the parameters do."""
    import torch

    sizes = [int(case.params[f"{side}{k}"]) for k in range(4) for side in ("lp", "rp")]
    return torch.nn.functional.pad(tensors["x"], sizes)


def l2_norm(case: Case, tensors: Tensors) -> torch.Tensor:
    """Rows over their norm; eps a lower limit of it, or added to its square."""
    x, eps = tensors["x"], float(case.params["eps"])
    if case.params["eps_mode"] == "max":
        return x / x.square().sum(-1, keepdim=True).sqrt().clamp_min(eps)
    return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()


def ssm_conv(case: Case, tensors: Tensors) -> torch.Tensor:
    """A convolution with a group for each channel (torch's conv1d slides the filter without turning it round)."""
    import torch

    x, c = tensors["x"][0], tensors["c"][0, 0]
    if x.numel() == 0 or c.shape[-1] > x.shape[-1]:
        return torch.zeros_like(tensors["out"])
    found = torch.nn.functional.conv1d(x, c[:, None, :], groups=c.shape[0])
    return found.transpose(1, 2)[None]


def sum_rows(case: Case, tensors: Tensors) -> torch.Tensor:
    """The sum of each row."""
    return tensors["x"].sum(-1, keepdim=True)


def cpy(case: Case, tensors: Tensors) -> torch.Tensor:
    """x in flat order, in the output's shape and type."""
    out = tensors["out"]
    return tensors["x"].reshape(out.shape).to(out.dtype)


def cont(case: Case, tensors: Tensors) -> torch.Tensor:
    """x, packed."""
    return tensors["x"].contiguous()


def add(case: Case, tensors: Tensors) -> torch.Tensor:
    """a + b, b repeated over a."""
    return tensors["a"] + repeated(tensors)


def mul(case: Case, tensors: Tensors) -> torch.Tensor:
    """a · b, b repeated over a."""
    return tensors["a"] * repeated(tensors)


def repeated(tensors: Tensors) -> torch.Tensor:
    """b as often as a has it; torch itself repeats only one element."""
    a, b = tensors["a"], tensors["b"]
    return b.tile([n // max(m, 1) for n, m in zip(a.shape, b.shape)])


def exp(case: Case, tensors: Tensors) -> torch.Tensor:
    """e^x."""
    return tensors["x"].exp()


def scale(case: Case, tensors: Tensors) -> torch.Tensor:
    """scale · x + bias, in float32 and rounded to the type of x once."""
    x = tensors["x"]
    return (x.float() * float(case.params["scale"]) + float(case.params["bias"])).to(x.dtype)


def clamp(case: Case, tensors: Tensors) -> torch.Tensor:
    """x between min and max."""
    return tensors["x"].clamp(float(case.params["min"]), float(case.params["max"]))


def silu(case: Case, tensors: Tensors) -> torch.Tensor:
    """x times its sigmoid."""
    import torch

    return torch.nn.functional.silu(tensors["x"])


def norm(case: Case, tensors: Tensors) -> torch.Tensor:
    """Rows less their mean, over their standard deviation."""
    x = tensors["x"]
    apart = x - x.mean(-1, keepdim=True)
    return apart * (apart.square().mean(-1, keepdim=True) + float(case.params["eps"])).rsqrt()


def rms_norm(case: Case, tensors: Tensors) -> torch.Tensor:
    """Rows over the root of their mean square."""
    x = tensors["x"]
    return x * (x.square().mean(-1, keepdim=True) + float(case.params["eps"])).rsqrt()


def sub(case: Case, tensors: Tensors) -> torch.Tensor:
    """a − b, b repeated over a."""
    return tensors["a"] - repeated(tensors)


def div(case: Case, tensors: Tensors) -> torch.Tensor:
    """a / b, b repeated over a."""
    return tensors["a"] / repeated(tensors)


def mean(case: Case, tensors: Tensors) -> torch.Tensor:
    """The mean of each row."""
    return tensors["x"].mean(-1, keepdim=True)


OPS: Mapping[str, Callable[[Case, Tensors], torch.Tensor]] = {
    "tri": tri,
    "diag": diag,
    "pad": pad,
    "cont": cont,
    "cpy": cpy,
    "ssm_conv": ssm_conv,
    "add": add,
    "mul": mul,
    "sub": sub,
    "div": div,
    "mean": mean,
    "scale": scale,
    "clamp": clamp,
    "exp": exp,
    "silu": silu,
    "sum_rows": sum_rows,
    "l2_norm": l2_norm,
    "norm": norm,
    "rms_norm": rms_norm,
}
