"""The calls by which the backend builds a graph of many nodes, written down while it does so.

The backend's own builders run, on the libggml and the device of the failure: script and backend cannot drift apart.
That happens in a process of its own, for ggml ends it where it asserts; each call is written before it is made, so that
the last one is then the one to blame.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TextIO

from opconform.backends.ggml.arena import Arena
from opconform.backends.ggml.binding import RefusedError
from opconform.backends.ggml.calls import Call, Calls, Named
from opconform.backends.ggml.graphs import GRAPHS
from opconform.backends.ggml.library import VARIABLE, load
from opconform.backends.ggml.nodes import Site
from opconform.harness.model.case import Case
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.script import CannotWriteError, ScriptRequest

_SECONDS = 30.0
_START = "from opconform.backends.ggml.recording import main; main()"


def folder_of(options: Mapping[str, str]) -> str:
    """The folder that the backend has loaded: the option, else the environment's."""
    return options.get("ggml_lib") or os.environ.get(VARIABLE, "")


def recorded(request: ScriptRequest) -> list[Calls]:
    """The graph of each case of the request. Raises `CannotWriteError`."""
    folder = folder_of(request.options)
    return [record(case, folder, request.device, suffix, request.deadly) for suffix, case, _ in request.cases]


def record(case: Case, folder: str, device: str, suffix: str = "", fatal: bool = False) -> Calls:
    """The graph that the backend builds of `case` with the libggml in `folder` for `device`; `suffix` ends every name.
    Calls whose result nothing needs are left out.

    Raises `CannotWriteError` where it cannot be built; where building it ends the process only if that is not
    expected (`fatal`).
    """
    plain = json.dumps(replace(case, data=None).to_json())
    calls, last, said = _written_down(plain, folder, device, suffix)
    if "why" in last:
        raise CannotWriteError(last["why"])
    if "graph" in last:
        return Calls.from_json(last["graph"], calls).needed()
    if fatal and calls:
        return Calls(calls, ends=False)
    raise CannotWriteError(f"its graph cannot be built here: {said}")


@lru_cache(maxsize=2)  # the script and the test case of one bundle ask for the same graph
def _written_down(case: str, folder: str, device: str, suffix: str) -> tuple[tuple[Call, ...], dict[str, Any], str]:
    """The calls, the line behind them, and the last words of the process. Raises `CannotWriteError`."""
    with tempfile.TemporaryDirectory(prefix="opconform-") as place:
        file = Path(place) / "calls"
        command = [sys.executable, "-c", _START, folder, device, suffix, str(file)]
        try:
            done = subprocess.run(
                command, input=case, capture_output=True, text=True, errors="replace", timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise CannotWriteError(f"building its graph of ggml's nodes takes more than {_SECONDS:g} s") from None
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    calls = tuple(Call.from_json(line["call"]) for line in lines if "call" in line)
    said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return calls, lines[-1] if lines else {}, said


# ---- in that process -------------------------------------------------------------------------------------------------


class _Recording(Named):
    """Writes each call into a file before it is made."""

    def __init__(self, site: Site, case: Case, shown: bool = False, *, suffix: str, file: TextIO) -> None:
        super().__init__(site, case, shown, suffix)
        self._file = file

    def _write(self, *call: Any) -> str:
        result = super()._write(*call)
        print(json.dumps({"call": asdict(self.calls[-1])}), file=self._file, flush=True)
        return result


def main() -> None:
    """Record the case on standard input: argv names the library's folder, the device, the suffix and the result."""
    folder, device, suffix, result = sys.argv[1:]
    case = Case.from_json(json.load(sys.stdin), 1 << 62)
    with open(result, "w", encoding="utf-8") as file:
        for line in _lines(case, folder, device, suffix, file):
            print(json.dumps(line), file=file, flush=True)


def _lines(case: Case, folder: str, device: str, suffix: str, file: TextIO) -> Iterator[dict[str, Any]]:
    """What is written behind the calls."""
    try:
        library = load({"ggml_lib": folder})
        handle = library.devices().get(device)
        if handle is None:
            yield {"why": f"its graph cannot be built here: this libggml has no device {device}"}
            return
        kind = partial(_Recording, suffix=suffix, file=file)
        nodes = Arena(library, handle).compose(case, GRAPHS[case.op], kind=kind)
        assert isinstance(nodes, Named)
    except RefusedError as refused:
        yield {"why": f"its graph cannot be built here: {refused}"}
    except Unavailable as error:
        yield {"why": f"its graph cannot be built here: {error.reason}"}
    else:
        yield {"graph": asdict(replace(nodes.written(), calls=()))}
