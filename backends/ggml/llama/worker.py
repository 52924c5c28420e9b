"""The worker process: one build of libllama, one model, and contexts of it. It may die without harm to anyone.

Started by `session.Worker` with MEMORY_FD CONNECTION_FD. Messages are those of `harness.run.messages`, both ways: JSON
and no pickle. The answer to a request (a method of `Server` and its arguments) is `ok` with the result, or `error` with
a text. During a decode `buffer`, `node` and `wait` come before; to the last of them the front answers `go` once it has
dealt with the nodes whose bytes stand in the shared memory.

The shared memory starts with a page that says what is in flight (`PROGRESS`), for the time after a crash.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from opconform.backends.ggml.binding import RefusedError
from opconform.backends.ggml.library import Library
from opconform.backends.ggml.llama.binding import Llama, Pointer
from opconform.backends.ggml.llama.observer import Observer
from opconform.backends.ggml.llama.params import ContextParams, ModelParams
from opconform.backends.ggml.llama.piece_graph import PieceGraph
from opconform.harness.model.piece import PieceError, read_piece
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.messages import packed, unpacked
from opconform.harness.run.wire import HEAD

PAGE = 4096
#: Number of the decode, whether it runs, first and last node of the piece in flight, op and name of the last.
PROGRESS = struct.Struct("<4q128s")
FIRST_SIZE = 1 << 24  #: of the shared memory; it grows to hold the sources of the largest node
_ALIGNMENT = 64
LARGEST = 1 << 34  #: bytes of a piece that the front has let through


class Refused(Exception):
    """What was asked for cannot be done; the text says why."""


class Connection:
    """The socket to the front."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)

    def send(self, kind: str, content: Any = None) -> None:
        self._socket.sendall(packed(kind, content))

    def receive(self) -> Any:
        """The content of the next message. Raises `EOFError` once the front has hung up."""
        size, _ = HEAD.unpack(self._take(HEAD.size))
        return unpacked(self._take(size))[1]

    def _take(self, count: int) -> bytes:
        taken = bytearray()
        while len(taken) < count:
            chunk = self._socket.recv(count - len(taken))
            if not chunk:
                raise EOFError
            taken += chunk
        return bytes(taken)


class SharedMemory:
    """The shared memory behind its first page, filled from its start again when the front has taken what is in it."""

    def __init__(self, descriptor: int, connection: Connection) -> None:
        self._descriptor, self._connection = descriptor, connection
        self._map(FIRST_SIZE)
        self._used = PAGE

    def _map(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)
        self._bytes = np.frombuffer(mmap.mmap(self._descriptor, size), np.uint8)

    def renew(self) -> None:
        """Where more than half is filled with what has been sent: wait until the front has taken it, and start again.
        What has not been sent must not stand in the memory then."""
        if self._used > self._bytes.size // 2:
            self._connection.send("wait")
            self._connection.receive()
            self._used = PAGE

    def room(self, size: int) -> tuple[int, np.ndarray]:
        """Memory for `size` bytes that the front will see, and where it starts."""
        start = self._used
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        if self._used > self._bytes.size:
            self._map(1 << (self._used - 1).bit_length())  # the file keeps what it holds
        return start, self._bytes[start : start + size]

    def progress(self, decode: int, runs: bool, first: int, last: int, name: str = "") -> None:
        PROGRESS.pack_into(self._bytes.data, 0, decode, runs, first, last, name.encode())


