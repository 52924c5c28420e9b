"""The script of the torch backend: the function at fault with all that it calls of its own, on strided tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from opconform.harness.run.extract import CannotExtractError, source_of
from opconform.harness.run.script import CannotWriteError, Script, ScriptRequest
from opconform.harness.run.templates import script_of

_TYPES = {
    "f32": "torch.float32",
    "f16": "torch.float16",
    "bf16": "torch.bfloat16",
    "f64": "torch.float64",
    "i8": "torch.int8",
    "i16": "torch.int16",
    "i32": "torch.int32",
    "i64": "torch.int64",
}
_IMPORTS = ("from __future__ import annotations", "import os", "from types import SimpleNamespace")


def torch_script(request: ScriptRequest, ops: Mapping[str, Callable[..., Any]]) -> Script | None:
    """The request with the function that `ops` has for its op; None where that does not stand on its own. Raises
    `CannotWriteError`."""
    if request.op not in ops:
        raise CannotWriteError(f"the backend {request.spec} has no {request.op} of its own")
    try:
        function = source_of(ops[request.op])
    except CannotExtractError:
        return None
    if missing := [layout.dtype for layout in request.case.layouts.values() if layout.dtype not in _TYPES]:
        raise CannotWriteError(f"torch has no {missing[0]}, and the script would have to bring a decoder of it")
    types = ", ".join(f'"{name}": {_TYPES[layout.dtype]}' for name, layout in request.case.layouts.items())
    parts = [
        {"params": dict(case.params), "names": {name: name + suffix for name in case.layouts}}
        for suffix, case, _ in request.cases
    ]
    context = {
        "request": request,
        "torch_types": f"{{{types}}}",
        "torch_outputs": list(request.case.outputs),
        "parts": parts,
        "function_source": function["source"].removeprefix("import torch\n").strip(),
        "function_name": function["name"],
    }
    template = Path(__file__).with_name("script.py.j2")
    return script_of(template, context, imports=_IMPORTS, packages=("import torch",))
