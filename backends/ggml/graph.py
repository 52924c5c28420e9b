"""Tensors at chosen addresses: one backend buffer that takes a case's whole arena, and the graph of an op in it.

The arguments stand in the arena, at their places and strides. What a graph of many nodes has besides, ggml allocates
itself, as it does for a model: a tensor that nobody reads any more gives its memory to a later one.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from opconform.backends.ggml.composite import NODES, Build, Nodes, RefusedError, Shown
from opconform.backends.ggml.library import InitParams, Library
from opconform.backends.ggml.ops import OpBinding
from opconform.harness.model.buffers import Plan
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout, contiguous_strides

TYPES = {"f32": 0, "f16": 1, "bf16": 30, "i32": 26}  #: enum ggml_type
_I8 = 24
_TENSORS = 16  # the most tensors a case of one node needs, with room to spare
_SIZES = struct.Struct("=8q")  # ne[4] and nb[4] as they stand in struct ggml_tensor
_PROBE_NE = (3, 5, 7, 11)
_MEMORY_ALIGNMENT = 64


class Context:
    """A ggml context in memory of our own, so that a tensor's sizes and strides can be written where they stand."""

    def __init__(self, library: Library, tensors: int = _TENSORS) -> None:
        """Room for so many tensors and a graph of them."""
        self._library = library
        overhead = library.ggml_tensor_overhead()
        size = tensors * overhead + library.ggml_graph_overhead_custom(tensors, False)
        self._memory = ctypes.create_string_buffer(size + _MEMORY_ALIGNMENT)
        self._start = ctypes.addressof(self._memory)
        aligned = -(-self._start // _MEMORY_ALIGNMENT) * _MEMORY_ALIGNMENT
        self.handle = library.ggml_init(InitParams(size, aligned, True))
        if not self.handle:
            raise RuntimeError("ggml_init failed")
        self._sizes_at = self._find_sizes(overhead)

    def _find_sizes(self, overhead: int) -> int:
        """Where ne[4], followed by nb[4], stands in struct ggml_tensor: found by looking for a tensor of known sizes.

        Raises RuntimeError where a libggml lays its tensors out in another way.
        """
        library = self._library
        for name, number in {**TYPES, "i8": _I8}.items():
            if library.ggml_type_name(number) != name.encode():
                raise RuntimeError(f"this libggml ({library.build}) does not number the type {name} {number}")
        probe = library.ggml_new_tensor_4d(self.handle, TYPES["f32"], *_PROBE_NE)
        strides = contiguous_strides(_PROBE_NE[::-1], 4)[::-1]
        start = probe - self._start
        places = [
            place
            for place in range(0, overhead - _SIZES.size, 8)
            if _SIZES.unpack_from(self._memory, start + place) == (*_PROBE_NE, *strides)
        ]
        if len(places) != 1:
            raise RuntimeError(f"the tensors of this libggml ({library.build}) do not hold ne[4] and nb[4] as known")
        self.reset()
        return places[0]

    def reset(self) -> None:
        """Forget every tensor."""
        self._library.ggml_reset(self.handle)

    def set_sizes(self, tensor: int, ne: tuple[int, ...], nb: tuple[int, ...]) -> None:
        """Give a tensor these sizes and byte strides (innermost first)."""
        _SIZES.pack_into(self._memory, tensor - self._start + self._sizes_at, *ne, *nb)

    def sizes(self, tensor: int) -> tuple[int, ...]:
        """A tensor's ne[4], then its nb[4]."""
        return _SIZES.unpack_from(self._memory, tensor - self._start + self._sizes_at)


@dataclass
class Graph:
    """One case as ggml tensors: those that own memory with their argument's name, the views of them, and the nodes
    that write the outputs. `inner`: how many tensors it has whose memory ggml is to find; `stages` are among them."""

    case: Case
    context: Context
    owners: list[tuple[int, str]] = field(default_factory=list)
    views: list[int] = field(default_factory=list)
    outs: list[int] = field(default_factory=list)
    inner: int = 0
    stages: list[Shown] = field(default_factory=list)
    handle: int | None = None  #: the graph itself, once the tensors stand in memory


class _Inner:
    """Memory for the intermediate results of one graph at a time, found by ggml's own allocator; it grows."""

    def __init__(self, library: Library, buffer_type: int) -> None:
        self._library = library
        self._type = buffer_type
        self._measure = library.ggml_gallocr_new(buffer_type)
        self._allocator = library.ggml_gallocr_new(buffer_type)
        self._size = 0

    def allocate(self, graph: int) -> None:
        """Give every tensor of `graph` that has no memory a place. Raises MemoryError."""
        library = self._library
        needed = ctypes.c_size_t()
        library.ggml_gallocr_reserve_n_size(self._measure, graph, None, None, ctypes.byref(needed))
        if needed.value > self._size:
            self._size = _grown(needed.value)
            self._allocator = library.ggml_gallocr_new(self._type)
            self._reserve(self._one_tensor(self._size))
        # Without this the allocator takes a graph with as many nodes of such sizes for the one before.
        self._reserve(graph)
        library.ggml_gallocr_alloc_graph(self._allocator, graph)

    def _reserve(self, graph: int) -> None:
        if not self._library.ggml_gallocr_reserve(self._allocator, graph):
            raise MemoryError("the device gives no memory for the graph's intermediate results")

    def _one_tensor(self, size: int) -> int:
        library, self._context = self._library, Context(self._library)
        graph = library.ggml_new_graph_custom(self._context.handle, _TENSORS, False)
        library.ggml_build_forward_expand(graph, library.ggml_new_tensor_1d(self._context.handle, _I8, size))
        return int(graph)


def _grown(size: int) -> int:
    """A size for a buffer to grow to. Buffers are never freed: lavapipe (Mesa 22.3.6) goes on using one that was, as
    valgrind shows, and corrupts the heap. Sizes double, so that the old ones take no more memory than the newest."""
    return max(1 << 20, 1 << (size - 1).bit_length())


class Arena:
    """One buffer of a device that holds a case's arena byte for byte; it grows and is kept from case to case."""

    def __init__(self, library: Library, device: int) -> None:
        self._library = library
        self._device = device
        self._type = library.ggml_backend_dev_buffer_type(device)
        self.alignment = int(library.ggml_backend_buft_get_alignment(self._type))
        self._buffer: int | None = None
        self._size = 0
        self._whole_context = Context(library)
        self._context = Context(library)

    def build(self, case: Case, op: OpBinding) -> Graph:
        """The tensors of `case`, without memory yet. The graph built before is gone."""
        library, context = self._library, self._context
        context.reset()
        graph = Graph(case, context)
        tensors = [self._argument(graph, name, layout) for name, layout in case.inputs.items()]
        name, layout = next(iter(case.outputs.items()))
        if op.into:
            tensors.append(self._argument(graph, name, layout))
        make = getattr(library, op.inplace if case.inplace else op.symbol)  # type: ignore[arg-type]
        out = make(context.handle, *tensors, *op.params(case))
        graph.outs.append(out)
        if case.inplace or op.into:
            graph.views.append(out)
        else:
            graph.owners.append((out, name))
        return graph

    def compose(self, case: Case, build: Build, shown: bool = False) -> Graph:
        """The same for a graph of many nodes. Its stages can be read after a run where it is built to be `shown`.

        Raises `RefusedError` where the build or the device does not take it.
        """
        if self._library.ggml_gallocr_reserve_n_size is None:
            raise RefusedError(
                f"this libggml ({self._library.build}) has no ggml_gallocr_reserve_n_size, which the backend needs for "
                "graphs of many nodes"
            )
        context = self._large_context
        context.reset()
        graph = Graph(case, context)
        arguments = {name: self._argument(graph, name, layout) for name, layout in case.layouts.items()}
        nodes = Nodes(self._library, self._device, context, case, arguments, alignment=self.alignment, shown=shown)
        build(nodes)
        graph.outs, graph.inner, graph.stages = nodes.outs, nodes.count, nodes.stages
        return graph

    @cached_property
    def _large_context(self) -> Context:
        return Context(self._library, NODES + 2 * _TENSORS)

    @cached_property
    def _inner(self) -> _Inner:
        return _Inner(self._library, self._type)

    def _argument(self, graph: Graph, name: str, layout: Layout) -> int:
        """A tensor for an argument: a plain one where ggml itself would lay it out so, else a view of its memory."""
        library, context = self._library, graph.context
        number = TYPES[layout.dtype]
        ne = (*layout.ne, 1, 1, 1, 1)[:4]
        packed = contiguous_strides(layout.shape, layout.type.itemsize)
        if layout.size == 0 or (layout.offset == 0 and layout.strides == packed):
            tensor = library.ggml_new_tensor_4d(context.handle, number, *ne)
            graph.owners.append((tensor, name))
            return int(tensor)
        owner = library.ggml_new_tensor_1d(context.handle, number, layout.end // layout.type.itemsize)
        graph.owners.append((owner, name))
        view = library.ggml_view_1d(context.handle, owner, 1, layout.offset)
        nb = layout.nb
        while len(nb) < 4:
            nb = (*nb, nb[-1] * max(ne[len(nb) - 1], 1) if nb else layout.type.itemsize)
        context.set_sizes(view, ne, nb)
        graph.views.append(view)
        return int(view)

    def place(self, graph: Graph, plan: Plan) -> None:
        """Give every tensor of `graph` its address in the arena of `plan`."""
        library = self._library
        self.reserve(plan.size)
        base = library.ggml_backend_buffer_get_base(self._buffer)
        for tensor, name in graph.owners:
            library.ggml_backend_tensor_alloc(self._buffer, tensor, base + plan.slots[name].start)
        for view in graph.views:
            library.ggml_backend_view_init(view)
        handle = library.ggml_new_graph_custom(graph.context.handle, graph.inner + _TENSORS, False)
        for out in graph.outs:
            library.ggml_build_forward_expand(handle, out)
        if graph.inner:
            self._inner.allocate(handle)
        graph.handle = handle

    def shown(self, graph: Graph) -> Iterator[tuple[str, np.ndarray]]:
        """The stages of a graph that was built to be shown and has run, as float32."""
        for stage in graph.stages:
            yield stage.name, stage.assemble([self._read(graph.context, tensor) for tensor in stage.tensors])

    def _read(self, context: Context, tensor: int) -> np.ndarray:
        array = np.empty(context.sizes(tensor)[3::-1], np.float32)
        self._library.ggml_backend_tensor_get(tensor, _address(array), 0, array.nbytes)
        return array

    def reserve(self, size: int) -> None:
        """Make the buffer at least `size` bytes large. Tensors placed before must be placed again if it grew."""
        if size <= self._size:
            return
        library = self._library
        wanted = _grown(size)
        self._buffer = library.ggml_backend_buft_alloc_buffer(self._type, wanted)
        if not self._buffer:
            raise MemoryError(f"the device gives no buffer of {wanted} bytes")
        self._size = wanted
        self._whole_context.reset()
        self._whole = library.ggml_new_tensor_1d(self._whole_context.handle, _I8, wanted)
        library.ggml_backend_tensor_alloc(self._buffer, self._whole, library.ggml_backend_buffer_get_base(self._buffer))

    def upload(self, memory: np.ndarray) -> None:
        """Copy `memory` (uint8) to the start of the buffer."""
        self._library.ggml_backend_tensor_set(self._whole, _address(memory), 0, memory.size)

    def download(self, memory: np.ndarray) -> None:
        """Copy the start of the buffer back into `memory`."""
        self._library.ggml_backend_tensor_get(self._whole, _address(memory), 0, memory.size)


def _address(memory: np.ndarray) -> int:
    return int(memory.__array_interface__["data"][0])
