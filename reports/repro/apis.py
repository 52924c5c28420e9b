"""The script of the ggml backend: ctypes; tensors at the addresses that the backend's arena gives them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from opconform.backends.ggml import GRAPHS, THREADS
from opconform.backends.ggml.graph import TYPES
from opconform.backends.ggml.library import FLOAT16_VARIABLE
from opconform.backends.ggml.ops import OPS
from opconform.harness.model.buffers import Plan
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout, contiguous_strides
from opconform.harness.run.script import CannotWriteError, Script, ScriptRequest
from opconform.harness.run.templates import script_of
from opconform.reports.repro.recording import C_TYPES, Recorded, ggml_folder, graphs_of

Row = TypeVar("Row")


def ggml(request: ScriptRequest) -> Script:
    """The graphs of the request. Raises `CannotWriteError`."""
    folder, device = ggml_folder(request.options.get("ggml_lib", "")), request.device
    many = request.op in GRAPHS
    if many:
        graphs = [_recorded(graph, plan) for graph, (_, _, plan) in zip(graphs_of(request), request.cases)]
    else:
        _row(OPS, request)
        graphs = [_single(case, plan, suffix) for suffix, case, plan in request.cases]
    used = {word for graph in graphs for line in graph.lines for word in re.findall(r"\b[A-Z]\w*", line)}
    symbols = {name: types for graph in graphs for name, types in graph.symbols.items()}
    floats = ", c_float" if any("c_float" in types for types in symbols.values()) else ""
    return script_of(
        Path(__file__).parent / "templates" / "ggml.py.j2",
        {
            "request": request,
            "library": _home(folder),
            "build": f"build {request.versions.get('build', '')}, ggml {request.versions.get('ggml', '')}",
            "types": sorted((name.upper(), number) for name, number in TYPES.items() if name.upper() in used),
            "threads": int(request.options.get("ggml_threads", THREADS)) if device.startswith("CPU") else 0,
            "views": any("= view(" in line for graph in graphs for line in graph.lines),
            "symbols": symbols,
            "parts": graphs,
            "owners": [owner for graph in graphs for owner in graph.owners],
            "initialised": [name for graph in graphs for name in graph.initialised],
            "many": many,
            "twin": len(request.cases) > 1,
            "context_size": (1 << 20) + 1024 * sum(len(graph.lines) for graph in graphs),
            "graph_size": sum(len(graph.lines) for graph in graphs) + 16,
            "half_off": device.startswith("Vulkan") and not os.environ.get(FLOAT16_VARIABLE),
        },
        imports=(
            *(f"import {name}" for name in ("ctypes", "os", "re", *(["functools"] if request.repeats > 1 else []))),
            f"from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p{floats}",
            "from pathlib import Path",
            "from types import SimpleNamespace",
        ),
        may_refuse=True,
        command="OPCONFORM_GGML_LIB=path/to/build/bin python repro.py",
        runs_with="the library",
    )


@dataclass
class _Graph:
    """The lines that build one case's tensors, the nodes that write the outputs, which tensors own memory (and where it
    begins), which are views of them, and the functions by name with their C types. `ends`: False where the last line
    is one that ends the process."""

    lines: list[str] = field(default_factory=list)
    outs: list[str] = field(default_factory=list)
    owners: list[tuple[str, int]] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)
    symbols: dict[str, str] = field(default_factory=dict)
    ends: bool = True


def _recorded(graph: Recorded, plan: Plan) -> _Graph:
    """A graph of many nodes."""
    found = _Graph(outs=list(graph.outs), initialised=list(graph.views), ends=graph.ends)
    found.owners = [(owner, plan.slots[name].start) for owner, name in graph.owners]
    for call in graph.calls:
        given = ", ".join((["context"] if call.in_context else []) + list(call.arguments))
        if call.ne:
            owner, _, offset = call.arguments
            line = f"{call.result} = view(ggml, context, {owner}, {offset}, {call.ne}, {call.nb})"
        else:
            line = f"{call.result}{' = ' if call.result else ''}ggml.{call.function}({given})"
            found.symbols[call.function] = ", ".join(("c_void_p" if call.result else "None", *call.types))
        found.lines.append(line + (f"  # stage {graph.shown[call.result]}" if call.result in graph.shown else ""))
    return found


def _single(case: Case, plan: Plan, suffix: str) -> _Graph:
    """The graph of one node."""
    graph, binding = _Graph(), OPS[case.op]
    symbol, out = str(binding.symbol_for(case)), next(iter(case.outputs))
    names = [
        _argument(graph, name + suffix, layout, plan.slots[name].start)
        for name, layout in (case.layouts if binding.into else case.inputs).items()
    ]
    made = f"written{suffix}" if binding.into else out + suffix
    graph.lines.append(f"{made} = ggml.{symbol}({', '.join(['context', *names, *map(repr, binding.params(case))])})")
    graph.symbols[symbol] = ", ".join(["c_void_p", *(C_TYPES[kind] for kind in binding.arguments)])
    graph.outs.append(made)
    if case.inplace or binding.into:
        graph.initialised.append(made)
    else:
        graph.owners.append((made, plan.slots[out].start))
    return graph


def _argument(graph: _Graph, name: str, layout: Layout, place: int) -> str:
    """A tensor for an argument: a plain one where ggml itself would lay it out so, else a view of its memory."""
    kind, ne = layout.dtype.upper(), (*layout.ne, 1, 1, 1, 1)[:4]
    packed = contiguous_strides(layout.shape, layout.type.itemsize)
    if layout.size == 0 or (layout.offset == 0 and layout.strides == packed):
        graph.lines.append(f"{name} = ggml.ggml_new_tensor_4d(context, {kind}, {', '.join(map(str, ne))})")
        graph.owners.append((name, place))
        return name
    owner = f"{name}_memory"
    graph.lines.append(f"{owner} = ggml.ggml_new_tensor_1d(context, {kind}, {layout.end // layout.type.itemsize})")
    graph.lines.append(f"{name} = view(ggml, context, {owner}, {layout.offset}, {ne}, {four_nb(layout)})")
    graph.owners.append((owner, place))
    graph.initialised.append(name)
    return name


def four_nb(layout: Layout) -> tuple[int, ...]:
    """Four byte strides, innermost first, as ggml holds them."""
    ne, nb = (*layout.ne, 1, 1, 1, 1)[:4], layout.nb
    while len(nb) < 4:
        nb = (*nb, nb[-1] * max(ne[len(nb) - 1], 1) if nb else layout.type.itemsize)
    return nb


def _home(path: str) -> str:
    """A path with ~ for the home folder: a script is sent to strangers."""
    if not path:
        return path
    whole, home = os.path.abspath(os.path.expanduser(path)), os.path.expanduser("~")
    return "~" + whole[len(home) :] if home != "/" and whole.startswith(home + "/") else whole


def _row(table: Mapping[str, Row], request: ScriptRequest) -> Row:
    """What a backend's table has for the op."""
    if request.op not in table:
        raise CannotWriteError(f"the backend {request.spec} has no {request.op} of its own")
    return table[request.op]
