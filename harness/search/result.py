"""What came of one op on one device: plain data, so that it can travel between processes and into files."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from opconform.harness.explain.failure import STRICT, Failure
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.plain import decoded
from opconform.harness.search.coverage import Covered
from opconform.harness.search.watched import Watched

MUCH_FREE = 0.05  #: from this share of a pair's elements on it is a warning that nothing could be demanded of them


@dataclass
class Tally:
    """Counts of one op on one device. Every case that ran is passed, failed or known; the others have a reason, or say
    nothing.

    unsupported: why cases that were drawn did not run. known_unsupported: the same of known cases, which are no draws.
    known: failing cases that entries of known_failures.toml cover.
    vacuous: cases that a kernel passes which writes zeros or copies an input (`vacuous.py`); they do not count as run.
    free: elements of which nothing could be demanded (float32 overflows there, or the reference is NaN), of all
    `elements` of cases that passed; those count in neither whose slices were made NaN on purpose (`Case.keep`).
    unchecked: how many cases a check on request could not look at, by what it was and why.
    looser: how many cases were judged by an arithmetic that is looser than float32, by what it is (`Numerics.looser`).
    late: cases that gave an answer only when they were run again and had more time.
    """

    passed: int = 0
    failed: int = 0
    unsupported: Counter[str] = field(default_factory=Counter)
    free: int = 0
    seconds: float = 0.0
    known: int = 0
    vacuous: int = 0
    looser: Counter[str] = field(default_factory=Counter)
    elements: int = 0
    unchecked: Counter[str] = field(default_factory=Counter)
    late: int = 0
    known_unsupported: Counter[str] = field(default_factory=Counter)

    @property
    def free_share(self) -> float:
        """The share of elements of which nothing could be demanded."""
        return self.free / self.elements if self.elements else 0.0

    @property
    def much_free(self) -> bool:
        """Whether that is so much that the passed cases say less than they seem to."""
        return self.free_share > MUCH_FREE

    @property
    def executed(self) -> int:
        return self.passed + self.failed + self.known

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why cases did not run, drawn ones and known ones."""
        return tuple(dict.fromkeys((*self.unsupported, *self.known_unsupported)))

    def count(self, verdict: Verdict, expected: bool = False, drawn: bool = True) -> None:
        """Count a verdict. `expected`: it fails as an entry of known_failures.toml says. `drawn`: no known case."""
        self.late += verdict.late and bool(verdict.comparisons)
        if verdict.comparisons and not verdict.vacuous and verdict.numerics.looser:
            self.looser[verdict.numerics.looser] += 1
        if verdict.unsupported is not None:
            (self.unsupported if drawn else self.known_unsupported)[verdict.unsupported] += 1
        elif verdict.failed:
            self.known += expected
            self.failed += not expected
        elif verdict.vacuous:
            self.vacuous += 1
        else:
            self.passed += 1
            if verdict.case.keep is None:
                self.free += sum(comparison.free for comparison in verdict.comparisons)
                self.elements += sum(comparison.wrong.size for comparison in verdict.comparisons)
        self.unchecked.update(verdict.unchecked)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**plain, **{name: dict(getattr(self, name)) for name in _COUNTERS}}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Tally:
        """The tally that `to_json` gave."""
        counters = {name: Counter(plain.get(name, {})) for name in _COUNTERS}
        return cls(**{**plain, **counters})


_COUNTERS = ("unsupported", "looser", "unchecked", "known_unsupported")


@dataclass(frozen=True)
class KnownBug:
    """A fault that the limits keep the search away from: whether its pinned case still fails."""

    id: str
    reason: str
    still_fails: bool


@dataclass(frozen=True)
class Lie:
    """A case that a device said yes to, though it ends the process: one beyond a limit of kind "kernel", whose reason
    this is. end: how the process ended. replay_options, versions, packed_twin, stderr: as those of a failure."""

    case: Case
    reason: str
    end: str
    replay_options: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    packed_twin: str = ""
    stderr: str = ""

    @property
    def verdict(self) -> Verdict:
        """What is said of the case where a verdict stands: that the device took it, and that its kernel aborts."""
        found = Finding("process", Kind.SUPPORTS_OP_LIES, f"{self.end}: {self.reason}")
        return Verdict(self.case, (found,), stderr=self.stderr)

    def failure(self, target: str, device: str) -> Failure:
        """The failure that it would be, if the case were not known to end so."""
        return Failure(
            self.case,
            target,
            device,
            self.versions,
            self.verdict.findings,
            None,
            self.packed_twin,
            "",
            "",
            self.stderr,
            tuple(dict.fromkeys((*self.replay_options, STRICT))),
        )


