"""ggml's C interface as data: what `declarations.h` declares, and rows that are read both ways. Without a libggml."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cffi import FFI
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

import opconform.backends.ggml
from opconform.backends.ggml import spelling
from opconform.backends.ggml.calls import calls_of
from opconform.backends.ggml.declarations import DECLARATIONS, TYPES, Declarations
from opconform.backends.ggml.limits import limits_of
from opconform.backends.ggml.ops import OPS
from opconform.backends.ggml.pieces import BUILDS as PIECES
from opconform.backends.ggml.rows import Argument, Row
from opconform.harness.draw.known import known_cases
from opconform.harness.model.case import Case, Param
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom, Limit
from opconform.harness.model.ops import ops
from tests.judge import OPS as SINGLE
from tests.judge import drawn_cases

FOLDER = Path(opconform.backends.ggml.__file__).parent
HEADER = (FOLDER / "declarations.h").read_text()
ROPE = """
struct ggml_tensor * ggml_rope_multi(struct ggml_context * ctx, struct ggml_tensor * a, struct ggml_tensor * b,
    struct ggml_tensor * c, int n_dims, int sections[4], int mode, int n_ctx_orig, float freq_base, float freq_scale,
    float ext_factor, float attn_factor, float beta_fast, float beta_slow);
"""
ROPE_FLOATS = ("freq_base", "freq_scale", "ext_factor", "attn_factor", "beta_fast", "beta_slow")

#: What rows can say that no op of today needs.
MORE = (
    Row("soft_max", "ggml_soft_max_ext(x, mask?, scale, 0.0)", stored="scale 0", mixed=True),
    Row("attention", "ggml_flash_attn_ext(q, k, v, NULL, scale, 0, 0)"),
    Row("repeat", "ggml_repeat_4d(x, out.ne0, out.ne1, out.ne2, out.ne3)"),
    Row("empty", "ggml_new_tensor_4d(out.type, 1, 2, 3, 4)"),
    Row("upper", "ggml_tri(x, GGML_TRI_TYPE_UPPER)"),
    Row(
        "rope",
        "ggml_rope_multi(x, positions, factors?, n_dims, {s0 s1 s2 s3}, mode, n_ctx, " + ", ".join(ROPE_FLOATS) + ")",
        stored=f"0 n_dims mode 0 n_ctx {' '.join(ROPE_FLOATS)} s0 s1 s2 s3",
        declarations=Declarations.read(HEADER + ROPE),
    ),
)
ALL = {row.op: row for row in (*OPS.values(), *MORE)}
ONE = Layout.contiguous("f32", (2, 3, 4, 5))


def value_of(argument: Argument) -> st.SearchStrategy[Any]:
    """Anything that a parameter of its C type can be."""
    if argument.choices:
        return st.sampled_from(sorted(argument.choices))
    if argument.type == "bool":
        return st.booleans()
    if argument.type == "float":
        return st.floats(width=32, allow_nan=False)
    return st.integers(0 if argument.type == "size_t" else -(2**31), 2**31 - 1)


@st.composite
def cases_of(draw: st.DrawFn, op: str) -> Case:
    """Cases with any parameters, with and without the tensors that may be left out; in place where ggml can."""
    row = ALL[op]
    whole = st.integers(-(2**24), 2**24).map(float)  # what C takes as a float and the constructor stores as an integer
    params = {
        name: draw(whole if f"int({name})" in (row.stored or "") else value_of(it), name)
        for it in row.arguments
        for name in it.params
    }
    names = [
        it.names[0] for it in row.arguments if it.is_tensor and it.names and (not it.is_optional or draw(st.booleans()))
    ]
    inplace = draw(st.sampled_from([None, names[0]])) if row.inplace else None
    inputs = {name: ONE for name in names if name != "out"}
    return Case(row.op, params, inputs, dict.fromkeys(row.results or ("out",), ONE), inplace=inplace)


def same(got: dict[str, Param], want: dict[str, Param]) -> bool:
    """Whether they are equal, numbers of float32 as such."""
    with np.errstate(over="ignore"):
        return got.keys() == want.keys() and all(
            np.float32(got[name]) == np.float32(want[name])
            if isinstance(want[name], float)
            else got[name] == want[name]  # type: ignore[arg-type]
            for name in want
        )


def stored_as(name: str) -> set[str]:
    """The words by which a row says that a node holds a parameter."""
    return {name, f"int({name})"}


@pytest.mark.parametrize("op", ALL)
@given(st.data())
def test_a_row_is_read_both_ways(op: str, data: st.DataObject) -> None:
    row, case = ALL[op], data.draw(cases_of(op))
    whole = {name: case.params[name] for name in row.params}
    stored = {
        name: value for name, value in whole.items() if row.stored is None or stored_as(name) & {*row.stored.split()}
    }
    words = row.op_params(case)
    assert len(words) <= 16
    assert all(-(2**31) <= word < 2**31 for word in words)
    assert same(row.read(words), stored)
    assert same(row.read_cpp(row.cpp(case)), whole)


@pytest.mark.parametrize("op", [op for op in OPS if op in SINGLE])
def test_the_cases_of_an_op_have_what_its_row_names(op: str) -> None:
    row = OPS[op]
    for case in drawn_cases(op, 20, 1 << 12, 4):
        assert set(row.tensors) <= case.layouts.keys()
        assert same(row.read_cpp(row.cpp(case)), {name: case.params[name] for name in row.params})


def test_a_tensor_that_is_left_out_is_null() -> None:
    row = MORE[0]
    with_mask = Case("soft_max", {"scale": 0.5}, {"x": ONE, "mask": ONE}, {"out": ONE})
    without = Case("soft_max", {"scale": 0.5}, {"x": ONE}, {"out": ONE})
    assert row.values(with_mask, str) == ["x", "mask", 0.5, 0.0]
    assert row.values(without, str) == ["x", None, 0.5, 0.0]
    assert row.cpp(without) == "ggml_soft_max_ext(ctx, x, nullptr, 0.5f, 0.0f)"
    assert calls_of(without, row).calls[-1].python() == "out = ggml.ggml_soft_max_ext(context, x, None, 0.5, 0.0)"
    assert (
        MORE[1]
        .cpp(Case("attention", {"scale": 1.0}, dict.fromkeys("qkv", ONE), {"out": ONE}))
        .endswith("(ctx, q, k, v, nullptr, 1.0f, 0.0f, 0.0f)")
    )


def test_without_its_in_place_twin_a_constructor_that_once_worked_in_place_still_does() -> None:
    params = {"min": -1.0, "max": 1.0}
    apart = Case("clamp", params, {"x": ONE}, {"out": ONE})
    inplace = Case("clamp", params, {"x": ONE}, {"out": ONE}, inplace="x")
    row = OPS["clamp"]
    assert [row.symbol_for(case) for case in (apart, inplace)] == ["ggml_clamp", "ggml_clamp_inplace"]
    assert [row.symbol_for(case, lambda name: False) for case in (apart, inplace)] == ["", "ggml_clamp"]
    assert calls_of(inplace, row, has=lambda name: False).calls[-1].function == "ggml_clamp"
    assert OPS["exp"].symbol_for(replace(inplace, op="exp"), lambda name: False) == "ggml_exp_inplace"


def test_an_array_stands_for_several_parameters() -> None:
    row, params = MORE[-1], {"n_dims": 8, "mode": 24, "n_ctx": 64, **dict.fromkeys(ROPE_FLOATS, 1.0)}
    case = Case("rope", {**params, "s0": 1, "s1": 2, "s2": 3, "s3": 4}, {"x": ONE, "positions": ONE}, {"out": ONE})
    assert row.values(case, str)[:7] == ["x", "positions", None, 8, [1, 2, 3, 4], 24, 64]
    assert "nullptr, 8, std::array<int, 4>{1, 2, 3, 4}.data(), 24, 64, 1.0f" in row.cpp(case)
    assert spelling.python("int *", [1, 2, 3, 4]) == "(c_int * 4)(1, 2, 3, 4)"
    one = int(np.float32(1).view(np.int32))
    assert row.op_params(case) == [0, 8, 24, 0, 64, *[one] * 6, 1, 2, 3, 4]


def test_sizes_types_and_enumerators_stand_in_a_call() -> None:
    case = Case("repeat", {}, {"x": ONE}, {"out": Layout.contiguous("bf16", (5, 6, 7))})
    assert MORE[2].cpp(case) == "ggml_repeat_4d(ctx, x, 7, 6, 5, 1)"
    assert MORE[3].cpp(case) == "ggml_new_tensor_4d(ctx, GGML_TYPE_BF16, 1, 2, 3, 4)"
    assert MORE[4].cpp(case) == "ggml_tri(ctx, x, GGML_TRI_TYPE_UPPER)"


@pytest.mark.parametrize(
    ("call", "more", "says"),
    [
        ("ggml_cumsumm(x)", {}, "ggml_cumsumm is not declared"),
        ("ggml_free(x)", {}, "ggml_free is not declared as a function that makes a tensor"),
        ("ggml_cumsum(x, axis)", {}, "has other arguments than struct ggml_tensor * ggml_cumsum"),
        ("ggml_acc(a, b, nb1, nb2, nb3, offset)", {"inplace": "ggml_cumsum"}, "has other arguments"),
        ("ggml_l2_norm(x, eps)", {"stored": "epsilon"}, "has no epsilon to store"),
        ("ggml_l2_norm", {}, "is no call"),
        ("ggml_l2_norm(x, {a b})", {}, "{a b} is nothing for a float"),
        ("ggml_fill(x, out.ne4)", {}, "out.ne4 is nothing for a float"),
    ],
)
def test_a_row_that_does_not_fit_its_declaration_is_an_error(call: str, more: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Row("op", call, **more)  # type: ignore[arg-type]


def test_cffi_reads_the_same_functions_and_enumerators() -> None:
    ffi = FFI()
    ffi.cdef(HEADER)
    c = ffi.dlopen(None)
    declared = {name for name in dir(c) if name.startswith("ggml_")}
    assert declared == DECLARATIONS.functions.keys()
    assert {name: getattr(c, name) for name in dir(c) if name.startswith("GGML_")} == {
        name: number for enum in DECLARATIONS.enums.values() for name, number in enum.items()
    }
    assert [name for name, _ in ffi.typeof("struct ggml_tensor").fields] == [
        name for _, name, _ in DECLARATIONS.structs["ggml_tensor"]
    ]
    assert {"f32": 0, "f16": 1, "bf16": 30, "i32": 26, "q4_0": 2}.items() <= TYPES.items()
    numbers = {name.lower(): number for name, number in TYPES.items()}
    assert numbers.items() <= {it.name.lower(): int(it) for it in GGMLQuantizationType}.items()


#: Methods of `Nodes` that take a function's name without its prefix.
_MAKERS = ("make", "unasked")


def used_in(source: str) -> Iterator[str]:
    """The functions of ggml that Python source calls."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr.startswith(("ggml_", "llama_")):
            yield node.attr
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name)) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            first = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            if isinstance(first, str) and name in _MAKERS:
                yield f"ggml_{first}"
            if isinstance(first, str) and name in ("call", "has", "require"):
                yield first


