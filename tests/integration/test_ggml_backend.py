"""The ggml backend on real libraries: OPCONFORM_GGML_LIB in this process, other builds in workers of their own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from opconform.backends.ggml import GgmlBackend
from opconform.backends.ggml.arena import Arena
from opconform.backends.ggml.library import REMEDY, VARIABLE, Library, load
from opconform.harness.draw.known import known_cases
from opconform.harness.draw.sample import batches_drawn, cases_drawn
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout, LayoutClass
from opconform.harness.model.limits import Freedom, Limit
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Device, Unavailable
from opconform.harness.run.process import Worker
from tests.judge import OPS, Bench

DEVICES = ("CPU", "Vulkan0")
SMALL = 1 << 18
CUMSUM = {"axis": 0, "exclusive": False, "reverse": False}
SOLVE = {"left": True, "lower": True, "unit": False}


def folder_in(variable: str) -> str:
    """The folder that an environment variable names. Without it the test fails where CI runs it, else is skipped."""
    folder = os.environ.get(variable)
    if not folder:
        message = f"{variable} is not set; {REMEDY}"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return folder


@pytest.fixture(scope="module")
def library() -> Library:
    return load({"ggml_lib": folder_in(VARIABLE)})


@pytest.fixture(scope="module")
def devices(library: Library) -> dict[str, Device]:
    return {device.id: device for device in GgmlBackend.devices({})}


@pytest.fixture(scope="module")
def opened(devices: dict[str, Device]) -> Callable[[str], GgmlBackend]:
    """Opens a device once."""
    backends: dict[str, GgmlBackend] = {}

    def open_once(device: str) -> GgmlBackend:
        assert device in devices, f"this libggml lists {', '.join(devices)}"
        if device not in backends:
            backends[device] = GgmlBackend(device, {})
        return backends[device]

    return open_once


@pytest.fixture(params=DEVICES)
def backend(request: pytest.FixtureRequest, opened: Callable[[str], GgmlBackend]) -> GgmlBackend:
    return opened(request.param)


@pytest.fixture
def worker() -> Iterator[Callable[[str, str], tuple[Worker, tuple[Limit, ...]]]]:
    """Opens a device of the build that a variable names, in a process of its own; gives its limits too."""
    workers: list[Worker] = []

    def start(variable: str, device: str) -> tuple[Worker, tuple[Limit, ...]]:
        workers.append(Worker("ggml", {"ggml_lib": folder_in(variable)}))
        return workers[-1], workers[-1].open(device)

    yield start
    for each in workers:
        each.close()


def drawn(op: str, limits: tuple[Limit, ...], number: int) -> list[Case]:
    """Cases that `limits` leave, small ones; the same for the same number."""
    freedom = Freedom(tuple(limit for limit in limits if limit.op in (op, "*")), SMALL)
    return cases_drawn(OPS[op], freedom, 12, number)


def cumsum_of(x: Layout) -> Case:
    return Case("cumsum", CUMSUM, {"x": x}, {"out": Layout.contiguous(x.dtype, x.shape)}, "index")


def acc_into(a: Layout, inplace: bool = False) -> Case:
    """ACC of one element into the first of `a`."""
    params = {"nb1": 4, "nb2": 4, "nb3": 4, "offset": 0}
    out = a if inplace else Layout.contiguous(a.dtype, a.shape)
    inputs = {"a": a, "b": Layout.contiguous(a.dtype, (1, 1, 1, 1))}
    return Case("acc", params, inputs, {"out": out}, inplace="a" if inplace else None)


def test_without_a_folder_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(Unavailable, match=f"{VARIABLE} is not set") as caught:
        GgmlBackend.devices({})
    assert "npm pack @node-llama-cpp/linux-x64-vulkan" in caught.value.remedy


def test_a_path_that_is_no_folder_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="is not a folder"):
        GgmlBackend.devices({"ggml_lib": str(tmp_path / "none")})


def test_a_folder_without_libggml_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "libggml-cpu.so").touch()
    with pytest.raises(Unavailable, match="there is no libggml in"):
        GgmlBackend.devices({"ggml_lib": str(tmp_path)})


def test_the_option_goes_before_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "from the variable"))
    with pytest.raises(Unavailable, match="from the option is not a folder"):
        GgmlBackend.devices({"ggml_lib": str(tmp_path / "from the option")})


def test_a_file_that_is_no_library_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "libggml.so").write_text("not ELF")
    with pytest.raises(Unavailable, match="cannot be loaded"):
        Library(tmp_path)


def test_a_second_libggml_in_one_process_is_refused(library: Library, tmp_path: Path) -> None:
    (tmp_path / "libggml.so").touch()
    with pytest.raises(Unavailable, match="cannot load a second one"):
        GgmlBackend.devices({"ggml_lib": str(tmp_path)})


def test_every_device_is_listed_with_its_build(library: Library, devices: dict[str, Device]) -> None:
    assert set(DEVICES) <= devices.keys()
    assert all(device.description and device.versions["build"] == library.build for device in devices.values())
    assert "driver" in devices["Vulkan0"].versions


def test_gpu_devices_promise_less_than_the_cpu(devices: dict[str, Device]) -> None:
    assert not devices["CPU"].numerics.any_rounding
    assert devices["Vulkan0"].numerics.any_rounding
    assert devices["Vulkan0"].numerics.division_ulps == 2.5


def test_an_unknown_device_is_unavailable(devices: dict[str, Device]) -> None:
    with pytest.raises(Unavailable, match=r"no device 'Vulkan99' here; it has: .*CPU"):
        GgmlBackend("Vulkan99", {})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [256, 4096 + 256, (3 << 20) + 256])
def test_every_byte_makes_the_round_trip(library: Library, devices: dict[str, Device], device: str, size: int) -> None:
    arena = Arena(library, library.devices()[device])
    arena.reserve(size)
    before = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    after = np.zeros_like(before)
    arena.upload(before)
    arena.download(after)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("number", range(3))
def test_every_drawn_case_passes(backend: GgmlBackend, devices: dict[str, Device], op: str, number: int) -> None:
    for case in drawn(op, backend.limits(), number):
        if reason := backend.supports(case):
            assert "says no to" in reason  # a device may lack an op: builds of January 2026 have no SET on Vulkan
            continue
        if any(limit.op == op and limit.forbids(case, OPS[op].traits(case)) for limit in backend.limits()):
            continue  # of a trait that no strategy steers by: an argument that starts anywhere
        verdict = Bench(case).verdict(backend, devices[backend.device].numerics)
        assert verdict.passed, (case, verdict.findings)


@pytest.mark.parametrize(
    "x",
    [
        Layout("f32", (2, 3, 4, 5), (640, 200, 48, 4), 16),
        Layout("f32", (2, 3, 4, 5), (20, 160, 40, 4), 4),
        Layout("f32", (7, 5), (40, 4), 12),
    ],
    ids=["padded", "permuted", "two sizes"],
)
def test_no_byte_but_the_outputs_elements_changes(backend: GgmlBackend, devices: dict[str, Device], x: Layout) -> None:
    bench = Bench(cumsum_of(x))
    left = bench.after(backend)
    assert not bench.comparison(left, devices[backend.device].numerics).wrong.any()
    expected = Buffers(bench.case, bench.before.copy(), bench.plan)
    expected.raw("out")[...] = left.raw("out")
    np.testing.assert_array_equal(left.memory, expected.memory)


def test_an_in_place_op_on_a_view_writes_into_the_view_only(backend: GgmlBackend) -> None:
    bench = Bench(acc_into(Layout.contiguous("f32", (1, 1, 2, 3), offset=20), inplace=True))
    left = bench.after(backend)
    changed = np.flatnonzero(left.memory != bench.before)
    start = bench.plan.slots["a"].start + 20
    assert changed.size
    assert start <= changed.min() <= changed.max() < start + 4


def test_a_larger_case_after_a_smaller_one_gets_memory(backend: GgmlBackend) -> None:
    for length in (4, 700_000, 4):
        case = cumsum_of(Layout.contiguous("f32", (1, 1, 2, length)))
        assert backend.supports(case) is None
        assert Bench(case).after(backend).array("out")[0, 0, 0, 1] == 3.0


def test_a_loaded_case_computes_when_it_is_launched_and_again(backend: GgmlBackend) -> None:
    bench = Bench(acc_into(Layout.contiguous("f32", (1, 1, 2, 3)), inplace=True))
    buffers = Buffers(bench.case, bench.before.copy(), bench.plan)
    loaded, found = backend.load(bench.case, buffers), []
    for launches in (0, 1, 1):
        for _ in range(launches):
            loaded.launch()
        loaded.fetch()
        found.append(buffers.array("a")[0, 0, 0, 0])
    b = buffers.array("b")[0, 0, 0, 0]
    assert b != 0
    assert found == [found[0], found[0] + b, found[0] + 2 * b]


def test_running_a_case_twice_gives_the_same_bits(backend: GgmlBackend) -> None:
    bench = Bench(cumsum_of(Layout.contiguous("f32", (1, 2, 3, 300))))
    one, other = bench.after(backend), bench.after(backend)
    np.testing.assert_array_equal(one.memory, other.memory)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (cumsum_of(Layout.contiguous("i32", (1, 1, 1, 4))), "ggml_cumsum takes f32 only"),
        (acc_into(Layout("f32", (1, 1, 2, 2), (24, 24, 12, 4))), "asserts that a is contiguous"),
        (Case("fft", {}, {}, {"out": Layout.contiguous("f32", (1, 1, 1, 1))}), "does not know the op fft"),
        (
            Case("cumsum", {**CUMSUM, "axis": 1}, *[{n: Layout.contiguous("f32", (1, 1, 2, 2))} for n in ("x", "out")]),
            "sums along ne0 only",
        ),
    ],
    ids=["dtype", "strided a", "unknown op", "axis"],
)
def test_what_would_abort_is_refused_with_its_reason(backend: GgmlBackend, case: Case, reason: str) -> None:
    assert reason in str(backend.supports(case))


def test_the_devices_own_refusal_is_quoted(opened: Callable[[str], GgmlBackend], library: Library) -> None:
    a, b = Layout.contiguous("f32", (1, 1, 1, 1)), Layout.contiguous("f32", (1, 1, 1, 9000))
    too_wide = Case("solve_tri", SOLVE, {"a": a, "b": b}, {"out": b})
    said = opened("Vulkan0").supports(too_wide)
    assert said == f"Vulkan0 of ggml {library.build} says no to SOLVE_TRI through supports_op"


def test_limits_are_those_of_the_device(opened: Callable[[str], GgmlBackend]) -> None:
    for device in DEVICES:
        assert all(device.startswith(limit.device) for limit in opened(device).limits())
    cpu = [limit for limit in opened("CPU").limits() if (limit.op, limit.subject) == ("acc", "b")]
    assert [(limit.kind, limit.allowed) for limit in cpu] == [("kernel", LayoutClass.ROWS)]
    bugs = {limit.pinned for limit in opened("CPU").limits() if limit.kind == "bug"}
    assert bugs >= {"clamp/cpu-outer-stride", "ssm_conv/cpu-padded-filter"}
    assert bugs <= known_cases().keys()


def test_an_op_that_an_old_build_lacks_is_unsupported(
    worker: Callable[[str, str], tuple[Worker, tuple[Limit, ...]]],
) -> None:
    old, _ = worker("OPCONFORM_GGML_LIB_OLD", "CPU")
    build = old.devices()[0].versions["build"]
    row, square = Layout.contiguous("f32", (1, 1, 1, 4)), Layout.contiguous("f32", (1, 1, 2, 2))
    solve = Case("solve_tri", SOLVE, {"a": square, "b": square}, {"out": square})
    assert old.supports([cumsum_of(row), solve, acc_into(row)]) == [
        f"this libggml ({build}) has no ggml_cumsum",
        f"this libggml ({build}) has no ggml_solve_tri",
        None,
    ]


@pytest.mark.parametrize("variable", ["OPCONFORM_GGML_LIB_BROKEN", "OPCONFORM_GGML_LIB_FIXED"])
def test_a_type_that_a_build_does_not_have_is_unsupported_there_and_not_asked_for(
    worker: Callable[[str, str], tuple[Worker, tuple[Limit, ...]]], variable: str
) -> None:
    """Each of them aborts at a type's number that is beyond its table."""
    row = Layout.contiguous("f32", (1, 1, 1, 64))
    one = Layout.contiguous("f32", (1, 1, 1, 1))
    products = [
        Case("mul_mat", {}, {"a": Layout.contiguous(name, (1, 1, 1, 64)), "b": row}, {"out": one})
        for name in ("nvfp4", "mxfp4")
    ]
    old, _ = worker(variable, "CPU")
    build = old.devices()[0].versions["build"]
    assert old.supports(products) == [f"this libggml ({build}) has no type nvfp4", None]
    new, _ = worker("OPCONFORM_GGML_LIB", "CPU")
    assert new.supports(products) == [None, None]


