"""What the scripts of the backends with kernels share: the kernels' source, and launches as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from opconform.backends.kernels.own_buffers import Source, fields
from opconform.backends.kernels.table import Kernel
from opconform.harness.model.case import Case
from opconform.harness.run.script import CannotWriteError, ScriptRequest
from opconform.harness.run.templates import render

Table = Mapping[str, Kernel]
Read = Callable[[str], Source]  #: the source of an op
_FILES = Path(__file__).with_name("files.py.j2")


def readable_source(request: ScriptRequest, table: Table, read: Read) -> Source:
    """The source of the request's op as `read` finds it. Raises `CannotWriteError`."""
    if request.op not in table:
        raise CannotWriteError(f"the backend {request.spec} has no {request.op} of its own")
    try:
        return read(request.op)
    except (OSError, ValueError) as error:
        raise CannotWriteError(f"the kernels cannot be read: {error}") from None


def about(request: ScriptRequest, source: Source) -> dict[str, Any]:
    """For a template: the request, the kernel file's name, and Python lines that hold the source, at the end."""
    name = source.file.name
    return {"request": request, "kernel_file": name, "files": render(_FILES, name=name, files=source.files)}


def annotated(named: Sequence[tuple[str, Sequence[int]]]) -> list[str]:
    """Numbers line by line with the names of their fields."""
    return [f"{', '.join(map(str, numbers))},  # {name}" for name, numbers in named]


def launched(
    request: ScriptRequest, table: Table, source: Source, launches: Callable[[Case], Sequence[Any]]
) -> dict[str, Any]:
    """For a template: the launches of all cases as their backend makes them, with the `fields` of the struct as lines
    and `buffers` as names of the script's tensors (None for an argument that is not there), and the bytes of the
    `scratch` buffers."""
    found: list[SimpleNamespace] = []
    scratch: dict[str, int] = {}
    for suffix, case, _ in request.cases:
        kernel = table[case.op]
        made = kernel.scratch(case)
        scratch |= {name + suffix: max(4 * math.prod(shape), 4) for name, shape in made.items()}
        there, lines = {*case.layouts, *made}, annotated(source.struct.by_name(fields(kernel, source.struct, case)))
        for launch in launches(case):
            names = [name + suffix if name in there else None for name in launch.buffers]
            found.append(SimpleNamespace(**{**vars(launch), "fields": lines, "buffers": names}))
    return {"launches": found, "scratch": scratch}
