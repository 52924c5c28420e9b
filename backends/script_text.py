"""What the scripts of the backends with kernels share: a row of a table, a kernel's file, launches as text."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from opconform.backends.own_buffers import scratch_of
from opconform.harness.model.case import Case
from opconform.harness.run.script import CannotWriteError, ScriptRequest

Row = TypeVar("Row")
Fields = Sequence[tuple[str, int]]  #: names, and how many numbers each has


def row_of(table: Mapping[str, Row], request: ScriptRequest) -> Row:
    """What a backend's table has for the op. Raises `CannotWriteError`."""
    if request.op not in table:
        raise CannotWriteError(f"the backend {request.spec} has no {request.op} of its own")
    return table[request.op]


def text_of(file: Path) -> str:
    """A kernel's file. Raises `CannotWriteError`."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CannotWriteError(f"{file} cannot be read: {error}") from None


def fields_in(source: str, pattern: str) -> Fields:
    """The fields of a struct in a kernel's source."""
    found = re.search(pattern, re.sub(r"//[^\n]*", "", source), re.DOTALL)
    names = re.findall(r"(?:size_t|ulong|uint)\s+(\w+)\s*(?:\[(\d+)\])?\s*;", found[1]) if found else []
    return [(name, int(count or 1)) for name, count in names]


def annotated(numbers: Sequence[int], fields: Fields) -> list[str]:
    """Numbers line by line with the names of their fields; without names where they do not fit."""
    if sum(count for _, count in fields) != len(numbers):
        return textwrap.wrap(", ".join(map(str, numbers)) + ",", 100)
    lines, rest = [], list(numbers)
    for name, count in fields:
        lines.append(f"{', '.join(map(str, rest[:count]))},  # {name}")
        del rest[:count]
    return lines


def launches_of(request: ScriptRequest, launches: Callable[[Case], Sequence[Any]], fields: Fields) -> dict[str, Any]:
    """For a template: the launches of all cases as their backend makes them, but `fields` as lines and `buffers` as
    names of the script's tensors (None for an argument that is not there), and the bytes of the `scratch` buffers."""
    found: list[SimpleNamespace] = []
    scratch: dict[str, int] = {}
    for suffix, case, _ in request.cases:
        made = scratch_of(case)
        scratch |= {name + suffix: max(4 * math.prod(shape), 4) for name, shape in made.items()}
        there = {*case.layouts, *made}
        for launch in launches(case):
            names = [name + suffix if name in there else None for name in launch.buffers]
            as_text = {"fields": annotated(launch.fields, fields), "buffers": names}
            found.append(SimpleNamespace(**{**vars(launch), **as_text}))
    return {"launches": found, "scratch": scratch}
