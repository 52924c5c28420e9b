"""The backend class: one device of a libggml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from opconform.backends.ggml.arena import Arena
from opconform.backends.ggml.binding import MissingError, RefusedError
from opconform.backends.ggml.declarations import TYPES
from opconform.backends.ggml.graphs import GRAPHS
from opconform.backends.ggml.library import REMEDY, Library, load, version
from opconform.backends.ggml.limits import limits_of
from opconform.backends.ggml.names import names_in
from opconform.backends.ggml.nodes import Build, Nodes
from opconform.backends.ggml.ops import LARGEST_PARAM, OPS
from opconform.backends.ggml.pieces import BEHIND
from opconform.backends.ggml.rows import Row
from opconform.backends.ggml.timing import CLOCK, Bench, Measure
from opconform.harness.model.buffers import ALIGNMENT, Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.graph import WholeGraph
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Limit
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.piece import Piece
from opconform.harness.run.backend import Backend, Device, Named, Unavailable
from opconform.harness.run.lines import Lines
from opconform.harness.run.script import Script, ScriptRequest
from opconform.harness.run.watching import Watcher, WatchRequest

#: ggml promises nothing about denormals: a build may set the CPU's flush-to-zero bits, shaders and CUDA's fast math
#: flush as they like. Vulkan and OpenCL promise neither a rounding mode nor a division better than 2.5 ulp. The norm of
#: Vulkan and CUDA takes the variance in one pass (vulkan-shaders/norm.comp, ggml-cuda/norm.cu). Vulkan's erf is the
#: formula 7.1.26 of Abramowitz and Stegun, off by 1.5e-7 before it is rounded (vulkan-shaders/unary.comp); the errors
#: of log, sin, cos and tanh are those of the Vulkan specification, "Precision of core SPIR-V instructions".
CPU_NUMERICS = Numerics(flushes_denormals=True)
GPU_NUMERICS = Numerics(
    flushes_denormals=True,
    any_rounding=True,
    division_ulps=2.5,
    exp_ulps_per_unit=2.0,
    sqrt_ulps=5.0,
    log_absolute=2.0**-21,
    tanh_absolute=1e-5,
    erf_absolute=2.0**-20,
    sin_absolute=2.0**-11,
    sin_within_pi=True,
    one_pass_variance=True,
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

#: The ops whose kernels on the CPU round what is multiplied with weights of 16 bits to their type, and with quantised
#: ones to q8_0, q8_1 (blocks of 32) or q8_K (256): src/ggml-cpu/ggml-cpu.c, type_traits_cpu: vec_dot_type.
_WEIGHED = ("mul_mat", "mul_mat_id", *(op for op in BEHIND if op.startswith("mul_mat")))
_MOST_COLUMNS = 8  #: of b without batches, for which Vulkan has kernels of their own (mul_mat_vec_max_cols)

#: Convolutions whose windows the CPU rounds to the type of a kernel of 16 bits (src/ggml-cpu/ops.cpp: they are matrix
#: products, or dot products of that type).
_CONVOLVED = ("conv_2d", "conv_3d", "conv_transpose_1d", "conv_transpose_2d")

#: The CPU looks up these in tables of float16 (src/ggml-cpu/vec.h, GGML_GELU_FP16 and GGML_GELU_QUICK_FP16).
_TABLED = (
    "gelu",
    "gelu_mul",
    "gelu_quick",
    "geglu",
    "geglu_quick",
    "geglu_split",
    "geglu_quick_split",
    "mul_mat_geglu",
)

THREADS = 1  #: of the CPU device; they spin, so that more than there are cores take milliseconds for a tiny op

_ELEMENT = Layout.contiguous("f32", (1, 1, 1, 1))
_PLAIN_SET = Case("set", {"nb1": 4, "nb2": 4, "nb3": 4, "offset": 0}, {"a": _ELEMENT, "b": _ELEMENT}, {"out": _ELEMENT})


@dataclass
class _Loaded:
    """A case in the arena, until another one is loaded."""

    arena: Arena
    backend: Any
    nodes: Nodes
    memory: np.ndarray
    bench: Bench

    def timed(self, repeats: int) -> float:
        """A node by itself stands in a graph as often as it is computed; a graph of many is computed as often."""
        if self.nodes.needs_memory or len(self.nodes.outs) != 1:
            return self.bench.compute(self.nodes.handle, repeats)
        return self.bench.seconds(self.nodes.outs[0], repeats)

    def launch(self) -> None:
        self.arena.compute(self.backend, self.nodes)

    def fetch(self) -> None:
        self.arena.download(self.memory)


class GgmlBackend(Backend):
    """One device of a libggml."""

    name: ClassVar[str] = "ggml"
    clock = CLOCK
    graphs: ClassVar[Mapping[str, Build]] = GRAPHS  #: the ops that take a graph of several nodes
    needs: ClassVar[str] = "pip install cffi; a folder with libggml, in OPCONFORM_GGML_LIB or the option ggml_lib"

    def __init__(self, device: str, options: Mapping[str, str]) -> None:
        """Open `device` ("CPU", "Vulkan0", …). Raises `Unavailable` where there is no libggml or no such device."""
        super().__init__(device, options)
        self._library = library = load(options)
        devices = library.devices()
        if device not in devices:
            raise Unavailable(
                f"ggml {library.build} has no device {device!r} here", f"it has: {', '.join(devices) or 'none'}"
            )
        handle = devices[device]
        self._is_cpu = library.is_cpu(handle)
        self._backend = library.c.ggml_backend_dev_init(handle, library.c.null)
        if not self._backend:
            raise Unavailable(f"ggml {library.build} cannot open {device}", "see its messages on stderr")
        library.set_threads(handle, self._backend, int(options.get("ggml_threads", THREADS)))
        is_vulkan = device.startswith("Vulkan")
        self._float16 = library.float16 and is_vulkan
        self._in_float16 = self._float16 or not (self._is_cpu or is_vulkan)  #: whether products may be float16's
        self._nodes: Nodes | None = None
        self._refused: dict[str, list[Limit]] = {}  # what the interface does not take, by op
        driver = library.log.driver.get(device, "")
        # Where 8-bit integers are multiplied, codes are as they are stored; Vulkan's driver line says whether they are.
        self._stored_codes = not self._is_cpu and "int dot: 0" not in driver
        try:
            self._arena = Arena(library, handle)
            self._bench = self._arena.bench(self._backend)
            has_set = self.supports(_PLAIN_SET) is None
        except MissingError as lack:
            raise Unavailable(f"{lack}: it is too old", REMEDY) from None
        self._limits = limits_of(device, has_set, driver, library.build, library.counts_snapshots, library.c.has)
        for limit in self._limits:
            if limit.kind == "api":
                self._refused.setdefault(limit.op, []).append(limit)

    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        """Every device of the library, with its build and what its driver said of it."""
        library = load(options)
        return [_describe(library, name, handle) for name, handle in library.devices().items()]

    @classmethod
    def script(cls, request: ScriptRequest) -> Script | None:
        """The same graph through ctypes."""
        from opconform.backends.ggml.script import script

        return script(request, int(request.options.get("ggml_threads", THREADS)))

    @classmethod
    def watcher(cls, request: WatchRequest) -> Watcher:
        """A model in the libllama that lies beside libggml."""
        from opconform.backends.ggml.llama.watching import ModelWatcher

        return ModelWatcher(request)

    @classmethod
    def replay_piece(cls, piece: Piece, request: WatchRequest) -> WholeGraph:
        """The piece's graph, made by hand in memory that is laid out as it was."""
        from opconform.backends.ggml.llama.replaying import replay

        return replay(piece, request)

    @classmethod
    def architectures(cls) -> tuple[str, ...]:
        """Those that `llama.tiny` makes models of."""
        from opconform.backends.ggml.llama.architectures import ARCHITECTURES

        return tuple(ARCHITECTURES)

    @classmethod
    def lines(cls, options: Mapping[str, str]) -> Lines:
        """Those that llama.cpp's `llama-export-graph-ops` writes and `test-backend-ops --test-file` reads."""
        from opconform.backends.ggml.llama.lines import NodeLines

        return NodeLines.of(options)

    def limits(self) -> tuple[Limit, ...]:
        """The constructors' asserts, this device's preconditions, and what is known to be wrong in this build."""
        return self._limits

    def supports(self, case: Case) -> str | None:
        """None, or why not: no such op or type, a limit of the interface, or the device's own supports_op."""
        try:
            reason = self._refusal(case)
            if reason is None:
                self._nodes = self._build(case)
        except RefusedError as refused:
            return str(refused)
        return reason

    def load(self, case: Case, buffers: Buffers) -> _Loaded:
        """The case's tensors in the device's arena, all of which is uploaded and, later, downloaded."""
        nodes = self._nodes
        if nodes is None or nodes.case is not case:
            nodes = self._nodes = self._build(case)
        return self._load(nodes, buffers)

    def _load(self, nodes: Nodes, buffers: Buffers) -> _Loaded:
        if nodes.handle is None:
            self._arena.place(nodes, buffers.plan)
        self._arena.upload(buffers.memory)
        return _Loaded(self._arena, self._backend, nodes, buffers.memory, self._bench)

    def evict(self) -> None:
        if self._is_cpu:
            super().evict()
        else:
            self._bench.evict()

    def copying(self, size: int) -> Measure:
        return self._bench.copying(size)

    def product(self, n: int) -> Measure:
        return self._bench.product(n)

    def memory(self, case: Case, buffers: Buffers) -> Mapping[str, int]:
        """Bytes of a graph's intermediate results, as ggml's allocator plans them and as the device allocates them."""
        if case.op not in self.graphs:
            return {}
        self._nodes = None
        return self._arena.weigh(self._build(case), buffers.plan)

    def stages(self, case: Case, buffers: Buffers) -> Mapping[str, np.ndarray] | None:
        """The intermediate results of a graph of many nodes, which keep their memory this time until it has run."""
        if case.op not in self.graphs:
            return None
        nodes = self._nodes = self._arena.compose(case, self.graphs[case.op], shown=True)
        loaded = self._load(nodes, buffers)
        loaded.launch()
        loaded.fetch()
        return dict(self._arena.shown(nodes))

    def numerics(self, case: Case) -> Numerics | None:
        """Lower where matrix products round their operands to 16 bits, or flash attention adds up in float16."""
        if case.op in _TABLED and self._is_cpu:
            weighed = self._weighed(case) if case.op in _WEIGHED else None
            return replace(weighed or CPU_NUMERICS, half_tables=True)
        if case.op in _WEIGHED:
            return self._weighed(case)
        if case.op == "flash_attn_ext":
            return self._attending(case)
        if case.op in _CONVOLVED:
            return self._convolved(case)
        if case.op not in _PRODUCTS:
            return None
        if self._is_cpu:
            narrow = case.op == "mla_absorbed" and case.inputs["c_kv"].dtype != "f32"
            return _CPU_HALF.get(str(case.params["form"])) if narrow else None
        return replace(GPU_NUMERICS, roundoff=_FLOAT16) if self._in_float16 else None

    def names(self) -> list[Named]:
        """Every op, unary op and gated unit of the loaded library."""
        return list(names_in(self._library.c))

    def _weighed(self, case: Case) -> Numerics | None:
        """Products with weights: the CPU rounds the other operand to the type that its dot product takes. Vulkan may
        round it to q8_1, and copies it to 16 bits in some products of matrices (`copies_to_16_bits`). Beside an operand
        of float16 it decodes blocks to that type first (ggml_vk_mul_mat_q_f16: qx_needs_dequant)."""
        weights = case.inputs["a"].type
        if self._is_cpu:
            if weights.block > 1:
                return replace(CPU_NUMERICS, block_operands=256 if weights.block == 256 else 32)
            return replace(CPU_NUMERICS, narrow_operands=True) if weights.itemsize == 2 else None
        half = weights.block > 1 and case.inputs["b"].dtype == "f16"
        blocks = 32 if weights.block > 1 and not half else 0
        stored = self._stored_codes and bool(blocks)
        gpu = replace(GPU_NUMERICS, block_operands=blocks, narrow_weights=half, stored_codes=stored)
        if self._in_float16:
            return replace(gpu, roundoff=_FLOAT16)
        narrow = weights.name != "f32" and copies_to_16_bits(case)
        return replace(gpu, narrow_operands=narrow) if narrow or blocks or half else None

    def _attending(self, case: Case) -> Numerics | None:
        """Flash attention: the CPU rounds q as a product with k does, and adds up values of float16 in float16. CUDA
        adds up in float16, and rounds q to 8 bits beside blocks (fattn-vec.cuh), as Vulkan may."""
        k, v = case.inputs["k"].type, case.inputs["v"].type
        if self._is_cpu:
            narrow = any(its.itemsize == 2 and its.block == 1 for its in (k, v))
            blocks = (256 if k.block == 256 else 32) if k.block > 1 else 0
            half = v.name == "f16"
            return replace(CPU_NUMERICS, narrow_operands=narrow, narrow_sums=half, block_operands=blocks)
        stored = self._stored_codes and k.block > 1
        gpu = replace(GPU_NUMERICS, block_operands=32 * stored, stored_codes=stored)
        if self._in_float16:
            return replace(gpu, roundoff=_FLOAT16)
        return gpu if stored else None

    def _convolved(self, case: Case) -> Numerics | None:
        """Convolutions: Vulkan's put both operands into float16 where it has matrices of that type."""
        if self._is_cpu:
            return replace(CPU_NUMERICS, narrow_operands=True) if case.inputs["kernel"].type.itemsize == 2 else None
        return replace(GPU_NUMERICS, roundoff=_FLOAT16) if self._in_float16 else None

    def _build(self, case: Case) -> Nodes:
        build = self.graphs.get(case.op)
        return self._arena.compose(case, build) if build else self._arena.build(case, OPS[case.op])

    def _refusal(self, case: Case) -> str | None:
        if case.op not in OPS and case.op not in self.graphs:
            return f"the ggml backend does not know the op {case.op}; it has {', '.join({**OPS, **self.graphs})}"
        layouts = case.layouts
        if case.op not in self.graphs and (reason := self._refused_by_constructor(case, OPS[case.op], layouts)):
            return reason
        for name, layout in layouts.items():
            if layout.dtype not in TYPES:
                return f"{name} is {layout.dtype}; the ggml backend has {', '.join(TYPES)}"
            if layout.dtype not in self._library.types:
                return f"{self._library.c.what} has no type {layout.dtype}"
        if self._arena.alignment > ALIGNMENT:
            return f"{self.device} wants memory aligned to {self._arena.alignment} bytes; the arena's is {ALIGNMENT}"
        if case.op in _PRODUCTS and self._float16 and case.recipe not in _IN_FLOAT16:
            return f"Vulkan's products of float32 in float16 have no room for values of the recipe {case.recipe}"
        for limit in self._refused.get(case.op, ()):
            told = limit.subject in layouts or limit.subject in case.params or limit.subject == "dtype"
            if told and limit.forbids(case, {}):  # no trait, which only the op knows
                return f"{limit.reason} ({limit.source})"
        return None

    def _refused_by_constructor(self, case: Case, row: Row, layouts: Mapping[str, Layout]) -> str | None:
        symbol = row.symbol_for(case, self._library.c.has)
        if not symbol:
            what = "ggml has no in-place" if case.inplace else f"{self._library.c.what} has only an in-place"
            return f"{what} {case.op}"
        self._library.c.require(symbol)
        if row.needs:
            self._library.c.require(row.needs)
        for function, _ in row.changes(case):
            self._library.c.require(function)
        if row.inplace and not row.once_inplace:
            self._library.c.require(row.inplace)
        for name, value in case.params.items():
            if isinstance(value, int) and value > LARGEST_PARAM:
                return f"{name} is {value}; ggml keeps it in 32 bits and takes at most {LARGEST_PARAM}"
        out = case.dtype
        for name, layout in layouts.items():
            if layout.dtype != out and not row.mixed:
                return f"{name} is {layout.dtype} and the output {out}; ggml's {case.op} takes one type"
        return None


