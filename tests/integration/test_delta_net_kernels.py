"""The delta-net kernels of OpenCL and Vulkan: what they show on the way, and faults planted in copies of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from opconform.backends.opencl import OpenCLBackend
from opconform.backends.vulkan import VulkanBackend
from opconform.harness.explain.stages import judged_stages
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case, Param
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import Numerics
from opconform.harness.run.backend import Unavailable
from tests.judge import Bench

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


def case(op: str, per_channel: bool, has_state: bool, recipe: str, **params: Param) -> Case:
    """Two sequences of 37 tokens, 2 key heads and 4 value heads of 6 by 5."""
    state = (4, 6, 5) if params["state_layout"] == "kv" else (4, 5, 6)
    shapes = {"q": (2, 37, 2, 6), "k": (2, 37, 2, 6), "v": (2, 37, 4, 5), "beta": (2, 37, 4, 1)}
    shapes |= {"g": (2, 37, 4, 6 if per_channel else 1), **({"state": (2, *state)} if has_state else {})}
    outputs = {"out": (2, 37, 4, 5), "state_out": (2 * int(params.get("snapshots", 1)), *state)}
    layouts = [{name: Layout.contiguous("f32", shape) for name, shape in some.items()} for some in (shapes, outputs)]
    return Case(op, {"scale": 0.4, "eps": 1e-6, **params}, *layouts, recipe=recipe, seed=1)


def cases(op: str) -> Iterator[Case]:
    """One gate per head and one per channel, with all that the parameters choose between."""
    plain: dict[str, Param] = {"heads": "tiled", "state_layout": "kv", "l2norm": False, "gate": "log"}
    other: dict[str, Param] = {"heads": "interleaved", "state_layout": "vk", "l2norm": True, "gate": "log"}
    own: tuple[dict[str, Param], ...] = ({"snapshots": 1}, {"snapshots": 3})
    if op == "gated_delta_net_chunk":
        blocks: dict[str, Param] = {"chunk": 32, "form": "blockwise"}
        own = ({"chunk": 16, "form": "whole", "place": "set"}, {**blocks, "place": "acc"}, {**blocks, "place": "set"})
    for more in own:
        yield case(op, False, False, "unit_keys", **plain, **more)
        yield case(op, False, True, "strong_decay", **other, **more)
        yield case(op, True, True, "unit_keys", **other, **more)
        yield case(op, True, False, "strong_decay", **{**plain, "gate": "decay"}, **more)


#: What is shown of an op: all of it where q and k are normalised, gates are logs, and there is one per head.
SHOWN = {
    "gated_delta_net": "q_norm k_norm decay delta states out state_out",
    "gated_delta_net_chunk": "q_norm k_norm G decay Akk_blocks Aqk_blocks Akk Aqk w u v_new states out state_out",
}


@pytest.mark.parametrize("op", SHOWN)
def test_every_stage_that_is_shown_is_right(device: tuple[Kernels, Numerics], op: str) -> None:
    seen: set[str] = set()
    for some in cases(op):
        says = blamed(*device, some)
        assert says.startswith("none is wrong by itself of "), (some, says)
        seen.update(says.removeprefix("none is wrong by itself of ").split(", "))
    assert seen == set(SHOWN[op].split())


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
        own = APIS[api].kernels / f"{self.op}.{SUFFIX[api]}"
        file = next((each for each in (own, *own.parent.glob("delta_net.h")) if right in each.read_text()), own)
        text = file.read_text()
        assert text.count(right) == 1, right
        (folder / file.name).write_text(text.replace(right, wrong))
        return folder


FAULTS = (
    Fault(
        "the length is not a root",
        "gated_delta_net",
        "q_norm",
        ("= sqrt(sum_of_lanes(part) + eps);", "= sum_of_lanes(part) + eps;"),
        ("= sqrt(sum + eps);", "= sum + eps;"),
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
        ("scale * sum);", "sum);"),
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
            "exp(load(G_at(matrix, i, 0))) * min(exp(-load(G_at(matrix, j, 0))), 3e38)",  # or Mesa adds the two
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
        "the matrices are taken to be zeros",
        "gated_delta_net_chunk",
        "Akk",
        ("    Akk[id] = 0.0f;\n    Aqk[id] = 0.0f;\n", ""),
        ("    store(Akk_start + 4 * id, 0.0);\n    store(Aqk_start + 4 * id, 0.0);\n", ""),
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
        ("token < p.tokens && j < i; j++)", "token < p.tokens && j + 1 < i; j++)"),
        ("token < tokens && j < i; j++)", "token < tokens && j + 1 < i; j++)"),
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
        "the rows of the last state are reversed",
        "gated_delta_net_chunk",
        "state_out",
        ("(final + d * p.state_out_nb[1])", "(final + (p.keys - 1 - d) * p.state_out_nb[1])"),
        ("store(final + d * state_out_nb[1]", "store(final + (keys - 1 - d) * state_out_nb[1]"),
    ),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught_and_its_stage_is_named(api: str, fault: Fault, tmp_path: Path) -> None:
    planted, numerics = opened(api, fault.planted(api, tmp_path))
    caught = (some for some in cases(fault.op) if not Bench(some).passes(planted, numerics))
    assert blamed(planted, numerics, next(caught)).startswith(fault.stage)


@pytest.mark.parametrize("op", SHOWN)
def test_an_argument_of_another_type_is_unsupported(device: tuple[Kernels, Numerics], op: str) -> None:
    some = next(cases(op))
    half = replace(some, inputs={**some.inputs, "q": Layout.contiguous("f16", some.inputs["q"].shape)})
    assert str(device[0].supports(half)).endswith("computes f32, not f16")


def test_intermediate_results_larger_than_a_buffer_are_unsupported(device: tuple[Kernels, Numerics]) -> None:
    some = next(cases("gated_delta_net_chunk"))
    one = Layout("f32", (1, 1 << 28, 64, 1), (0, 0, 0, 4))  # a number for all tokens and heads
    large = replace(some, inputs=dict.fromkeys(some.inputs, one))
    assert re.search(r"takes \d+ bytes; a (storage )?buffer of this device has", str(device[0].supports(large)))
