"""GGUF files: read with every bound checked, and written.

A model file is anybody's data, and libllama's own reader ends the process for many a broken one. `read` looks at all
of the header before a file goes to libllama; each fault is one `GgufError` line that says what is wrong.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opconform.harness.model.files import regular

MAGIC = b"GGUF"
ALIGNMENT = 32  #: of tensor data where `general.alignment` does not say otherwise
MOST_ENTRIES = 1 << 16  #: metadata entries, and tensors; the largest models have some thousands
LONGEST_NAME = 63  #: of a tensor: GGML_MAX_NAME with its final zero is 64
LONGEST_KEY = 1 << 16
LARGEST_ALIGNMENT = 1 << 20
MOST_PARTS = 1 << 10
_LONGEST_LINE = 300

#: Types of metadata values by number: how they are packed. A string is 8, an array 9.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Type:
    """A tensor type: its number in enum ggml_type, and how many bytes a block of so many elements takes."""

    number: int
    block: int
    bytes: int


TYPES: Mapping[str, Type] = {
    "f32": Type(0, 1, 4), "f16": Type(1, 1, 2), "bf16": Type(30, 1, 2), "f64": Type(28, 1, 8),
    "i8": Type(24, 1, 1), "i16": Type(25, 1, 2), "i32": Type(26, 1, 4), "i64": Type(27, 1, 8),
    "q4_0": Type(2, 32, 18), "q4_1": Type(3, 32, 20), "q5_0": Type(6, 32, 22), "q5_1": Type(7, 32, 24),
    "q8_0": Type(8, 32, 34), "q2_K": Type(10, 256, 84), "q3_K": Type(11, 256, 110), "q4_K": Type(12, 256, 144),
    "q5_K": Type(13, 256, 176), "q6_K": Type(14, 256, 210), "mxfp4": Type(39, 32, 17),
}  # fmt: skip
_BY_NUMBER = {kind.number: kind for kind in TYPES.values()}


class GgufError(ValueError):
    """A file that is no GGUF file, or a broken one: one line that says what is wrong."""

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message[:_LONGEST_LINE])
        super().__init__(line if len(message) <= _LONGEST_LINE else line + "…")


@dataclass(frozen=True)
class Info:
    """A tensor as the header lists it: `ne` innermost first, `offset` in bytes from the start of the data; `nbytes` is
    None for a type that is not known here."""

    name: str
    type: int
    ne: tuple[int, ...]
    offset: int
    nbytes: int | None


@dataclass(frozen=True)
class Header:
    """What stands before the tensors' data. Arrays in the metadata are tuples; long ones are left out (None)."""

    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[Info, ...]

    @property
    def architecture(self) -> str:
        """`general.architecture`, or nothing."""
        found = self.metadata.get("general.architecture")
        return found if isinstance(found, str) else ""

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors together."""
        return sum(info.nbytes or 0 for info in self.tensors)


def parts_of(path: Path) -> tuple[Path, ...]:
    """The files of a model in several parts, `NAME-00001-of-00003.gguf` and so on; just `path` where it is whole.

    Raises `GgufError` for a number of parts that cannot be.
    """
    found = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name, re.DOTALL)
    if not found:
        return (path,)
    count = int(found[3])
    if not 0 < int(found[2]) <= count <= MOST_PARTS:
        raise GgufError(f"{path} is part {int(found[2])} of {count}; there can be at most {MOST_PARTS}")
    return tuple(path.with_name(f"{found[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1))


def read(path: Path) -> Header:
    """The header of a GGUF file. Raises `GgufError` where it is not whole or cannot be."""
    try:
        with regular(path) as handle:
            if not os.fstat(handle).st_size:
                raise GgufError(f"{path} is empty")
            with mmap.mmap(handle, 0, access=mmap.ACCESS_READ) as memory:
                return parse(memory, str(path))
    except (OSError, ValueError) as error:
        if isinstance(error, GgufError):
            raise
        raise GgufError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def parse(memory: mmap.mmap | bytes, path: str) -> Header:
    """The header at the start of a whole file's bytes; `path` is what errors call it. Raises `GgufError`."""
    return _Reader(memory, path).header()


