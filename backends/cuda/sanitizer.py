"""CUDA under compute-sanitizer, which comes with the CUDA toolkit: https://docs.nvidia.com/compute-sanitizer."""

from __future__ import annotations

import os
import re
import shutil

from opconform.harness.model.case import Case
from opconform.harness.model.findings import Kind
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.sanitizer import Complaint, Sanitizer

TOOL = "OPCONFORM_CUDA_CHECK"  #: the environment variable that chooses the tool
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")  #: one of them per run; the first is the default

_KINDS = (
    (re.compile(r"Uninitialized"), Kind.UNINITIALISED_READ),
    (re.compile(r"Race reported|hazard"), Kind.DATA_RACE),
    (re.compile(r"Invalid __(global|shared|local)__ (read|write|atomic)|out of bounds"), Kind.OUT_OF_BOUNDS),
    (re.compile(r"Barrier error|Program hit|Invalid|Misaligned"), Kind.API_MISUSE),
)
_PLACE = re.compile(r"in (?:\S*/)?([\w.-]+\.(?:cu|cl|h)):(\d+)")


def compute_sanitizer() -> Sanitizer:
    """The checker. Raises `Unavailable` where compute-sanitizer is not installed."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise Unavailable("compute-sanitizer is not on PATH", "it comes with the CUDA toolkit")
    tool = os.environ.get(TOOL, TOOLS[0])
    if tool not in TOOLS:
        raise Unavailable(f"{TOOL} is {tool!r}", f"it must be one of {', '.join(TOOLS)}")

    def start(log: str) -> tuple[tuple[str, ...], dict[str, str]]:
        return (program, "--tool", tool, "--log-file", log, "--print-limit", "1000"), {}

    return Sanitizer(f"compute-sanitizer ({tool})", start, complaints, cannot="more than one tool's faults in a run")


def complaints(log: str, case: Case) -> list[Complaint]:
    """What the log says: every line begins with =========, and a message's first one is not set in."""
    lines = [line.removeprefix("=========") for line in log.splitlines() if line.startswith("=========")]
    messages: list[list[str]] = []
    for line in lines:
        if re.match(r" \S", line):
            messages.append([])
        if messages:
            messages[-1].append(line.strip())
    found = []
    for message in messages:
        kind = next((kind for pattern, kind in _KINDS if pattern.search(message[0])), None)
        if kind is not None:
            places = dict.fromkeys(f"{file}:{line}" for line_of in message for file, line in _PLACE.findall(line_of))
            found.append(Complaint(kind, message[0].split(" at ")[0], " and ".join(places)))
    return found
