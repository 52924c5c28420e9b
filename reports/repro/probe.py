"""What a backend class from a file is made of. Runs in a process of its own, for that file may do anything."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from opconform.harness.run import registry
from opconform.harness.run.extract import CannotExtractError, is_installed, source_of

#: What a class may change of one of ours while its own `run` stays that of the class above it.
_CHANGEABLE = {"name", "needs", "devices", "limits", "supports", "kernels", "ops"}
_KERNELS = {".cl", ".comp", ".cu", ".cuh", ".glsl", ".h", ".hlsl", ".metal", ".ptx", ".spv", ".wgsl"}
_KERNEL_BYTES = 1 << 18


def look(spec: str, op: str, interface: Iterable[str]) -> dict[str, Any]:
    """What there is to say of the class that `spec` names, for a script that runs `op`. `interface` are the modules
    that `import opconform` has loaded: those that a backend is written against."""
    before = set(sys.modules)
    found = registry.backend_class(spec)
    loaded = (set(sys.modules) - before) | set(interface)
    files = {str(path): str(source) for name in loaded for path, source in _files_of(name, found.__module__).items()}
    answer: dict[str, Any] = {
        "class": found.__qualname__,
        "module": found.__module__,
        "file": Path(spec.rpartition(":")[0]).name if ".py:" in spec else "",
        "files": files,
        "api": "",
    }
    base = next((base for base in found.__mro__ if base.__module__.startswith("opconform.backends.")), None)
    if base is not None and _runs_as(found, base):
        answer["api"] = str(getattr(base, "name", ""))
        answer["kernels"] = str(getattr(found, "kernels", ""))
        functions: dict[str, Any] = dict(getattr(found, "ops", {}))
        if op in functions:
            try:
                answer["function"] = source_of(functions[op])
            except CannotExtractError:
                answer["api"] = ""
    return answer


def _runs_as(found: type, base: type) -> bool:
    above = found.__mro__[: found.__mro__.index(base)]
    changed = {name for each in above for name in vars(each) if not name.startswith("__") or name == "__init__"}
    return changed <= _CHANGEABLE


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


def main(interface: Iterable[str]) -> None:
    """Write what there is to say of argv's SPEC and OP into the file that argv names."""
    spec, op, result = sys.argv[1:]
    Path(result).write_text(json.dumps(look(spec, op, interface)), encoding="utf-8")


#: How it is started: what `import opconform` loads must be known before anything else is imported.
START = (
    "import sys, opconform; interface = [name for name in sys.modules if name.startswith('opconform')]; "
    "from opconform.reports.repro.probe import main; main(interface)"
)
