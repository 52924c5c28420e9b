"""The client of a worker process."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from opconform.harness.model.case import Case
from opconform.harness.model.limits import Limit
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Device, Unavailable
from opconform.harness.run.registry import backend_class
from opconform.harness.run.sanitizer import LOG, OPTION
from opconform.harness.run.worker import Answer, answer, shown_stages

START_SECONDS = 120.0  #: how long a backend may take to list and open its devices


_EXIT_SECONDS = 5.0  #: how long a worker that hung up may take to end


_STDERR_BYTES = 6000  #: how much of a dead worker's last words a report keeps


@dataclass(frozen=True)
class Died:
    """A worker's end: killed by a signal, exited, or out of time. `log` is what the sanitizer wrote until then."""

    kind: str
    detail: str
    stderr: str
    log: str = ""


#: The folder it runs in comes last, so that a file random.py there does not hide the standard library's.
_START = "import sys; sys.path.sort(key=lambda place: not place); from opconform.harness.run.worker import main; main()"


class Worker:
    """A worker process for one backend. Starting it does not wait; the first use does."""

    def __init__(self, spec: str, options: Mapping[str, str]) -> None:
        before, environment, self._log = _under_sanitizer(spec, options)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._memory_fd = _memory_file()
        self._arena = np.empty(0, np.uint8)
        ours, theirs = socket.socketpair()
        arguments = [str(theirs.fileno()), str(self._memory_fd), spec]
        command = [*before, sys.executable, "-c", _START, *arguments]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,
            stderr=self._stderr,
            pass_fds=(theirs.fileno(), self._memory_fd),
        )
        theirs.close()
        self._connection: Connection[Any, Any] = Connection(ours.detach())
        self._send(dict(options))
        self._devices: list[Device] | None = None

    def devices(self, seconds: float | None = None) -> list[Device]:
        """The backend's devices. Raises `Unavailable`, also when the time is up."""
        if self._devices is None:
            self._devices = self._reply("list its devices", seconds)
        return self._devices

    def open(self, device: str, seconds: float | None = None) -> tuple[Limit, ...]:
        """Open a device; returns its limits. Raises `Unavailable`, also when the time is up."""
        self.devices(seconds)
        self._send(("open", device))
        limits: tuple[Limit, ...] = self._reply(f"open {device}", seconds)
        return limits

    def _send(self, request: Any) -> None:
        with contextlib.suppress(OSError):  # a dead worker shows when its reply is waited for
            self._connection.send(request)

    def _reply(self, what: str, seconds: float | None = None) -> Any:
        limit = START_SECONDS if seconds is None else seconds
        try:
            found = self._connection.recv() if self._connection.poll(limit) else self._died(limit)
        except (EOFError, OSError):
            found = self._died()
        if isinstance(found, Died):
            last = found.stderr.strip().splitlines()[-1:] or [""]
            raise Unavailable(f"could not {what}: {found.detail}", last[0] or "its worker said nothing")
        if isinstance(found, (Unavailable, UsageError)):
            raise found
        return found

    def arena(self, size: int) -> np.ndarray:
        """Memory of at least `size` bytes that the worker sees too."""
        if self._arena.size < size:
            grown = 1 << (size - 1).bit_length()
            os.ftruncate(self._memory_fd, grown)
            self._arena = np.frombuffer(mmap.mmap(self._memory_fd, grown), np.uint8)
        return self._arena

    def run(self, cases: Sequence[tuple[Case, int]], seconds: float) -> Iterator[Answer | Died]:
        """One answer per case, in order; the last one is `Died` where the worker ends before its time."""
        mark = os.fstat(self._stderr.fileno()).st_size
        logged = os.path.getsize(self._log) if self._log else 0
        try:
            self._send(("run", self._arena.size, cases))
            for _ in cases:
                if not self._connection.poll(seconds):
                    yield replace(self._died(seconds, mark), log=self._logged_since(logged))
                    return
                answered: Answer = self._connection.recv()
                logged = max(logged, answered.logged)
                yield answered
        except (EOFError, OSError):
            yield replace(self._died(None, mark), log=self._logged_since(logged))

    def _logged_since(self, start: int) -> str:
        """What the sanitizer has written from byte `start` on."""
        return Path(self._log).read_bytes()[start:].decode(errors="replace") if self._log else ""

    def supports(self, cases: Sequence[Case]) -> list[str | None]:
        """The backend's own word on each case."""
        self._send(("supports", list(cases)))
        reasons: list[str | None] = self._reply("say what it supports")
        return reasons

    def stages(self, case: Case, seconds: float) -> dict[str, np.ndarray] | str | None:
        """The intermediates of the case that stands at the start of the arena; text where they cannot be had."""
        self._send(("stages", self._arena.size, case, 0))
        try:
            found = self._connection.recv() if self._connection.poll(seconds) else self._died(seconds)
        except (EOFError, OSError):
            found = self._died()
        return found.detail if isinstance(found, Died) else found

    def _died(self, seconds: float | None = None, mark: int = 0) -> Died:
        if seconds is not None:
            self._process.kill()
        try:
            code = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:  # its driver does not let it go
            self._process.kill()
            code = self._process.wait()
        size = os.fstat(self._stderr.fileno()).st_size
        start = max(mark, size - _STDERR_BYTES)
        said = os.pread(self._stderr.fileno(), size - start, start).decode(errors="replace").strip()
        if seconds is not None:
            return Died("TIMEOUT", f"no answer within {seconds:g} s", said)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return Died("CRASH", f"the process ended with {how}", said)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._stderr.close()
        os.close(self._memory_fd)
        if self._log:
            Path(self._log).unlink(missing_ok=True)


