"""test_case.cpp: the case as a struct for ggml's tests/test-backend-ops.cpp, and as a line of its --test-file.

Upstream compares a device with the CPU device by the normalised mean squared error over all elements. Where that
cannot see the fault (it is the CPU's own, or too small), the struct brings the reference and the bound along.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from opconform.backends.ggml.graph import TYPES
from opconform.backends.ggml.limits import CONSTRUCTORS
from opconform.backends.ggml.ops import OPS
from opconform.harness.case import Case
from opconform.harness.dtypes import DType, Raw
from opconform.harness.layouts import Layout, contiguous_strides
from opconform.reports.repro.apis import four_nb
from opconform.reports.repro.escape import identifier
from opconform.reports.repro.facts import Facts
from opconform.reports.repro.rendering import render

LISTED = 4096  #: values that a struct lists; beyond them it takes upstream's random ones
_NMSE = 1e-7  #: upstream's limit
_UNREAD = 1024.0  #: stands for a NaN that the op must not read or keep apart: upstream takes any NaN for a failure

#: Parameters that C++ wants as an enum: (function, place after the tensors).
_ENUMS = {("ggml_tri", 0): "ggml_tri_type"}


def test_case(facts: Facts) -> str | None:
    """The file's text; None for an op that ggml does not have, or for a case that it cannot build."""
    case, binding = facts.case, OPS.get(facts.op.name)
    symbol = None if binding is None else binding.symbol_for(case)
    if symbol is None or not _can_be_built(facts):
        return None
    build = [line for name, layout in case.inputs.items() for line in _tensor(name, layout)]
    given = [_cpp(symbol, place, value, kind) for place, (value, kind) in enumerate(_typed(case, symbol))]
    out = next(iter(case.outputs))
    tensors = ["ctx", *case.inputs]
    if OPS[case.op].into:
        build += _tensor("into", case.outputs[out])
        tensors.append("into")
    build.append(f"ggml_tensor * {out} = {symbol}({', '.join([*tensors, *given])});")
    listed = sum(layout.size for layout in case.inputs.values()) <= LISTED
    expected, why = _expected(facts) if listed else (None, "")
    return render(
        "test_case.cpp.j2",
        op_name=op_name(facts),
        kind=facts.failure.kind.lower(),
        device=facts.failure.device,
        build=f"{facts.versions.get('build', '')} ggml {facts.versions.get('ggml', '')}",
        notes=_notes(facts, listed),
        name=f"test_{identifier(case.id)}",
        vars=str(case)[len(case.op) + 1 : -1],
        build_lines=build,
        out=out,
        fills=[_fill(name, layout, facts.values[name]) for name, layout in case.inputs.items()] if listed else [],
        expected=expected,
        why_expected=why,
    )


def is_ggml(facts: Facts) -> bool:
    return facts.target.spec == "ggml"


def _can_be_built(facts: Facts) -> bool:
    """Whether ggml's constructors take the case, wherever it was seen."""
    case = facts.case
    if is_ggml(facts):
        return True
    if any(layout.dtype not in TYPES for layout in case.layouts.values()):
        return False
    traits = facts.op.traits(case)
    return not any(limit.op == case.op and limit.forbids(case, traits) for limit in CONSTRUCTORS)


def op_name(facts: Facts) -> str:
    """What ggml_op_name gives."""
    return facts.op.name.upper()


def _notes(facts: Facts, listed: bool) -> list[str]:
    if is_ggml(facts):
        command = f"test-backend-ops test -o {op_name(facts)} -b {facts.target.device.id}"
        notes = [f"`{command}` fails while the fault is there."]
    else:
        notes = [f"It was seen with {facts.failure.target}, not with ggml: this asks ggml the same question."]
    if not listed:
        notes.append("The values are random: there are too many to list them. repro.py has the exact ones.")
    elif any(_has_nan(layout.type, facts.values[name]) for name, layout in facts.case.inputs.items()):
        notes.append(f"Where the case has NaN there is {_UNREAD:g} here: upstream takes every NaN for a failure.")
    if facts.failure.kind in ("WROTE OUTSIDE", "INPUT MODIFIED"):
        notes.append("The sentinels see a write outside only where it meets one of them; repro.py sees every byte.")
    if facts.repeats > 1:
        notes.append("It is wrong only now and then: run it several times.")
    return notes


