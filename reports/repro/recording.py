"""The calls by which the ggml backend builds a graph of many nodes, for a script to make them again.

The backend's own builders run, on the libggml and the device of the failure, and what they call is written down on the
way: script and backend cannot drift apart. That happens in a process of its own, for ggml ends it where it asserts;
each call is written before it is made, so that the last one is then the one to blame.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from opconform.backends.ggml import GRAPHS
from opconform.backends.ggml.composite import Nodes, RefusedError
from opconform.backends.ggml.graph import TYPES, Arena
from opconform.backends.ggml.library import load
from opconform.harness.model.case import Case
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.script import CannotWriteError, ScriptRequest

_SECONDS = 60.0
_START = "from opconform.reports.repro.recording import main; main()"

#: C types as ctypes names them.
C_TYPES = {
    ctypes.c_void_p: "c_void_p",
    ctypes.c_bool: "c_bool",
    ctypes.c_float: "c_float",
    ctypes.c_int: "c_int",
    ctypes.c_size_t: "c_size_t",
    ctypes.c_int64: "c_int64",
}


@dataclass(frozen=True)
class Call:
    """A call of ggml: the variable that takes the result ("" for none), the arguments as Python source after the
    context, where `in_context`, and the C types of all arguments. For a view of any strides `ne` and `nb` are set."""

    result: str
    function: str
    arguments: tuple[str, ...]
    types: tuple[str, ...]
    in_context: bool
    ne: tuple[int, ...] = ()
    nb: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """A graph: its calls in order, the nodes that write the outputs, the tensors that own an argument's memory (with
    the argument's name), the views of those, and what intermediate results are called. `ends`: whether it was built to
    the end."""

    calls: tuple[Call, ...]
    outs: tuple[str, ...] = ()
    owners: tuple[tuple[str, str], ...] = ()
    views: tuple[str, ...] = ()
    shown: Mapping[str, str] = field(default_factory=dict)
    ends: bool = True


def graphs_of(request: ScriptRequest) -> tuple[Recorded, ...]:
    """The graphs of many nodes that the backend builds of a script's cases. Raises `CannotWriteError`."""
    folder = ggml_folder(request.options.get("ggml_lib", ""))
    return tuple(record(case, folder, request.device, suffix, request.deadly) for suffix, case, _ in request.cases)


def ggml_folder(option: str) -> str:
    """The folder that the ggml backend has loaded: the option, else the environment's."""
    return option or os.environ.get("OPCONFORM_GGML_LIB", "")


