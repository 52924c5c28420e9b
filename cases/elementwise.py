"""Ops of each element by itself, of one argument or of two."""

from __future__ import annotations

from opconform.cases.families import choice, elementwise
from opconform.harness.model.approx import Approx

OPS = (
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
    elementwise("sqrt", "√x", Approx.sqrt, mistakes={"1/√x is computed": Approx.rsqrt}),
    elementwise("log", "ln x", Approx.log, mistakes={"log2 x is computed": lambda x: x.log() * 1.4426950408889634}),
    elementwise("sin", "sin x", Approx.sin, mistakes={"cos x is computed": Approx.cos}),
    elementwise("cos", "cos x", Approx.cos, mistakes={"sin x is computed": Approx.sin}),
    elementwise(
        "scale",
        "scale · x + bias",
        lambda x, p: x * p["scale"] + p["bias"],
        params={
            "scale": choice(2.0, -0.5, 0.1, 1e-3, 16.0, without=1.0),
            "bias": choice(0.0, 1.0, -0.3, 0.0, without=0.0),
        },
        mistakes={"bias is added before x is scaled": lambda x, p: (x + p["bias"]) * p["scale"]},
    ),
    elementwise(
        "clamp",
        "x, but at least min and at most max",
        lambda x, p: x.maximum(p["min"]).minimum(p["max"]),
        params={
            "min": choice(-0.5, 0.0, 0.25, 0.0, 0.5, without=-1e30),
            "max": choice(1.0, 6.0, 100.0, 0.75, without=1e30),
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
