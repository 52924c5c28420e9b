"""What came of one op on one device: plain data, so that it can travel between processes and into files."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from opconform.harness.failure import Failure


@dataclass
class Tally:
    """Counts of one op on one device. Every case that ran is passed or failed; the others have a reason.

    free: elements of which nothing could be demanded (float32 overflows there, or the reference is NaN).
    """

    passed: int = 0
    failed: int = 0
    unsupported: Counter[str] = field(default_factory=Counter)
    free: int = 0
    seconds: float = 0.0

    @property
    def executed(self) -> int:
        return self.passed + self.failed


@dataclass(frozen=True)
class KnownBug:
    """A fault that the limits keep the search away from: whether its pinned case still fails."""

    id: str
    reason: str
    still_fails: bool


@dataclass(frozen=True)
class Result:
    """One op on one device: `target` is what `--backend` takes, `device` one line on the device.

    failed_known: ids of known cases that fail. left_out: ids of known cases larger than --max-bytes.
    """

    op: str
    target: str
    device: str
    tally: Tally
    failure: Failure | None = None
    failed_known: tuple[str, ...] = ()
    known_bugs: tuple[KnownBug, ...] = ()
    limits: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        plain: dict[str, Any] = {
            "op": self.op,
            "target": self.target,
            "device": self.device,
            "tally": {**asdict(self.tally), "unsupported": dict(self.tally.unsupported)},
            "failure": None if self.failure is None else self.failure.to_json(),
            "failed_known": list(self.failed_known),
            "known_bugs": [asdict(bug) for bug in self.known_bugs],
            "limits": list(self.limits),
            "left_out": list(self.left_out),
        }
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Result:
        """The result that `to_json` gave."""
        tally = {**plain["tally"], "unsupported": Counter(plain["tally"]["unsupported"])}
        return cls(
            op=plain["op"],
            target=plain["target"],
            device=plain["device"],
            tally=Tally(**tally),
            failure=None if plain["failure"] is None else Failure.from_json(plain["failure"]),
            failed_known=tuple(plain["failed_known"]),
            known_bugs=tuple(KnownBug(**bug) for bug in plain["known_bugs"]),
            limits=tuple(plain["limits"]),
            left_out=tuple(plain["left_out"]),
        )
