"""A worker's process that starts before the harness knows what it is for.

To import what every worker needs takes as long as what the harness itself imports: the two do so at the same time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from opconform.harness.run.wire import Wire, memory_file

#: The folder it runs in comes last, so that a file random.py there does not hide the standard library's.
_START = "import sys; sys.path.sort(key=lambda place: not place); from opconform.harness.run.worker import main; main()"

_begun: list[tuple[Wire, int]] = []


def started(before: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> tuple[Wire, int]:
    """A worker's process, which waits to be told its backend, and the descriptor of the memory that it shares. `before`
    are words before its command."""
    memory = memory_file()
    try:
        wire = Wire([*before, sys.executable, "-c", _START, str(memory)], environment or {}, keep=(memory,))
    except BaseException:
        os.close(memory)
        raise
    return wire, memory


def begin() -> None:
    """Start one for the first worker to come."""
    _begun.append(started())


def taken() -> tuple[Wire, int] | None:
    """The one that was begun, which is whoever's asks for it; None where there is none."""
    return _begun.pop() if _begun else None


def end() -> None:
    """End one that nobody has taken."""
    while _begun:
        wire, memory = _begun.pop()
        wire.close()
        os.close(memory)