def copies_to_16_bits(case: Case) -> bool:
    """Whether Vulkan first copies b of a product into the weights' type of 16 bits, float16 for other weights.

    Products of matrices do so (src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_mul_mat_q_f16 and ggml_vk_mul_mat_id_q_f16:
    y_non_contig) where the weights are bf16 and b is not, and where b fails ggml_vk_dim01_contiguous: its rows lie
    apart, or its outermost index does not step over whole blocks of the next one. Products with few columns have
    kernels that keep b's type (ggml_vk_mul_mat: up to 8 columns without batches, 1 with them; ggml_vk_mul_mat_id: some
    builds 1 token, others up to 8, so that one token counts here). b6673, b7836, b8121 and v0.5.0 agree on the rest.
    """
    weights, b = case.inputs["a"], case.inputs["b"]
    columns, batches = b.ne[1], b.ne[2] * b.ne[3]
    if "ids" in case.inputs:
        of_vectors = case.inputs["ids"].ne[1] == 1 and weights.dtype != "bf16"
    else:
        of_vectors = columns == 1 or (columns <= _MOST_COLUMNS and batches == 1)
    if of_vectors:
        return False
    rows_apart = b.nb[:2] != (b.type.itemsize, b.type.itemsize * b.ne[0])
    blocks_apart = b.ne[3] != 1 and b.nb[3] != b.nb[2] * b.ne[2]
    return rows_apart or blocks_apart or (weights.dtype == "bf16" and b.dtype != "bf16")


def _describe(library: Library, name: str, handle: Any) -> Device:
    c = library.c
    registry = c.text(c.ggml_backend_reg_name(c.ggml_backend_dev_backend_reg(handle)))
    versions = {
        "build": library.build,
        "ggml": version(library.c),
        "library": library.log.file.get(registry, ""),
        "driver": library.log.driver.get(name, ""),
    }
    return Device(
        id=name,
        description=c.text(c.ggml_backend_dev_description(handle)),
        versions={key: value for key, value in versions.items() if value},
        numerics=CPU_NUMERICS if library.is_cpu(handle) else GPU_NUMERICS,
    )
