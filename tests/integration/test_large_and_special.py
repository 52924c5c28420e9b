"""The default search, without known cases, finds faults that show only in large or special cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Device
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.result import Result
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings
from tests.backends import sized
from tests.backends.sized import MISSED, RIGHT, Missed


def searched(backend: str, op: str, seed: int = 1) -> Result:
    """The result of a search of the default size."""
    target = Target(f"{Path(sized.__file__)}:{backend}", Device("0", backend, {}))
    with Runner(target, isolated=False) as runner:
        return Search(ops()[op], runner, Settings(seed=seed)).run()


@pytest.mark.parametrize("missed", MISSED, ids=str)
def test_a_fault_that_few_cases_show_is_found(missed: Missed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opconform.harness.search.search.SHRINK_SECONDS", 0.0)
    failure = searched(missed.backend, missed.op).failure
    assert failure is not None
    assert failure.kind in ("WRONG VALUES", "NOT WRITTEN", "NAN/INF", "SLICES MIXED")


@pytest.mark.parametrize("op", RIGHT)
def test_the_right_one_passes_and_covers_the_pairs_of_traits(op: str) -> None:
    result = searched(RIGHT[op], op)
    assert result.failure is None
    assert result.coverage.possible > 1000
    assert result.coverage.share > 0.95