class Server:
    """Answers the front's requests."""

    def __init__(self, connection: Connection, memory_descriptor: int) -> None:
        self._connection = connection
        self._memory = SharedMemory(memory_descriptor, connection)
        self._decodes = 0
        self._contexts: dict[int, tuple[Pointer, Observer | None]] = {}
        self._model: Pointer = None

    def load(self, folder: str, path: str, devices: list[str], gpu_layers: int) -> dict[str, Any]:
        """Load the libraries and the model."""
        self._llama = llama = Llama(Path(folder))
        handles = [llama.device(name) for name in devices]
        # The CPU is in no list: libllama always has it, for what the listed devices do not take.
        self._devices = llama.c.ffi.new("void *[]", [*(h for h in handles if not llama.is_cpu(h)), llama.c.null])
        params = ModelParams(llama)
        params.place(self._devices, gpu_layers)
        ContextParams(llama)  # so that a build whose structs are odd is told before the model is loaded
        self._model = llama.c.llama_model_load_from_file(os.fsencode(path), params.value)
        if not self._model:
            raise Refused(f"libllama does not load {path}: {llama.complaint}")
        c = llama.c
        return {
            "vocabulary": int(c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model))),
            "context": int(c.llama_model_n_ctx_train(self._model)),
            "layers": int(c.llama_model_n_layer(self._model)),
            "weights": int(c.llama_model_n_params(self._model)),
        }

    def open_piece(self, folder: str, device: str, path: str) -> int:
        """Load the libraries and make the graph of a piece; gives how many nodes it has."""
        try:
            piece = read_piece(Path(path), LARGEST)
        except (PieceError, OSError) as error:
            raise Refused(str(error)) from None
        if piece is None:
            raise Refused(f"{path} holds no piece")
        self._piece = PieceGraph(Library(Path(folder)), device, piece)
        return len(piece.nodes)

    def run_piece(self, whole: bool, noise: int | None) -> list[int]:
        """Compute the piece in one go or node by node; gives where its outputs stand, how many rows they are, and how
        long a row is."""
        self._decodes += 1
        table = self._piece.run(whole, noise, self._note)
        self._memory.renew()
        start, memory = self._memory.room(table.nbytes)
        memory[:] = np.frombuffer(table.tobytes(), np.uint8)
        self._memory.progress(self._decodes, False, 0, -1)
        return [start, *table.shape]

    def open(self, number: int, watched: bool, sizes: dict[str, Any]) -> dict[str, Any]:
        """Make a context. Only a watched one asks about its nodes."""
        llama = self._llama
        params = ContextParams(llama)
        params.sizes(sizes["context"], sizes["batch"], sizes["batch"], sizes["sequences"])
        params.compute(sizes["threads"], sizes["flash"], sizes["unified"])
        observer = None
        if watched:
            observer = Observer(llama, self._connection.send, self._memory, self._note)
            params.watch(observer.callback)
        context = llama.c.llama_init_from_model(self._model, params.value)
        if not context:
            raise Refused(f"libllama makes no context: {llama.complaint}")
        found = int(llama.c.llama_n_batch(context)), int(llama.c.llama_n_seq_max(context))
        threads = int(llama.c.llama_n_threads(context))
        wanted = sizes["batch"], sizes["sequences"]
        if found != wanted or threads != sizes["threads"]:
            raise params.odd(f"batch, sequences and threads are {[*found, threads]}, not {[*wanted, sizes['threads']]}")
        self._contexts[number] = context, observer
        return {"context": int(llama.c.llama_n_ctx(context))}

    def clear(self, number: int) -> None:
        """Forget what a context has decoded, its memory's content too."""
        c = self._llama.c
        c.llama_memory_clear(c.llama_get_memory(self._contexts[number][0]), True)

    def decode(self, number: int, batch: dict[str, list[int]], watch: dict[str, Any]) -> list[Any]:
        """Decode a batch; gives where its logits stand, how many rows they are, and how long a row is."""
        llama, (context, observer) = self._llama, self._contexts[number]
        self._decodes += 1
        self._note(0, -1, "")
        if observer:
            observer.begin(watch)
        status = llama.c.llama_decode(context, self._batch(batch))
        llama.c.llama_synchronize(context)
        if observer:
            if observer.error:
                raise RuntimeError(observer.error)
            observer.finish()
        if status:
            raise Refused(f"llama_decode returned {status}: {llama.complaint}")
        rows = [i for i, wanted in enumerate(batch["wanted"]) if wanted]
        width = int(llama.c.llama_vocab_n_tokens(llama.c.llama_model_get_vocab(self._model)))
        self._memory.renew()
        start, memory = self._memory.room(len(rows) * width * 4)
        table = memory.view(np.float32).reshape(len(rows), width)
        for row, i in zip(table, rows):
            logits = llama.c.llama_get_logits_ith(context, i)
            if not logits:
                raise Refused(f"libllama has no logits of token {i}")
            row[:] = np.frombuffer(llama.c.ffi.buffer(logits, width * 4), np.float32)
        self._memory.progress(self._decodes, False, 0, -1)
        return [start, len(rows), width]

    def _batch(self, batch: dict[str, list[int]]) -> Any:
        ffi, count = self._llama.c.ffi, len(batch["tokens"])
        sequences = [ffi.new("int32_t[1]", [sequence]) for sequence in batch["sequences"]]
        self._kept = (  # what the batch points to
            ffi.new("int32_t[]", batch["tokens"]),
            ffi.new("int32_t[]", batch["positions"]),
            ffi.new("int32_t[]", [1] * count),
            ffi.new("int32_t *[]", sequences),
            ffi.new("int8_t[]", batch["wanted"]),
            sequences,
        )
        tokens, positions, counts, of, wanted, _ = self._kept
        made = ffi.new("llama_batch *", (count, tokens, self._llama.c.null, positions, counts, of, wanted))
        return made[0]

    def _note(self, first: int, last: int, name: str) -> None:
        self._memory.progress(self._decodes, True, first, last, name)


def _die_with_parent() -> None:
    """On Linux, be killed when the front is, and be the first that the system ends when memory runs out."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    """Serve until the front hangs up."""
    memory, descriptor = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    for each in (memory, descriptor):  # a program that a driver starts must not keep them open
        os.set_inheritable(each, False)
    connection = Connection(descriptor)
    server = Server(connection, memory)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            name, *arguments = connection.receive()
            try:
                connection.send("ok", getattr(server, name)(*arguments))
            except (EOFError, ConnectionError):
                raise
            except (Refused, RefusedError, Unavailable) as refused:
                connection.send("error", str(refused))
            except Exception as error:
                connection.send("error", f"{type(error).__name__}: {error}")
