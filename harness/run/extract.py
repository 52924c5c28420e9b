"""A function's source together with all that it needs of its author's, so that it runs in a script of its own."""

from __future__ import annotations

import ast
import builtins
import dis
import inspect
import math
import sys
import sysconfig
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_PLAIN = (bool, int, float, str, bytes, type(None))


class CannotExtractError(Exception):
    """A function that does not stand on its own, and what it lacks."""


def source_of(function: Callable[..., Any]) -> dict[str, str]:
    """The source of `function` with every function and constant that it uses of modules that are not installed, and
    its name. Raises `CannotExtractError`."""
    imports: dict[str, str] = {}
    sources: dict[str, str] = {}
    _collect(function, imports, sources)
    text = "\n".join([*imports.values(), "", "", "\n\n\n".join(sources.values())])
    return {"source": text.strip() + "\n", "name": function.__name__}


def _collect(found: Any, imports: dict[str, str], sources: dict[str, str]) -> None:
    """Add what `found` needs, then `found` itself."""
    if isinstance(found, type):
        _collect_class(found, imports, sources)
        return
    function = inspect.unwrap(found)
    if not isinstance(function, types.FunctionType) or function.__name__ == "<lambda>" or function.__closure__:
        raise CannotExtractError(f"{getattr(found, '__name__', found)} is not a plain function of a module")
    if function.__name__ in sources:
        return
    sources[function.__name__] = ""  # its place; it may call itself
    for name in _names(function.__code__):
        if name in function.__globals__:
            _add(name, function.__globals__[name], imports, sources)
        elif not hasattr(builtins, name):
            raise CannotExtractError(f"{function.__name__} uses {name}, which is not there")
    for decorator in _decorators(found, function):
        imports[decorator] = f"from functools import {decorator}"
    sources.pop(function.__name__)
    sources[function.__name__] = textwrap.dedent(inspect.getsource(function)).strip()


def _collect_class(found: type, imports: dict[str, str], sources: dict[str, str]) -> None:
    """Add what the body of a class needs, then the class."""
    if found.__name__ in sources:
        return
    sources[found.__name__] = ""
    try:
        text = textwrap.dedent(inspect.getsource(found)).strip()
    except (OSError, TypeError):
        raise CannotExtractError(f"the class {found.__name__} has no source") from None
    there = vars(sys.modules[found.__module__])
    for name in dict.fromkeys(_evaluated(ast.parse(text))):
        if name in there and name != found.__name__:
            _add(name, there[name], imports, sources)
    sources.pop(found.__name__)
    sources[found.__name__] = text


def _evaluated(node: ast.AST) -> Iterator[str]:
    """The names that code reads, annotations left out: a script does not evaluate them."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        yield node.id
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, ast.AST):
                    yield from _evaluated(each)


def _names(code: types.CodeType) -> Iterator[str]:
    """The global names that code looks up, its inner functions' included."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _decorators(found: Any, function: types.FunctionType) -> list[str]:
    """`cache` and `lru_cache`, the only wrappers that are known."""
    if found is function:
        return []
    known = [name for name in ("cache", "lru_cache") if f"@{name}" in inspect.getsource(function)]
    if not known:
        raise CannotExtractError(f"{function.__name__} is wrapped by something unknown")
    return known


def _add(name: str, value: Any, imports: dict[str, str], sources: dict[str, str]) -> None:
    if isinstance(value, types.ModuleType):
        if not is_installed(value):
            raise CannotExtractError(f"it uses the module {value.__name__}, which is not installed")
        imports[name] = f"import {value.__name__}" + ("" if value.__name__ == name else f" as {name}")
    elif _is_plain(value):
        sources[name] = f"{name} = {value!a}"
    elif not hasattr(value, "__name__"):
        raise CannotExtractError(f"it uses {name}, which is neither a function nor a plain value")
    elif is_installed(sys.modules.get(getattr(value, "__module__", None) or "")):
        imports[name] = f"from {value.__module__} import {value.__name__}" + (
            "" if value.__name__ == name else f" as {name}"
        )
    else:
        _collect(value, imports, sources)
        if value.__name__ != name:
            sources[name] = f"{name} = {value.__name__}"


def _is_plain(value: Any) -> bool:
    """Whether a literal gives the value back."""
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, (*value, *value.values())))
    return type(value) in _PLAIN and not (isinstance(value, float) and not math.isfinite(value))


def is_installed(module: types.ModuleType | None) -> bool:
    """Whether a module comes with Python or from a package; Opconform's own never count."""
    if module is None or module.__name__.split(".")[0] == "opconform":
        return False
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__name__ in sys.builtin_module_names
    if {"site-packages", "dist-packages"}.intersection(Path(file).parts):  # another environment's, seen from here
        return True
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(place and Path(file).is_relative_to(place) for place in places)
