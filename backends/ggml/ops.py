"""One row per op: the ggml function that makes it, its C arguments, and how a case gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ctypes import c_bool, c_float, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from typing import Any

from opconform.backends.rows import rows_of
from opconform.harness.model.case import Case

#: Strides and offsets travel to the kernels as int32, and ggml_set asserts an offset below 2^30.
LARGEST_PARAM = 2**30 - 1


@dataclass(frozen=True)
class OpBinding:
    """How ggml's graph gets an op.

    symbol: the constructor; `inplace` its in-place twin. arguments: their C types, the context first. params: the
    values after the tensors, from the case's parameters. The tensors are the case's inputs, in order; where `into`,
    then the output, which the op writes where it stands.
    """

    symbol: str
    arguments: tuple[Any, ...]
    params: Callable[[Case], tuple[Any, ...]]
    inplace: str | None = None
    into: bool = False

    @property
    def symbols(self) -> tuple[str, ...]:
        return (self.symbol, self.inplace) if self.inplace else (self.symbol,)

    def symbol_for(self, case: Case) -> str | None:
        """The function that makes `case`, or None where ggml has no in-place form."""
        return self.inplace if case.inplace else self.symbol


def _view(case: Case) -> tuple[Any, ...]:
    return case.params["nb1"], case.params["nb2"], case.params["nb3"], case.params["offset"]


def _triangle(case: Case) -> tuple[Any, ...]:
    return case.params["left"], case.params["lower"], case.params["unit"]


def _pads(case: Case) -> tuple[Any, ...]:
    return tuple(case.params[f"{side}{k}"] for k in range(4) for side in ("lp", "rp"))


TRI_TYPES = {"upper_diag": 0, "upper": 1, "lower_diag": 2, "lower": 3}  #: enum ggml_tri_type

_WRITE_VIEW = (c_void_p, c_void_p, c_void_p, c_size_t, c_size_t, c_size_t, c_size_t)

_UNARY, _BINARY = (c_void_p, c_void_p), (c_void_p, c_void_p, c_void_p)


def _none(case: Case) -> tuple[Any, ...]:
    return ()


def _named(*names: str) -> Callable[[Case], tuple[Any, ...]]:
    """These parameters of the case, in this order."""
    return lambda case: tuple(case.params[name] for name in names)


_OPS: Mapping[str, OpBinding] = {
    "acc": OpBinding("ggml_acc", _WRITE_VIEW, _view, inplace="ggml_acc_inplace"),
    "set": OpBinding("ggml_set", _WRITE_VIEW, _view, inplace="ggml_set_inplace"),
    "cumsum": OpBinding("ggml_cumsum", (c_void_p, c_void_p), lambda case: ()),
    "solve_tri": OpBinding("ggml_solve_tri", (c_void_p, c_void_p, c_void_p, c_bool, c_bool, c_bool), _triangle),
    "tri": OpBinding("ggml_tri", (c_void_p, c_void_p, c_int), lambda case: (TRI_TYPES[str(case.params["kind"])],)),
    "diag": OpBinding("ggml_diag", (c_void_p, c_void_p), lambda case: ()),
    "pad": OpBinding("ggml_pad_ext", (c_void_p, c_void_p, *([c_int] * 8)), _pads),
    "l2_norm": OpBinding("ggml_l2_norm", (c_void_p, c_void_p, c_float), lambda case: (case.params["eps"],)),
    "ssm_conv": OpBinding("ggml_ssm_conv", (c_void_p, c_void_p, c_void_p), lambda case: ()),
    "sum_rows": OpBinding("ggml_sum_rows", (c_void_p, c_void_p), lambda case: ()),
    "cpy": OpBinding("ggml_cpy", (c_void_p, c_void_p, c_void_p), lambda case: (), into=True),
    "cont": OpBinding("ggml_cont", (c_void_p, c_void_p), lambda case: ()),
    "add": OpBinding("ggml_add", _BINARY, _none, inplace="ggml_add_inplace"),
    "mul": OpBinding("ggml_mul", _BINARY, _none, inplace="ggml_mul_inplace"),
    "scale": OpBinding(
        "ggml_scale_bias",
        (*_UNARY, c_float, c_float),
        _named("scale", "bias"),
        inplace="ggml_scale_bias_inplace",
    ),
    "clamp": OpBinding("ggml_clamp", (*_UNARY, c_float, c_float), _named("min", "max"), inplace="ggml_clamp_inplace"),
    "exp": OpBinding("ggml_exp", _UNARY, _none, inplace="ggml_exp_inplace"),
    "silu": OpBinding("ggml_silu", _UNARY, _none, inplace="ggml_silu_inplace"),
    "norm": OpBinding("ggml_norm", (*_UNARY, c_float), _named("eps")),
}
#: Every op with its row. Other packages register theirs: see `rows_of`.
OPS: Mapping[str, OpBinding] = {**_OPS, **rows_of("ggml")}
