"""What a backend class offers that can run whole models: the seam between them and whoever judges.

A class says what it can by `Backend.watcher`. All that passes is plain data of `harness.model.graph`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from opconform.harness.model.graph import Ended, SeenNode, Together, WholeGraph
from opconform.harness.model.piece import Piece


class LateError(Exception):
    """The time is up."""


@dataclass(frozen=True)
class WatchRequest:
    """A model to run. model: a file; else architecture: a tiny model with random weights of a `type`, made on the spot.

    tokens: of the prompt; steps: of one token each, after it. sequences: that are computed together. until: when to
    stop searching (`time.monotonic`), or None. seconds: how long the worker may give no sign of life. spoil: for tests,
    the decode, the node and the element of its output (C order, outermost dimension first; −1 is the largest) that is
    multiplied with a factor; 0 becomes the factor less 1.
    """

    device: str
    options: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    architecture: str = ""
    type: str = "f32"
    tokens: int = 70
    sequences: int = 3
    steps: int = 2
    seed: int = 0
    gpu_layers: int | None = None
    until: float | None = None
    seconds: float = 300.0
    spoil: tuple[int, int, int, float] | None = None


class Watcher(Protocol):
    """A loaded model, run as often as need be. A context manager: leaving it ends whatever runs it.

    Whatever runs may raise `UsageError` for what cannot be had, and `LateError` once the time is up.
    """

    about: str  #: one line on the model

    def whole(self) -> WholeGraph:
        """The whole graph against its nodes, and the smallest wrong piece where they differ."""

    def piece(self, found: WholeGraph) -> Piece | None:
        """The wrong piece that was found, with the bytes that it reads, to be computed without the model."""

    def by_node(self, see: Callable[[SeenNode], None]) -> Ended | None:
        """Run node by node, and show each that computes something, in order; how the process ended, if it did. A second
        run goes on behind the nodes that the first has shown."""

    def sequences(self) -> tuple[Together, ...]:
        """Several sequences together against each alone, and a prompt in two parts against one."""

    def __enter__(self) -> Watcher: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...
