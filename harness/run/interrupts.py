"""Ctrl-C at the wrong moment: what has begun to be written is written to its end, and no Ctrl-C is lost."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_late = False


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done; a second Ctrl-C goes through at once."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append((number, frame))
        if len(held) > 1:
            handler(number, frame)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held:
        handler(*held[0])


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Within the block, keep a Ctrl-C that comes where Python drops what is raised, until `heed` is called.

    Python drops an exception out of a callback of the garbage collector, or out of a destructor. Hypothesis has such a
    callback, and a signal that comes while the collector works is handled in it: a few in a hundred were lost.
    """
    global _late
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def keep(number: int, frame: FrameType | None) -> None:
        global _late
        if _is_dropped(frame):
            _late = True
        else:
            handler(number, frame)

    _late = False
    signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is keep:
            signal.signal(signal.SIGINT, handler)


def heed() -> None:
    """Raise the `KeyboardInterrupt` of a Ctrl-C that `heeded` has kept."""
    global _late
    if _late:
        _late = False
        raise KeyboardInterrupt


def _is_dropped(frame: FrameType | None) -> bool:
    """Whether nobody hears of what is raised in `frame`."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in callbacks or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
