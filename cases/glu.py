"""Gated linear units: an activation of one half of each row, times the other half; or of a, times b."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial, update_wrapper

import numpy as np
from hypothesis import strategies as st

from opconform.cases import activations
from opconform.cases.families import choice, elementwise
from opconform.cases.shapes import check_out, is_aligned, rows
from opconform.harness.draw.strategies import among, composite
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DTYPES, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem

Gate = Callable[[Approx, Approx], Approx]

_DTYPES = ("f32", "f16")


def _gated(activation: Callable[[Approx], Approx]) -> Gate:
    return lambda x, gate: activation(x) * gate


#: By ggml's names, in the order of its numbers; the ones with a table round its entry, and not the product.
GATES: Mapping[str, Gate] = {
    "reglu": _gated(activations.relu),
    "geglu": _gated(activations.gelu),
    "swiglu": _gated(activations.silu),
    "geglu_erf": _gated(activations.gelu_erf),
    "geglu_quick": _gated(activations.gelu_quick),
}
_FORMULAS = {
    "reglu": "max(x, 0)",
    "geglu": "x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))",
    "swiglu": "x / (1 + e^−x)",
    "geglu_erf": "x/2 · (1 + erf(x/√2))",
    "geglu_quick": "x / (1 + e^(−1.702·x))",
}


def _halves(gate: Gate, case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The gate of the two halves of each row."""
    x = case.inputs["x"]
    values, n = x.type.decode(raw["x"]), x.shape[-1] // 2
    first, second = (Approx.of(np.ascontiguousarray(part), x.type, numerics) for part in np.split(values, [n], -1))
    one, other = (second, first) if case.params["swapped"] else (first, second)
    return gate(one, other).stored(case.outputs["out"].type, case.outputs["out"].shape)


def _check(case: Case) -> None:
    x = case.inputs["x"].shape
    if x[-1] % 2:
        raise CaseError(f"x has rows of {x[-1]}; they must have two halves")
    check_out(case, (*x[:-1], x[-1] // 2))


@composite
def _problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Rows of two halves; shrinks to two elements."""
    dtype = draw(among(freedom.choices("dtype", _DTYPES)))
    out = draw(rows(freedom, 2 * DTYPES[dtype].itemsize))
    swapped = draw(among(freedom.choices("swapped", (False, True))))
    return Problem({"swapped": swapped}, dtype, {"x": (*out[:-1], 2 * out[-1])}, out)


def _hypotheses(gate: Gate, image: Image) -> Iterator[Hypothesis]:
    swapped, x = bool(image.case.params["swapped"]), image.raw["x"]
    says = "swapped is ignored: the first half is the gated one" if swapped else "the halves are exchanged"
    yield Hypothesis(says, partial(image.with_params, swapped=not swapped))
    pairs = np.concatenate([x[..., 0::2], x[..., 1::2]], -1)
    yield Hypothesis("the halves are read as pairs of neighbours", partial(image.with_inputs, x=pairs))
    for says, wrong in (
        ("the other half is left out", lambda one, other: gate(one, one._lifted(1.0))),
        ("the activation is left out", lambda one, other: one * other),
    ):
        yield Hypothesis(says, partial(image.with_expect, partial(_halves, wrong)))


def _packed(name: str, gate: Gate) -> Op:
    def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return _halves(gate, case, raw, numerics)

    wrapped: Expect = update_wrapper(expect, _halves)
    return Op(
        name=name,
        summary=f"g(x)·y of the halves x and y of each row, g(x) = {_FORMULAS[name]}",
        inputs=("x",),
        params={"swapped": bool},
        dtypes=_DTYPES,
        problems=_problems,
        expect=wrapped,
        bound="the rounding of each step, carried through the formula",
        check=_check,
        traits=lambda case: {"aligned": is_aligned(case)},
        hypotheses=partial(_hypotheses, gate),
    )


def _split(name: str, gate: Gate) -> Op:
    return elementwise(
        f"{name}_split",
        f"g(a)·b, g(x) = {_FORMULAS[name]}",
        gate,
        inputs=("a", "b"),
        mistakes={
            "the activation is that of b": lambda a, b: gate(b, a),
            "the activation is left out": lambda a, b: a * b,
        },
    )


def oai(a: Approx, b: Approx, alpha: float, limit: float) -> Approx:
    """x / (1 + e^(−alpha·x)) · (y + 1), x = min(a, limit), y = b between −limit and limit."""
    x, y = a.minimum(limit), b.maximum(-limit).minimum(limit)
    return x / (1 + (x * -alpha).exp()) * (y + 1.0)


def _clamped(a: Approx, b: Approx, limit: float) -> Approx:
    """x / (1 + e^−x) · y, x = min(a, limit), y = b between −limit and limit."""
    return activations.silu(a.minimum(limit)) * b.maximum(-limit).minimum(limit)


OPS = (
    *(_packed(name, gate) for name, gate in GATES.items()),
    *(_split(name, gate) for name, gate in GATES.items()),
    elementwise(
        "swiglu_oai",
        "x / (1 + e^(−alpha·x)) · (y + 1), x and y being a and b cut off at limit",
        lambda a, b, p: oai(a, b, float(p["alpha"]), float(p["limit"])),
        inputs=("a", "b"),
        params={
            "alpha": choice(1.702, 1.0, 0.5, without=1.0),
            "limit": choice(7.0, 1.0, 2.5, 0.7, without=1e30, least=0.0),
        },
        dtypes=("f32",),
        mistakes={
            "1 is not added to b": lambda a, b, p: oai(a, b - 1.0, float(p["alpha"]), float(p["limit"])),
        },
    ),
    elementwise(
        "swiglu_clamp",
        "x / (1 + e^−x) · y, x = min(a, limit), y = b between −limit and limit",
        lambda a, b, p: _clamped(a, b, float(p["limit"])),
        inputs=("a", "b"),
        params={"limit": choice(10.0, 7.0, 1.0, 2.5, 0.7, without=1e30, least=0.0)},
        mistakes={
            "b is not cut off": lambda a, b, p: activations.silu(a.minimum(float(p["limit"]))) * b,
            "a is not cut off": lambda a, b, p: (
                activations.silu(a) * b.maximum(-float(p["limit"])).minimum(float(p["limit"]))
            ),
            "a is cut off below too": lambda a, b, p: _clamped(a.maximum(-float(p["limit"])), b, float(p["limit"])),
        },
    ),
)
