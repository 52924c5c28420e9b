"""The delta-net kernels of OpenCL and Vulkan: what they show on the way, and faults planted in copies of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from opconform.backends.opencl import OpenCLBackend
from opconform.backends.vulkan import VulkanBackend
from opconform.harness.backend import Unavailable
from opconform.harness.buffers import Buffers
from opconform.harness.case import Case
from opconform.harness.numerics import Numerics
from opconform.harness.stages import judged_stages
from tests.judge import Bench, drawn_cases

Kernels = OpenCLBackend | VulkanBackend

APIS: dict[str, type[OpenCLBackend] | type[VulkanBackend]] = {"opencl": OpenCLBackend, "vulkan": VulkanBackend}
SUFFIX = {"opencl": "cl", "vulkan": "comp"}


def opened(api: str, kernels: Path | None = None) -> tuple[Kernels, Numerics]:
    """The first device of an API, with kernels of ones own if there are some, and what arithmetic it promises."""
    kind = APIS[api]
    try:
        device = kind.devices({})[0]
        planted = kind if kernels is None else type("Planted", (kind,), {"kernels": kernels})
        return planted(device.id, {}), device.numerics
    except Unavailable as reason:
        pytest.fail(str(reason)) if os.environ.get("CI") == "true" else pytest.skip(str(reason))


@pytest.fixture(scope="module", params=APIS)
def api(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def device(api: str) -> tuple[Kernels, Numerics]:
    return opened(api)


def blamed(kernels: Kernels, numerics: Numerics, case: Case) -> str:
    """What is said of the stages that the kernels show for a case, outputs included."""
    bench = Bench(case)
    buffers = Buffers(case, bench.before.copy(), bench.plan)
    shown = {name: values.astype(np.float64) for name, values in kernels.stages(case, buffers).items()}
    shown |= {name: layout.type.decode(buffers.raw(name)) for name, layout in case.outputs.items()}
    return judged_stages(bench.op, case, shown, numerics)


def cases(op: str) -> Iterator[Case]:
    """Drawn cases of at least five tokens and two channels: what is smaller hides most faults."""
    for case in drawn_cases(op, 400, 1 << 18):
        if case.inputs["q"].shape[1] >= 5 and case.inputs["q"].shape[3] >= 2:
            yield case


#: What is shown of a case: all of it where q and k are normalised, gates are logs, and there is one per head.
SHOWN = {
    "gated_delta_net": ("q_norm", "k_norm", "decay", "delta", "states", "out", "state_out"),
    "gated_delta_net_chunk": (
        *("q_norm", "k_norm", "G", "decay", "Akk", "Aqk", "w", "u", "v_new", "states", "out", "state_out"),
    ),
}


@pytest.mark.parametrize("op", SHOWN)
def test_every_stage_that_is_shown_is_right(device: tuple[Kernels, Numerics], op: str) -> None:
    seen = set()
    for case in list(cases(op))[:60]:
        says = blamed(*device, case)
        assert says.startswith("none is wrong by itself of "), (case, says)
        seen.add(says.removeprefix("none is wrong by itself of "))
    assert ", ".join(SHOWN[op]) in seen


@dataclass(frozen=True)
class Fault:
    """A place in the kernels of `op` that is right, what is put there instead, for each API, and the stage to blame."""

    name: str
    op: str
    stage: str
    opencl: tuple[str, str]
    vulkan: tuple[str, str]

    def planted(self, api: str, folder: Path) -> Path:
        """A folder with a copy of the kernels that has the fault."""
        right, wrong = getattr(self, api)
        file = APIS[api].kernels / f"{self.op}.{SUFFIX[api]}"
        text = file.read_text()
        assert text.count(right) == 1, right
        (folder / file.name).write_text(text.replace(right, wrong))
        return folder


FAULTS = (
    Fault(
        "the length is not a root",
        "gated_delta_net",
        "q_norm",
        ("= sqrt(sum + eps);", "= sum + eps;"),
        ("= sqrt(sum + uintBitsToFloat(eps));", "= sum + uintBitsToFloat(eps);"),
    ),
    Fault(
        "the gate is a power of two",
        "gated_delta_net",
        "decay",
        ("exp(g[from / 4])", "exp2(g[from / 4])"),
        ("exp(load(from))", "exp2(load(from))"),
    ),
    Fault(
        "beta is missing",
        "gated_delta_net",
        "delta",
        ("beta[beta_at / 4] * (v[v_at / 4] - recalled)", "v[v_at / 4] - recalled"),
        ("load(beta_at) * (load(v_at) - recalled)", "load(v_at) - recalled"),
    ),
    Fault(
        "heads are shared the other way",
        "gated_delta_net",
        "delta",
        ("p.interleaved ?", "!p.interleaved ?"),
        ("interleaved != 0 ?", "interleaved == 0 ?"),
    ),
    Fault(
        "the update takes q",
        "gated_delta_net",
        "states",
        ("+= k[(k_row + i * p.k_nb[0]) / 4] * change", "+= q[(q_row + i * p.q_nb[0]) / 4] * change"),
        ("+ load(k_row + i * k_nb[0]) * change", "+ load(q_row + i * q_nb[0]) * change"),
    ),
    Fault(
        "the scale is missing",
        "gated_delta_net",
        "out",
        ("as_float((uint)p.scale) * sum", "sum"),
        ("uintBitsToFloat(scale) * sum", "sum"),
    ),
    Fault(
        "snapshots come oldest first",
        "gated_delta_net",
        "state_out",
        ("(age * p.sequences", "((p.snapshots - 1 - age) * p.sequences"),
        ("(age * sequences", "((snapshots - 1 - age) * sequences"),
    ),
    Fault(
        "the gates are not summed",
        "gated_delta_net_chunk",
        "G",
        ("sum += p.gates_are_decays", "sum = p.gates_are_decays"),
        ("sum += gates_are_decays", "sum = gates_are_decays"),
    ),
    Fault(
        "a positive sum of gates is exponentiated",
        "gated_delta_net_chunk",
        "decay",
        ("exp(G[first + i] - G[first + j])", "exp(G[first + i]) * exp(-G[first + j])"),
        (
            "exp(load(G_at(matrix, i, 0)) - load(G_at(matrix, j, 0)))",
            "exp(load(G_at(matrix, i, 0))) * exp(-load(G_at(matrix, j, 0)))",
        ),
    ),
    Fault(
        "beta is missing in a chunk",
        "gated_delta_net_chunk",
        "Akk",
        ("beta[beta_i / 4] * kk", "kk"),
        ("load(beta_i) * kk", "kk"),
    ),
    Fault(
        "the diagonal of Aqk is left out",
        "gated_delta_net_chunk",
        "Aqk",
        ("*aqk = qk;", "*aqk = j < i ? qk : 0.0f;"),
        ("aqk = qk;", "aqk = j < i ? qk : 0.0;"),
    ),
    Fault(
        "a block is placed in the wrong column",
        "gated_delta_net_chunk",
        "Akk",
        ("* p.chunk + column * BLOCK + j;", "* p.chunk + row * BLOCK + j;"),
        ("* chunk_size + column * BLOCK + j);", "* chunk_size + row * BLOCK + j);"),
    ),
    Fault(
        "the solve stops one row short",
        "gated_delta_net_chunk",
        "w",
        ("for (ulong j = 0; j < i; j++)", "for (ulong j = 0; j + 1 < i; j++)"),
        ("for (uint j = 0; j < i; j++)", "for (uint j = 0; j + 1 < i; j++)"),
    ),
    Fault(
        "the state is added to v_new",
        "gated_delta_net_chunk",
        "v_new",
        ("sum -= w[", "sum += w["),
        ("sum -= load(w_start", "sum += load(w_start"),
    ),
    Fault(
        "the state does not decay over a chunk",
        "gated_delta_net_chunk",
        "states",
        ("float sum = exp(G[G_last + gate]) * S[", "float sum = S["),
        ("float sum = exp(load(G_at(matrix, chunk_size - 1, d))) * S;", "float sum = S;"),
    ),
    Fault(
        "a token does not see itself",
        "gated_delta_net_chunk",
        "out",
        ("for (ulong j = 0; j <= i; j++)", "for (ulong j = 0; j < i; j++)"),
        ("for (uint j = 0; j <= i; j++)", "for (uint j = 0; j < i; j++)"),
    ),
    Fault(
        "the last state is transposed",
        "gated_delta_net_chunk",
        "state_out",
        (
            "state_out[(final + d * p.state_out_nb[1]) / 4]",
            "state_out[(final + (p.keys - 1 - d) * p.state_out_nb[1]) / 4]",
        ),
        ("store(final + d * state_out_nb[1], sum);", "store(final + (keys - 1 - d) * state_out_nb[1], sum);"),
    ),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught_and_its_stage_is_named(api: str, fault: Fault, tmp_path: Path) -> None:
    planted, numerics = opened(api, fault.planted(api, tmp_path))
    caught = (case for case in cases(fault.op) if not Bench(case).passes(planted, numerics))
    assert blamed(planted, numerics, next(caught)).startswith(fault.stage)
