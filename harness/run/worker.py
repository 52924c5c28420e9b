"""The worker process: opens one backend, runs cases on shared memory, and may die without harm to anyone.

Started by `begun.started` with the arguments MEMORY_FD SOCKET_FD. Requests come from the harness, which it trusts; what
it sends are the messages of `messages.py`. The first request names the backend, with its options; the answer lists its
devices, or says what stood in the way. After that it answers:

    ("open", device id)              → the device's limits
    ("run", size, [(case, offset)])  → one answer per case, as soon as each is finished
    ("supports", [case])             → one reason or None per case
    ("names",)                       → the ops that the backend's library names
    ("numerics", [case])             → one Numerics or None per case
    ("stages", size, case, offset)   → the intermediates by stage, or what stood in the way
    ("clock", size, case, offset, n) → the case is loaded to be timed, beside copies of n bytes
    ("sample", what, seconds)        → times of that case, or what stood in the way
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.usage import UsageError
from opconform.harness.run import messages
from opconform.harness.run.backend import Backend, Device, KernelFault, Unavailable, loaded
from opconform.harness.run.messages import Answer, Clock, Refusal, Samples, Shown, StageError
from opconform.harness.run.registry import backend_class
from opconform.harness.run.sanitizer import LOG, written
from opconform.harness.run.timing import Stopwatch, What
from opconform.harness.run.wire import HEAD


def answer(backend: Backend, case: Case, memory: np.ndarray) -> Answer:
    """Run one case on `memory`, its arena."""
    start = time.perf_counter()
    try:
        reason = backend.supports(case)
        if reason is not None:
            if not isinstance(reason, str):
                raise TypeError(f"supports returned {reason!r:.60}; it returns None or the reason as a text")
            return Answer(unsupported=reason)
        on_device = loaded(backend, case, Buffers(case, memory))
        on_device.launch()
        on_device.fetch()
        seconds = time.perf_counter() - start
        numerics = backend.numerics(case)
        if numerics is not None:
            if not isinstance(numerics, Numerics):
                raise TypeError(f"numerics returned {numerics!r:.60}; it returns None or a Numerics")
            numerics.checked()
        return Answer(seconds=seconds, numerics=numerics)
    except KernelFault as fault:
        return Answer(error=str(fault), kind=fault.kind, seconds=time.perf_counter() - start)
    except Exception as error:
        return Answer(error=_own_frames(error), seconds=time.perf_counter() - start)


def shown_stages(backend: Backend, case: Case, memory: np.ndarray) -> Shown | StageError:
    """The backend's intermediates of one case, computed on `memory`; what went wrong where that raises."""
    try:
        shown = backend.stages(case, Buffers(case, memory))
        return None if shown is None else {name: np.array(values, np.float64) for name, values in shown.items()}
    except Exception as error:
        return StageError(_own_frames(error))


def clocked(backend: Backend, case: Case, memory: np.ndarray, moved: int) -> Stopwatch | Refusal:
    """The case, loaded to be timed; why it cannot be, where it cannot. One that raises is no refusal."""
    reason = backend.supports(case)
    return Stopwatch(backend, case, Buffers(case, memory), moved) if reason is None else Refusal(reason)


def listing(spec: str, options: Mapping[str, str]) -> tuple[type[Backend] | None, bytes]:
    """The class of a backend, None where it has no devices, and the message that lists them or says why not."""
    try:
        backend_type = backend_class(spec)
        return backend_type, messages.of_devices(_checked(backend_type.devices(options)))
    except (Unavailable, UsageError) as reason:
        return None, messages.of_absence(reason)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"it failed while listing its devices ({last.filename}:{last.lineno})"
        return None, messages.of_absence(Unavailable(f"{type(error).__name__}: {error}", where))


def opening(backend_type: type[Backend], device: str, options: Mapping[str, str]) -> tuple[Backend | None, bytes]:
    """A device, None where it does not open, and the message with its limits or with why not."""
    try:
        backend = backend_type(device, options)
        return backend, messages.of_limits(backend.limits())
    except Unavailable as reason:
        return None, messages.of_absence(reason)
    except Exception as error:
        return None, messages.of_absence(Unavailable(_own_frames(error), f"opening device {device} failed"))


def _saying(message: Callable[[], bytes], failed: str) -> bytes:
    """A message, or why there is none: what has `failed`."""
    try:
        return message()
    except Exception as error:
        return messages.of_absence(Unavailable(_own_frames(error), failed))


def supporting(backend: Backend, cases: Sequence[Case]) -> bytes:
    """What the backend says of several cases, or why it does not."""
    return _saying(lambda: messages.of_reasons([backend.supports(case) for case in cases]), "supports failed")


def naming(backend: Backend) -> bytes:
    """The ops that the backend names, or why it does not."""
    return _saying(lambda: messages.of_names(backend.names()), "naming its ops failed")


