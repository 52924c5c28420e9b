"""test_case.cpp: the case as a struct for ggml's tests/test-backend-ops.cpp, and as a line of its --test-file.

Upstream compares a device with the CPU device by the normalised mean squared error over all elements. Where that
cannot see the fault (it is the CPU's own, or too small), the struct brings the reference and the bound along.
"""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opconform.backends.ggml.calls import Call, Calls
from opconform.backends.ggml.declarations import DECLARATIONS, TYPES
from opconform.backends.ggml.graphs import GRAPHS
from opconform.backends.ggml.limits import CONSTRUCTORS, limits_of
from opconform.backends.ggml.llama.lines import NodeLines
from opconform.backends.ggml.nodes import four_nb, four_ne, is_plain
from opconform.backends.ggml.ops import OPS
from opconform.backends.ggml.recording import recorded
from opconform.backends.ggml.rows import Row
from opconform.backends.ggml.spelling import cpp_float
from opconform.harness.explain.companions import Companions
from opconform.harness.explain.facts import Demand, Facts
from opconform.harness.model.builds import Build
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DType, Raw
from opconform.harness.model.escape import identifier
from opconform.harness.model.findings import Kind
from opconform.harness.model.layouts import Layout
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.script import CannotWriteError
from opconform.harness.run.templates import render

LISTED = 4096  #: values that a struct lists; beyond them it takes upstream's random ones
_HERE = Path(__file__).parent
_NMSE = 1e-7  #: upstream's limit
_UNREAD = 1024.0  #: stands for a NaN that the op must not read or keep apart: upstream takes any NaN for a failure


class NoTestError(Exception):
    """This bundle has no test_case.cpp, and why, in one line."""


def companions(facts: Facts) -> Companions | None:
    """test_case.cpp and test_case.txt, and what the issue says of them; of ggml's own failures also why not."""
    files: dict[str, str] = {}
    lacks, line, ours = "", test_file_line(facts), is_ggml(facts)
    try:
        files["test_case.cpp"] = test_case(facts)
    except NoTestError as reason:
        lacks = str(reason)
    if line is not None:
        files["test_case.txt"] = f"{line}\n"
    if not files and not ours:
        return None
    upstream = _upstream(facts) if ours else {}
    says = render(_HERE / "test_case.md.j2", has_test=not lacks, lacks=lacks, line=line, upstream=upstream)
    device = facts.target.device.id if ours else ""
    return Companions(files, {"test_case.cpp": "cpp"} if not lacks else {}, says.strip(), device)


def _upstream(facts: Facts) -> dict[str, str]:
    """How test-backend-ops is run on the device."""
    device = facts.target.device.id
    number = re.fullmatch(r"Vulkan\d+", device) and os.environ.get("GGML_VK_VISIBLE_DEVICES", "0")
    environment = f"GGML_VK_VISIBLE_DEVICES={shlex.quote(number)} " if number else ""
    return {
        "run": f"{environment}test-backend-ops test -o {op_name(facts)} -b {shlex.quote(device)}",
        "file": f"{environment}test-backend-ops test --test-file test_case.txt -b {shlex.quote(device)}",
    }


def is_ggml(facts: Facts) -> bool:
    return facts.target.spec == "ggml"


def op_name(facts: Facts) -> str:
    """What ggml_op_desc gives."""
    row = OPS.get(facts.op.name)
    return facts.op.name.upper() if row is None else row.node


# ---- test_case.cpp ---------------------------------------------------------------------------------------------------


def test_case(facts: Facts) -> str:
    """The file's text. Raises `NoTestError` for an op that ggml does not have, or for a case that it cannot build."""
    case = facts.case
    build, out, demand, whole = (_graph if facts.op.name in GRAPHS else _single)(facts)
    listed = sum(layout.size for layout in case.inputs.values()) <= LISTED
    expected, why = _expected(facts, demand) if listed else (None, "")
    return render(
        _HERE / "test_case.cpp.j2",
        op_name=op_name(facts),
        kind=facts.failure.kind.lower(),
        device=facts.failure.device,
        build=str(Build.of(facts.versions)),
        notes=_notes(facts, listed),
        whole=whole,
        name=f"test_{identifier(case.id)}",
        vars=str(case)[len(case.op) + 1 : -1],
        build_lines=build,
        out=out,
        fills=[_fill(facts, names) for names in _memories(case).values()] if listed else [],
        expected=expected,
        why_expected=why,
    )


