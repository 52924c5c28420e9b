"""A model that runs in a worker process of its own: the front's side.

    with Model(folder, path, devices=("Vulkan0",)) as model:
        plain = model.context(ContextSizes())
        logits = plain.decode(batch)
        watched = model.context(ContextSizes(), watched=True)
        logits = watched.decode(batch, Watch(ends="all", values="all"), see=judge)

`see` is called with each `Node`, whose `data` and whose sources' `data` are views of shared memory: they are gone when
it returns, so what is kept must be copied.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from opconform.backends.ggml.llama import gguf
from opconform.backends.ggml.llama.binding import llama_file
from opconform.backends.ggml.llama.records import Buffer, Node, Source, tensor_from
from opconform.backends.ggml.llama.scripts import Batch
from opconform.backends.ggml.llama.worker import PROGRESS
from opconform.harness.model.findings import Kind
from opconform.harness.model.graph import Ended
from opconform.harness.run.messages import packed, unpacked
from opconform.harness.run.wire import EndedError, NonsenseError, OutOfTimeError, Wire, exit_words, memory_file

SECONDS = 300.0  #: how long a decode may take without a sign of life: lavapipe compiles shaders for a minute
_EXIT_SECONDS = 5.0
_STDERR_BYTES = 6000  #: how much of what a worker says is kept: its end

#: The folder it runs in comes last, so that a file random.py there does not hide the standard library's.
_START = (
    "import sys; sys.path.sort(key=lambda place: not place); "
    "from opconform.backends.ggml.llama.worker import main; main()"
)


class ModelError(Exception):
    """A model or a request that libllama does not take: one line that says why."""


class Died(Exception):
    """The worker's end during a request: `kind` and `detail` say how, `stderr` are its last words;
    `piece` are the first and the last node of the piece in flight, None where none was, and `node` is the last one's op
    and name."""

    def __init__(self, kind: Kind, detail: str, stderr: str, piece: tuple[int, int] | None, node: str = "") -> None:
        super().__init__(detail)
        self.kind, self.detail, self.stderr, self.piece, self.node = kind, detail, stderr, piece, node

    @property
    def last_words(self) -> str:
        """The line of its last words that says most."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        telling = [line for line in lines if "ASSERT" in line or "ABORT" in line or "cannot run the operation" in line]
        return (telling or lines or [""])[-1]

    def in_decode(self, decode: int) -> Ended:
        """The same for a report."""
        first, last = self.piece or (None, None)
        return Ended(self.kind, self.detail, self.last_words, decode, first, last, self.node)


@dataclass(frozen=True)
class ContextSizes:
    """What a context has room for. context: tokens of one sequence. flash: flash attention, "on", "off" or "auto".
    unified: one cache for all sequences, and not one for each."""

    context: int = 256
    batch: int = 256
    sequences: int = 1
    threads: int = 1
    flash: Literal["on", "off", "auto"] = "auto"
    unified: bool = False


Chosen = Literal["all", "none"] | Collection[int]


@dataclass(frozen=True)
class Watch:
    """What is observed of a decode.

    ends: the nodes after which the backend has to stop ("all": all that compute something); what lies between two of
    them is a piece, which it computes as it likes. values: the nodes whose sources are read before, and, of those among
    `ends`, the output after. told: whether `see` is called with nodes at all. noise: a seed, by which every float32
    output is moved by up to `NOISE` of itself, or by what `levels` has for its op. poison: the output of a node that is
    computed alone and observed with its values is filled before with what no kernel writes, unless it lies over a
    source. spoil: for tests, a node, an element of its output (C order, outermost dimension first; −1 is the largest)
    and a factor that it is multiplied with; 0 becomes the factor less 1.
    """

    ends: Chosen = "all"
    values: Chosen = "none"
    told: bool = True
    noise: int | None = None
    levels: Mapping[str, float] = field(default_factory=dict)
    poison: bool = False
    spoil: tuple[int, int, float] | None = None

    def plain(self) -> dict[str, Any]:
        def listed(chosen: Chosen) -> Any:
            return chosen if isinstance(chosen, str) else sorted(chosen)

        return {**asdict(self), "ends": listed(self.ends), "values": listed(self.values)}


#: Stops nowhere and tells nothing, but asks.
UNOBSERVED = Watch(ends="none", told=False)


