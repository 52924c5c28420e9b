"""A model in libllama behind the harness's seam: what was seen, in the words of `harness.model.graph`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from opconform.backends.ggml.llama import tiny, whole
from opconform.backends.ggml.llama.architectures import ARCHITECTURES
from opconform.backends.ggml.llama.bench import Bench, Setup
from opconform.backends.ggml.llama.binding import folder_of
from opconform.backends.ggml.llama.cases import NotACase, captured
from opconform.backends.ggml.llama.copies import Copies
from opconform.backends.ggml.llama.cut import cut_out
from opconform.backends.ggml.llama.lines import line
from opconform.backends.ggml.llama.pieces import ends_around
from opconform.backends.ggml.llama.records import Node, Tensor, kept
from opconform.backends.ggml.llama.scripts import Script, script
from opconform.backends.ggml.llama.session import ContextSizes, ModelError, Watch
from opconform.backends.ggml.llama.together import Alone, compared
from opconform.harness.model.graph import (
    Difference,
    Ended,
    GraphNode,
    Place,
    SeenNode,
    Together,
    WholeGraph,
    WrongPiece,
)
from opconform.harness.model.piece import Piece
from opconform.harness.model.usage import UsageError
from opconform.harness.run.watching import LateError, WatchRequest

ALL_LAYERS = 999
_ROUND = 256  #: contexts are a multiple of it


class ModelWatcher:
    """A model on a device of a build, decoding a prompt and steps. See `harness.run.watching.Watcher`."""

    def __init__(self, request: WatchRequest) -> None:
        """Load the model. Raises `UsageError` and `Unavailable`."""
        self._request = request
        setup = Setup(
            folder_of(request.options),
            _file(request),
            (request.device,),
            ALL_LAYERS if request.gpu_layers is None else request.gpu_layers,
            ContextSizes(
                context=-(-(request.tokens + request.steps) // _ROUND) * _ROUND, batch=max(request.tokens, _ROUND)
            ),
            seconds=request.seconds,
            until=request.until,
        )
        with _for_users():
            self._bench = Bench(setup)
            model = self._bench.model()
        if 0 < model.longest < request.tokens + request.steps:
            self._bench.close()
            raise UsageError(
                f"a prompt of {request.tokens} tokens and {request.steps} steps are more than the "
                f"{model.longest} tokens that the model was trained for"
            )
        self._vocabulary = model.vocabulary
        self.about = f"{model.header.architecture}, {_millions(model.weights)} weights in {model.layers} layers"
        self._script: Script = script(model.vocabulary, request.tokens, 1, request.steps, seed=request.seed)
        self._found: whole.Whole | None = None

    def whole(self) -> WholeGraph:
        with _for_users():
            self._found = whole.compare(self._bench, self._script)
        return whole_graph(self._found)

    def piece(self, found: WholeGraph) -> Piece | None:
        if self._found is None or self._found.piece is None or self._found.piece.late:
            return None
        piece = self._found.piece
        nodes = self._found.nodes[piece.decode]
        first, last = piece.nodes[0].index, piece.nodes[-1].index
        # The views behind it go to the backend together with it, as in the search.
        following = next((node.index for node in nodes if node.index > last and node.computes), nodes[-1].index + 1)
        taken: list[Node] = []

        def take(decode: int, node: Node) -> None:
            if decode == piece.decode and first <= node.index < following:
                taken.append(kept(node))

        watches = [Watch(told=False)] * piece.decode
        watches.append(Watch(ends_around(nodes, first, last), range(first, following)))
        with _for_users():
            self._bench.run(self._script[: piece.decode + 1], watches, take)
        if not taken:
            return None
        about = f"{self.about}; decode {piece.decode}, nodes {first}..{following - 1}, on {self._request.device}"
        return cut_out(taken, [node for node in nodes if node.index >= following], about)

    def by_node(self, see: Callable[[SeenNode], None]) -> Ended | None:
        watches = [Watch(values="all", poison=True) for _ in self._script]
        if self._request.spoil:
            decode, node, element, factor = self._request.spoil
            watches[decode] = replace(watches[decode], spoil=(node, element, factor))

        copies: list[Copies] = []
        shown = (0, -1)  # decode and node: a second run goes on behind it

        def show(decode: int, node: Node) -> None:
            nonlocal shown
            before = copies[decode].followed
            wrong = tuple(map(str, copies[decode].see(node)))
            if (decode, node.index) <= shown:
                return
            shown = decode, node.index
            if node.computes:
                see(replace(seen(decode, node), copies=copies[decode].followed - before, wrong_copies=wrong))

        ends: list[Ended] = []
        for runs in range(1, whole.ATTEMPTS + 1):
            copies[:] = [Copies() for _ in self._script]
            try:
                with _for_users():
                    run = self._bench.run(self._script, watches, show)
            except LateError:
                if not ends:
                    raise
                break
            if run.died:
                ends.append(run.died.in_decode(run.decode))
            if not run.died or runs == whole.ATTEMPTS:
                return (
                    replace(ends[-1], times=f"{len(ends)} time{'' if len(ends) == 1 else 's'} of {runs}")
                    if ends
                    else None
                )
        return ends[-1]

    def sequences(self) -> tuple[Together, ...]:
        request, found = self._request, self._found
        with contextlib.ExitStack() as stack:
            stack.enter_context(_for_users())
            bench = self._bench
            if found is not None and not found.right:
                cure = next((switch.variable for switch in found.switches if switch.right), None)
                if cure is None:
                    return (Together("together", request.sequences, error="a sequence alone is wrong already"),)
                setup = replace(bench.setup, environment={**bench.setup.environment, cure: "1"})
                bench = stack.enter_context(Bench(setup))
            alone = Alone(bench, self._vocabulary, request.tokens, request.steps, request.seed)
            return tuple(compared(alone, max(request.sequences, 1)))

    def close(self) -> None:
        self._bench.close()

    def __enter__(self) -> ModelWatcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _file(request: WatchRequest) -> Path:
    if request.architecture:
        return tiny.tiny_model(request.architecture, request.type)
    path = Path(request.model)
    if not path.exists():
        raise UsageError(f"no model file {request.model}; --arch makes a small one of {', '.join(ARCHITECTURES)}")
    return path


@contextlib.contextmanager
def _for_users() -> Iterator[None]:
    """What libllama does not take is the user's to know, in one line."""
    try:
        yield
    except ModelError as error:
        raise UsageError(str(error)) from None


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} million" if count < 1e9 else f"{count / 1e9:.3g} billion"