def _single(facts: Facts) -> tuple[list[str], str, Demand, bool]:
    """The lines that build an op of one node, the tensor that it gives, what is demanded of that, and False: upstream
    may compare each node."""
    case, row = facts.case, OPS.get(facts.op.name)
    if row is None or not row.symbol_for(case):
        raise NoTestError(f"ggml has no {'in-place ' if case.inplace else ''}{facts.op.name}")
    if not _can_be_built(facts):
        raise NoTestError(f"{row.symbol_for(case)} does not take this case")
    out = next(iter(case.outputs))
    build = [line for name in case.inputs for line in _tensor(case, name)]
    if out in row.tensors:
        build += _plain_or_view("place", case.outputs[out], case.outputs[out].end)
    call = row.cpp(case, lambda name: "place" if name == out else name)
    return [*build, f"ggml_tensor * {out} = {call};"], out, facts.demands[out], False


def _graph(facts: Facts) -> tuple[list[str], str, Demand, bool]:
    """The same for a graph of nodes, and True where it has several: upstream must compare the result alone then."""
    if not is_ggml(facts):
        raise NoTestError(f"for ggml {facts.op.name} is a graph of several nodes")
    try:
        graph = recorded(facts.request)[0]
    except CannotWriteError as reason:
        raise NoTestError(str(reason)) from None
    row, case, calls = OPS.get(facts.op.name), facts.case, graph.calls
    nodes = [call for call in calls if call.function not in _NO_NODES and call.function in DECLARATIONS.makers]
    node = next((call for call in nodes if row and call.function == row.symbol), None)
    if row is not None and node is not None and len(nodes) == 1:
        return _lines_to(case, calls, node), node.result, _joined(facts, row), False
    result = _copied_out(case, calls)
    lines = [*_lines_to(case, calls, result), *_first_nodes(case, graph, result)]
    return lines, result.result, facts.demands[next(iter(case.outputs))], True


def _copied_out(case: Case, calls: Sequence[Call]) -> Call:
    """The call that makes the one result of a graph: what is copied into the output, or written where it stands."""
    if len(case.outputs) > 1:
        raise NoTestError(f"it has the outputs {', '.join(case.outputs)}, of which test-backend-ops would compare one")
    (out,) = case.outputs
    made = {call.result: call for call in calls}
    parts = {out, *(call.result for call in calls if call.ne and call.arguments[0] == out)}
    into = [call for call in calls if call.function == "ggml_cpy" and call.arguments[1] in parts]
    if not into and case.inplace is not None:
        return calls[-1]
    if [call.arguments[1] for call in into] != [out]:
        raise NoTestError("its result is put together of several nodes, of which test-backend-ops would compare one")
    return made[str(into[0].arguments[0])]


def _lines_to(case: Case, calls: Sequence[Call], last: Call) -> list[str]:
    """The inputs, and what makes the result of a call of them."""
    needed, build = {last.result}, list[Call]()
    for call in reversed(calls[: calls.index(last) + 1]):
        if call.result in needed and call.result not in case.inputs:
            needed.update(name for name in call.arguments if isinstance(name, str))
            build.append(call)
    lines = [line for name in case.inputs for line in _tensor(case, name)]
    return [*lines, *(line for call in build[::-1] for line in _call_lines(call))]


def _first_nodes(case: Case, graph: Calls, result: Call) -> list[str]:
    """What the graph begins with: views and copies of inputs, or they would stand between nodes that are fused."""
    plain = {name for name, layout in case.inputs.items() if is_plain(layout) and name not in case.shares}
    written = {call.result for call in graph.calls if call.function == "ggml_cpy"} | {result.result}
    first = [name for name in graph.outs if name not in plain | written]
    if not first:
        return []
    expanded = (f"    ggml_build_forward_expand(gf, {name});" for name in first)
    return ["", "if (gf != nullptr) { // before the nodes that a backend may compute together", *expanded, "}"]


def _call_lines(call: Call) -> list[str]:
    if not call.ne:
        return [call.cpp()]
    owner, _, offset = call.arguments
    return _any_view(call.result, str(owner), offset, call.ne, call.nb)


