"""Inside the worker: what libllama's scheduler is answered about each node, and what is read of it.

The scheduler asks about every node before it computes it. Answered yes, it computes what it has gathered up to that
node, and comes back; answered no, it goes on to gather. So all nodes before a piece are done when its first node is
asked about, and sources must be read then: about a third of the nodes of real graphs write over one of them.
(ggml-backend.cpp, ggml_backend_sched_compute_splits.)
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from opconform.backends.ggml.llama.binding import Llama, Pointer
from opconform.backends.ggml.llama.records import VIEWS, Memory, is_repacked
from opconform.harness.model.buffers import unwritten
from opconform.harness.model.dtypes import DTYPES

#: How far noise moves an element, relative to it: as far as a float32 sum of 256 terms typically moves when they are
#: added in another order (√n·u, Higham 2002, section 4.6).
NOISE = 2.0**-20

Region = tuple[int, int]  #: offset and size in the shared memory


class Room(Protocol):
    """Shared memory that the front sees: `worker.SharedMemory`."""

    def renew(self) -> None: ...

    def room(self, size: int) -> tuple[int, np.ndarray]: ...


class Observer:
    """Answers one context's questions and sends what it sees."""

    def __init__(
        self,
        llama: Llama,
        send: Callable[[str, Any], None],
        memory: Room,
        note: Callable[[int, int, str], None],
    ) -> None:
        """`note` is told the first and the last node of the piece in flight, and what the last is."""
        self._llama, self._c = llama, llama.c
        self._send, self._memory, self._note = send, memory, note
        self._buffers: dict[int, tuple[int, int]] = {}  # by address: number and first address
        self._unreadable: set[int] = set()  # of them, those whose weights stand in an order of their own
        self._names: dict[tuple[str, int], str] = {}
        self._callback = llama.c.ffi.callback("eval_callback", self._asked)
        self.error = ""
        self.begin({})

    @property
    def callback(self) -> Pointer:
        """The function for the context's parameters."""
        return self._callback

    def begin(self, watch: Mapping[str, Any]) -> None:
        """Start a decode under other orders.

        `ends` and `values` are "all", "none" or lists of node numbers; ends that are "all" are the nodes that compute
        something. `told` says whether nodes are sent at all; `noise` is a seed or None, and `levels` how far it moves
        the output of some ops; `poison` says whether outputs are filled before; `spoil` is [node, element, factor] or
        None.
        """
        self._every = watch.get("ends") == "all"
        self._ends = _chosen(watch.get("ends", "none"))
        self._values = _chosen(watch.get("values", "none"))
        self._told = bool(watch.get("told", False))
        noise, spoil = watch.get("noise"), watch.get("spoil")
        self._random = None if noise is None else np.random.RandomState(noise)
        self._levels = dict(watch.get("levels", {}))
        self._poison = bool(watch.get("poison", False))
        self._spoil = spoil
        self._index = -1
        self._first = 0
        self._computing = False  # whether a node of the piece in flight computes anything
        self._pending: list[Any] = []  # what is to be sent of the nodes of the piece in flight
        self._last: Pointer = None
        self.error = ""

    def _asked(self, tensor: Pointer, ask: bool, _: Pointer) -> bool:
        try:
            return self._before(tensor) if ask else self._after()
        except Exception:
            self.error = traceback.format_exc()
            return False  # ends the computation of this part of the graph

    def _before(self, tensor: Pointer) -> bool:
        self._index += 1
        index = self._index
        computes = self._known("op", tensor.op) not in VIEWS
        if not self._computing:  # views before a piece belong to it, and start none
            self._first = index
        self._computing = self._computing or computes
        what = self._c.text(self._c.ggml_op_desc(tensor))
        self._note(self._first, index, f"{what} {self._c.text(tensor.name)}")
        if self._told:
            if not self._pending:
                self._memory.renew()
            sources: list[Any] = []
            regions: dict[int, Region | None] = {}
            for source in tensor.src:
                sources.append(self._source(source, regions if self._values(index) else None))
            while sources and sources[-1] is None:
                sources.pop()
            params = bytes(self._c.ffi.buffer(tensor.op_params)).hex()
            plain = [index, self._first, self._plain(tensor), int(tensor.op), what, params, sources]
            self._pending.append(plain)
        self._last = tensor
        ends = self._ends(index) and (computes or not self._every)
        if self._poison and ends and self._first == index and self._values(index):
            self._fill(tensor)
        return ends

    def _fill(self, tensor: Pointer) -> None:
        """Fill the output of a node that is computed alone, so that an element which its kernel does not write shows.

        An output that is a view, or lies over a source, holds what is read or stays. Any other is the node's own from
        here on: what stood there has been read for the last time."""
        c, known = self._c, DTYPES.get(self._known("type", tensor.type))
        if known is None or known.block > 1 or not tensor.buffer or tensor.view_src or not self._is_packed(tensor):
            return
        mine = self._span(tensor)
        if any(source and mine.overlaps(self._span(source)) for source in tensor.src):
            return
        raw = np.full(int(c.ggml_nbytes(tensor)) // known.itemsize, unwritten(known), known.raw)
        if raw.size:
            c.ggml_backend_tensor_set(tensor, c.ffi.from_buffer(raw), 0, raw.nbytes)

    def _is_packed(self, tensor: Pointer) -> bool:
        rows = [int(tensor.ne[i]) * int(tensor.nb[i]) for i in range(3)]
        return rows == [int(step) for step in tensor.nb][1:]

    def _span(self, tensor: Pointer) -> Memory:
        number, base = self._buffer(tensor.buffer)
        start = self._llama.address(tensor.data) - base
        return Memory(number, start, start + int(self._c.ggml_nbytes(tensor)))

    def _source(self, tensor: Pointer, regions: dict[int, Region | None] | None) -> Any:
        """What is sent of a source, with its bytes where `regions` is given: those that were read for this node."""
        if not tensor:
            return None
        if regions is None:
            return [self._plain(tensor), None]
        address = self._llama.address(tensor)
        if address not in regions:
            regions[address] = self._bytes(tensor)
        return [self._plain(tensor), regions[address]]

    def _after(self) -> bool:
        if self._random is not None or self._spoil is not None:
            self._change(self._index, self._last)
        region = None
        if self._told and self._values(self._index):
            region = self._bytes(self._last)
        self._send_pending(region)
        self._computing = False
        return True

    def _send_pending(self, region: Region | None) -> None:
        """Send the nodes of a piece. Only the last one's output can be read: a later node may have been given the
        memory of an earlier one, and a fused kernel does not write what is between."""
        for plain in self._pending:
            self._send("node", [*plain, region if plain is self._pending[-1] else None])
        self._pending.clear()

    def finish(self) -> None:
        """The decode is over: nodes that nobody was called back for have been computed too."""
        self._send_pending(None)

    def _plain(self, tensor: Pointer) -> list[Any]:
        c = self._c
        number, base = self._buffer(tensor.buffer)
        start = self._llama.address(tensor.data) - base if tensor.data else 0
        return [
            c.text(tensor.name),
            self._known("type", tensor.type),
            list(tensor.ne),
            list(tensor.nb),
            number,
            start,
            int(c.ggml_nbytes(tensor)),
            c.text(tensor.view_src.name) if tensor.view_src else "",
            tensor.view_offs,
            tensor.flags,
            self._known("op", tensor.op) if tensor.op else "",
        ]

    def _buffer(self, buffer: Pointer) -> tuple[int, int]:
        """A buffer's number and its first address. The front is told of each when it is first seen."""
        if not buffer:
            return -1, 0
        address, c = self._llama.address(buffer), self._c
        if address not in self._buffers:
            name = c.text(c.ggml_backend_buffer_name(buffer))
            base = self._llama.address(c.ggml_backend_buffer_get_base(buffer))
            self._buffers[address] = len(self._buffers), base
            if is_repacked(name):
                self._unreadable.add(address)
            size, host = c.ggml_backend_buffer_get_size(buffer), c.ggml_backend_buffer_is_host(buffer)
            self._send("buffer", [name, int(size), bool(host), int(c.ggml_backend_buffer_get_usage(buffer))])
        return self._buffers[address]

    def _bytes(self, tensor: Pointer) -> Region | None:
        """The bytes of a tensor in the shared memory; None where they cannot be read."""
        c, size = self._c, int(self._c.ggml_nbytes(tensor))
        if not size:
            return 0, 0
        if not tensor.buffer or not tensor.data:
            return None
        self._buffer(tensor.buffer)
        if self._llama.address(tensor.buffer) in self._unreadable:
            return None
        offset, memory = self._memory.room(size)
        c.ggml_backend_tensor_get(tensor, c.ffi.from_buffer(memory), 0, size)
        return offset, size

    def _change(self, index: int, tensor: Pointer) -> None:
        """Move the output of the node that has just been computed, as noise and spoiling say."""
        spoil = self._spoil if self._spoil and self._spoil[0] == index else None
        type_ = self._known("type", tensor.type)
        if not tensor.buffer or type_ not in ("f32", "f16") or self._known("op", tensor.op) in VIEWS:
            return
        if not spoil and (self._random is None or type_ != "f32"):
            return
        c = self._c
        raw = np.empty(int(c.ggml_nbytes(tensor)), np.uint8)
        c.ggml_backend_tensor_get(tensor, c.ffi.from_buffer(raw), 0, raw.size)
        kind = np.dtype("<f4" if type_ == "f32" else "<f2")
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        values: np.ndarray = np.ndarray(shape, kind, raw.data, 0, strides)
        with np.errstate(all="ignore"):
            if spoil:
                _spoil(values, int(spoil[1]), float(spoil[2]))
            elif self._random is not None:
                level = np.float32(self._levels.get(self._known("op", tensor.op), NOISE))
                values *= 1 + level * self._random.uniform(-1, 1, values.shape).astype(np.float32)
        c.ggml_backend_tensor_set(tensor, c.ffi.from_buffer(raw), 0, raw.size)

    def _known(self, what: str, number: int) -> str:
        """ggml's name of an op or a type."""
        found = self._names.get((what, number))
        if found is None:
            c = self._c
            found = c.text((c.ggml_op_name if what == "op" else c.ggml_type_name)(number))
            self._names[what, number] = found
        return found


def _spoil(values: np.ndarray, element: int, factor: float) -> None:
    """Multiply an element; −1 is the largest that is finite. What is 0 becomes the factor less 1."""
    if element < 0:
        element = int(np.argmax(np.where(np.isfinite(values), np.abs(values), -1)))
    place = np.unravel_index(element, values.shape)
    values[place] = values[place] * values.dtype.type(factor) or values.dtype.type(factor - 1)


def _chosen(numbers: Any) -> Callable[[int], bool]:
    if numbers in ("all", "none"):
        answer = numbers == "all"
        return lambda _: answer
    among = frozenset(numbers)
    return lambda index: index in among
