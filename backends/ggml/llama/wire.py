"""Messages between the front and a worker that runs foreign code: JSON with its length before it, and no pickle.

A message from a worker is data and nothing else, whatever has become of the worker's memory.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from typing import Any

_LENGTH = struct.Struct("<I")
LONGEST = 1 << 26  #: bytes of a message


class WireError(Exception):
    """The other side has hung up, or sent what is no message."""

    def __init__(self, message: str, hung_up: bool = False) -> None:
        super().__init__(message)
        self.hung_up = hung_up


class TooLateError(WireError):
    """The other side has not sent a message in time."""


class Wire:
    """One end of a connection."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._read = bytearray()

    def send(self, message: Any) -> None:
        """Raises `WireError` where the other side is gone."""
        raw = json.dumps(message, separators=(",", ":")).encode()
        try:
            self._end.sendall(_LENGTH.pack(len(raw)) + raw)
        except OSError as error:
            raise WireError(f"the other side has hung up: {error.strerror}", True) from None

    def receive(self, seconds: float | None = None) -> Any:
        """The next message. Raises `TooLateError` where none is there in time, and `WireError`."""
        ends = None if seconds is None else time.monotonic() + seconds
        size = _LENGTH.unpack(self._take(_LENGTH.size, ends))[0]
        if size > LONGEST:
            raise WireError(f"a message of {size} bytes; at most {LONGEST} are read")
        raw = self._take(size, ends)
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise WireError("a message that is no JSON") from None

    def _take(self, size: int, ends: float | None) -> bytes:
        while len(self._read) < size:
            if ends is not None and not select.select([self._end], [], [], max(0.0, ends - time.monotonic()))[0]:
                raise TooLateError("no message in time")
            try:
                more = self._end.recv(1 << 16)
            except OSError as error:
                raise WireError(f"the other side has hung up: {error.strerror}", True) from None
            if not more:
                raise WireError("the other side has hung up", True)
            self._read += more
        taken = bytes(self._read[:size])
        del self._read[:size]
        return taken

    def close(self) -> None:
        self._end.close()
