"""What a test does where something that it needs is not there."""

from __future__ import annotations

import importlib.util
import os
from typing import NoReturn

import pytest


def lacking(name: str, message: str) -> NoReturn:
    """End the test as skipped. Where CI runs it, it fails, unless OPCONFORM_WITHOUT has `name`."""
    demanded = os.environ.get("CI") == "true" and name not in os.environ.get("OPCONFORM_WITHOUT", "").split()
    pytest.fail(message) if demanded else pytest.skip(message)


def needs_torch() -> None:
    """End the test, as `lacking` has it, where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        lacking("torch", "torch is not installed; `make setup` does it, or `pip install torch`")
