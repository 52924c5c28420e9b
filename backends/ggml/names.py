"""The ops that a loaded library itself names, and which of Opconform's ops test them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
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
#: Graphs of ours that test one of ggml's ops.
_BY_GRAPHS = {"FLASH_ATTN_EXT": ("mla_absorbed",)}
#: Those that no caller can compute, and why.
_IMPOSSIBLE = {
    "FLASH_ATTN_BACK": 'ggml_flash_attn_back only aborts ("TODO: adapt to ggml_flash_attn_ext() changes", src/ggml.c)'
}
UNARY, GATED = "UNARY", "GLU"
_MANY = {UNARY: "the unary ops, below", GATED: "the gated units, below"}


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
            yield _named(name, "op")
    numbers = numbered(c)
    for name in numbers.units:
        yield _named(name, "unary op")
    for name in sorted(numbers.gates):
        yield _named(name, "gated unit")


@dataclass(frozen=True)
class Numbers:
    """How a build numbers what differs between builds: names of ops, unary ops and gated units (enum ggml_op,
    ggml_unary_op, ggml_glu_op), each at the index that is its number."""

    ops: tuple[str, ...]
    units: tuple[str, ...]
    gates: tuple[str, ...]

    def named(self, number: int, first: int) -> tuple[str, str]:
        """The op of a number, and what ggml_op_desc says where `first` is the first word of `op_params`. Raises
        LookupError for a number that there is not."""
        kinds = {UNARY: self.units, GATED: self.gates}
        op = self.ops[number]
        if op in kinds and first < 0:
            raise LookupError(first)
        return op, kinds[op][first] if op in kinds else op

    def numbers(self, what: str) -> tuple[str, int, tuple[int, ...]]:
        """The op of what ggml_op_desc says, its number, and the words of `op_params` that say which unary op it is (the
        row of a gated unit has its own). Raises ValueError for what the build does not have."""
        if what in self.units:
            return UNARY, self.ops.index(UNARY), (self.units.index(what),)
        op = GATED if what in self.gates else what
        return op, self.ops.index(op), ()


def numbered(c: Binding) -> Numbers:
    """The numbers of a library."""
    gates = tuple(_walk(c, c.ggml_glu_op_name))
    ahead = takewhile(
        lambda name: name not in gates, _walk(c, c.ggml_unary_op_name)
    )  # then comes what stands behind it
    return Numbers(tuple(_walk(c, c.ggml_op_name, last=_LAST_OP)), tuple(ahead), gates)


def _named(name: str, kind: str) -> Named:
    rows = (row.op for row in OPS.values() if row.node == name)
    graphs = (op for op in (name.lower(), *_BY_GRAPHS.get(name, ())) if op in GRAPHS)
    found = tuple(dict.fromkeys((*rows, *graphs)))
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
