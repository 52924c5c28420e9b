"""OpenCL under Oclgrind, a simulator that checks every access: https://github.com/jrprice/Oclgrind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from opconform.backends.kernels.source import found_in
from opconform.harness.model.case import Case
from opconform.harness.model.findings import Kind
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.sanitizer import Complaint, Sanitizer

_RUNTIME = "liboclgrind-rt.so"
_MAX_ERRORS = str(2**31 - 1)  #: Oclgrind falls silent after so many in one process, and a worker runs many cases

#: How a message begins, and what it is. Oclgrind says nothing of its messages; these are all that its plugins print
#: about a kernel's memory.
_KINDS = (
    (re.compile(r"Invalid (read|write) of size \d+"), Kind.OUT_OF_BOUNDS),
    (re.compile(r"(Read-write|Write-write) data race"), Kind.DATA_RACE),
    (re.compile(r"Uninitialized (value|address)|Control flow depends on uninitialized|.*uninitialized", re.I),
     Kind.UNINITIALISED_READ),
    (re.compile(r"Work-group divergence|Invalid|.*(alignment|not aligned)", re.I), Kind.API_MISUSE),
)  # fmt: skip
_PLACE = re.compile(r"At line (\d+) \(column \d+\) of ([\w.]+):")
_ADDRESS = re.compile(r"(?<= memory) address 0x[0-9a-f]+")


def oclgrind(folders: Sequence[Path]) -> Sanitizer:
    """The checker of kernels in these folders. Raises `Unavailable` where Oclgrind is not installed."""
    program = shutil.which("oclgrind")
    found = [] if program is None else sorted(Path(program).resolve().parent.parent.glob(f"lib*/**/{_RUNTIME}"))
    if not found:
        raise Unavailable("Oclgrind, which checks OpenCL kernels, is not installed", "apt-get install oclgrind")
    runtime = str(found[0])

    def start(log: str) -> tuple[tuple[str, ...], dict[str, str]]:
        # What `oclgrind --data-races --uninitialized` puts into the environment. Without optimisation each access
        # keeps its line, and the compiler makes no `freeze`, which Oclgrind 21.10 cannot interpret.
        environment = {
            "LD_PRELOAD": runtime,
            "OCLGRIND_LOG": log,
            "OCLGRIND_DATA_RACES": "1",
            "OCLGRIND_UNINITIALIZED": "1",
            "OCLGRIND_MAX_ERRORS": _MAX_ERRORS,
            "OCLGRIND_NUM_THREADS": "1",  # with several it loses track, now and then, of what was written
            "OCLGRIND_BUILD_OPTIONS": "-cl-opt-disable",
            "PYOPENCL_NO_CACHE": "1",
        }
        return (), environment

    return Sanitizer(
        "Oclgrind",
        start,
        partial(complaints, folders),
        cannot="an access that stays inside the buffer of its argument (the guards and the poison find those)",
    )


def complaints(folders: Sequence[Path], log: str, case: Case) -> list[Complaint]:
    """What Oclgrind's log says, message by message; a message ends before the next line that begins at the margin."""
    found = []
    for message in re.split(r"\n(?=[^\s])", "\n" + log):
        text = message.strip("\n")
        kind = next((kind for pattern, kind in _KINDS if pattern.match(text)), None)
        if kind is None:
            continue
        places = [(file, int(line)) for line, file in _PLACE.findall(text)]
        kernel = re.search(r"Kernel: (\S+)", text)
        says = _ADDRESS.sub("", text.splitlines()[0])
        if kernel:
            says += f", kernel {kernel[1]}"
        if places and _line(folders, *places[0]):
            says += f": {_line(folders, *places[0])}"
        found.append(Complaint(kind, says, " and ".join(f"{file}:{line}" for file, line in dict.fromkeys(places))))
    return found


def _line(folders: Sequence[Path], file: str, number: int) -> str:
    """A line of a kernel file. Oclgrind shows one too, but counts from where the file stands in what it was given."""
    with suppress(OSError, IndexError):
        return found_in(folders, file).read_text(encoding="utf-8").splitlines()[number - 1].strip()
    return ""
