"""The element types that the kernels of OpenCL, Vulkan and CUDA compute; they are the same for all three."""

from __future__ import annotations

from collections.abc import Mapping

from opconform.harness.model.case import Case

_ALL = ("f32", "f16", "bf16", "i32")

#: Those of each op, for every argument that `_ARGUMENTS` does not name.
DTYPES: Mapping[str, tuple[str, ...]] = {
    "acc": ("f32",),
    "set": _ALL,
    "cumsum": ("f32",),
    "solve_tri": ("f32",),
    "gated_delta_net": ("f32",),
    "gated_delta_net_chunk": ("f32",),
    "mla_absorbed": ("f32",),
    "tri": _ALL,
    "diag": _ALL,
    "pad": _ALL,
    "cont": _ALL,
    "cpy": _ALL,
    "sum_rows": ("f32",),
    "l2_norm": ("f32",),
    "ssm_conv": ("f32",),
}

#: Those of single arguments (op, argument) that need not be those of the op.
_ARGUMENTS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("mla_absorbed", "c_kv"): ("f32", "f16", "bf16"),
    ("mla_absorbed", "k_pe"): ("f32", "f16", "bf16"),
    ("mla_absorbed", "mask"): ("f32", "f16"),
}


def refusal(case: Case, file: str) -> str | None:
    """Why the kernels in `file` do not take the element types of `case`; None where they do."""
    for name, layout in case.layouts.items():
        types = _ARGUMENTS.get((case.op, name), DTYPES[case.op])
        if layout.dtype not in types:
            return f"{file} computes {', '.join(types)}, not {layout.dtype}"
    return None
