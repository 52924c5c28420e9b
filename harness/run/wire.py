"""A worker's process and the three lines to it: messages, what it prints, and its end.

Nothing here waits longer than it was told to, whatever the worker does: half a message, no message, a pipe that its
children keep open, a gigabyte of output. The worker leads a process group of its own, which ends with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import tempfile
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from opconform.harness.run.interrupts import heed

HEAD = struct.Struct(">IQ")  #: before each message: bytes of JSON, and bytes of arrays behind it
_LARGEST_TEXT = 1 << 20  #: bytes of JSON in one message
_LARGEST_ARRAYS = 1 << 32  #: bytes of arrays in one message of a kind that has any
_TICK = 0.05  #: seconds between two looks at a process, where the system has no descriptor for one
_NAP = 0.5  #: seconds to wait at most at a stretch: a signal that comes as the wait begins does not end it
_CHUNK = 1 << 16
_KEPT = 1 << 16  #: bytes of what a worker prints that are kept
_GRACE = 0.2  #: seconds for what an ended process has printed to arrive


class NonsenseError(Exception):
    """A worker has sent what is no message."""


class OutOfTimeError(Exception):
    """The time is up."""


class EndedError(Exception):
    """The process has ended, or has hung up."""


class Output:
    """What a process prints: read all the time, so that it never blocks, and kept up to `_KEPT` bytes from the end."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        self._kept = bytearray()
        self._total = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._drain, daemon=True)

    def started(self) -> None:
        """The process has its end of the pipe."""
        os.close(self.writing)
        self._thread.start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(self._reading, _CHUNK):
                with self._lock:
                    self._kept += chunk
                    self._total += len(chunk)
                    del self._kept[:-_KEPT]

    @property
    def total(self) -> int:
        """Bytes printed so far."""
        with self._lock:
            return self._total

    def since(self, mark: int, most: int) -> str:
        """What has been printed since `total` was `mark`: the last `most` bytes of it."""
        with self._lock:
            fresh = max(self._total - mark, 0)
            return self._kept[-min(fresh, most) :].decode(errors="replace").strip() if fresh else ""

    def catch_up(self) -> None:
        """Wait until what a living process has written is read, a moment at most."""
        deadline = time.monotonic() + _GRACE
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                waiting = bytearray(4)
                fcntl.ioctl(self._reading, termios.FIONREAD, waiting)
                if not any(waiting):
                    break
                time.sleep(0.001)
        with self._lock:  # what was taken out of the pipe a moment ago is kept by now
            pass

    def settle(self) -> None:
        """Wait for what an ended process has printed."""
        self._thread.join(_GRACE)

    def close(self) -> None:
        self._thread.join(_GRACE)
        if self._thread.is_alive():  # a process that left the group may still print; its thread ends with it
            return
        if self._reading >= 0:
            os.close(self._reading)
            self._reading = -1


class Wire:
    """A process started with a socket, over which requests go out and messages come in.

    `command` is called with the descriptor of the worker's end of the socket. `keep` are more descriptors that it gets.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], keep: Sequence[int]) -> None:
        self.output = Output()
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=self.output.writing,
                stderr=self.output.writing,
                pass_fds=(theirs.fileno(), *keep),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            self.output.started()
        ours.setblocking(False)
        self._socket = ours
        self._read = bytearray()
        self._end = _descriptor_of(self._process.pid)
        self._poll = select.poll()
        self._poll.register(ours, select.POLLIN)
        if self._end is not None:
            self._poll.register(self._end, select.POLLIN)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, request: Any, seconds: float) -> None:
        """Send a request. One that does not arrive shows when its answer is waited for."""
        content = pickle.dumps(request, pickle.HIGHEST_PROTOCOL)
        self.send_message(HEAD.pack(len(content), 0) + content, seconds)

    def send_message(self, message: bytes, seconds: float) -> None:
        """The same for a message with its head, for a worker that unpickles nothing either."""
        data = memoryview(message)
        deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            while data:
                try:
                    data = data[self._socket.send(data) :]
                except BlockingIOError:
                    left = deadline - time.monotonic()
                    if left <= 0 or not self.is_alive():
                        return
                    select.select([], [self._socket], [], min(left, _TICK))

    def receive(self, seconds: float, arrays: bool = False) -> tuple[bytes, bytes]:
        """The next message, all of it within `seconds`: its text and its arrays, for which only a message that may have
        `arrays` has room.

        Raises `OutOfTimeError`, `EndedError`, or `NonsenseError` for what does not begin a message.
        """
        deadline = time.monotonic() + seconds
        text, more = _lengths(self._take(HEAD.size, deadline), _LARGEST_ARRAYS if arrays else 0)
        return self._take(text, deadline), self._take(more, deadline)

    def _take(self, count: int, deadline: float) -> bytes:
        while len(self._read) < count:
            self._wait(deadline)
            try:
                chunk = self._socket.recv(max(_CHUNK, count - len(self._read)))
            except BlockingIOError:
                if not self.is_alive() and not self._is_readable():
                    raise EndedError from None
                continue
            except OSError:
                raise EndedError from None
            if not chunk:
                raise EndedError
            self._read += chunk
        taken = bytes(self._read[:count])
        del self._read[:count]
        return taken

    def _wait(self, deadline: float) -> None:
        """Until there is something to read or the process has ended. Raises `OutOfTimeError` once the deadline has
        passed, also for a worker that goes on to send a byte now and then."""
        while True:
            heed()
            left = deadline - time.monotonic()
            if left <= 0:
                raise OutOfTimeError
            ready = self._poll.poll(min(left, _TICK if self._end is None else _NAP) * 1000)
            if ready or (self._end is None and not self.is_alive()):
                return

    def _is_readable(self) -> bool:
        return bool(select.select([self._socket], [], [], 0)[0])

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def exit_code(self, seconds: float) -> int | None:
        """How the process ended, once it has: its status, or a negative signal number; None where it does not within
        `seconds` and had to be killed."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        """End the process and every process that it has started and that has not left its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it. Twice does no harm: Ctrl-C may come in the middle."""
        self.kill()
        self._socket.close()
        self.output.close()
        if self._end is not None:
            os.close(self._end)
            self._end = None


def _lengths(head: bytes, largest: int) -> tuple[int, int]:
    """The two lengths that stand before a message: of its text, and of its arrays, which take `largest` bytes at most.
    Raises `NonsenseError` for more than the message can have."""
    text, arrays = HEAD.unpack(head)
    if text > _LARGEST_TEXT or arrays > largest:
        raise NonsenseError(f"{head!r} does not begin a message")
    return text, arrays


def memory_file() -> int:
    """A file that lives in memory, or, where the system has none, a nameless temporary one. A worker cannot make one in
    memory shorter, for to read beyond its end would end the harness; nor keep the harness from making it longer."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("opconform", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with contextlib.suppress(AttributeError, OSError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return descriptor
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _descriptor_of(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where the system has none."""
    try:
        return os.pidfd_open(pid)  # type: ignore[attr-defined,unused-ignore]
    except (AttributeError, OSError):
        return None


def exit_words(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"the process ended with exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal has no name
        name = str(-code)
    return f"the process ended with signal {name}"
