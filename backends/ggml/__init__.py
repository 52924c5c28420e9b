"""ggml: any libggml with its devices (CPU, Vulkan, CUDA, Metal …), through its C API."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np

from opconform.backends.ggml import delta_net, mla
from opconform.backends.ggml.composite import Build, RefusedError
from opconform.backends.ggml.graph import TYPES, Arena, Graph
from opconform.backends.ggml.library import CPU_DEVICE, Library, load
from opconform.backends.ggml.limits import limits_of
from opconform.backends.ggml.ops import LARGEST_PARAM, OPS, OpBinding
from opconform.harness.model.buffers import ALIGNMENT, Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Limit
from opconform.harness.model.numerics import Numerics
from opconform.harness.run.backend import Backend, Device, Unavailable

#: ggml promises nothing about denormals: a build may set the CPU's flush-to-zero bits, shaders and CUDA's fast math
#: flush as they like. Vulkan and OpenCL promise neither a rounding mode nor a division better than 2.5 ulp.
CPU_NUMERICS = Numerics(flushes_denormals=True)
GPU_NUMERICS = Numerics(
    flushes_denormals=True, any_rounding=True, division_ulps=2.5, exp_ulps_per_unit=2.0, sqrt_ulps=5.0
)

#: The ops whose graphs have matrix products. GPUs compute those of float32 with 10 to 11 bits: CUDA in TF32, Vulkan
#: with float16 operands unless it is told not to (see `library.py`).
_PRODUCTS = ("gated_delta_net_chunk", "mla_absorbed")
_FLOAT16 = 2.0**-11
_IN_FLOAT16 = ("small_int", "unit_keys", "normal", "slow_decay", "flat", "peaked")  #: recipes within float16's range
#: The CPU's attention on a cache of 16 bits, by form. Its matrix products round the other operand to the cache's type
#: (src/ggml-cpu/ggml-cpu.c, type_traits_cpu: vec_dot_type); its flash attention does so with q, and adds up values of
#: float16 in float16 (src/ggml-cpu/ops.cpp, ggml_compute_forward_flash_attn_ext_f16_one_chunk).
_CPU_HALF = {
    "two_part": replace(CPU_NUMERICS, narrow_operands=True),
    "flash": replace(CPU_NUMERICS, narrow_operands=True, narrow_sums=True),
}

THREADS = 1  #: of the CPU device; they spin, so that more than there are cores take milliseconds for a tiny op

#: The ops that take a graph of several nodes.
GRAPHS: Mapping[str, Build] = {
    "gated_delta_net": delta_net.recurrent,
    "gated_delta_net_chunk": delta_net.chunked,
    "mla_absorbed": mla.attend,
}

_ELEMENT = Layout.contiguous("f32", (1, 1, 1, 1))
_PLAIN_SET = Case("set", {"nb1": 4, "nb2": 4, "nb3": 4, "offset": 0}, {"a": _ELEMENT, "b": _ELEMENT}, {"out": _ELEMENT})


class GgmlBackend(Backend):
    """One device of a libggml."""

    name: ClassVar[str] = "ggml"
    needs: ClassVar[str] = "a folder with libggml, in OPCONFORM_GGML_LIB or the option ggml_lib"

    def __init__(self, device: str, options: Mapping[str, str]) -> None:
        """Open `device` ("CPU", "Vulkan0", …). Raises `Unavailable` where there is no libggml or no such device."""
        super().__init__(device, options)
        self._library = library = load(options)
        devices = library.devices()
        if device not in devices:
            raise Unavailable(
                f"ggml {library.build} has no device {device!r} here", f"it has: {', '.join(devices) or 'none'}"
            )
        self._device = devices[device]
        self._handle = library.ggml_backend_dev_init(self._device, None)
        if not self._handle:
            raise Unavailable(f"ggml {library.build} cannot open {device}", "see its messages on stderr")
        _set_threads(library, self._device, self._handle, int(options.get("ggml_threads", THREADS)))
        self._float16 = library.float16 and device.startswith("Vulkan")
        self._arena = Arena(library, self._device)
        self._graph: Graph | None = None
        self._refused: dict[str, list[Limit]] = {}  # what the interface does not take, by op
        driver = library.log.driver.get(device, "")
        has_set = self.supports(_PLAIN_SET) is None
        self._limits = limits_of(device, has_set, driver, library.build, library.counts_snapshots)
        for limit in self._limits:
            if limit.kind == "api":
                self._refused.setdefault(limit.op, []).append(limit)

    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        """Every device of the library, with its build and what its driver said of it."""
        library = load(options)
        return [_describe(library, name, handle) for name, handle in library.devices().items()]

    def limits(self) -> tuple[Limit, ...]:
        """The constructors' asserts, this device's preconditions, and what is known to be wrong in this build."""
        return self._limits

    def supports(self, case: Case) -> str | None:
        """None, or why not: no such op or type, a limit of the interface, or the device's own supports_op."""
        reason = self._refusal(case)
        if reason:
            return reason
        if case.op in GRAPHS:
            try:
                self._graph = self._build(case)
            except RefusedError as refused:
                return str(refused)
            return None
        self._graph = self._build(case)
        if not self._library.ggml_backend_dev_supports_op(self._device, self._graph.outs[0]):
            return f"{self.device} of ggml {self._library.build} says no to {case.op.upper()} through supports_op"
        return None

    def run(self, case: Case, buffers: Buffers) -> None:
        """Upload the whole arena, compute, download the whole arena."""
        graph = self._graph
        if graph is None or graph.case is not case:
            graph = self._graph = self._build(case)
        self._compute(graph, buffers)

    def stages(self, case: Case, buffers: Buffers) -> Mapping[str, np.ndarray] | None:
        """The intermediate results of a graph of many nodes, which keep their memory this time until it has run."""
        if case.op not in GRAPHS:
            return None
        graph = self._graph = self._arena.compose(case, GRAPHS[case.op], shown=True)
        self._compute(graph, buffers)
        return dict(self._arena.shown(graph))

    def numerics(self, case: Case) -> Numerics | None:
        """Lower where matrix products round their operands to 16 bits, or flash attention adds up in float16."""
        if case.op not in _PRODUCTS:
            return None
        on_cpu = self._library.ggml_backend_dev_type(self._device) == CPU_DEVICE
        if on_cpu:
            narrow = case.op == "mla_absorbed" and case.inputs["c_kv"].dtype != "f32"
            return _CPU_HALF.get(str(case.params["form"])) if narrow else None
        in_float16 = self._float16 or not self.device.startswith("Vulkan")
        return replace(GPU_NUMERICS, roundoff=_FLOAT16) if in_float16 else None

    def _build(self, case: Case) -> Graph:
        build = GRAPHS.get(case.op)
        return self._arena.compose(case, build) if build else self._arena.build(case, OPS[case.op])

    def _compute(self, graph: Graph, buffers: Buffers) -> None:
        if graph.handle is None:
            self._arena.place(graph, buffers.plan)
        self._arena.upload(buffers.memory)
        status = self._library.ggml_backend_graph_compute(self._handle, graph.handle)
        if status != 0:
            raise RuntimeError(f"ggml_backend_graph_compute returned {status} (0 is success)")
        self._arena.download(buffers.memory)

    def _refusal(self, case: Case) -> str | None:
        if case.op not in OPS and case.op not in GRAPHS:
            return f"the ggml backend does not know the op {case.op}; it has {', '.join((*OPS, *GRAPHS))}"
        reason = self._refused_by_constructor(case, OPS[case.op]) if case.op in OPS else None
        if reason:
            return reason
        for name, layout in case.layouts.items():
            if layout.dtype not in TYPES:
                return f"{name} is {layout.dtype}; the ggml backend has {', '.join(TYPES)}"
        if self._arena.alignment > ALIGNMENT:
            return f"{self.device} wants memory aligned to {self._arena.alignment} bytes; the arena's is {ALIGNMENT}"
        if case.op in _PRODUCTS and self._float16 and case.recipe not in _IN_FLOAT16:
            return f"Vulkan's products of float32 in float16 have no room for values of the recipe {case.recipe}"
        for limit in self._refused.get(case.op, ()):
            told = limit.subject in (*case.layouts, *case.params, "dtype")  # no trait, which only the op knows
            if told and limit.forbids(case, {}):
                return f"{limit.reason} ({limit.source})"
        return None

    def _refused_by_constructor(self, case: Case, op: OpBinding) -> str | None:
        symbol = op.symbol_for(case)
        if symbol is None:
            return f"ggml has no in-place {case.op}"
        if getattr(self._library, symbol) is None:
            return f"this libggml ({self._library.build}) has no {symbol}"
        for name, value in case.params.items():
            if not isinstance(value, str) and value > LARGEST_PARAM:
                return f"{name} is {value}; ggml keeps it in 32 bits and takes at most {LARGEST_PARAM}"
        for name, layout in case.layouts.items():
            if layout.dtype != case.dtype and not op.into:
                return f"{name} is {layout.dtype} and the output {case.dtype}; ggml's {case.op} takes one type"
        return None


def _describe(library: Library, name: str, handle: int) -> Device:
    registry = library.ggml_backend_reg_name(library.ggml_backend_dev_backend_reg(handle)).decode()
    versions = {
        "build": library.build,
        "ggml": library.version(),
        "library": library.log.file.get(registry, ""),
        "driver": library.log.driver.get(name, ""),
    }
    on_cpu = library.ggml_backend_dev_type(handle) == CPU_DEVICE
    return Device(
        id=name,
        description=library.ggml_backend_dev_description(handle).decode(),
        versions={key: value for key, value in versions.items() if value},
        numerics=CPU_NUMERICS if on_cpu else GPU_NUMERICS,
    )


def _set_threads(library: Library, device: int, handle: int, count: int) -> None:
    """Bound the CPU device's threads; other devices have no such function."""
    registry = library.ggml_backend_dev_backend_reg(device)
    address = library.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
    if address:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(address)(handle, count)
