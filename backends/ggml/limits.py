"""What ggml does not take, as data: the constructors' asserts, the kernels' preconditions, and known bugs."""

from __future__ import annotations

from opconform.harness.backend import Limit
from opconform.harness.layouts import LayoutClass

_FRESH = "ggml makes the output itself, packed"
_F32_I32 = ("f32", "i32")

LIMITS: tuple[Limit, ...] = (
    # What the constructors assert: such a call aborts before any device is asked.
    Limit("acc", "dtype", ("f32",), "ggml_acc takes f32 only", "ggml.c, ggml_acc_impl"),
    Limit("acc", "a", LayoutClass.CONTIGUOUS, "ggml_acc wants a contiguous", "ggml.c, ggml_acc_impl"),
    Limit("acc", "out", LayoutClass.PACKED, _FRESH, "ggml.c, ggml_acc_impl (ggml_dup_tensor)"),
    Limit("set", "out", LayoutClass.PACKED, _FRESH, "ggml.c, ggml_set_impl (ggml_dup_tensor)"),
    Limit("cumsum", "axis", (0,), "ggml_cumsum sums along ne0 only", "ggml.h, ggml_cumsum"),
    Limit("cumsum", "exclusive", (False,), "ggml_cumsum is inclusive", "ggml.h, ggml_cumsum"),
    Limit("cumsum", "reverse", (False,), "ggml_cumsum runs forwards only", "ggml.h, ggml_cumsum"),
    Limit("cumsum", "out", LayoutClass.PACKED, _FRESH, "ggml.c, ggml_cumsum (ggml_dup_tensor)"),
    Limit("solve_tri", "left", (True,), "ggml_solve_tri solves A X = B only", "ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "lower", (True,), "ggml_solve_tri takes lower triangles only", "ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "unit", (False,), "ggml_solve_tri reads the diagonal", "ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "a", LayoutClass.CONTIGUOUS, "ggml_solve_tri wants a contiguous", "ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "b", LayoutClass.CONTIGUOUS, "ggml_solve_tri wants b contiguous", "ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "out", LayoutClass.PACKED, _FRESH, "ggml.c, ggml_solve_tri (ggml_new_tensor_4d)"),
)
