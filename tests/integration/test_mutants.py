"""The benchmark of mutants: faults of every class are found in the sources, and judged each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest

from benchmarks.faults import COVERED_BY, DOCUMENTED, NOT_IN_A_KERNEL, SYSTEMATIC, Mutant
from benchmarks.mutation.listing import BACKENDS, all_mutants, equivalents, sample
from opconform.backends.kernels.table import KERNELS
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.registry import backend_class
from tests.lacking import lacking

ROOT = Path(__file__).parent.parent.parent
CLASSES = {*SYSTEMATIC, *DOCUMENTED, "writes its input", "stale arguments"}

#: Runs in a process of its own, for the mutants' processes are forked from it, and a driver must not be open there.
JUDGE = """
import json, sys, time
from dataclasses import replace

from benchmarks.mutation.judging import Bench
from benchmarks.mutation.listing import all_mutants
from benchmarks.mutation.processes import run

bench = replace(Bench.of("sum_rows", "opencl", {"quick": 24, "default": 48}), seconds=3.0)
mutants = all_mutants("sum_rows", "opencl")
store = next(it for it in mutants if it.file == "row.cl" and it.line.startswith("store("))
chosen = {
    "right": replace(store, becomes=store.line),
    "wrong": next(it for it in mutants if it.file == "row.cl" and it.becomes == "const ulong i3 = 0;"),
    "stray": replace(store, becomes="*(__global uint *)8 = 1;"),
    "endless": replace(store, becomes="for (volatile int i = 0;; i++) { }"),
    "nonsense": replace(store, becomes="store(;"),
}
endless = chosen.pop("endless")
found = list(run(bench, [endless], 1, time.monotonic() + 1000, ["quick"]))
found += run(bench, list(chosen.values()), 2, time.monotonic() + 1000)
chosen["endless"] = endless
print(json.dumps({name: next(it for it in found if it["becomes"] == chosen[name].becomes) for name in chosen}))
"""


@cache
def mutants(op: str, backend: str) -> list[Mutant]:
    return all_mutants(op, backend)


def test_every_class_of_faults_has_a_mutant() -> None:
    found = {mutant.fault for op in KERNELS for backend in BACKENDS for mutant in mutants(op, backend)}
    assert found == CLASSES


def test_every_documented_class_of_bugs_has_faults_or_a_reason() -> None:
    assert set(COVERED_BY.values()) <= CLASSES
    assert not set(NOT_IN_A_KERNEL) & {*COVERED_BY, *DOCUMENTED}


@pytest.mark.parametrize("op", ["acc", "cumsum", "mla_absorbed"])
def test_a_mutant_differs_in_one_line(op: str) -> None:
    for backend, (kind, _) in BACKENDS.items():
        files = backend_class(f"{ROOT / 'benchmarks/mutated.py'}:{kind}").source(op).files  # type: ignore[attr-defined]
        for mutant in mutants(op, backend):
            if mutant.file:
                right, wrong = files[mutant.file].splitlines(), mutant.text(files[mutant.file]).splitlines()
                assert len({*wrong} - {*right}) >= 1
                assert [line for line in right if line not in wrong] in ([], [right[mutant.number]])


def test_mutants_have_keys_of_their_own() -> None:
    for op in KERNELS:
        keys = [mutant.key for mutant in mutants(op, "opencl")]
        assert len(keys) == len(set(keys))


def test_every_equivalent_stands_for_mutants_that_are_there() -> None:
    everything = [(backend, asdict(it)) for backend in BACKENDS for op in KERNELS for it in mutants(op, backend)]
    for entry in equivalents():
        assert any(entry.covers(backend, mutant) for backend, mutant in everything), entry


def test_a_sample_has_every_class() -> None:
    chosen = sample(mutants("gated_delta_net", "cuda-host"), 40, 0)
    assert {it.fault for it in chosen} == {it.fault for it in mutants("gated_delta_net", "cuda-host")}
    assert chosen == sample(mutants("gated_delta_net", "cuda-host"), 40, 0)


def test_a_mutant_is_killed_and_the_right_kernel_is_not() -> None:
    try:
        backend_class("opencl").devices({})
    except Unavailable as missing:
        lacking("opencl", str(missing))
    done = subprocess.run([sys.executable, "-c", JUDGE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ways = ("quick", "default", "upstream", "five")
    assert [found["right"][way] for way in ways] == [""] * 4
    assert all(found["wrong"][way] for way in ("quick", "default", "upstream"))
    assert found["wrong"]["five"] == ""  # one matrix shows no fault of the outermost axis
    assert found["stray"]["quick"].startswith("CRASH in case 0")
    assert found["endless"]["quick"].startswith("TIMEOUT in case ")
    assert found["nonsense"]["quick"].startswith("refused: ")
