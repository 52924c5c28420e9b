"""One row per op that ggml has a node for."""

from __future__ import annotations

from collections.abc import Mapping

from opconform.backends.ggml.rows import Row, Wants
from opconform.backends.rows import rows_of
from opconform.harness.model.layouts import LayoutClass

ROWS, CONTIGUOUS = LayoutClass.ROWS, LayoutClass.CONTIGUOUS
SHADERS = "src/ggml-vulkan/vulkan-shaders"

#: Strides and offsets travel to the kernels as int32, and ggml_set asserts an offset below 2^30.
LARGEST_PARAM = 2**30 - 1

_ROWS_OF_A = Wants("CPU", "a", ROWS, "aborts unless a's nb0 is the element size", "src/ggml-cpu/binary-ops.cpp")

_ROWS_OF_X = Wants("CPU", "x", ROWS, "aborts unless x's nb0 is the element size", "src/ggml-cpu/unary-ops.cpp")
_ROUND = (
    Wants(
        "Vulkan",
        "recipe",
        ("small_int", "index", "normal", "signed_zero", "denormal"),
        "adds 0.5 in float32 and rounds down: odd numbers from 2^23 to 2^24 become even ones, 0.49999997 becomes 1",
        f"{SHADERS}/unary.comp, op_round",
        "round/vulkan-large-odd",
    ),
)

#: ggml's unary ops beside exp and silu, with an in-place form and without one.
UNARY_INPLACE = (
    *("abs", "neg", "sgn", "step", "tanh", "elu", "relu", "sigmoid", "gelu", "gelu_quick", "gelu_erf"),
    *("expm1", "softplus", "floor", "ceil", "round", "trunc"),
)
UNARY = ("hardsigmoid", "hardswish")

TABLE = (
    Row("acc", "ggml_acc(a, b, nb1, nb2, nb3, offset)", "ggml_acc_inplace", stored="nb1 nb2 nb3 offset inplace"),
    Row("set", "ggml_set(a, b, nb1, nb2, nb3, offset)", "ggml_set_inplace", stored="nb1 nb2 nb3 offset inplace"),
    Row("cumsum", "ggml_cumsum(x)"),
    Row("solve_tri", "ggml_solve_tri(a, b, left, lower, unit)", stored=""),
    Row("tri", "ggml_tri(x, kind)"),
    Row("diag", "ggml_diag(x)"),
    Row("pad", "ggml_pad_ext(x, lp0, rp0, lp1, rp1, lp2, rp2, lp3, rp3)"),
    Row("l2_norm", "ggml_l2_norm(x, eps)"),
    Row("ssm_conv", "ggml_ssm_conv(x, c)"),
    Row("sum_rows", "ggml_sum_rows(x)"),
    Row("cpy", "ggml_cpy(x, out)", mixed=True),
    Row("cont", "ggml_cont(x)"),
    Row("add", "ggml_add(a, b)", "ggml_add_inplace", wants=(_ROWS_OF_A,)),
    Row("mul", "ggml_mul(a, b)", "ggml_mul_inplace", wants=(_ROWS_OF_A,)),
    Row("sub", "ggml_sub(a, b)", "ggml_sub_inplace", wants=(_ROWS_OF_A,)),
    Row("div", "ggml_div(a, b)", "ggml_div_inplace", wants=(_ROWS_OF_A,)),
    *(
        Row(op, f"ggml_{op}(x)", f"ggml_{op}_inplace", wants=(_ROWS_OF_X,))
        for op in ("sqr", "sqrt", "log", "sin", "cos")
    ),
    *(
        Row(op, f"ggml_{op}(x)", f"ggml_{op}_inplace", stored="", wants=_ROUND if op == "round" else ())
        for op in UNARY_INPLACE
    ),
    *(Row(op, f"ggml_{op}(x)", stored="") for op in UNARY),
    Row(
        "leaky_relu",
        "ggml_leaky_relu(x, slope, false)",
        wants=(
            Wants(
                "CPU",
                "x",
                CONTIGUOUS,
                "ignores nb2 and nb3 of x",
                "src/ggml-cpu/ops.cpp",
                "leaky_relu/cpu-outer-stride",
            ),
        ),
    ),
    Row(
        "mean", "ggml_mean(x)", wants=(Wants("CPU", "x", ROWS, "ignores nb0", "src/ggml-cpu/ops.cpp", "mean/cpu-step"),)
    ),
    Row(
        "scale",
        "ggml_scale_bias(x, scale, bias)",
        "ggml_scale_bias_inplace",
        wants=(Wants("CPU", "dtype", ("f32",), "aborts for every type but f32", "src/ggml-cpu/ops.cpp"),),
    ),
    Row(
        "clamp",
        "ggml_clamp(x, min, max)",
        "ggml_clamp_inplace",
        wants=(
            Wants("CPU", "x", CONTIGUOUS, "ignores nb2 and nb3 of x", "src/ggml-cpu/ops.cpp", "clamp/cpu-outer-stride"),
        ),
    ),
    Row("exp", "ggml_exp(x)", "ggml_exp_inplace"),
    Row("silu", "ggml_silu(x)", "ggml_silu_inplace"),
    Row(
        "rms_norm",
        "ggml_rms_norm(x, eps)",
        wants=(
            Wants("CPU", "x", ROWS, "aborts unless x's nb0 is the element size", "src/ggml-cpu/ops.cpp"),
            Wants("Vulkan", "x", ROWS, "ignores nb0", f"{SHADERS}/rms_norm.comp", "rms_norm/vulkan-row-stride"),
            Wants(
                "Vulkan", "grid", (True,), "aborts for more rows than a grid takes", "src/ggml-vulkan/ggml-vulkan.cpp"
            ),
        ),
    ),
    Row("norm", "ggml_norm(x, eps)"),
    Row("gated_delta_net", "ggml_gated_delta_net(q, k, v, g, beta, state, snapshots)", results=("out", "state_out")),
)
#: Every op with its row, those that other packages register among them.
OPS: Mapping[str, Row] = {row.op: row for rows in (TABLE, *rows_of("ggml")) for row in rows}
