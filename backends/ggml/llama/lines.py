"""Nodes as lines of text: what llama.cpp's llama-export-graph-ops writes and `test-backend-ops --test-file` reads.

A line has numbers with blanks between, and a name at its end ("-" for none):

    op type ne0 ne1 ne2 ne3 n_params params… n_sources {type ne0 ne1 ne2 ne3 nb0 nb1 nb2 nb3}… name

Sources end at the first that is NULL. An nb0 of 0 stands for a packed source. There is no room for offsets, for strides
of the output, for memory that tensors share, nor for values. Ops go by their numbers in enum ggml_op, which differ
between builds.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from opconform.backends.ggml.declarations import TYPES
from opconform.backends.ggml.llama.cases import OUT, NotACase, case_of, check_row, packed_ne, row_of
from opconform.backends.ggml.llama.records import NO_BUFFER, VIEWS, Memory, Node, Source
from opconform.backends.ggml.names import Numbers
from opconform.backends.ggml.nodes import four_nb, four_ne, is_plain
from opconform.backends.ggml.numbers import numbers_of
from opconform.backends.ggml.ops import OPS
from opconform.backends.ggml.rows import Row
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.layouts import Layout
from opconform.harness.run.lines import NotALineError

LONGEST = 1 << 13  #: characters of a line: ten sources of the largest numbers take two thousand
WORDS = 16  #: of op_params: GGML_MAX_OP_PARAMS bytes
_MOST_SOURCES = 10  #: GGML_MAX_SRC
_LARGEST = 2**63 - 1
_SHOWN = 40  #: characters of a word that is no number
_NO_MEMORY = Memory(-1, 0, 0)
_NAMES = {number: name for name, number in TYPES.items()}
_WORD = re.compile(r"\s*(\S+)")
_NUMBER = re.compile(r"-?[0-9]{1,19}")


def line(node: Node) -> str:
    """The line of a node; nothing for one with a type that cases do not have."""
    present = min(node.missing, default=len(node.sources))
    tensors = [node, *node.sources[:present]]
    if any(tensor.type not in TYPES for tensor in tensors):
        return ""
    words = memoryview(node.params).cast("i").tolist()
    parts: list[object] = [node.number, TYPES[node.type], *node.ne, len(words), *words, present]
    for source in tensors[1:]:
        parts += [TYPES[source.type], *source.ne, *source.nb]
    name = "_".join(node.name.split()) or "-"
    return " ".join(map(str, [*parts, name]))


@dataclass(frozen=True)
class NodeLines:
    """Writes cases as lines, and reads them, with the numbers of one build. See `harness.run.lines.Lines`."""

    build: str
    numbers: Numbers
    form: ClassVar[str] = "op type ne0..3 n_params params n_sources, and for each source type ne0..3 nb0..3"

    @classmethod
    def of(cls, options: Mapping[str, str]) -> NodeLines:
        """The lines of the build that options name. Raises `Unavailable`."""
        return cls(*numbers_of(options))

    @property
    def about(self) -> str:
        return f"test-backend-ops of ggml {self.build}"

    def read(self, text: str) -> tuple[str, Case]:
        try:
            node = node_of(text, self.numbers)
            return node.name, case_of(node)[0]
        except NotACase as reason:
            raise CaseError(str(reason)) from None

    def write(self, case: Case, name: str) -> str:
        row = OPS.get(case.op)
        if row is None:
            raise CaseError(f"{case.op} is no single node of ggml")
        try:
            check_row(row)
            _check_room(case, row)
            text = line(self._node(case, row, name))
            read = self.read(text)[1]
        except NotACase as reason:
            raise CaseError(str(reason)) from None
        if lost := ", ".join(_differing(case, read)):
            raise CaseError(f"a line does not tell {lost} of this case")
        return text

    def _node(self, case: Case, row: Row, name: str) -> Node:
        """The node that a case is, without memory."""
        try:
            op, number, words = self.numbers.numbers(row.node)
        except ValueError:
            raise CaseError(f"{self.about} has no {row.node}") from None
        words = (*words, *row.op_params(case))
        if len(words) > WORDS or not all(-(2**31) <= word < 2**31 for word in words):
            raise CaseError(f"its parameters do not fit into {WORDS} numbers of 32 bits")
        out = case.outputs[OUT]
        ne = packed_ne(case) if row.results else four_ne(out)
        sources = (_source(each, case.layouts[each]) for each in row.tensors if each in case.layouts)
        return Node(
            **_tensor(name, out.dtype, ne, _packed_nb(out.dtype, ne)),
            op=op,
            number=number,
            what=row.node,
            params=struct.pack(f"{WORDS}i", *words, *[0] * (WORDS - len(words))),
            sources=tuple(sources),
            missing=tuple(place for place, each in enumerate(row.tensors) if each not in case.layouts),
        )


def _check_room(case: Case, row: Row) -> None:
    """Raises `CaseError` for what a line has no room for."""
    if case.before is not None:
        raise CaseError("a line has no room for the case that runs before")
    present = [name in case.layouts for name in row.tensors]
    if sorted(present, reverse=True) != present:
        raise CaseError(f"a line's sources end where one is left out, as {row.tensors[present.index(False)]} is")
    for name, owner in case.shares.items():
        raise CaseError(f"a line does not tell that {name} lies in the memory of {owner}")
    for name, layout in case.layouts.items():
        if layout.offset:
            raise CaseError(f"a line has no room for the offset of {name}")
        if name in row.tensors and four_nb(layout)[0] == 0:
            raise CaseError(f"the nb0 of {name} is 0, which stands for a packed tensor in a line")
        own = name not in row.tensors and not (name == OUT and case.inplace)
        if own and not is_plain(layout):
            raise CaseError(f"a line has no room for the strides of {name}")
    if (case.inplace or "") != row.works_in(row.op_params(case)):
        raise CaseError("a line does not tell whether it works in place")


def _differing(case: Case, read: Case) -> Iterator[str]:
    """What of a case is another in what was read of its line; parameters are float32 there."""
    for name in dict.fromkeys((*case.params, *case.layouts)):
        given, found = ((it.params.get(name), it.layouts.get(name)) for it in (case, read))
        if given[1] != found[1] or not _same(given[0], found[0]):
            yield name


def _same(given: Param | None, found: Param | None) -> bool:
    if isinstance(given, float) and isinstance(found, float):
        return bool(np.float32(given) == np.float32(found))
    return given == found


# ---- from a line to a node -------------------------------------------------------------------------------------------


def node_of(text: str, numbers: Numbers) -> Node:
    """The node that a line is of. Each source has memory of its own, but for what the node writes into.

    Raises `NotALineError`, `CaseError` for a number that nothing has, and `NotACase` for an op that there is not here.
    """
    fields = _Fields(text)
    number, kind = fields.take("the op", _LARGEST), fields.take("its type", _LARGEST)
    ne = fields.several("ne", 4)
    words = [fields.take("a parameter", 2**31 - 1, -(2**31)) for _ in range(fields.take("the number of params", WORDS))]
    given = [
        (fields.take("the type of a source", _LARGEST), fields.several("ne", 4), fields.several("nb", 4))
        for _ in range(fields.take("the number of sources", _MOST_SOURCES))
    ]
    name = fields.rest()
    words += [0] * (WORDS - len(words))
    try:
        op, what = numbers.named(number, words[0])
    except LookupError:
        raise CaseError(f"this build has no op of the numbers {number}, {words[0]}") from None
    if op in VIEWS:
        raise CaseError(f"{what} computes nothing")
    sources = tuple(_given(place, *each) for place, each in enumerate(given))
    node = Node(
        **_tensor(name, _type(kind), ne, _packed_nb(_type(kind), ne)),
        op=op,
        number=number,
        what=what,
        params=struct.pack(f"{WORDS}i", *words),
        sources=sources,
    )
    row = row_of(node)
    if len(sources) > len(row.tensors):
        raise CaseError(f"it has {len(sources)} sources; {what} has at most {len(row.tensors)}")
    target = OUT if OUT in row.tensors else row.works_in(words)
    if not target:
        return node
    into = node.source(row.tensors.index(target))
    if into is None or (node.type, node.ne) != (into.type, into.ne):
        raise CaseError(f"{what} writes into a source, and has none of its own sizes and type in that place")
    return replace(node, nb=into.nb, memory=into.memory)


def _given(place: int, number: int, ne: tuple[int, ...], nb: tuple[int, ...]) -> Source:
    kind = _type(number)
    nb = nb if nb[0] else _packed_nb(kind, ne)
    blocks = (-(-ne[0] // DTYPES[kind].block), *ne[1:])
    size = sum((n - 1) * step for n, step in zip(blocks, nb)) + DTYPES[kind].itemsize if all(ne) else 1
    return Source(**_tensor(f"source {place}", kind, ne, nb, Memory(place, 0, size)))


def _source(name: str, layout: Layout) -> Source:
    return Source(**_tensor(name, layout.dtype, four_ne(layout), four_nb(layout)))


def _tensor(
    name: str, kind: str, ne: tuple[int, ...], nb: tuple[int, ...], memory: Memory = _NO_MEMORY
) -> dict[str, Any]:
    """The fields of a `Tensor` that a line knows of."""
    return {"name": name, "type": kind, "ne": ne, "nb": nb, "buffer": NO_BUFFER, "memory": memory}


def _packed_nb(kind: str, ne: tuple[int, ...]) -> tuple[int, ...]:
    return Layout.contiguous(kind, ne[::-1]).nb


def _type(number: int) -> str:
    if number not in _NAMES:
        raise CaseError(f"it has a type of the number {number}; cases have {', '.join(_NAMES.values())}")
    return _NAMES[number]


class _Fields:
    """The words of a line, taken one after another."""

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise NotALineError(f"it has more than {LONGEST} characters")
        self._text, self._at, self._taken = text, 0, 0

    def take(self, what: str, most: int, least: int = 0) -> int:
        found = _WORD.match(self._text, self._at)
        if found is None:
            raise NotALineError(f"it ends where {what} must stand, after {self._taken} numbers")
        word = found[1]
        if not _NUMBER.fullmatch(word) or not least <= int(word) <= most:
            raise NotALineError(f"{word[:_SHOWN]!r} stands where {what} must, a whole number from {least} to {most}")
        self._at, self._taken = found.end(), self._taken + 1
        return int(word)

    def several(self, what: str, count: int) -> tuple[int, ...]:
        return tuple(self.take(f"{what}{place}", _LARGEST) for place in range(count))

    def rest(self) -> str:
        """The name at the end, in which there may be blanks."""
        name = self._text[self._at :].strip()
        return "" if name == "-" else name