def _tensor(name: str, layout: Layout) -> list[str]:
    """The lines that make an input: plain where ggml lays it out so, else a view of its memory."""
    kind = f"GGML_TYPE_{layout.dtype.upper()}"
    ne = (*layout.ne, 1, 1, 1, 1)[:4]
    packed = contiguous_strides(layout.shape, layout.type.itemsize)
    if layout.size == 0 or (layout.offset == 0 and layout.strides == packed):
        made = [f"ggml_tensor * {name} = ggml_new_tensor_4d(ctx, {kind}, {', '.join(map(str, ne))});"]
        return [*made, f'ggml_set_name({name}, "{name}");', ""]
    owner, nb = f"{name}_memory", four_nb(layout)
    return [
        f"ggml_tensor * {owner} = ggml_new_tensor_1d(ctx, {kind}, {layout.end // layout.type.itemsize});",
        f'ggml_set_name({owner}, "{name}");',
        f"ggml_tensor * {name} = ggml_view_1d(ctx, {owner}, 1, {layout.offset}); // of any strides:",
        *(f"{name}->ne[{i}] = {size}; {name}->nb[{i}] = {step};" for i, (size, step) in enumerate(zip(ne, nb))),
        "",
    ]


def _typed(case: Case, symbol: str) -> list[tuple[Any, Any]]:
    """The parameters after the tensors, each with its C type."""
    binding = OPS[case.op]
    values = binding.params(case)
    return list(zip(values, binding.arguments[len(binding.arguments) - len(values) :])) if values else []


def _cpp(symbol: str, place: int, value: Any, kind: Any) -> str:
    if (symbol, place) in _ENUMS:
        return f"({_ENUMS[symbol, place]}) {int(value)}"
    if kind is ctypes.c_bool:
        return "true" if value else "false"
    return _float(np.float32(value)) if kind is ctypes.c_float else str(int(value))


def _has_nan(dtype: DType, raw: Raw) -> bool:
    return dtype.is_float and bool(np.isnan(dtype.decode(raw)).any())


