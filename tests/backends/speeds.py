"""Backends whose clocks are made up: each computes nothing, and says how long it took."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.run.backend import Backend, Device, Loaded

TICK = 1e-3  #: seconds that a case takes where a class says nothing else


class Made:
    """A loaded case of which each computation takes `seconds`, and up to `noise` times that."""

    def __init__(self, seconds: float, noise: float = 0.3) -> None:
        self._seconds, self._noise = seconds, noise

    def launch(self) -> None:
        raise AssertionError("a case with a clock of its own is not launched")

    def fetch(self) -> None:
        raise AssertionError("nothing is copied back while a case is timed")

    def timed(self, repeats: int) -> float:
        return repeats * self._seconds * (1 + self._noise * random.random())


class Even(Backend):
    """Takes one tick, give or take; a copy takes half of one, and a product a hundred."""

    name = "even"
    clock = "made up"
    factor = 1.0

    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        return [Device("0", f"a clock, {cls.__name__}", {"build": cls.__name__})]

    def load(self, case: Case, buffers: Buffers) -> Loaded:
        return Made(TICK * self.factor)

    def evict(self) -> None:
        """There is no cache."""

    def copying(self, size: int) -> Loaded:
        return Made(TICK / 2, noise=0.0)

    def product(self, n: int) -> Loaded | None:
        return Made(100 * TICK, noise=0.0)


class Slower(Even):
    """Takes half as long again."""

    factor = 1.5


class BarelySlower(Even):
    """Is slower by less than anyone would want to be told."""

    factor = 1.05


class Faster(Even):
    factor = 0.5


class Unlike(Even):
    """Each process has its luck: it is up to twice as slow throughout."""

    def __init__(self, device: str, options: Mapping[str, str]) -> None:
        super().__init__(device, options)
        self.factor = random.choice((1.0, 1.2, 2.0))


class NoProduct(Even):
    def product(self, n: int) -> Loaded | None:
        return None


class Remembers(Even):
    """Says what its intermediate results take."""

    def memory(self, case: Case, buffers: Buffers) -> Mapping[str, int]:
        return {"planned": 1_000_000, "allocated": 2_000_000}


class Refuses(Even):
    def supports(self, case: Case) -> str | None:
        return "it takes nothing"


class Breaks(Even):
    def load(self, case: Case, buffers: Buffers) -> Loaded:
        raise RuntimeError("no clock today")


class Dies(Even):
    """Ends with the first case of each process whose rows are 127 long."""

    def load(self, case: Case, buffers: Buffers) -> Loaded:
        if case.inputs["x"].ne[0] == 127:
            os._exit(3)
        return super().load(case, buffers)


class Lies(Even):
    """Its clock runs backwards."""

    def load(self, case: Case, buffers: Buffers) -> Loaded:
        return Made(-1.0)