def _under_sanitizer(spec: str, options: Mapping[str, str]) -> tuple[Sequence[str], Mapping[str, str], str]:
    """The words before a worker's command, its environment, and the path of the checker's log; nothing where it runs
    under none. Raises `Unavailable`."""
    if OPTION not in options:
        return (), {}, ""
    sanitizer = backend_class(spec).sanitizer()
    handle, log = tempfile.mkstemp(prefix="opconform-", suffix=".log")
    os.close(handle)
    before, environment = sanitizer.start(log)
    return before, {**environment, LOG: log}, log


def _memory_file() -> int:
    """A file that lives in memory, or, where the system has none, a nameless temporary one."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("opconform")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _Local:
    """The same in this very process, for debugging: no protection from aborts, segfaults or hangs."""

    def __init__(self, spec: str, options: Mapping[str, str]) -> None:
        self._type = backend_class(spec)
        self._options = options
        self._arena = np.empty(0, np.uint8)

    def open(self, device: str, seconds: float | None = None) -> tuple[Limit, ...]:
        self._backend = self._type(device, self._options)
        return self._backend.limits()

    def arena(self, size: int) -> np.ndarray:
        if self._arena.size < size:
            self._arena = np.empty(size, np.uint8)
        return self._arena

    def run(self, cases: Sequence[tuple[Case, int]], seconds: float) -> Iterator[Answer | Died]:
        for case, offset in cases:
            yield answer(self._backend, case, self._arena[offset:])

    def supports(self, cases: Sequence[Case]) -> list[str | None]:
        return [self._backend.supports(case) for case in cases]

    def stages(self, case: Case, seconds: float) -> dict[str, np.ndarray] | str | None:
        return shown_stages(self._backend, case, self._arena)

    def close(self) -> None:
        pass


def devices_of(spec: str, options: Mapping[str, str], isolated: bool = True) -> list[Device]:
    """The devices of a backend, listed in a process of its own. Raises `Unavailable`."""
    if not isolated:
        return backend_class(spec).devices(options)
    worker = Worker(spec, options)
    try:
        return worker.devices()
    finally:
        worker.close()
