"""A piece without its model: computed in one go, and node by node, in a worker process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from opconform.backends.ggml.llama import whole
from opconform.backends.ggml.llama.bench import Run, Setup
from opconform.backends.ggml.llama.binding import folder_of
from opconform.backends.ggml.llama.records import Node
from opconform.backends.ggml.llama.scripts import Batch, Script
from opconform.backends.ggml.llama.session import Died, ModelError, Watch, Worker
from opconform.backends.ggml.llama.watching import whole_graph
from opconform.harness.model.graph import WholeGraph
from opconform.harness.model.piece import Piece, write_piece
from opconform.harness.model.usage import UsageError
from opconform.harness.run.watching import WatchRequest

_ONCE: Script = (Batch((0,), (0,), (0,), (True,)),)  #: a piece has no tokens; it is computed once in a run


class PieceBench:
    """Runs of a piece. Its outputs stand for logits, so that `whole.compare` judges it as it judges a model."""

    def __init__(self, setup: Setup) -> None:
        """`setup.path` is the piece's file. Raises `ModelError` and `Died`."""
        self.setup = setup
        self.runs = 0
        self._worker: Worker | None = None
        self._open()

    def _open(self) -> Worker:
        if self._worker is None:
            setup = self.setup
            self._worker = Worker(setup.environment, setup.seconds)
            self._worker.ask("open_piece", str(setup.folder), setup.devices[0], str(setup.path))
        return self._worker

    def run(
        self,
        script: Script,
        watch: Sequence[Watch] | Watch | None = None,
        see: Callable[[int, Node], None] | None = None,
    ) -> Run:
        """The outputs: node by node where `watch` ends after all nodes, in one go where it is None or ends after
        none."""
        self.runs += 1
        watched = watch if isinstance(watch, Watch) or watch is None else watch[0]
        in_one_go = watched is None or watched.ends == "none"
        noise = None if watched is None else watched.noise
        try:
            worker = self._open()
            start, rows, width = worker.ask("run_piece", in_one_go, noise)
            table = np.empty((rows, width))
            table.view(np.uint8).reshape(-1)[:] = worker.region(start, table.nbytes)
        except Died as died:
            self.close()
            return Run((), died)
        return Run((table,))

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def replay(piece: Piece, request: WatchRequest) -> WholeGraph:
    """The verdict on a piece. Raises `UsageError` where the build or the device cannot have it, and `Unavailable`."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_piece(piece, Path(folder))
        setup = Setup(folder_of(request.options), path, (request.device,), seconds=request.seconds, until=request.until)
        bench: PieceBench | None = None
        try:
            bench = PieceBench(setup)
            return whole_graph(whole.compare(bench, _ONCE, search=False), "its outputs")
        except (ModelError, Died) as error:
            raise UsageError(f"the piece cannot be computed on {request.device}: {error}") from None
        finally:
            if bench is not None:
                bench.close()
