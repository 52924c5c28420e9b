"""A running graph as reports see it, as plain data: nodes, what is wrong with the whole, and how a run ended.

Sizes and strides are innermost first (`ne`, `nb`): so do those who run such graphs read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.findings import Kind


@dataclass(frozen=True)
class Place:
    """A tensor that a node reads or writes: its layout, and in bytes where it stands in the memory of another tensor
    (`view_of`, or nothing)."""

    name: str
    type: str
    ne: tuple[int, ...]
    nb: tuple[int, ...]
    offset: int = 0
    view_of: str = ""

    @property
    def departs(self) -> str:
        """How it departs from a packed tensor of its own, in a word or two; nothing where it does not."""
        spread = [stride for size, stride in zip(self.ne, self.nb) if size > 1]
        said = ["permuted"] if spread != sorted(spread) else []
        inner = zip(self.ne[1:], self.nb[1:], self.ne, self.nb)
        if not said and any(n > 1 and step > size * stride for n, step, size, stride in inner):
            said = ["with gaps between rows"]
        return ", ".join([*said, *([f"at byte {self.offset}"] if self.offset else [])])


@dataclass(frozen=True)
class GraphNode:
    """A node of a decode. index: its place there. what: its op as the library calls it, an activation by its own name.
    layer: the layer of the model that it is of, as far as its name says. computes: whether it writes anything; a view
    does not. device: the memory that it writes to."""

    decode: int
    index: int
    name: str
    what: str
    layer: int | None
    computes: bool
    device: str
    out: Place
    sources: tuple[Place, ...] = ()

    def __str__(self) -> str:
        return f"#{self.index} {self.what} {self.name}".rstrip()


@dataclass(frozen=True)
class SeenNode:
    """A node that was watched: as a case of the harness with the exact bytes of its inputs, and the elements of its
    outputs as the device left them; or `reason`, why it can be no case yet. line: what the library's own tools take to
    test such a node. lost: what of the node's memory the case does not keep. copies: how many of its sources are copies
    of what another device computed; wrong_copies: those that have arrived changed, in words."""

    node: GraphNode
    reason: str = ""
    case: Case | None = None
    values: Mapping[str, Raw] = field(default_factory=dict)
    outputs: Mapping[str, Raw] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    line: str = ""
    copies: int = 0
    wrong_copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The end of the process that ran the graph: how (`kind`, `detail`, and `said`, the line of its last words that
    says most), in which decode, and the first and the last node of what was in flight, with the name of the last.
    times: how often of how many runs, in words, where there were several."""

    kind: Kind
    detail: str
    said: str = ""
    decode: int = 0
    first: int | None = None
    last: int | None = None
    node: str = ""
    times: str = ""

    def __str__(self) -> str:
        times = f", {self.times}" if self.times else ""
        flight = ""
        if self.last is not None:
            nodes = f"node {self.last}" if self.first == self.last else f"nodes {self.first}..{self.last}"
            flight = f", {nodes} in flight ({self.node})"
        said = f": {self.said}" if self.said else ""
        return f"in decode {self.decode}, {self.detail}{flight}{times}{said}"


@dataclass(frozen=True)
class Difference:
    """How far two ways to compute the same logits are apart: `off` at most (infinite where only one of them is a
    number), where rounding explains `threshold`; `scale` is the spread of the logits; `where` says of which token."""

    off: float
    threshold: float
    scale: float
    where: str

    @property
    def wrong(self) -> bool:
        return not self.off <= self.threshold


@dataclass(frozen=True)
class WrongPiece:
    """Nodes of one decode that a backend computes wrong together, and right one by one. because: what may be the cause,
    a line each; overlaps: the index of a node whose output lies over what the piece still reads, and the name of that;
    `difference` and `ended` are what comes of it. late: the time was up before smaller pieces were tried."""

    decode: int
    nodes: tuple[GraphNode, ...]
    because: tuple[str, ...]
    difference: Difference | None = None
    ended: Ended | None = None
    overlaps: tuple[tuple[int, str], ...] = ()
    late: bool = False

    @property
    def ops(self) -> tuple[str, ...]:
        return tuple(node.what for node in self.nodes if node.computes)

    @property
    def where(self) -> str:
        """Which nodes they are, in words."""
        layers = {node.layer for node in self.nodes if node.layer is not None}
        of = f" of layer {layers.pop()}" if len(layers) == 1 else ""
        first, last = self.nodes[0].index, self.nodes[-1].index
        return (f"node {first}" if first == last else f"nodes {first}..{last}") + of


@dataclass(frozen=True)
class WholeGraph:
    """The same decodes with nothing observed, and node by node.

    times: how often the whole was computed; `wrong_times` of them it was wrong. by_node: the end of the run node by
    node, without which nothing can be compared. asked: whether the whole is right where the backend is asked about
    every node and stopped at none; None where that was not tried. switches: environment variables that leave out a part
    of what a backend does with a graph, and whether the whole is right with each. late: the time was up before the
    search was over.
    """

    times: int
    wrong_times: int
    worst: Difference | None
    ended: tuple[Ended, ...] = ()
    by_node: Ended | None = None
    asked: bool | None = None
    piece: WrongPiece | None = None
    switches: Mapping[str, bool] = field(default_factory=dict)
    nodes: tuple[tuple[GraphNode, ...], ...] = ()
    late: bool = False

    @property
    def right(self) -> bool:
        return self.by_node is None and not self.wrong_times


@dataclass(frozen=True)
class Together:
    """Sequences computed one way against each one alone. way: "together", or "in two parts". wrong: for each sequence
    that is wrong its difference, and the sequence whose logits it has instead where it has another's. error: why it
    could not be tried."""

    way: str
    sequences: int
    wrong: tuple[tuple[int, Difference, int | None], ...] = ()
    worst: Difference | None = None
    ended: Ended | None = None
    error: str = ""

    @property
    def right(self) -> bool:
        return not self.wrong and self.ended is None
