"""What ggml does not take, as data: the constructors' asserts, the kernels' preconditions, and known bugs.

Paths are those of the ggml repository, which llama.cpp carries in its folder ggml/. What is said of a device was also
measured on it (builds b7836, b8121, b8390 and v0.5.0; CPU, and Vulkan on lavapipe).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from opconform.backends.ggml import caching
from opconform.backends.ggml.declarations import TYPES
from opconform.backends.ggml.ops import GATES, OPS, UNARY, UNARY_INPLACE
from opconform.backends.ggml.pieces import inherited
from opconform.harness.model.blocks import BLOCKS
from opconform.harness.model.layouts import LayoutClass
from opconform.harness.model.limits import Limit

_TYPES = ("f32", "f16", "bf16", "i32")
_VK_SHADER = "src/ggml-vulkan/vulkan-shaders/acc.comp"
_VK_CPY = tuple(f"{x}-{out}" for x in _TYPES for out in _TYPES if {x, out} != {"f16", "bf16"})
_VK_BLOCKS = (
    *(f"{name}-f32" for name in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl")),
    *(f"f32-{name}" for name in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl")),
    *(f"{name}-{name}" for name, its in BLOCKS.items() if its.bytes % 2 == 0),  # they go as numbers of 16 or 32 bits
)
#: The CPU makes no blocks of these types, and then copies none either.
_NOT_MADE = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s")
_CPU_BLOCKS = tuple(f"{x}-{out}" for x in (*_TYPES, *BLOCKS) for out in (*_TYPES, *BLOCKS) if out not in _NOT_MADE)
_VK_SUPPORTS = "src/ggml-vulkan/ggml-vulkan.cpp, ggml_backend_vk_device_supports_op"
_CPU_SUPPORTS = "src/ggml-cpu/ggml-cpu.cpp, ggml_backend_cpu_device_supports_op"
_OLD_ACC = f"{_VK_SHADER} before llama.cpp pull request 19426 (13 Feb 2026)"

SPLIT = (*(f"{gate}_split" for gate in GATES), "swiglu_oai", "swiglu_clamp")

#: A constructor makes its output itself, unless it is given one to write into. Those that give several results in one
#: tensor have them copied to where the outputs stand.
FRESH_OUTPUTS: tuple[Limit, ...] = tuple(
    Limit(row.op, "out", LayoutClass.PACKED, "ggml makes a fresh output itself, packed", f"src/ggml.c, {row.symbol}")
    for row in OPS.values()
    if not row.results and "out" not in row.tensors
)

#: What the constructors assert or do: such a call aborts before a device is asked, or says something else.
CONSTRUCTORS: tuple[Limit, ...] = (
    Limit("acc", "dtype", ("f32",), "ggml_acc takes f32 only", "src/ggml.c, ggml_acc_impl"),
    Limit("acc", "a", LayoutClass.CONTIGUOUS, "ggml_acc asserts that a is contiguous", "src/ggml.c, ggml_acc_impl"),
    Limit("cumsum", "dtype", ("f32",), "ggml_cumsum takes f32 only", "src/ggml.c, ggml_cumsum"),
    Limit("cumsum", "axis", (0,), "ggml_cumsum sums along ne0 only", "include/ggml.h, ggml_cumsum"),
    Limit("cumsum", "exclusive", (False,), "ggml_cumsum is inclusive", "include/ggml.h, ggml_cumsum"),
    Limit("cumsum", "reverse", (False,), "ggml_cumsum runs forwards only", "include/ggml.h, ggml_cumsum"),
    Limit("solve_tri", "dtype", ("f32",), "ggml_solve_tri takes f32 only", "src/ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "left", (True,), "ggml_solve_tri solves A X = B only", "src/ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "lower", (True,), "ggml_solve_tri takes lower triangles only", "src/ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "unit", (False,), "ggml_solve_tri reads the diagonal", "src/ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "a", LayoutClass.CONTIGUOUS, "ggml_solve_tri asserts contiguity", "src/ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "b", LayoutClass.CONTIGUOUS, "ggml_solve_tri asserts contiguity", "src/ggml.c, ggml_solve_tri"),
    Limit("tri", "dtype", ("f32",), "ggml_tri takes f32 only", "src/ggml.c, ggml_tri"),
    Limit("tri", "x", LayoutClass.CONTIGUOUS, "ggml_tri asserts contiguity", "src/ggml.c, ggml_tri"),
    Limit(
        "l2_norm",
        "eps_mode",
        ("max",),
        "ggml's eps is the least norm: x / max(norm, eps)",
        "include/ggml.h, ggml_l2_norm",
    ),
    Limit(
        "scale", "x", LayoutClass.CONTIGUOUS, "ggml_scale_bias asserts that only rows are padded",
        "src/ggml.c, ggml_scale_impl (ggml_is_padded_1d)",
    ),
    *(
        Limit(
            op, "x", LayoutClass.ROWS, f"ggml_{op} asserts contiguous rows",
            "src/ggml.c, ggml_unary_impl (ggml_is_contiguous_rows)",
        )
        for op in ("exp", "silu", *UNARY_INPLACE, *UNARY)
    ),
    *(
        Limit(op, "inplace", (False,), f"ggml has no in-place {op}", "include/ggml.h")
        for op in (*UNARY, "leaky_relu", "xielu", "silu_back", "rope_back", *SPLIT)
    ),
    *(
        Limit(op, "repeats", (False,), f"the kernels of {op} want arguments of one shape", "src/ggml-cpu/ops.cpp")
        for op in ("silu_back", "rms_norm_back", "soft_max_back")
    ),
    *(
        Limit(
            op, "x", LayoutClass.PACKED, "ggml_set_param, which marks the weights, asserts that they are no view",
            "src/ggml.c, ggml_set_param",
        )
        for op in ("opt_step_adamw", "opt_step_sgd")
    ),
    Limit("add1", "a", LayoutClass.CONTIGUOUS, "ggml_add1 asserts that only rows are padded", "src/ggml.c, ggml_add1"),
    *(
        Limit(op, "repeats", (False,), "ggml's gated units want a and b of one shape", "src/ggml.c, ggml_glu_impl")
        for op in SPLIT
    ),
    *(
        Limit(op, name, LayoutClass.CONTIGUOUS, "ggml_glu_impl asserts that only rows are padded", "src/ggml.c")
        for op, names in (*((gate, ("x",)) for gate in GATES), *((op, ("a", "b")) for op in SPLIT))
        for name in names
    ),
    *(
        Limit("soft_max", name, LayoutClass.CONTIGUOUS, f"ggml_soft_max_ext asserts a contiguous {name}", "src/ggml.c")
        for name in ("x", "mask")
    ),
    Limit("flash_attn_ext", "k", LayoutClass.ROWS, "ggml_flash_attn_ext asserts that k is no transpose", "src/ggml.c"),
    Limit("flash_attn_ext", "mask", LayoutClass.CONTIGUOUS, "ggml_flash_attn_ext asserts contiguity", "src/ggml.c"),
    Limit("mul_mat", "a", LayoutClass.ROWS, "ggml_mul_mat asserts that a is not transposed", "src/ggml.c"),
    Limit("mul_mat_id", "a", LayoutClass.ROWS, "ggml_mul_mat_id asserts that a is not transposed", "src/ggml.c"),
    Limit("out_prod", "a", LayoutClass.ROWS, "ggml_out_prod asserts that a is not transposed", "src/ggml.c"),
    Limit("set_rows", "a", LayoutClass.ROWS, "ggml_set_rows asserts contiguous rows", "src/ggml.c, ggml_set_rows"),
    Limit("set_rows", "b", LayoutClass.ROWS, "ggml_set_rows asserts contiguous rows", "src/ggml.c, ggml_set_rows"),
    Limit("roll", "x", LayoutClass.ROWS, "ggml_roll asserts x's nb0", "src/ggml.c, ggml_roll"),
    *(
        Limit(op, "dtype", ("f32",), f"ggml_{op} takes f32 only", f"src/ggml.c, ggml_{op}")
        for op in ("pad_reflect_1d", "win_part", "win_unpart", "add_rel_pos")
    ),
    Limit(
        "pad_reflect_1d", "x", LayoutClass.CONTIGUOUS, "ggml_pad_reflect_1d asserts that x is contiguous", "src/ggml.c"
    ),
    Limit(
        "get_rel_pos", "types", ("f16-f16", "bf16-f16", "f32-f16"), "ggml_get_rel_pos makes f16",
        "src/ggml.c, ggml_get_rel_pos",
    ),
    Limit("col2im_1d", "x", LayoutClass.CONTIGUOUS, "ggml_col2im_1d asserts that x is contiguous", "src/ggml.c"),
    Limit("fill", "x", LayoutClass.CONTIGUOUS, "ggml_fill asserts that x is contiguous", "src/ggml.c, ggml_fill_impl"),
    *(
        Limit("add_rel_pos", name, LayoutClass.CONTIGUOUS, f"ggml_add_rel_pos wants {name} contiguous", "src/ggml.c")
        for name in ("a", "pw", "ph")
    ),
    *FRESH_OUTPUTS,
)  # fmt: skip

_VIEW_FITS = "ggml asserts that a view's elements, packed, fit into what it views: no stride 0"
_DELTA_INPUTS = ("q", "k", "v", "g", "beta", "state")
_DELTA_NET = "src/ggml.c, ggml_gated_delta_net"
_DELTA_NET_CPU = "src/ggml-cpu/ops.cpp, ggml_compute_forward_gated_delta_net_one_chunk"

_FORM_MASKS = (
    *(f"{form} {mask}" for form in ("two_part", "concat") for mask in ("none", "f32", "f16")),
    *("flash none", "flash f16"),
)

#: What the graphs of many nodes do not take.
GRAPHS: tuple[Limit, ...] = (
    *(
        Limit("gated_delta_net", name, LayoutClass.ROWS, "ggml_gated_delta_net asserts contiguous rows", _DELTA_NET)
        for name in ("q", "k", "v")
    ),
    *(
        Limit("gated_delta_net", name, LayoutClass.CONTIGUOUS, "ggml_gated_delta_net asserts contiguity", _DELTA_NET)
        for name in ("g", "beta", "state")
    ),
    *(
        Limit(op, name, LayoutClass.CONTIGUOUS, f"ggml_{op} asserts contiguity", f"src/ggml.c, ggml_{op}")
        for op, names in (
            ("rwkv_wkv6", ("k", "v", "r", "tf", "td", "state")),
            ("rwkv_wkv7", ("r", "w", "k", "v", "a", "b", "state")),
            ("gated_linear_attn", ("k", "v", "q", "g", "state")),
            ("ssm_scan", ("state", "dt", "a")),
        )
        for name in names
    ),
    *(
        Limit("ssm_scan", name, LayoutClass.ROWS, f"ggml_ssm_scan asserts nb0 of {name}", "src/ggml.c, ggml_ssm_scan")
        for name in ("x", "b", "c")
    ),
    Limit(
        "ssm_scan", "side_by_side", (True,), "ggml_ssm_scan asserts that nb1 of x, b and c is the length of a row",
        "src/ggml.c, ggml_ssm_scan",
    ),
    Limit("gated_delta_net", "heads", ("tiled",), "ggml_gated_delta_net shares heads as h % H_k", _DELTA_NET_CPU),
    Limit("gated_delta_net", "state_layout", ("vk",), "ggml_gated_delta_net holds states as [V,K]", _DELTA_NET_CPU),
    Limit("gated_delta_net", "square", (True,), "ggml_gated_delta_net wants K = V", _DELTA_NET),
    Limit("gated_delta_net", "usual_scale", (True,), "the scale of ggml_gated_delta_net is 1/√V", _DELTA_NET_CPU),
    Limit("gated_delta_net", "gate", ("log",), "ggml_gated_delta_net takes log gates", _DELTA_NET_CPU),
    *(
        Limit("gated_delta_net_chunk", name, LayoutClass.STRIDED, _VIEW_FITS, "src/ggml.c, ggml_new_tensor_impl")
        for name in _DELTA_INPUTS
    ),
    *(
        Limit("mla_absorbed", name, LayoutClass.STRIDED, _VIEW_FITS, "src/ggml.c, ggml_new_tensor_impl")
        for name in ("q_nope", "q_pe", "c_kv", "k_pe", "w_uk", "w_uv", "mask")
    ),
    Limit(
        "mla_absorbed", "form_mask", _FORM_MASKS, "ggml_flash_attn_ext asserts that the mask is f16",
        "src/ggml.c, ggml_flash_attn_ext",
    ),
    *(
        Limit("moe_routing", name, LayoutClass.CONTIGUOUS, "ggml_soft_max_ext and the kernels of ARGSORT and ADD want "
              f"{name} contiguous", "src/ggml.c, ggml_soft_max_impl; src/ggml-cpu/ops.cpp")
        for name in ("x", "b")
    ),
    *(
        Limit("rope_set_rows", name, widest, f"the kernels of ROPE and SET_ROWS want {what}", "src/ggml-cpu/ops.cpp")
        for name, widest, what in (
            ("x", LayoutClass.ROWS, "contiguous rows of x"),
            ("cache", LayoutClass.ROWS, "contiguous rows of the cache"),
            ("pos", LayoutClass.CONTIGUOUS, "pos contiguous"),
            ("factors", LayoutClass.CONTIGUOUS, "factors contiguous"),
        )
    ),
    Limit(
        "gated_delta_net_chunk", "gate", ("log",), "llama.cpp's graph sums log gates",
        "llama.cpp, src/models/delta-net-base.cpp, build_delta_net_chunking",
    ),
)  # fmt: skip

_ALIGNED = "Vulkan's GATED_DELTA_NET aborts unless every source starts where a storage buffer may"
_SUBBUFFER = "src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_tensor_subbuffer"

#: What a kernel wants although supports_op said yes.
GRAPH_KERNELS: tuple[Limit, ...] = (
    Limit("gated_delta_net", "aligned", (True,), _ALIGNED, _SUBBUFFER, kind="kernel", device="Vulkan"),
    Limit(
        "moe_routing",
        "aligned",
        (True,),
        "Vulkan's ARGSORT, GET_ROWS and what they are fused with abort unless what "
        "they read starts where a storage buffer may",
        _SUBBUFFER,
        kind="kernel",
        device="Vulkan",
    ),
)

#: Of every build that has ggml_gated_delta_net so far.
DELTA_NET_BUGS: tuple[Limit, ...] = (
    Limit(
        "gated_delta_net", "alike", (True,), "the shader finds k by the strides of q",
        "src/ggml-vulkan/vulkan-shaders/gated_delta_net.comp (k_off = q_off)",
        kind="bug", device="Vulkan", pinned="gated_delta_net/vulkan-key-strides",
    ),
)  # fmt: skip

#: The snapshots of builds from before June 2026.
ONE_SNAPSHOT = Limit(
    "gated_delta_net", "snapshots", (1,), "this build's ggml_gated_delta_net gives one state", _DELTA_NET
)

#: What a device's supports_op refuses.
DEVICES: tuple[Limit, ...] = (
    *(
        Limit(
            op,
            "shortens_nan",
            (False,),
            "rounds a NaN to bf16 like a number: one whose upper bits are those of infinity becomes infinite, or -0",
            "src/ggml-vulkan/vulkan-shaders/types.glsl, fp32_to_bf16",
            kind="bug",
            device="Vulkan",
            pinned=f"{op}/vulkan-nan",
        )
        for op in ("cpy", "set_rows")
    ),
    Limit(
        "gated_delta_net",
        "head_size",
        (16, 32, 64, 128),
        "Vulkan's gated_delta_net has these head sizes only",
        _VK_SUPPORTS,
        device="Vulkan",
    ),
    Limit(
        "gated_linear_attn",
        "head_size",
        (64,),
        "Vulkan's gated_linear_attn has heads of 64 only",
        _VK_SUPPORTS,
        device="Vulkan",
    ),
    *(
        Limit(
            "ssm_scan",
            subject,
            allowed,
            f"Vulkan's ssm_scan has these only for {subject}",
            _VK_SUPPORTS,
            device="Vulkan",
        )
        for subject, allowed in (("form", ("mamba2",)), ("d_state", (128, 256)), ("head_dim", (16, 32, 64)))
    ),
    Limit("set", "dtype", ("f32", "i32"), "Vulkan sets f32 and i32 only", _VK_SUPPORTS, device="Vulkan"),
    *(
        Limit(op, "x", LayoutClass.ROWS, f"Vulkan's {op} wants contiguous rows", _VK_SUPPORTS, device="Vulkan")
        for op in ("cumsum", "sum_rows", "mean")
    ),
    *(
        Limit(op, "streams", (4,), f"Vulkan's {op} has four streams only", _VK_SUPPORTS, device="Vulkan")
        for op in ("dsv4_hc_pre", "dsv4_hc_post")
    ),
    Limit("out_prod", "weights", ("f32",), "Vulkan's out_prod takes f32 only", _VK_SUPPORTS, device="Vulkan"),
    Limit(
        "out_prod",
        "weights",
        tuple(name for name in TYPES if name != "bf16"),
        "the CPU's out_prod takes no bf16",
        _CPU_SUPPORTS,
        device="CPU",
    ),
    Limit(
        "out_prod",
        "narrow_repeats",
        (False,),
        "the CPU's out_prod repeats weights of f32 only",
        _CPU_SUPPORTS,
        device="CPU",
    ),
    Limit(
        "mul_mat",
        "factors",
        (*(f"{name}-f32" for name in TYPES), "f16-f16"),
        "the CPU's mul_mat takes b as f32 or as its dot product has it",
        _CPU_SUPPORTS,
        device="CPU",
    ),
    Limit(
        "mul_mat",
        "factors",
        (*(f"{name}-f32" for name in TYPES), *(f"{name}-f16" for name in TYPES if name != "bf16")),
        "Vulkan's mul_mat takes no f16 beside bf16",
        _VK_SUPPORTS,
        device="Vulkan",
    ),
    Limit(
        "mul_mat", "repeats_ne3", (False,), "Vulkan's mul_mat wants a and b of one ne3", _VK_SUPPORTS, device="Vulkan"
    ),
    Limit("scale", "dtype", ("f32",), "Vulkan scales f32 only", _VK_SUPPORTS, device="Vulkan"),
    *(
        Limit(op, "dtype", ("f32",), f"Vulkan's {op} takes f32 only", _VK_SUPPORTS, device="Vulkan")
        for op in ("diag", "roll", "pad_circular", "silu_back", "sum")
    ),
    Limit("pad", "dtype", ("f32",), "Vulkan's pad takes f32 only", _VK_SUPPORTS, device="Vulkan"),
    Limit("im2col", "types", ("f32-f32", "f32-f16"), "Vulkan's im2col takes f32 only", _VK_SUPPORTS, device="Vulkan"),
    *(
        Limit(op, name, LayoutClass.CONTIGUOUS, f"Vulkan's {op} wants {name} contiguous", _VK_SUPPORTS, device="Vulkan")
        for op, names in (
            *((op, ("x",)) for op in ("im2col", "pool_1d", "pool_2d")),
            *((op, ("kernel", "x")) for op in ("conv_2d", "conv_3d", "conv_transpose_2d")),
        )
        for name in names
    ),
    *(
        Limit(op, "source", ("f32",), f"Vulkan's {op} takes f32 only", _VK_SUPPORTS, device="Vulkan")
        for op in ("pool_1d", "pool_2d")
    ),
    Limit(
        "conv_transpose_1d",
        "weights",
        ("f32",),
        "Vulkan's conv_transpose_1d takes f32 only",
        _VK_SUPPORTS,
        device="Vulkan",
    ),
    *(
        Limit(
            op, name, LayoutClass.CONTIGUOUS, f"Vulkan's {op} wants a contiguous {name}", _VK_SUPPORTS, device="Vulkan"
        )
        for op, names in (
            *((op, ("x",)) for op in ("argmax", "argsort", "top_k", "diag_mask_inf", "group_norm")),
            ("count_equal", ("a", "b")),
            ("out_prod", ("a", "b")),
            ("silu_back", ("grad",)),
            ("rms_norm_back", ("dz",)),
            ("soft_max_back", ("dy", "y")),
            ("cross_entropy_loss", ("x", "labels")),
            ("cross_entropy_loss_back", ("grad", "x", "labels")),
        )
        for name in names
    ),
    Limit(
        "get_rows_back", "source", ("f32",), "Vulkan's get_rows_back adds up f32 only", _VK_SUPPORTS, device="Vulkan"
    ),
    *(
        Limit(
            op,
            "top_scales",
            (False,),
            "a scale of NVFP4 from 248 on becomes 448, the largest one: of 256 to 416 there is none",
            "src/ggml-impl.h, ggml_fp32_to_ue4m3 (ue4m3_exp >= 15)",
            kind="bug",
            device="CPU",
            pinned=f"{op}/cpu-nvfp4-scale",
        )
        for op in ("cpy_blocks", "set_rows")
    ),
    Limit(
        "cpy_blocks",
        "types",
        _CPU_BLOCKS,
        "the CPU copies no blocks of the types that it cannot make: IQ1, IQ2 and IQ3",
        _CPU_SUPPORTS,
        device="CPU",
    ),
    Limit(
        "cpy_blocks",
        "types",
        _VK_BLOCKS,
        "Vulkan copies between f32 and simple blocks, or blocks of one type that have an even number of bytes",
        _VK_SUPPORTS,
        device="Vulkan",
    ),
    Limit(
        "set_rows",
        "dtype",
        ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl"),
        "Vulkan's set_rows makes simple blocks only",
        _VK_SUPPORTS,
        device="Vulkan",
    ),
    Limit(
        "solve_tri",
        "right_sides",
        tuple(range(1025)),
        "Vulkan takes as many right-hand sides as a work group has invocations: 1024 mostly",
        _VK_SUPPORTS,
        device="Vulkan",
    ),
    Limit(
        "cpy_blocks",
        "spread_blocks",
        (False,),
        "Vulkan copies blocks of one type between contiguous tensors",
        _VK_SUPPORTS,
        device="Vulkan",
    ),
    *(
        Limit(op, "dtype", _TYPES, f"Vulkan's {op} takes these types only", _VK_SUPPORTS, device="Vulkan")
        for op in ("cont", "dup", "repeat")
    ),
    Limit("cpy", "types", _VK_CPY, "Vulkan does not copy between f16 and bf16", _VK_SUPPORTS, device="Vulkan"),
)

_CPU_BINARY = "src/ggml-cpu/binary-ops.cpp, apply_binary_op"

#: What a kernel wants although supports_op said yes.
KERNELS: tuple[Limit, ...] = (
    Limit(
        "acc", "b", LayoutClass.ROWS, "the CPU's ACC aborts unless b's nb0 is the element size",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_acc_f32", kind="kernel", device="CPU",
    ),
    Limit(
        "set", "dtype", ("f32", "i32"), "the CPU's SET aborts for every type but f32 and i32",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_set", kind="kernel", device="CPU",
    ),
    Limit(
        "set", "a", LayoutClass.CONTIGUOUS, "the CPU's SET aborts unless a is contiguous",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_set_f32", kind="kernel", device="CPU",
    ),
    Limit(
        "set", "b", LayoutClass.ROWS, "the CPU's SET aborts unless b's nb0 is the element size",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_set_f32", kind="kernel", device="CPU",
    ),
    Limit(
        "cumsum", "x", LayoutClass.ROWS, "the CPU's CUMSUM aborts unless x's nb0 is the element size",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_cumsum_f32", kind="kernel", device="CPU",
    ),
    Limit(
        "diag", "dtype", ("f32",), "the CPU's DIAG aborts for every type but f32",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_diag", kind="kernel", device="CPU",
    ),
    Limit(
        "diag", "x", LayoutClass.ROWS, "the CPU's DIAG aborts unless x's nb0 is the element size",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_diag_f32", kind="kernel", device="CPU",
    ),
    Limit(
        "pad", "dtype", ("f32",), "the CPU's PAD aborts for every type but f32",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_pad", kind="kernel", device="CPU",
    ),
    Limit(
        "ssm_conv", "x", LayoutClass.CONTIGUOUS,
        "the CPU's SSM_CONV aborts unless x's nb0 is the element size and its nb1 a row's",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_ssm_conv_f32", kind="kernel", device="CPU",
    ),
    Limit(
        "ssm_conv", "c", LayoutClass.ROWS, "the CPU's SSM_CONV aborts unless c's nb0 is the element size",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_ssm_conv_f32", kind="kernel", device="CPU",
    ),
    Limit(
        "ssm_conv", "aligned", (True,),
        "Vulkan's SSM_CONV aborts for an argument that does not start where a storage buffer may "
        "(minStorageBufferOffsetAlignment, 256 bytes at most)",
        "src/ggml-vulkan/ggml-vulkan.cpp, init_pushconst_tensor_offsets", kind="kernel", device="Vulkan",
    ),
    Limit(
        "repeat", "dtype", (*_TYPES, "i16"), "the CPU's REPEAT aborts for i8, i64 and f64",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_repeat", kind="kernel", device="CPU",
    ),
    Limit(
        "sum_rows", "x", LayoutClass.ROWS, "the CPU's SUM_ROWS aborts unless x's nb0 is the element size",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_sum_rows_f32", kind="kernel", device="CPU",
    ),
)  # fmt: skip

_FREE_VIEW = (
    "the shader finds an element's place in the view by dividing by nb3, nb2 and nb1 in that order, which is right "
    "only for strides that grow outwards; for others it leaves elements of b out (the CPU device takes any strides)"
)

#: A wrong answer of every build so far.
ACC_BUGS: tuple[Limit, ...] = (
    Limit(
        "acc", "view", ("block", "nested"), _FREE_VIEW, _VK_SHADER,
        kind="bug", device="Vulkan", pinned="acc/vulkan-permuted-view",
    ),
)  # fmt: skip

GET_ROWS_BUGS: tuple[Limit, ...] = (
    Limit(
        "get_rows", "wide_integers", (False,),
        "the GET_ROWS of ggml's Vulkan device writes only the first 512·⌈n/1024⌉ of the n elements of a row of i32",
        "src/ggml-vulkan/ggml-vulkan.cpp, pipeline_get_rows of i32",
        kind="bug", device="Vulkan", pinned="get_rows/vulkan-wide-integers",
    ),
)  # fmt: skip

#: Wrong answers of every build whose Vulkan has SET: the same fault, and one of its own.
SET_BUGS: tuple[Limit, ...] = (
    Limit(
        "set", "a", LayoutClass.CONTIGUOUS,
        "the shader reads a as if it were packed (the CPU and CUDA kernels assert that it is contiguous)",
        f"{_VK_SHADER}; src/ggml-cuda/set.cu", kind="bug", device="Vulkan", pinned="set/vulkan-transposed-a",
    ),
    Limit(
        "set", "view", ("block", "nested"), _FREE_VIEW, _VK_SHADER,
        kind="bug", device="Vulkan", pinned="set/vulkan-permuted-view",
    ),
)  # fmt: skip

#: Further wrong answers of builds whose Vulkan ACC is the one before February 2026. That it drops ne3 is no limit:
#: the search finds it.
OLD_ACC_BUGS: tuple[Limit, ...] = (
    Limit(
        "acc", "b", LayoutClass.CONTIGUOUS, "the shader reads b as if it were packed", _OLD_ACC,
        kind="bug", device="Vulkan", pinned="acc/vulkan-strided-b",
    ),
    Limit(
        "acc", "view", ("block",), "the shader finds the elements of a and out by the view's nb1 and nb2", _OLD_ACC,
        kind="bug", device="Vulkan", pinned="acc/vulkan-nested-view",
    ),
)  # fmt: skip

#: Wrong answers of every build so far: on the CPU from b6673 on, on Vulkan from b7836 on.
SSM_CONV_BUGS: tuple[Limit, ...] = (
    *(
        Limit(
            "ssm_conv", name, LayoutClass.ROWS,
            f"the shader ignores nb0 of {name} (the CPU and CUDA kernels assert that it is the element size)",
            "src/ggml-vulkan/vulkan-shaders/ssm_conv.comp; src/ggml-cuda/ssm-conv.cu",
            kind="bug", device="Vulkan", pinned=f"ssm_conv/vulkan-step-{name}",
        )
        for name in ("x", "c")
    ),
    Limit(
        "ssm_conv", "c", LayoutClass.CONTIGUOUS, "the CPU's SSM_CONV reads c as if its rows stood side by side",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_ssm_conv_f32",
        kind="bug", device="CPU", pinned="ssm_conv/cpu-padded-filter",
    ),
)  # fmt: skip

_OLD_L2_NORM = "src/ggml-vulkan/vulkan-shaders/l2_norm.comp before llama.cpp pull request 20350 (10 Mar 2026)"

_NEWER = 1 << 30  #: the number of a build that has none

#: What held, or was wrong, in some builds of llama.cpp only, with the numbers of those builds. The builds between which
#: the change was seen are b6673, b7836, b8121, b8179, b8390 and b10361.
SOME_BUILDS: tuple[tuple[range, Limit], ...] = (
    *(
        (
            range(_NEWER + 1),
            Limit(
                op, "made", (False,),
                "the allocator lays ADD_ID's sum over biases of its shape that the graph made, which are still read",
                "src/ggml-alloc.c, ggml_op_can_inplace", kind="bug", pinned=f"{op}/biases-overwritten",
            ),
        )
        for op in ("mul_mat_id_add_id", "mul_mat_id_add_id_mul", "mul_mat_id_add_id_swiglu_oai")
    ),
    (
        range(6674, _NEWER + 1),
        Limit(
            "soft_max", "long_row", (False,),
            "of a row above 16,384 elements, in blocks of 512, only a few blocks are looked at for the greatest one",
            "src/ggml-vulkan/vulkan-shaders/soft_max_large1.comp to soft_max_large3.comp", kind="bug",
            device="Vulkan", pinned="soft_max/vulkan-long-row",
        ),
    ),
    (
        range(10361),
        Limit(
            "rope_set_rows", "rows", LayoutClass.CONTIGUOUS,
            "the kernel that takes ROPE, the view and SET_ROWS as one ignores nb0 of rows, which SET_ROWS alone reads",
            "src/ggml-vulkan/vulkan-shaders/rope_funcs.glsl, on b7836 and b8121", kind="bug", device="Vulkan",
            pinned="rope_set_rows/vulkan-rows-step",
        ),
    ),
    (
        range(8179),
        Limit(
            "moe_routing", "made", (False,),
            "the kernel that takes the nodes as one writes over the logits that it still reads, where the allocator "
            "has given their memory to the experts or the weights",
            "src/ggml-vulkan/ggml-vulkan.cpp before llama.cpp pull request 19768", kind="bug", device="Vulkan",
            pinned="moe_routing/vulkan-overwritten-logits",
        ),
    ),
    *(
        (
            range(10362, _NEWER + 1),
            Limit(
                op, "aligned", (True,),
                f"Vulkan's {op.upper()}, its nodes as one, aborts for an argument that does not start where a storage "
                "buffer may, though each node alone takes it",
                f"src/ggml-vulkan/ggml-vulkan.cpp, {where}, which does not look at offsets", kind="kernel",
                device="Vulkan",
            ),
        )
        for op, where in (
            ("snake", "ggml_vk_can_fuse_snake"), ("rms_norm_mul_add", "ggml_vk_can_fuse"),
            ("rms_norm_mul_add_mul", "ggml_vk_can_fuse"),
        )
    ),
    (
        range(7837, _NEWER + 1),
        Limit(
            "flash_attn_ext", "padded", (False,),
            "the CPU's FLASH_ATTN_EXT in tiles of 64 queries caps the scores of keys beyond the last, which then count",
            "src/ggml-cpu/ops.cpp, ggml_compute_forward_flash_attn_ext_tiled", kind="bug", device="CPU",
            pinned="flash_attn_ext/cpu-capped-padding",
        ),
    ),
    (
        range(7836),
        Limit(
            "flash_attn_ext", "filled_up", (True,), "ggml_flash_attn_ext asserts a mask of whole tiles of 64 queries",
            "src/ggml.c before llama.cpp pull request 17910 (10 Dec 2025)",
        ),
    ),
    (
        range(10361),
        Limit(
            "rope_set_rows", "aligned", (True,),
            "Vulkan's ROPE aborts unless what it reads and writes starts where a storage buffer may",
            "src/ggml-vulkan/ggml-vulkan.cpp, init_pushconst_tensor_offsets", kind="kernel", device="Vulkan",
        ),
    ),
    (
        range(10361, _NEWER + 1),
        Limit(
            "rope_set_rows", "aligned", (True,),
            "Vulkan's ROPE drops an offset of pos at which no storage buffer may start",
            "src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_rope", kind="bug", device="Vulkan",
            pinned="rope_set_rows/vulkan-pos-offset",
        ),
    ),
    (range(10361), Limit("set_rows", "source", ("f32",), "ggml_set_rows asserts that b is f32", "src/ggml.c")),
    (
        range(10361),
        Limit(
            "conv_transpose_2d", "single", (True,),
            "the CPU's CONV_TRANSPOSE_2D leaves all images but the first 0",
            "src/ggml-cpu/ops.cpp, ggml_compute_forward_conv_transpose_2d_impl", kind="bug", device="CPU",
            pinned="conv_transpose_2d/cpu-batch",
        ),
    ),
    (
        range(10361),
        Limit(
            "conv_2d_dw", "weights", ("f32",), "the CPU's CONV_2D_DW reads a kernel of f16 as f32",
            "src/ggml-cpu/ops.cpp, ggml_compute_forward_conv_2d_dw_whcn", kind="bug", device="CPU",
            pinned="conv_2d_dw/cpu-half-kernel",
        ),
    ),
    (
        range(10361),
        Limit(
            "conv_transpose_2d", "weights", ("f16",), "the CPU's CONV_TRANSPOSE_2D aborts for every kernel but f16",
            "src/ggml-cpu/ops.cpp, ggml_compute_forward_conv_transpose_2d", kind="kernel", device="CPU",
        ),
    ),
    (
        range(10361),
        Limit(
            "im2col", "types", ("f32-f32", "f32-f16"), "the CPU's IM2COL aborts for an x of f16",
            "src/ggml-cpu/ops.cpp, ggml_compute_forward_im2col_f16", kind="kernel", device="CPU",
        ),
    ),
    (
        range(10361),
        Limit(
            "im2col", "kernel", LayoutClass.ROWS, "the CPU's IM2COL aborts unless the kernel's nb0 is its element size",
            "src/ggml-cpu/ops.cpp, ggml_compute_forward_im2col_f16", kind="kernel", device="CPU",
        ),
    ),
    (
        range(7836),
        Limit(
            "upscale", "mode", ("nearest", "bilinear", "bilinear+align_corners"),
            "this build's ggml_interpolate has no bicubic mode and no antialias, and aligns corners of bilinear alone",
            "src/ggml.c, ggml_interpolate_impl; src/ggml-cpu/ops.cpp, ggml_compute_forward_upscale_f32",
        ),
    ),
    (
        range(7836),
        Limit(
            "pool_1d", "tiled", (True,), "the CPU's POOL_1D aborts unless windows stand side by side, without padding",
            "src/ggml-cpu/ops.cpp, ggml_compute_forward_pool_1d", kind="kernel", device="CPU",
        ),
    ),
    (range(10361), Limit("fill", "dtype", ("f32",), "ggml_fill asserts that x is f32", "src/ggml.c, ggml_fill_impl")),
    *(
        (
            range(8121),
            Limit(
                op, "x", LayoutClass.ROWS, "the CPU's PAD aborts unless x's nb0 is the element size",
                "src/ggml-cpu/ops.cpp, ggml_compute_forward_pad_f32", kind="kernel", device="CPU",
            ),
        )
        for op in ("pad", "pad_circular")
    ),
    *(
        (
            range(10361),
            Limit(
                op, "x", LayoutClass.ROWS, f"the CPU's {op.upper()} aborts unless x's nb0 is the element size",
                f"src/ggml-cpu/ops.cpp, ggml_compute_forward_{op}_f32", kind="kernel", device="CPU",
            ),
        )
        for op in ("norm", "l2_norm")
    ),
    *(
        (
            range(10361),
            Limit(
                op, "aligned", (True,),
                f"Vulkan's {op.upper()} aborts for an argument that does not start where a storage buffer may "
                "(minStorageBufferOffsetAlignment, 256 bytes at most)",
                "src/ggml-vulkan/ggml-vulkan.cpp, init_pushconst_tensor_offsets", kind="kernel", device="Vulkan",
            ),
        )
        for op in ("exp", "silu", "norm", "leaky_relu", "xielu", *UNARY_INPLACE, *UNARY, *GATES, *SPLIT)
    ),
    (
        range(10361),
        Limit(
            "conv_2d", "kernel", LayoutClass.CONTIGUOUS, "the CPU's CONV_2D aborts unless the kernel is contiguous",
            "src/ggml-cpu/ops.cpp, ggml_compute_forward_conv_2d_impl", kind="kernel", device="CPU",
        ),
    ),
    (
        range(10361, _NEWER + 1),
        Limit(
            "conv_2d", "kernel", LayoutClass.CONTIGUOUS, "the CPU's conv_2d wants the kernel contiguous",
            _CPU_SUPPORTS, device="CPU",
        ),
    ),
    (
        range(8121),
        Limit(
            "rope", "x", LayoutClass.ROWS, "Vulkan's ROPE reads the channels of x as if they were packed",
            "src/ggml-vulkan/vulkan-shaders/rope_funcs.glsl", kind="bug", device="Vulkan",
            pinned="rope/vulkan-x-step",
        ),
    ),
    (
        range(8121, _NEWER + 1),
        Limit("rope", "x", LayoutClass.ROWS, "Vulkan's rope wants contiguous rows", _VK_SUPPORTS, device="Vulkan"),
    ),
    (
        range(8121),
        Limit(
            "rope", "loose_inplace", (False,),
            "Vulkan's ROPE writes rows side by side: in place on rows with gaps they come where they should not",
            "src/ggml-vulkan/vulkan-shaders/rope_funcs.glsl before llama.cpp pull request 19299", kind="bug",
            device="Vulkan", pinned="rope/vulkan-inplace-gap",
        ),
    ),
    *(
        (
            range(6674),
            Limit(
                op, "mode", (0, 2, 8, 24),  # all but 40
                "this build has no GGML_ROPE_TYPE_IMROPE", "include/ggml.h before llama.cpp pull request 16780",
            ),
        )
        for op in ("rope", "rope_back", "rope_set_rows")
    ),
    *(
        (
            range(8121),
            Limit(
                op, "one_sequence", (True,),
                "Vulkan's ROPE counts tokens on through all sequences: those of all but the first have their positions "
                "beyond the end of pos", "src/ggml-vulkan/vulkan-shaders/rope_funcs.glsl before llama.cpp pull request "
                "19299", kind="bug", device="Vulkan", pinned=f"{op}/vulkan-ne3",
            ),
        )
        for op in ("rope", "rope_back", "rms_norm_mul_rope")  # whether the piece's nodes are one kernel or not
    ),
    (
        range(10361),
        Limit(
            "get_rows", "aligned", (True,),
            "Vulkan's GET_ROWS aborts for an argument that does not start where a storage buffer may",
            "src/ggml-vulkan/ggml-vulkan.cpp before llama.cpp pull request 28253, init_pushconst_tensor_offsets",
            kind="kernel", device="Vulkan",
        ),
    ),
    (
        range(10361),
        Limit(
            "set_rows", "loose_blocks", (False,),
            "Vulkan's SET_ROWS into quantised types drops the part of an offset that the start of a storage buffer "
            "cannot have", "src/ggml-vulkan/vulkan-shaders/copy_to_quant.comp", kind="bug", device="Vulkan",
            pinned="set_rows/vulkan-block-offset",
        ),
    ),
    *(
        (
            range(7836),
            Limit(
                op, name, LayoutClass.PACKED, f"Vulkan's {op.upper()} aborts unless {name} is packed, which b6673 only "
                "asserts", "src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_op_f32", kind="kernel", device="Vulkan",
            ),
        )
        for op, name in (
            ("silu_back", "grad"), ("rms_norm_back", "dz"), ("soft_max_back", "dy"), ("soft_max_back", "y"),
        )
    ),
    (
        range(7836),
        Limit(
            "norm", "x", LayoutClass.CONTIGUOUS, "Vulkan's NORM wants x contiguous, which b6673 only asserts",
            "src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_op_f32", kind="kernel", device="Vulkan",
        ),
    ),
    (
        range(7836),
        Limit(
            "scale", "aligned", (True,), "Vulkan's SCALE drops the part of an offset that the start of a storage "
            "buffer cannot have", "src/ggml-vulkan/vulkan-shaders/scale.comp", kind="bug", device="Vulkan",
            pinned="scale/vulkan-offset",
        ),
    ),
    *(
        (
            range(8121),
            Limit(
                op, "b", LayoutClass.ROWS, f"the CPU's {op.upper()} aborts where it repeats a b with gaps in a row",
                _CPU_BINARY, kind="kernel", device="CPU",
            ),
        )
        for op in ("add", "mul", "sub", "div")
    ),
    *(
        (
            range(8121),
            Limit(
                op, "x", LayoutClass.CONTIGUOUS, f"the CPU's {op.upper()} aborts unless only rows are padded",
                "src/ggml-cpu/unary-ops.cpp, apply_unary_op (ggml_is_contiguous_1)", kind="kernel", device="CPU",
            ),
        )
        for op in ("sqr", "sqrt", "log", "sin", "cos")
    ),
    *(
        (
            range(7836),
            Limit(
                op, "x", LayoutClass.CONTIGUOUS, f"Vulkan's {op.upper()} aborts unless x's matrices are contiguous",
                "src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_op_f32", kind="kernel", device="Vulkan",
            ),
        )
        for op in ("leaky_relu",)
    ),
    (
        range(10361),
        Limit(
            "step", "recipe", ("small_int", "index", "normal"), "Vulkan's STEP is 1 at 0",
            "src/ggml-vulkan/vulkan-shaders/step.comp", kind="bug", device="Vulkan", pinned="step/vulkan-zero",
        ),
    ),
    *(
        (
            range(8121),
            Limit(
                op, "x", LayoutClass.CONTIGUOUS, f"ggml_{op} asserts that only rows are padded",
                "src/ggml.c, ggml_unary_impl (ggml_is_contiguous_1)",
            ),
        )
        for op in ("exp", "silu", *UNARY_INPLACE, *UNARY)
    ),
    (
        range(8121),
        Limit(
            "l2_norm", "aligned", (True,),
            "Vulkan's L2_NORM aborts for an argument that does not start where a storage buffer may "
            "(minStorageBufferOffsetAlignment, 256 bytes at most)",
            "src/ggml-vulkan/ggml-vulkan.cpp, init_pushconst_tensor_offsets", kind="kernel", device="Vulkan",
        ),
    ),
    (
        range(8121),
        Limit(
            "l2_norm", "x", LayoutClass.CONTIGUOUS, "Vulkan's L2_NORM wants x contiguous, which b6673 only asserts",
            "src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_op_f32", kind="kernel", device="Vulkan",
        ),
    ),
    (
        range(8121, 10361),
        Limit("l2_norm", "x", LayoutClass.ROWS, "Vulkan's l2_norm wants whole rows", _VK_SUPPORTS, device="Vulkan"),
    ),
    (
        range(8390),
        Limit(
            "l2_norm", "eps", (0.0,), "Vulkan's L2_NORM compares eps with the sum of squares, not with the norm",
            _OLD_L2_NORM, kind="bug", device="Vulkan", pinned="l2_norm/kb106",
        ),
    ),
    (
        range(8121, 10361),
        Limit(
            "l2_norm", "aligned", (True,),
            "Vulkan's L2_NORM drops the part of an offset that the start of a storage buffer cannot have",
            "src/ggml-vulkan/vulkan-shaders/l2_norm.comp after llama.cpp pull request 19604",
            kind="bug", device="Vulkan", pinned="l2_norm/vulkan-offset",
        ),
    ),
)  # fmt: skip

#: What convolutions are tried with on lavapipe.
_PIPELINES: dict[str, dict[str, tuple[int, ...]]] = {
    "conv_2d": {"k0": (3, 1), "k1": (2,), "s0": (1, 2), "s1": (1,), "p0": (0, 1), "p1": (1,), "d0": (1,), "d1": (1, 2)},
    "conv_3d": {
        "k0": (2,),
        "k1": (1,),
        "k2": (3,),
        "s0": (1,),
        "s1": (2,),
        "s2": (1,),
        "p0": (0,),
        "p1": (0,),
        "p2": (0, 1),
        "d0": (1,),
        "d1": (1,),
        "d2": (1,),
    },
    "conv_transpose_2d": {"k0": (3,), "k1": (2,), "stride": (1, 2)},
}

#: Of kernels that ggml has only where push constants may be longer than 128 bytes. Lavapipe of LLVM 15 (Mesa 22.3) has
#: no more, and runs the nodes one by one; that of LLVM 19 (Mesa 25.0) has them.
LONG_CONSTANTS_BUGS: tuple[tuple[range, Limit], ...] = tuple(
    (
        builds,
        Limit(
            op, "w", LayoutClass.ROWS,
            f"the kernel that takes {nodes} as one ignores nb0 of w, which MUL alone reads",
            "src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_can_fuse_rms_norm_mul_rope", kind="bug", device="Vulkan",
            pinned=f"{op}/vulkan-step-w",
        ),
    )
    for builds, op, nodes in (
        (range(6674, 10361), "rms_norm_mul_rope", "RMS_NORM, MUL and ROPE"),
        (range(6674, _NEWER + 1), "rms_norm_mul_rope_set_rows", "RMS_NORM, MUL, ROPE and SET_ROWS"),
    )
)  # fmt: skip

#: A fault of lavapipe, measured with Mesa 22.3.6 (LLVM 15.0.6).
LAVAPIPE_BUGS: tuple[Limit, ...] = (
    *(
        Limit(
            op, subject, allowed,
            "lavapipe compiles a pipeline for every stride, padding, dilation and kernel size, for a second or more; "
            "the CPU device has them in no time",
            "src/ggml-vulkan/ggml-vulkan.cpp, vk_conv2d_pipeline_state, on Mesa 22.3.6", kind="kernel", device="Vulkan",
        )
        for op, allowances in _PIPELINES.items()
        for subject, allowed in allowances.items()
    ),
    Limit(
        "flash_attn_ext", "dtype", (),
        "lavapipe compiles flash attention for seconds, type by type and size by size; the CPU device does not",
        "src/ggml-vulkan/vulkan-shaders/flash_attn.comp on Mesa 22.3.6", kind="kernel", device="Vulkan",
    ),
    Limit(
        "ssm_scan", "whole", (True,),
        "Vulkan's SSM_SCAN has no check for rows beyond the last: where subgroups have 8 threads, as on lavapipe, "
        "states of 256 take 32 rows at once, and only a multiple of 16 is asked for",
        "src/ggml-vulkan/vulkan-shaders/ssm_scan.comp", kind="bug", device="Vulkan", pinned="ssm_scan/vulkan-rows",
    ),
    Limit(
        "mul_mat_id", "one_token", (True,),
        "on lavapipe some of many tokens get another expert's product; whether ggml or Mesa is to blame is not known",
        "src/ggml-vulkan/vulkan-shaders/mul_mm.comp on Mesa 22.3.6", kind="bug", device="Vulkan",
        pinned="mul_mat_id/lavapipe-experts",
    ),
    *(
        Limit(
            op, subject, types,
            "lavapipe compiles the pipelines of each quantised type for 4 to 20 s; the CPU device has them in no time",
            "src/ggml-vulkan/vulkan-shaders on Mesa 22.3.6", kind="kernel", device="Vulkan",
        )
        for op, subject, types in (
            ("mul_mat", "weights", ("f32", "f16", "q4_0")),
            ("mul_mat", "factors", ("f32-f32", "f16-f32", "q4_0-f32", "f32-f16", "f16-f16")),
            ("mul_mat_id", "weights", ("f32", "f16", "q4_0")),
            ("get_rows", "table", tuple(name for name in TYPES if not name.startswith(("iq", "tq", "mxfp", "nvfp")))),
        )
    ),
    Limit(
        "solve_tri", "n", tuple(range(80)),
        "lavapipe miscompiles the shader's unrolled loops from n = 80 on: rows from 78 on take 0·a from the unread "
        "triangle, so that a NaN or infinity there spoils them (so do a dozen lines of GLSL without ggml)",
        "src/ggml-vulkan/vulkan-shaders/solve_tri.comp on Mesa 22.3.6", kind="bug", device="Vulkan",
        pinned="solve_tri/lavapipe-unread-triangle",
    ),
    Limit(
        "*", "many_rows", (False,), "lavapipe takes a millisecond for a row, or seconds for what a grid holds of them",
        "measured with CONT, RMS_NORM and ARGMAX on Mesa 22.3.6", kind="kernel", device="Vulkan",
    ),
    Limit(
        "top_k", "long", (False,),
        "now and then lavapipe dies of rows that take several passes, in a process that has run other ops before; "
        "whether ggml or Mesa is to blame is not known", "src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_topk on Mesa 22.3.6",
        kind="kernel", device="Vulkan",
    ),
    Limit(
        "mla_absorbed", "form", ("two_part", "concat"),
        "lavapipe compiles the flash attention of every pair of head sizes for 2 s (16/8) to half a minute (576/512); "
        "the CPU device has it in no time",
        "src/ggml-vulkan/vulkan-shaders/flash_attn.comp on Mesa 22.3.6", kind="kernel", device="Vulkan",
    ),
)  # fmt: skip


def limits_of(
    device: str,
    has_set: bool,
    driver: str,
    build: str,
    counts_snapshots: bool | None,
    has: Callable[[str], bool] = lambda name: True,
) -> tuple[Limit, ...]:
    """The limits for a device (its id) that takes SET, or does not, for what its driver says of itself, and for a build
    of llama.cpp ("b8121"; any other name is taken for a newer one) whose gated delta net counts snapshots, or does not
    (None: it has none), and that `has` functions.

    Vulkan learned SET a day after its ACC was mended, from the same shader: one that has no SET has the old ACC.
    """
    limits = [*CONSTRUCTORS, *GRAPHS, *DEVICES, *KERNELS, *GRAPH_KERNELS]
    limits += [wants.limit(row.op) for row in OPS.values() for wants in row.wants]
    limits += [
        Limit(row.op, "inplace", (True,), f"without {row.inplace}, {row.symbol} works in place", "include/ggml.h")
        for row in OPS.values()
        if row.once_inplace and not has(row.inplace)
    ]
    limits += [*ACC_BUGS, *GET_ROWS_BUGS, *(SET_BUGS if has_set else OLD_ACC_BUGS), *SSM_CONV_BUGS]
    if counts_snapshots is not None:
        limits += DELTA_NET_BUGS
    if counts_snapshots is False:
        limits.append(ONE_SNAPSHOT)
    number = re.fullmatch(r"b(\d+)", build)
    of_builds = SOME_BUILDS if "llvmpipe (LLVM 15" in driver else (*SOME_BUILDS, *LONG_CONSTANTS_BUGS)
    limits += [limit for builds, limit in of_builds if (int(number[1]) if number else _NEWER) in builds]
    if "llvmpipe" in driver:
        limits += LAVAPIPE_BUGS
    limits = [limit for limit in limits if device.startswith(limit.device)]
    limits += dict.fromkeys(inherited(limits))
    return (*limits, *dict.fromkeys(caching.inherited(limits)))
