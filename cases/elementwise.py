"""Ops of each element by itself, of one argument or of two."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from opconform.cases.families import choice, elementwise
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64

_SOFTPLUS_ROUNDINGS = 12  #: of ln(1 + e^a) for a ≥ −2, from the errors of exp and log (3 ulps each) and of the sum


def _silu_back(grad: Approx, x: Approx) -> Approx:
    """grad · s·(1 + x·(1 − s)), s = 1/(1 + e^−x); some kernels compute s + x·s·(1 − s)."""
    s = 1 / (1 + (-x).exp())
    rest = x * (1 - s)
    return grad.times(s, 1 + rest).either(grad * (s + s * rest))


def _xielu(x: Approx, p: dict[str, Any]) -> Approx:
    """q·x² + beta·x where x > 0, else (e^min(x, eps) − 1 − x)·(beta + n) + beta·x, with n and q = ln(1 + e^alpha).

    ggml's constructor computes ln(1 + e^alpha) in float32.
    """
    return _two_sided(x, float(p["beta"]) + _softplus(p["alpha_n"]), _softplus(p["alpha_p"]), p)


def _softplus(alpha: Any) -> float:
    return math.log1p(math.exp(float(alpha)))


def _two_sided(x: Approx, n: float, q: float, p: dict[str, Any]) -> Approx:
    beta, below = float(p["beta"]), x.constant(n, roundings=_SOFTPLUS_ROUNDINGS)
    positive = x.times(x, x.constant(q, roundings=_SOFTPLUS_ROUNDINGS)) + x * beta
    negative = (x.minimum(float(p["eps"])).exp() - 1.0 - x) * below + x * beta
    found = Approx.where(x.value > 0, positive, negative)
    return Approx.where((x.value > 0) & (x.low <= 0), positive.either(negative), found)  # a denormal that is flushed


def _few_below_zero(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """Of the numbers below 0 one in sixteen stays: what they give is NaN, of which nothing can be demanded."""
    x = values["x"]
    np.negative(x, out=x, where=(x < 0) & (rng.random(x.shape) >= 1 / 16))


OPS = (
    elementwise(
        "add1",
        "a + b, b being one element",
        lambda a, b: a + b,
        inputs=("a", "b"),
        scalars=("b",),
        mistakes={"b is subtracted": lambda a, b: a - b, "1 is added": lambda a, b: a + 1.0},
    ),
    elementwise(
        "silu_back",
        "grad · s·(1 + x·(1 − s)), s = 1/(1 + e^−x): the gradient of x through SILU",
        _silu_back,
        inputs=("grad", "x"),
        mistakes={
            "grad and x are exchanged": lambda grad, x: _silu_back(x, grad),
            "the derivative of x is left out: grad · s": lambda grad, x: grad / (1 + (-x).exp()),
            "SILU itself is computed": lambda grad, x: x / (1 + (-x).exp()),
        },
    ),
    elementwise(
        "xielu",
        "q·x² + beta·x where x > 0, else (e^min(x, eps) − 1 − x)·(beta + n) + beta·x; n, q = ln(1 + e^alpha)",
        _xielu,
        params={
            "alpha_n": choice(0.8, 0.5, -1.0, 2.0, least=-2.0, most=20.0),
            "alpha_p": choice(0.8, 0.25, -1.5, 3.0, least=-2.0, most=20.0),
            "beta": choice(0.5, 0.0, 1.0, 0.3, without=0.0, least=0.0),
            "eps": choice(-1e-6, -0.5, -1e-6, most=0.0),
        },
        mistakes={
            "beta is not added to the factor below 0": lambda x, p: _two_sided(
                x, _softplus(p["alpha_n"]), _softplus(p["alpha_p"]), p
            ),
            "alpha is taken as it is, not ln(1 + e^alpha)": lambda x, p: _two_sided(
                x, float(p["beta"]) + float(p["alpha_n"]), float(p["alpha_p"]), p
            ),
        },
    ),
    elementwise(
        "add",
        "a + b, b repeated over a",
        lambda a, b: a + b,
        inputs=("a", "b"),
        mistakes={"b is subtracted": lambda a, b: a - b, "a and b are multiplied": lambda a, b: a * b},
    ),
    elementwise(
        "mul",
        "a · b, b repeated over a",
        lambda a, b: a * b,
        inputs=("a", "b"),
        mistakes={"a and b are added": lambda a, b: a + b},
    ),
    elementwise(
        "sub",
        "a − b, b repeated over a",
        lambda a, b: a - b,
        inputs=("a", "b"),
        mistakes={"b is added": lambda a, b: a + b, "a is subtracted from b": lambda a, b: b - a},
    ),
    elementwise(
        "div",
        "a / b, b repeated over a",
        lambda a, b: a / b,
        inputs=("a", "b"),
        mistakes={"a and b are multiplied": lambda a, b: a * b, "b is divided by a": lambda a, b: b / a},
    ),
    elementwise("sqr", "x²", lambda x: x * x, mistakes={"x is doubled": lambda x: x + x}),
    elementwise("sqrt", "√x", Approx.sqrt, mistakes={"1/√x is computed": Approx.rsqrt}, shape_values=_few_below_zero),
    elementwise(
        "log",
        "ln x",
        Approx.log,
        mistakes={"log2 x is computed": lambda x: x.log() * 1.4426950408889634},
        shape_values=_few_below_zero,
    ),
    elementwise("sin", "sin x", Approx.sin, mistakes={"cos x is computed": Approx.cos}),
    elementwise("cos", "cos x", Approx.cos, mistakes={"sin x is computed": Approx.sin}),
    elementwise(
        "scale",
        "scale · x + bias",
        lambda x, p: x * p["scale"] + p["bias"],
        params={
            "scale": choice(1.0, 2.0, -0.5, 0.1, 1e-3, without=1.0),
            "bias": choice(0.0, 1.0, -0.3, 0.0, without=0.0),
        },
        mistakes={"bias is added before x is scaled": lambda x, p: (x + p["bias"]) * p["scale"]},
    ),
    elementwise(
        "clamp",
        "x, but at least min and at most max",
        lambda x, p: x.maximum(p["min"]).minimum(p["max"]),
        params={
            "min": choice(-1.0, 0.0, -10.0, 0.5, -0.7, without=-1e30),
            "max": choice(1.0, 6.0, 100.0, 0.75, 0.9, without=1e30),
        },
        mistakes={"x is cut at ±max": lambda x, p: x.maximum(-p["max"]).minimum(p["max"])},
        bound="the bits of x between min and max, one rounding of min and of max",
    ),
    elementwise("exp", "e^x", Approx.exp, mistakes={"2^x is computed": lambda x: (x * 0.6931471805599453).exp()}),
    elementwise(
        "silu",
        "x / (1 + e^−x)",
        lambda x: x / (1 + (-x).exp()),
        mistakes={
            "the sign of the exponent is wrong: x / (1 + e^x)": lambda x: x / (1 + x.exp()),
            "the sigmoid is returned, not multiplied by x": lambda x: 1 / (1 + (-x).exp()),
        },
    ),
)
