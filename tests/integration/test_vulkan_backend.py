"""The Vulkan backend on every Vulkan device here, and its shader cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from opconform.backends.kernels.table import KERNELS
from opconform.backends.vulkan import VulkanBackend, shaders
from opconform.harness.model.buffers import Buffers, Plan
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Device, Unavailable
from tests.judge import Bench, cases_for

FOLDER = Path(shaders.__file__).parent
OPS = sorted(KERNELS.keys() & ops().keys())


def listed() -> tuple[list[Device], str]:
    """The devices, and where there is none, why."""
    try:
        return VulkanBackend.devices({}), ""
    except Unavailable as reason:
        return [], str(reason)


DEVICES, MISSING = listed()


def needs_vulkan() -> None:
    if MISSING:
        pytest.fail(MISSING) if os.environ.get("CI") == "true" else pytest.skip(MISSING)


@pytest.fixture(scope="module", params=DEVICES or (None,), ids=[device.description for device in DEVICES] or ["none"])
def device(request: pytest.FixtureRequest) -> Device:
    needs_vulkan()
    found: Device = request.param
    return found


@pytest.fixture(scope="module")
def backend(device: Device) -> VulkanBackend:
    return VulkanBackend(device.id, {})


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache; its folder of shaders."""
    needs_vulkan()
    monkeypatch.setenv("OPCONFORM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "spirv"


def untouched(dtype: str, size: int) -> Case:
    """A case that changes nothing: SET in place with an empty b."""
    a, b = Layout.contiguous(dtype, (1, 1, 1, size)), Layout.contiguous(dtype, (1, 1, 1, 0))
    params = {"nb1": 8, "nb2": 8, "nb3": 8, "offset": 0}
    return Case("set", params, {"a": a, "b": b}, {"out": a}, inplace="a")


def column_over_transposed(rows: int) -> Case:
    """SET of one column of a 2-column matrix that lies transposed: one work item for each of its elements."""
    a = Layout("f32", (1, 1, rows, 2), (8 * rows, 8 * rows, 4, 4 * rows))
    b = Layout.contiguous("f32", (1, 1, rows, 1))
    params = {"nb1": 8, "nb2": 8 * rows, "nb3": 8 * rows, "offset": 4}
    return Case("set", params, {"a": a, "b": b}, {"out": Layout.contiguous("f32", a.shape)}, recipe="index")


def short_lines(lines: int) -> Case:
    """CUMSUM along the outermost axis of one element: one work item for every element."""
    x = Layout.contiguous("f32", (1, 1, 1, lines))
    return Case("cumsum", {"axis": 3, "exclusive": False, "reverse": False}, {"x": x}, {"out": x}, recipe="index")


@pytest.mark.parametrize("op", OPS)
def test_every_drawn_case_passes(backend: VulkanBackend, device: Device, op: str) -> None:
    for case in cases_for(backend, op, 200, 1 << 20):
        assert Bench(case).passes(backend, device.numerics), case


def test_shapes_of_fewer_than_four_sizes_pass(backend: VulkanBackend, device: Device) -> None:
    line, matrix = Layout.contiguous("f32", (7,)), Layout.contiguous("f32", (5, 5), offset=8)
    sums = Case("cumsum", {"axis": 0, "exclusive": True, "reverse": True}, {"x": line}, {"out": line}, "normal")
    sides = {"a": matrix, "b": Layout.contiguous("f32", (3, 5))}
    solved = Case("solve_tri", {"left": False, "lower": True, "unit": False}, sides, {"out": sides["b"]}, "normal")
    for case in (sums, solved):
        assert Bench(case).passes(backend, device.numerics), case


@pytest.mark.parametrize(("dtype", "size"), [("f32", 1), ("f16", 7), ("i32", 100_003)])
def test_every_byte_of_the_arena_makes_the_round_trip(backend: VulkanBackend, dtype: str, size: int) -> None:
    case = untouched(dtype, size)
    before = np.random.default_rng(size).integers(0, 256, Plan.of(case).size, dtype=np.uint8)
    after = before.copy()
    backend.run(case, Buffers(case, after))
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("case", [column_over_transposed(2_097_121), short_lines(4_194_241)], ids=["set", "cumsum"])
def test_more_items_than_65535_workgroups_of_64(backend: VulkanBackend, device: Device, case: Case) -> None:
    assert case.outputs["out"].size > 65_535 * 64
    assert Bench(case).passes(backend, device.numerics)


def test_push_constants_keep_bits_that_read_as_nan(backend: VulkanBackend, cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "echo.comp"
    source.write_text(
        "#version 450\n"
        "layout(std430, binding = 0) buffer Memory { uint words[]; };\n"
        "layout(push_constant) uniform Arguments { uint sent[32]; };\n"
        "void main() { for (uint i = 0; i < 32; i++) { words[i] = sent[i]; } }\n"
    )
    kp, manager, zeros = backend._kp, backend._manager, np.zeros(32, np.uint32)
    bits = (0x7F800001, 0x7FBFFFFF, 0xFF800001, 0xFFFFFFFF, 1, 0x80000000, 0x7FC00000, 2**31 + 5)
    sent = np.array(bits * 4, np.uint32)
    tensor = manager.tensor_t(zeros)
    echo = manager.algorithm([tensor], shaders.spirv(source), (1, 1, 1), zeros[:0], zeros)
    manager.sequence().record(kp.OpAlgoDispatch(echo, sent)).record(kp.OpTensorSyncLocal([tensor])).eval()
    np.testing.assert_array_equal(tensor.data(), sent)


def test_an_op_without_a_shader_is_unsupported(backend: VulkanBackend) -> None:
    fft = Case("fft", {}, untouched("f32", 1).inputs, untouched("f32", 1).outputs)
    assert str(backend.supports(fft)).startswith("no kernel for fft: add backends/vulkan/fft.comp")


def test_a_type_without_a_shader_is_unsupported(backend: VulkanBackend) -> None:
    x = Layout.contiguous("f16", (1, 1, 1, 4))
    half = Case("cumsum", {"axis": 0, "exclusive": False, "reverse": False}, {"x": x}, {"out": x})
    assert backend.supports(half) == "cumsum.comp computes f32, not f16"


def test_a_case_larger_than_a_storage_buffer_is_unsupported(backend: VulkanBackend) -> None:
    assert "a storage buffer of this device has" in str(backend.supports(short_lines(1 << 31)))


def test_a_device_names_its_driver_and_versions(device: Device) -> None:
    assert device.description
    assert {"driver", "vulkan", "kompute"} <= device.versions.keys()


def test_an_unknown_device_is_unavailable() -> None:
    needs_vulkan()
    with pytest.raises(Unavailable, match=f"choose one from 0 to {len(DEVICES) - 1}"):
        VulkanBackend("99", {})


def test_without_a_driver_it_is_unavailable_and_says_what_to_install() -> None:
    needs_vulkan()
    listing = "from opconform.backends.vulkan import VulkanBackend; VulkanBackend.devices({})"
    without = {**os.environ, "VK_DRIVER_FILES": os.devnull, "VK_ICD_FILENAMES": os.devnull}
    done = subprocess.run([sys.executable, "-c", listing], env=without, capture_output=True, text=True)
    assert done.returncode == 1  # a Python exception: Kompute's own listing would crash here
    assert "apt-get install mesa-vulkan-drivers libvulkan1" in done.stderr


def test_without_kompute_it_is_unavailable_and_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kp", None)
    with pytest.raises(Unavailable, match="make setup"):
        VulkanBackend.devices({})


def test_without_a_compiler_it_is_unavailable_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs_vulkan()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt-get install glslc"):
        VulkanBackend.devices({})


@pytest.mark.parametrize("op", KERNELS)
def test_spirv_val_accepts_every_shader(cache: Path, op: str, tmp_path: Path) -> None:
    if shutil.which("spirv-val") is None:
        pytest.skip("spirv-val is not installed: apt-get install spirv-tools")
    module = tmp_path / "shader.spv"
    source = VulkanBackend.source(op)
    module.write_bytes(shaders.spirv(source.file, source.text))
    done = subprocess.run(["spirv-val", "--target-env", "vulkan1.1", module], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_kept_shader_is_not_compiled_again(cache: Path) -> None:
    shaders.spirv(FOLDER / "acc.comp")
    (kept,) = cache.iterdir()
    other = shaders.spirv(FOLDER / "set.comp")
    kept.write_bytes(other)  # whole SPIR-V that no compiler makes of acc.comp
    assert shaders.spirv(FOLDER / "acc.comp") == other


def test_a_changed_source_gets_an_entry_of_its_own(cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "cumsum.comp"
    shutil.copy(FOLDER / "cumsum.comp", source)
    shutil.copy(FOLDER / "memory.glsl", tmp_path)
    before = shaders.spirv(source)
    source.write_text(source.read_text().replace("float sum = 0.0;", "float sum = 1.0;"))
    assert shaders.spirv(source) != before
    assert len(list(cache.iterdir())) == 2


def test_a_changed_include_gets_an_entry_of_its_own(cache: Path, tmp_path: Path) -> None:
    for name in ("cumsum.comp", "memory.glsl"):
        shutil.copy(FOLDER / name, tmp_path)
    before = shaders.spirv(tmp_path / "cumsum.comp")
    included = tmp_path / "memory.glsl"
    included.write_text(included.read_text().replace("= floatBitsToUint(value)", "= 0"))
    assert shaders.spirv(tmp_path / "cumsum.comp") != before
    assert len(list(cache.iterdir())) == 2


def test_every_file_belongs_to_an_op() -> None:
    files = {kernel.stem(op) for op, kernel in KERNELS.items()}
    rates = {"product"}  # what a device's matrix rate is measured with
    assert {file.stem for file in FOLDER.glob("*.comp")} == files | rates


def test_another_compiler_gets_an_entry_of_its_own(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shaders.spirv(FOLDER / "acc.comp")
    newer = tmp_path / Path(shaders.find_compiler()).name
    newer.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo newer && exit\nexec {shaders.find_compiler()} "$@"\n')
    newer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    shaders.spirv(FOLDER / "acc.comp")
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "cut short", "other bytes"])
def test_a_damaged_entry_is_compiled_anew(cache: Path, damage: str) -> None:
    whole = shaders.spirv(FOLDER / "acc.comp")
    (kept,) = cache.iterdir()
    kept.write_bytes({"empty": b"", "cut short": whole[: len(whole) // 2 // 4 * 4], "other bytes": b"\0" * 400}[damage])
    assert shaders.spirv(FOLDER / "acc.comp") == whole
    assert kept.read_bytes() == whole
    assert list(cache.iterdir()) == [kept]


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needs_vulkan()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("OPCONFORM_CACHE", str(tmp_path / "file"))
    assert shaders.is_whole(shaders.spirv(FOLDER / "acc.comp"))


def test_a_source_that_does_not_compile_is_named_with_the_compilers_words(cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "broken.comp"
    source.write_text("#version 450\nvoid main() { nonsense; }\n")
    with pytest.raises(RuntimeError, match=r"(?s)broken\.comp does not compile.*nonsense"):
        shaders.spirv(source)
    assert not cache.exists()


def test_the_product_that_others_are_measured_by_is_right(backend: VulkanBackend) -> None:
    """Of whole numbers, so that every order of the sums gives the same; 12 is no multiple of a work-group."""
    rng, n = np.random.default_rng(0), 12
    product, kp = backend.product(n), backend._kp
    for there in product.tensors[:2]:
        there.data()[:] = rng.integers(-9, 10, n * n)
    backend._manager.sequence().record(kp.OpTensorSyncDevice(product.tensors)).eval()
    assert product.timed(2) > 0
    backend._manager.sequence().record(kp.OpTensorSyncLocal(product.tensors)).eval()
    a, b, found = (tensor.data().reshape(n, n) for tensor in product.tensors)
    np.testing.assert_array_equal(found, a @ b)
