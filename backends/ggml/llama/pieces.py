"""The smallest run of nodes that a backend computes wrong together, although it computes each of them right alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opconform.backends.ggml.llama.records import Node, Source

MOST_SCANS = 64  #: how many decodes the scan inside a piece may take


@dataclass(frozen=True)
class Overlap:
    """An output of a piece that lies over memory which the piece still reads: a kernel that computes the piece in one
    go may read there what it has already written."""

    writer: Node
    source: Source
    reader: Node

    def __str__(self) -> str:
        return f"the output of {self.writer.what} lies over {self.source.name}, which the piece still reads"


def computing(nodes: Sequence[Node]) -> list[int]:
    """The indices of the nodes that compute something."""
    return [node.index for node in nodes if node.computes]


def ends_around(nodes: Sequence[Node], first: int, last: int) -> list[int]:
    """Where the backend must stop for the nodes from `first` to `last` (indices) to be one piece and each other node
    to be alone. Views stay with the node before them: a fused kernel may want the reshaping of its output too."""
    steps = computing(nodes)
    ends = [following - 1 for following in steps[1:]] + [nodes[-1].index]
    return [end for index, end in zip(steps, ends) if not first <= index < last]


def smallest(nodes: Sequence[Node], wrong: Callable[[int, int], bool]) -> tuple[int, int] | None:
    """The first and last node of a smallest wrong piece; None where no piece is.

    `wrong(first, last)` computes those nodes together and every other one alone, and says whether that fails. What it
    says is not monotone: a piece can be right whose part is wrong, since kernels are fused from its start on. So
    bisection finds an end where right turns to wrong, and a start where wrong turns to right; then every start inside
    is tried.
    """
    steps = computing(nodes)
    if len(steps) < 2 or not wrong(steps[0], steps[-1]):
        return None
    right, end = 0, len(steps) - 1  # a piece of one node is right
    while end - right > 1:
        middle = (right + end) // 2
        if wrong(steps[0], steps[middle]):
            end = middle
        else:
            right = middle
    start, right = 0, end
    while right - start > 1:
        middle = (start + right) // 2
        if wrong(steps[middle], steps[end]):
            start = middle
        else:
            right = middle
    for inner in range(end - 1, max(start, end - 1 - MOST_SCANS), -1):
        if wrong(steps[inner], steps[end]):
            start = inner
            break
    return steps[start], steps[end]


def overlaps(nodes: Sequence[Node], first: int, last: int) -> tuple[Overlap, ...]:
    """Where outputs that are read after the piece lie over what the piece reads from outside.

    A kernel that computes the whole piece writes these outputs and reads those sources, in an order of its own. A node
    that overwrites what it alone reads is left out: that is the usual work in place.
    """
    inside = [node for node in nodes if first <= node.index <= last]
    made = {node.name for node in inside}
    read_after = {
        name for node in nodes if node.index > last for source in node.sources for name in (source.name, source.view_of)
    }
    found = []
    for writer in inside:
        if not writer.computes or not _is_read(writer, read_after, inside):
            continue
        for reader in inside:
            if reader.index >= writer.index or not reader.computes:
                continue
            for source in reader.sources:
                outside = source.name not in made and source.view_of not in made
                if outside and source.memory.overlaps(writer.memory):
                    found.append(Overlap(writer, source, reader))
    return tuple(found)


def _is_read(node: Node, read_after: set[str], inside: Sequence[Node]) -> bool:
    """Whether a node's output, or a view of it that the piece makes, is read after the piece."""
    views = {other.name for other in inside if other.view_of == node.name}
    return bool(read_after & {node.name, *views} - {""})
