"""OpenCL under Oclgrind, a simulator that checks every access: https://github.com/jrprice/Oclgrind."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

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
_PLACE = re.compile(r"At line (\d+) \(column \d+\) of input\.cl:\n\s*(.*)")
_ADDRESS = re.compile(r"(?<= memory) address 0x[0-9a-f]+")


def oclgrind() -> Sanitizer:
    """The checker. Raises `Unavailable` where Oclgrind is not installed."""
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
        complaints,
        cannot="an access that stays inside the buffer of its argument (the guards and the poison find those)",
    )


def complaints(log: str, case: Case) -> list[Complaint]:
    """What Oclgrind's log says, message by message; a message ends before the next line that begins at the margin."""
    found = []
    for message in re.split(r"\n(?=[^\s])", "\n" + log):
        text = message.strip("\n")
        kind = next((kind for pattern, kind in _KINDS if pattern.match(text)), None)
        if kind is None:
            continue
        places = _PLACE.findall(text)
        kernel = re.search(r"Kernel: (\S+)", text)
        says = _ADDRESS.sub("", text.splitlines()[0])
        if kernel:
            says += f", kernel {kernel[1]}"
        if places:
            says += f": {places[0][1].strip()}"
        where = " and ".join(f"{case.op}.cl:{line}" for line in dict.fromkeys(line for line, _ in places))
        found.append(Complaint(kind, says, where))
    return found
