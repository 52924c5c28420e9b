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

#: The gated units with their numbers (enum ggml_glu_op).
GATES = {"reglu": 0, "geglu": 1, "swiglu": 2, "geglu_erf": 4, "geglu_quick": 5}

#: UPSCALE's modes: numbers of enum ggml_scale_mode, with the bits of enum ggml_scale_flag.
SCALES = {
    "nearest": 0,
    "bilinear": 1,
    "bicubic": 2,
    "bilinear+antialias": 1 | 1 << 9,
    "nearest+align_corners": 1 << 8,
    "bilinear+align_corners": 1 | 1 << 8,
    "bicubic+align_corners": 2 | 1 << 8,
}

_MISALIGNED = Wants(
    "Vulkan",
    "aligned",
    (True,),
    "aborts for an argument that does not start where a storage buffer may",
    "src/ggml-vulkan/ggml-vulkan-push-constants.h, init_pushconst_tensor_offsets",
)
_CPU_OPS = "src/ggml-cpu/ops.cpp"
_VK_OPS = "src/ggml-vulkan/ggml-vulkan.cpp"


def _cpu_rows(*names: str, source: str = _CPU_OPS) -> tuple[Wants, ...]:
    return tuple(Wants("CPU", it, ROWS, f"aborts unless {it}'s nb0 is the element size", source) for it in names)


def _cpu_contiguous(*names: str) -> tuple[Wants, ...]:
    return tuple(Wants("CPU", it, CONTIGUOUS, f"aborts unless {it} is contiguous", _CPU_OPS) for it in names)


def _cpu_ignores(op: str, what: str, allowed: LayoutClass, name: str = "x") -> Wants:
    """Strides that a kernel of the CPU does not look at, and only asserts in debug builds, if at all."""
    return Wants("CPU", name, allowed, f"ignores {what} of {name}", _CPU_OPS, f"{op}/cpu-strides")


def _cpu_packed(op: str, name: str = "x") -> Wants:
    pinned = f"{op}/cpu-strides" if name == "x" else f"{op}/cpu-strides-{name}"
    return Wants("CPU", name, CONTIGUOUS, f"reads {name} as if it were packed", _CPU_OPS, pinned)


_ROPE = f"{_CPU_OPS}, ggml_compute_forward_rope_flt; src/ggml-vulkan/vulkan-shaders/rope_funcs.glsl"
_SOFT_MAX = f"{_CPU_OPS}, ggml_compute_forward_soft_max_f32; src/ggml-vulkan/vulkan-shaders/soft_max.comp"
_ADD_ID = "src/ggml-vulkan/vulkan-shaders/add_id.comp"


_VK_FLASH = "src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_flash_attn"
_VK_PRODUCTS = "src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_mul_mat_q_f16"


def _converted_b(op: str, pinned: str) -> Wants:
    """A b whose rows are apart is copied into float16 first (not by ggml_vk_mul_mat_vec_q_f16), and as if no stride
    were 0."""
    does = "makes float16 of a b that is not contiguous"
    source = f"{_VK_PRODUCTS}: y_non_contig, ggml_vk_dim01_contiguous"
    return Wants("Vulkan", "b", CONTIGUOUS, does, source, f"{op}/{pinned}")


def _vk_reads_packed(op: str, name: str) -> Wants:
    does = f"reads {name} as if it were packed"
    return Wants("Vulkan", name, CONTIGUOUS, does, f"{SHADERS}/{op}.comp", f"{op}/vulkan-strided-{name}")


def _packed_angles(op: str) -> tuple[Wants, ...]:
    return tuple(
        Wants(device, name, CONTIGUOUS, f"ignores nb0 of {name}", _ROPE, f"{op}/{name}-step")
        for device in ("CPU", "Vulkan")
        for name in ("pos", "factors")
    )


def _pos_offset(op: str) -> Wants:
    does = "drops an offset of pos at which no storage buffer may start"
    source = "src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_rope"
    return Wants("Vulkan", "aligned", (True,), does, source, f"{op}/vulkan-pos-offset")