USED = {name: file.name for file in sorted(FOLDER.glob("*.py")) for name in used_in(file.read_text())}


def test_every_function_that_is_called_is_declared() -> None:
    assert len(USED) > 60
    assert {name: file for name, file in USED.items() if name not in DECLARATIONS.functions} == {}
    mistyped = "c.ggml_inti(p)\nnodes.make('cumsumm', x)\nnodes.call('ggml_x', x)"
    assert set(used_in(mistyped)) == {"ggml_inti", "ggml_cumsumm", "ggml_x"}


def every_limit() -> set[Limit]:
    """Those of all builds, on the devices that the tests have."""
    given = itertools.product(
        ("CPU", "Vulkan0"), (True, False), ("", "llvmpipe"), ("b6673", "b7836", "b8121", "v0.5.0")
    )
    return {limit for device, *more in given for limit in limits_of(device, more[0], more[1], more[2], True)}


def test_each_wrong_answer_of_ggml_that_a_known_case_pins_has_a_line() -> None:
    """But for a fault of the driver alone."""
    listed = (Path(__file__).parents[2] / "docs" / "bugs.md").read_text(encoding="utf-8")
    pinned = {limit.pinned for limit in every_limit() if limit.pinned}
    assert len(pinned) > 50
    assert {name for name in pinned if f"`{name}`" not in listed} == {"solve_tri/lavapipe-unread-triangle"}


