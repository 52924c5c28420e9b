"""One generator per API: what its template needs to run the case as the backend itself does.

They read the tables by which the backends make calls of a case (`arguments.py`, `ops.py`), so that an op with a row
there has a script too.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opconform.backends.ggml.graph import TYPES
from opconform.backends.ggml.ops import OPS
from opconform.backends.opencl.arguments import LAUNCHES, SCRATCH
from opconform.backends.vulkan.arguments import DISPATCHES, TABLE_WORDS, TABLES, WORDS, with_scratch
from opconform.harness.buffers import Plan
from opconform.harness.case import Case
from opconform.harness.layouts import Layout, contiguous_strides
from opconform.reports.repro.arrays import packed_text
from opconform.reports.repro.facts import Facts
from opconform.reports.repro.scripts import CannotWriteError, Part

_C_TYPES = {
    ctypes.c_void_p: "c_void_p",
    ctypes.c_bool: "c_bool",
    ctypes.c_float: "c_float",
    ctypes.c_int: "c_int",
    ctypes.c_size_t: "c_size_t",
    ctypes.c_int64: "c_int64",
}


def ggml(facts: Facts) -> Part:
    """ctypes; tensors at the addresses that the backend's arena gives them."""
    binding = OPS[facts.op.name]
    symbol = binding.symbol_for(facts.case)
    graphs = [_Graph(case, plan, suffix, str(symbol)) for suffix, case, plan in facts.parts]
    return Part(
        "ggml.py.j2",
        {
            "library": _home(ggml_folder(facts.target.options.get("ggml_lib", ""))),
            "build": f"build {facts.versions.get('build', '')}, ggml {facts.versions.get('ggml', '')}",
            "device": facts.target.device.id,
            "types": sorted({(case.upper(), TYPES[case]) for case in (facts.case.dtype,)}),
            "views": any(graph.views for graph in graphs),
            "inplace": facts.case.inplace is not None,
            "symbol": symbol,
            "call_types": ", ".join(_C_TYPES[kind] for kind in binding.arguments),
            "parts": graphs,
            "owners": [owner for graph in graphs for owner in graph.owners],
            "initialised": [name for graph in graphs for name in graph.initialised],
            "may_refuse": True,
        },
        ("ctypes", "os", "re", *(["functools"] if facts.repeats > 1 else [])),
    )


class _Graph:
    """The lines that build one case's tensors, and which of them own memory."""

    def __init__(self, case: Case, plan: Plan, suffix: str, symbol: str) -> None:
        self.build: list[str] = []
        self.owners: list[tuple[str, int]] = []
        self.initialised: list[str] = []
        self.views = False
        names = [self._input(name + suffix, layout, plan.slots[name].start) for name, layout in case.inputs.items()]
        given = [*names, *map(_number, OPS[case.op].params(case))]
        self.out = next(iter(case.outputs)) + suffix
        self.build.append(f"{self.out} = ggml.{symbol}(context, {', '.join(given)})")
        if case.inplace:
            self.initialised.append(self.out)
        else:
            self.owners.append((self.out, plan.slots[next(iter(case.outputs))].start))

    def _input(self, name: str, layout: Layout, place: int) -> str:
        kind, ne = layout.dtype.upper(), (*layout.ne, 1, 1, 1, 1)[:4]
        packed = contiguous_strides(layout.shape, layout.type.itemsize)
        if layout.size == 0 or (layout.offset == 0 and layout.strides == packed):
            self.build.append(f"{name} = ggml.ggml_new_tensor_4d(context, {kind}, {', '.join(map(str, ne))})")
            self.owners.append((name, place))
            return name
        nb = four_nb(layout)
        owner = f"{name}_memory"
        self.build.append(f"{owner} = ggml.ggml_new_tensor_1d(context, {kind}, {layout.end // layout.type.itemsize})")
        self.build.append(f"{name} = view(ggml, context, {owner}, {layout.offset}, {ne}, {nb})")
        self.owners.append((owner, place))
        self.initialised.append(name)
        self.views = True
        return name


def four_nb(layout: Layout) -> tuple[int, ...]:
    """Four byte strides, innermost first, as ggml holds them."""
    ne, nb = (*layout.ne, 1, 1, 1, 1)[:4], layout.nb
    while len(nb) < 4:
        nb = (*nb, nb[-1] * max(ne[len(nb) - 1], 1) if nb else layout.type.itemsize)
    return nb


def _number(value: Any) -> str:
    return repr(value)


def ggml_folder(option: str) -> str:
    """The folder that the ggml backend has loaded: the option, else the environment's."""
    return option or os.environ.get("OPCONFORM_GGML_LIB", "")


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
    launches, scratch = [], {}
    for suffix, case, _ in facts.parts:
        made = SCRATCH[case.op](case) if case.op in SCRATCH else {}
        scratch |= {name + suffix: max(4 * math.prod(shape), 4) for name, shape in made.items()}
        for launch in LAUNCHES[case.op](case):
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


def vulkan(facts: Facts, kernels: Path | None = None) -> Part:
    """Kompute; all memory in one storage buffer, the shader's source and its SPIR-V in the script."""
    from opconform.backends.vulkan import VulkanBackend, shaders
    from opconform.backends.vulkan.backend import groups_of
    from opconform.harness.backend import Unavailable

    file = (kernels or VulkanBackend.kernels) / f"{facts.op.name}.comp"
    source = _read(file)
    try:
        code = shaders.spirv(file)
    except (Unavailable, RuntimeError, OSError) as error:
        raise CannotWriteError(f"{file.name} cannot be compiled: {error}") from None
    dispatches, tables, end = [], [], facts.size
    for number, (_, case, plan) in enumerate(facts.parts):
        laid_out = with_scratch(case, Plan(plan.slots, end))  # all scratch lies behind all arguments
        end = laid_out.size
        if case.op in TABLES:
            words = TABLES[case.op](case, laid_out)
            tables.append(_annotated(words, _fields(source, r"buffer\s+Table\s*\{(.*?)\}")))
        for dispatch in DISPATCHES[case.op](case, laid_out):
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
            "scratch": end - facts.size,
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
        from opconform.reports.repro.extract import source_of

        function = source_of(TorchBackend.ops[facts.op.name])
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
            "parts": parts,
            "function_source": function["source"].removeprefix("import torch\n").strip(),
            "function_name": function["name"],
        },
        ("os",),
    )


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
    names = re.findall(r"(?:ulong|uint)\s+(\w+)\s*(?:\[(\d+)\])?\s*;", found[1]) if found else []
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
