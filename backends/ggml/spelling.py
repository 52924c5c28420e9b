"""Values of a call as source: in C++ for a test case, with ctypes for a script, and C++ back into values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from opconform.backends.ggml.declarations import CONSTANTS, DECLARATIONS, Function

#: A tensor is the name of its variable; None is NULL.
Value = bool | int | float | str | Sequence[bool | int | float] | None

_CTYPES = {
    "void": "None",
    "bool": "c_bool",
    "int": "c_int",
    "int32_t": "c_int",
    "int64_t": "c_int64",
    "uint32_t": "c_uint32",
    "size_t": "c_size_t",
    "float": "c_float",
    "const char *": "c_char_p",
    "struct ggml_init_params": "InitParams",
}


def ctype(kind: str) -> str:
    """What ctypes calls a C type; pointers are plain addresses."""
    return _CTYPES.get(kind, "c_int" if kind.startswith("enum ") else "c_void_p")


def signature(function: Function) -> str:
    """A function's result and arguments in ctypes, as the items of a tuple."""
    types = ", ".join(ctype(kind) for kind in (function.result, *function.types))
    return types if function.types else f"{types},"


def fields(struct: str, last: str) -> str:
    """The fields of a struct up to the field `last`, as ctypes takes them."""
    declared = DECLARATIONS.structs[struct]
    names = [name for _, name, _ in declared]
    listed = declared[: names.index(last) + 1]
    return ", ".join(
        f'("{name}", {ctype(kind)}{f" * {length}" if length > 1 else ""})' for kind, name, length in listed
    )


def python(kind: str, value: Value) -> str:
    """A value for a call through ctypes; an element type is a name, such as F32."""
    if isinstance(value, (list, tuple)):
        return f"({ctype(_element(kind))} * {len(value)})({', '.join(map(repr, value))})"
    if kind == "enum ggml_type":
        return _enumerator(kind, value).removeprefix("GGML_TYPE_")
    if isinstance(value, float) and not np.isfinite(value):
        return "-np.inf" if value < 0 else "np.inf"
    return value if isinstance(value, str) else repr(value)


def cpp(kind: str, value: Value) -> str:
    """A value for a call in C++."""
    if value is None:
        return "nullptr"
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        inner = _element(kind)
        return f"std::array<{inner}, {len(value)}>{{{', '.join(cpp(inner, each) for each in value)}}}.data()"
    if kind == "bool":
        return "true" if value else "false"
    if kind == "float":
        return cpp_float(value)
    return _enumerator(kind, value) if kind.startswith("enum ") else str(value)


def _enumerator(kind: str, value: Any) -> str:
    """The name of an enum's value."""
    return next(name for name, number in DECLARATIONS.enums[kind.removeprefix("enum ")].items() if number == value)


def cpp_float(value: Any) -> str:
    """A float literal that reads back as this very number."""
    if not np.isfinite(value):
        return "NAN" if np.isnan(value) else "-INFINITY" if value < 0 else "INFINITY"
    text = str(np.float32(value))
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def read_cpp(text: str) -> Any:
    """The value of a literal as `cpp` writes it."""
    if match := re.search(r"\{(.*)\}", text):
        return [read_cpp(each) for each in match[1].split(", ")]
    if text in ("true", "false"):
        return text == "true"
    if text in CONSTANTS:
        return CONSTANTS[text]
    number = text.removesuffix("f")
    return float(number) if re.search(r"[.e]|NAN|INFINITY", number) else int(number)


def _element(kind: str) -> str:
    """The type of an array's elements."""
    return kind.removeprefix("const ").removesuffix("*").strip()
