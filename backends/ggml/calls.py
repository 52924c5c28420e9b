"""The calls by which a case's graph is made, with names for tensors: what a script or a test case makes again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from keyword import iskeyword
from typing import Any, cast

from opconform.backends.ggml import spelling
from opconform.backends.ggml.binding import Tensor
from opconform.backends.ggml.declarations import DECLARATIONS
from opconform.backends.ggml.library import Library
from opconform.backends.ggml.nodes import Assemble, Nodes, Site
from opconform.backends.ggml.rows import Row
from opconform.backends.ggml.spelling import Value
from opconform.harness.model.case import Case

#: What the code around the calls has names for (script.py.j2, test_case.cpp.j2): no tensor is called so.
_TAKEN = frozenset(
    (
        "allocator",
        "backend",
        "base",
        "buffer",
        "context",
        "device",
        "ggml",
        "graph",
        "load",
        "memory",
        "nodes",
        "place",
        "places",
        "registry",
        "run",
        "status",
        "tensor",
        "view",
        "whole",
    )
)


@dataclass(frozen=True)
class Call:
    """A call of ggml: the variable that takes the result ("" where it changes its first argument), and the arguments,
    the context left out; a tensor is the name of its variable. A view of any strides has sizes and strides too."""

    result: str
    function: str
    arguments: tuple[Value, ...]
    ne: tuple[int, ...] = ()
    nb: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Call:
        """The call of which `plain` are the fields, as JSON."""
        result, function, *several = (plain[name] for name in ("result", "function", "arguments", "ne", "nb"))
        return cls(result, function, *map(tuple, several))

    @property
    def typed(self) -> Iterable[tuple[str, Value]]:
        """The arguments with their C types."""
        types = DECLARATIONS.functions[self.function].types
        return zip(types[1:] if self.result else types, self.arguments)

    def python(self) -> str:
        """The call through ctypes."""
        if self.ne:
            owner, _, offset = self.arguments
            return f"{self.result} = view(ggml, context, {owner}, {offset}, {self.ne}, {self.nb})"
        given = [*(["context"] if self.result else []), *(spelling.python(kind, value) for kind, value in self.typed)]
        return f"{self.result}{' = ' if self.result else ''}ggml.{self.function}({', '.join(given)})"

    def cpp(self) -> str:
        """The same in C++, for a call that makes a tensor."""
        given = ["ctx", *(spelling.cpp(kind, value) for kind, value in self.typed)]
        return f"ggml_tensor * {self.result} = {self.function}({', '.join(given)});"


@dataclass(frozen=True)
class Calls:
    """A graph: its calls in order, the nodes that write the outputs, the tensors that own an argument's memory (with
    the argument's name), the views of those, and what intermediate results are called. `ends`: whether it was built to
    the end."""

    calls: tuple[Call, ...]
    outs: tuple[str, ...] = ()
    owners: tuple[tuple[str, str], ...] = ()
    views: tuple[str, ...] = ()
    shown: Mapping[str, str] = field(default_factory=dict)
    ends: bool = True

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], calls: Iterable[Call]) -> Calls:
        """The graph of these calls of which `plain` are the other fields, as JSON."""
        owners = tuple((owner, name) for owner, name in plain["owners"])
        return cls(tuple(calls), tuple(plain["outs"]), owners, tuple(plain["views"]), plain["shown"])

    def needed(self) -> Calls:
        """Only the calls that the outputs and the arguments depend on."""
        live: set[Any] = {*self.outs, *self.views, *(owner for owner, _ in self.owners)}
        kept: list[Call] = []
        for call in reversed(self.calls):
            if call.result in live or (not call.result and call.arguments[0] in live):
                live.update(it for it in call.arguments if isinstance(it, str))
                kept.append(call)
        return replace(self, calls=tuple(reversed(kept)))


class Named(Nodes):
    """Nodes that are made, and written down as calls. A tensor of an argument has its name; names end with `suffix`."""

    def __init__(self, site: Site, case: Case, shown: bool = False, suffix: str = "") -> None:
        super().__init__(site, case, shown)
        self.calls: list[Call] = []
        self._names: dict[Any, str] = {}
        self._shown_as: dict[str, str] = {}
        self._suffix = suffix

    def call(self, symbol: str, *arguments: Any, name: str = "") -> Tensor:
        result = self._write(symbol, arguments, name)
        made = super().call(symbol, *arguments)
        if result:
            self._names[made] = result
        return made

    def strided(self, owner: Tensor, offset: int, ne: Sequence[int], nb: Sequence[int], name: str = "") -> Tensor:
        result = self._write("ggml_view_1d", (owner, 1, offset), name, ne, nb)
        view = super().call("ggml_view_1d", owner, 1, offset)
        view.ne, view.nb = ne, nb
        self._names[view] = result
        return view

    def show(self, name: str, tensors: Tensor | Sequence[Tensor], assemble: Assemble) -> None:
        super().show(name, tensors, assemble)
        several = self.stages[-1].tensors
        for number, tensor in enumerate(several):
            self._shown_as[self._names[tensor]] = name if len(several) == 1 else f"{name}, part {number}"

    def written(self) -> Calls:
        """What was made so far."""
        names = self._names
        owners = tuple((names[owner], name) for owner, name in self.owners)
        outs, views = (tuple(names[each] for each in some) for some in (self.outs, self.views))
        return Calls(tuple(self.calls), outs, owners, views, self._shown_as)

    def _write(
        self, symbol: str, arguments: Sequence[Any], name: str, ne: Sequence[int] = (), nb: Sequence[int] = ()
    ) -> str:
        makes = symbol in DECLARATIONS.makers
        result = f"{_variable(name or f't{len(self._names) + 1}')}{self._suffix}" if makes else ""
        self.calls.append(Call(result, symbol, tuple(map(self._said, arguments)), tuple(ne), tuple(nb)))
        return result

    def _said(self, value: Any) -> Value:
        if isinstance(value, (bool, int, float, list)):
            return value
        return None if value == self.null else self._names[value]


class Paper(Named):
    """The same without a library: tensors are only named. For ops of one node, of which nothing must be asked."""

    def __init__(self, case: Case, suffix: str = "") -> None:
        super().__init__(Site(cast(Library, None), None, "", 1, None), case, suffix=suffix)

    @property
    def null(self) -> None:
        return None

    def call(self, symbol: str, *arguments: Any, name: str = "") -> Tensor:
        return self._on_paper(self._write(symbol, arguments, name))

    def strided(self, owner: Tensor, offset: int, ne: Sequence[int], nb: Sequence[int], name: str = "") -> Tensor:
        return self._on_paper(self._write("ggml_view_1d", (owner, 1, offset), name, ne, nb))

    def ask(self, node: Tensor, name: str) -> Tensor:
        return node

    def _on_paper(self, name: str) -> Tensor:
        self._names[name] = name
        return cast(Tensor, name)


def _variable(name: str) -> str:
    """What a tensor of this name is called in Python and in C++."""
    return f"{name}_" if name in _TAKEN or iskeyword(name) else name


def calls_of(case: Case, row: Row, suffix: str = "", has: Callable[[str], bool] = lambda name: True) -> Calls:
    """The graph of an op of one node, in a build that `has` functions."""
    nodes = Paper(case, suffix)
    nodes.made_by(row, row.symbol_for(case, has))
    return nodes.written()
