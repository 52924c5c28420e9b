"""Values of a call as source: in C++ for a test case, with ctypes for a script, and C++ back into values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from opconform.backends.ggml.declarations import DECLARATIONS, Function

#: A tensor is the name of its variable; None is NULL.
Value = bool | int | float | str | Sequence[bool | int | float] | None

_CTYPES = {
    "void": "None",
    "bool": "c_bool",
    "int": "c_int",
    "int32_t": "c_int",
    "int64_t": "c_int64",
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


def python(kind: str, value: Value) -> str:
    """A value for a call through ctypes."""
    if isinstance(value, (list, tuple)):
        return f"({ctype(_element(kind))} * {len(value)})({', '.join(map(repr, value))})"
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
    enum = kind.removeprefix("enum ")
    return f"({enum}) {value}" if enum in DECLARATIONS.enums else str(value)


def cpp_float(value: Any) -> str:
    """A float literal that reads back as this very number."""
    text = str(np.float32(value))
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def read_cpp(text: str) -> Any:
    """The value of a literal as `cpp` writes it."""
    if match := re.search(r"\{(.*)\}", text):
        return [read_cpp(each) for each in match[1].split(", ")]
    if text in ("true", "false"):
        return text == "true"
    number = re.sub(r"^\(\w+\) ", "", text).removesuffix("f")
    return float(number) if re.search(r"[.e]|inf|nan", number) else int(number)


def _element(kind: str) -> str:
    """The type of an array's elements."""
    return kind.removeprefix("const ").removesuffix("*").strip()
