"""What exists: ops and backends, registered by entry point, and backends named by a file.

A backend is named `NAME`, `NAME:DEVICE`, `path/to/file.py:Class` or `path/to/file.py:Class:DEVICE`; the file is enough
where it has one backend. `@ALIAS` after it is a name for the build that is tested, under which its results stand:
`ggml@pinned`, `ggml:Vulkan0@pinned`.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from opconform.harness.model.ops import registered
from opconform.harness.model.usage import UsageError, meant

if TYPE_CHECKING:
    from opconform.harness.run.backend import Backend


def backend_names() -> list[str]:
    """The registered backends."""
    return list(registered("opconform.backends"))


def parts_of(target: str) -> tuple[str, str, str]:
    """A backend's spec, device and alias: `ggml:Vulkan0@old` is ("ggml", "Vulkan0", "old"); "" where one is missing."""
    alias = re.search(r"@([^@:/\\]*)$", target)
    name = target[: alias.start()] if alias else target
    path, is_file, rest = name.partition(".py:")
    spec, _, device = (rest if is_file else name).partition(":")
    return (f"{path}.py:{spec}" if is_file else spec), device, alias[1] if alias else ""


def without_folder(target: str) -> str:
    """`target` as it is typed in the folder of its file: `mine.py:Mine:0` for `/home/me/mine.py:Mine:0`."""
    path, is_file, rest = target.partition(".py:")
    return f"{Path(path).name}.py:{rest}" if is_file else target


def with_class(target: str) -> str:
    """`target`, with the class of its backend where it names only the file: `mine.py` is `mine.py:Mine`.

    The file is read and not run. Raises `UsageError` where it has no backend, or several.
    """
    alias = re.search(r"@[^@:/\\]*$", target)
    path = target[: alias.start()] if alias else target
    if not path.endswith(".py") or not Path(path).is_file():
        return target
    classes = _backends_in(Path(path))
    if len(classes) != 1:
        many = f"has several backends; name one: {', '.join(f'{path}:{name}' for name in classes)}"
        raise UsageError(f"{path} {many if classes else 'has no class that derives from opconform.Backend'}")
    return f"{path}:{classes[0]}{alias[0] if alias else ''}"


def _backends_in(path: Path) -> list[str]:
    """The classes of a file that derive from `Backend`, in sight of its text; one that others derive from is left
    out."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    found: list[str] = []
    bases: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            if names & {"Backend", *found}:
                found.append(node.name)
                bases |= names
    return [name for name in found if name not in bases]


def split_target(target: str) -> tuple[str, str | None, str]:
    """A backend's spec, device and alias, as `parts_of` has them; the device is None where none is named.

    Raises `UsageError` for a backend that does not exist, and for an alias that no file or shell would like.
    """
    spec, device, alias = parts_of(target)
    path, is_file, _ = spec.partition(".py:")
    if is_file and not Path(path + ".py").is_file():
        raise UsageError(f"no file {path}.py, named by --backend {target}")
    if not is_file and spec.endswith(".py"):
        raise UsageError(f"no file {spec}, named by --backend {target}")
    if not is_file and spec not in backend_names():
        there = f"{', '.join(backend_names())}, or path/to/file.py:Class"
        raise UsageError(f"no backend {spec!r}; there are {there}{meant(spec, backend_names())}")
    if "@" in target[len(spec) + len(device) :] and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", alias):
        raise UsageError(f"--backend {target}: {alias!r} is no alias; it takes letters, digits, dots, dashes and _")
    return spec, device or None, alias


def folder_of(spec: str) -> str:
    """The folder (the last package) that a backend's code is in; "" for one that a file holds."""
    if ".py:" in spec:
        return ""
    return registered("opconform.backends")[spec].module.rpartition(".")[2]


def backend_class(spec: str) -> type[Backend]:
    """The class that `spec` (a registered name or `file.py:Class`) names.

    Raises `UsageError` where there is none, and whatever importing it raises.
    """
    from opconform.harness.run.backend import Backend

    if ".py:" not in spec:
        return cast("type[Backend]", registered("opconform.backends")[spec].load())
    path, _, name = spec.rpartition(":")
    module_spec = importlib.util.spec_from_file_location(f"opconform_backend_{Path(path).stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    module_spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Backend)):
        own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
        classes = [value.__name__ for value in own if isinstance(value, type) and issubclass(value, Backend)]
        raise UsageError(f"{path} has no Backend class {name!r}; it has {', '.join(classes) or 'none'}")
    return found
