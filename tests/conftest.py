"""Fixtures for the tests of the harness itself."""

from __future__ import annotations

import signal

import pytest

pytest_plugins = ["pytester"]

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what the tests start would ignore Ctrl-C too


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
