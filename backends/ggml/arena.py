"""Tensors at chosen addresses: one buffer of a device that takes a case's whole arena, and the case's graph in it.

The arguments stand in the arena, at their places and strides. What a graph of many nodes has besides, ggml allocates
itself, as it does for a model: a tensor that nobody reads any more gives its memory to a later one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from opconform.backends.ggml.binding import Binding, RefusedError, Tensor
from opconform.backends.ggml.declarations import CONSTANTS
from opconform.backends.ggml.library import Library
from opconform.backends.ggml.nodes import NODES, Build, Nodes, Site
from opconform.backends.ggml.rows import Row
from opconform.backends.ggml.timing import Bench
from opconform.harness.model.buffers import Plan
from opconform.harness.model.case import Case

_I8 = CONSTANTS["GGML_TYPE_I8"]
_SUCCESS = CONSTANTS["GGML_STATUS_SUCCESS"]
_SPARE = 16  # tensors, for what a graph has besides the nodes that are counted


def _context(c: Binding, tensors: int) -> Any:
    """A context with room for so many tensors and a graph of them."""
    size = tensors * c.ggml_tensor_overhead() + c.ggml_graph_overhead_custom(tensors, False)
    made = c.ggml_init(c.ffi.new("struct ggml_init_params *", [size, c.null, True])[0])
    if not made:
        raise RuntimeError("ggml_init failed")
    return made


def _grown(size: int) -> int:
    """A size for a buffer to grow to. Buffers are never freed: lavapipe (Mesa 22.3.6) goes on using one that was, as
    valgrind shows, and corrupts the heap. Sizes double, so that the old ones take no more memory than the newest."""
    return max(1 << 20, 1 << (size - 1).bit_length())


class _Inner:
    """Memory for the intermediate results of one graph at a time, found by ggml's own allocator; it grows."""

    def __init__(self, c: Binding, buffer_type: Any) -> None:
        self._c = c
        self._type = buffer_type
        self._measure = c.ggml_gallocr_new(buffer_type)
        self._allocator = c.ggml_gallocr_new(buffer_type)
        self._context = _context(c, _SPARE)
        self._size = 0

    def allocate(self, graph: Any) -> None:
        """Give every tensor of `graph` that has no memory a place. Raises MemoryError."""
        c = self._c
        needed = c.ffi.new("size_t *")
        c.ggml_gallocr_reserve_n_size(self._measure, graph, c.null, c.null, needed)
        if needed[0] > self._size:
            self._size = _grown(needed[0])
            self._allocator = c.ggml_gallocr_new(self._type)
            self._reserve(self._one_tensor(self._size))
        # Without this the allocator takes a graph with as many nodes of such sizes for the one before.
        self._reserve(graph)
        c.ggml_gallocr_alloc_graph(self._allocator, graph)

    def weigh(self, graph: Any) -> dict[str, int]:
        """Bytes for those tensors: as ggml plans them, and as the device allocates them."""
        c = self._c
        needed = c.ffi.new("size_t *")
        c.ggml_gallocr_reserve_n_size(self._measure, graph, c.null, c.null, needed)
        allocator = c.ggml_gallocr_new(self._type)
        if not c.ggml_gallocr_reserve(allocator, graph):
            raise MemoryError("the device gives no memory for the graph's intermediate results")
        allocated = int(c.ggml_gallocr_get_buffer_size(allocator, 0))
        c.ggml_gallocr_free(allocator)
        return {"planned": int(needed[0]), "allocated": allocated}

    def _reserve(self, graph: Any) -> None:
        if not self._c.ggml_gallocr_reserve(self._allocator, graph):
            raise MemoryError("the device gives no memory for the graph's intermediate results")

    def _one_tensor(self, size: int) -> Any:
        self._c.ggml_reset(self._context)
        graph = self._c.ggml_new_graph_custom(self._context, _SPARE, False)
        self._c.ggml_build_forward_expand(graph, self._c.ggml_new_tensor_1d(self._context, _I8, size))
        return graph


