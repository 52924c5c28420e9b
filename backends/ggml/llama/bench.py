"""Runs of one script on one model, each from the start; a worker that died is replaced for the next run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from opconform.backends.ggml.llama.records import Node
from opconform.backends.ggml.llama.scripts import Script
from opconform.backends.ggml.llama.session import SECONDS, UNOBSERVED, Context, ContextSizes, Died, Model, Watch
from opconform.harness.run.watching import LateError


@dataclass(frozen=True)
class Setup:
    """A model on devices of a build, and the room for what it will decode. `environment` is that of the worker;
    `until` is when no run may begin any more (`time.monotonic`), or None."""

    folder: Path
    path: Path
    devices: tuple[str, ...] = ("CPU",)
    gpu_layers: int = 999
    sizes: ContextSizes = field(default_factory=ContextSizes)
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float = SECONDS
    until: float | None = None


@dataclass(frozen=True)
class Run:
    """What became of a script: the logits of each decode, as far as it came; `died` and the number of the decode that
    the worker died in where it did."""

    logits: tuple[np.ndarray, ...]
    died: Died | None = None

    @property
    def decode(self) -> int:
        """The number of the decode that the worker died in."""
        return len(self.logits)


class Bench:
    """The runs."""

    def __init__(self, setup: Setup) -> None:
        """Loads the model. Raises `ModelError`, `Unavailable` and `Died`."""
        self.setup = setup
        self._model: Model | None = None
        self._contexts: dict[bool, Context] = {}
        self.runs = 0  #: how many there were
        self.model()

    def model(self) -> Model:
        """The loaded model."""
        if self._model is None:
            setup = self.setup
            self._model = Model(
                setup.folder, setup.path, setup.devices, setup.gpu_layers, setup.environment, setup.seconds
            )
        return self._model

    def run(
        self,
        script: Script,
        watch: Sequence[Watch] | Watch | None = None,
        see: Callable[[int, Node], None] | None = None,
    ) -> Run:
        """Decode `script` from the start: with nothing observed where `watch` is None, else as it says, for all
        batches or for each. `see` is told the number of the batch, too. Raises `ModelError`, and `LateError` once the
        time is up."""
        if self.setup.until is not None and time.monotonic() > self.setup.until:
            raise LateError
        self.runs += 1
        watches = [watch] * len(script) if isinstance(watch, Watch) else watch
        logits: list[np.ndarray] = []
        try:
            context = self._context(watch is not None)
            for number, batch in enumerate(script):

                def tell(node: Node, number: int = number) -> None:
                    if see:
                        see(number, node)

                logits.append(context.decode(batch, watches[number] if watches else UNOBSERVED, tell))
        except Died as died:
            self.close()
            return Run(tuple(logits), died)
        except BaseException:
            self.close()
            raise
        return Run(tuple(logits))

    def _context(self, watched: bool) -> Context:
        found = self._contexts.get(watched)
        if found is None:
            found = self._contexts[watched] = self.model().context(self.setup.sizes, watched)
        else:
            found.clear()
        return found

    def close(self) -> None:
        """End the worker. A later run starts another."""
        self._contexts.clear()
        if self._model is not None:
            self._model.close()
            self._model = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
