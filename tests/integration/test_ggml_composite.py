"""The ops that are graphs of many nodes on ggml, on real libraries: this process's, and others in workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from opconform.backends.ggml import GgmlBackend
from opconform.backends.ggml.library import FLOAT16_VARIABLE, REMEDY, VARIABLE
from opconform.harness.draw.known import known_cases
from opconform.harness.draw.sample import cases_drawn
from opconform.harness.explain.stages import judged_stages
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.ops import ops
from opconform.harness.run.process import devices_of
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings
from tests.judge import Bench

DEVICES = ("CPU", "Vulkan0")
COMPOSITE = ("gated_delta_net", "gated_delta_net_chunk", "mla_absorbed")
SMALL = 1 << 18
OLD, BROKEN, FIXED = (f"OPCONFORM_GGML_LIB_{name}" for name in ("OLD", "BROKEN", "FIXED"))


def folder_in(variable: str) -> str:
    """The folder that an environment variable names. Without it the test fails where CI runs it, else is skipped."""
    folder = os.environ.get(variable)
    if not folder:
        message = f"{variable} is not set; {REMEDY}"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return folder


@pytest.fixture(scope="module", params=DEVICES)
def backend(request: pytest.FixtureRequest) -> GgmlBackend:
    return GgmlBackend(request.param, {"ggml_lib": folder_in(VARIABLE)})


@pytest.fixture
def runner() -> Iterator[Callable[[str, str], Runner]]:
    """Opens a device of the build that a variable names, in a process of its own."""
    opened: list[Runner] = []

    def start(variable: str, device: str) -> Runner:
        options = {"ggml_lib": folder_in(variable)}
        devices = {each.id: each for each in devices_of("ggml", options)}
        opened.append(Runner(Target("ggml", devices[device], options)))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def numerics_of(backend: GgmlBackend, case: Case) -> Numerics:
    devices = {device.id: device for device in GgmlBackend.devices({})}
    return backend.numerics(case) or devices[backend.device].numerics


def drawn(op: str, freedom: Freedom, number: int) -> list[Case]:
    """Small cases; the same for the same number."""
    return cases_drawn(ops()[op], freedom, 8, number)


def packed(shape: tuple[int, ...], dtype: str = "f32") -> Layout:
    return Layout.contiguous(dtype, shape)


def delta(
    op: str, sequences: int, tokens: int, values: int, size: int, key_heads: int = 1, gates: int = 1, **params: object
) -> Case:
    """A delta-net case of `values` value heads, with states [V,K] and an initial one; `params` are those of the op."""
    state = (sequences, values, size, size)
    usual = {"scale": size**-0.5, "heads": "tiled", "state_layout": "vk", "l2norm": False, "eps": 1e-6, "gate": "log"}
    return Case(
        op,
        {**usual, **params},  # type: ignore[arg-type]
        {
            "q": packed((sequences, tokens, key_heads, size)),
            "k": packed((sequences, tokens, key_heads, size)),
            "v": packed((sequences, tokens, values, size)),
            "g": packed((sequences, tokens, values, gates)),
            "beta": packed((sequences, tokens, values, 1)),
            "state": packed(state),
        },
        {
            "out": packed((sequences, tokens, values, size)),
            "state_out": packed((int(params.get("snapshots", 1)) * sequences, *state[1:])),  # type: ignore[call-overload]
        },
        "unit_keys",
    )


def chunk(
    sequences: int, tokens: int, heads: int, form: str = "blockwise", place: str = "acc", gates: int = 1, size: int = 32
) -> Case:
    params = {"chunk": size, "form": form, "place": place}
    return delta("gated_delta_net_chunk", sequences, tokens, heads, 4, 1, gates, **params)


def mla(
    form: str, cache: str, *, queries: int = 2, rows: int = 9, padding: int = 2, shared: bool = True, **params: object
) -> Case:
    """MLA with widths of multiples of 8 (latent 16, rotary 8), the cache in one memory where it is `shared`."""
    c, r, n = 16, 8, rows + padding
    size = packed((1,), cache).type.itemsize
    row = (c + r) * size
    strides = (n * row, n * row, row, size)
    inputs = {
        "q_nope": packed((2, 3, queries, 4)),
        "q_pe": packed((2, 3, queries, r)),
        "c_kv": Layout(cache, (2, 1, n, c), strides) if shared else packed((2, 1, n, c), cache),
        "k_pe": Layout(cache, (2, 1, n, r), strides, c * size) if shared else packed((2, 1, n, r), cache),
        "w_uk": packed((1, 3, 4, c)),
        "w_uv": packed((1, 3, c, 5)),
    }
    if params.pop("masked", False):
        inputs["mask"] = packed((2, 1, queries, n), "f16")
    usual = {"scale": 0.3, "form": form, "causal": False, "kv_len": rows, "k_scale": 1.0, "v_scale": 1.0}
    shares = {"k_pe": "c_kv"} if shared else {}
    out = {"out": packed((2, queries, 3, 5))}
    return Case("mla_absorbed", {**usual, **params}, inputs, out, "normal", shares=shares)  # type: ignore[arg-type]


def test_a_causal_mask_cut_from_a_square_too_large_is_refused_with_the_reason(backend: GgmlBackend) -> None:
    assert backend.supports(mla("two_part", "f32", queries=1, rows=64, causal=True)) is None
    reason = backend.supports(mla("two_part", "f32", queries=1, rows=(1 << 14) + 1, causal=True))
    assert reason == "ggml makes a causal mask of a square, here of 16385 by 16385 elements"


@pytest.mark.parametrize("op", COMPOSITE)
@pytest.mark.parametrize("number", range(2))
def test_every_drawn_case_passes(backend: GgmlBackend, op: str, number: int) -> None:
    limits = tuple(limit for limit in backend.limits() if limit.op in (op, "*"))
    passed = 0
    for case in drawn(op, Freedom(limits, SMALL), number):
        if any(limit.forbids(case, ops()[op].traits(case)) for limit in limits):
            continue
        if (reason := backend.supports(case)) is None:
            verdict = Bench(case).verdict(backend, numerics_of(backend, case))
            assert verdict.passed, (case, verdict.findings)
            passed += 1
        else:
            assert any(part in reason for part in ("says no to", "aborts unless", "mask is f16", "kv_len is 0")), reason
    assert passed


@pytest.mark.parametrize("gates", [1, 4], ids=["gda", "kda"])
@pytest.mark.parametrize(
    ("size", "form", "place"),
    [
        *((size, "whole", "set") for size in (16, 32, 64)),
        *((size, "blockwise", place) for size in (32, 64) for place in ("acc", "set")),
    ],
)
def test_chunks_of_every_form_pass_and_show_right_stages(
    backend: GgmlBackend, size: int, form: str, place: str, gates: int
) -> None:
    case = chunk(2, 70, 3, form, place, gates, size)
    assert backend.supports(case) is None
    bench, numerics = Bench(case), numerics_of(backend, case)
    assert bench.passes(backend, numerics)
    shown = stages(backend, bench)
    assert {"G", "Akk", "Aqk", "u", "w", "v_new", "states"} <= shown.keys()
    assert judged_stages(bench.op, case, shown, numerics).startswith("none is wrong by itself of ")


def stages(backend: GgmlBackend, bench: Bench) -> dict[str, np.ndarray]:
    buffers = Buffers(bench.case, bench.before.copy(), bench.plan)
    shown = backend.stages(bench.case, buffers)
    assert shown is not None
    outputs = {name: np.array(buffers.array(name)) for name in bench.case.outputs}
    return {name: array.astype(np.float64) for name, array in {**shown, **outputs}.items()}


@pytest.mark.parametrize("heads", ["tiled", "interleaved"])
def test_both_ways_to_share_key_heads_pass_in_chunks(backend: GgmlBackend, heads: str) -> None:
    case = delta(
        "gated_delta_net_chunk", 2, 20, 6, 5, key_heads=2, heads=heads, chunk=16, form="whole", place="set", l2norm=True
    )
    assert backend.supports(case) is None
    assert Bench(case).passes(backend, numerics_of(backend, case))


@pytest.mark.parametrize("gates", [1, 16], ids=["gda", "kda"])
@pytest.mark.parametrize("snapshots", [1, 3, 7])
def test_the_recurrent_node_gives_outputs_and_snapshots(backend: GgmlBackend, snapshots: int, gates: int) -> None:
    case = delta("gated_delta_net", 2, 5, 4, 16, key_heads=2, gates=gates, snapshots=snapshots)
    assert backend.supports(case) is None
    assert Bench(case).passes(backend, numerics_of(backend, case))


def test_q_k_and_v_of_one_tensor_are_read_where_they_stand(backend: GgmlBackend) -> None:
    case = delta("gated_delta_net", 2, 5, 2, 16, key_heads=2, snapshots=1)
    row = 2 * 16 * 4
    q, k, v = (Layout("f32", (2, 5, 2, 16), (5 * 3 * row, 3 * row, 64, 4), i * row) for i in range(3))
    case = replace(case, inputs={**case.inputs, "q": q, "k": k, "v": v}, shares={"k": "q", "v": "q"})
    assert backend.supports(case) is None
    assert Bench(case).passes(backend, numerics_of(backend, case))


def test_vulkan_finds_k_by_the_strides_of_q() -> None:
    """The pinned bug: not in the CPU's kernel."""
    case, options = known_cases()["gated_delta_net/vulkan-key-strides"].case, {"ggml_lib": folder_in(VARIABLE)}
    found = {}
    for device in DEVICES:
        backend = GgmlBackend(device, options)
        assert backend.supports(case) is None
        found[device] = Bench(case).passes(backend, numerics_of(backend, case))
    assert found == {"CPU": True, "Vulkan0": False}
    limits = [limit for limit in backend.limits() if limit.pinned == "gated_delta_net/vulkan-key-strides"]
    assert limits[0].forbids(case, ops()["gated_delta_net"].traits(case))