def _fill(name: str, layout: Layout, raw: Raw) -> dict[str, Any]:
    """How the memory of an input is filled: its elements in their places; the gaps hold what is never read."""
    dtype = layout.type
    raw = np.ascontiguousarray(raw)
    if dtype.is_float:
        bad = ~np.isfinite(dtype.decode(raw))
        raw = np.where(bad, dtype.encode(np.full(raw.shape, _UNREAD)), raw)
    plain = layout.size == 0 or (layout.offset == 0 and layout.strides == layout.packed().strides)
    memory = np.zeros(layout.size * dtype.itemsize if plain else layout.end, np.uint8)
    if not plain:
        memory.view(dtype.raw)[...] = dtype.encode(np.full(memory.size // dtype.itemsize, _UNREAD))
    (layout.packed() if plain else layout).array(memory)[...] = raw
    flat = memory.view(dtype.native)
    types = {"f32": "float", "f16": "uint16_t", "bf16": "uint16_t", "i32": "int32_t"}
    if dtype.name == "f32":
        digits = [_float(value) for value in flat]
    else:
        digits = [str(int(value)) for value in (flat if dtype.name == "i32" else memory.view(np.uint16))]
    about = [] if plain else [f"{_UNREAD:g} stands between the elements, where nothing must be read"]
    about += [f"bits of {dtype.name}"] if dtype.name in ("f16", "bf16") else []
    return {"name": name, "type": types[dtype.name], "about": "; ".join(about), "lines": _lines(digits)}


def _float(value: np.floating[Any]) -> str:
    """A float literal that reads back as this very number."""
    text = str(np.float32(value))
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _lines(digits: list[str]) -> list[str]:
    return textwrap.wrap(", ".join(digits), 96) or [""]


def _expected(facts: Facts) -> tuple[dict[str, list[str]] | None, str]:
    """What the output must be, where comparing with the CPU device would not show the fault, and why not."""
    wrong, on_cpu = facts.failure.wrong, facts.target.device.id.startswith("CPU")
    if facts.is_deadly or wrong is None or facts.op.judge is not None or facts.case.keep is not None:
        return None, ""
    if not on_cpu and not wrong.nmse <= 10 * _NMSE:
        return None, ""
    value, bound = facts.demands[facts.out].value, facts.demands[facts.out].bound
    if not np.isfinite(value).all() or value.size > LISTED:
        return None, ""
    why = "it is the CPU backend that is wrong" if on_cpu else "the error is too small for the NMSE"
    numbers = {"want": value, "bound": np.where(np.isinf(bound), 1e308, bound)}
    return {name: _lines([repr(float(x)) for x in array.flat]) for name, array in numbers.items()}, why


_OP_PARAMS: Mapping[str, Callable[[Case], list[int]]] = {
    "acc": lambda case: [*_view(case), int(case.inplace is not None)],
    "set": lambda case: [*_view(case), int(case.inplace is not None)],
    "cumsum": lambda case: [],
    "solve_tri": lambda case: [],
    "tri": lambda case: list(OPS["tri"].params(case)),
    "diag": lambda case: [],
    "l2_norm": lambda case: [int(np.float32(case.params["eps"]).view(np.int32))],
    "ssm_conv": lambda case: [],
    "sum_rows": lambda case: [],
    "cont": lambda case: [],
}  #: int32 words that the constructor stores in op_params


def _view(case: Case) -> list[int]:
    return [int(case.params[name]) for name in ("nb1", "nb2", "nb3", "offset")]


def test_file_line(facts: Facts) -> str | None:
    """The case as a line for `test-backend-ops --test-file`, with random values; None where that format has no room
    for it: an offset, elements that share memory, an op whose words are not known, a build that cannot be asked."""
    case, made = facts.case, _OP_PARAMS.get(facts.op.name)
    if not is_ggml(facts) or made is None:
        return None
    if any(layout.offset or layout.overlaps or four_nb(layout)[0] == 0 for layout in case.inputs.values()):
        return None
    number = _op_number(op_name(facts), facts.target.options.get("ggml_lib", ""))
    if number is None:
        return None
    out, params = next(iter(case.outputs.values())), made(case)
    words = [number, TYPES[out.dtype], *_four_ne(out), len(params), *params, len(case.inputs)]
    for layout in case.inputs.values():
        plain = layout.strides == layout.packed().strides
        words += [TYPES[layout.dtype], *_four_ne(layout), *([0] * 4 if plain else four_nb(layout))]
    return " ".join(map(str, words)) + f" {re.sub(r'[^A-Za-z0-9_-]', '_', case.id)}"


def _four_ne(layout: Layout) -> tuple[int, ...]:
    return (*layout.ne, 1, 1, 1, 1)[:4]


_ASK = """
import ctypes, sys
base = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
base.ggml_op_name.restype = ctypes.c_char_p
for number in range(200):
    if base.ggml_op_name(number) == sys.argv[2].encode():
        print(number)
        break
"""


def _op_number(name: str, folder: str) -> int | None:
    """An op's number in enum ggml_op, which differs from build to build: asked of libggml in a process of its own."""
    from opconform.backends.ggml.library import library_files
    from opconform.harness.backend import Unavailable
    from opconform.reports.repro.apis import ggml_folder

    try:
        base, registry = library_files(Path(ggml_folder(folder)))
    except (Unavailable, OSError, ValueError):
        return None
    command = [sys.executable, "-c", _ASK, str(base or registry), name]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return int(said) if said.isdecimal() else None
