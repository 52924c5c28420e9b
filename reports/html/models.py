"""A watched model on the page: its lines, its nodes by layer as a strip, and its wrong piece as a small graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opconform.harness.model.graph import WholeGraph, WrongPiece
from opconform.harness.search.watched import JudgedNode, Watched
from opconform.reports.html.charts import Block
from opconform.reports.states import Pair
from opconform.reports.watching import (
    Strip,
    again_with,
    case_words,
    declared,
    nodes_words,
    not_judged,
    piece_words,
    sequences_words,
    strips,
    whole_words,
)

_STEP, _HIGH, _ROW = 8, 14, 22  #: pixels: from node to node, of a mark, from row to row
_PER_ROW = 96
_LEFT = 34  #: pixels for the number of the layer
_LINE = 26  #: pixels from node to node of the graph
_CURVE = 16  #: pixels that an edge swings out for each node that it passes, up to `_SWING`
_SWING = 120
_KINDS: Mapping[str, str] = {"right": "passed", "wrong": "failed", "not judged": "unsupported"}


@dataclass(frozen=True)
class Mark:
    """A node in a strip: its rectangle, and what to say of it."""

    block: Block
    says: str


@dataclass(frozen=True)
class Drawn:
    """The nodes of decodes that are alike. rows: where a row begins, and the layer before it."""

    decodes: str
    width: int
    height: int
    marks: tuple[Mark, ...]
    rows: tuple[tuple[int, str], ...]
    says: str


@dataclass(frozen=True)
class Step:
    """A node of the piece: where it stands, what it is and reads, and what its output lies over."""

    y: int
    text: str
    reads: str
    over: str


@dataclass(frozen=True)
class Graph:
    """The nodes of a piece from top to bottom. edges: the paths from a node to one that reads it."""

    height: int
    left: int
    steps: tuple[Step, ...]
    edges: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A watched model: labelled lines, its drawings, and the commands that show it again."""

    pair: Pair
    found: Watched
    lines: tuple[tuple[str, str], ...]
    strips: tuple[Drawn, ...]
    graph: Graph | None
    commands: tuple[str, ...]


def model_of(pair: Pair, found: Watched) -> Model:
    """What the page shows of a model."""
    whole = found.whole
    piece = whole.piece if whole else None
    return Model(
        pair,
        found,
        tuple(_lines(found, whole, piece)),
        tuple(map(_drawn, strips(found.nodes))),
        None if piece is None or piece.late else _graph(piece),
        tuple(again_with(found)),
    )


def _lines(found: Watched, whole: WholeGraph | None, piece: WrongPiece | None) -> list[tuple[str, str]]:
    lines = [("model", found.model)]
    lines.append(("whole graph", whole_words(whole) if whole else "no verdict: the time was up"))
    lines += [("node by node", nodes_words(found)), ("sequences", sequences_words(found.together))]
    if piece is not None:
        lines.append(piece_words(piece))
        lines += [("because", because) for because in piece.because]
        lines += [("", f"{piece.ended.kind}  {piece.ended}")] if piece.ended else []
    elif found.by_node is not None and found.by_node.last is not None:
        lines.append(("in flight", f"node {found.by_node.last} of decode {found.by_node.decode}: {found.by_node.node}"))
    for name, right in whole.switches.items() if whole else ():
        lines.append(("with a switch", f"{name}=1 {'makes it right' if right else 'leaves it wrong'}"))
    lines += [("wrong node", f"{case_words(case)}; {case.path}") for case in found.cases]
    lines += [("not judged", reason) for reason in not_judged(found.nodes)]
    lines += [("declared", text) for text in declared(found.nodes)]
    return [*lines, *(("no time for", late) for late in found.late)]


def _drawn(strip: Strip) -> Drawn:
    marks, rows, y, longest = [], [], 0, 0
    for layer, nodes in strip.layers.items():
        for start in range(0, len(nodes), _PER_ROW):
            row = nodes[start : start + _PER_ROW]
            rows.append((y + _HIGH - 3, "" if start else "–" if layer is None else str(layer)))
            marks += [_mark(judged, _LEFT + number * _STEP, y) for number, judged in enumerate(row)]
            longest = max(longest, len(row))
            y += _ROW
    states = Counter(judged.state for nodes in strip.layers.values() for judged in nodes)
    says = ", ".join(f"{count} {state}" for state, count in states.items())
    return Drawn(strip.decodes, _LEFT + longest * _STEP, y, tuple(marks), tuple(rows), says)


def _mark(judged: JudgedNode, x: int, y: int) -> Mark:
    """What is wrong hangs lower than the rest: colour never stands alone."""
    top, high = {"right": (2, 10), "wrong": (2, 16), "not judged": (5, 5)}[judged.state]
    about = judged.detail or judged.reason
    says = f"{judged.node}: {judged.state}" + (f", {about}" if about else "")
    return Mark(Block(x, y + top, _STEP - 2, high, _KINDS[judged.state]), says)


def _graph(piece: WrongPiece) -> Graph:
    nodes = [node for node in piece.nodes if node.computes]
    over: dict[int, list[str]] = {}
    for index, name in piece.overlaps:
        over.setdefault(index, []).append(name)
    # What a view of a node is read by, reads the node.
    made_by: dict[str, int] = {}
    for node in piece.nodes:
        source = next((made_by[it.name] for it in node.sources if it.name in made_by), None)
        number = nodes.index(node) if node.computes else source
        if number is not None:
            made_by[node.name] = number
    steps, pairs = [], []
    for number, node in enumerate(nodes):
        y = number * _LINE + _LINE // 2
        outside = [source.name for source in node.sources if source.name not in made_by]
        inside = [made_by[source.name] for source in node.sources if source.name in made_by]
        pairs += [(start, number) for start in dict.fromkeys(inside) if start < number]
        reads = f"reads {', '.join(outside)}" if outside else ""
        steps.append(Step(y, str(node), reads, ", ".join(over.get(node.index, []))))
    left = max((_swing(pair) for pair in pairs), default=0) + 6
    return Graph(len(nodes) * _LINE, left, tuple(steps), tuple(_edge(pair, left) for pair in pairs))


def _swing(pair: Sequence[int]) -> int:
    return min(_CURVE * (pair[1] - pair[0]), _SWING)


def _edge(pair: Sequence[int], left: int) -> str:
    start, end = (number * _LINE + _LINE // 2 for number in pair)
    out = left - _swing(pair)
    return f"M{left} {start}C{out} {start} {out} {end} {left} {end}"
