"""The published results: counts to the digit, memory in proportion, and every graph right before it is timed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks.published import (
    ABSORBED,
    SLICES,
    UNABSORBED,
    Bench,
    Graph,
    attention_case,
    chunks_of,
    counts_b,
    flops_unabsorbed,
)
from opconform.harness.model.ops import ops
from opconform.harness.model.work import Work
from tests.lacking import lacking


@pytest.fixture(scope="module")
def bench() -> Bench:
    if not os.environ.get("OPCONFORM_GGML_LIB"):
        lacking("ggml:CPU", "OPCONFORM_GGML_LIB is not set")
    return Bench({}, 0.01)


def test_the_counts_of_latent_attention_are_the_published_ones() -> None:
    shown = [(f"{size / 1e3:.2f} KB", f"{flops / 1e6:.2f} M") for _, size, flops in counts_b()]
    assert shown == [("81.92 KB", "0.08 M"), ("1.15 KB", "33.64 M"), ("1.15 KB", "0.28 M")]
    assert [size for _, size, _ in counts_b()] == [81_920, 1_152, 1_152]
    assert [flops for _, _, flops in counts_b()] == [81_920, 33_636_352, 278_528]


def test_without_absorption_one_query_takes_more_and_many_take_less() -> None:
    for queries, more in ((1, True), (16, True), (256, False)):
        case = attention_case(256, queries, heads=32)
        assert (flops_unabsorbed(case) > Work.of(ops()["mla_absorbed"], case).flops) is more


def test_every_graph_of_the_chunk_is_right(bench: Bench) -> None:
    for graph in chunks_of(70, heads=2, size=16):
        bench.judged(graph, "CPU")


@pytest.mark.parametrize("backend", ["Stored", *SLICES.values()])
def test_every_graph_of_absorbed_attention_is_right(bench: Bench, backend: str) -> None:
    turned = ABSORBED if backend == "Stored" else ()
    bench.judged(Graph(backend, backend, attention_case(20, 3, heads=10, turned=turned)), "CPU")


def test_attention_on_decompressed_rows_is_right(bench: Bench) -> None:
    bench.judged(Graph("not absorbed", "Decompress", attention_case(24, 3, heads=4, turned=UNABSORBED)), "CPU")


def test_a_wrong_graph_ends_the_program(bench: Bench) -> None:
    with pytest.raises(SystemExit, match="is wrong"):
        bench.judged(Graph("decompressed", "Decompressed", attention_case(24, heads=4)), "CPU")


def test_blocks_need_at_most_three_fifths_of_the_memory(bench: Bench) -> None:
    whole, *blocks = (bench.memory(graph, "CPU") for graph in chunks_of(64, heads=2, size=64))
    for memory in blocks:
        assert memory["planned"] <= 0.6 * whole["planned"]
        assert memory["allocated"] >= memory["planned"]


def test_slices_of_the_scores_need_less_memory(bench: Bench) -> None:
    case = attention_case(2048, 256, heads=128)  # the scores are most of it
    planned = [bench.memory(Graph(backend, backend, case), "CPU")["planned"] for backend in list(SLICES.values())[:3]]
    assert planned == sorted(planned, reverse=True)
    assert planned[2] < planned[0] / 2


def test_times_are_ratios_to_the_first_graph(bench: Bench) -> None:
    found = bench.times(chunks_of(64, heads=1, size=16)[:2], "CPU")
    (_, first), (_, second) = found.values()
    assert (first.low, first.middle, first.high) == (1, 1, 1)
    assert 0 < second.low <= second.middle <= second.high
