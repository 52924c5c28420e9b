"""The verdict on a whole graph, with a model that is as wrong as a test wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from opconform.backends.ggml.llama import whole
from opconform.backends.ggml.llama.bench import Run, Setup
from opconform.backends.ggml.llama.records import NO_BUFFER, Memory, Node
from opconform.backends.ggml.llama.scripts import script
from opconform.backends.ggml.llama.session import Died, Watch
from opconform.harness.model.findings import Kind
from opconform.harness.run.watching import LateError

SCRIPT = script(256, 3, steps=1)
NODES = tuple(
    Node(f"n{i}", "f32", (1, 1, 1, 1), (4, 4, 4, 4), NO_BUFFER, Memory(-1, 0, 0), op="ADD", index=i, what=f"OP{i}")
    for i in range(8)
)
DEAD = Died(Kind.CRASH, "the process ended with signal SIGSEGV", "", None)

#: A way to compute: for each decode, the sets of nodes that were computed together; None where nobody asked.
Pieces = Sequence[Sequence[frozenset[int]] | None]


def pieces_of(watch: Watch) -> list[frozenset[int]]:
    ends = range(8) if watch.ends == "all" else () if watch.ends == "none" else watch.ends
    cuts = sorted({*ends, 7})
    return [frozenset(range(start + 1, end + 1)) for start, end in zip([-1, *cuts], cuts)]


class FakeBench:
    """A bench whose model computes its logits right, plus what `off` gives for a run; DEAD kills it."""

    def __init__(self, off: Callable[[int, Pieces], Sequence[float | Died]]) -> None:
        self.setup = Setup(Path(), Path(), ("Vulkan0",))
        self.runs = 0
        self._off = off

    def run(
        self,
        batches: object,
        watch: Sequence[Watch] | Watch | None = None,
        see: Callable[[int, Node], None] | None = None,
    ) -> Run:
        self.runs += 1
        count = len(batches)  # type: ignore[arg-type]
        watches = [watch] * count if isinstance(watch, Watch) or watch is None else list(watch)
        logits = []
        for number, off in enumerate(self._off(self.runs, [each and pieces_of(each) for each in watches])):
            if number == count:
                break
            if isinstance(off, Died):
                return Run(tuple(logits), off)
            each = watches[number]
            for node in NODES if see and each and each.told else ():
                see(number, node)
            noise = (
                0.0 if each is None or each.noise is None else 1e-3 * np.random.RandomState(each.noise).uniform(0.5, 1)
            )
            logits.append(np.full((2, 4), [1.0, 2.0, 3.0, 4.0]) + noise + off)
        return Run(tuple(logits))


def compared(off: Callable[[int, Pieces], Sequence[float | Died]]) -> whole.Whole:
    return whole.compare(FakeBench(off), SCRIPT)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "SWITCHES", {})


def together(pieces: Sequence[frozenset[int]] | None, *nodes: int) -> bool:
    return pieces is None or any(set(nodes) <= piece for piece in pieces)


def test_a_right_model_is_right() -> None:
    found = compared(lambda run, pieces: (0, 0))
    assert found.right
    assert [len(nodes) for nodes in found.nodes] == [8, 8]
    assert found.runs == 1 + whole.NOISY_RUNS + whole.TIMES


def test_rounding_is_no_difference() -> None:
    assert compared(lambda run, pieces: (1e-5 if pieces[0] is None else 0, 0)).right


def test_a_fused_piece_is_found_in_its_decode() -> None:
    found = compared(lambda run, pieces: (0, 1.0 if together(pieces[1], 2, 3, 4) else 0))
    assert found.wrong_times == 2
    assert found.asked is False
    assert found.piece
    assert (found.piece.decode, found.piece.ops) == (1, ("OP2", "OP3", "OP4"))
    assert found.piece.difference
    assert found.piece.difference.off == 1


def test_a_fault_that_shows_itself_one_decode_later_is_found_in_its_own() -> None:
    found = compared(lambda run, pieces: (0, 1.0 if together(pieces[0], 5, 6) else 0))
    assert found.piece
    assert (found.piece.decode, found.piece.ops) == (0, ("OP5", "OP6"))


def test_a_fault_that_needs_an_earlier_decode_is_found() -> None:
    found = compared(lambda run, pieces: (0, 1.0 if together(pieces[0], 0, 7) and together(pieces[1], 1, 2) else 0))
    assert found.piece
    assert (found.piece.decode, found.piece.ops) == (1, ("OP1", "OP2"))


def test_when_the_time_is_up_the_shortest_wrong_piece_so_far_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def off(run: int, pieces: Pieces) -> Sequence[float]:
        if pieces[0] is not None and max(map(len, pieces[0])) > 1 and not together(pieces[0], *range(8)):
            tried.append(run)
            if len(tried) > 1:
                raise LateError
        return (1.0 if together(pieces[0], 1, 2) else 0, 0)

    found = compared(off)
    assert found.late
    assert found.wrong_times == 2
    assert found.piece
    assert found.piece.late
    assert found.piece.ops == ("OP0", "OP1", "OP2", "OP3")


def test_without_time_for_the_first_try_there_is_a_verdict_and_no_piece() -> None:
    def off(run: int, pieces: Pieces) -> Sequence[float]:
        if run > 1 + whole.NOISY_RUNS + whole.TIMES + whole.CONFIRMING_RUNS:
            raise LateError
        return (1.0 if pieces[0] is None else 0, 0)

    found = compared(off)
    assert (found.late, found.wrong_times, found.piece) == (True, 2, None)


def test_a_race_shows_itself_now_and_then() -> None:
    first_whole = 1 + whole.NOISY_RUNS + 1
    found = compared(lambda run, pieces: (1.0 if run == first_whole else 0, 0))
    assert found.wrong_times == 1
    assert not found.right
    assert found.piece is None


def test_what_goes_wrong_only_where_nobody_asks_has_no_piece() -> None:
    found = compared(lambda run, pieces: (0, DEAD) if pieces[0] is None else (0, 0))
    assert found.wrong_times == 2
    assert [decode for decode, _ in found.died] == [1, 1]
    assert found.asked is True
    assert found.piece is None


def test_a_piece_that_kills_the_worker_is_found_too() -> None:
    found = compared(lambda run, pieces: (DEAD,) if together(pieces[0], 3, 4) else (0, 0))
    assert found.piece
    assert found.piece.ops == ("OP3", "OP4")
    assert found.piece.died is DEAD
    assert found.piece.difference is None


def test_a_death_that_comes_and_goes_has_no_piece() -> None:
    """The worker dies in each run up to the last one of the search, and never again."""
    last = 1 + whole.NOISY_RUNS + whole.TIMES + 24

    def off(run: int, pieces: Pieces) -> Sequence[float | Died]:
        return (DEAD,) if run <= last and together(pieces[0], 3, 4) else (0, 0)

    assert compared(off).piece
    counted = FakeBench(off)
    whole.compare(counted, SCRIPT)  # type: ignore[arg-type]
    last = counted.runs - 2
    assert compared(off).piece is None


def test_a_death_node_by_node_is_told_where_it_stays() -> None:
    assert compared(lambda run, pieces: (DEAD,)).by_node is DEAD
    assert compared(lambda run, pieces: (DEAD,) if run == 1 else (0, 0)).right  # once is the driver's own


def test_more_noise_decides_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tie that comes out the other way in one of the later noisy runs is no fault."""
    doubtful = 1 + whole.NOISY_RUNS + whole.TIMES + 2
    found = compared(lambda run, pieces: (1.0 if pieces[0] is None or run == doubtful else 0, 0))
    assert found.right


def test_a_buffer_that_cannot_run_an_operation_ends_as_a_verdict_with_the_tensors_name() -> None:
    """What ggml-backend.cpp says before it aborts, with the rest of its backtrace behind it."""
    text = "pre-allocated tensor (cache_k_l0 (view)) in a buffer (Vulkan0) that cannot run the operation (SET_ROWS)"
    died = Died(Kind.CRASH, "signal SIGABRT", f"loading\nggml-backend.cpp:894: {text}\nno backtrace\n", None)
    assert died.last_words.endswith(text)
    found = compared(lambda run, pieces: (died,))
    assert found.by_node is died
    assert text in str(died.in_decode(0))
