"""The script of the Vulkan backend: Kompute; all memory in one storage buffer, the shader's source and its SPIR-V."""

from __future__ import annotations

from pathlib import Path

from opconform.backends.kernels.script import Read, Table, about, annotated, readable_source
from opconform.backends.vulkan import shaders
from opconform.backends.vulkan.dispatches import (
    TABLE_WORDS,
    WORDS,
    Blocks,
    dispatches,
    groups_of,
    pushed,
    values_of,
    with_scratch,
)
from opconform.harness.model.buffers import Plan
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.script import CannotWriteError, Script, ScriptRequest
from opconform.harness.run.templates import script_of

_IMPORTS = tuple(f"import {name}" for name in ("base64", "os", "subprocess", "zlib"))


def vulkan_script(request: ScriptRequest, table: Table, read: Read) -> Script:
    """The dispatches of the request. Raises `CannotWriteError`."""
    source = readable_source(request, table, read)
    try:
        code = shaders.spirv(source.file, source.text)
    except (Unavailable, RuntimeError, OSError) as error:
        raise CannotWriteError(f"{source.file.name} cannot be compiled: {error}") from None
    blocks = Blocks.of(source.text)
    runs, tables, end = [], [], request.size
    for number, (_, case, plan) in enumerate(request.cases):
        kernel = table[case.op]
        laid_out = with_scratch(kernel, case, Plan(plan.slots, end))  # all scratch lies behind all arguments
        end = laid_out.size
        values = values_of(kernel, case, laid_out)
        if blocks.table.fields:
            tables.append(annotated(blocks.table.by_name(values.numbers(blocks.table))))
        same = values.numbers(blocks.pushed)
        for dispatch in dispatches(kernel, case):
            fields = annotated(blocks.pushed.by_name(pushed(blocks.pushed, same, dispatch).tolist()))
            groups = groups_of(dispatch.items)
            runs.append({"groups": groups, "table": number, "part": dispatch.part, "fields": fields})
    context = {
        **about(request, source),
        "words": WORDS,
        "table_words": TABLE_WORDS,
        "tables": tables,
        "parts": any(run["part"] for run in runs),
        "scratch": end - request.size,
        "dispatches": runs,
        "spirv": code,
    }
    template = Path(__file__).with_name("script.py.j2")
    return script_of(template, context, imports=_IMPORTS, packages=("import kp",))
