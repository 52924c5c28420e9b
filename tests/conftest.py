"""Fixtures for the tests of the harness itself."""

from __future__ import annotations

pytest_plugins = ["pytester"]
