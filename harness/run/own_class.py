"""The script of a backend that writes none: its class runs in the script, on copies of the files that it imports.

Those are the class's own file, what that imports from beside it, and the few modules of Opconform that a backend is
written against (buffers, cases, layouts): plain NumPy, so that nothing else has to be installed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from opconform.harness.run.extract import is_installed
from opconform.harness.run.script import LARGEST, CannotWriteError, Script, ScriptRequest
from opconform.harness.run.templates import script_of

_KERNELS = {".cl", ".comp", ".cu", ".cuh", ".glsl", ".h", ".hlsl", ".metal", ".ptx", ".spv", ".wgsl"}
_KERNEL_BYTES = 1 << 18


def script_of_class(found: type, request: ScriptRequest, modules: Iterable[str]) -> Script:
    """The script that runs the class `found`. `modules` are those that importing it has loaded, and those that
    `import opconform` loads. Raises `CannotWriteError`."""
    sources = {place: file for name in sorted(modules) for place, file in _files_of(name, found.__module__).items()}
    files = {f"modules/{place.as_posix()}": file.read_bytes() for place, file in sources.items()}
    if sum(map(len, files.values())) > LARGEST:
        raise CannotWriteError(f"{request.spec} imports more than {LARGEST >> 20} MiB of files of its own")
    first, cases = 0, []
    for _, case, plan in request.cases:
        cases.append((json.dumps(replace(case, data=None).to_json()), first))
        first += plan.size
    file = Path(request.spec.rpartition(":")[0]).name if ".py:" in request.spec else ""
    return script_of(
        Path(__file__).with_name("own_class.py.j2"),
        {
            "request": request,
            "options": dict(request.options),
            "class_name": found.__qualname__,
            "class_module": found.__module__,
            "class_path": file,
            "class_file": file or found.__module__,
            "cases_source": "[\n" + "".join(f"    ({text!a}, {place}),\n" for text, place in cases) + "]",
        },
        imports=("import functools", "import importlib.util", "import json", "from pathlib import Path"),
        files=files,
        may_refuse=True,
    )


def _files_of(name: str, own: str) -> dict[Path, Path]:
    """Where a module's files belong below `modules/`, and where they are; none for what is installed."""
    module = sys.modules.get(name)
    if module is None and name.split(".")[0] == "opconform":
        module = __import__(name, fromlist=["_"])
    file = getattr(module, "__file__", None)
    source = Path(file or "")
    if name.startswith("__") or module is None or is_installed(module):
        return {}
    if source.suffix != ".py" or not source.is_absolute() or not source.is_file():  # compiled, or made up
        return {}
    place = Path(source.name) if name == own and not _is_package_path(name) else _place(name, source)
    found = {place: source}
    for folder in (source.parent, source.parent / "kernels"):
        for kernel in sorted(folder.glob("*")):
            if kernel.suffix in _KERNELS and kernel.is_file() and kernel.stat().st_size <= _KERNEL_BYTES:
                found[place.parent / kernel.relative_to(source.parent)] = kernel
    return found


def _is_package_path(name: str) -> bool:
    return not name.startswith("opconform_backend_")


def _place(name: str, source: Path) -> Path:
    parts = Path(*name.split("."))
    return parts / "__init__.py" if source.name == "__init__.py" else parts.with_suffix(".py")
