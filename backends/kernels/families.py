"""The ops whose kernels are made from a template: one row each.

A formula is an expression that OpenCL C, CUDA C++ and GLSL all take, in float32 (a gather's in whole numbers). A
template (elementwise, row, gather; a `.cl` file here and a `.comp` file for Vulkan) includes it as `formula.h`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from opconform.harness.model.case import Case

Parameters = Callable[[Case], Mapping[str, int | float]]


def _as_they_are(case: Case) -> Mapping[str, int | float]:
    return {name: value for name, value in case.params.items() if isinstance(value, (int, float))}


@dataclass(frozen=True)
class Elementwise:
    """An element of out from one of each argument, of which the second is repeated over the first. parameters: those of
    the case that the formula names."""

    formula: str
    arguments: tuple[str, ...] = ("x",)
    parameters: tuple[str, ...] = ()

    def text(self, glsl: bool) -> str:
        """`formula.h`."""
        names = (*_padded(self.arguments), *_padded(self.parameters))
        return _function("float formula", "float", names, self.formula, glsl)


@dataclass(frozen=True)
class Row:
    """The elements of a row of out, or its only one, from the sum over the row of x.

    addend: what is added up, of an element x. second: what is added up for a second sum, of x, the first `sum` and the
    number n of elements. formula: an element of out, of x, sum, second_sum, n and the parameters, whose numbers are in
    `values`. reduces: a row of out has one element.
    """

    addend: str
    formula: str
    second: str = ""
    parameters: tuple[str, ...] = ()
    values: Parameters = _as_they_are
    reduces: bool = False

    def text(self, glsl: bool) -> str:
        """`formula.h`."""
        names = ("x", "sum", "second_sum", "n", *_padded(self.parameters))
        lines = f"#define SUMS {2 if self.second else 1}\n#define REDUCES {int(self.reduces)}\n"
        lines += _function("float addend", "float", ("x",), self.addend, glsl)
        lines += _function("float second_addend", "float", ("x", "sum", "n"), self.second or "0.0f", glsl)
        return lines + _function("float formula", "float", names, self.formula, glsl)


@dataclass(frozen=True)
class Gather:
    """Elements of x, or zeros.

    formula: whether element (i0, i1) of a matrix of out comes from x, where x has it. before: the parameters that say
    how far x stands from the beginning of out, innermost axis first. repeats: x is repeated along its axes of one
    element.
    """

    formula: str = "true"
    before: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    values: Parameters = _as_they_are
    repeats: bool = False

    def text(self, glsl: bool) -> str:
        """`formula.h`."""
        names = ("i0", "i1", *_padded(self.parameters))
        return _function("bool formula", "uint" if glsl else "ulong", names, self.formula, glsl)


def _padded(names: Sequence[str]) -> tuple[str, str]:
    """Two names, as many as a template has places for."""
    first, second, *_ = (*names, "", "")
    return first, second


def _function(head: str, kind: str, names: Sequence[str], formula: str, glsl: bool) -> str:
    """A function of arguments of one kind, in a line; the compilers are told of those that it does not use."""
    names = [name or f"unused_{number}" for number, name in enumerate(names)]
    unused = [name for name in names if not re.search(rf"\b{name}\b", formula)]
    silenced = "" if glsl else "".join(f"(void){name}; " for name in unused)
    given = ", ".join(f"{kind} {name}" for name in names)
    return f"{'' if glsl else 'DEVICE '}{head}({given}) {{ {silenced}return {formula}; }}\n"


ELEMENTWISE: Mapping[str, Elementwise] = {
    "exp": Elementwise("exp(x)"),
    "silu": Elementwise("x / (1.0f + exp(-x))"),
    "scale": Elementwise("scale * x + bias", parameters=("scale", "bias")),
    "clamp": Elementwise("x < min ? min : x > max ? max : x", parameters=("min", "max")),
    "add": Elementwise("a + b", ("a", "b")),
    "mul": Elementwise("a * b", ("a", "b")),
}

ROWS: Mapping[str, Row] = {
    "sum_rows": Row("x", "sum", reduces=True),
    "rms_norm": Row("x * x", "x / sqrt(sum / n + eps)", parameters=("eps",)),
    "norm": Row(
        "x",
        "(x - sum / n) / sqrt(second_sum / n + eps)",
        second="(x - sum / n) * (x - sum / n)",
        parameters=("eps",),
    ),
    "l2_norm": Row(
        "x * x",
        "x / (added != 0.0f ? sqrt(sum + eps) : sqrt(sum) > eps ? sqrt(sum) : eps)",
        parameters=("eps", "added"),
        values=lambda case: {**_as_they_are(case), "added": case.params["eps_mode"] == "add"},
    ),
}

GATHERS: Mapping[str, Gather] = {
    "cont": Gather(),
    "diag": Gather("i0 == i1", repeats=True),
    "pad": Gather(before=("lp0", "lp1", "lp2", "lp3")),
    "tri": Gather(
        "(lower != 0 ? i0 < i1 : i0 > i1) || (diagonal != 0 && i0 == i1)",
        parameters=("lower", "diagonal"),
        values=lambda case: {
            "lower": str(case.params["kind"]).startswith("lower"),
            "diagonal": str(case.params["kind"]).endswith("_diag"),
        },
    ),
}
