"""What came of watching a model, as plain data: it travels into histories and reports."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from opconform.harness.model.findings import Kind
from opconform.harness.model.graph import Ended, GraphNode, Together, WholeGraph

State = Literal["right", "wrong", "not judged"]


@dataclass(frozen=True)
class JudgedNode:
    """A node with what became of it. reason: why it was not judged. kind and detail: what is wrong; times: how far the
    worst element is off, in terms of its bound. case: the id of the case that it is. sampled: whether a part of its
    output was judged. lower: what the backend declares below float32's precision for it."""

    node: GraphNode
    state: State
    reason: str = ""
    kind: Kind | None = None
    detail: str = ""
    times: float = 0.0
    case: str = ""
    sampled: bool = False
    lower: str = ""


@dataclass(frozen=True)
class WrongCase:
    """A distinct wrong node as a case. nodes: how many are such. path: its file. alone: what became of the same case
    without the graph: "fails", "passes", or why it was not run. recipe: whether it fails with drawn values too, so that
    the file needs none. hint: what would explain all that the case alone returns."""

    case: str
    node: JudgedNode
    nodes: int
    path: str
    alone: str
    recipe: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Watched:
    """What came of watching one model on one device.

    model: one line on it. about: one line on the device. again: what `opconform watch` takes to watch the same model.
    whole: None where the time was up before there was a verdict. by_node: the end of the run node by node, if it died.
    piece: the file of the wrong piece. late: what the time did not suffice for. options: of the device, as the command
    line takes them. copies: how many sources were copies of what another device computed; each was looked at.
    """

    target: str
    build: str
    about: str
    model: str
    again: str
    nodes: tuple[JudgedNode, ...] = ()
    by_node: Ended | None = None
    cases: tuple[WrongCase, ...] = ()
    whole: WholeGraph | None = None
    piece: str = ""
    together: tuple[Together, ...] = ()
    late: tuple[str, ...] = ()
    seconds: float = 0.0
    options: tuple[str, ...] = ()
    copies: int = 0

    @property
    def judged(self) -> int:
        return sum(node.state != "not judged" for node in self.nodes)

    @property
    def wrong(self) -> list[JudgedNode]:
        return [node for node in self.nodes if node.state == "wrong"]

    @property
    def right(self) -> bool:
        """Whether something ran, and nothing is wrong with it."""
        whole_right = self.whole is None or self.whole.right
        ran = bool(self.nodes) and (self.whole is not None or bool(self.judged))
        return ran and whole_right and not self.wrong and not self.by_node and all(it.right for it in self.together)

    @property
    def verdict(self) -> str:
        """The verdict in a word or a few."""
        whole = [self.whole.by_node, *self.whole.ended] if self.whole else []
        died = [end for end in (self.by_node, *whole) if end is not None]
        if died:
            wrong = self.wrong or (self.whole and self.whole.worst and self.whole.worst.wrong)
            return f"WRONG, {died[0].kind}" if wrong else str(died[0].kind)
        if self.right:
            return "RIGHT" if not self.late else "RIGHT AS FAR AS IT CAME"
        return "WRONG" if self.nodes or self.whole else "NOTHING RAN"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; numbers that JSON lacks stand as text. The nodes of the whole graph are left out: those that
        compute anything stand among the judged ones."""
        kept = replace(self, whole=None if self.whole is None else replace(self.whole, nodes=()))
        plain: dict[str, Any] = _plain(asdict(kept))
        return {**plain, "verdict": self.verdict, "right": self.right}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
