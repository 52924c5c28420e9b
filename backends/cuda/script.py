"""The scripts of both ways to run the CUDA kernels, with the kernels' source: CuPy on a GPU, g++ on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opconform.backends.cuda.geometry import grids
from opconform.backends.kernels.script import Read, Table, about, launched, readable_source
from opconform.backends.kernels.source import source_of
from opconform.harness.run.script import Script, ScriptRequest
from opconform.harness.run.templates import script_of

_HERE = Path(__file__).parent
_HOST_IMPORTS = tuple(f"import {name}" for name in ("ctypes", "os", "re", "shutil", "subprocess", "tempfile"))


def cuda_script(request: ScriptRequest, table: Table, read: Read) -> Script:
    """The launches of the request. Raises `CannotWriteError`."""
    context = _launched(request, table, read)
    return script_of(_HERE / "script.py.j2", context, imports=("import os",), packages=("import cupy",))


def host_script(request: ScriptRequest, table: Table, read: Read, host: Mapping[str, Any]) -> Script:
    """The same on the CPU. `host`: the `regions` that the kernels may use, and g++'s options, those `common` to all and
    those that make the kernels `checked`."""
    sources = {"header": source_of(_HERE / "host.h"), "runtime": source_of(_HERE / "host.cpp")}
    context = {**_launched(request, table, read), **host, **sources}
    return script_of(_HERE / "host_script.py.j2", context, imports=_HOST_IMPORTS)


def _launched(request: ScriptRequest, table: Table, read: Read) -> dict[str, Any]:
    source = readable_source(request, table, read)
    launches = launched(request, table, source, lambda case: grids(table[case.op], case))
    return {**about(request, source), **launches}
