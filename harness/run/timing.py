"""The worker's side of timing: one case that stands loaded on the device, and samples of how long it takes.

A sample is the time of one computation, by the device's own clock where its API has one (`Loaded.timed`), and without
what travels between host and device. Where one computation is too short for that clock, a sample is the mean of many
that run back to back.
"""

from __future__ import annotations

import time
from typing import Literal

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.run.backend import Backend, Loaded, loaded

#: What can be timed. warm: the case again and again, in whatever cache it fits. cold: after the caches were filled
#: with other data. copy, cold copy: the device's own copy of as many bytes. product: a matrix product on it.
What = Literal["warm", "cold", "copy", "cold copy", "product"]

SAMPLE_SECONDS = 1e-3  #: a sample takes at least so long, or the clock's steps and the start of a launch show
MOST_REPEATS = 1 << 16
MOST_SAMPLES = 200  #: in one answer
SIDES = (256, 512, 1024, 2048, 4096)  #: of the matrices of "product": the smallest that takes `PRODUCT_SECONDS`
PRODUCT_SECONDS = 5e-3


def seconds_of(case: Loaded, repeats: int) -> float:
    """How long `repeats` computations take, one after another."""
    timed = getattr(case, "timed", None)
    if timed is not None:
        return float(timed(repeats))
    start = time.perf_counter()
    for _ in range(repeats):
        case.launch()
    return time.perf_counter() - start


class Stopwatch:
    """Times one case on a backend. `size`: the bytes that a copy beside it moves, half read and half written."""

    def __init__(self, backend: Backend, case: Case, buffers: Buffers, size: int) -> None:
        self._backend = backend
        self._size = size
        self.memory = dict(backend.memory(case, buffers))
        self._case = loaded(backend, case, buffers)
        self._repeats: dict[What, int] = {}
        self._others: dict[What, Loaded | None] = {}
        self.flops = 0  #: of the matrix product

    def sample(self, what: What, seconds: float) -> list[float]:
        """Seconds of single computations, as many as fit into `seconds` and at least one; none where the backend has
        nothing of the kind."""
        subject = self._subject(what)
        if subject is None:
            return []
        cold = what.startswith("cold")
        repeats = 1 if cold else self._calibrated(what, subject)
        found: list[float] = []
        end = time.perf_counter() + seconds
        while not found or (time.perf_counter() < end and len(found) < MOST_SAMPLES):
            if cold:
                self._backend.evict()
            found.append(seconds_of(subject, repeats) / repeats)
        return found

    def _subject(self, what: What) -> Loaded | None:
        if what in ("warm", "cold"):
            return self._case
        if what == "product":
            if what not in self._others:
                self._others[what] = self._product()
            return self._others[what]
        if "copy" not in self._others:
            self._others["copy"] = self._backend.copying(max(self._size // 2, 1))
        return self._others["copy"]

    def _product(self) -> Loaded | None:
        """The matrix product whose rate stands for the device's."""
        for n in SIDES:
            product = self._backend.product(n)
            if product is None:
                return None
            self.flops = 2 * n**3
            seconds_of(product, 1)
            if seconds_of(product, 1) >= PRODUCT_SECONDS:
                break
        return product

    def _calibrated(self, what: What, subject: Loaded) -> int:
        """How many computations make a sample; found by doubling, after a first one that compiles kernels and touches
        memory. The shorter of two times counts: an interruption must not pass for a long computation."""
        if what in self._repeats:
            return self._repeats[what]
        seconds_of(subject, 1)
        repeats = 1
        while repeats < MOST_REPEATS and min(seconds_of(subject, repeats) for _ in range(2)) < SAMPLE_SECONDS:
            repeats *= 2
        self._repeats[what] = repeats
        return repeats
