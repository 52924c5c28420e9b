"""The script of the Vulkan backend: Kompute; all memory in one storage buffer, the shader's source and its SPIR-V."""

from __future__ import annotations

from pathlib import Path

from opconform.backends.script_text import annotated, fields_in, row_of, text_of
from opconform.backends.vulkan import shaders
from opconform.backends.vulkan.arguments import DISPATCHES, TABLE_WORDS, TABLES, WORDS, groups_of, with_scratch
from opconform.harness.model.buffers import Plan
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.script import CannotWriteError, Script, ScriptRequest
from opconform.harness.run.templates import script_of

_IMPORTS = tuple(f"import {name}" for name in ("base64", "os", "subprocess", "zlib"))


def vulkan_script(request: ScriptRequest, kernels: Path) -> Script:
    """The dispatches of the request with the shader in the folder `kernels`. Raises `CannotWriteError`."""
    file = kernels / f"{request.op}.comp"
    source = text_of(file)
    try:
        code = shaders.spirv(file)
    except (Unavailable, RuntimeError, OSError) as error:
        raise CannotWriteError(f"{file.name} cannot be compiled: {error}") from None
    dispatches, tables, end = [], [], request.size
    for number, (_, case, plan) in enumerate(request.cases):
        laid_out = with_scratch(case, Plan(plan.slots, end))  # all scratch lies behind all arguments
        end = laid_out.size
        if case.op in TABLES:
            words = TABLES[case.op](case, laid_out)
            tables.append(annotated(words, fields_in(source, r"buffer\s+Table\s*\{(.*?)\}")))
        for dispatch in row_of(DISPATCHES, request)(case, laid_out):
            fields = annotated(dispatch.words, fields_in(source, r"uniform\s+Arguments\s*\{(.*?)\}"))
            groups = groups_of(dispatch.items)
            dispatches.append({"groups": groups, "table": number, "part": dispatch.part, "fields": fields})
    context = {
        "request": request,
        "words": WORDS,
        "table_words": TABLE_WORDS,
        "tables": tables,
        "parts": any(dispatch["part"] for dispatch in dispatches),
        "scratch": end - request.size,
        "dispatches": dispatches,
        "kernel_file": file.name,
        "kernel_source": source,
        "spirv": code,
    }
    template = Path(__file__).with_name("script.py.j2")
    return script_of(template, context, imports=_IMPORTS, packages=("import kp",))
