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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

_PLAIN = (bool, int, float, str, bytes, type(None))


class CannotExtractError(Exception):
    """A function that does not stand on its own, and what it lacks."""


def source_of(function: Callable[..., Any]) -> dict[str, str]:
    """The source of `function` with every function and constant that it uses of modules that are not installed, and
    its name. What a closure has kept becomes a name of the module. Raises `CannotExtractError`."""
    collected = _Collected()
    name = collected.function(function, _LAMBDA)
    text = "\n".join([*collected.imports.values(), "", "", "\n\n\n".join(collected.sources.values())])
    return {"source": text.strip() + "\n", "name": name}


class _Collected:
    """What a function needs, by name: import statements, and sources in an order in which they can run."""

    def __init__(self) -> None:
        self.imports: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self._stands_for: dict[str, Any] = {}

    def _is_new(self, name: str, value: Any) -> bool:
        """Whether the name has still to be added. Raises `CannotExtractError` where it stands for something else."""
        if name in self._stands_for and self._stands_for[name] is not value:
            raise CannotExtractError(f"{name} stands for two things")
        return self._stands_for.setdefault(name, value) is value and name not in self.sources

    def function(self, found: Any, name: str) -> str:
        """Add what `found` needs, then `found` itself, a lambda under `name`. Gives back what it is called."""
        function = inspect.unwrap(found)
        if not isinstance(function, types.FunctionType):
            raise CannotExtractError(f"{getattr(found, '__name__', found)} is no function of a module")
        is_lambda = function.__name__ == _LAMBDA_NAME
        own = name if is_lambda else function.__name__
        if not self._is_new(own, found):
            return own
        self.sources[own] = ""  # its place; it may call itself
        kept = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
        for used in dict.fromkeys([*_names(function.__code__), *kept]):
            if used in kept:
                self.add(used, _kept(used, kept[used]))
            elif used in function.__globals__:
                self.add(used, function.__globals__[used])
            elif not hasattr(builtins, used):
                raise CannotExtractError(f"{own} uses {used}, which is not there")
        for decorator in _decorators(found, function):
            self.imports[decorator] = f"from functools import {decorator}"
        del self.sources[own]
        self.sources[own] = f"{own} = {_lambda_source(function)}" if is_lambda else _source(function)
        return own

    def _class(self, found: type) -> None:
        """Add what the body of a class needs, then the class."""
        if not self._is_new(found.__name__, found):
            return
        self.sources[found.__name__] = ""
        try:
            text = _source(found)
        except (OSError, TypeError):
            raise CannotExtractError(f"the class {found.__name__} has no source") from None
        there = vars(sys.modules[found.__module__])
        for name in dict.fromkeys(_evaluated(ast.parse(text))):
            if name in there and name != found.__name__:
                self.add(name, there[name])
        del self.sources[found.__name__]
        self.sources[found.__name__] = text

    def add(self, name: str, value: Any) -> None:
        """Add what a name stands for."""
        if isinstance(value, types.ModuleType):
            if not is_installed(value):
                raise CannotExtractError(f"it uses the module {value.__name__}, which is not installed")
            self.imports[name] = f"import {value.__name__}" + ("" if value.__name__ == name else f" as {name}")
        elif _is_plain(value):
            if self._is_new(name, value):
                self.sources[name] = f"{name} = {value!a}"
        elif not hasattr(value, "__name__"):
            raise CannotExtractError(f"it uses {name}, which is neither a function nor a plain value")
        elif is_installed(sys.modules.get(getattr(value, "__module__", None) or "")):
            self.imports[name] = f"from {value.__module__} import {value.__name__}" + (
                "" if value.__name__ == name else f" as {name}"
            )
        elif isinstance(value, type):
            self._class(value)
            self._alias(name, value.__name__, value)
        else:
            self._alias(name, self.function(value, name), value)

    def _alias(self, name: str, own: str, value: Any) -> None:
        if name != own and self._is_new(name, value):
            self.sources[name] = f"{name} = {own}"


_LAMBDA_NAME = "<lambda>"
_LAMBDA = "function_at_fault"  #: what the function itself is called where it is a lambda


def _kept(name: str, cell: types.CellType) -> Any:
    """What a closure has kept under a name."""
    try:
        return cell.cell_contents
    except ValueError:
        raise CannotExtractError(f"it keeps {name}, which has no value") from None


def _source(found: Any) -> str:
    return textwrap.dedent(inspect.getsource(found)).strip()


def _lambda_source(function: types.FunctionType) -> str:
    """The source of a lambda: the one in its line that is compiled to the same code."""
    code = function.__code__
    text = "".join(inspect.findsource(function)[0])
    found = {
        f"({source})" if "\n" in source else source
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno
        for source in [ast.get_source_segment(text, node) or ""]
        if _shape(_compiled(source, code.co_freevars)) == _shape(code)
    }
    if len(found) != 1:
        raise CannotExtractError(f"the lambda in line {code.co_firstlineno} cannot be told from others there")
    return found.pop()


def _compiled(source: str, kept: Iterable[str]) -> types.CodeType:
    """The code of a lambda inside a function with the names that it keeps."""
    module = compile(f"def _({', '.join(kept)}):\n    return (\n{source}\n)\n", "<lambda>", "exec")
    outer = next(each for each in module.co_consts if isinstance(each, types.CodeType))
    return next(each for each in outer.co_consts if isinstance(each, types.CodeType))


def _shape(code: types.CodeType) -> tuple[Any, ...]:
    constants = tuple(each if not isinstance(each, types.CodeType) else _shape(each) for each in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, [*map(repr, constants)]


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