def arithmetic(backend: Backend, cases: Sequence[Case]) -> bytes:
    """What the backend says of the arithmetic of several cases, or why it does not."""
    return _saying(lambda: messages.of_numerics([backend.numerics(case) for case in cases]), "numerics failed")


def clocking(backend: Backend, case: Case, memory: np.ndarray, moved: int) -> tuple[Stopwatch | None, bytes]:
    try:
        found = clocked(backend, case, memory, moved)
        if isinstance(found, Refusal):
            return None, messages.of_refusal(found)
        return found, messages.of_clock(Clock(backend.clock, found.memory))
    except Exception as error:
        return None, messages.of_no_samples(_own_frames(error))


def sampling(stopwatch: Stopwatch | None, what: What, seconds: float) -> bytes:
    try:
        assert stopwatch is not None
        return messages.of_samples(Samples(tuple(stopwatch.sample(what, seconds)), stopwatch.flops))
    except Exception as error:
        return messages.of_no_samples(_own_frames(error))


def _own_frames(error: Exception) -> str:
    """The traceback from the backend's frame on, without the harness's."""
    here = os.path.dirname(__file__)
    every = traceback.extract_tb(error.__traceback__)
    frames = list(itertools.dropwhile(lambda frame: os.path.dirname(frame.filename) == here, every)) or every
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
        if not self._path:
            return ""
        _C.fflush(None)  # a layer that writes through the C library
        news, self.read = written(self._path, self.read)
        return news


def _answers(backend: Backend, cases: Sequence[tuple[Case, int]], memory: np.ndarray, log: _Log) -> Iterator[Answer]:
    for case, offset in cases:
        result = answer(backend, case, memory[offset:])
        _flush()
        news = log.news()
        yield replace(result, log=news, logged=log.read) if news else result


def _flush() -> None:
    """Send on what the backend has printed, by Python or by C, before the answer tells that the case is done."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        _C.fflush(None)


_C = ctypes.CDLL(None)


def _die_with_parent() -> None:
    """On Linux, be killed when the harness is: a kernel that hangs must not outlive it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class _Harness:
    """The socket to the harness: requests in, messages out."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)

    def request(self) -> Any:
        """The next request. Raises `EOFError` once the harness has hung up."""
        size, _ = HEAD.unpack(self._take(HEAD.size))
        return pickle.loads(self._take(size))

    def _take(self, count: int) -> bytes:
        taken = bytearray()
        while len(taken) < count:
            chunk = self._socket.recv(count - len(taken))
            if not chunk:
                raise EOFError
            taken += chunk
        return bytes(taken)

    def send(self, message: bytes) -> None:
        self._socket.sendall(message)


def _checked(devices: Any) -> list[Device]:
    """What `Backend.devices` returned. Raises `TypeError` where those are no devices."""
    found = list(devices)
    for device in found:
        if not isinstance(device, Device):
            raise TypeError(f"devices returned {device!r:.60}; it returns a list of Device")
        device.numerics.checked()
    return found


def main() -> None:
    """Serve until the harness hangs up."""
    memory_fd, socket_fd = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    for descriptor in (socket_fd, memory_fd):  # a program that the backend starts must not keep them open
        os.set_inheritable(descriptor, False)
    harness = _Harness(socket_fd)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(harness, _Memory(memory_fd), _Log())


def _serve(harness: _Harness, memory: _Memory, log: _Log) -> None:
    spec: str
    options: Mapping[str, str]
    spec, options = harness.request()
    backend_type, devices = listing(spec, options)
    harness.send(devices)
    if backend_type is None:
        return
    backend: Backend | None = None
    stopwatch: Stopwatch | None = None
    while True:
        match harness.request():
            case ("open", device):
                backend, limits = opening(backend_type, device, options)
                log.news()  # what anything but a run gives rise to is no case's: here, and below
                harness.send(limits)
            case ("run", size, cases):
                assert backend is not None
                for number, result in enumerate(_answers(backend, cases, memory.up_to(size), log)):
                    harness.send(messages.of_answer(result, number))
            case ("supports", cases):
                assert backend is not None
                reasons = supporting(backend, cases)
                log.news()
                harness.send(reasons)
            case ("names",):
                assert backend is not None
                names = naming(backend)
                log.news()
                harness.send(names)
            case ("numerics", cases):
                assert backend is not None
                found = arithmetic(backend, cases)
                log.news()
                harness.send(found)
            case ("stages", size, case, offset):
                assert backend is not None
                shown = messages.of_stages(shown_stages(backend, case, memory.up_to(size)[offset:]))
                log.news()
                harness.send(shown)
                log.news()  # of a case that has had its verdict
            case ("clock", size, case, offset, moved):
                assert backend is not None
                stopwatch, reply = clocking(backend, case, memory.up_to(size)[offset:], moved)
                harness.send(reply)
            case ("sample", what, seconds):
                harness.send(sampling(stopwatch, what, seconds))
