"""ggml's C interface on real libraries: functions that a build lacks, where a tensor's fields are, what nodes hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import opconform.backends.ggml
from opconform.backends.ggml import structs
from opconform.backends.ggml.arena import Arena
from opconform.backends.ggml.binding import Binding, MissingError
from opconform.backends.ggml.declarations import CONSTANTS, Declarations
from opconform.backends.ggml.library import REMEDY, VARIABLE, Library, library_files, load
from opconform.backends.ggml.ops import OPS
from opconform.backends.ggml.rows import Row
from opconform.harness.draw.sample import cases_drawn
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Unavailable
from tests.judge import OPS as SINGLE

HEADER = (Path(opconform.backends.ggml.__file__).parent / "declarations.h").read_text()
BUILDS = tuple(f"{VARIABLE}{which}" for which in ("", "_OLD", "_BROKEN", "_FIXED"))


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
def arena(library: Library) -> Arena:
    return Arena(library, library.devices()["CPU"])


def bound(library: Library, header: str) -> Binding:
    """The loaded library with other declarations."""
    files = [file for file in library_files(library.folder) if file]
    return Binding(files, Declarations.read(header))


# ---- functions -------------------------------------------------------------------------------------------------------


def test_a_function_that_a_build_lacks_is_named_with_the_build(library: Library) -> None:
    c = bound(library, HEADER + "\nstruct ggml_tensor * ggml_no_such(struct ggml_context * ctx);\n")
    c.what = library.c.what
    for _ in range(2):
        with pytest.raises(MissingError, match=rf"^this libggml \({library.build}\) has no ggml_no_such$"):
            c.require("ggml_no_such")
    assert not c.has("ggml_no_such")
    assert c.has("ggml_init")


def test_a_function_that_is_not_declared_is_no_attribute(library: Library) -> None:
    with pytest.raises(AttributeError, match=r"declarations\.h declares no ggml_inti"):
        library.c.ggml_inti  # noqa: B018


def test_without_cffi_the_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch, library: Library) -> None:
    monkeypatch.setitem(sys.modules, "cffi", None)
    with pytest.raises(Unavailable, match="cffi is not installed") as caught:
        Binding([])
    assert caught.value.remedy == 'pip install "opconform[ggml]"'


# ---- the struct ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", BUILDS)
def test_every_build_keeps_its_tensors_as_declared(variable: str) -> None:
    command = (
        f"from opconform.backends.ggml.library import load; print(load({{'ggml_lib': {folder_in(variable)!r}}}).build)"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "fields"),
    [
        ("    int64_t ne[4];\n    size_t nb[4];\n", "    size_t nb[4];\n    int64_t ne[4];\n", "ne, nb"),
        ("int32_t op_params[16];", "int32_t op_params[17];", "op_params, flags"),
        ("struct ggml_tensor * src[10];", "struct ggml_tensor * src[9];", "src, view_src, view_offs, data, name"),
        ("struct ggml_tensor * src[10];", "struct ggml_tensor * src[6];", "src, view_src, view_offs, data, name"),
        ("    size_t view_offs;\n    void * data;\n", "    void * data;\n    size_t view_offs;\n", "view_offs, data"),
        ("    int type;\n", "    int before;\n    int type;\n", "type"),
        ("    int op;\n", "    int before;\n    int op;\n", "op, op_params, flags"),
        ("    char name[64];", "    void * before;\n    char name[64];", "name"),
    ],
)
def test_a_field_in_another_place_is_noticed(library: Library, right: str, wrong: str, fields: str) -> None:
    assert HEADER.count(right) == 1
    with pytest.raises(Unavailable, match=rf"does not keep {fields}\b.* of a tensor where declarations.h says"):
        structs.check(bound(library, HEADER.replace(right, wrong)))
    structs.check(bound(library, HEADER))


def test_a_type_with_another_number_is_noticed(library: Library) -> None:
    with pytest.raises(Unavailable, match="does not number the type bf16 29"):
        structs.check(bound(library, HEADER.replace("GGML_TYPE_BF16 = 30", "GGML_TYPE_BF16 = 29")))


# ---- nodes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [op for op in OPS if op in SINGLE])
def test_a_node_holds_what_its_row_says(library: Library, arena: Arena, op: str) -> None:
    row, names, seen = OPS[op], {"acc": "ACC", "set": "SET"}, 0
    backend = opconform.backends.ggml.GgmlBackend("CPU", {"ggml_lib": str(library.folder)})
    limits = tuple(limit for limit in backend.limits() if limit.op == op)
    for case in cases_drawn(ops()[op], Freedom(limits, 1 << 12), 40):  # a constructor aborts at what it does not take
        if backend.supports(case) is not None:
            continue
        nodes = arena.build(case, row)
        (node,), words = nodes.outs, row.op_params(case)
        name = library.c.text(library.c.ggml_op_name(node.op))
        assert name in (names.get(op, op.upper()), "UNARY")  # which unary op it is stands in op_params
        held = list(node.op_params)[1 if name == "UNARY" else 0 :]
        assert held == words + [0] * (len(held) - len(words))
        assert row.read(held) == row.read(words)
        assert [node.src[place] for place in range(len(row.tensors))] == [nodes[name] for name in row.tensors]
        assert row.writes_into(case) == (node.view_src != nodes.null)
        seen += 1
    assert seen


F32 = Layout.contiguous("f32", (1, 1, 1, 8))


@pytest.fixture
def rope(library: Library) -> tuple[Binding, Row]:
    """The loaded library, and a row for its ggml_rope_multi."""
    return (
        bound(library, HEADER),
        Row(
            "rope",
            "ggml_rope_multi(x, positions, factors?, n_dims, {s0 s1 s2 s3}, mode, 0, base, 1, 0, 1, 0, 0)",
            stored="0 n_dims mode 0 0 base",
            mixed=True,
            declarations=Declarations.read(HEADER),
        ),
    )


def test_null_and_arrays_reach_ggml(rope: tuple[Binding, Row]) -> None:
    c, row = rope
    context = c.ggml_init(c.ffi.new("struct ggml_init_params *", [8 * c.ggml_tensor_overhead(), c.null, True])[0])
    made = {
        "x": c.ggml_new_tensor_4d(context, CONSTANTS["GGML_TYPE_F32"], 8, 1, 1, 1),
        "positions": c.ggml_new_tensor_1d(context, CONSTANTS["GGML_TYPE_I32"], 4),
        "factors": c.ggml_new_tensor_1d(context, CONSTANTS["GGML_TYPE_F32"], 4),
    }
    params = {"n_dims": 8, "mode": 8, "base": 10000.0, "s0": 1, "s1": 2, "s2": 3, "s3": 4}
    inputs = {"x": F32, "positions": Layout.contiguous("i32", (4,))}
    for more in ({}, {"factors": Layout.contiguous("f32", (4,))}):
        case = Case("rope", params, {**inputs, **more}, {"out": F32})
        node = c.ggml_rope_multi(context, *row.values(case, made.__getitem__, c.null))
        assert node.src[2] == (made["factors"] if more else c.null)
        assert list(node.op_params)[11:15] == [1, 2, 3, 4]
        assert list(node.op_params)[:6] == row.op_params(case)
        assert row.read(node.op_params) == {"n_dims": 8, "mode": 8, "base": 10000.0}
    c.ggml_free(context)


def test_several_results_stand_in_one_tensor(arena: Arena) -> None:
    sizes = {"q": (1, 2, 1, 4), "k": (1, 2, 1, 4), "v": (1, 2, 3, 4), "g": (1, 2, 3, 1), "beta": (1, 2, 3, 1)}
    inputs = {name: Layout.contiguous("f32", shape) for name, shape in {**sizes, "state": (1, 3, 4, 4)}.items()}
    outputs = {"out": inputs["v"], "state_out": Layout.contiguous("f32", (2, 3, 4, 4))}
    case = Case("gated_delta_net", {"snapshots": 2, "l2norm": False}, inputs, outputs)
    row, nodes = OPS["gated_delta_net"], arena.compose(case, lambda nodes: None)
    node = nodes.call(row.symbol, *row.values(case, nodes.__getitem__, nodes.null))
    assert np.prod(nodes.ne(node)) == sum(layout.size for layout in outputs.values())
    nodes.write_results(row, node)
    assert [(copied.src[0].view_offs, nodes.ne(copied)) for copied in nodes.outs] == [
        (0, (4, 3, 2, 1)),
        (outputs["out"].end, (4, 4, 3, 2)),
    ]
    assert row.read(node.op_params) == {"snapshots": 2}
