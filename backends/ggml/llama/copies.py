"""Copies between devices: whether what one device computed has arrived on the other as it was.

Where a model's layers are on several devices, a node's source may be the scheduler's copy of another node's output,
which has a name of its own (`Vulkan0#ffn_inp-0#0`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from opconform.backends.ggml.llama.records import Node, Source, Tensor


@dataclass(frozen=True)
class WrongCopy:
    """A source whose bytes are not those that were computed on the other device."""

    source: Source
    maker: Node
    reader: Node

    def __str__(self) -> str:
        return f"{self.source.name}, which {self.reader.what} reads, is not what {self.maker.what} wrote"


class Copies:
    """Follows the copies of one decode, in which every node is observed with its values."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Node, tuple[object, ...]]] = {}
        self.followed = 0  #: copies whose original was seen

    def see(self, node: Node) -> tuple[WrongCopy, ...]:
        """The wrong copies among the sources of `node`, which comes after those that were seen before."""
        wrong = []
        for source in node.sources:
            maker = self._made.get(source.original)
            content = _content(source) if maker else None
            if maker and content and maker[1][:2] == content[:2]:
                self.followed += 1
                if maker[1] != content:
                    wrong.append(WrongCopy(source, maker[0], node))
        content = _content(node)
        if content and node.computes:
            self._made[node.name] = node, content
        return tuple(wrong)


def _content(tensor: Tensor) -> tuple[object, ...] | None:
    """The sizes of a contiguous tensor, its type, and a digest of its bytes; None where they were not read."""
    if tensor.data is None or not tensor.is_contiguous:
        return None
    return tensor.ne, tensor.type, hashlib.sha256(tensor.data.tobytes()).digest()
