"""One generator per API: what its template needs to run the case as the backend itself does.

They read the tables by which the backends make calls of a case (`arguments.py`, `ops.py`), so that an op with a row
there has a script too.
"""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from opconform.backends.ggml import GRAPHS, THREADS
from opconform.backends.ggml.graph import TYPES
from opconform.backends.ggml.library import FLOAT16_VARIABLE
from opconform.backends.ggml.ops import OPS
from opconform.backends.opencl.arguments import LAUNCHES
from opconform.backends.own_buffers import scratch_of
from opconform.backends.vulkan.arguments import DISPATCHES, TABLE_WORDS, TABLES, WORDS, with_scratch
from opconform.harness.explain.facts import Facts
from opconform.harness.model.buffers import Plan
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout, contiguous_strides
from opconform.harness.run.extract import CannotExtractError, source_of
from opconform.harness.run.script import CannotWriteError
from opconform.reports.repro.arrays import packed_text
from opconform.reports.repro.recording import C_TYPES, Recorded, ggml_folder, graphs_of
from opconform.reports.repro.scripts import Part

Row = TypeVar("Row")


def ggml(facts: Facts) -> Part:
    """ctypes; tensors at the addresses that the backend's arena gives them."""
    folder, device = ggml_folder(facts.target.options.get("ggml_lib", "")), facts.target.device.id
    many = facts.op.name in GRAPHS
    if many:
        graphs = [_recorded(graph, plan) for graph, (_, _, plan) in zip(graphs_of(facts.request), facts.parts)]
    else:
        _row(OPS, facts)
        graphs = [_single(case, plan, suffix) for suffix, case, plan in facts.parts]
    used = {word for graph in graphs for line in graph.lines for word in re.findall(r"\b[A-Z]\w*", line)}
    symbols = {name: types for graph in graphs for name, types in graph.symbols.items()}
    return Part(
        "ggml.py.j2",
        {
            "library": _home(folder),
            "build": f"build {facts.versions.get('build', '')}, ggml {facts.versions.get('ggml', '')}",
            "device": device,
            "types": sorted((name.upper(), number) for name, number in TYPES.items() if name.upper() in used),
            "threads": int(facts.target.options.get("ggml_threads", THREADS)) if device.startswith("CPU") else 0,
            "views": any("= view(" in line for graph in graphs for line in graph.lines),
            "symbols": symbols,
            "float_type": any("c_float" in types for types in symbols.values()),
            "parts": graphs,
            "owners": [owner for graph in graphs for owner in graph.owners],
            "initialised": [name for graph in graphs for name in graph.initialised],
            "many": many,
            "context_size": (1 << 20) + 1024 * sum(len(graph.lines) for graph in graphs),
            "graph_size": sum(len(graph.lines) for graph in graphs) + 16,
            "half_off": device.startswith("Vulkan") and not os.environ.get(FLOAT16_VARIABLE),
            "may_refuse": True,
        },
        ("ctypes", "os", "re", *(["functools"] if facts.repeats > 1 else [])),
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


def opencl(facts: Facts, kernels: Path | None = None) -> Part:
    """pyopencl; a buffer per tensor, guards included, and the kernels' source in the script."""
    from opconform.backends.opencl import OpenCLBackend

    file = (kernels or OpenCLBackend.kernels) / f"{facts.op.name}.cl"
    source = _read(file)
    launches: list[dict[str, Any]] = []
    scratch: dict[str, int] = {}
    for suffix, case, _ in facts.parts:
        made = scratch_of(case)
        scratch |= {name + suffix: max(4 * math.prod(shape), 4) for name, shape in made.items()}
        for launch in _row(LAUNCHES, facts)(case):
            fields = _annotated(launch.fields, _fields(source, r"struct\s+arguments\s*\{(.*?)\}"))
            there = {*case.layouts, *made}
            names = [name + suffix if name in there else None for name in launch.buffers]
            launches.append({"kernel": launch.kernel, "work": launch.items, "fields": fields, "buffers": names})
    return Part(
        "opencl.py.j2",
        {
            "device": facts.target.device.id,
            "launches": launches,
            "scratch": scratch,
            "kernel_file": file.name,
            "kernel_source": _literal(source),
        },
        ("os",),
    )


def cuda(facts: Facts, kernels: Path | None = None) -> Part:
    """CuPy; a buffer per tensor, guards included, and the kernels' source in the script."""
    from opconform.backends.cuda import CudaBackend

    file = (kernels or CudaBackend.kernels) / f"{facts.op.name}.cu"
    return Part("cuda.py.j2", {"device": facts.target.device.id, **_cuda(facts, file)}, ("os",))


def cuda_host(facts: Facts, kernels: Path | None = None) -> Part:
    """g++; the kernels' source and that of what runs them on the CPU in the script."""
    from opconform.backends.cuda import CudaHostBackend, host
    from opconform.backends.cuda.source import source_of

    file = (kernels or CudaHostBackend.kernels) / f"{facts.op.name}.cu"
    return Part(
        "cuda_host.py.j2",
        {
            **_cuda(facts, file),
            "regions": [
                replace(region, name=region.name + suffix)
                for suffix, case, plan in facts.parts
                for region in host.regions_of(case, plan)
            ],
            "common": list(host.COMMON),
            "checked": list(host.CHECKED),
            "header": _literal(source_of(CudaHostBackend.kernels / "host.h")),
            "runtime": _literal(source_of(CudaHostBackend.kernels / "host.cpp")),
        },
        ("ctypes", "os", "re", "shutil", "subprocess", "tempfile"),
    )


def _cuda(facts: Facts, file: Path) -> dict[str, Any]:
    """What the scripts of both ways to run the CUDA kernels need."""
    from opconform.backends.cuda.arguments import LAUNCHES
    from opconform.backends.cuda.source import source_of

    _read(file)
    source = source_of(file)
    launches: list[dict[str, Any]] = []
    scratch: dict[str, int] = {}
    for suffix, case, _ in facts.parts:
        made = scratch_of(case)
        scratch |= {name + suffix: max(4 * math.prod(shape), 4) for name, shape in made.items()}
        for launch in LAUNCHES[case.op](case):
            fields = _annotated(launch.fields, _fields(source, r"struct\s+arguments\s*\{(.*?)\}"))
            there = {*case.layouts, *made}
            names = [name + suffix if name in there else None for name in launch.buffers]
            geometry = {"blocks": launch.blocks, "threads": launch.threads}
            launches.append({"kernel": launch.kernel, **geometry, "fields": fields, "buffers": names})
    return {"launches": launches, "scratch": scratch, "kernel_file": file.name, "kernel_source": _literal(source)}


def vulkan(facts: Facts, kernels: Path | None = None) -> Part:
    """Kompute; all memory in one storage buffer, the shader's source and its SPIR-V in the script."""
    from opconform.backends.vulkan import VulkanBackend, shaders
    from opconform.backends.vulkan.backend import groups_of
    from opconform.harness.run.backend import Unavailable

    file = (kernels or VulkanBackend.kernels) / f"{facts.op.name}.comp"
    source = _read(file)
    try:
        code = shaders.spirv(file)
    except (Unavailable, RuntimeError, OSError) as error:
        raise CannotWriteError(f"{file.name} cannot be compiled: {error}") from None
    dispatches, tables, end = [], [], facts.request.size
    for number, (_, case, plan) in enumerate(facts.parts):
        laid_out = with_scratch(case, Plan(plan.slots, end))  # all scratch lies behind all arguments
        end = laid_out.size
        if case.op in TABLES:
            words = TABLES[case.op](case, laid_out)
            tables.append(_annotated(words, _fields(source, r"buffer\s+Table\s*\{(.*?)\}")))
        for dispatch in _row(DISPATCHES, facts)(case, laid_out):
            fields = _annotated(dispatch.words, _fields(source, r"uniform\s+Arguments\s*\{(.*?)\}"))
            groups = groups_of(dispatch.items)
            dispatches.append({"groups": groups, "table": number, "part": dispatch.part, "fields": fields})
    return Part(
        "vulkan.py.j2",
        {
            "device": facts.target.device.id,
            "words": WORDS,
            "table_words": TABLE_WORDS,
            "tables": tables,
            "parts": any(dispatch["part"] for dispatch in dispatches),
            "scratch": end - facts.request.size,
            "dispatches": dispatches,
            "kernel_file": file.name,
            "kernel_source": _literal(source),
            "spirv": packed_text(code),
        },
        ("base64", "os", "subprocess", "zlib"),
    )


def torch(facts: Facts, function: Mapping[str, str] | None = None) -> Part:
    """torch; the function of the backend with all that it calls of its own, as `extract.py` gives it."""
    if function is None:
        from opconform.backends.torch import TorchBackend

        try:
            function = source_of(_row(TorchBackend.ops, facts))
        except CannotExtractError as lack:
            raise CannotWriteError(f"the torch function does not stand on its own: {lack}") from None
    names = {"f32": "torch.float32", "f16": "torch.float16", "bf16": "torch.bfloat16", "i32": "torch.int32"}
    types = ", ".join(f'"{name}": {names[layout.dtype]}' for name, layout in facts.case.layouts.items())
    parts = [
        {"params": dict(case.params), "names": {name: name + suffix for name in case.layouts}}
        for suffix, case, _ in facts.parts
    ]
    return Part(
        "torch.py.j2",
        {
            "device": facts.target.device.id,
            "torch_types": f"{{{types}}}",
            "torch_outputs": list(facts.case.outputs),
            "parts": parts,
            "function_source": function["source"].removeprefix("import torch\n").strip(),
            "function_name": function["name"],
        },
        ("os",),
    )


def _row(table: Mapping[str, Row], facts: Facts) -> Row:
    """What a backend's table has for the op."""
    if facts.op.name not in table:
        raise CannotWriteError(f"the backend {facts.target.spec} has no {facts.op.name} of its own")
    return table[facts.op.name]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CannotWriteError(f"{file} cannot be read: {error}") from None


def _literal(source: str) -> str:
    """A Python literal of a source file: as it is written, where that is safe."""
    visible = all(line.isprintable() for line in source.replace("\t", " ").split("\n"))
    if visible and '"""' not in source and not source.endswith(("\\", '"')):
        return f'r"""\n{source}"""'
    return ascii(source)


def _fields(source: str, pattern: str) -> list[tuple[str, int]]:
    """The fields of a struct in a kernel's source: their names and how many numbers each has."""
    found = re.search(pattern, re.sub(r"//[^\n]*", "", source), re.DOTALL)
    names = re.findall(r"(?:size_t|ulong|uint)\s+(\w+)\s*(?:\[(\d+)\])?\s*;", found[1]) if found else []
    return [(name, int(count or 1)) for name, count in names]


def _annotated(numbers: Sequence[int], fields: Sequence[tuple[str, int]]) -> list[str]:
    """Numbers line by line with the names of their fields; without names where they do not fit."""
    if sum(count for _, count in fields) != len(numbers):
        return textwrap.wrap(", ".join(map(str, numbers)) + ",", 100)
    lines, rest = [], list(numbers)
    for name, count in fields:
        lines.append(f"{', '.join(map(str, rest[:count]))},  # {name}")
        del rest[:count]
    return lines