class Arena:
    """One buffer of a device that holds a case's arena byte for byte; it grows and is kept from case to case."""

    def __init__(self, library: Library, device: Any) -> None:
        self._library = library
        self._c = c = library.c
        self._type = c.ggml_backend_dev_buffer_type(device)
        self.alignment = int(c.ggml_backend_buft_get_alignment(self._type))
        name = c.text(c.ggml_backend_dev_name(device))
        self._site = Site(library, device, name, self.alignment, _context(c, NODES + 2 * _SPARE))
        self._whole_context = _context(c, 1)
        self._whole: Tensor = c.null
        self._base: Any = c.null
        self._buffer: Any = c.null
        self._size = 0

    # ---- graphs

    def build(self, case: Case, row: Row) -> Nodes:
        """The tensors of an op of one node, without memory yet; those built before are gone. Raises `RefusedError`."""
        nodes = self._start(Nodes, case)
        nodes.one(row)
        return nodes

    def compose(self, case: Case, build: Build, shown: bool = False, kind: Callable[..., Nodes] = Nodes) -> Nodes:
        """The same for a graph of many nodes. Its stages can be read after a run where it is built to be `shown`."""
        if not self._c.has("ggml_gallocr_reserve_n_size"):
            raise RefusedError(
                f"{self._c.what} has no ggml_gallocr_reserve_n_size, which the backend needs for graphs of many nodes"
            )
        nodes = self._start(kind, case, shown)
        nodes.needs_memory = True
        for name in case.layouts:
            nodes[name]
        build(nodes)
        return nodes

    def _start(self, kind: Callable[..., Nodes], case: Case, shown: bool = False) -> Nodes:
        self._c.ggml_reset(self._site.context)
        return kind(self._site, case, shown)

    def place(self, nodes: Nodes, plan: Plan) -> None:
        """Give every tensor its address in the arena of `plan`, and make the graph."""
        graph = self._stand(nodes, plan)
        if nodes.needs_memory:
            self._inner.allocate(graph)
        nodes.handle = graph

    def weigh(self, nodes: Nodes, plan: Plan) -> dict[str, int]:
        """Bytes of a graph's intermediate results (`_Inner.weigh`). Its tensors are spent afterwards."""
        return self._inner.weigh(self._stand(nodes, plan))

    def _stand(self, nodes: Nodes, plan: Plan) -> Any:
        c = self._c
        self.reserve(plan.size)
        for tensor, name in nodes.owners:
            c.ggml_backend_tensor_alloc(self._buffer, tensor, self._base + plan.slots[name].start)
        for view in nodes.views:
            c.ggml_backend_view_init(view)
        graph = c.ggml_new_graph_custom(self._site.context, nodes.count + _SPARE, False)
        for out in nodes.outs:
            c.ggml_build_forward_expand(graph, out)
        return graph

    def bench(self, backend: Any) -> Bench:
        """What it takes to time cases on this device."""
        return Bench(self._c, self._type, backend)

    @cached_property
    def _inner(self) -> _Inner:
        return _Inner(self._c, self._type)

    def compute(self, backend: Any, nodes: Nodes) -> None:
        """Compute a graph that stands in memory. Raises RuntimeError where ggml says that it could not."""
        status = self._c.ggml_backend_graph_compute(backend, nodes.handle)
        if status != _SUCCESS:
            raise RuntimeError(f"ggml_backend_graph_compute returned {status} (0 is success)")

    def shown(self, nodes: Nodes) -> Iterator[tuple[str, np.ndarray]]:
        """The stages of a graph that was built to be shown and has run, as float32."""
        for stage in nodes.stages:
            yield stage.name, stage.assemble([self._read(tensor) for tensor in stage.tensors])

    def _read(self, tensor: Tensor) -> np.ndarray:
        array = np.empty(tuple(tensor.ne)[::-1], np.float32)
        self._c.ggml_backend_tensor_get(tensor, self._c.ffi.from_buffer(array), 0, array.nbytes)
        return array

    # ---- memory

    def reserve(self, size: int) -> None:
        """Make the buffer at least `size` bytes large. Tensors placed before must be placed again if it grew."""
        if size <= self._size:
            return
        c, wanted = self._c, _grown(size)
        self._buffer = c.ggml_backend_buft_alloc_buffer(self._type, wanted)
        if not self._buffer:
            raise MemoryError(f"the device gives no buffer of {wanted} bytes")
        self._size = wanted
        self._base = c.ffi.cast("char *", c.ggml_backend_buffer_get_base(self._buffer))
        c.ggml_reset(self._whole_context)
        self._whole = c.ggml_new_tensor_1d(self._whole_context, _I8, wanted)
        c.ggml_backend_tensor_alloc(self._buffer, self._whole, self._base)

    def upload(self, memory: np.ndarray) -> None:
        """Copy `memory` (uint8) to the start of the buffer."""
        self._c.ggml_backend_tensor_set(self._whole, self._c.ffi.from_buffer(memory), 0, memory.size)

    def download(self, memory: np.ndarray) -> None:
        """Copy the start of the buffer back into `memory`."""
        self._c.ggml_backend_tensor_get(self._whole, self._c.ffi.from_buffer(memory), 0, memory.size)
