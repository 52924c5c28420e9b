"""What kernels are told: fields are filled by their names, and sources are made of files that keep their lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from opconform.backends.cuda import CudaBackend
from opconform.backends.kernels.families import ELEMENTWISE, Elementwise, Row
from opconform.backends.kernels.fields import Values, bits
from opconform.backends.kernels.own_buffers import SHARED, fields, source_for
from opconform.backends.kernels.source import Field, files_of, found_in, struct_in, whole
from opconform.backends.kernels.table import KERNELS
from opconform.backends.opencl import OpenCLBackend
from opconform.backends.vulkan import VulkanBackend
from opconform.backends.vulkan.dispatches import PARTS, TABLE_WORDS, WORDS, Blocks, dispatches
from opconform.harness.model.buffers import GUARD
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout

SOURCE = """
struct arguments {
    ulong x_ne[4];    // sizes
    ulong x_start;
    float_bits eps;   // not ulong other;
};
"""


def test_a_struct_is_read_with_its_fields() -> None:
    struct = struct_in(SOURCE)
    assert struct.fields == (
        Field("x_ne", 4, False, "x", "ne"),
        Field("x_start", 1, False, "x", "start"),
        Field("eps", 1, True),
    )
    assert struct.places == {"x_ne": 0, "x_start": 4, "eps": 5}
    assert struct.by_name(range(6)) == [("x_ne", [0, 1, 2, 3]), ("x_start", [4]), ("eps", [5])]


def case(**params: float) -> Case:
    x = Layout("f16", (1, 1, 1, 5), (80, 80, 80, 16), offset=6)
    return Case("l2_norm", params, {"x": x}, {"out": Layout.contiguous("f16", (1, 1, 1, 5))})


def test_fields_are_filled_by_their_names() -> None:
    given = case(eps=0.5)
    values = Values(given, lambda name: (100, given.layouts[name]) if name in given.layouts else None)
    assert values.numbers(struct_in(SOURCE)) == [5, 1, 1, 1, 100, bits(0.5)]


def test_a_field_that_nothing_is_known_of_is_an_error() -> None:
    values = Values(case(), lambda name: None, absent=("x",))
    with pytest.raises(LookupError, match="l2_norm has nothing for the field eps"):
        values.numbers(struct_in(SOURCE))


def test_a_field_with_another_number_of_numbers_is_an_error() -> None:
    values = Values(case(eps=1.0), lambda name: None, own={"x_ne": [1, 2]}, absent=("x",))
    with pytest.raises(LookupError, match="the field x_ne takes 4 numbers, not 2"):
        values.numbers(struct_in(SOURCE))


def test_places_are_counted_from_the_start_of_an_arguments_own_buffer() -> None:
    x = Layout.contiguous("f32", (1, 1, 2, 3), offset=8)
    moved = Case("cont", {}, {"x": x}, {"out": Layout.contiguous("f32", x.shape)})
    struct = OpenCLBackend.source("cont").struct
    found = dict(struct.by_name(fields(KERNELS["cont"], struct, moved)))
    assert found["x_start"] == [GUARD + 8]
    assert found["out_start"] == [GUARD]
    assert found["x_nb"] == [4, 12, 0, 0]


def test_every_file_of_opencl_and_cuda_has_the_same_struct() -> None:
    for op in KERNELS:
        assert OpenCLBackend.source(op).struct == CudaBackend.source(op).struct
        assert OpenCLBackend.source(op).struct.fields


@pytest.mark.parametrize("op", KERNELS)
def test_a_shaders_fields_fit_into_what_every_device_has(op: str) -> None:
    blocks = Blocks.of(VulkanBackend.source(op).text)
    assert 0 < sum(field.count for field in blocks.pushed.fields) <= WORDS
    assert sum(field.count for field in blocks.table.fields) <= TABLE_WORDS


def test_a_file_is_included_once_and_its_absence_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("int a;\n")
    (tmp_path / "b.h").write_text('#include "a.h"\n#include "made.h"\n')
    (tmp_path / "k.cl").write_text('#include "a.h"\n#include "b.h"\nint k;\n')
    files = files_of(tmp_path / "k.cl", made={"made.h": "int made;\n"})
    assert next(iter(files)) == "k.cl"
    assert [whole("k.cl", files).count(f"int {name};") for name in ("a", "made", "k")] == [1, 1, 1]
    with pytest.raises(FileNotFoundError, match=r"has made\.h"):
        files_of(tmp_path / "k.cl")


def test_a_shader_begins_with_its_version(tmp_path: Path) -> None:
    (tmp_path / "m.glsl").write_text("int m;\n")
    (tmp_path / "s.comp").write_text('#version 450\n#include "m.glsl"\nint s;\n')
    text = '#version 450\n#line 1 "m.glsl"\nint m;\n#line 3 "s.comp"\nint s;\n'
    assert whole("s.comp", files_of(tmp_path / "s.comp")) == text


def test_a_folder_of_ones_own_goes_before_and_lacks_what_it_lacks(tmp_path: Path) -> None:
    folders = (tmp_path, CudaBackend.kernels, SHARED)
    (tmp_path / "cumsum.cl").write_text("struct arguments { ulong mine; };\n")
    own = source_for("cumsum", KERNELS["cumsum"], folders, ".cu", ".cl")
    assert own.file == CudaBackend.kernels / "cumsum.cu"
    assert [field.name for field in own.struct.fields] == ["mine"]
    assert found_in(folders, "api.h") == SHARED / "api.h"


def test_a_formula_becomes_a_function_of_each_language() -> None:
    row = Elementwise("scale * x", parameters=("scale",))
    assert row.text(glsl=True) == (
        "float formula(float x, float unused_1, float scale, float unused_3) { return scale * x; }\n"
    )
    assert row.text(glsl=False) == (
        "DEVICE float formula(float x, float unused_1, float scale, float unused_3) "
        "{ (void)unused_1; (void)unused_3; return scale * x; }\n"
    )
    assert "#define SUMS 2\n" in Row("x", "second_sum", second="x - sum").text(glsl=True)


def test_a_second_argument_has_fields_of_its_own() -> None:
    a, b = Layout.contiguous("f32", (1, 1, 2, 4)), Layout.contiguous("f16", (1, 1, 1, 2))
    struct = OpenCLBackend.source("add").struct
    pair = Case("add", {}, {"a": a, "b": b}, {"out": a})
    found = dict(struct.by_name(fields(KERNELS["add"], struct, pair)))
    assert (found["y_ne"], found["x_type"], found["y_type"]) == ([2, 1, 1, 1], [0], [1])
    alone = Case("exp", {}, {"x": a}, {"out": a})
    found = dict(struct.by_name(fields(KERNELS["exp"], struct, alone)))
    assert (found["y_ne"], found["y_type"]) == ([0, 0, 0, 0], [4])
    assert KERNELS["exp"].launches(alone)[0].buffers == ("x", "y", "out")
    assert set(ELEMENTWISE) <= set(KERNELS)


def test_a_walk_over_an_empty_cache_takes_no_step() -> None:
    shapes = {"q_nope": (1, 1, 1, 1), "q_pe": (1, 1, 1, 1), "c_kv": (1, 1, 3, 4), "k_pe": (1, 1, 3, 1)}
    shapes |= {"w_uk": (1, 1, 1, 4), "w_uv": (1, 1, 4, 1)}
    params = {"scale": 1.0, "form": "two_part", "causal": False, "kv_len": 0, "k_scale": 1.0, "v_scale": 1.0}
    inputs = {name: Layout.contiguous("f32", shape) for name, shape in shapes.items()}
    none = Case("mla_absorbed", params, inputs, {"out": Layout.contiguous("f32", (1, 1, 1, 1))})
    context = PARTS["mla_absorbed"].index("context")
    (walk,) = [dispatch for dispatch in dispatches(KERNELS["mla_absorbed"], none) if dispatch.part == context]
    assert walk.own == {"items": 4, "first": 0, "end": 0}


def test_what_is_packed_has_a_kernel_that_needs_no_index_of_an_axis() -> None:
    packed, column = Layout.contiguous("f32", (1, 1, 2, 3), offset=8), Layout("f32", (1, 1, 2, 3), (24, 24, 4, 8))
    kernels = [
        KERNELS["cpy"].launches(Case("cpy", {}, {"x": x}, {"out": out}))[0].kernel
        for x, out in ((packed, packed), (column, packed), (packed, column))
    ]
    assert kernels == ["cpy_packed", "cpy", "cpy"]
