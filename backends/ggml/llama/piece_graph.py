"""Inside the worker: the graph of a piece, made by hand in memory that is laid out as it was in the model's run.

ggml has no function that makes a node of any op, so the fields of its tensors are written where they stand
(`structs.py` has compared them with the loaded library).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from opconform.backends.ggml.binding import RefusedError, Tensor
from opconform.backends.ggml.declarations import CONSTANTS
from opconform.backends.ggml.library import Library
from opconform.backends.ggml.llama.gguf import TYPES
from opconform.backends.ggml.llama.observer import NOISE
from opconform.backends.ggml.llama.records import VIEWS
from opconform.harness.model.piece import Piece, PieceTensor
from opconform.harness.run.backend import Unavailable

_LAST_OP = "GLU"  #: no build has an op behind it that a model's graph holds; ggml_op_name must not be asked for more
_MOST_OPS = 256
_MOST_USES = 4  #: readers behind a piece that are told apart: a fused kernel asks whether there is one, or more
_POISON = 0xFF
_NUMPY: Mapping[str, np.dtype] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "i32": np.dtype(np.int32)}
_THREADS = 1


class PieceGraph:
    """A piece on a device."""

    def __init__(self, library: Library, device: str, piece: Piece) -> None:
        """Raises `Unavailable` for a device that there is not, and `RefusedError` for nodes that the build or the
        device does not have."""
        self._library, self._c, self._piece = library, library.c, piece
        devices = library.devices()
        if device not in devices:
            raise Unavailable(f"this libggml has no device {device!r} here", f"it has: {', '.join(devices)}")
        self._handle = devices[device]
        self._backend = self._c.ggml_backend_dev_init(self._handle, self._c.null)
        if not self._backend:
            raise Unavailable(f"ggml {library.build} cannot open {device}", "see its messages on stderr")
        library.set_threads(self._handle, self._backend, _THREADS)
        self._ops: dict[str, int] = {}
        self._regions = [self._region(size) for size in piece.regions]
        steps = [place for place in piece.nodes if piece.tensors[place].op not in VIEWS]
        # Views stay with the node before them, as the scheduler gives them to the backend.
        cuts = [piece.nodes[0], *steps[1:], len(piece.tensors)]
        self._whole = [(self._graph(0, len(piece.tensors)), steps[-1:])]
        self._alone = [(self._graph(a, b), [s for s in steps if a <= s < b]) for a, b in pairwise(cuts)]

    def run(self, whole: bool, noise: int | None, note: Callable[[int, int, str], None]) -> np.ndarray:
        """The outputs after the piece was computed in one go, or node by node: rows of numbers, padded with zeros.
        `noise` is a seed, by which every float32 output of a node is moved by up to `NOISE` of itself."""
        self._upload()
        random = None if noise is None else np.random.RandomState(noise)
        steps = [place for place in self._piece.nodes if self._piece.tensors[place].op not in VIEWS]
        for graph, computed in self._whole if whole else self._alone:
            first = steps[0] if whole else computed[0] if computed else 0
            last = computed[-1] if computed else first
            note(first, last, f"{self._piece.tensors[last].what} {self._piece.tensors[last].name}")
            status = self._c.ggml_backend_graph_compute(self._backend, graph)
            if status:
                raise RefusedError(f"ggml_backend_graph_compute returned {status}")
            if random is not None and computed and not whole:
                self._move(computed[-1], random)
        return self._outputs()

    # ---- memory

    def _region(self, size: int) -> tuple[Any, Any, Tensor]:
        c = self._c
        buffer = c.ggml_backend_buft_alloc_buffer(c.ggml_backend_dev_buffer_type(self._handle), size)
        if not buffer:
            raise RefusedError(f"the device gives no buffer of {size} bytes")
        base = c.ffi.cast("char *", c.ggml_backend_buffer_get_base(buffer))
        whole = c.ggml_new_tensor_1d(self._context(1), CONSTANTS["GGML_TYPE_I8"], size)
        c.ggml_backend_tensor_alloc(buffer, whole, base)
        return buffer, base, whole

    def _context(self, tensors: int) -> Any:
        c = self._c
        size = tensors * c.ggml_tensor_overhead() + c.ggml_graph_overhead_custom(2 * tensors + 16, False)
        made = c.ggml_init(c.ffi.new("struct ggml_init_params *", [size, c.null, True])[0])
        if not made:
            raise RefusedError("ggml_init failed")
        return made

    def _upload(self) -> None:
        images = [np.full(size, _POISON, np.uint8) for size in self._piece.regions]
        for place, raw in self._piece.data.items():
            tensor = self._piece.tensors[place]
            images[tensor.region][tensor.start : tensor.start + tensor.nbytes] = np.frombuffer(raw, np.uint8)
        for image, (_, _, whole) in zip(images, self._regions):
            self._c.ggml_backend_tensor_set(whole, self._c.ffi.from_buffer(image), 0, image.size)

    def _read(self, tensor: PieceTensor) -> np.ndarray:
        raw = np.empty(tensor.nbytes, np.uint8)
        _, _, whole = self._regions[tensor.region]
        self._c.ggml_backend_tensor_get(whole, self._c.ffi.from_buffer(raw), tensor.start, tensor.nbytes)
        return raw

    def _move(self, place: int, random: np.random.RandomState) -> None:
        tensor = self._piece.tensors[place]
        if tensor.type != "f32":
            return
        raw = self._read(tensor)
        values = _elements(tensor, raw)
        with np.errstate(all="ignore"):
            values *= 1 + np.float32(NOISE) * random.uniform(-1, 1, values.shape).astype(np.float32)
        _, _, whole = self._regions[tensor.region]
        self._c.ggml_backend_tensor_set(whole, self._c.ffi.from_buffer(raw), tensor.start, tensor.nbytes)

    def _outputs(self) -> np.ndarray:
        tables = []
        for place in self._piece.outputs:
            tensor = self._piece.tensors[place]
            if tensor.type in _NUMPY:
                tables.append(_elements(tensor, self._read(tensor)).astype(np.float64).reshape(-1, tensor.ne[0]))
        width = max(table.shape[1] for table in tables)
        return np.concatenate([np.pad(table, ((0, 0), (0, width - table.shape[1]))) for table in tables])

    # ---- graphs

    def _graph(self, start: int, end: int) -> Any:
        """The graph of the nodes at the places from `start` to before `end`; what they read from elsewhere is there."""
        c, piece = self._c, self._piece
        inside = [place for place in piece.nodes if start <= place < end]
        uses = {place: self._uses(place, end) for place in inside}
        context = self._context(len(piece.tensors) * 2 + sum(uses.values()) + 16)
        graph = c.ggml_new_graph_custom(context, 2 * len(piece.tensors) + sum(uses.values()) + 16, False)
        made: dict[int, Tensor] = {}
        for place in inside:
            for source in (*piece.tensors[place].sources, piece.tensors[place].view_of):
                if source is not None and source not in made:
                    made[source] = self._tensor(context, piece.tensors[source])
            made[place] = self._node(context, piece.tensors[place], made)
            c.ggml_build_forward_expand(graph, made[place])
        for place in inside:
            for _ in range(uses[place]):  # a view computes nothing; the backend sees that the node is read once more
                view = c.ggml_view_1d(context, made[place], 1, 0)
                c.ggml_backend_view_init(view)
                c.ggml_build_forward_expand(graph, view)
        # Other nodes have made these; a backend looks at that when it sees to what it may fuse. Only now, for the graph
        # has what it computes.
        for place, tensor in made.items():
            made_by = piece.tensors[place].op or piece.tensors[place].made_by
            if place not in inside and made_by:
                tensor.op = self._op(made_by)
        return graph

    def _uses(self, place: int, end: int) -> int:
        """How many nodes read a node behind the graph that ends there."""
        later = [self._piece.tensors[other] for other in self._piece.nodes if other >= end]
        inside = sum(place in tensor.sources for tensor in later)
        return min(self._piece.tensors[place].uses + inside, _MOST_USES)

    def _tensor(self, context: Any, tensor: PieceTensor, view_of: Tensor | None = None) -> Tensor:
        c = self._c
        kind = TYPES.get(tensor.type)
        if kind is None or c.text(c.ggml_type_name(kind.number)) != tensor.type:
            raise RefusedError(f"{tensor.name} is {tensor.type}, which this build does not number as known")
        made: Tensor = c.ggml_new_tensor_4d(context, kind.number, *tensor.ne)
        made.nb = tensor.nb
        made.flags = tensor.flags
        c.ggml_set_name(made, tensor.name.encode()[:60])
        if c.ggml_nbytes(made) != tensor.nbytes:
            raise RefusedError(f"{tensor.name} takes {c.ggml_nbytes(made)} bytes, not the {tensor.nbytes} of the piece")
        if view_of is not None:
            made.view_src, made.view_offs = view_of, tensor.offset
            c.ggml_backend_view_init(made)
        else:
            buffer, base, _ = self._regions[tensor.region]
            c.ggml_backend_tensor_alloc(buffer, made, base + tensor.start)
        return made

    def _node(self, context: Any, tensor: PieceTensor, made: dict[int, Tensor]) -> Tensor:
        c = self._c
        view_of = None if tensor.view_of is None else made[tensor.view_of]
        if tensor.view_of is not None and self._elsewhere(tensor, self._piece.tensors[tensor.view_of]):
            raise RefusedError(f"{tensor.name} is a view of {tensor.view_of} that stands elsewhere")
        node = self._tensor(context, tensor, view_of)
        node.op = self._op(tensor.op)
        words = np.frombuffer(bytes.fromhex(tensor.params), np.int32)
        for i, word in enumerate(words):
            node.op_params[i] = int(word)
        for i, source in enumerate(tensor.sources):
            node.src[i] = c.null if source is None else made[source]
        if (found := c.text(c.ggml_op_desc(node))) != tensor.what:
            raise RefusedError(f"in this build {tensor.name} computes {found}, not {tensor.what}")
        if tensor.op not in VIEWS and not c.ggml_backend_dev_supports_op(self._handle, node):
            raise RefusedError(f"the device says no to {tensor.what} {tensor.name} through supports_op")
        return node

    def _elsewhere(self, view: PieceTensor, whole: PieceTensor) -> bool:
        return (view.region, view.start) != (whole.region, whole.start + view.offset)

    def _op(self, name: str) -> int:
        c = self._c
        for number in range(len(self._ops), _MOST_OPS):
            if name in self._ops or _LAST_OP in self._ops:
                break
            self._ops[c.text(c.ggml_op_name(number))] = number
        if name not in self._ops:
            raise RefusedError(f"this build has no op {name}")
        return self._ops[name]


def _elements(tensor: PieceTensor, raw: np.ndarray) -> np.ndarray:
    """The elements (outermost first) as a view of a tensor's bytes."""
    shape, strides = tensor.ne[::-1], tensor.nb[::-1]
    values: np.ndarray = np.ndarray(shape, _NUMPY[tensor.type], raw.data, 0, strides)
    return values
