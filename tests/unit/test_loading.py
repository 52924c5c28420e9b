"""`Backend.load` and `Backend.run`: either one is enough, and what a subclass says last is what computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from opconform.harness.model.buffers import Buffers, Plan
from opconform.harness.model.case import Case
from opconform.harness.run.backend import Backend, loaded
from opconform.harness.run.worker import answer
from tests.samples import acc


class Kept:
    """A loaded case that writes down what is asked of it."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls
        calls.append("load")

    def launch(self) -> None:
        self.calls.append("launch")

    def fetch(self) -> None:
        self.calls.append("fetch")


class _Told(Backend):
    def __init__(self, device: str = "0", options: Mapping[str, str] | None = None) -> None:
        super().__init__(device, options or {})
        self.calls: list[str] = []


class Loads(_Told):
    def load(self, case: Case, buffers: Buffers) -> Kept:
        return Kept(self.calls)


class RunsInstead(Loads):
    def run(self, case: Case, buffers: Buffers) -> None:
        self.calls.append("run")


class RunsAround(Loads):
    def run(self, case: Case, buffers: Buffers) -> None:
        self.calls.append("before")
        super().run(case, buffers)


class LoadsAgain(RunsInstead):
    def load(self, case: Case, buffers: Buffers) -> Kept:
        self.calls.append("again")
        return super().load(case, buffers)


class Runs(_Told):
    def run(self, case: Case, buffers: Buffers) -> None:
        self.calls.append("run")


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        (Loads, ["load", "launch", "fetch"]),
        (Runs, ["run"]),
        (RunsInstead, ["run"]),
        (RunsAround, ["before", "load", "launch", "fetch"]),
        (LoadsAgain, ["again", "load", "launch", "fetch"]),
    ],
)
def test_the_worker_computes_as_the_class_says_last(kind: type[_Told], calls: list[str]) -> None:
    backend, case = kind(), acc(2)
    assert answer(backend, case, np.zeros(Plan.of(case).size, np.uint8)).error is None
    assert backend.calls == calls


def test_a_class_without_run_and_load_says_so() -> None:
    case: Any = acc(2)
    with pytest.raises(NotImplementedError, match="_Told has neither run nor load"):
        loaded(_Told(), case, Buffers(case, np.zeros(Plan.of(case).size, np.uint8))).launch()
