"""The backend's part of repro.py: the same graph through ctypes, its tensors where the backend's arena has them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from opconform.backends.ggml import spelling
from opconform.backends.ggml.calls import Calls, calls_of
from opconform.backends.ggml.declarations import CONSTANTS, DECLARATIONS, TYPES
from opconform.backends.ggml.graphs import GRAPHS
from opconform.backends.ggml.library import FLOAT16_VARIABLE, names_function
from opconform.backends.ggml.ops import OPS
from opconform.backends.ggml.recording import folder_of, recorded
from opconform.harness.run.script import CannotWriteError, Script, ScriptRequest
from opconform.harness.run.templates import script_of

_TEMPLATE = Path(__file__).with_name("script.py.j2")


def script(request: ScriptRequest, threads: int) -> Script:
    """The script. `threads` are those of the CPU device. Raises `CannotWriteError`."""
    many, device = request.op in GRAPHS, request.device
    if not many and request.op not in OPS:
        raise CannotWriteError(f"the backend {request.spec} has no {request.op} of its own")
    has = partial(names_function, Path(folder_of(request.options)))
    graphs = (
        recorded(request) if many else [calls_of(case, OPS[case.op], suffix, has) for suffix, case, _ in request.cases]
    )
    lines = [line for graph in graphs for line in _lines(graph)]
    context = {
        "request": request,
        "library": _home(folder_of(request.options)),
        "build": f"build {request.versions.get('build', '')}, ggml {request.versions.get('ggml', '')}",
        "types": sorted((name.upper(), number) for name, number in TYPES.items() if _names(name.upper(), lines)),
        "i8": CONSTANTS["GGML_TYPE_I8"],
        "threads": threads if device.startswith("CPU") else 0,
        "views": any("= view(" in line for line in lines),
        "init_params": spelling.fields("ggml_init_params", "no_alloc"),
        "tensor": spelling.fields("ggml_tensor", "nb"),
        "parts": [{"lines": list(_lines(graph)), "outs": graph.outs, "ends": graph.ends} for graph in graphs],
        "owners": [
            (owner, plan.slots[name].start)
            for graph, (_, _, plan) in zip(graphs, request.cases)
            for owner, name in graph.owners
        ],
        "initialised": [view for graph in graphs for view in graph.views],
        "many": many,
        "twin": len(request.cases) > 1,
        "context_size": (1 << 20) + 1024 * len(lines),
        "graph_size": len(lines) + 16,
        "half_off": device.startswith("Vulkan") and not os.environ.get(FLOAT16_VARIABLE),
        "signatures": (),
    }
    signatures = _signatures(script_of(_TEMPLATE, context).run)
    further = [f", {kind}" for kind in ("c_float", "c_uint32") if any(kind in types for _, types in signatures)]
    return script_of(
        _TEMPLATE,
        {**context, "signatures": signatures},
        imports=(
            *(f"import {name}" for name in ("ctypes", "os", "re", *(["functools"] if request.repeats > 1 else []))),
            f"from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p{''.join(further)}",
            "from pathlib import Path",
            "from types import SimpleNamespace",
        ),
        may_refuse=True,
        command="OPCONFORM_GGML_LIB=path/to/build/bin python repro.py",
        runs_with="the library",
    )


def _lines(graph: Calls) -> Iterable[str]:
    """The calls, those that make a stage with its name."""
    for call in graph.calls:
        yield call.python() + (f"  # stage {graph.shown[call.result]}" if call.result in graph.shown else "")


def _names(word: str, lines: Iterable[str]) -> bool:
    return any(re.search(rf"\b{word}\b", line) for line in lines)


def _signatures(source: str) -> list[tuple[str, str]]:
    """The functions that a script calls, in the order of declarations.h."""
    called = set(re.findall(r"\bggml_\w+", source))
    return [(name, spelling.signature(function)) for name, function in DECLARATIONS.functions.items() if name in called]


def _home(path: str) -> str:
    """A path with ~ for the home folder: a script is sent to strangers."""
    if not path:
        return path
    whole, home = os.path.abspath(os.path.expanduser(path)), os.path.expanduser("~")
    return "~" + whole[len(home) :] if home != "/" and whole.startswith(home + "/") else whole
