"""Tests of the harness itself, and what `pytest --backend X` runs."""
