"""One row per op: the ggml function that makes it, its C arguments, and how a case gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ctypes import c_bool, c_size_t, c_void_p
from dataclasses import dataclass
from typing import Any

from opconform.harness.case import Case

#: Strides and offsets travel to the kernels as int32, and ggml_set asserts an offset below 2^30.
LARGEST_PARAM = 2**30 - 1


@dataclass(frozen=True)
class OpBinding:
    """How ggml's graph gets an op.

    symbol: the constructor; `inplace` its in-place twin. arguments: their C types, the context first. params: the
    values after the tensors, from the case's parameters. The tensors are the case's inputs, in order.
    """

    symbol: str
    arguments: tuple[Any, ...]
    params: Callable[[Case], tuple[Any, ...]]
    inplace: str | None = None

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


_WRITE_VIEW = (c_void_p, c_void_p, c_void_p, c_size_t, c_size_t, c_size_t, c_size_t)

OPS: Mapping[str, OpBinding] = {
    "acc": OpBinding("ggml_acc", _WRITE_VIEW, _view, inplace="ggml_acc_inplace"),
    "set": OpBinding("ggml_set", _WRITE_VIEW, _view, inplace="ggml_set_inplace"),
    "cumsum": OpBinding("ggml_cumsum", (c_void_p, c_void_p), lambda case: ()),
    "solve_tri": OpBinding("ggml_solve_tri", (c_void_p, c_void_p, c_void_p, c_bool, c_bool, c_bool), _triangle),
}
