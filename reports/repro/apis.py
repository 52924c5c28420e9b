"""One generator per API: what its template needs to run the case as the backend itself does.

They read the tables by which the backends make calls of a case (`arguments.py`, `ops.py`), so that an op with a row
there has a script too.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from opconform.backends.ggml import GRAPHS, THREADS
from opconform.backends.ggml.graph import TYPES
from opconform.backends.ggml.library import FLOAT16_VARIABLE
from opconform.backends.ggml.ops import OPS
from opconform.backends.kernels.own_buffers import Source, fields
from opconform.backends.kernels.table import KERNELS
from opconform.backends.vulkan.dispatches import (
    TABLE_WORDS,
    WORDS,
    Blocks,
    dispatches,
    pushed,
    with_scratch,
    words,
)
from opconform.harness.model.buffers import Plan
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout, contiguous_strides
from opconform.reports.repro.arrays import packed_text
from opconform.reports.repro.extract import CannotExtractError, source_of
from opconform.reports.repro.facts import Facts, ggml_folder
from opconform.reports.repro.recording import C_TYPES, Recorded
from opconform.reports.repro.scripts import CannotWriteError, Part

Row = TypeVar("Row")


def ggml(facts: Facts) -> Part:
    """ctypes; tensors at the addresses that the backend's arena gives them."""
    folder, device = ggml_folder(facts.target.options.get("ggml_lib", "")), facts.target.device.id
    many = facts.op.name in GRAPHS
    if many:
        graphs = [_recorded(graph, plan) for graph, (_, _, plan) in zip(facts.graphs, facts.parts)]
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

    source = _source(facts, OpenCLBackend, kernels)
    launches: list[dict[str, Any]] = []
    for suffix, case, _ in facts.parts:
        given = _annotated(source.struct.by_name(fields(KERNELS[case.op], source.struct, case)))
        for launch in KERNELS[case.op].launches(case):
            names = _names(case, suffix, launch.buffers)
            launches.append({"kernel": launch.kernel, "work": launch.items, "fields": given, "buffers": names})
    return Part(
        "opencl.py.j2",
        {
            "device": facts.target.device.id,
            "launches": launches,
            "scratch": _scratch(facts),
            "kernel_file": source.file.name,
            "kernel_source": _literal(source.text),
        },
        ("os",),
    )


def cuda(facts: Facts, kernels: Path | None = None) -> Part:
    """CuPy; a buffer per tensor, guards included, and the kernels' source in the script."""
    from opconform.backends.cuda import CudaBackend

    return Part(
        "cuda.py.j2", {"device": facts.target.device.id, **_cuda(facts, _source(facts, CudaBackend, kernels))}, ("os",)
    )


def cuda_host(facts: Facts, kernels: Path | None = None) -> Part:
    """g++; the kernels' source and that of what runs them on the CPU in the script."""
    from opconform.backends.cuda import CudaHostBackend, host
    from opconform.backends.kernels.source import source_of

    return Part(
        "cuda_host.py.j2",
        {
            **_cuda(facts, _source(facts, CudaHostBackend, kernels)),
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


def _cuda(facts: Facts, source: Source) -> dict[str, Any]:
    """What the scripts of both ways to run the CUDA kernels need."""
    from opconform.backends.cuda.geometry import grids

    launches: list[dict[str, Any]] = []
    for suffix, case, _ in facts.parts:
        given = _annotated(source.struct.by_name(fields(KERNELS[case.op], source.struct, case)))
        for grid in grids(KERNELS[case.op], case):
            geometry = {"blocks": grid.blocks, "threads": grid.threads}
            names = _names(case, suffix, grid.buffers)
            launches.append({"kernel": grid.kernel, **geometry, "fields": given, "buffers": names})
    return {
        "launches": launches,
        "scratch": _scratch(facts),
        "kernel_file": source.file.name,
        "kernel_source": _literal(source.text),
    }


def _source(facts: Facts, backend: Any, kernels: Path | None) -> Source:
    """The source of the kernels; `kernels` is a folder that goes before the backend's own."""
    _row(KERNELS, facts)
    with _readable():
        chosen: Any = type("Chosen", (backend,), {"kernels": kernels or backend.kernels})
        source: Source = chosen.source(facts.op.name)
        return source


def _names(case: Case, suffix: str, buffers: tuple[str, ...]) -> list[str | None]:
    there = {*case.layouts, *KERNELS[case.op].scratch(case)}
    return [name + suffix if name in there else None for name in buffers]


def _scratch(facts: Facts) -> dict[str, int]:
    """The bytes of each intermediate result."""
    return {
        name + suffix: max(4 * math.prod(shape), 4)
        for suffix, case, _ in facts.parts
        for name, shape in KERNELS[case.op].scratch(case).items()
    }


def vulkan(facts: Facts, kernels: Path | None = None) -> Part:
    """Kompute; all memory in one storage buffer, the shader's source and its SPIR-V in the script."""
    from opconform.backends.vulkan import VulkanBackend, shaders
    from opconform.backends.vulkan.backend import groups_of
    from opconform.harness.run.backend import Unavailable

    source = _source(facts, VulkanBackend, kernels)
    blocks = Blocks.of(source.text)
    try:
        code = shaders.spirv(source.file, source.text)
    except (Unavailable, RuntimeError, OSError) as error:
        raise CannotWriteError(f"{source.file.name} cannot be compiled: {error}") from None
    runs, tables, end = [], [], facts.size
    for number, (_, case, plan) in enumerate(facts.parts):
        kernel = KERNELS[case.op]
        laid_out = with_scratch(kernel, case, Plan(plan.slots, end))  # all scratch lies behind all arguments
        end = laid_out.size
        if blocks.table.fields:
            tables.append(_annotated(blocks.table.by_name(words(kernel, blocks.table, case, laid_out).tolist())))
        same = words(kernel, blocks.pushed, case, laid_out)
        for dispatch in dispatches(kernel, case):
            given = _annotated(blocks.pushed.by_name(pushed(blocks.pushed, same, dispatch).tolist()))
            groups = groups_of(dispatch.items)
            runs.append({"groups": groups, "table": number, "part": dispatch.part, "fields": given})
    return Part(
        "vulkan.py.j2",
        {
            "device": facts.target.device.id,
            "words": WORDS,
            "table_words": TABLE_WORDS,
            "tables": tables,
            "parts": any(run["part"] for run in runs),
            "scratch": end - facts.size,
            "dispatches": runs,
            "kernel_file": source.file.name,
            "kernel_source": _literal(source.text),
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


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise CannotWriteError(f"the kernels cannot be read: {error}") from None


def _literal(source: str) -> str:
    """A Python literal of a source file: as it is written, where that is safe."""
    visible = all(line.isprintable() for line in source.replace("\t", " ").split("\n"))
    if visible and '"""' not in source and not source.endswith(("\\", '"')):
        return f'r"""\n{source}"""'
    return ascii(source)


def _annotated(named: Sequence[tuple[str, Sequence[int]]]) -> list[str]:
    """Numbers line by line with the names of their fields."""
    return [f"{', '.join(map(str, numbers))},  # {name}" for name, numbers in named]