#: What makes no node that computes: copies into and out of the outputs, memory, views.
_NO_NODES = ("ggml_view_1d", "ggml_new_tensor_1d", "ggml_new_tensor_4d", "ggml_reshape_4d", "ggml_cpy", "ggml_fill")


def _joined(facts: Facts, row: Row) -> Demand:
    """What is demanded of a node whose result holds all outputs, packed one after another."""
    names = row.results or tuple(facts.case.outputs)
    if not row.results and len(names) > 1:
        raise NoTestError(f"{row.symbol} writes into {', '.join(names)}, of which test-backend-ops would compare one")
    demands = [facts.demands[name] for name in names]
    joined = (
        np.concatenate([getattr(it, field).ravel() for it in demands]) for field in ("value", "bound", "exact", "free")
    )
    return Demand(*joined)


def _can_be_built(facts: Facts) -> bool:
    """Whether ggml's constructors take the case, wherever it was seen."""
    case = facts.case
    if is_ggml(facts):
        return True
    if any(layout.dtype not in TYPES for layout in case.layouts.values()):
        return False
    traits = facts.op.traits(case)
    return not any(limit.op == case.op and limit.forbids(case, traits) for limit in CONSTRUCTORS)


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
    if facts.failure.kind in (Kind.WROTE_OUTSIDE, Kind.INPUT_MODIFIED):
        notes.append("The sentinels see a write outside only where it meets one of them; repro.py sees every byte.")
    if facts.case.params.get("made"):
        notes.append("Upstream gives each result memory of its own: what the allocator lays over another is not seen.")
    if facts.repeats > 1:
        notes.append("It is wrong only now and then: run it several times.")
    reason = _cpu_aborts(facts)
    if reason:
        notes.append(f"It ends when the CPU device, with which upstream compares, comes to it: {reason}.")
    return notes


def _cpu_aborts(facts: Facts) -> str:
    """The precondition of the CPU device's kernel that the case does not meet, or nothing."""
    case, traits = facts.case, facts.op.traits(facts.case)
    limits = limits_of("CPU", True, "", facts.versions.get("build", ""), None)
    broken = (it for it in limits if it.op == case.op and it.kind == "kernel" and it.forbids(case, traits))
    return next((limit.reason for limit in broken), "")


# ---- tensors and their values ----------------------------------------------------------------------------------------


def _memories(case: Case) -> dict[str, list[str]]:
    """The inputs that lie in one memory, by the input that it belongs to."""
    found: dict[str, list[str]] = {}
    for name in case.inputs:
        found.setdefault(case.shares.get(name, name), []).append(name)
    return found


def _tensor(case: Case, name: str) -> list[str]:
    """The lines that make an input: plain where ggml lays it out so, else a view of its memory."""
    owner = case.shares.get(name, name)
    together = _memories(case)[owner]
    if len(together) == 1:
        return _plain_or_view(name, case.inputs[name], case.inputs[name].end)
    view = _view_lines(name, case.inputs[name], f"{owner}_memory")
    if name != together[0]:
        return view
    return [*_memory(owner, case.inputs[name], max(case.inputs[each].end for each in together)), *view]


def _plain_or_view(name: str, layout: Layout, end: int) -> list[str]:
    if not is_plain(layout):
        return [*_memory(name, layout, end), *_view_lines(name, layout, f"{name}_memory")]
    made = f"ggml_tensor * {name} = ggml_new_tensor_4d(ctx, {_kind(layout)}, {', '.join(map(str, four_ne(layout)))});"
    return [made, f'ggml_set_name({name}, "{name}");', ""]


def _kind(layout: Layout) -> str:
    return f"GGML_TYPE_{layout.dtype.upper()}"


def _memory(owner: str, layout: Layout, end: int) -> list[str]:
    count = end // layout.type.itemsize
    made = f"ggml_tensor * {owner}_memory = ggml_new_tensor_1d(ctx, {_kind(layout)}, {count});"
    return [made, f'ggml_set_name({owner}_memory, "{owner}");']


def _view_lines(name: str, layout: Layout, memory: str) -> list[str]:
    return _any_view(name, memory, layout.offset, four_ne(layout), four_nb(layout))


