"""No Ctrl-C is lost where Python drops what is raised, and each is raised once."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest

from opconform.harness.run.interrupts import heed, heeded


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    """Python's own handler, which a shell's background job starts without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_one_in_a_callback_of_the_collector_is_kept() -> None:
    def callback(phase: str, info: object) -> None:
        if phase == "stop":
            _interrupt()

    with heeded():
        gc.callbacks.append(callback)
        try:
            gc.collect()
        finally:
            gc.callbacks.remove(callback)
        with pytest.raises(KeyboardInterrupt):
            heed()
        heed()  # once is enough


def test_one_in_a_destructor_is_kept() -> None:
    class Ends:
        def __del__(self) -> None:
            _interrupt()

    with heeded():
        Ends()
        with pytest.raises(KeyboardInterrupt):
            heed()


def test_any_other_is_raised_at_once() -> None:
    with heeded():
        with pytest.raises(KeyboardInterrupt):
            _interrupt()
        heed()


def test_what_was_kept_ends_with_the_block() -> None:
    class Ends:
        def __del__(self) -> None:
            _interrupt()

    with heeded():
        Ends()
    with heeded():
        heed()
