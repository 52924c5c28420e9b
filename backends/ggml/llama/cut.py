"""A piece of a running graph, cut out: its nodes, what they read, and the memory that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opconform.backends.ggml.llama.records import Memory, Node, Tensor
from opconform.harness.model.buffers import ALIGNMENT
from opconform.harness.model.piece import Piece, PieceTensor

_SLACK = 1024  #: behind a region: a device may want more of a tensor than its bytes (CUDA pads quantised rows)


def cut_out(nodes: Sequence[Node], later: Sequence[Node], about: str) -> Piece | None:
    """The piece of `nodes`, whose sources' bytes are those from before the first of them. `later` are the nodes behind
    it in the graph. None where the bytes of a source from outside were not read."""
    regions = _Regions(nodes)
    tensors: list[PieceTensor] = []
    places: dict[tuple[Any, ...], int] = {}
    names: dict[str, int] = {}
    data: dict[int, bytes] = {}

    def add(tensor: Tensor, **more: Any) -> int:
        region, start = regions.place(tensor.memory)
        ne, nb = _four(tensor.ne), _four(tensor.nb)
        size = tensor.memory.end - tensor.memory.start
        tensors.append(PieceTensor(tensor.name, tensor.type, ne, nb, region, start, size, flags=tensor.flags, **more))
        places[_key(tensor)] = names[tensor.name] = len(tensors) - 1
        return len(tensors) - 1

    def source_of(tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        found = places.get(_key(tensor))
        if found is None:
            if tensor.data is None:
                raise LookupError(tensor.name)
            found = add(tensor, made_by=tensor.op)
            data[found] = tensor.data.tobytes()
        return found

    for node in nodes:
        present = len(node.sources) + len(node.missing)
        try:
            sources = tuple(source_of(node.source(place)) for place in range(present))
        except LookupError:
            return None
        whole = names.get(node.view_of) if node.view_of else None
        add(
            node,
            op=node.op,
            what=node.what,
            params=node.params.hex(),
            sources=sources,
            view_of=whole,
            offset=node.offset if whole is not None else 0,
            uses=_uses(node, later),
        )
    return Piece("ggml", about, tuple(regions.sizes), tuple(tensors), data)


def _uses(node: Node, later: Sequence[Node]) -> int:
    """How many nodes behind the piece read a node, at most as many as are told apart."""
    return sum(_key(source) == _key(node) for other in later for source in other.sources)


def _key(tensor: Tensor) -> tuple[Any, ...]:
    """What tells a tensor from others. Names may be given twice (`cache_k_l0 (view)`)."""
    return tensor.name, tensor.type, tensor.ne, tensor.nb, tensor.memory, tensor.op


def _four(values: Sequence[int]) -> tuple[int, int, int, int]:
    a, b, c, d = values
    return a, b, c, d


class _Regions:
    """The memory that the nodes touch, cut down to runs of bytes that are as aligned as they were."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        touched = [tensor.memory for node in nodes for tensor in (node, *node.sources)]
        self._runs: list[Memory] = []
        for memory in sorted(touched, key=lambda memory: (memory.buffer, memory.start)):
            start = memory.start // ALIGNMENT * ALIGNMENT
            last = self._runs[-1] if self._runs else None
            if last and last.buffer == memory.buffer and start <= last.end:
                self._runs[-1] = Memory(last.buffer, last.start, max(last.end, memory.end))
            else:
                self._runs.append(Memory(memory.buffer, start, memory.end))

    @property
    def sizes(self) -> list[int]:
        return [run.end - run.start + _SLACK for run in self._runs]

    def place(self, memory: Memory) -> tuple[int, int]:
        """The region that holds a tensor's bytes, and where it starts there."""
        for number, run in enumerate(self._runs):
            if memory.within(run):
                return number, memory.start - run.start
        raise AssertionError(f"{memory} is in no region")
