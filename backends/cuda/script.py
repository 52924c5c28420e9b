"""The scripts of both ways to run the CUDA kernels, with the kernels' source: CuPy on a GPU, g++ on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opconform.backends.cuda.arguments import LAUNCHES
from opconform.backends.cuda.source import source_of
from opconform.backends.script_text import fields_in, launches_of, row_of, text_of
from opconform.harness.run.script import Script, ScriptRequest
from opconform.harness.run.templates import script_of

_HERE = Path(__file__).parent
_HOST_IMPORTS = tuple(f"import {name}" for name in ("ctypes", "os", "re", "shutil", "subprocess", "tempfile"))


def cuda_script(request: ScriptRequest, kernels: Path) -> Script:
    """The launches of the request with the kernels in the folder `kernels`. Raises `CannotWriteError`."""
    context = _launched(request, kernels)
    return script_of(_HERE / "script.py.j2", context, imports=("import os",), packages=("import cupy",))


def host_script(request: ScriptRequest, kernels: Path, host: Mapping[str, Any]) -> Script:
    """The same on the CPU. `host`: the `regions` that the kernels may use, and g++'s options, those `common` to all and
    those that make the kernels `checked`."""
    sources = {"header": source_of(_HERE / "host.h"), "runtime": source_of(_HERE / "host.cpp")}
    context = {**_launched(request, kernels), **host, **sources}
    return script_of(_HERE / "host_script.py.j2", context, imports=_HOST_IMPORTS)


def _launched(request: ScriptRequest, kernels: Path) -> dict[str, Any]:
    file = kernels / f"{request.op}.cu"
    text_of(file)
    source = source_of(file)
    fields = fields_in(source, r"struct\s+arguments\s*\{(.*?)\}")
    about = {"request": request, "kernel_file": file.name, "kernel_source": source}
    return {**about, **launches_of(request, row_of(LAUNCHES, request), fields)}
