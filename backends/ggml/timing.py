"""Timing on a ggml device: graphs in which a node stands many times, and the device's own copy and product."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opconform.backends.ggml.binding import Binding, Tensor
from opconform.backends.ggml.declarations import CONSTANTS

CLOCK = "graphs, host clock"
LONGEST = 1024  #: nodes of a graph that repeats one
EVICTING = 256 << 20  #: bytes that fill the caches of any GPU
_SUCCESS = CONSTANTS["GGML_STATUS_SUCCESS"]
_F32 = CONSTANTS["GGML_TYPE_F32"]
_GAP = 256


class Bench:
    """What a device needs besides a case to be timed: contexts for graphs, and memory that grows and is kept."""

    def __init__(self, c: Binding, buffer_type: Any, backend: Any) -> None:
        self._c = c
        self._type = buffer_type
        self._backend = backend
        self._contexts: dict[int, Any] = {}
        self._buffer: Any = c.null
        self._size = 0
        self._large: Measure | None = None

    def seconds(self, node: Tensor, repeats: int) -> float:
        """How long the device takes for one node, computed so many times in as few graphs as possible."""
        total = 0.0
        while repeats:
            length = min(repeats, LONGEST)
            total += self.compute(self._graph(node, length))
            repeats -= length
        return total

    def compute(self, graph: Any, repeats: int = 1) -> float:
        """How long the device takes for a graph. Raises RuntimeError where ggml says that it could not."""
        compute, backend = self._c.ggml_backend_graph_compute, self._backend
        start = time.perf_counter()
        for _ in range(repeats):
            status = compute(backend, graph)
            if status != _SUCCESS:
                raise RuntimeError(f"ggml_backend_graph_compute returned {status} (0 is success)")
        return time.perf_counter() - start

    def _graph(self, node: Tensor, length: int) -> Any:
        c = self._c
        if length not in self._contexts:
            size = c.ggml_graph_overhead_custom(length, False) + c.ggml_tensor_overhead()
            self._contexts[length] = c.ggml_init(c.ffi.new("struct ggml_init_params *", [size, c.null, True])[0])
        c.ggml_reset(self._contexts[length])
        graph = c.ggml_new_graph_custom(self._contexts[length], length, False)
        for _ in range(length):
            c.ggml_graph_add_node(graph, node)
        return graph

    def free(self, context: Any) -> None:
        """Free a context of tensors."""
        self._c.ggml_free(context)

    def copying(self, size: int) -> Measure:
        """ggml's own copy of so many bytes."""
        n = max(size // 4, 1)
        return self._measure([(n,), (n,)], lambda context, a, b: self._c.ggml_cpy(context, a, b), writes=True)

    def product(self, n: int) -> Measure:
        """ggml's own product of two n×n matrices of float32."""
        return self._measure([(n, n), (n, n)], lambda context, a, b: self._c.ggml_mul_mat(context, a, b), n * n)

    def _measure(
        self, shapes: Sequence[tuple[int, ...]], make: Callable[..., Tensor], more: int = 0, writes: bool = False
    ) -> Measure:
        """A node of tensors of float32 in memory of the bench, whose result has `more` elements of its own, or
        `writes` into the last of them."""
        c = self._c
        size = 8 * c.ggml_tensor_overhead() + c.ggml_graph_overhead_custom(8, False)
        context = c.ggml_init(c.ffi.new("struct ggml_init_params *", [size, c.null, True])[0])
        tensors = [c.ggml_new_tensor_4d(context, _F32, *(*shape, 1, 1, 1)[:4]) for shape in shapes]
        node = make(context, *tensors)
        owners = tensors if writes else [*tensors, node]
        sizes = [-(-int(c.ggml_nbytes(tensor)) // _GAP) * _GAP for tensor in owners]
        base = self._memory(sum(sizes))
        for tensor, its in zip(owners, sizes):
            c.ggml_backend_tensor_alloc(self._buffer, tensor, base)
            base += its
        if writes:
            c.ggml_backend_view_init(node)
        for tensor in tensors:
            ones = np.ones(int(c.ggml_nbytes(tensor)) // 4, np.float32)
            c.ggml_backend_tensor_set(tensor, c.ffi.from_buffer(ones), 0, ones.nbytes)
        c.ggml_build_forward_expand(c.ggml_new_graph_custom(context, 8, False), node)  # marks it as to be computed
        return Measure(self, node, context)

    def _memory(self, size: int) -> Any:
        """Where so many bytes stand. An older buffer is never freed (see `arena.py`), so sizes double."""
        c = self._c
        if size > self._size:
            self._size = 1 << (size - 1).bit_length()
            self._buffer = c.ggml_backend_buft_alloc_buffer(self._type, self._size)
            if not self._buffer:
                self._size = 0
                raise MemoryError(f"the device gives no buffer of {size} bytes to time a copy or a product")
        return c.ffi.cast("char *", c.ggml_backend_buffer_get_base(self._buffer))

    def evict(self) -> None:
        """Copy other data from one place of the device's memory to another."""
        if self._large is None:
            self._large = self.copying(EVICTING)
        self._large.launch()


@dataclass(frozen=True)
class Measure:
    """One node, ready to launch and to time, and the context that it stands in."""

    bench: Bench
    node: Tensor
    context: Any

    def __del__(self) -> None:
        self.bench.free(self.context)

    def launch(self) -> None:
        self.bench.seconds(self.node, 1)

    def fetch(self) -> None:
        """Nothing is left to do."""

    def timed(self, repeats: int) -> float:
        return self.bench.seconds(self.node, repeats)
