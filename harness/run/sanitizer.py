"""A run under an API's own checker: how its worker is started, and what the checker's log says.

A backend gives its checker with `Backend.sanitizer`. The worker starts under it; after each case the worker sends on
what the checker has written since, and the harness turns it into findings, which are verdicts like any other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from opconform.harness.model.case import Case
from opconform.harness.model.files import regular
from opconform.harness.model.findings import Finding, Kind

OPTION = "sanitize"  #: the option that a backend's worker is started with
LOG = "OPCONFORM_SANITIZER_LOG"  #: the environment variable that tells the worker where the log is
ALIAS = "sanitized"  #: under this name the results stand, apart from those of runs without a checker
_MOST_READ = 1 << 20  #: bytes of a log that are read at once


@dataclass(frozen=True)
class Complaint:
    """One thing that a checker found: its kind (of severity MEMORY), what it says in one line, and where ("set.cl:12",
    or "")."""

    kind: Kind
    says: str
    where: str = ""


@dataclass(frozen=True)
class Excuse:
    """A complaint about the driver itself, known and not held against a case: a pattern, the reason and a link."""

    pattern: str
    reason: str
    link: str


@dataclass(frozen=True)
class Sanitizer:
    """An API's checker.

    start: for the path of a log, the words that go before the worker's command and the environment it needs.
    read: the complaints in a piece of the log that belongs to one case. excuses: complaints that are not counted.
    cannot: what the checker cannot see, in one line.
    """

    name: str
    start: Callable[[str], tuple[Sequence[str], Mapping[str, str]]]
    read: Callable[[str, Case], list[Complaint]]
    excuses: tuple[Excuse, ...] = ()
    cannot: str = ""

    def findings(self, log: str, case: Case) -> tuple[Finding, ...]:
        """One finding per kind and place, in the order in which they first stand in the log."""
        seen: dict[tuple[Kind, str], list[Complaint]] = {}
        for complaint in self.read(log, case):
            if not any(re.search(excuse.pattern, complaint.says) for excuse in self.excuses):
                seen.setdefault((complaint.kind, complaint.where), []).append(complaint)
        return tuple(
            Finding("sanitizer", kind, f"{self.name}: {_said(complaints)}") for (kind, _), complaints in seen.items()
        )


def size_of(path: str) -> int:
    """How many bytes a log has; none where it is gone."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def written(path: str, start: int) -> tuple[str, int]:
    """What a log holds from byte `start` on, the last 1 MiB of it, and how many bytes it has in all. One that is gone,
    or is no file any more, holds nothing."""
    try:
        with regular(Path(path)) as handle:
            end = os.fstat(handle).st_size
            first = max(start, end - _MOST_READ)
            return os.pread(handle, end - first, first).decode(errors="replace") if first < end else "", end
    except OSError:
        return "", 0


def _said(complaints: Sequence[Complaint]) -> str:
    first = complaints[0]
    times = f" ({len(complaints)} times)" if len(complaints) > 1 else ""
    return f"{first.says}{f', at {first.where}' if first.where else ''}{times}"
