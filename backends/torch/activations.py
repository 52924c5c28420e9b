"""The ops of one element in torch's terms; narrow types are computed in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from opconform.backends.torch.ops import Tensors
from opconform.harness.model.case import Case

if TYPE_CHECKING:
    import torch


def unary(case: Case, tensors: Tensors) -> torch.Tensor:
    """The op of the case's name, of x in float32."""
    import torch

    x = tensors["x"].float()
    functions = torch.nn.functional
    if case.op == "leaky_relu":
        found = torch.where(x > 0, x, x * float(case.params["slope"]))
    elif case.op == "step":
        found = (x > 0).float()
    elif case.op == "sgn":
        found = x.sign()
    elif case.op == "sqr":
        found = x * x
    elif case.op == "round":
        found = torch.copysign((x.abs().double() + 0.5).floor(), x.double()).float()
    elif case.op == "gelu":
        found = functions.gelu(x, approximate="tanh")
    elif case.op == "gelu_erf":
        found = functions.gelu(x)
    elif case.op == "gelu_quick":
        found = x * torch.sigmoid(1.702 * x)
    elif hasattr(functions, case.op):
        found = getattr(functions, case.op)(x)
    else:
        found = getattr(torch, case.op)(x)
    return found.to(tensors["x"].dtype)


OPS: Mapping[str, Callable[[Case, Tensors], torch.Tensor]] = dict.fromkeys(
    (
        *("sqr", "sqrt", "log", "sin", "cos", "abs", "neg", "sgn", "step", "tanh", "elu", "relu", "sigmoid"),
        *("gelu", "gelu_quick", "gelu_erf", "hardsigmoid", "hardswish", "expm1", "softplus"),
        *("floor", "ceil", "round", "trunc", "leaky_relu"),
    ),
    unary,
)
