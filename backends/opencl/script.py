"""The script of the OpenCL backend: pyopencl; a buffer per tensor, guards included, and the kernels' source."""

from __future__ import annotations

from pathlib import Path

from opconform.backends.opencl.arguments import LAUNCHES
from opconform.backends.script_text import fields_in, launches_of, row_of, text_of
from opconform.harness.run.script import Script, ScriptRequest
from opconform.harness.run.templates import script_of


def opencl_script(request: ScriptRequest, kernels: Path) -> Script:
    """The launches of the request with the kernels in the folder `kernels`. Raises `CannotWriteError`."""
    file = kernels / f"{request.op}.cl"
    source = text_of(file)
    fields = fields_in(source, r"struct\s+arguments\s*\{(.*?)\}")
    context = {
        "request": request,
        "kernel_file": file.name,
        "kernel_source": source,
        **launches_of(request, row_of(LAUNCHES, request), fields),
    }
    template = Path(__file__).with_name("script.py.j2")
    return script_of(template, context, imports=("import os",), packages=("import pyopencl as cl",))
