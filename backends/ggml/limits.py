"""What ggml does not take, as data: the constructors' asserts, the kernels' preconditions, and known bugs.

Paths are those of the ggml repository, which llama.cpp carries in its folder ggml/. What is said of a device was also
measured on it (builds b7836, b8121 and v0.5.0; CPU, and Vulkan on lavapipe).
"""

from __future__ import annotations

from opconform.harness.backend import Limit
from opconform.harness.layouts import LayoutClass

_FRESH = "ggml makes a fresh output itself, packed"
_VK_SHADER = "src/ggml-vulkan/vulkan-shaders/acc.comp"
_VK_SUPPORTS = "src/ggml-vulkan/ggml-vulkan.cpp, ggml_backend_vk_device_supports_op"
_OLD_ACC = f"{_VK_SHADER} before llama.cpp pull request 19426 (13 Feb 2026)"

#: What the constructors assert or do: such a call aborts before a device is asked, or says something else.
CONSTRUCTORS: tuple[Limit, ...] = (
    Limit("acc", "dtype", ("f32",), "ggml_acc takes f32 only", "src/ggml.c, ggml_acc_impl"),
    Limit("acc", "a", LayoutClass.CONTIGUOUS, "ggml_acc asserts that a is contiguous", "src/ggml.c, ggml_acc_impl"),
    Limit("acc", "out", LayoutClass.PACKED, _FRESH, "src/ggml.c, ggml_acc_impl (ggml_dup_tensor)"),
    Limit("set", "out", LayoutClass.PACKED, _FRESH, "src/ggml.c, ggml_set_impl (ggml_dup_tensor)"),
    Limit("cumsum", "dtype", ("f32",), "ggml_cumsum takes f32 only", "src/ggml.c, ggml_cumsum"),
    Limit("cumsum", "axis", (0,), "ggml_cumsum sums along ne0 only", "include/ggml.h, ggml_cumsum"),
    Limit("cumsum", "exclusive", (False,), "ggml_cumsum is inclusive", "include/ggml.h, ggml_cumsum"),
    Limit("cumsum", "reverse", (False,), "ggml_cumsum runs forwards only", "include/ggml.h, ggml_cumsum"),
    Limit("cumsum", "out", LayoutClass.PACKED, _FRESH, "src/ggml.c, ggml_cumsum (ggml_dup_tensor)"),
    Limit("solve_tri", "dtype", ("f32",), "ggml_solve_tri takes f32 only", "src/ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "left", (True,), "ggml_solve_tri solves A X = B only", "src/ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "lower", (True,), "ggml_solve_tri takes lower triangles only", "src/ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "unit", (False,), "ggml_solve_tri reads the diagonal", "src/ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "a", LayoutClass.CONTIGUOUS, "ggml_solve_tri asserts contiguity", "src/ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "b", LayoutClass.CONTIGUOUS, "ggml_solve_tri asserts contiguity", "src/ggml.c, ggml_solve_tri"),
    Limit("solve_tri", "out", LayoutClass.PACKED, _FRESH, "src/ggml.c, ggml_solve_tri (ggml_new_tensor_4d)"),
)

#: What a device's supports_op refuses.
DEVICES: tuple[Limit, ...] = (
    Limit("set", "dtype", ("f32", "i32"), "Vulkan sets f32 and i32 only", _VK_SUPPORTS, device="Vulkan"),
    Limit("cumsum", "x", LayoutClass.ROWS, "Vulkan's cumsum wants contiguous rows", _VK_SUPPORTS, device="Vulkan"),
)

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
        "set", "a", LayoutClass.CONTIGUOUS,
        "SET wants a contiguous: the CPU and CUDA kernels assert it; Vulkan does not, and moves elements about",
        f"{_VK_SHADER}; src/ggml-cuda/set.cu", kind="kernel", device="Vulkan",
    ),
    Limit(
        "set", "b", LayoutClass.ROWS, "the CPU's SET aborts unless b's nb0 is the element size",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_set_f32", kind="kernel", device="CPU",
    ),
    Limit(
        "cumsum", "x", LayoutClass.ROWS, "the CPU's CUMSUM aborts unless x's nb0 is the element size",
        "src/ggml-cpu/ops.cpp, ggml_compute_forward_cumsum_f32", kind="kernel", device="CPU",
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

#: The same fault in SET, of every build whose Vulkan has it.
SET_BUGS: tuple[Limit, ...] = (
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

#: A fault of lavapipe, measured with Mesa 22.3.6 (LLVM 15.0.6).
LAVAPIPE_BUGS: tuple[Limit, ...] = (
    Limit(
        "solve_tri", "n", tuple(range(80)),
        "lavapipe miscompiles the shader's unrolled loops from n = 80 on: rows from 78 on take 0·a from the unread "
        "triangle, so that a NaN or infinity there spoils them (so do a dozen lines of GLSL without ggml)",
        "src/ggml-vulkan/vulkan-shaders/solve_tri.comp on Mesa 22.3.6", kind="bug", device="Vulkan",
        pinned="solve_tri/lavapipe-unread-triangle",
    ),
)  # fmt: skip


def limits_of(device: str, has_set: bool, driver: str) -> tuple[Limit, ...]:
    """The limits for a device (its id) that takes SET, or does not, and for what its driver says of itself.

    Vulkan learned SET a day after its ACC was mended, from the same shader: one that has no SET has the old ACC.
    """
    limits = [*CONSTRUCTORS, *DEVICES, *KERNELS, *ACC_BUGS, *(SET_BUGS if has_set else OLD_ACC_BUGS)]
    if "llvmpipe" in driver:
        limits += LAVAPIPE_BUGS
    return tuple(limit for limit in limits if device.startswith(limit.device))
