"""Backends, and the processes they run in."""
