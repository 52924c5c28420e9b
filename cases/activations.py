"""Activations: ggml's unary ops, each a formula of one element."""

from __future__ import annotations

import numpy as np

from opconform.cases.families import choice, elementwise
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64
from opconform.harness.model.op import Op

_TO_TANH, _CUBE, _QUICK, _ROOT_HALF = 0.7978845608028654, 0.044715, 1.702, 0.7071067811865476
_FAR = 20.0  #: beyond, kernels take ln(1 + e^x) for x
_TABLE = 10.0  #: from here on, kernels with a table of GELU take x for it, and 0 at the other end


def relu(x: Approx) -> Approx:
    """max(x, 0)."""
    return x.maximum(0.0)


def sigmoid(x: Approx) -> Approx:
    """1 / (1 + e^−x)."""
    return 1 / (1 + (-x).exp())


def gelu(x: Approx) -> Approx:
    """x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³))). Some kernels take a table of float16 for |x| < 10."""
    x = x.tabled(_TABLE)
    inner = x * _TO_TANH * (1 + x * x * _CUBE)
    return (x * 0.5 * (1 + inner.tanh())).tabled(_TABLE)


def gelu_erf(x: Approx) -> Approx:
    """x/2 · (1 + erf(x/√2))."""
    return x * 0.5 * (1 + (x * _ROOT_HALF).erf())


def gelu_quick(x: Approx) -> Approx:
    """x / (1 + e^(−1.702·x)). Some kernels take a table of float16."""
    x = x.tabled()
    return (x / (1 + (x * -_QUICK).exp())).tabled()


def silu(x: Approx) -> Approx:
    """x / (1 + e^−x)."""
    return x / (1 + (-x).exp())


def expm1(x: Approx) -> Approx:
    """e^x − 1. Kernels compute it as it stands here, whose error near 0 is that of e^x."""
    return x.exp() - 1.0


def _elu(x: Approx) -> Approx:
    return Approx.where(x.value > 0, x, expm1(x))


def softplus(x: Approx) -> Approx:
    """ln(1 + e^x), also as max(x, 0) + ln(1 + e^−|x|); beyond 20 also x itself."""
    safe = x.maximum(0.0) + (1 + (-abs(x)).exp()).log()
    direct = (1 + x.exp()).log()
    return Approx.where(x.value > _FAR, safe.either(x), safe.either(direct))


def _hardsigmoid(x: Approx) -> Approx:
    return ((x + 3.0) / 6.0).maximum(0.0).minimum(1.0)


def _from_zero(x: F64) -> F64:
    """To the nearest whole number, halves away from 0."""
    found: F64 = np.copysign(np.floor(np.abs(x) + 0.5), x)
    return found


def _with_fractions(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """Whole numbers get a quarter more, so that halves are among them: of whole ones the output is a copy."""
    if case.recipe in ("small_int", "index", "whole", "signed_zero"):
        values["x"] *= 1.25


OPS: tuple[Op, ...] = (
    elementwise("abs", "|x|", Approx.__abs__, mistakes={"the sign is turned": lambda x: -x}),
    elementwise("neg", "−x", lambda x: -x, mistakes={"|x| is computed": abs}),
    elementwise(
        "sgn",
        "−1, 0 or 1 by the sign of x",
        lambda x: x.stepped(np.sign),
        mistakes={"1 is returned at 0": lambda x: x.stepped(lambda v: np.where(v >= 0, 1.0, -1.0))},
        bound="exactly −1, 0 or 1",
    ),
    elementwise(
        "step",
        "1 where x > 0, else 0",
        lambda x: x.stepped(lambda v: np.where(v > 0, 1.0, 0.0)),
        mistakes={"1 is returned at 0": lambda x: x.stepped(lambda v: np.where(v >= 0, 1.0, 0.0))},
        bound="exactly 0 or 1",
    ),
    elementwise("tanh", "tanh x", Approx.tanh, mistakes={"the sigmoid is returned": sigmoid}),
    elementwise("elu", "x where x > 0, else e^x − 1", _elu, mistakes={"−1 is left out": lambda x: x.exp()}),
    elementwise("relu", "max(x, 0)", relu, mistakes={"|x| is returned": abs}),
    elementwise("sigmoid", "1 / (1 + e^−x)", sigmoid, mistakes={"the sign is wrong": lambda x: sigmoid(-x)}),
    elementwise(
        "gelu",
        "x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))",
        gelu,
        mistakes={
            "the form with e^(−1.702·x) is computed": gelu_quick,
            "the cube is left out": lambda x: x * 0.5 * (1 + (x * _TO_TANH).tanh()),
        },
    ),
    elementwise(
        "gelu_quick",
        "x / (1 + e^(−1.702·x))",
        gelu_quick,
        mistakes={"the form with tanh is computed": gelu, "1.702 is left out (SILU)": silu},
    ),
    elementwise(
        "gelu_erf",
        "x/2 · (1 + erf(x/√2))",
        gelu_erf,
        mistakes={"the form with tanh is computed": gelu, "√2 is left out": lambda x: x * 0.5 * (1 + x.erf())},
    ),
    elementwise(
        "hardsigmoid",
        "min(1, max(0, (x + 3)/6))",
        _hardsigmoid,
        mistakes={"it is not cut off": lambda x: (x + 3.0) / 6.0},
    ),
    elementwise(
        "hardswish",
        "x · min(1, max(0, (x + 3)/6))",
        lambda x: (x * _hardsigmoid(x)).either(x * (x + 3.0).maximum(0.0).minimum(6.0) / 6.0),
        mistakes={"it is not multiplied by x": _hardsigmoid},
    ),
    elementwise("expm1", "e^x − 1", expm1, mistakes={"1 is not subtracted": Approx.exp}),
    elementwise(
        "softplus", "ln(1 + e^x)", softplus, mistakes={"1 is left out: x is returned": lambda x: x.maximum(0.0)}
    ),
    elementwise(
        "floor",
        "⌊x⌋",
        lambda x: x.stepped(np.floor),
        mistakes={"x is cut off": lambda x: x.stepped(np.trunc)},
        shape_values=_with_fractions,
    ),
    elementwise(
        "ceil",
        "⌈x⌉",
        lambda x: x.stepped(np.ceil),
        mistakes={"x is cut off": lambda x: x.stepped(np.trunc)},
        shape_values=_with_fractions,
    ),
    elementwise(
        "round",
        "the nearest whole number, halves away from 0",
        lambda x: x.stepped(_from_zero),
        mistakes={
            "halves go to the even number": lambda x: x.stepped(np.rint),
            "halves go up": lambda x: x.stepped(lambda v: np.floor(v + 0.5)),
        },
        bound="the whole number itself",
        shape_values=_with_fractions,
    ),
    elementwise(
        "trunc",
        "x without its fraction",
        lambda x: x.stepped(np.trunc),
        mistakes={"x is rounded down": lambda x: x.stepped(np.floor)},
        bound="the whole number itself",
        shape_values=_with_fractions,
    ),
    elementwise(
        "leaky_relu",
        "x where x > 0, else slope · x",
        lambda x, p: Approx.where(x.value > 0, x, x * p["slope"]),
        params={"slope": choice(0.1, 0.01, 0.0, 2.0, -0.5, without=0.0)},
        mistakes={"the slope is that of both sides": lambda x, p: x * p["slope"]},
    ),
)