def attention_cases(form: str, cache: str) -> list[Case]:
    """Rows of NaN beyond kv_len, masks, and more queries than rows, so that some see nothing."""
    return [
        mla(form, cache),
        mla(form, cache, shared=False, masked=True, k_scale=0.5, v_scale=2.0),
        mla(form, cache, queries=7, rows=5, causal=True),
        mla(form, cache, queries=4, causal=True, masked=True),
    ]


@pytest.mark.parametrize("cache", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("form", ["two_part", "concat"])
def test_attention_with_explicit_scores_passes(backend: GgmlBackend, form: str, cache: str) -> None:
    for case in attention_cases(form, cache):
        assert backend.supports(case) is None
        assert Bench(case).passes(backend, numerics_of(backend, case)), case


@pytest.mark.parametrize("cache", ["f32", "f16", "bf16"])
def test_flash_attention_passes_on_the_cpu(cache: str) -> None:
    cpu = GgmlBackend("CPU", {"ggml_lib": folder_in(VARIABLE)})
    for case in attention_cases("flash", cache):
        assert cpu.supports(case) is None
        bench, numerics = Bench(case), numerics_of(cpu, case)
        assert bench.passes(cpu, numerics), case
        shown = stages(cpu, bench)
        assert shown.keys() == {"q_absorbed", "context", "out"}
        assert judged_stages(bench.op, case, shown, numerics).startswith("none is wrong by itself of ")


def test_flash_attention_passes_on_vulkan_though_lavapipe_compiles_for_seconds() -> None:
    vulkan = GgmlBackend("Vulkan0", {"ggml_lib": folder_in(VARIABLE)})
    case = attention_cases("flash", "f16")[1]
    limits = [limit for limit in vulkan.limits() if (limit.op, limit.subject) == ("mla_absorbed", "form")]
    assert [limit.allowed for limit in limits] == [("two_part", "concat")]
    assert vulkan.supports(case) is None
    assert Bench(case).passes(vulkan, numerics_of(vulkan, case))


@pytest.mark.parametrize(
    ("form", "names"), [("two_part", "q_absorbed scores weights context"), ("concat", "q_absorbed weights context")]
)
def test_attention_shows_right_stages(backend: GgmlBackend, form: str, names: str) -> None:
    case = mla(form, "f32", queries=4, causal=True, masked=True)
    assert backend.supports(case) is None
    bench, numerics = Bench(case), numerics_of(backend, case)
    shown = stages(backend, bench)
    assert {*names.split(), "out"} == shown.keys()
    assert judged_stages(bench.op, case, shown, numerics).startswith("none is wrong by itself of ")


def test_attention_on_a_cache_of_16_bits_declares_its_precision() -> None:
    cpu = GgmlBackend("CPU", {"ggml_lib": folder_in(VARIABLE)})

    def lower(form: str, cache: str) -> str:
        told = cpu.numerics(mla(form, cache))
        return told.lower if told else ""

    assert [lower(form, "f32") for form in ("two_part", "concat", "flash")] == ["", "", ""]
    assert [lower(form, "f16") for form in ("two_part", "concat", "flash")] == [
        "operands of products rounded to 16 bits",
        "",
        "operands of products rounded to 16 bits, sums of f16 in f16",
    ]


def test_products_in_float16_are_declared_where_a_person_asks_for_them(
    runner: Callable[[str, str], Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GGML_VK_DISABLE_F16", raising=False)  # this process's own library has set it
    monkeypatch.setenv(FLOAT16_VARIABLE, "1")
    case = chunk(1, 5, 2, "whole", "set")
    vulkan = runner(VARIABLE, "Vulkan0")
    (verdict,) = vulkan.verdicts(ops()["gated_delta_net_chunk"], [case])
    assert verdict.passed
    assert verdict.numerics.lower.startswith("u = 2^-11")
    assert vulkan.supports([replace(case, recipe="wide")]) == [
        "Vulkan's products of float32 in float16 have no room for values of the recipe wide"
    ]


def test_no_case_reads_what_another_one_left(backend: GgmlBackend) -> None:
    """Graphs of as many nodes and other sizes, again and again: none may be taken for the one before."""
    cases = [chunk(b, t, h, "whole", "set") for b, t, h in ((1, 40, 2), (2, 40, 1), (1, 33, 3), (3, 64, 1), (1, 40, 2))]
    for case in cases * 2:
        assert backend.supports(case) is None
        assert Bench(case).passes(backend, numerics_of(backend, case)), case


def test_a_graph_with_a_tensor_too_large_is_refused(backend: GgmlBackend) -> None:
    case = delta("gated_delta_net_chunk", 1, 64, 256, 128, gates=128, chunk=64, form="whole", place="set")
    assert "builds tensors of at most 268435456" in str(backend.supports(case))


def test_what_an_old_build_lacks_is_unsupported(runner: Callable[[str, str], Runner]) -> None:
    cases = [delta("gated_delta_net", 1, 5, 1, 16, snapshots=1), chunk(1, 3, 1), mla("concat", "f32")]
    assert (
        runner(OLD, "CPU").supports(cases)
        == ["this libggml (b6673) has no ggml_gallocr_reserve_n_size, which the backend needs for graphs of many nodes"]
        * 3
    )
    assert runner(BROKEN, "Vulkan0").supports([*cases, chunk(1, 3, 1, place="set")]) == [
        "this libggml (b7836) has no ggml_gated_delta_net",
        None,
        None,
        "Vulkan0 of ggml b7836 says no to SET through supports_op",
    ]


@pytest.mark.parametrize(("heads", "sequences"), [(2, 1), (1, 2)])
def test_blocks_placed_with_acc_go_wrong_on_b7836_as_soon_as_ne3_is_above_1(
    runner: Callable[[str, str], Runner], heads: int, sequences: int
) -> None:
    op = ops()["gated_delta_net_chunk"]
    one, several = chunk(1, 40, 1), chunk(sequences, 40, heads)
    broken = runner(BROKEN, "Vulkan0").verdicts(op, [one, several])
    assert [verdict.passed for verdict in broken] == [True, False]
    fixed = runner(FIXED, "Vulkan0").verdicts(op, [one, several])
    assert [verdict.passed for verdict in fixed] == [True, True]


def test_the_search_shrinks_it_to_one_chunk_and_names_the_stage(runner: Callable[[str, str], Runner]) -> None:
    failure = Search(ops()["gated_delta_net_chunk"], runner(BROKEN, "Vulkan0"), Settings(seed=1)).run().failure
    assert failure is not None
    case = failure.case
    sequences, tokens, heads, _ = case.inputs["v"].shape
    assert (case.params["form"], case.params["place"]) == ("blockwise", "acc")
    assert tokens <= int(case.params["chunk"])
    assert sequences * heads == 2
    assert ", its 16×16 blocks placed with ACC: " in failure.stage
    assert "; right before it: G, " in failure.stage
    assert "Akk_blocks, Aqk_blocks" in failure.stage
