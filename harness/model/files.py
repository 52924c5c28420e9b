"""Files that a stranger may have named: read without ever waiting for them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def regular(path: Path) -> Iterator[int]:
    """A regular file, open for reading. Raises `OSError`, also for what is no regular file.

    It is opened without waiting: a FIFO that nobody writes to, or a device, would hold the run for ever.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield handle
    finally:
        os.close(handle)


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of a regular file of at most `most` bytes. Raises `OSError`, also for what is no regular file."""
    found = bytearray()
    with regular(path) as handle:
        while len(found) <= most and (more := os.read(handle, min(1 << 20, most + 1 - len(found)))):
            found += more
    if len(found) > most:
        raise OSError(errno.EFBIG, f"larger than {_size(most)}", str(path))
    return bytes(found)


def _size(count: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if count >= unit and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} bytes"
