"""One row per op that ggml has a node for."""

from __future__ import annotations

from collections.abc import Mapping

from opconform.backends.ggml.rows import Row
from opconform.backends.rows import rows_of

#: Strides and offsets travel to the kernels as int32, and ggml_set asserts an offset below 2^30.
LARGEST_PARAM = 2**30 - 1

ROWS = (
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
    Row("add", "ggml_add(a, b)", "ggml_add_inplace"),
    Row("mul", "ggml_mul(a, b)", "ggml_mul_inplace"),
    Row("scale", "ggml_scale_bias(x, scale, bias)", "ggml_scale_bias_inplace"),
    Row("clamp", "ggml_clamp(x, min, max)", "ggml_clamp_inplace"),
    Row("exp", "ggml_exp(x)", "ggml_exp_inplace"),
    Row("silu", "ggml_silu(x)", "ggml_silu_inplace"),
    Row("norm", "ggml_norm(x, eps)"),
    Row("gated_delta_net", "ggml_gated_delta_net(q, k, v, g, beta, state, snapshots)", results=("out", "state_out")),
)
#: Every op with its row, those that other packages register among them.
OPS: Mapping[str, Row] = {row.op: row for rows in (ROWS, *rows_of("ggml")) for row in rows}
