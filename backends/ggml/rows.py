"""How a case becomes a call of ggml, and how a call reads as a case's parameters: one line of data, read both ways.

A row writes a call down as C does, with the case's names for its arguments: `ggml_acc(a, b, nb1, nb2, nb3, offset)`.
The C types are those of `declarations.h`. An argument is one of

    a               a tensor of the case, or a parameter; an output here is a tensor that the op writes into
    mask?           a tensor that a case may leave out: NULL
    {s0 s1 s2 s3}   an array of parameters: int[4]
    out.ne0         a size of a tensor; out.type is its element type
    1  2.5  true    a constant; so are NULL and enumerators (GGML_PREC_F32)

A parameter whose C type is an enum is a word in a case: "lower" is GGML_TRI_TYPE_LOWER.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from opconform.backends.ggml import spelling
from opconform.backends.ggml.declarations import CONSTANTS, DECLARATIONS, TENSOR, TYPES, Declarations
from opconform.backends.ggml.spelling import Value
from opconform.harness.model.case import Case, Param
from opconform.harness.model.layouts import LayoutClass
from opconform.harness.model.limits import Limit

_CALL = re.compile(r"(\w+)\((.*)\)")
_MEMBERS = ("", "ne0", "ne1", "ne2", "ne3", "type", "ne")
_WHOLE = re.compile(r"int\((\w+)\)")
_SIZE = re.compile(r"(\w+)\.ne([0-3])(?:/(\w+))?")


@dataclass(frozen=True)
class Argument:
    """An argument of a call: its C type, and what stands there: what a case has by these `names`, or a `constant`.

    member: "ne0" … "ne3", "ne" (all four) or "type", where it is one of a tensor's own. choices: the words for the
    values of an enum, or those that a row has for a number.
    """

    type: str
    names: tuple[str, ...] = ()
    constant: Value = None
    is_optional: bool = False
    member: str = ""
    choices: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_tensor(self) -> bool:
        return self.type == TENSOR

    @property
    def is_array(self) -> bool:
        return self.type.endswith("*") and not self.is_tensor

    @property
    def params(self) -> tuple[str, ...]:
        """The case's parameters in it."""
        return () if self.is_tensor or self.member else self.names

    @cached_property
    def value(self) -> Callable[[Case], Value]:
        """Its value in a case, where it is no tensor."""
        if not self.names:
            return lambda case: self.constant
        if self.member:
            return self._member
        kind, names = _KINDS.get(self.type, int), self.names
        if self.is_array:
            return lambda case: [kind(case.params[name]) for name in names]
        if self.choices:
            return lambda case: self.choices[str(case.params[names[0]])]
        return lambda case: kind(case.params[names[0]])

    def _member(self, case: Case) -> Value:
        layout = case.layouts[self.names[0]]
        if self.member == "ne":
            return list((*layout.ne, 1, 1, 1)[:4])
        return TYPES[layout.dtype] if self.member == "type" else (*layout.ne, 1, 1, 1)[int(self.member[-1])]

    def param(self, value: bool | int | float) -> Param:
        """What a case has for a value that stands in a call. Raises ValueError for one that it has no word for."""
        if self.choices:
            words = {number: word for word, number in self.choices.items()}
            if value not in words:
                raise ValueError(f"{self.names[0]} is {value}; a case has words for {', '.join(map(str, words))}")
            return words[int(value)]
        return _KINDS.get(self.type, int)(value)


_KINDS: Mapping[str, Callable[[Any], bool | int | float]] = {"bool": bool, "float": float}  #: others are integers


@dataclass(frozen=True)
class Wants:
    """What a device's kernel wants of a case: `Limit` says what `subject` and `allowed` are.

    does: what the kernel does otherwise, as in "aborts unless …". A wrong answer is a known bug, which a known case
    pins.
    """

    device: str
    subject: str
    allowed: LayoutClass | tuple[Any, ...]
    does: str
    source: str
    pinned: str = ""

    def limit(self, op: str) -> Limit:
        """The limit on an op."""
        reason = f"the {op.upper()} of ggml's {self.device} device {self.does}"
        kind: Literal["bug", "kernel"] = "bug" if self.pinned else "kernel"
        return Limit(op, self.subject, self.allowed, reason, self.source, kind, self.device, self.pinned or None)


