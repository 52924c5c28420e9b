"""The script of the OpenCL backend: pyopencl; a buffer per tensor, guards included, and the kernels' source."""

from __future__ import annotations

from pathlib import Path

from opconform.backends.kernels.script import Read, Table, about, launched, readable_source
from opconform.harness.run.script import Script, ScriptRequest
from opconform.harness.run.templates import script_of


def opencl_script(request: ScriptRequest, table: Table, read: Read) -> Script:
    """The launches of the request. Raises `CannotWriteError`."""
    source = readable_source(request, table, read)
    launches = launched(request, table, source, table[request.op].launches)
    context = {**about(request, source), **launches}
    template = Path(__file__).with_name("script.py.j2")
    return script_of(template, context, imports=("import os",), packages=("import pyopencl as cl",))
