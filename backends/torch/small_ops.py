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


def concat(case: Case, tensors: Tensors) -> torch.Tensor:
    """a, then b."""
    import torch

    return torch.cat((tensors["a"], tensors["b"]), 3 - int(case.params["dim"]))


def repeat(case: Case, tensors: Tensors) -> torch.Tensor:
    """x as often as the output has it."""
    x = tensors["x"]
    return x.tile([n // max(m, 1) for n, m in zip(tensors["out"].shape, x.shape)])


def total(case: Case, tensors: Tensors) -> torch.Tensor:
    """The sum of all elements, in float32."""
    return tensors["x"].float().sum().reshape(1, 1, 1, 1).to(tensors["x"].dtype)


def group_norm(case: Case, tensors: Tensors) -> torch.Tensor:
    """Groups of channels less their mean, over their standard deviation; the last group may be smaller."""
    import torch

    x, channels = tensors["x"], tensors["x"].shape[1]
    each, found = -(-channels // int(case.params["n_groups"])), []
    for part in x.split(each, 1):
        apart = part - part.mean((1, 2, 3), keepdim=True)
        variance = apart.square().mean((1, 2, 3), keepdim=True)
        found.append(apart * (variance + float(case.params["eps"])).rsqrt())
    return torch.cat(found, 1)


def diag_mask_inf(case: Case, tensors: Tensors) -> torch.Tensor:
    """x with -inf right of a diagonal."""
    import torch

    x = tensors["x"]
    later = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device).triu(int(case.params["n_past"]) + 1)
    return x.masked_fill(later, -torch.inf)


def soft_max(case: Case, tensors: Tensors) -> torch.Tensor:
    """Rows as weights: of scale·x + slope·mask, with the sink of each head as one more element that is left out."""
    import math

    import torch

    x, mask, sinks = tensors["x"], tensors.get("mask"), tensors.get("sinks")
    z, heads, max_bias = x * float(case.params["scale"]), x.shape[1], float(case.params["max_bias"])
    if mask is not None:
        mask = mask[:, :, : x.shape[2]].float().tile((x.shape[0] // mask.shape[0], heads // mask.shape[1], 1, 1))
        n = 2 ** int(math.log2(heads))
        exponents = [(h + 1) / n if h < n else (2 * (h - n) + 1) / (2 * n) for h in range(heads)]
        slopes = torch.tensor([2 ** (-max_bias * exponent) for exponent in exponents], device=x.device)
        z = z + slopes.float().reshape(1, -1, 1, 1) * mask
    if sinks is None:
        return z.softmax(-1)
    sink = sinks.reshape(1, -1, 1, 1).expand(*z.shape[:-1], 1)
    return torch.cat((z, sink), -1).softmax(-1)[..., :-1]


def add1(case: Case, tensors: Tensors) -> torch.Tensor:
    """a + the one element of b."""
    return tensors["a"] + tensors["b"]


def silu_back(case: Case, tensors: Tensors) -> torch.Tensor:
    """The gradient through SILU, as autograd has it."""
    import torch

    grad = tensors["grad"]
    x = tensors["x"].tile([n // max(m, 1) for n, m in zip(grad.shape, tensors["x"].shape)])
    return torch.ops.aten.silu_backward(grad, x)


def xielu(case: Case, tensors: Tensors) -> torch.Tensor:
    """A parabola above 0, an exponential below."""
    import torch

    x, beta = tensors["x"].float(), float(case.params["beta"])
    n, q = (torch.nn.functional.softplus(torch.tensor(float(case.params[it]))) for it in ("alpha_n", "alpha_p"))
    below = (x.clamp_max(float(case.params["eps"])).expm1() - x) * (beta + n) + beta * x
    return torch.where(x > 0, q * x * x + beta * x, below).to(tensors["x"].dtype)


def swiglu_clamp(case: Case, tensors: Tensors) -> torch.Tensor:
    """SILU of a cut off above, times b cut off on both sides."""
    import torch

    limit = float(case.params["limit"])
    a, b = tensors["a"].float().clamp_max(limit), repeated(tensors).float().clamp(-limit, limit)
    return (torch.nn.functional.silu(a) * b).to(tensors["a"].dtype)


def rms_norm_back(case: Case, tensors: Tensors) -> torch.Tensor:
    """The gradient through RMS_NORM."""
    dz = tensors["dz"]
    x = tensors["x"].tile([n // max(m, 1) for n, m in zip(dz.shape, tensors["x"].shape)])
    mean = x.square().mean(-1, keepdim=True) + float(case.params["eps"])
    return (dz - x * ((x * dz).mean(-1, keepdim=True) / mean)) * mean.rsqrt()


def soft_max_back(case: Case, tensors: Tensors) -> torch.Tensor:
    """The gradient through softmax."""
    dy = tensors["dy"]
    y = tensors["y"].tile([n // max(m, 1) for n, m in zip(dy.shape, tensors["y"].shape)])
    return (dy - (y * dy).sum(-1, keepdim=True)) * y * float(case.params["scale"])


def diag_mask_zero(case: Case, tensors: Tensors) -> torch.Tensor:
    """x with +0 right of a diagonal."""
    import torch

    x = tensors["x"]
    later = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device).triu(int(case.params["n_past"]) + 1)
    return x.masked_fill(later, 0.0)


def repeat_back(case: Case, tensors: Tensors) -> torch.Tensor:
    """The sum of all repetitions."""
    x, out = tensors["x"], tensors["out"].shape
    split = [size for n, m in zip(x.shape, out) for size in (n // m, m)]
    return x.reshape(split).sum((0, 2, 4, 6))


def get_rows_back(case: Case, tensors: Tensors) -> torch.Tensor:
    """Rows added up where they were taken from."""
    import torch

    zeros = torch.zeros(tensors["out"].shape, device=tensors["a"].device)
    zeros[0, 0].index_add_(0, tensors["b"].reshape(-1), tensors["a"][0, 0].float())
    return zeros


def cross_entropy_loss(case: Case, tensors: Tensors) -> torch.Tensor:
    """The mean over all rows of the cross entropy."""
    x = tensors["x"]
    terms = x.log_softmax(-1) * tensors["labels"]
    return -terms.sum().reshape(1, 1, 1, 1) / (x.numel() // x.shape[-1])


def cross_entropy_loss_back(case: Case, tensors: Tensors) -> torch.Tensor:
    """Its gradient."""
    x = tensors["x"]
    return (x.softmax(-1) - tensors["labels"]) * (tensors["grad"] / (x.numel() // x.shape[-1]))


def opt_step_adamw(case: Case, tensors: Tensors) -> torch.Tensor:
    """A step of AdamW on the weights and both moments, which stand one after another."""
    import torch

    g, (w, m, v) = tensors["grad"], tensors["x"].chunk(3)
    alpha, beta1, beta2, eps, wd, beta1h, beta2h = tensors["settings"].reshape(-1)
    m, v = m * beta1 + g * (1 - beta1), v * beta2 + g * g * (1 - beta2)
    step = alpha * (m * beta1h) / ((v * beta2h).sqrt() + eps)
    return torch.cat((w * (1 - alpha * wd) - step, m, v))


def opt_step_sgd(case: Case, tensors: Tensors) -> torch.Tensor:
    """A step of gradient descent."""
    alpha, wd = tensors["settings"].reshape(-1)
    return tensors["x"] * (1 - alpha * wd) - alpha * tensors["grad"]


OPS: Mapping[str, Callable[[Case, Tensors], torch.Tensor]] = {
    "soft_max": soft_max,
    "add1": add1,
    "silu_back": silu_back,
    "xielu": xielu,
    "swiglu_clamp": swiglu_clamp,
    "rms_norm_back": rms_norm_back,
    "soft_max_back": soft_max_back,
    "diag_mask_zero": diag_mask_zero,
    "repeat_back": repeat_back,
    "get_rows_back": get_rows_back,
    "cross_entropy_loss": cross_entropy_loss,
    "cross_entropy_loss_back": cross_entropy_loss_back,
    "opt_step_adamw": opt_step_adamw,
    "opt_step_sgd": opt_step_sgd,
    "tri": tri,
    "diag": diag,
    "pad": pad,
    "cont": cont,
    "dup": cont,
    "concat": concat,
    "repeat": repeat,
    "sum": total,
    "group_norm": group_norm,
    "diag_mask_inf": diag_mask_inf,
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