def record(case: Case, folder: str, device: str, suffix: str = "", fatal: bool = False) -> Recorded:
    """The graph that the backend builds of `case` with the libggml in `folder` for `device`; `suffix` ends every name.
    Calls whose result nothing needs are left out.

    Raises `CannotWriteError` where it cannot be built; where building it ends the process only if that is not
    expected (`fatal`).
    """
    with tempfile.TemporaryDirectory(prefix="opconform-") as place:
        file = Path(place) / "calls"
        command = [sys.executable, "-c", _START, folder, device, suffix, str(file)]
        plain = json.dumps(replace(case, data=None).to_json())
        try:
            done = subprocess.run(
                command, input=plain, capture_output=True, text=True, errors="replace", timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise CannotWriteError(f"building its graph of ggml's nodes takes more than {_SECONDS:g} s") from None
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    calls = tuple(_call(line["call"]) for line in lines if "call" in line)
    last: dict[str, Any] = lines[-1] if lines else {}
    if "why" in last:
        raise CannotWriteError(last["why"])
    if "outs" not in last and not (fatal and calls):
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CannotWriteError(f"its graph cannot be built here: {said}")
    if "outs" not in last:
        return Recorded(calls, ends=False)
    owners = tuple((owner, name) for owner, name in last["owners"])
    return _needed(Recorded(calls, tuple(last["outs"]), owners, tuple(last["views"]), last["shown"]))


def _call(plain: Mapping[str, Any]) -> Call:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
    return Call(**fields)


def _needed(graph: Recorded) -> Recorded:
    """Only the calls that the outputs and the arguments depend on."""
    live = {*graph.outs, *graph.views, *(owner for owner, _ in graph.owners)}
    kept: list[Call] = []
    for call in reversed(graph.calls):
        if call.result in live or (not call.result and call.arguments[0] in live):
            live.update(call.arguments)
            kept.append(call)
    return replace(graph, calls=tuple(reversed(kept)))


class _Recorder:
    """A libggml that writes down which tensors are made by which calls, from the last `ggml_reset` on."""

    def __init__(self, library: Any, suffix: str) -> None:
        self._library = library
        self._suffix = suffix
        self._file: TextIO | None = None
        self._nodes: Nodes | None = None
        self._forget(0)

    def _forget(self, context: int) -> None:
        self._context = context
        self._calls: list[Call] = []
        self._unnamed = 0  # calls that are not in the file yet
        self.names: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._library, name)
        types = getattr(found, "argtypes", None)
        makes_or_changes = types and types[0] is ctypes.c_void_p and found.restype in (None, ctypes.c_void_p)
        if not makes_or_changes or name.startswith(("ggml_backend_", "ggml_gallocr_")):
            return found
        return lambda *arguments: self._made(name, found, arguments)

    def _made(self, name: str, function: Any, arguments: Sequence[Any]) -> Any:
        """The function's result, after the call was written down."""
        first = arguments[0]
        if name == "ggml_reset":
            self._forget(first)
        if name == "ggml_reset" or (first != self._context and first not in self.names):
            return function(*arguments)
        in_context = first == self._context
        result = f"t{len(self.names) + 1}{self._suffix}" if in_context else ""
        types = function.argtypes[in_context:]
        given = tuple(
            self._source(value, kind, name, place)
            for place, (value, kind) in enumerate(zip(arguments[in_context:], types))
        )
        self.sized()
        kinds = tuple(C_TYPES[kind] for kind in function.argtypes)
        self._calls.append(Call(result, name, given, kinds, in_context))
        if name != "ggml_view_1d":  # whose sizes follow
            self._write()
        tensor = function(*arguments)
        if in_context:
            self.names[tensor] = result
        return tensor

    def _source(self, value: Any, kind: Any, function: str, place: int) -> str:
        if kind is ctypes.c_void_p:
            return "None" if value is None else self.names[value]
        if function.startswith("ggml_new_tensor") and place == 0:
            return next(name.upper() for name, number in TYPES.items() if number == value)
        if isinstance(value, float) and math.isinf(value):
            return "-np.inf" if value < 0 else "np.inf"
        return repr(value)

    def sized(self) -> None:
        """Give the view that was made last the sizes that it has got since."""
        if self._nodes is None or not self._calls or self._calls[-1].function != "ggml_view_1d" or self._calls[-1].ne:
            return
        (tensor,) = (tensor for tensor, name in self.names.items() if name == self._calls[-1].result)
        self._calls[-1] = replace(self._calls[-1], ne=self._nodes.ne(tensor), nb=self._nodes.nb(tensor))
        self._write()

    def arguments(self, case: Case, nodes: Nodes, file: TextIO) -> None:
        """Name the arguments' tensors, which were made so far; write down these calls and, from now on, every other."""
        tensors = {self.names[nodes[name]]: nodes[name] for name in case.layouts}
        renamed = {self.names[nodes[name]]: name + self._suffix for name in case.layouts}
        for call in self._calls:
            if call.function == "ggml_view_1d":
                renamed[call.arguments[0]] = f"{renamed[call.result].removesuffix(self._suffix)}_memory{self._suffix}"
        for index, call in enumerate(self._calls):
            if call.function == "ggml_view_1d":
                tensor = tensors[call.result]
                call = replace(call, ne=nodes.ne(tensor), nb=nodes.nb(tensor))
            given = tuple(renamed.get(argument, argument) for argument in call.arguments)
            self._calls[index] = replace(call, result=renamed[call.result], arguments=given)
        self.names = {tensor: renamed[name] for tensor, name in self.names.items()}
        self._nodes, self._file = nodes, file
        self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        for call in self._calls[self._unnamed :]:
            self._file.write(json.dumps({"call": vars(call)}) + "\n")
        self._file.flush()
        self._unnamed = len(self._calls)


def main() -> None:
    """Record the case on standard input: argv names the library's folder, the device, the suffix and the result."""
    folder, device, suffix, result = sys.argv[1:]
    case = Case.from_json(json.load(sys.stdin), 1 << 62)
    with open(result, "w", encoding="utf-8") as file:
        for line in _lines(case, folder, device, suffix, file):
            file.write(json.dumps(line) + "\n")
            file.flush()


def _lines(case: Case, folder: str, device: str, suffix: str, file: TextIO) -> Iterator[dict[str, Any]]:
    """What is written beside the calls."""
    try:
        library = load({"ggml_lib": folder})
        handle = library.devices().get(device)
        if handle is None:
            yield {"why": f"its graph cannot be built here: this libggml has no device {device}"}
            return
        recorder = _Recorder(library, suffix)
        arena = Arena(recorder, handle)  # type: ignore[arg-type]
        shown: dict[str, str] = {}

        def build(nodes: Nodes) -> None:
            recorder.arguments(case, nodes, file)

            def show(name: str, tensors: int | Sequence[int], assemble: Any) -> None:
                several = [tensors] if isinstance(tensors, int) else list(tensors)
                for number, tensor in enumerate(several):
                    shown[recorder.names[tensor]] = name if len(several) == 1 else f"{name}, part {number}"

            nodes.show = show  # type: ignore[method-assign]
            GRAPHS[case.op](nodes)

        graph = arena.compose(case, build)
        recorder.sized()
    except RefusedError as refused:
        yield {"why": f"its graph cannot be built here: {refused}"}
        return
    except Unavailable as error:
        yield {"why": f"its graph cannot be built here: {error.reason}"}
        return
    yield {
        "outs": [recorder.names[out] for out in graph.outs],
        "owners": [(recorder.names[owner], name) for owner, name in graph.owners],
        "views": [recorder.names[view] for view in graph.views],
        "shown": shown,
    }