class Worker:
    """The process, and the requests to it."""

    def __init__(self, environment: Mapping[str, str], seconds: float) -> None:
        self.seconds = seconds
        self._memory_fd = memory_file()
        self._mapped = np.empty(0, np.uint8)
        self._ended: Died | None = None
        self._mark = 0  # where what it said during the last request begins
        self._wire = Wire([sys.executable, "-c", _START, str(self._memory_fd)], environment, keep=(self._memory_fd,))

    @property
    def pid(self) -> int:
        return self._wire.pid

    def ask(self, *request: Any, take: Callable[[str, Any], None] | None = None) -> Any:
        """The answer to a request; what comes before it goes to `take`, each with its kind. Raises `ModelError` and
        `Died`, and whatever `take` raises; after anything but `ModelError` the worker has ended."""
        if self._ended:
            raise self._ended
        self._mark = self._wire.output.total
        try:
            self._send("request", request)
            while True:
                kind, content = unpacked(self._wire.receive(self.seconds)[0])
                if kind == "ok":
                    return content
                if kind == "error":
                    raise ModelError(str(content))
                if kind == "wait":
                    self._send("go", None)
                elif take:
                    take(kind, content)
                else:
                    raise NonsenseError(f"a message of {kind!r:.40} came instead of an answer")
        except ModelError:
            raise
        except OutOfTimeError:
            raise self._died(f"no sign of life within {self.seconds:g} s", Kind.TIMEOUT) from None
        except EndedError:
            raise self._died("") from None
        except NonsenseError as nonsense:
            raise self._died(f"its worker does not keep to the protocol: {nonsense}", Kind.ERROR) from None
        except BaseException:
            self._died("the request was given up", Kind.ERROR)
            raise

    def _send(self, kind: str, content: Any) -> None:
        self._wire.send_message(packed(kind, content), self.seconds)

    def region(self, start: int, size: int) -> np.ndarray:
        """Bytes of the shared memory. Raises `NonsenseError` for such that it does not have."""
        if not 0 <= start <= start + size:
            raise NonsenseError(f"a region from {start} of {size} bytes")
        if start + size > self._mapped.size:
            length = os.fstat(self._memory_fd).st_size
            if start + size > length:
                raise NonsenseError(f"a region from {start} of {size} bytes; there are {length}")
            self._mapped = np.frombuffer(mmap.mmap(self._memory_fd, length), np.uint8)
        return self._mapped[start : start + size]

    def _died(self, why: str, kind: Kind = Kind.CRASH) -> Died:
        """The worker's end. Without a `why` it has come to it by itself."""
        if not why:
            code = self._wire.exit_code(_EXIT_SECONDS)
            why = "it hung up and did not end" if code is None else exit_words(code)
        self._wire.kill()
        self._wire.output.settle()
        said = self._wire.output.since(self._mark, _STDERR_BYTES)
        piece, node = None, ""
        if os.fstat(self._memory_fd).st_size >= PROGRESS.size:
            _, runs, first, last, name = PROGRESS.unpack(os.pread(self._memory_fd, PROGRESS.size, 0))
            if runs and last >= 0:
                piece, node = (first, last), name.rstrip(b"\0").decode(errors="replace")
        self._ended = Died(kind, why, said, piece, node)
        return self._ended

    def close(self) -> None:
        """End the process, and all that it has started."""
        self._wire.close()
        os.close(self._memory_fd)


