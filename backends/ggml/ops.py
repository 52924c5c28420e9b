"""One row per op that ggml has a node for."""

from __future__ import annotations

from collections.abc import Mapping

from opconform.backends.ggml.rows import Row

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
    Row("gated_delta_net", "ggml_gated_delta_net(q, k, v, g, beta, state, snapshots)", results=("out", "state_out")),
)
OPS: Mapping[str, Row] = {row.op: row for row in ROWS}
