"""ggml's C interface as data: the functions and enumerators that `declarations.h` names.

cffi reads the same text to call them (`binding.py`). What only writes calls down (a script, a test case in C++) needs
neither cffi nor a libggml.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from opconform.harness.model.dtypes import DTYPES

TENSOR = "struct ggml_tensor *"
CONTEXT = "struct ggml_context *"

_COMMENT = re.compile(r"//[^\n]*")
_FUNCTION = re.compile(r"^(?!typedef)(\w[\w ]*?[ *]+)(\w+)\(([^()]*)\);\n?", re.MULTILINE)
_PARAMETER = re.compile(r"(.*?[ *])\w+(\[\d+\])?")
_STRUCT = re.compile(r"^struct (\w+) \{([^}]*)\}", re.MULTILINE)
_FIELD = re.compile(r"(\w[\w ]*?[ *]+)(\w+)(?:\[(\d+)\])?;")
_ENUM = re.compile(r"^enum (\w+) \{([^}]*)\}", re.MULTILINE)


@dataclass(frozen=True)
class Function:
    """A prototype: the types of the result and of the parameters, as C writes them, and its own text."""

    name: str
    result: str
    types: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Declarations:
    """A header: its text, and its functions, structs (their fields: C type, name, length of an array) and enumerators.

    makers: the functions that put a new tensor into a context. choices: the enumerators by what tells them apart, as a
    case spells it: "lower_diag" of GGML_TRI_TYPE_LOWER_DIAG.
    """

    text: str
    functions: Mapping[str, Function]
    makers: frozenset[str]
    structs: Mapping[str, tuple[tuple[str, str, int], ...]]
    enums: Mapping[str, Mapping[str, int]]
    choices: Mapping[str, Mapping[str, int]]

    @classmethod
    def read(cls, text: str) -> Declarations:
        """What `text` declares, a header in the plain form of `declarations.h`."""
        text = _COMMENT.sub("", text)
        functions = {name: _function(name, result, given) for result, name, given in _FUNCTION.findall(text)}
        makers = frozenset(it.name for it in functions.values() if it.result == TENSOR and it.types[:1] == (CONTEXT,))
        structs = {name: tuple(_fields(body)) for name, body in _STRUCT.findall(text)}
        enums = {name: _enumerators(body) for name, body in _ENUM.findall(text)}
        choices = {name: _choices(found) for name, found in enums.items()}
        return cls(text, functions, makers, structs, enums, choices)


def _function(name: str, result: str, parameters: str) -> Function:
    listed = [" ".join(parameter.split()) for parameter in parameters.split(",")]
    found = filter(None, map(_PARAMETER.fullmatch, listed))  # none of "void"
    types = [f"{match[1].strip()} *" if match[2] else match[1].strip() for match in found]
    return Function(name, result.strip(), tuple(types), f"{result}{name}({', '.join(listed)});")


def _fields(body: str) -> Iterator[tuple[str, str, int]]:
    for kind, name, length in _FIELD.findall(body):
        yield kind.strip(), name, int(length or 1)


def _enumerators(body: str) -> dict[str, int]:
    pairs = (item.split("=") for item in body.split(",") if item.strip())
    return {name.strip(): int(number) for name, number in pairs}


def _choices(enumerators: Mapping[str, int]) -> dict[str, int]:
    words = [name.split("_") for name in enumerators]
    common = sum(1 for _ in takewhile(lambda same: len(set(same)) == 1, zip(*(each[:-1] for each in words))))
    return {"_".join(each[common:]).lower(): number for each, number in zip(words, enumerators.values())}


DECLARATIONS = Declarations.read((Path(__file__).parent / "declarations.h").read_text(encoding="ascii"))

#: Every enumerator's number.
CONSTANTS: Mapping[str, int] = {name: number for enum in DECLARATIONS.enums.values() for name, number in enum.items()}

_NUMBERS = DECLARATIONS.choices["ggml_type"]
#: The element types that ggml has and a case can have, by a case's name for them, which is ggml's (q4_K).
TYPES: Mapping[str, int] = {name: _NUMBERS[name.lower()] for name in DTYPES if name.lower() in _NUMBERS}