@dataclass(frozen=True)
class Row:
    """How ggml gets an op.

    call: the call of its constructor, after the context; `inplace` is the name of its in-place twin. once_inplace:
    whether in builds without that twin the constructor itself works in place. stored: what
    the constructor keeps in `op_params`, word by word: names of parameters, numbers, "inplace" (1 or 0), "int(p)" of a
    parameter that C has as a float, sizes ("x.ne1") and how many parts of a size cover them ("x.ne1/w"); by default
    the call's parameters in their order. words: for a parameter that C has as a number, the numbers of a case's words.
    then: functions that change the node afterwards, each with the optional tensor that it takes
    ("ggml_soft_max_add_sinks sinks"), or with a constant. sources: the case's tensors in the order of the node's
    sources, where that is not their order in the call. needs: a function that a build must have, because the
    constructor does something else without it. results: the outputs that stand packed one after another in the one
    tensor that the call makes, where there are several. mixed: whether arguments may differ in their element type.
    named: ggml's name of the node, where that is not the op's own. shaped: what a node keeps neither as a source nor in
    `op_params`, and what of its output gives it: a parameter ("out.ne0"), or a tensor of that shape ("out").
    wants: what kernels of all builds want though supports_op says yes; `limits.py` has the other limits.

    Raises ValueError for a call that is not declared so.
    """

    op: str
    call: str
    inplace: str = ""
    stored: str | None = None
    results: tuple[str, ...] = ()
    needs: str = ""
    sources: str = ""
    words: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    then: tuple[str, ...] = ()
    mixed: bool = False
    once_inplace: bool = False
    named: str = ""
    shaped: Mapping[str, str] = field(default_factory=dict)
    wants: tuple[Wants, ...] = ()
    declarations: Declarations = field(default=DECLARATIONS, repr=False)

    def __post_init__(self) -> None:
        if not _CALL.fullmatch(self.call):
            raise ValueError(f"{self.op}: {self.call} is no call")
        for symbol in filter(None, (self.symbol, self.inplace)):
            function = self.declarations.functions.get(symbol)
            if function is None or symbol not in self.declarations.makers:
                raise ValueError(f"{self.op}: {symbol} is not declared as a function that makes a tensor")
            if function.types != self._types or len(function.types) - 1 != len(self._sources):
                raise ValueError(f"{self.op}: {self.call} has other arguments than {function.text}")
        if unknown := {word for word in self._named if not word.isdigit()} - {*self.params, "inplace"}:
            raise ValueError(f"{self.op}: {self.call} has no {', '.join(sorted(unknown))} to store")

    @cached_property
    def symbol(self) -> str:
        """The constructor."""
        return self.call.partition("(")[0]

    @property
    def node(self) -> str:
        """What ggml calls the node: as ggml_op_desc does, a unary op and a gated unit by their own names."""
        return self.named or self.op.upper()

    @property
    def _types(self) -> tuple[str, ...]:
        function = self.declarations.functions.get(self.symbol)
        return function.types if function else ()

    @property
    def _sources(self) -> list[str]:
        return [source for source in self.call[len(self.symbol) + 1 : -1].split(", ") if source]

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """The arguments after the context."""
        choices = self.declarations.choices
        return tuple(
            _argument(kind, source, self.words.get(source, choices.get(kind.removeprefix("enum "), {})))
            for kind, source in zip(self._types[1:], self._sources)
        )

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """The case's tensors in the call, in the order of a node's sources."""
        if self.sources:
            return tuple(self.sources.split())
        return tuple(name for argument in self.arguments if argument.is_tensor for name in argument.names)

    @cached_property
    def params(self) -> tuple[str, ...]:
        """The case's parameters in the call."""
        return tuple(name for argument in self.arguments for name in argument.params)

    @cached_property
    def _stored(self) -> tuple[str, ...]:
        return self.params if self.stored is None else tuple(self.stored.split())

    @property
    def _named(self) -> Iterator[str]:
        """The parameters and numbers in what is stored."""
        for word in self._stored:
            size, whole = _SIZE.fullmatch(word), _WHOLE.fullmatch(word)
            yield (size[3] or "0") if size else whole[1] if whole else word

    def symbol_for(self, case: Case, has: Callable[[str], bool] = lambda name: True) -> str:
        """The function that makes `case` in a build that `has` functions; nothing where ggml has no such form."""
        if self.once_inplace and not has(self.inplace):
            return self.symbol if case.inplace else ""
        return self.inplace if case.inplace else self.symbol

    def writes_into(self, case: Case) -> bool:
        """Whether the op writes into the memory of an argument of the call."""
        return bool(case.inplace) or any(name in case.outputs for name in self.tensors)

    def changes(self, case: Case) -> Iterator[tuple[str, str]]:
        """The functions that change the node of `case` afterwards, each with a tensor's name or a constant's."""
        for change in self.then:
            function, _, argument = change.partition(" ")
            if argument in CONSTANTS or argument in case.inputs:
                yield function, argument

    # ---- from a case to a call

    def values(self, case: Case, tensor: Callable[[str], Any], null: Any = None) -> list[Any]:
        """The arguments of the call: a tensor is what `tensor` makes of its name, or `null` where the case has none."""
        return [read(case, tensor, null) for read in self._readers]

    @cached_property
    def _readers(self) -> list[Callable[[Case, Callable[[str], Any], Any], Any]]:
        return [_reader(argument) for argument in self.arguments]

    def cpp(self, case: Case, tensor: Callable[[str], str] = str) -> str:
        """The call in C++."""
        given = zip(self.arguments, self.values(case, tensor))
        return f"{self.symbol_for(case)}({', '.join(['ctx', *(spelling.cpp(it.type, value) for it, value in given)])})"

    def op_params(self, case: Case) -> list[int]:
        """What the constructor stores of `case`, in words of 32 bits."""
        words = {"inplace": int(bool(case.inplace))}
        for word in self._stored:
            if size := _SIZE.fullmatch(word):
                n = (*case.layouts[size[1]].ne, 1, 1, 1)[int(size[2])]
                words[word] = -(-n // max(int(case.params[size[3]]), 1)) if size[3] else n
            elif whole := _WHOLE.fullmatch(word):
                words[word] = int(case.params[whole[1]])
        for argument in self.arguments:
            if argument.params:
                value = argument.value(case)
                for name, each in zip(argument.params, value if isinstance(value, list) else [value]):
                    words[name] = int(np.float32(each).view(np.int32)) if argument.type == "float" else int(each)
        return [int(word) if word.isdigit() else words[word] for word in self._stored]

    # ---- and back

    def read(self, op_params: Sequence[int]) -> dict[str, Param]:
        """The parameters that a node holds. One of float32 is the shortest decimal that gives it."""
        owners = {name: argument for argument in self.arguments for name in argument.params}
        found = {}
        for word, number in zip(self._stored, op_params):
            if word in owners:
                is_float = owners[word].type == "float"
                value = float(str(np.int32(number).view(np.float32))) if is_float else int(number)
                found[word] = owners[word].param(value)
            elif whole := _WHOLE.fullmatch(word):
                found[whole[1]] = int(number)
        return found

    def fits(self, op_params: Sequence[int]) -> bool:
        """Whether a node holds the numbers that the constructor stores in every case."""
        return all(number == int(word) for word, number in zip(self._stored, op_params) if word.isdigit())

    def works_in(self, op_params: Sequence[int]) -> str:
        """The tensor that a node works in place of, as far as its parameters tell: the first of the call; nothing for
        none."""
        always = bool(self.inplace) and self.inplace == self.symbol
        told = any(number for word, number in zip(self._stored, op_params) if word == "inplace")
        return next(it.names[0] for it in self.arguments if it.is_tensor) if always or told else ""

    def read_cpp(self, call: str) -> dict[str, Param]:
        """The parameters in a call as `cpp` writes it."""
        match = _CALL.fullmatch(call)
        if match is None or match[1] not in (self.symbol, self.inplace):
            raise ValueError(f"{call} is no call of {self.symbol}")
        found: dict[str, Param] = {}
        for argument, text in zip(self.arguments, re.split(r", (?![^{<]*[}>])", match[2])[1:]):
            if argument.params:
                value = spelling.read_cpp(text)
                values = value if isinstance(value, list) else [value]
                found |= {name: argument.param(each) for name, each in zip(argument.params, values)}
        return found


def _reader(argument: Argument) -> Callable[[Case, Callable[[str], Any], Any], Any]:
    if not argument.is_tensor:
        value = argument.value
        return lambda case, tensor, null: value(case)
    if not argument.names:
        return lambda case, tensor, null: null
    (name,) = argument.names
    if argument.is_optional:
        return lambda case, tensor, null: tensor(name) if name in case.inputs else null
    return lambda case, tensor, null: tensor(name)


def _argument(kind: str, source: str, choices: Mapping[str, int]) -> Argument:
    if source in CONSTANTS:
        return Argument(kind, constant=CONSTANTS[source], choices=choices)
    if source in ("NULL", "true", "false") or source[0] in "-0123456789":
        return Argument(kind, constant=None if source == "NULL" else spelling.read_cpp(source))
    is_array = source.startswith("{")
    name, _, member = source.removesuffix("?").partition(".")
    names = tuple(source.strip("{}").split()) if is_array else (name,)
    made = Argument(kind, names, is_optional=source.endswith("?"), member=member, choices=choices)
    if (is_array or member == "ne") != made.is_array or member not in _MEMBERS or (made.is_tensor and member):
        raise ValueError(f"{source} is nothing for a {kind}")
    return made