def test_what_a_kernel_wants_is_loud_and_a_wrong_answer_is_pinned() -> None:
    """A precondition of a kernel ends in an abort, or takes a driver long; one that gives a wrong answer is a bug. What
    pieces have from the ops of their nodes is pinned there."""
    loud = re.compile(r"abort|assert|SIGFPE|dies|lavapipe (compiles|takes)")
    own = [limit for limit in every_limit() if limit.op not in {*PIECES, "rms_norm_mul_rope_set_rows"}]
    assert [limit for limit in own if limit.kind == "kernel" and not loud.search(limit.reason)] == []
    assert [limit for limit in own if limit.kind == "bug" and not limit.pinned] == []
    assert {limit.pinned for limit in own} >= {
        *("set/vulkan-transposed-a", "ssm_conv/vulkan-step-x", "ssm_conv/vulkan-step-c"),
        "rope_set_rows/vulkan-pos-offset",
    }


def test_the_tokens_of_a_scan_may_be_apart_and_their_rows_not() -> None:
    case = known_cases()["ssm_scan/mamba-2-parts"].case
    limits = [limit for limit in limits_of("CPU", True, "", "v0.5.0", True) if limit.op == case.op]
    forbid = partial(Freedom(tuple(limits)).forbids, traits=ops()[case.op].traits)
    assert forbid(case) is None
    for name in ("x", "b", "c"):
        (*outer, heads, step) = case.inputs[name].strides
        apart = replace(case.inputs[name], strides=(*outer, heads + step, step))
        limit = forbid(replace(case, inputs={**case.inputs, name: apart}, shares={}))
        assert limit is not None
        assert "nb1 of x, b and c" in limit.reason


def test_every_declared_function_is_called() -> None:
    text = "".join(
        file.read_text()
        for file in (*FOLDER.glob("*.j2"), FOLDER / "ops.py", FOLDER / "library.py", *FOLDER.glob("llama/*.py"))
    )
    unused = DECLARATIONS.functions.keys() - USED.keys() - set(re.findall(r"\bggml_\w+", text))
    assert unused <= DECLARATIONS.makers  # a row of another package may name any function that makes a node