def _any_view(name: str, memory: str, offset: object, ne: Sequence[int], nb: Sequence[int]) -> list[str]:
    return [
        f"ggml_tensor * {name} = ggml_view_1d(ctx, {memory}, 1, {offset}); // of any strides:",
        *(f"{name}->ne[{i}] = {size}; {name}->nb[{i}] = {step};" for i, (size, step) in enumerate(zip(ne, nb))),
        "",
    ]


def _has_nan(dtype: DType, raw: Raw) -> bool:
    return dtype.is_float and bool(np.isnan(dtype.decode(raw)).any())


def _fill(facts: Facts, names: Sequence[str]) -> dict[str, Any]:
    """How the memory of inputs is filled: their elements in their places; the gaps hold what is never read."""
    layouts = {name: facts.case.inputs[name] for name in names}
    first = layouts[names[0]]
    if first.type.block > 1:
        raise NoTestError(f"{names[0]} is quantised, and test cases with blocks are not written; repro.py has them")
    dtype, plain = first.type, len(names) == 1 and is_plain(first)
    end = first.size * dtype.itemsize if plain else max(layout.end for layout in layouts.values())
    memory = np.zeros(end, np.uint8)
    if not plain:
        memory.view(dtype.raw)[...] = dtype.encode(np.full(memory.size // dtype.itemsize, _UNREAD))
    for name, layout in layouts.items():
        raw = np.ascontiguousarray(facts.values[name])
        if dtype.is_float:
            bad = ~np.isfinite(dtype.decode(raw))
            raw = np.where(bad, dtype.encode(np.full(raw.shape, _UNREAD)), raw)
        (layout.packed() if plain else layout).array(memory)[...] = raw
    flat = memory.view(dtype.native)
    whole = {f"i{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)}
    types = {"f32": "float", "f64": "double", "f16": "uint16_t", "bf16": "uint16_t", **whole}
    if dtype.name == "f32":
        digits = [cpp_float(value) for value in flat]
    elif dtype.name == "f64":
        digits = [repr(float(value)) for value in flat]
    else:
        digits = [str(int(value)) for value in (flat if dtype.name in whole else memory.view(np.uint16))]
    about = [] if plain else [f"{_UNREAD:g} stands between the elements, where nothing must be read"]
    about += [f"bits of {dtype.name}"] if dtype.name in ("f16", "bf16") else []
    owner = facts.case.shares.get(names[0], names[0])
    return {"name": owner, "type": types[dtype.name], "about": "; ".join(about), "lines": _lines(digits)}


def _lines(digits: list[str]) -> list[str]:
    return textwrap.wrap(", ".join(digits), 96) or [""]


def _expected(facts: Facts, demand: Demand) -> tuple[dict[str, list[str]] | None, str]:
    """What the output must be, where comparing with the CPU device would not show the fault, and why not."""
    wrong, on_cpu = facts.failure.wrong, facts.target.device.id.startswith("CPU")
    if facts.is_deadly or wrong is None or facts.op.composite.judge is not None or facts.case.keep is not None:
        return None, ""
    if not on_cpu and not wrong.nmse <= 10 * _NMSE:
        return None, ""
    value, bound = demand.value, demand.bound
    if not np.isfinite(value).all() or value.size > LISTED:
        return None, ""
    why = "it is the CPU backend that is wrong" if on_cpu else "the error is too small for the NMSE"
    numbers = {"want": value, "bound": np.where(np.isinf(bound), 1e308, bound)}
    return {name: _lines([repr(float(x)) for x in array.flat]) for name, array in numbers.items()}, why


# ---- test_case.txt ---------------------------------------------------------------------------------------------------


def test_file_line(facts: Facts) -> str | None:
    """The case as a line for `test-backend-ops --test-file`, with random values; None where that format has no room
    for it, upstream would compute something else (it gives each output memory of its own, and draws elements that meet
    twice), the CPU device cannot run it, or the build cannot be asked."""
    case, row = facts.case, OPS.get(facts.op.name)
    if not is_ggml(facts) or row is None or row.results or any(name in case.outputs for name in row.tensors):
        return None
    if any(layout.overlaps for layout in case.inputs.values()) or _cpu_aborts(facts):
        return None
    try:
        return NodeLines.of(facts.target.options).write(case, case.id)
    except (CaseError, Unavailable):
        return None
