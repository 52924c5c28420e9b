"""Inside the worker: what libllama's scheduler is answered about each node, and what is read of it.

The scheduler asks about every node before it computes it. Answered yes, it computes what it has gathered up to that
node, and comes back; answered no, it goes on to gather. So all nodes before a piece are done when its first node is
asked about, and sources must be read then: about a third of the nodes of real graphs write over one of them.
(ggml-backend.cpp, ggml_backend_sched_compute_splits.)
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from opconform.backends.ggml.llama.binding import Llama, Pointer
from opconform.backends.ggml.llama.records import VIEWS
from opconform.backends.ggml.llama.tensors import Fields, TensorFields

#: How far noise moves an element, relative to it: a float32 sum of 256 terms may be this far off.
NOISE = 2.0**-18

Region = tuple[int, int]  #: offset and size in the shared memory


class Observer:
    """Answers one context's questions and sends what it sees."""

    def __init__(
        self,
        llama: Llama,
        fields: TensorFields,
        send: Callable[[Any], None],
        room: Callable[[int], tuple[int, np.ndarray]],
        note: Callable[[int, int], None],
    ) -> None:
        """`room` gives shared memory of a size, and where it is; `note` is told the first and the last node of the
        piece in flight."""
        self._llama = llama
        self._read = fields.reader()
        self._name_at = fields.name
        self._send, self._room, self._note = send, room, note
        self._buffers: dict[int, tuple[int, int, str]] = {}  # by handle: number, base, name
        self._names: dict[tuple[str, int], str] = {}
        self._callback = llama.ffi.callback("bool(void *, bool, void *)", self._asked)
        self.error = ""
        self.begin({})

    @property
    def callback(self) -> Pointer:
        """The function for the context's parameters."""
        return self._callback

    def begin(self, watch: Mapping[str, Any]) -> None:
        """Start a decode under other orders: `ends` and `values` are "all", "none" or lists of node numbers ("all" ends
        are those that compute something); `told` says whether nodes are sent at all; `noise` is a seed or None; `spoil`
        is [node, element, factor] or None."""
        self._every = watch.get("ends") == "all"
        self._ends = _chosen(watch.get("ends", "none"))
        self._values = _chosen(watch.get("values", "none"))
        self._told = bool(watch.get("told", False))
        noise, spoil = watch.get("noise"), watch.get("spoil")
        self._random = None if noise is None else np.random.RandomState(noise)
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
        node = self._read(tensor)
        computes = self._known("op", node.op) not in VIEWS
        if not self._computing:  # views before a piece belong to it, and start none
            self._first = index
        self._computing = self._computing or computes
        self._note(self._first, index)
        if self._told:
            sources: list[Any] = []
            regions: dict[int, Region | None] = {}
            for source in node.sources:
                sources.append(self._source(source, regions if self._values(index) else None))
            while sources and sources[-1] is None:
                sources.pop()
            what = self._llama.text(self._llama.lib.ggml_op_desc(tensor))
            plain = [index, self._first, self._plain(tensor, node), what, node.params.hex(), sources]
            self._pending.append(plain)
        self._last = tensor
        return self._ends(index) and (computes or not self._every)

    def _source(self, address: int, regions: dict[int, Region | None] | None) -> Any:
        """What is sent of a source, with its bytes where `regions` is given: those that were read for this node."""
        if not address:
            return None
        pointer = self._llama.ffi.cast("void *", address)
        fields = self._read(pointer)
        if regions is not None and address not in regions:
            regions[address] = self._bytes(pointer, fields)
        return [self._plain(pointer, fields), None if regions is None else regions[address]]

    def _after(self) -> bool:
        if self._random is not None or self._spoil is not None:
            self._change(self._index, self._last)
        region = None
        if self._told and self._values(self._index):
            region = self._bytes(self._last, self._read(self._last))
        self._send_pending(region)
        self._computing = False
        return True

    def _send_pending(self, region: Region | None) -> None:
        """Send the nodes of a piece. Only the last one's output can be read: a later node may have been given the
        memory of an earlier one, and a fused kernel does not write what is between."""
        for plain in self._pending:
            self._send(["node", *plain, region if plain is self._pending[-1] else None])
        self._pending.clear()

    def finish(self) -> None:
        """The decode is over: nodes that nobody was called back for have been computed too."""
        self._send_pending(None)

    def _plain(self, tensor: Pointer, fields: Fields) -> list[Any]:
        number, base = self._buffer(fields.buffer)
        view_of = self._name(fields.view_src) if fields.view_src else ""
        size = int(self._llama.lib.ggml_nbytes(tensor))
        op = self._known("op", fields.op) if fields.op else ""
        type_ = self._known("type", fields.type)
        name = self._llama.text(self._llama.lib.ggml_get_name(tensor))
        start = fields.data - base if fields.data else 0
        return [name, type_, fields.ne, fields.nb, number, start, size, view_of, fields.view_offs, fields.flags, op]

    def _buffer(self, handle: int) -> tuple[int, int]:
        if not handle:
            return -1, 0
        if handle not in self._buffers:
            lib, ffi = self._llama.lib, self._llama.ffi
            pointer = ffi.cast("void *", handle)
            base = int(ffi.cast("uintptr_t", lib.ggml_backend_buffer_get_base(pointer)))
            name = self._llama.text(lib.ggml_backend_buffer_name(pointer))
            number = len(self._buffers)
            self._buffers[handle] = number, base, name
            size, host = lib.ggml_backend_buffer_get_size(pointer), lib.ggml_backend_buffer_is_host(pointer)
            self._send(["buffer", name, int(size), bool(host), int(lib.ggml_backend_buffer_get_usage(pointer))])
        return self._buffers[handle][:2]

    def _bytes(self, tensor: Pointer, fields: Fields) -> Region | None:
        """The bytes of a tensor in the shared memory; None where they cannot be read."""
        size = int(self._llama.lib.ggml_nbytes(tensor))
        if not fields.buffer or not fields.data or not size:
            return None
        self._buffer(fields.buffer)
        if "REPACK" in self._buffers[fields.buffer][2] or "AMX" in self._buffers[fields.buffer][2]:
            return None
        offset, memory = self._room(size)
        self._llama.lib.ggml_backend_tensor_get(tensor, self._llama.ffi.from_buffer(memory), 0, size)
        return offset, size

    def _change(self, index: int, tensor: Pointer) -> None:
        """Move the output of the node that has just been computed, as noise and spoiling say."""
        fields = self._read(tensor)
        spoil = self._spoil if self._spoil and self._spoil[0] == index else None
        type_ = self._known("type", fields.type)
        if not fields.buffer or type_ not in ("f32", "f16") or self._known("op", fields.op) in VIEWS:
            return
        if not spoil and (self._random is None or type_ != "f32"):
            return
        lib, ffi = self._llama.lib, self._llama.ffi
        raw = np.empty(int(lib.ggml_nbytes(tensor)), np.uint8)
        lib.ggml_backend_tensor_get(tensor, ffi.from_buffer(raw), 0, raw.size)
        kind = np.dtype("<f4" if type_ == "f32" else "<f2")
        values: np.ndarray = np.ndarray(fields.ne[::-1], kind, raw.data, 0, fields.nb[::-1])
        with np.errstate(all="ignore"):
            if spoil:
                values[np.unravel_index(int(spoil[1]), values.shape)] *= kind.type(spoil[2])
            elif self._random is not None:
                values *= 1 + np.float32(NOISE) * self._random.uniform(-1, 1, values.shape).astype(np.float32)
        lib.ggml_backend_tensor_set(tensor, ffi.from_buffer(raw), 0, raw.size)

    def _known(self, what: str, number: int) -> str:
        found = self._names.get((what, number))
        if found is None:
            lib = self._llama.lib
            found = self._llama.text((lib.ggml_op_name if what == "op" else lib.ggml_type_name)(number))
            self._names[what, number] = found
        return found

    def _name(self, tensor: int) -> str:
        return self._llama.text(self._llama.ffi.cast("char *", tensor + self._name_at))


def _chosen(numbers: Any) -> Callable[[int], bool]:
    if numbers in ("all", "none"):
        answer = numbers == "all"
        return lambda _: answer
    among = frozenset(numbers)
    return lambda index: index in among