def _heads_of_64(op: str) -> Wants:
    does, source = "takes every head for one of 64", f"{SHADERS}/{op.removeprefix('rwkv_')}.comp"
    return Wants("Vulkan", "head_size", (64,), does, source, f"{op}/vulkan-head-size")


def _step_wants(op: str) -> tuple[Wants, ...]:
    """What the optimiser steps want of the arguments beside the weights, which are packed."""
    source = f"{_CPU_OPS}, ggml_compute_forward_{op}_f32; {SHADERS}/{op}.comp"
    names = ("grad", "settings")
    bugs = [
        Wants(device, name, CONTIGUOUS, f"reads {name} as if it were packed", source, f"{op}/strided-{name}")
        for device in (("CPU",) if op == "opt_step_adamw" else ("CPU", "Vulkan"))
        for name in names
    ]
    asserts = [
        Wants("Vulkan", name, CONTIGUOUS, f"aborts unless {name} is contiguous", "src/ggml-vulkan/ggml-vulkan.cpp")
        for name in (names if op == "opt_step_adamw" else ())
    ]
    return (*bugs, *asserts, _MISALIGNED)


_PRODUCT_ROWS = _cpu_rows("a", "b", source="src/ggml-cpu/ggml-cpu.c")

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
    Row(
        "cpy_blocks",
        "ggml_cpy(x, out)",
        named="CPY",
        mixed=True,
        wants=(
            Wants("CPU", "x", ROWS, "has no code for an x whose rows are not contiguous, and aborts", _CPU_OPS),
            Wants("CPU", "out", CONTIGUOUS, "has no code for an out that is not contiguous, and aborts", _CPU_OPS),
            Wants("Vulkan", "x", ROWS, "ignores nb0 of x", f"{SHADERS}/copy_to_quant.comp", "cpy_blocks/vulkan-step-x"),
            Wants(
                "Vulkan", "out", ROWS, "ignores nb0 of out", f"{SHADERS}/copy_from_quant.comp", "cpy_blocks/vulkan-step"
            ),
            Wants(
                "Vulkan",
                "aligned",
                (True,),
                "drops the part of an offset at which no storage buffer may start",
                _VK_OPS,
                "cpy_blocks/vulkan-offset",
            ),
        ),
    ),
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
        once_inplace=True,
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
    *(
        Row(gate, f"ggml_glu(x, GGML_GLU_OP_{gate.upper()}, swapped)", stored=f"{number} swapped")
        for gate, number in GATES.items()
    ),
    *(
        Row(
            f"{gate}_split",
            f"ggml_glu_split(a, b, GGML_GLU_OP_{gate.upper()})",
            stored=f"{number} 0",
            named=gate.upper(),
        )
        for gate, number in GATES.items()
    ),
    Row("swiglu_oai", "ggml_swiglu_oai(a, b, alpha, limit)", stored="3 0 alpha limit"),
    Row("concat", "ggml_concat(a, b, dim)"),
    Row("repeat", "ggml_repeat_4d(x, out.ne0, out.ne1, out.ne2, out.ne3)", wants=_cpu_rows("x")),
    Row("dup", "ggml_dup(x)"),
    Row(
        "sum",
        "ggml_sum(x)",
        wants=(
            Wants("Vulkan", "empty", (False,), "divides by the size of an empty x: SIGFPE", f"{_VK_OPS}, ggml_vk_sum"),
            _cpu_ignores("sum", "nb0", ROWS),
            Wants(
                "Vulkan",
                "x",
                CONTIGUOUS,
                "reads x as if it were packed",
                "src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_sum",
                "sum/vulkan-padded",
            ),
        ),
    ),
    Row(
        "group_norm",
        "ggml_group_norm(x, n_groups, eps)",
        wants=(
            *_cpu_rows("x"),
            Wants(
                "Vulkan",
                "even",
                (True,),
                "takes the last group of channels for as large as the others",
                "src/ggml-vulkan/vulkan-shaders/group_norm.comp",
                "group_norm/vulkan-last-group",
            ),
            _MISALIGNED,
        ),
    ),
    Row(
        "diag_mask_inf",
        "ggml_diag_mask_inf(x, n_past)",
        "ggml_diag_mask_inf_inplace",
        wants=(Wants("CPU", "x", CONTIGUOUS, "aborts unless x is contiguous", _CPU_OPS), _MISALIGNED),
    ),
    Row(
        "mul_mat",
        "ggml_mul_mat(a, b)",
        mixed=True,
        wants=(
            *_PRODUCT_ROWS,
            Wants("Vulkan", "a", CONTIGUOUS, "ignores nb2 of a", _VK_PRODUCTS, "mul_mat/vulkan-padded-a"),
            _converted_b("mul_mat", "vulkan-padded-b"),
            _MISALIGNED,
        ),
    ),
    Row(
        "mul_mat_id",
        "ggml_mul_mat_id(a, b, ids)",
        mixed=True,
        wants=(
            *_PRODUCT_ROWS,
            Wants(
                "Vulkan",
                "a",
                CONTIGUOUS,
                "ignores nb2 of a",
                "src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_mul_mat_vec_id_q_f16",
                "mul_mat_id/vulkan-expert-stride",
            ),
            _converted_b("mul_mat_id", "vulkan-repeated-b"),
            Wants("Vulkan", "ids", CONTIGUOUS, "ignores nb0 of ids", _VK_PRODUCTS, "mul_mat_id/vulkan-ids-step"),
            _MISALIGNED,
        ),
    ),
    Row("out_prod", "ggml_out_prod(a, b)", mixed=True, wants=(*_cpu_rows("a"), _MISALIGNED)),
    Row(
        "get_rows",
        "ggml_get_rows(a, b)",
        mixed=True,
        wants=(
            _cpu_ignores("get_rows", "nb0", ROWS, "a"),
            Wants(
                "Vulkan",
                "a",
                ROWS,
                "ignores nb0 of a",
                "src/ggml-vulkan/vulkan-shaders/get_rows.comp",
                "get_rows/cpu-strides",
            ),
        ),
    ),
    Row("set_rows", "ggml_set_rows(a, b, c)", "ggml_set_rows", sources="b c a", mixed=True),
    Row(
        "add_id",
        "ggml_add_id(a, b, ids)",
        mixed=True,
        wants=(
            *_cpu_rows("a", "b"),
            *(
                Wants("Vulkan", it, ROWS, f"ignores nb0 of {it}", _ADD_ID, f"add_id/vulkan-step-{it}")
                for it in ("a", "b", "ids")
            ),
            _MISALIGNED,
        ),
    ),
    Row(
        "argsort",
        "ggml_argsort(x, order)",
        mixed=True,
        wants=(_cpu_ignores("argsort", "nb0, nb2 and nb3", CONTIGUOUS), _MISALIGNED),
    ),
    Row(
        "top_k",
        "ggml_top_k(x, k)",
        stored="",
        needs="ggml_argsort_top_k",
        shaped={"k": "out.ne0"},
        mixed=True,
        wants=(
            _cpu_ignores("top_k", "nb0, nb2 and nb3", CONTIGUOUS),
            Wants(
                "Vulkan",
                "single",
                (False,),
                "finds the least of a row of negative numbers where k is 1",
                "src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_topk",
                "top_k/vulkan-negative",
            ),
            _MISALIGNED,
        ),
    ),
    Row("argmax", "ggml_argmax(x)", mixed=True, wants=(_cpu_ignores("argmax", "nb0", ROWS), _MISALIGNED)),
    Row(
        "count_equal",
        "ggml_count_equal(a, b)",
        mixed=True,
        wants=(
            Wants(
                "CPU",
                "matrix",
                (True,),
                "finds row i1 of matrix i2 by i3·ne3 and i2·ne2 instead of i3·ne2·ne1 and i2·ne1",
                f"{_CPU_OPS}, ggml_compute_forward_count_equal_i32",
                "count_equal/cpu-row-index",
            ),
            _MISALIGNED,
        ),
    ),
    Row(
        "soft_max",
        "ggml_soft_max_ext(x, mask?, scale, max_bias)",
        then=("ggml_soft_max_add_sinks sinks",),
        sources="x mask sinks",
        mixed=True,
        wants=(
            *(
                Wants(device, "sinks", CONTIGUOUS, "ignores nb0 of sinks", _SOFT_MAX, "soft_max/sinks-step")
                for device in ("CPU", "Vulkan")
            ),
            _MISALIGNED,
        ),
    ),
    Row("add1", "ggml_add1(a, b)", "ggml_add1_inplace", wants=_cpu_rows("a")),
    Row(
        "repeat_back",
        "ggml_repeat_back(x, like)",
        sources="x",
        shaped={"like": "out"},
        wants=(
            *_cpu_rows("x"),
            Wants(
                "Vulkan",
                "aligned",
                (True,),
                "drops an offset of x at which no storage buffer may start",
                f"{SHADERS}/repeat_back.comp",
                "repeat_back/vulkan-offset",
            ),
        ),
    ),
    Row(
        "silu_back",
        "ggml_silu_back(grad, x)",
        wants=(
            *(_cpu_ignores("silu_back", "nb0, nb2 and nb3", CONTIGUOUS, it) for it in ("grad", "x")),
            _vk_reads_packed("silu_back", "x"),
            _MISALIGNED,
        ),
    ),
    Row(
        "rms_norm_back",
        "ggml_rms_norm_back(dz, x, eps)",
        wants=(*_cpu_rows("dz", "x"), _vk_reads_packed("rms_norm_back", "x"), _MISALIGNED),
    ),
    Row(
        "get_rows_back",
        "ggml_get_rows_back(a, b, table)",
        sources="a b",
        shaped={"table": "out"},
        mixed=True,
        wants=(*_cpu_rows("a"), _cpu_ignores("get_rows_back", "nb0", ROWS, "b")),
    ),
    Row(
        "diag_mask_zero",
        "ggml_diag_mask_zero(x, n_past)",
        "ggml_diag_mask_zero_inplace",
        wants=(Wants("CPU", "x", CONTIGUOUS, "aborts unless x is contiguous", _CPU_OPS),),
    ),
    Row(
        "soft_max_back",
        "ggml_soft_max_ext_back(dy, y, scale, 0.0)",
        stored="scale 0",
        wants=(*_cpu_contiguous("dy", "y"), _MISALIGNED),
    ),
    Row(
        "xielu",
        "ggml_xielu(x, alpha_n, alpha_p, beta, eps)",
        stored="",
        wants=(Wants("CPU", "x", CONTIGUOUS, "aborts unless only rows are padded", "src/ggml-cpu/unary-ops.cpp"),),
    ),
    Row("swiglu_clamp", "ggml_swiglu_clamp(a, b, limit)", stored="6 0 0 limit"),
    Row(
        "cross_entropy_loss",
        "ggml_cross_entropy_loss(x, labels)",
        wants=(
            *_cpu_rows("x", "labels"),
            *(_cpu_ignores("cross_entropy_loss", "nb2 and nb3", CONTIGUOUS, it) for it in ("x", "labels")),
            _MISALIGNED,
        ),
    ),
    Row(
        "cross_entropy_loss_back",
        "ggml_cross_entropy_loss_back(grad, x, labels)",
        wants=(*_cpu_contiguous("grad", "x", "labels"), _MISALIGNED),
    ),
    Row(
        "opt_step_adamw",
        "ggml_opt_step_adamw(x, grad, m, v, settings)",
        "ggml_opt_step_adamw",
        wants=(
            *_step_wants("opt_step_adamw"),
            Wants(
                "Vulkan",
                "moments",
                ("aligned",),
                "aborts for moments that do not start where a storage buffer may",
                "src/ggml-vulkan/ggml-vulkan-push-constants.h, init_pushconst_tensor_offsets",
            ),
        ),
    ),
    Row("opt_step_sgd", "ggml_opt_step_sgd(x, grad, settings)", "ggml_opt_step_sgd", wants=_step_wants("opt_step_sgd")),
    Row(
        "rope_back",
        "ggml_rope_multi_back(x, pos, factors?, n_dims, {s0 s1 s2 s3}, mode, n_ctx_orig, freq_base, freq_scale,"
        " ext_factor, attn_factor, beta_fast, beta_slow)",
        stored="0 n_dims mode 0 n_ctx_orig freq_base freq_scale ext_factor attn_factor beta_fast beta_slow s0 s1 s2 s3",
        mixed=True,
        wants=(
            *_cpu_rows("x"),
            *_packed_angles("rope_back"),
            Wants("Vulkan", "x", ROWS, "ignores nb0 of x", _ROPE, "rope_back/vulkan-x-step"),
            _pos_offset("rope_back"),
        ),
    ),
    Row(
        "rope",
        "ggml_rope_multi(x, pos, factors?, n_dims, {s0 s1 s2 s3}, mode, n_ctx_orig, freq_base, freq_scale, ext_factor,"
        " attn_factor, beta_fast, beta_slow)",
        "ggml_rope_multi_inplace",
        stored="0 n_dims mode 0 n_ctx_orig freq_base freq_scale ext_factor attn_factor beta_fast beta_slow s0 s1 s2 s3",
        mixed=True,
        wants=(
            *_cpu_rows("x"),
            *_packed_angles("rope"),
            _pos_offset("rope"),
        ),
    ),
    Row(
        "roll",
        "ggml_roll(x, shift0, shift1, shift2, shift3)",
        wants=(Wants("CPU", "dtype", ("f32",), "aborts for every type but f32", _CPU_OPS),),
    ),
    Row("pad_reflect_1d", "ggml_pad_reflect_1d(x, p0, p1)"),
    Row(
        "pad_circular",
        "ggml_pad_ext_circular(x, lp0, rp0, lp1, rp1, lp2, rp2, lp3, rp3)",
        stored="lp0 rp0 lp1 rp1 lp2 rp2 lp3 rp3 1",
        named="PAD",
        wants=(
            Wants("CPU", "dtype", ("f32",), "aborts for every type but f32", _CPU_OPS),
            *(
                Wants(
                    device,
                    "once",
                    (True,),
                    "reads before x where more is put before x than x has",
                    f"{_CPU_OPS}, ggml_wrap_around; {SHADERS}/pad.comp, wrap_around",
                    "pad_circular/twice-around",
                )
                for device in ("CPU", "Vulkan")
            ),
        ),
    ),
    Row("win_part", "ggml_win_part(x, w)", stored="x.ne1/w x.ne2/w w", wants=(_cpu_packed("win_part"),)),
    Row(
        "win_unpart",
        "ggml_win_unpart(x, w0, h0, w)",
        stored="w",
        shaped={"w0": "out.ne1", "h0": "out.ne2"},
        wants=(_cpu_packed("win_unpart"),),
    ),
    Row(
        "get_rel_pos",
        "ggml_get_rel_pos(x, out.ne1, out.ne1)",
        mixed=True,
        wants=(
            _cpu_packed("get_rel_pos"),
            Wants("CPU", "types", ("f16-f16", "bf16-f16"), "aborts for every type but f16 and bf16", _CPU_OPS),
            Wants(
                "CPU",
                "types",
                ("f16-f16", "f32-f16"),
                "copies the bits of bf16 into an output of f16",
                f"{_CPU_OPS}, ggml_compute_forward_get_rel_pos",
                "get_rel_pos/cpu-bf16",
            ),
        ),
    ),
    Row("add_rel_pos", "ggml_add_rel_pos(a, pw, ph)", "ggml_add_rel_pos_inplace", stored="inplace"),
    Row("arange", "ggml_arange(start, stop, step)"),
    Row("fill", "ggml_fill(x, value)", "ggml_fill_inplace", wants=(_MISALIGNED,)),
    Row(
        "timestep_embedding",
        "ggml_timestep_embedding(x, dim, max_period)",
        wants=(
            *_cpu_rows("x"),
            Wants(
                "Vulkan",
                "x",
                CONTIGUOUS,
                "ignores nb0 of x",
                f"{SHADERS}/timestep_embedding.comp",
                "timestep_embedding/vulkan-step",
            ),
            _MISALIGNED,
        ),
    ),
    Row(
        "upscale",
        "ggml_interpolate(x, out.ne0, out.ne1, out.ne2, out.ne3, mode)",
        words={"mode": SCALES},
    ),
    Row(
        "im2col",
        "ggml_im2col(kernel, x, s0, s1, p0, p1, d0, d1, is_2d, out.type)",
        stored="s0 s1 p0 p1 d0 d1 is_2d",
        mixed=True,
        wants=(*_cpu_rows("x"), _cpu_packed("im2col"), _MISALIGNED),
    ),
    Row(
        "im2col_3d",
        "ggml_im2col_3d(kernel, x, ic, s0, s1, s2, p0, p1, p2, d0, d1, d2, out.type)",
        stored="s0 s1 s2 p0 p1 p2 d0 d1 d2 ic",
        mixed=True,
        wants=_cpu_rows("x"),
    ),
    Row(
        "im2col_back",
        "ggml_im2col_back(x, kernel, out.ne, s0, s1, p0, p1, d0, d1, is_2d)",
        mixed=True,
        wants=(_cpu_packed("im2col_back"),),
    ),
    Row("col2im_1d", "ggml_col2im_1d(x, s0, oc, p0)", wants=(_MISALIGNED,)),
    Row("pool_1d", "ggml_pool_1d(x, kind, k0, s0, p0)", mixed=True, wants=(_cpu_packed("pool_1d"), _MISALIGNED)),
    Row(
        "pool_2d",
        "ggml_pool_2d(x, kind, k0, k1, s0, s1, p0, p1)",
        stored="kind k0 k1 s0 s1 int(p0) int(p1)",
        mixed=True,
        wants=(
            _cpu_packed("pool_2d"),
            Wants(
                "Vulkan",
                "filled",
                (True,),
                "takes all of a plane for a window that lies before it",
                f"{SHADERS}/pool2d.comp",
                "pool_2d/vulkan-before",
            ),
            _MISALIGNED,
        ),
    ),
    Row(
        "pool_2d_back",
        "ggml_pool_2d_back(x, y, kind, k0, k1, s0, s1, p0, p1)",
        stored="kind k0 k1 s0 s1 int(p0) int(p1)",
        wants=(_cpu_packed("pool_2d_back"), _cpu_packed("pool_2d_back", "y")),
    ),
    Row("conv_2d", "ggml_conv_2d_direct(kernel, x, s0, s1, p0, p1, d0, d1)", mixed=True, wants=(_MISALIGNED,)),
    Row(
        "conv_2d_dw",
        "ggml_conv_2d_dw_direct(kernel, x, s0, s1, p0, p1, d0, d1)",
        mixed=True,
        wants=(
            Wants(
                "CPU", "x", CONTIGUOUS, "aborts for an x that is neither contiguous nor channel by channel", _CPU_OPS
            ),
            _cpu_packed("conv_2d_dw", "kernel"),
            Wants(
                "Vulkan", "x", CONTIGUOUS, "aborts for an x that is neither contiguous nor channel by channel", _VK_OPS
            ),
            Wants(
                "Vulkan",
                "kernel",
                CONTIGUOUS,
                "reads the kernel as if it were packed",
                f"{SHADERS}/conv2d_dw.comp",
                "conv_2d_dw/cpu-strides-kernel",
            ),
            _MISALIGNED,
        ),
    ),
    Row(
        "conv_3d",
        "ggml_conv_3d_direct(kernel, x, s0, s1, s2, p0, p1, p2, d0, d1, d2, c, n, oc)",
        mixed=True,
        wants=(Wants("CPU", "kernel", CONTIGUOUS, "aborts unless the kernel is contiguous", _CPU_OPS), _MISALIGNED),
    ),
    Row(
        "conv_transpose_1d",
        "ggml_conv_transpose_1d(kernel, x, s0, 0, 1)",
        stored="s0 0 1",
        mixed=True,
        wants=(
            *_cpu_rows("kernel", "x"),
            *(
                Wants("Vulkan", it, ROWS, f"aborts unless {it}'s nb0 is the element size", _VK_OPS)
                for it in ("kernel", "x")
            ),
            _MISALIGNED,
        ),
    ),
    Row(
        "conv_transpose_2d",
        "ggml_conv_transpose_2d_p0(kernel, x, stride)",
        mixed=True,
        wants=(
            *_cpu_rows("kernel", "x"),
            Wants(
                "CPU",
                "kernel",
                CONTIGUOUS,
                "ignores nb1 of the kernel",
                f"{_CPU_OPS}, ggml_compute_forward_conv_transpose_2d_impl",
                "conv_transpose_2d/cpu-kernel",
            ),
            _MISALIGNED,
        ),
    ),
    Row(
        "rwkv_wkv6",
        "ggml_rwkv_wkv6(k, v, r, tf, td, state)",
        results=("out", "state_out"),
        wants=(_heads_of_64("rwkv_wkv6"), _MISALIGNED),
    ),
    Row(
        "rwkv_wkv7",
        "ggml_rwkv_wkv7(r, w, k, v, a, b, state)",
        results=("out", "state_out"),
        wants=(
            Wants(
                "CPU",
                "head_size",
                (64, 128),
                "reads and writes beyond heads of no multiple of its loop's step (32 with AVX2, 64 with AVX-512)",
                f"{_CPU_OPS}, ggml_compute_forward_rwkv_wkv7_f32",
                "rwkv_wkv7/cpu-head-size",
            ),
            _heads_of_64("rwkv_wkv7"),
            _MISALIGNED,
        ),
    ),
    Row(
        "gated_linear_attn",
        "ggml_gated_linear_attn(k, v, q, g, state, scale)",
        results=("out", "state_out"),
        wants=(_MISALIGNED,),
    ),
    Row(
        "ssm_scan",
        "ggml_ssm_scan(state, x, dt, a, b, c, ids, 1)",
        results=("out", "state_out"),
        mixed=True,
        wants=(
            *_cpu_rows("ids"),
            Wants("Vulkan", "ids", ROWS, "ignores nb0 of ids", f"{SHADERS}/ssm_scan.comp", "ssm_scan/vulkan-ids-step"),
            _MISALIGNED,
        ),
    ),
    Row(
        "flash_attn_ext",
        "ggml_flash_attn_ext(q, k, v, mask?, scale, max_bias, logit_softcap)",
        then=("ggml_flash_attn_ext_add_sinks sinks",),
        sources="q k v mask sinks",
        mixed=True,
        wants=(
            *_cpu_rows("q", "k", "v"),
            Wants(
                "CPU",
                "sinks",
                CONTIGUOUS,
                "ignores nb0 of sinks",
                f"{_CPU_OPS}, ggml_compute_forward_flash_attn_ext_f16_one_chunk",
                "flash_attn_ext/sinks-step",
            ),
            *(
                Wants("Vulkan", it, ROWS, f"aborts unless {it}'s nb0 is the element size", _VK_FLASH)
                for it in ("q", "k", "v")
            ),
            Wants("Vulkan", "sinks", CONTIGUOUS, "ignores nb0 of sinks", _VK_FLASH, "flash_attn_ext/sinks-step"),
            _MISALIGNED,
        ),
    ),
    Row(
        "lightning_indexer",
        "ggml_lightning_indexer(q, k, weights, mask)",
        mixed=True,
        wants=_cpu_rows("q", "k", "weights", "mask"),
    ),
    Row("dsv4_hc_comb", "ggml_dsv4_hc_comb(mixes, scale, base, eps, n_iter)"),
    Row("dsv4_hc_pre", "ggml_dsv4_hc_pre(x, weights)"),
    Row("dsv4_hc_post", "ggml_dsv4_hc_post(x, residual, post, comb)"),
    Row("gated_delta_net", "ggml_gated_delta_net(q, k, v, g, beta, state, snapshots)", results=("out", "state_out")),
)
#: Every op with its row, those that other packages register among them.
OPS: Mapping[str, Row] = {row.op: row for rows in (TABLE, *rows_of("ggml")) for row in rows}