@pytest.mark.parametrize(
    ("variable", "old"), [("OPCONFORM_GGML_LIB_BROKEN", True), ("OPCONFORM_GGML_LIB_FIXED", False)]
)
def test_the_bugs_of_the_old_acc_are_known_for_the_builds_that_have_it(
    worker: Callable[[str, str], tuple[Worker, tuple[Limit, ...]]], variable: str, old: bool
) -> None:
    _, limits = worker(variable, "Vulkan0")
    pinned = {limit.pinned for limit in limits if limit.kind == "bug"}
    assert "acc/vulkan-permuted-view" in pinned
    assert ("acc/vulkan-strided-b" in pinned) == old
    assert ("set/vulkan-permuted-view" in pinned) != old
    assert "l2_norm/kb106" in pinned
    assert ("l2_norm/vulkan-offset" in pinned) != old


def is_apart(layout: Layout) -> bool:
    """Whether ggml, for which an axis of one element has no stride, takes a tensor for one that is not contiguous."""
    packed = layout.type.itemsize
    for size, stride in zip(layout.ne, layout.nb):
        if size > 1 and stride != packed:
            return True
        packed *= size
    return False


def beyond_only(limit: Limit, limits: tuple[Limit, ...]) -> Case | None:
    """A drawn case that one of the limits of its op forbids, and no other one; None where none was drawn."""
    op = ops()[limit.op]
    others = Freedom(tuple(other for other in limits if other is not limit), 1 << 16)
    for case in itertools.chain.from_iterable(batches_drawn(op, others, 60)):
        traits = op.traits(case)
        if isinstance(limit.allowed, LayoutClass) and not is_apart(case.layouts[limit.subject]):
            continue
        if limit.forbids(case, traits) and not any(other.forbids(case, traits) for other in others.limits):
            return case
    return None


@pytest.mark.parametrize(("device", "least"), [("CPU", 3), ("Vulkan0", 55)])
def test_where_a_limit_quotes_supports_op_the_device_says_no(
    opened: Callable[[str], GgmlBackend], monkeypatch: pytest.MonkeyPatch, device: str, least: int
) -> None:
    backend = opened(device)
    api = tuple(limit for limit in backend.limits() if limit.kind == "api" and device.startswith(limit.device))
    monkeypatch.setattr(backend, "_refused", {})  # else the backend answers for its device
    tried = 0
    for limit in api:
        if "supports_op" in limit.source:
            case = beyond_only(limit, tuple(other for other in api if other.op in (limit.op, "*")))
            if case is not None:
                tried += 1
                assert backend.supports(case) is not None, f"{limit}: {case}"
    assert tried >= least