class Model:
    """A model loaded in a worker."""

    def __init__(
        self,
        folder: Path,
        path: Path,
        devices: Sequence[str] = ("CPU",),
        gpu_layers: int = 999,
        environment: Mapping[str, str] | None = None,
        seconds: float = SECONDS,
    ) -> None:
        """Load `path` with the libllama in `folder`: the last `gpu_layers` layers on `devices`, the others on the CPU.

        `environment` is set before the libraries are loaded. Raises `ModelError` for a file that libllama does not
        take, and `Unavailable` for a folder without libllama.
        """
        llama_file(folder)
        self.header = checked(path)
        self.path, self.devices = path, tuple(devices)
        self._contexts = 0
        self.worker = Worker(environment or {}, seconds)
        try:
            found = self.worker.ask("load", str(folder), str(path), list(devices), gpu_layers)
        except Died as died:
            self.worker.close()
            said = f": {died.last_words}" if died.last_words else ""
            raise ModelError(f"loading {path} ends libllama, {died.detail}{said}") from None
        except BaseException:
            self.worker.close()
            raise
        self.vocabulary = int(found["vocabulary"])
        self.longest = int(found["context"])  #: tokens that it was trained for; 0 where it does not say
        self.layers = int(found["layers"])
        self.weights = int(found["weights"])

    def context(self, sizes: ContextSizes, watched: bool = False) -> Context:
        """A context, which has decoded nothing. Only a watched one can be observed."""
        self._contexts += 1
        plain = {**asdict(sizes), "context": sizes.context * sizes.sequences}
        self.worker.ask("open", self._contexts, watched, plain)
        return Context(self, self._contexts, sizes, watched)

    def close(self) -> None:
        self.worker.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Context:
    """What a model has decoded so far, and may decode next."""

    def __init__(self, model: Model, number: int, sizes: ContextSizes, watched: bool) -> None:
        self._model, self._number, self.sizes, self.watched = model, number, sizes, watched
        self._buffers: list[Buffer] = []

    def clear(self) -> None:
        """Forget everything that was decoded."""
        self._model.worker.ask("clear", self._number)

    def decode(self, batch: Batch, watch: Watch = UNOBSERVED, see: Callable[[Node], None] | None = None) -> np.ndarray:
        """The logits of the tokens that the batch wants, one row each. Raises `ModelError` and `Died`."""

        def take(kind: str, content: Any) -> None:
            node = self._taken(kind, content)
            if node and see:
                see(node)

        if watch != UNOBSERVED and not self.watched:
            raise ValueError("this context is not watched")
        if len(batch.tokens) > self.sizes.batch:
            raise ValueError(f"a batch of {len(batch.tokens)} tokens; this context takes {self.sizes.batch}")
        plain = {
            "tokens": batch.tokens,
            "positions": batch.positions,
            "sequences": batch.sequences,
            "wanted": [int(wanted) for wanted in batch.wanted],
        }
        worker = self._model.worker
        start, rows, width = worker.ask("decode", self._number, plain, watch.plain(), take=take)
        logits = np.empty((rows, width), np.float32)
        logits.view(np.uint8).reshape(-1)[:] = worker.region(start, logits.nbytes)
        return logits

    def _taken(self, kind: str, content: Any) -> Node | None:
        """The node in a message; None of a message about a buffer. Raises `NonsenseError` for what is neither."""
        try:
            match kind, content:
                case "buffer", [str(name), int(size), bool(host), int(usage)]:
                    self._buffers.append(Buffer(len(self._buffers), name, size, host, usage))
                    return None
                case "node", [*_]:
                    return self._node(content)
        except (TypeError, ValueError, IndexError) as error:
            raise NonsenseError(f"a node that is none: {error}") from None
        raise NonsenseError(f"a message of {kind!r:.40} came instead of a node")

    def _node(self, message: list[Any]) -> Node:
        index, piece, plain, number, what, params, sources, region = message
        return Node(
            **tensor_from(plain, self._buffers, self._data(region)),
            index=int(index),
            piece=int(piece),
            number=int(number),
            what=str(what),
            params=bytes.fromhex(params),
            sources=tuple(
                Source(**tensor_from(source[0], self._buffers, self._data(source[1]))) for source in sources if source
            ),
            missing=tuple(place for place, source in enumerate(sources) if not source),
        )

    def _data(self, region: list[int] | None) -> np.ndarray | None:
        return None if region is None else self._model.worker.region(*region)


def checked(path: Path) -> gguf.Header:
    """The header of a model file (the first part of one in several), read before libllama sees it.

    Raises `ModelError`: the file is none or broken, has no architecture, or is larger than this machine's memory.
    """
    try:
        headers = [gguf.read(part) for part in gguf.parts_of(path)]
    except gguf.GgufError as error:
        raise ModelError(str(error)) from None
    if not headers[0].architecture:
        raise ModelError(f"{path} names no general.architecture: it is no model")
    needed, there = sum(header.nbytes for header in headers), free_memory()
    if there is not None and needed > there:
        raise ModelError(f"{path} has {_gib(needed)} of weights; {_gib(there)} of memory are free here")
    return headers[0]


def free_memory() -> int | None:
    """Bytes of memory that are free for a new process; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