# ---- in the words of the harness -------------------------------------------------------------------------------------


def seen(decode: int, node: Node) -> SeenNode:
    """A node with its values, as a case where it can be one."""
    try:
        found = captured(node)
    except NotACase as reason:
        return SeenNode(graph_node(decode, node), str(reason), line=line(node))
    return SeenNode(graph_node(decode, node), "", found.case, found.values, found.outputs, found.lost, line(node))


def graph_node(decode: int, node: Node) -> GraphNode:
    """A node without its bytes."""
    return GraphNode(
        decode,
        node.index,
        node.name,
        node.what,
        node.layer,
        node.computes,
        node.buffer.name,
        _place(node),
        tuple(map(_place, node.sources)),
    )


def _place(tensor: Tensor) -> Place:
    return Place(tensor.name, tensor.type, tensor.ne, tensor.nb, tensor.offset, tensor.view_of)


def whole_graph(found: whole.Whole, of: str = "") -> WholeGraph:
    """The verdict on a whole graph. of: what rows of outputs are of, where they are no logits of a decode."""
    differences = [_difference(each, of) for each in found.differences]
    piece = found.piece
    wrong_piece = (
        None
        if piece is None
        else WrongPiece(
            piece.decode,
            tuple(graph_node(piece.decode, node) for node in piece.nodes),
            tuple(dict.fromkeys(map(str, piece.overlaps))),
            _difference(piece.difference, of) if piece.difference else None,
            piece.died.in_decode(piece.decode) if piece.died else None,
            tuple(dict.fromkeys((overlap.writer.index, overlap.source.name) for overlap in piece.overlaps)),
            piece.late,
        )
    )
    return WholeGraph(
        times=len(found.differences) + len(found.died),
        wrong_times=found.wrong_times,
        worst=max(differences, key=lambda each: each.off / max(each.threshold, 1e-300), default=None),
        ended=tuple(died.in_decode(decode) for decode, died in found.died),
        by_node=found.by_node.in_decode(len(found.nodes) - 1) if found.by_node else None,
        asked=found.asked,
        piece=wrong_piece,
        switches={switch.variable: switch.right for switch in found.switches},
        nodes=tuple(tuple(graph_node(n, node) for node in nodes) for n, nodes in enumerate(found.nodes)),
        late=found.late,
    )


def _difference(each: whole.Difference, of: str) -> Difference:
    what = of or ("the prompt" if each.decode == 0 else f"step {each.decode}")
    return Difference(each.off, each.threshold, each.scale, f"row {each.row} of {what}")
