"""The worker process: opens one backend, runs cases on shared memory, and may die without harm to anyone.

Started by `runner.Worker` with the arguments CONNECTION_FD MEMORY_FD SPEC. The first message it
sends is the list of the backend's devices, or the exception that stood in the way. After that it answers:

    ("open", device id, options)     → the device's limits
    ("run", size, [(case, offset)])  → one `Answer` per case, as soon as each is finished
    ("supports", [case])             → one reason or None per case
    ("stages", size, case, offset)   → the intermediates by stage, None, or what stood in the way as text
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Backend, KernelFault, Unavailable, loaded
from opconform.harness.run.registry import backend_class
from opconform.harness.run.sanitizer import LOG


@dataclass(frozen=True)
class Answer:
    """What became of one case: run, not supported for a reason, or ended by a Python exception, which is of a `kind`.
    `numerics` are the case's own, where they are not the device's. `log` is what the sanitizer wrote while it ran, and
    `logged` how many bytes it has written in all."""

    unsupported: str | None = None
    error: str | None = None
    kind: str = "ERROR"
    seconds: float = 0.0
    numerics: Numerics | None = None
    log: str = ""
    logged: int = 0


def answer(backend: Backend, case: Case, memory: np.ndarray) -> Answer:
    """Run one case on `memory`, its arena."""
    start = time.perf_counter()
    try:
        reason = backend.supports(case)
        if reason is not None:
            return Answer(unsupported=reason)
        on_device = loaded(backend, case, Buffers(case, memory))
        on_device.launch()
        on_device.fetch()
        seconds = time.perf_counter() - start
        return Answer(seconds=seconds, numerics=backend.numerics(case))
    except KernelFault as fault:
        return Answer(error=str(fault), kind=fault.kind, seconds=time.perf_counter() - start)
    except Exception as error:
        return Answer(error=_own_frames(error), seconds=time.perf_counter() - start)


def shown_stages(backend: Backend, case: Case, memory: np.ndarray) -> dict[str, np.ndarray] | str | None:
    """The backend's intermediates of one case, computed on `memory`; what went wrong where that raises."""
    try:
        shown = backend.stages(case, Buffers(case, memory))
    except Exception as error:
        return _own_frames(error)
    return None if shown is None else {name: np.array(values) for name, values in shown.items()}


def _own_frames(error: Exception) -> str:
    """The traceback from the backend's frame on, without the harness's."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return "".join([*traceback.format_list(frames), *traceback.format_exception_only(error)]).strip()


class _Memory:
    """The shared memory, mapped again whenever it has grown."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._bytes = np.empty(0, np.uint8)

    def up_to(self, size: int) -> np.ndarray:
        if self._bytes.size < size:
            self._bytes = np.frombuffer(mmap.mmap(self._descriptor, 0), np.uint8)
        return self._bytes


class _Log:
    """What the sanitizer writes, where the worker runs under one."""

    def __init__(self) -> None:
        self._path = os.environ.get(LOG)
        self.read = 0  #: bytes

    def news(self) -> str:
        """What it has written since this was last asked."""
        if self._path is None or not os.path.exists(self._path):
            return ""
        ctypes.CDLL(None).fflush(None)  # a layer that writes through the C library
        with open(self._path, "rb") as file:
            file.seek(self.read)
            news = file.read()
        self.read += len(news)
        return news.decode(errors="replace")


def _answers(backend: Backend, cases: Sequence[tuple[Case, int]], memory: np.ndarray, log: _Log) -> Iterator[Answer]:
    for case, offset in cases:
        result = answer(backend, case, memory[offset:])
        news = log.news()
        yield replace(result, log=news, logged=log.read) if news else result


def _die_with_parent() -> None:
    """On Linux, be killed when the harness is: a kernel that hangs must not outlive it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    """Serve until the harness hangs up."""
    connection_fd, memory_fd, spec = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    for descriptor in (connection_fd, memory_fd):  # a program that the backend starts must not keep them open
        os.set_inheritable(descriptor, False)
    connection: Connection[Any, Any] = Connection(connection_fd)
    memory, log = _Memory(memory_fd), _Log()
    options: Mapping[str, str] = connection.recv()
    try:
        backend_type = backend_class(spec)
        connection.send(backend_type.devices(options))
    except (Unavailable, UsageError) as reason:
        connection.send(reason)
        return
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"it failed while listing its devices ({last.filename}:{last.lineno})"
        connection.send(Unavailable(f"{type(error).__name__}: {error}", where))
        return
    backend: Backend | None = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            match connection.recv():
                case ("open", device):
                    try:
                        backend = backend_type(device, options)
                        limits = backend.limits()
                        log.news()  # what anything but a run gives rise to is no case's: here, and below
                        connection.send(limits)
                    except Unavailable as reason:
                        connection.send(reason)
                    except Exception as error:
                        connection.send(Unavailable(_own_frames(error), f"opening device {device} failed"))
                case ("run", size, cases):
                    assert backend is not None
                    for result in _answers(backend, cases, memory.up_to(size), log):
                        connection.send(result)
                case ("supports", cases):
                    assert backend is not None
                    reasons = [backend.supports(case) for case in cases]
                    log.news()
                    connection.send(reasons)
                case ("stages", size, case, offset):
                    assert backend is not None
                    shown = shown_stages(backend, case, memory.up_to(size)[offset:])
                    log.news()
                    connection.send(shown)
                    log.news()  # of a case that has had its verdict