class _Reader:
    """Walks through a header; every step is checked against the file's end."""

    def __init__(self, memory: mmap.mmap | bytes, path: str) -> None:
        self._memory = memory
        self._size = len(memory)
        self._path = path
        self._at = 0

    def header(self) -> Header:
        magic = self._memory[:4]
        if magic != MAGIC:
            raise GgufError(f"{self._path} is not a GGUF file: it starts with {magic!r}, not {MAGIC!r}")
        self._at = 4
        version = self._scalar("I", "the version")
        if version not in (2, 3):
            swapped = version.to_bytes(4, "little") in (b"\0\0\0\2", b"\0\0\0\3")
            what = "is big-endian" if swapped else f"has version {version}"
            raise GgufError(f"{self._path} {what}; versions 2 and 3 in little-endian can be read")
        tensors, entries = self._count("tensors"), self._count("metadata entries")
        metadata: dict[str, Any] = {}
        for number in range(entries):
            key = self._string(f"the key of metadata entry {number}", LONGEST_KEY)
            if key in metadata:
                raise GgufError(f"{self._path} has the metadata key {key!r} twice")
            metadata[key] = self._value(f"the value of {key!r}")
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not _is_alignment(alignment):
            raise GgufError(f"{self._path}: general.alignment is {alignment!r}; it must be a power of two")
        infos = [self._info(number, alignment) for number in range(tensors)]
        self._check_data(infos, alignment)
        return Header(version, metadata, tuple(infos))

    def _check_data(self, infos: Sequence[Info], alignment: int) -> None:
        start = -(-self._at // alignment) * alignment
        names: set[str] = set()
        for info in infos:
            if info.name in names:
                raise GgufError(f"{self._path} has the tensor {info.name!r} twice")
            names.add(info.name)
            if start + info.offset + (info.nbytes or 0) > self._size:
                ends = start + info.offset + (info.nbytes or 0)
                raise GgufError(
                    f"{self._path} is cut off: its tensor {info.name!r} ends at byte {ends}, the file at {self._size}"
                )

    def _info(self, number: int, alignment: int) -> Info:
        name = self._string(f"the name of tensor {number}", LONGEST_NAME)
        what = f"tensor {name!r}"
        rank = self._scalar("I", f"the rank of {what}")
        if not 1 <= rank <= 4:
            raise GgufError(f"{self._path}: {what} has {rank} dimensions; ggml has 1 to 4")
        ne = tuple(self._scalar("Q", f"the sizes of {what}") for _ in range(rank))
        if min(ne) < 1 or math.prod(ne) >= 2**62:
            raise GgufError(f"{self._path}: {what} has the sizes {list(ne)}, which cannot be")
        kind = self._scalar("I", f"the type of {what}")
        offset = self._scalar("Q", f"the offset of {what}")
        if offset % alignment:
            raise GgufError(f"{self._path}: {what} stands at {offset}, which is no multiple of {alignment}")
        known = _BY_NUMBER.get(kind)
        if known and ne[0] % known.block:
            raise GgufError(f"{self._path}: {what} has rows of {ne[0]}; its type has blocks of {known.block}")
        return Info(name, kind, ne, offset, math.prod(ne) // known.block * known.bytes if known else None)

    def _value(self, what: str) -> Any:
        kind = self._scalar("I", what)
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self._string(what, self._size)
        if kind != _ARRAY:
            raise GgufError(f"{self._path}: {what} is of type {kind}, which GGUF does not have")
        inner, count = self._scalar("I", what), self._scalar("Q", what)
        if inner in _SCALARS:
            form = _SCALARS[inner]
            start = self._step(count * struct.calcsize("<" + form), what)
            return struct.unpack_from(f"<{count}{form}", self._memory, start) if count <= 1024 else None
        if inner != _STRING:
            raise GgufError(f"{self._path}: {what} is an array of type {inner}; GGUF files hold none")
        if count * 8 > self._size - self._at:
            raise GgufError(f"{self._path} is cut off: {what} should hold {count} strings")
        for _ in range(count):
            self._step(self._scalar("Q", what), what)
        return None

    def _count(self, what: str) -> int:
        count = int(self._scalar("Q", f"the number of {what}"))
        if count > MOST_ENTRIES:
            raise GgufError(f"{self._path} says that it has {count} {what}; at most {MOST_ENTRIES} are read")
        return count

    def _string(self, what: str, longest: int) -> str:
        size = self._scalar("Q", what)
        if size > longest and size <= self._size:
            raise GgufError(f"{self._path}: {what} is {size} bytes long; at most {longest} can be")
        start = self._step(size, what)
        return self._memory[start : start + size].decode(errors="backslashreplace")

    def _scalar(self, form: str, what: str) -> Any:
        start = self._step(struct.calcsize("<" + form), what)
        return struct.unpack_from("<" + form, self._memory, start)[0]

    def _step(self, size: int, what: str) -> int:
        """Goes on by `size` bytes; returns where they start."""
        start = self._at
        if size > self._size - start:
            raise GgufError(f"{self._path} is cut off: {what} would end at byte {start + size} of {self._size}")
        self._at = start + size
        return start


def _is_alignment(value: object) -> bool:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST_ALIGNMENT:
        return False
    return value & (value - 1) == 0


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: `ne` innermost first, and the bytes of its elements."""

    name: str
    type: str
    ne: tuple[int, ...]
    data: bytes


def write(path: Path, metadata: Mapping[str, Any], tensors: Iterable[Tensor]) -> None:
    """Write a file of version 3. Whole numbers become u32, or i32 where one is negative; the file is there whole or
    not at all."""
    tensors = list(tensors)
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    head += [_packed_string(key) + _packed_value(value) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        kind = TYPES[tensor.type]
        sizes = struct.pack(f"<I{len(tensor.ne)}Q", len(tensor.ne), *tensor.ne)
        head.append(_packed_string(tensor.name) + sizes + struct.pack("<IQ", kind.number, offset))
        offset += _padded(len(tensor.data))
    start = b"".join(head)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(start.ljust(_padded(len(start)), b"\0"))
        for tensor in tensors:
            file.write(tensor.data.ljust(_padded(len(tensor.data)), b"\0"))
    temporary.replace(path)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _packed_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _packed_value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _packed_string(value)
    if isinstance(value, (tuple, list)):
        number = _number_of(min(value))
        return struct.pack("<IIQ", _ARRAY, number, len(value)) + struct.pack(f"<{len(value)}{_SCALARS[number]}", *value)
    number = _number_of(value)
    return struct.pack("<I" + _SCALARS[number], number, value)


def _number_of(value: float) -> int:
    if isinstance(value, bool):
        return 7
    if isinstance(value, int):
        return 5 if value < 0 else 4
    return 6
