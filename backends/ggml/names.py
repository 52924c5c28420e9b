"""The ops that a loaded library itself names, and which of Opconform's ops test them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from opconform.backends.ggml.binding import Binding
from opconform.backends.ggml.graphs import GRAPHS
from opconform.backends.ggml.ops import OPS
from opconform.harness.run.backend import Named

#: The last name in enum ggml_op of every build since July 2025. Nothing says how many ops there are.
_LAST_OP = "GLU"
_NAME = re.compile(r"[A-Z][A-Z0-9_]+")
_MOST = 200  #: names of a kind that are asked for

_VIEWS = frozenset({"NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"})
_CALLBACKS = frozenset({"MAP_CUSTOM1", "MAP_CUSTOM2", "MAP_CUSTOM3", "CUSTOM"})
#: Ops here that test one of ggml's by another name.
_BY_OTHERS = {"FLASH_ATTN_EXT": ("mla_absorbed",), "PAD": ("pad_circular",), "CPY": ("cpy_blocks",)}
#: Those that no caller can compute, and why.
_IMPOSSIBLE = {
    "FLASH_ATTN_BACK": 'ggml_flash_attn_back only aborts ("TODO: adapt to ggml_flash_attn_ext() changes", src/ggml.c)'
}
_MANY = {"UNARY": "the unary ops, below", "GLU": "the gated units, below"}


def names_in(c: Binding) -> Iterator[Named]:
    """Every op, unary op and gated unit by ggml's name."""
    for name in _walk(c, c.ggml_op_name, last=_LAST_OP):
        if name in _VIEWS:
            yield Named(name, "view", (), "it computes nothing")
        elif name in _CALLBACKS:
            yield Named(name, "callback", (), "a function of the caller computes it")
        elif name in _MANY:
            yield Named(name, "group", (), _MANY[name])
        else:
            yield _named(name, "op", (name.lower(), *_BY_OTHERS.get(name, ())))
    units = set(_walk(c, c.ggml_glu_op_name))
    for name in _walk(c, c.ggml_unary_op_name):
        if name in units:  # what stands in memory after the last one
            break
        yield _named(name, "unary op", (name.lower(),))
    for name in sorted(units):
        yield _named(name, "gated unit", (name.lower(), f"{name.lower()}_split"))


def _named(name: str, kind: str, ops: tuple[str, ...]) -> Named:
    found = tuple(op for op in ops if op in OPS or op in GRAPHS)
    why = _IMPOSSIBLE.get(name, "Opconform has no reference of it yet")
    return Named(name, kind, found, "" if found else why)


def _walk(c: Binding, name_of: Callable[[int], Any], last: str = "") -> Iterator[str]:
    """Names in the order of their numbers, up to the last one, or to what is no name of a new op."""
    seen: set[str] = set()
    for number in range(_MOST):
        pointer = name_of(number)
        name = c.text(pointer) if pointer else ""
        if not _NAME.fullmatch(name) or name in seen:
            return
        seen.add(name)
        yield name
        if name == last:
            return
