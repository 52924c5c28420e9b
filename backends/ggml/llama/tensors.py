"""struct ggml_tensor: where its fields stand, found with tensors of our own; and a tensor as plain data.

ggml has no accessors for sizes, strides, sources and parameters, and the struct has changed between versions. So each
field is looked for in tensors whose fields are known. One that is not found exactly once raises `Unavailable`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from opconform.backends.ggml.llama.binding import LLAMA_REMEDY, Llama, Pointer
from opconform.harness.run.backend import Unavailable

_F32, _I32 = 0, 26  #: enum ggml_type
_NE = (3, 5, 7, 11)
_SCALE = 0.7109375  #: exact in float32, and met nowhere else in a tensor
_VIEW_OFFSET = 44
_NAME = b"opconform-probe"
PARAMS_BYTES = 64  #: GGML_MAX_OP_PARAMS


class TensorFields:
    """Where the fields of struct ggml_tensor stand in a loaded libggml, in bytes."""

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        lib, ffi = llama.lib, llama.ffi
        self.most_bytes = int(lib.ggml_tensor_overhead())  # the struct and ggml's own header of it
        context = lib.ggml_init((64 * self.most_bytes, ffi.NULL, True))
        buffer = ffi.NULL
        try:
            plain = lib.ggml_new_tensor_4d(context, _I32, *_NE)
            a, b = (lib.ggml_new_tensor_4d(context, _F32, *_NE) for _ in range(2))
            view = lib.ggml_view_1d(context, a, 1, _VIEW_OFFSET)
            added, scaled = lib.ggml_add(context, a, b), lib.ggml_scale(context, a, _SCALE)
            lib.ggml_set_name(plain, _NAME)
            self.name = _offset(ffi, plain, lib.ggml_get_name(plain))
            if not 0 < self.name < self.most_bytes or llama.text(lib.ggml_get_name(plain)).encode() != _NAME:
                raise self._odd("name", [])
            self._size = self.name  # everything that is read stands before the name
            self._find_sizes(plain)
            self._find_sources(a, b, added, view)
            self.op = self._find_op(added, scaled, plain)
            self.params = self._where("op_params", scaled, "f", _SCALE, self.op)
            before = self._bytes(plain)
            lib.ggml_set_output(plain)
            self.flags = self._changed("flags", before, plain, self.params, self.sources)
            cpu = next(device for device in llama.devices.values() if llama.is_cpu(device))
            buffer = lib.ggml_backend_buft_alloc_buffer(lib.ggml_backend_dev_buffer_type(cpu), 1 << 16)
            base = lib.ggml_backend_buffer_get_base(buffer)
            lib.ggml_backend_tensor_alloc(buffer, a, base)
            self.buffer = self._where("buffer", a, "Q", _address(ffi, buffer), 0, self.ne)
            self.data = self._where("data", a, "Q", _address(ffi, base), self.view_src)
        finally:
            if buffer:
                lib.ggml_backend_buffer_free(buffer)
            lib.ggml_free(context)

    def _find_sizes(self, plain: Pointer) -> None:
        steps = [4]
        for size in _NE[:3]:
            steps.append(steps[-1] * size)
        self.ne = self._where("ne", plain, "8q", (*_NE, *steps), 0)
        self.nb = self.ne + 32
        self.type = self._where("type", plain, "i", _I32, 0, self.ne)

    def _find_sources(self, a: Pointer, b: Pointer, added: Pointer, view: Pointer) -> None:
        ffi = self._llama.ffi
        self.sources = self._where("src", added, "2Q", (_address(ffi, a), _address(ffi, b)), self.nb)
        owners = [place for place in self._places(view, "Q", _address(ffi, a), self.nb) if place != self.sources]
        if len(owners) != 1 or owners[0] <= self.sources:
            raise self._odd("view_src", owners)
        self.view_src = owners[0]
        self.view_offs = self._where("view_offs", view, "Q", _VIEW_OFFSET, self.view_src)
        self.most_sources = (self.view_src - self.sources) // 8

    def _find_op(self, added: Pointer, scaled: Pointer, plain: Pointer) -> int:
        """Where two ops have their numbers, and a tensor that no op made has 0."""
        lib, llama = self._llama.lib, self._llama
        known = ((added, "ADD"), (scaled, "SCALE"), (plain, "NONE"))
        numbers = {llama.text(lib.ggml_op_name(number)): number for number in range(64)}
        found = [set(self._places(tensor, "i", numbers.get(name, -1), self.nb + 32)) for tensor, name in known]
        both = sorted(set.intersection(*found) & set(range(self.nb + 32, self.sources)))
        if len(both) != 1:
            raise self._odd("op", both)
        return both[0]

    def _bytes(self, tensor: Pointer) -> bytes:
        return bytes(self._llama.ffi.buffer(tensor, self._size))

    def _places(self, tensor: Pointer, form: str, value: Any, start: int, end: int | None = None) -> list[int]:
        memory, packer = self._bytes(tensor), struct.Struct("=" + form)
        wanted = value if isinstance(value, tuple) else (value,)
        last = (self._size if end is None else end) - packer.size
        return [at for at in range(start, last + 1, 4) if packer.unpack_from(memory, at) == wanted]

    def _where(self, field: str, tensor: Pointer, form: str, value: Any, start: int, end: int | None = None) -> int:
        places = self._places(tensor, form, value, start, end)
        if len(places) != 1:
            raise self._odd(field, places)
        return places[0]

    def _changed(self, field: str, before: bytes, tensor: Pointer, start: int, end: int) -> int:
        after = self._bytes(tensor)
        places = [at for at in range(start, end, 4) if before[at : at + 4] != after[at : at + 4]]
        if len(places) != 1:
            raise self._odd(field, places)
        return places[0]

    def _odd(self, field: str, places: Sequence[int]) -> Unavailable:
        where = f"{len(places)} places for {field}" if places else f"no place for {field}"
        return Unavailable(f"struct ggml_tensor of {self._llama.file.name} has {where}", LLAMA_REMEDY)

    def reader(self) -> Callable[[Pointer], Fields]:
        """A function that reads the fields of a tensor."""
        buffer, size = self._llama.ffi.buffer, self._size
        sizes = struct.Struct("=8q")
        number, word = struct.Struct("=i"), struct.Struct("=Q")
        sources = struct.Struct(f"={self.most_sources}Q")

        def read(tensor: Pointer) -> Fields:
            memory = buffer(tensor, size)
            both = sizes.unpack_from(memory, self.ne)
            return Fields(
                number.unpack_from(memory, self.type)[0],
                word.unpack_from(memory, self.buffer)[0],
                both[:4],
                both[4:],
                number.unpack_from(memory, self.op)[0],
                memory[self.params : self.params + PARAMS_BYTES],
                number.unpack_from(memory, self.flags)[0],
                sources.unpack_from(memory, self.sources),
                word.unpack_from(memory, self.view_src)[0],
                word.unpack_from(memory, self.view_offs)[0],
                word.unpack_from(memory, self.data)[0],
            )

        return read


class Fields:
    """What stands in one tensor. Addresses are whole numbers; a source that is not there is 0."""

    __slots__ = ("buffer", "data", "flags", "nb", "ne", "op", "params", "sources", "type", "view_offs", "view_src")

    def __init__(
        self,
        type_: int,
        buffer: int,
        ne: tuple[int, ...],
        nb: tuple[int, ...],
        op: int,
        params: bytes,
        flags: int,
        sources: tuple[int, ...],
        view_src: int,
        view_offs: int,
        data: int,
    ) -> None:
        self.type, self.buffer, self.ne, self.nb, self.op = type_, buffer, ne, nb, op
        self.params, self.flags, self.sources = params, flags, sources
        self.view_src, self.view_offs, self.data = view_src, view_offs, data


def _address(ffi: Any, pointer: Pointer) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def _offset(ffi: Any, tensor: Pointer, inside: Pointer) -> int:
    return _address(ffi, inside) - _address(ffi, tensor)
