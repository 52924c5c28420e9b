"""What may be wrong with a case: the kinds, and one finding."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What a check found: the kind that heads the report, and one line of detail."""

    check: str
    kind: str
    detail: str
