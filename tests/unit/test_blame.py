"""Who is to blame: the decision table, line by line, and what it rests on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opconform.harness.explain.blame import Again, Elsewhere, is_same_device, line, same_wrong
from opconform.harness.model.dtypes import F32
from opconform.harness.model.expected import Comparison
from opconform.harness.run.backend import Device
from opconform.harness.run.target import Target
from tests.judge import Bench
from tests.kernels.correct import Correct
from tests.kernels.wrong import DropsOffsetA, IgnoresI3
from tests.samples import acc

X = "ggml:Vulkan0"
ALWAYS = Again(3, 3)
CPU = Elsewhere("ggml:CPU", "agrees")
TORCH = Elsewhere("torch:cpu", "agrees")
VULKAN = Elsewhere("vulkan:0", "agrees", same_device=True)
VULKAN_FAILS = Elsewhere("vulkan:0", "fails", same_device=True)
TORCH_FAILS = Elsewhere("torch:cpu", "fails")
KERNEL = "the kernel of ggml:Vulkan0"
SAME = "(vulkan:0 is the same device)"


@pytest.mark.parametrize(
    ("again", "elsewhere", "blamed"),
    [
        (Again(2, 3), [TORCH, VULKAN], f"a race, or memory that nobody has set, in {X}"),
        (Again(0, 3), [TORCH_FAILS], f"a race, or memory that nobody has set, in {X}"),
        (Again(3, 3, steady=False), [TORCH], f"a race, or memory that nobody has set, in {X}"),
        (ALWAYS, [], "whether kernel, driver or reference is to blame cannot be told"),
        (
            ALWAYS,
            [Elsewhere("torch:cpu", "unsupported"), Elsewhere("opencl:0", "silent")],
            "whether kernel, driver or reference is to blame cannot be told",
        ),
        (
            ALWAYS,
            [replace(TORCH_FAILS, same_wrong=True), replace(VULKAN_FAILS, same_wrong=True)],
            f"the reference is suspect: torch:cpu and vulkan:0 return what {X} returns",
        ),
        (
            ALWAYS,
            [replace(TORCH_FAILS, same_wrong=True)],
            f"the reference is suspect: torch:cpu returns what {X} returns",
        ),
        (
            ALWAYS,
            [replace(TORCH_FAILS, same_wrong=True), VULKAN_FAILS],
            "each kernel fails in its own way, or the reference is wrong: cannot be told",
        ),
        (ALWAYS, [CPU, VULKAN], f"{KERNEL} is to blame, not the driver {SAME} and not the reference"),
        (ALWAYS, [TORCH_FAILS, VULKAN], f"{KERNEL} is to blame, not the driver {SAME} and not the reference"),
        (
            ALWAYS,
            [CPU, VULKAN_FAILS],
            "the driver is to blame, for vulkan:0 is the same device, or both kernels; not the reference",
        ),
        (ALWAYS, [CPU, TORCH], f"{KERNEL} or its driver is to blame, not the reference"),
        (None, [CPU], f"{KERNEL} or its driver is to blame, not the reference"),
    ],
)  # fmt: skip
def test_the_decision_table(again: Again | None, elsewhere: list[Elsewhere], blamed: str) -> None:
    assert line(X, "is the case itself", again, elsewhere).partition(" — ")[2] == blamed


def test_the_evidence_stands_before_the_verdict() -> None:
    others = [Elsewhere("opencl:0", "agrees"), TORCH, VULKAN, Elsewhere("mine.py:Mine:0", "fails")]
    assert line(X, "fails", ALWAYS, others) == (
        "opencl:0, torch:cpu and vulkan:0 agree with the reference; mine.py:Mine:0 fails too; packed twin fails too; "
        f"fails 3 times of 3 — {KERNEL} is to blame, not the driver {SAME} and not the reference"
    )


def test_a_packed_twin_that_passes_narrows_the_blame() -> None:
    said = line(X, "passes", ALWAYS, [TORCH])
    assert said == (
        "torch:cpu agrees with the reference; packed twin passes; fails 3 times of 3 — "
        f"{KERNEL} (its use of strides or offsets) or its driver is to blame, not the reference"
    )


def test_who_was_asked_in_vain_is_said() -> None:
    others = [Elsewhere("torch:cpu", "unsupported"), Elsewhere("opencl:0", "silent")]
    said = line(X, "unsupported", Again(3, 3, steady=False), others)
    assert said.startswith(
        "not supported by torch:cpu; no answer from opencl:0 in time; fails 3 times of 3, each time "
    )
    assert line(X, "", None, []).startswith("no other device was asked — ")
    assert line(X, "", None, [Elsewhere("opencl:0", "silent")]).startswith("no answer from opencl:0 in time — ")


@pytest.mark.parametrize("kind", ["NOT WRITTEN", "WROTE OUTSIDE", "INPUT MODIFIED", "CRASH", "OUT OF BOUNDS"])
def test_what_takes_no_reference_to_see_is_not_put_on_the_reference(kind: str) -> None:
    blamed = f"{KERNEL} or its driver is to blame: it takes no reference to see this"
    for elsewhere in ([], [replace(TORCH_FAILS, same_wrong=True)]):
        assert line(X, "is the case itself", ALWAYS, elsewhere, kind).partition(" — ")[2] == blamed
    others = line(X, "is the case itself", ALWAYS, [], "WRONG VALUES")
    assert others.endswith("whether kernel, driver or reference is to blame cannot be told")


def compared(kernel: Correct, seed: int = 0) -> Comparison:
    bench = Bench(acc(3, 2, 1, 2, seed=seed))
    return bench.comparison(bench.after(kernel))


def test_failures_are_the_same_if_the_same_elements_are_wrong_by_the_same_values() -> None:
    one, other = compared(IgnoresI3()), compared(IgnoresI3(), seed=1)
    assert same_wrong(one, one)
    assert not same_wrong(one, other)
    assert not same_wrong(one, compared(Correct()))
    assert not same_wrong(one, None)
    got = np.where(one.wrong, np.nan, one.got)
    nan = replace(one, got=got, raw=F32.encode(got))
    assert same_wrong(nan, nan)
    assert not same_wrong(one, nan)
    assert same_wrong(compared(DropsOffsetA()), compared(DropsOffsetA()))


def test_one_device_behind_one_api_is_the_same_device() -> None:
    def target(spec: str, device: str, description: str = "llvmpipe") -> Target:
        return Target(spec, Device(device, description))

    ggml = target("ggml", "Vulkan0")
    assert is_same_device(ggml, target("vulkan", "0"))
    assert is_same_device(target("vulkan", "0"), ggml)
    assert not is_same_device(ggml, target("vulkan", "1", "RADV"))
    assert not is_same_device(ggml, target("cuda", "0"))  # one card, but another API and so another driver
    assert not is_same_device(ggml, target("ggml", "Vulkan1"))
    assert is_same_device(target("ggml", "CUDA0", "H200"), target("cuda", "0", "H200"))