@dataclass(frozen=True)
class KnownFailure:
    """An entry of known_failures.toml that matches this op and device, and what its pinned case does here.

    entry: the file and the number of the entry. expires: its last day; an `expired` entry covers nothing. covered: how
    many failing cases of the run it covers. fate: of the pinned case: "fails", "passes", or why it was not run.
    """

    entry: str
    case: str
    reason: str
    link: str
    expires: str
    expired: bool
    covered: int
    fate: str

    @property
    def fixed(self) -> bool:
        """Whether the entry has nothing left to cover."""
        return self.fate == "passes" and not self.covered


_READERS = {
    Failure: lambda value, _: Failure.from_json(value),
    Case: lambda value, _: Case.from_json(value),
}


@dataclass(frozen=True)
class Result:
    """One op on one device: `target` is what `--backend` takes, `device` one line on the device. Or a model there: then
    `op` is its name, and `watched` what came of it.

    build: the short name of the device's build. free: where the op leaves elements free, in words. failed_known: ids of
    known cases that fail. left_out: ids of known cases that did not run: larger than --max-bytes, or large and without
    time. coverage: the pairs of traits that the search drew and ran; known cases do not count. lies: what the device
    says yes to and aborts at. cut: whether its time was up before it had as many cases as were asked for.
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
    known_failures: tuple[KnownFailure, ...] = ()
    build: str = ""
    free: str = ""
    coverage: Covered = field(default_factory=Covered)
    lies: tuple[Lie, ...] = ()
    watched: Watched | None = None
    cut: bool = False

    @property
    def known(self) -> bool:
        """Whether it fails in expected ways only."""
        listed = any(known.fate == "fails" and not known.expired for known in self.known_failures)
        return self.failure is None and (listed or self.tally.known > 0)

    @property
    def kind(self) -> str:
        """What heads the report of what is wrong; nothing where all is right."""
        if self.failure is not None:
            return self.failure.kind
        return "" if self.watched is None or self.watched.right else self.watched.verdict

    @property
    def case_id(self) -> str:
        """The id of the failing case."""
        if self.failure is not None:
            return self.failure.case.id
        return "" if self.watched is None or not self.watched.cases else self.watched.cases[0].case

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        plain: dict[str, Any] = {
            "op": self.op,
            "target": self.target,
            "device": self.device,
            "tally": self.tally.to_json(),
            "failure": None if self.failure is None else self.failure.to_json(),
            "failed_known": list(self.failed_known),
            "known_bugs": [asdict(bug) for bug in self.known_bugs],
            "limits": list(self.limits),
            "left_out": list(self.left_out),
            "known_failures": [asdict(known) for known in self.known_failures],
            "build": self.build,
            "free": self.free,
            "coverage": asdict(self.coverage),
            "lies": [{**vars(lie), "case": lie.case.to_json()} for lie in self.lies],
            "cut": self.cut,
        }
        if self.watched is not None:
            plain["watched"] = self.watched.to_json()
        return plain

    @classmethod
    def from_json(cls, plain: Any) -> Result:
        """The result that `to_json` gave. Raises `ValueError`, one line, for anything else."""
        return decoded(cls, plain, "result", _READERS)


def model_result(watched: Watched, name: str) -> Result:
    """What came of watching a model as a result of its own, beside those of ops. Its cases are the nodes that were
    judged, the whole graph, and each way to compute several sequences."""
    wholes = [] if watched.whole is None else [watched.whole.right]
    wholes += [each.right for each in watched.together if not each.error]
    right = sum(node.state == "right" for node in watched.nodes)
    reasons = Counter(node.reason for node in watched.nodes if node.state == "not judged")
    reasons.update(each.error for each in watched.together if each.error)
    wrong = len(watched.wrong) + len(wholes) - sum(wholes) + (watched.by_node is not None)
    tally = Tally(right + sum(wholes), wrong, reasons, seconds=watched.seconds)
    return Result(name, watched.target, watched.about, tally, build=watched.build, watched=watched)
