"""Plain data that a stranger may have written: JSON text, read in bounded time, and values checked by their types."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar

PARTS = 1 << 20  #: commas, colons and brackets that a JSON text may have
_LARGEST = 2**63

T = TypeVar("T")
Own = Mapping[type, Callable[[Any, str], Any]]  #: types that read themselves: what makes one of a value and its place


def parsed(text: str | bytes, parts: int = PARTS) -> Any:
    """The JSON data in `text`. Raises `ValueError` (`json.JSONDecodeError` for what is not JSON).

    Refuses what would take far more memory than the text (a hundred million empty lists), what is nested too deep, and
    NaN and infinities, which JSON does not have.
    """
    raw = text.encode(errors="replace") if isinstance(text, str) else text
    if len(raw) > parts and sum(raw.count(mark) for mark in (b",", b":", b"[", b"{")) > parts:
        raise ValueError(f"it has more than {parts:,} parts")
    try:
        return json.loads(text, parse_constant=_refused)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _refused(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no number of JSON")


def decoded(kind: type[T], plain: Any, where: str, own: Own | None = None) -> T:
    """`plain` as a value of the type `kind`: a number, text, a union, a tuple, a mapping, or a dataclass of these.

    A field with a default may be missing; one that the dataclass does not have is passed over, for a newer version may
    have written it. Numbers that JSON lacks may stand as text ("nan"). Raises `ValueError`, which names the place.
    """
    found: T = _decoded(kind, plain, where, own or {})
    return found


def _decoded(kind: Any, plain: Any, where: str, own: Own) -> Any:
    if kind in own:
        return own[kind](plain, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if plain is None and type(None) in arguments:
            return None
        return _decoded(next(one for one in arguments if one is not type(None)), plain, where, own)
    if origin is typing.Literal:
        if isinstance(plain, str) and plain in arguments:
            return plain
        raise _fault(where, plain, f"one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        return _tuple(arguments, plain, where, own)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(plain, dict):
            raise _fault(where, plain, "an object")
        inner = int if origin is Counter else arguments[1]
        found = {name: _decoded(inner, value, f"{where}.{name[:40]}", own) for name, value in plain.items()}
        return Counter(found) if origin is Counter else found
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, plain, where, own)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _member(kind, plain, where)
    return _scalar(kind, plain, where)


def _member(kind: type[Enum], plain: Any, where: str) -> Enum:
    """The member of an Enum that `plain` is the value of."""
    for member in kind:
        if isinstance(plain, str) and member.value == plain:
            return member
    raise _fault(where, plain, f"one of {', '.join(str(member.value) for member in kind)}")


def _tuple(arguments: tuple[Any, ...], plain: Any, where: str, own: Own) -> tuple[Any, ...]:
    if not isinstance(plain, (list, tuple)):
        raise _fault(where, plain, "a list")
    if arguments[-1] is Ellipsis:
        return tuple(_decoded(arguments[0], value, f"{where}[{i}]", own) for i, value in enumerate(plain))
    if len(plain) != len(arguments):
        raise ValueError(f"{where} has {len(plain)} values; it must have {len(arguments)}")
    return tuple(_decoded(kind, value, f"{where}[{i}]", own) for i, (kind, value) in enumerate(zip(arguments, plain)))


@cache
def _fields(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type and whether it may be missing, of each field of a dataclass."""
    hints = typing.get_type_hints(kind)
    return tuple(
        (field.name, hints[field.name], (field.default, field.default_factory) != (dataclasses.MISSING,) * 2)
        for field in dataclasses.fields(kind)
        if field.init
    )


def _dataclass(kind: Any, plain: Any, where: str, own: Own) -> Any:
    if not isinstance(plain, dict):
        raise _fault(where, plain, "an object")
    values = {}
    for name, hint, optional in _fields(kind):
        if name in plain:
            values[name] = _decoded(hint, plain[name], f"{where}.{name}", own)
        elif not optional:
            raise ValueError(f"{where} has no {name!r}")
    return kind(**values)


def _scalar(kind: Any, plain: Any, where: str) -> Any:
    if kind is float and isinstance(plain, str) and plain in ("nan", "inf", "-inf"):
        return float(plain)
    if kind is float and isinstance(plain, int) and not isinstance(plain, bool) and abs(plain) < _LARGEST:
        return float(plain)
    if kind is float and isinstance(plain, float) and math.isfinite(plain):
        return plain
    if kind is int and isinstance(plain, int) and not isinstance(plain, bool) and abs(plain) < _LARGEST:
        return plain
    if kind in (str, bool) and isinstance(plain, kind):
        return plain
    if kind not in _NAMES:
        raise TypeError(f"{where}: nothing reads a {kind}")
    raise _fault(where, plain, _NAMES[kind])


_NAMES: dict[Any, str] = {str: "text", int: "a whole number of 64 bits", float: "a number", bool: "a truth value"}


def _fault(where: str, plain: Any, wanted: str) -> ValueError:
    if isinstance(plain, (dict, list, tuple)):
        shown = "an object" if isinstance(plain, dict) else "a list"
    else:
        shown = repr(plain[:40] if isinstance(plain, str) else plain)
    return ValueError(f"{where} is {shown}; it must be {wanted}")
