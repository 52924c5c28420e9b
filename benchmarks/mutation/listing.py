"""Which mutants there are, a sample of them, and those that no test can tell from the right kernel."""

from __future__ import annotations

import fnmatch
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults import Mutant, mutants_of
from opconform.harness.run.registry import backend_class

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MUTATED = Path(__file__).parent.parent / "mutated.py"
EQUIVALENTS = Path(__file__).parent.parent / "equivalents.toml"
#: For each backend two classes: the one that the searches run, and the same without its watch for the other ways.
BACKENDS = {"opencl": ("OpenCL", "OpenCL"), "cuda-host": ("CudaHost", "Unwatched")}


def all_mutants(op: str, backend: str) -> list[Mutant]:
    """Every mutant of an op, in the order of its files."""
    kind: Any = backend_class(f"{MUTATED}:{BACKENDS[backend][0]}")
    return mutants_of(op, kind.source(op), backend == "opencl")


def sample(mutants: Sequence[Mutant], count: int | None, seed: int) -> list[Mutant]:
    """So many mutants, of every class of faults in turn; all of them where no number is given."""
    if count is None or count >= len(mutants):
        return list(mutants)
    by_fault: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in random.Random(seed).sample(list(mutants), len(mutants)):
        by_fault[mutant.fault].append(mutant)
    chosen: list[Mutant] = []
    while len(chosen) < count:
        for left in by_fault.values():
            if left and len(chosen) < count:
                chosen.append(left.pop())
    return chosen


@dataclass(frozen=True)
class Equivalent:
    """Mutants that no test can tell from the right kernel. The fields are patterns (`*`, `?`) in which brackets stand
    for themselves, `op` has some separated by blanks, and `nth` is a number."""

    why: str
    op: str = "*"
    backend: str = "*"
    file: str = "*"
    line: str = "*"
    becomes: str = "*"
    fault: str = "*"
    nth: int | None = None

    def covers(self, backend: str, mutant: Mapping[str, Any]) -> bool:
        """Whether a mutant is one of these."""
        ops_ = self.op.split()
        named = ((self.file, "file"), (self.line, "line"), (self.becomes, "becomes"), (self.fault, "fault"))
        return (
            any(fnmatch.fnmatchcase(mutant["op"], name) for name in ops_)
            and fnmatch.fnmatchcase(backend, self.backend)
            and self.nth in (None, mutant["nth"])
            and all(fnmatch.fnmatchcase(mutant[name], pattern.replace("[", "[[]")) for pattern, name in named)
        )


def equivalents() -> list[Equivalent]:
    """Those that are listed."""
    return [Equivalent(**entry) for entry in tomllib.loads(EQUIVALENTS.read_text("utf-8")).get("equivalent", [])]
