"""What is seen of a running graph, as plain data: nodes, their sources, and the memory that they stand in.

Sizes and strides are ggml's, innermost first (`ne`, `nb`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from opconform.backends.ggml.llama.gguf import TYPES

_COPY = re.compile(r"^(?P<device>[^#]+)#(?P<name>.+)#(?P<number>\d+)$", re.DOTALL)
WEIGHTS = 1  #: enum ggml_backend_buffer_usage

#: Ops that compute nothing: their output is another look at their source's memory.
VIEWS = frozenset({"VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE", "NONE"})


@dataclass(frozen=True)
class Buffer:
    """Memory of a device: a number of its own, its name (`CPU`, `Vulkan0`, `CPU_Mapped` …), its size in bytes, whether
    the CPU can read it where it stands, and what it is used for (enum ggml_backend_buffer_usage)."""

    number: int
    name: str
    size: int
    host: bool
    usage: int


def is_repacked(buffer: str) -> bool:
    """Whether weights stand in a buffer of this name in another order than their type's, so that nobody can read them.
    A model is loaded so that there is none, unless a build keeps the flag for it elsewhere."""
    return any(word in buffer for word in ("REPACK", "AMX", "KLEIDIAI"))


NO_BUFFER = Buffer(-1, "", 0, False, 0)


@dataclass(frozen=True)
class Memory:
    """The bytes from `start` to before `end` of a buffer."""

    buffer: int
    start: int
    end: int

    def overlaps(self, other: Memory) -> bool:
        return self.buffer == other.buffer and self.start < other.end and other.start < self.end

    def within(self, other: Memory) -> bool:
        return self.buffer == other.buffer and other.start <= self.start and self.end <= other.end


@dataclass(frozen=True)
class Tensor:
    """A tensor as it stands in memory.

    type: ggml's name of it (`f32`, `q4_K`). memory: from its first byte to its last, gaps included. view_of: the name
    of the tensor whose memory it is a view of, or nothing, and `offset` its bytes from there. data: its bytes, gaps
    included; None where they were not read.
    """

    name: str
    type: str
    ne: tuple[int, ...]
    nb: tuple[int, ...]
    buffer: Buffer
    memory: Memory
    view_of: str = ""
    offset: int = 0
    flags: int = 0
    op: str = ""  #: what made it; nothing for an input or a weight
    data: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def is_weight(self) -> bool:
        """Whether its buffer holds weights, which no node changes."""
        return self.buffer.usage == WEIGHTS

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements (or blocks) follow each other without gaps."""
        block = TYPES[self.type].block if self.type in TYPES else 1
        rows = (self.nb[0] * (self.ne[0] // block), self.nb[1] * self.ne[1], self.nb[2] * self.ne[2])
        return self.nb[1:] == rows

    @property
    def original(self) -> str:
        """The name of the tensor that this one is the scheduler's copy of, on another device; nothing for no copy."""
        found = _COPY.match(self.name)
        return found["name"] if found else ""


class Source(Tensor):
    """What a node reads, as it stands before the node (or the piece that it is computed in)."""


@dataclass(frozen=True)
class Node(Tensor):
    """An op of the graph with its output, as it stands after it.

    index: its place in the decode. piece: the index of the first node that was computed together with it, views left
    out; its own where it was computed alone. number: of its op in enum ggml_op, which differs between builds. what: the
    op as ggml describes it (`SILU` for the op UNARY). params: op_params. missing: the places of sources that are NULL,
    as in a list with them.
    """

    index: int = 0
    piece: int = 0
    number: int = 0
    what: str = ""
    params: bytes = b""
    sources: tuple[Source, ...] = ()
    missing: tuple[int, ...] = ()

    @property
    def computes(self) -> bool:
        """Whether it writes its output; a view does not."""
        return self.op not in VIEWS

    @property
    def layer(self) -> int | None:
        """The layer that its name says: `ffn_out-1` is of layer 1."""
        found = re.search(r"-(\d+)\b", self.name) or re.search(r"\bblk\.(\d+)\.|_l(\d+)\b", self.name)
        return int(next(number for number in found.groups() if number)) if found else None

    def source(self, place: int) -> Source | None:
        """The source in a place of ggml's list; None where that is NULL, or past its end."""
        present = place - sum(gap < place for gap in self.missing)
        return None if place in self.missing or present >= len(self.sources) else self.sources[present]

    @property
    def writes_over(self) -> tuple[Source, ...]:
        """Its sources whose memory it writes to: it works in place."""
        return tuple(source for source in self.sources if self.computes and self.memory.overlaps(source.memory))


def tensor_from(plain: Sequence[Any], buffers: Sequence[Buffer], data: np.ndarray | None) -> dict[str, Any]:
    """The fields of a `Tensor` from what the worker sends of it."""
    name, type_, ne, nb, buffer, start, size, view_of, offset, flags, op = plain
    return {
        "name": str(name),
        "type": str(type_),
        "ne": tuple(int(x) for x in ne),
        "nb": tuple(int(x) for x in nb),
        "buffer": buffers[buffer] if 0 <= buffer < len(buffers) else NO_BUFFER,
        "memory": Memory(int(buffer), int(start), int(start) + int(size)),
        "view_of": str(view_of),
        "offset": int(offset),
        "flags": int(flags),
        "op": str(op),
        "data": data,
    }


def devices_of(nodes: Iterable[Node]) -> tuple[str, ...]:
    """The names of the buffers that nodes write to, in the order of first sight."""
    return tuple(dict.fromkeys(node.buffer.name for node in nodes if node.computes and node.buffer.name))


def kept(node: Node) -> Node:
    """A node whose bytes are copies, to be kept after `see` has returned."""

    def copied(data: np.ndarray | None) -> np.ndarray | None:
        return None if data is None else data.copy()

    sources = tuple(replace(source, data=copied(source.data)) for source in node.sources)
    return replace(node, data=copied(node.data), sources=sources)
