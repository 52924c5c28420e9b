"""How a build numbers its ops, asked of a libggml in a process of its own: this one may hold another build."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path

from opconform.backends.ggml import structs
from opconform.backends.ggml.binding import Binding, MissingError
from opconform.backends.ggml.library import REMEDY, VARIABLE, build_of, library_files
from opconform.backends.ggml.names import Numbers, numbered
from opconform.backends.ggml.recording import folder_of
from opconform.harness.run.backend import Unavailable

_SECONDS = 20.0
_START = "from opconform.backends.ggml.numbers import main; main()"


def numbers_of(options: Mapping[str, str]) -> tuple[str, Numbers]:
    """The build that `options` name, and how it numbers its ops. Raises `Unavailable`."""
    folder = folder_of(options)
    if not folder:
        raise Unavailable(f"no libggml was given: {VARIABLE} is not set", REMEDY)
    return _asked(folder)


@cache
def _asked(folder: str) -> tuple[str, Numbers]:
    library_files(Path(folder))
    try:
        done = subprocess.run(
            [sys.executable, "-c", _START, folder], capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"libggml in {folder} does not name its ops within {_SECONDS:g} s", REMEDY) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Unavailable(f"libggml in {folder} does not name its ops: {said}", REMEDY)
    answer = json.loads(done.stdout)
    return answer["build"], Numbers(*(tuple(answer[kind]) for kind in ("ops", "units", "gates")))


def main() -> None:
    """Print the numbers of the libggml in the folder that argv names."""
    base, registry = library_files(Path(sys.argv[1]))
    try:
        c = Binding([path for path in (base, registry) if path])
        structs.check(c)
        print(json.dumps({"build": build_of(c, registry), **asdict(numbered(c))}))
    except (OSError, MissingError, Unavailable) as error:
        sys.exit(str(error))
