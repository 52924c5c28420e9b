"""Several sequences against each alone, and a prompt in parts, with a model that mixes up what a test wants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from opconform.backends.ggml.llama import together
from opconform.backends.ggml.llama.bench import Run, Setup
from opconform.backends.ggml.llama.scripts import Batch, Script
from opconform.backends.ggml.llama.session import Died, ModelError, Watch
from opconform.backends.ggml.llama.together import Alone, compared
from opconform.harness.model.findings import Kind
from opconform.harness.model.graph import Together

VOCABULARY = 8
DEAD = Died(Kind.CRASH, "the process ended with signal SIGSEGV", "", None)


def logits_of(tokens: tuple[int, ...]) -> np.ndarray:
    """What a right model says behind these tokens of one sequence."""
    seed = [*tokens, len(tokens)]
    row: np.ndarray = np.random.RandomState(seed).standard_normal(VOCABULARY).astype(np.float32)
    return row


#: Which sequence's logits a token of a sequence gets, in a script of so many batches, and what is added to them.
Fault = Callable[[int, int, int], tuple[int, float]]


class FakeBench:
    """A bench whose model keeps the tokens of each sequence apart, but for what `fault` says."""

    fault: Fault = staticmethod(lambda sequence, batch, sequences: (sequence, 0.0))
    refuses: str = ""
    dies: bool = False

    def __init__(self, setup: Setup) -> None:
        if setup.sizes.sequences > 1 and self.refuses:
            raise ModelError(self.refuses)
        self.setup = setup

    def model(self) -> SimpleNamespace:
        return SimpleNamespace(header=SimpleNamespace(tensors=()))

    def run(self, script: Script, watch: Watch | None = None) -> Run:
        if self.dies and self.setup.sizes.sequences > 1:
            return Run((), DEAD)
        past: dict[int, list[int]] = {}
        logits = []
        for number, batch in enumerate(script):
            for token, sequence in zip(batch.tokens, batch.sequences):
                past.setdefault(sequence, []).append(token)
            logits.append(self._rows(batch, past, number, watch))
        return Run(tuple(logits))

    def _rows(self, batch: Batch, past: dict[int, list[int]], number: int, watch: Watch | None) -> np.ndarray:
        rows = []
        for position, sequence in zip(batch.positions, batch.sequences):
            whose, off = self.fault(sequence, number, len(past))
            row = logits_of(tuple(past[whose][: position + 1])) + off
            if watch is not None and watch.noise is not None:
                row = row * (1 + 1e-6 * np.random.RandomState(watch.noise).uniform(-1, 1, row.shape))
            rows.append(row)
        return np.array(rows, np.float32)

    def close(self) -> None: ...

    def __enter__(self) -> FakeBench:
        return self

    def __exit__(self, *_: object) -> None: ...


def found_with(monkeypatch: pytest.MonkeyPatch, **faults: object) -> list[Together]:
    kind = type("Faulty", (FakeBench,), {k: staticmethod(v) if callable(v) else v for k, v in faults.items()})
    monkeypatch.setattr(together, "Bench", kind)
    bench = kind(replace(Setup(Path(), Path()), devices=("CPU",)))
    return list(compared(Alone(bench, VOCABULARY, 6, 2, seed=3), 3))


def test_sequences_that_are_kept_apart_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    three, parts = found_with(monkeypatch)
    assert (three.way, three.sequences, three.right) == ("together", 3, True)
    assert (parts.way, parts.sequences, parts.right) == ("a prompt in two parts", 1, True)


def test_a_sequence_with_the_logits_of_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp issue 19531: with several sequences in one batch, one of them continued another one's text."""
    three, parts = found_with(
        monkeypatch, fault=lambda sequence, _, count: (0 if count > 1 and sequence == 2 else sequence, 0)
    )
    assert [(sequence, whose) for sequence, _, whose in three.wrong] == [(2, 0)]
    assert parts.right


def test_a_sequence_that_is_wrong_is_not_anybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    three, _ = found_with(monkeypatch, fault=lambda sequence, _, count: (sequence, count > 1 and sequence == 1))
    assert [(sequence, round(difference.off), whose) for sequence, difference, whose in three.wrong] == [(1, 1, None)]


def test_a_state_that_is_lost_between_parts_of_a_prompt_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def fault(sequence: int, batch: int, count: int) -> tuple[int, float]:
        seen.append(batch)
        return sequence, float(batch == 3)  # a prompt in one part and two steps have no fourth batch

    three, parts = found_with(monkeypatch, fault=fault)
    assert three.right
    assert not parts.right
    assert max(seen) == 3


def test_a_context_that_there_is_not_and_a_death_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    three, parts = found_with(monkeypatch, refuses="libllama makes no context: no memory")
    assert three.error == "libllama makes no context: no memory"
    assert parts.right
    three, _ = found_with(monkeypatch, dies=True)
    assert three.ended
    assert three.ended.kind == Kind.CRASH
    assert not three.right
