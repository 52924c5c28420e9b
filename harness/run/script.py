"""The seam between a bundle and a backend: the backend writes the part of `repro.py` that calls its API.

A bundle asks with a `ScriptRequest` and gets a `Script`. Both are plain data with JSON both ways, because
`Backend.script` runs in a process of its own: the file that a user's class comes from may do anything.

`repro.py` is one module, and at its top level a backend's part finds: `np`, `sys`, `SIZE` (bytes of the memory),
`TENSORS` (by name: NumPy type, shape, byte strides, first byte), `at(memory, name)` (a tensor's elements), and
`cannot(why)`, which ends the script where this machine cannot tell. A tensor has the name of its argument with the
suffix of its case.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from opconform.harness.model.buffers import GUARD, Plan
from opconform.harness.model.case import Case

#: Files of a bundle that no backend may write.
TAKEN = ("repro.py", "case.json", "issue.md", "bundle.json", "map.svg")
LARGEST = 4 << 20  #: bytes of all of a script's files, and of its own text
_ANY_SIZE = 1 << 62


class CannotWriteError(Exception):
    """There is no script for this case; the text says why, in one line."""


class Placed(NamedTuple):
    """A case that a script runs: what its arguments' names end with, and where its arguments stand in the memory."""

    suffix: str
    case: Case
    plan: Plan

    @classmethod
    def at(cls, suffix: str, case: Case, first: int) -> Placed:
        """The case with its arguments from byte `first` on."""
        plan = Plan.of(case)
        slots = {name: replace(slot, start=slot.start + first) for name, slot in plan.slots.items()}
        return cls(suffix, case, Plan(slots, plan.size))


@dataclass(frozen=True)
class ScriptRequest:
    """What a script must do.

    spec: the backend as `--backend` names it. device: the id of the device; about: its name; options: what the backend
    was opened with; versions: those of the device.
    cases: the one that fails, or that one and its twin, with which a check compares it. They lie in one memory.
    repeats: how often the script calls `run`.
    deadly: the fault ends the process or keeps it from ending. raised: the fault is an exception of `run`.
    """

    spec: str
    device: str
    about: str
    cases: tuple[Placed, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    repeats: int = 1
    deadly: bool = False
    raised: bool = False

    @property
    def case(self) -> Case:
        """The case that fails."""
        return self.cases[0].case

    @property
    def op(self) -> str:
        return self.case.op

    @property
    def size(self) -> int:
        """Bytes of the memory that all cases lie in."""
        return sum(plan.size for _, _, plan in self.cases)

    @property
    def windows(self) -> dict[str, tuple[int, int]]:
        """Each tensor's own part of the memory with the guards either side, first byte and end. All of them together
        make up the memory; what lies in place of another has the same one."""
        return {
            name + suffix: (slot.start - GUARD, slot.start + slot.size + GUARD)
            for suffix, _, plan in self.cases
            for name, slot in plan.slots.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data. The values of the cases are left out: the script gets them elsewhere."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        cases, first = [], 0
        for suffix, case, plan in self.cases:
            cases.append([suffix, replace(case, data=None).to_json(), first])
            first += plan.size
        return {**plain, "cases": cases, "options": dict(self.options), "versions": dict(self.versions)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ScriptRequest:
        """The request that `to_json` gave."""
        cases = tuple(Placed.at(end, Case.from_json(case, _ANY_SIZE), first) for end, case, first in plain["cases"])
        return cls(**{**plain, "cases": cases})


@dataclass(frozen=True)
class Script:
    """The part of `repro.py` that calls an API, as Python source. Every piece may be empty but `run`.

    run: the source of `def run(memory)`: it computes the case on all of the memory (uint8, SIZE bytes) and returns what
    the device's memory holds afterwards; the source may hold other functions. Where `may_refuse`, it may also return
    None: nothing is computed, so that nothing is wrong.
    constants: what a reader may want to change. definitions: what stands after TENSORS and the values. source: what is
    long, at the end of the file (a kernel).
    imports: statements (`import os`, `from pathlib import Path`) of what every Python has; packages: statements of what
    a machine may lack, NumPy left out: the script then ends and says so.
    needs: what the script needs, as a sentence; usage: how to start it, one indented line each.
    files: other files of the bundle, by path; the script finds them beside itself.
    command and runs_with: how the issue says to start it, and what it says is needed beside Python and NumPy.
    """

    run: str
    needs: str = "numpy."
    usage: str = "    python repro.py"
    imports: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    constants: str = ""
    definitions: str = ""
    source: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    may_refuse: bool = False
    command: str = "python repro.py"
    runs_with: str = "the API's own package"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        files = {name: base64.b64encode(content).decode() for name, content in self.files.items()}
        return {**plain, "imports": list(self.imports), "packages": list(self.packages), "files": files}

    @classmethod
    def from_json(cls, plain: Any) -> Script:
        """The script that `to_json` gave. Raises `ValueError` for anything else."""
        if not isinstance(plain, dict) or plain.keys() != {each.name for each in fields(cls)}:
            raise ValueError("it has other fields than a Script")
        found: dict[str, Any] = {}
        for name, value in plain.items():
            if name == "files":
                found[name] = _files(value)
            elif name == "may_refuse":
                found[name] = _of_type(name, value, bool)
            elif name in ("imports", "packages"):
                found[name] = tuple(_of_type(name, line, str) for line in _of_type(name, value, list))
            else:
                found[name] = _of_type(name, value, str)
        if sum(len(text) for text in found.values() if isinstance(text, str)) > LARGEST:
            raise ValueError(f"its text is longer than {LARGEST >> 20} MiB")
        return cls(**found)


def _of_type(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"its {name} is no {kind.__name__}: {value!r:.60}")
    return value


def _files(plain: Any) -> dict[str, bytes]:
    found = {}
    for name, text in _of_type("files", plain, dict).items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name or name == "." or not name.isprintable():
            raise ValueError(f"it has a file {name!r:.60}, which is no path below the bundle")
        if name in TAKEN:
            raise ValueError(f"it has a file {name}, which is the bundle's own")
        found[name] = base64.b64decode(_of_type("files", text, str), validate=True)
    if sum(map(len, found.values())) > LARGEST:
        raise ValueError(f"its files take more than {LARGEST >> 20} MiB")
    return found
