"""Backends in plain NumPy that stand for every way a backend can behave; named by `--backend sample.py:Class`."""
