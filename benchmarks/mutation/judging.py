"""What the mutants of an op are judged by: the cases of the search, recorded with the right kernel, and the peers'."""

from __future__ import annotations

import itertools
import json
import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from benchmarks.mutation.listing import BACKENDS, MUTATED
from benchmarks.peers import Peer, five, upstream
from opconform.harness.judge import judging
from opconform.harness.judge.judging import Verdict, judge
from opconform.harness.model.buffers import Buffers, Plan
from opconform.harness.model.case import Case
from opconform.harness.model.expected import Expected
from opconform.harness.model.findings import Finding
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op
from opconform.harness.model.ops import ops
from opconform.harness.model.values import inputs_of
from opconform.harness.run.backend import Backend
from opconform.harness.run.process import devices_of
from opconform.harness.run.registry import backend_class
from opconform.harness.run.relations import related
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.run.worker import answer
from opconform.harness.search.observer import Observer
from opconform.harness.search.search import Search
from opconform.harness.search.settings import PROFILES, Settings

WAYS = ("quick", "default", "upstream", "five")
SEARCHES = ("quick", "default")
_LEAST_SECONDS = 10.0  #: of a processor, that a case may take, or more where the right kernel is slow


@dataclass(frozen=True)
class Known:
    """A case with its reference, computed once for all mutants."""

    case: Case
    numerics: Numerics
    expected: Expected

    def judged(self, backend: Backend) -> Verdict:
        """The verdict on one run in this process."""
        return judged(backend, self.case, self.numerics, self.expected)


def judged(backend: Backend, case: Case, numerics: Numerics, expected: Expected | None = None) -> Verdict:
    """The verdict on one run of a case in this process, as a worker's would be."""
    op, plan = ops()[case.op], Plan.of(case)
    op.check(case)
    values, before = inputs_of(case, op), np.empty(plan.size, np.uint8)
    Buffers(case, before, plan).fill(values)
    after = before.copy()
    result = answer(backend, case, after)
    if result.unsupported is not None:
        return Verdict(case, unsupported=result.unsupported)
    if result.error is not None:
        return Verdict(case, (Finding("process", result.kind, result.error.splitlines()[-1]),))
    return judge(case, op, values, before, after, numerics, expected, plan)


@dataclass(frozen=True)
class Here:
    """Runs the other cases that a relation between runs asks for."""

    backend: Backend
    numerics: Numerics

    def verdicts(self, op: Op, cases: Iterable[Case], time_limit: float | None = None) -> list[Verdict]:
        """As `Runner.verdicts`."""
        return [judged(self.backend, case, self.numerics) for case in cases]


class _Recorder(Observer):
    """Keeps the cases of a search, and their references."""

    def __init__(self) -> None:
        self.found: list[Known] = []

    def verdicts(self, op: Op, target: Target, verdicts: Sequence[Verdict]) -> None:
        self.found += [Known(it.case, it.numerics, it.comparisons[0].expected) for it in verdicts if it.comparisons]


class Say:
    """Sends what happens, a line each, from a mutant's process to the one that waits for it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, what: str, detail: str) -> None:
        os.write(self._descriptor, f"{json.dumps([what, detail])}\n".encode())


class Counted:
    """Tells of each case that passes, and counts them."""

    def __init__(self, say: Say) -> None:
        self._say, self.count = say, 0

    def __call__(self) -> None:
        self.count += 1
        self._say("passed", "")


@dataclass(frozen=True)
class Bench:
    """What the mutants of an op are tried on. seconds: of a processor, that a case may take."""

    op: str
    backend: str
    target: Target
    searched: Mapping[str, Sequence[Known]]
    peers: Mapping[str, Sequence[Peer]]
    seconds: float

    def has(self, way: str) -> bool:
        """Whether there are cases to judge in this way."""
        return way in SEARCHES or bool(self.peers[way])

    @cached_property
    def shared(self) -> int:
        """How many cases both profiles begin with: what fails there fails in both."""
        pairs = zip(self.searched["quick"], self.searched["default"])
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0].case.key == pair[1].case.key, pairs))

    @classmethod
    def of(cls, op: str, backend: str, profiles: Mapping[str, int] = PROFILES) -> Bench:
        """Record what the search draws. Raises `RuntimeError` where the right kernel fails."""
        spec = f"{MUTATED}:{BACKENDS[backend][0]}"
        target = Target(spec, devices_of(spec, {})[0], {})
        searched, slowest = {}, 0.0
        for profile in SEARCHES:
            recorder = _Recorder()
            settings = Settings(examples=profiles[profile])
            with Runner(target, max_bytes=settings.max_bytes) as runner:
                result = Search(ops()[op], runner, settings, observer=recorder).run()
                slowest = max(slowest, runner.slowest)
            if result.failure is not None:
                raise RuntimeError(f"the right kernel fails: {result.failure.case}")
            searched[profile] = recorder.found
        peers = {"upstream": upstream(op), "five": five(op)}
        for peer in itertools.chain(*peers.values()):
            assert peer.expected  # before any process is forked
        return cls(op, backend, target, searched, peers, max(_LEAST_SECONDS, 20 * slowest))

    def judge(self, ways: Sequence[str], say: Say) -> None:
        """Run the cases of some ways in this process, on the backend whose kernels MUTANT_FOLDER has; tell of each
        case, and of the first of a way that fails."""
        kind: Any = self.kind if ways[0] in SEARCHES else self.unwatched
        backend = kind(self.target.device.id, {})
        backend.build(self.op)
        setattr(judging, "vacuous", lambda *_: "")  # noqa: B010  # which cases say nothing is known, and takes as long
        for way in ways:
            passed = Counted(say)
            what, detail = self._of(way, backend, passed)
            say(what, detail)
            if (way, what) == ("quick", "killed") and passed.count < self.shared:
                break

    def _of(self, way: str, backend: Backend, passed: Counted) -> tuple[str, str]:
        """What becomes of the mutant in one way: killed, and by what, or survived."""
        for peer in self.peers.get(way, ()):
            self._limit()
            complaint = peer.complaint(backend)
            if complaint:
                return "killed", f"case {passed.count}: {complaint[:120]}"
            passed()
        for known in self.searched.get(way, ()):
            self._limit()
            verdict = known.judged(backend)
            if verdict.passed:
                runner = cast(Runner, Here(backend, known.numerics))
                verdict = related(runner, ops()[self.op], verdict, ())
            if verdict.failed:
                return "killed", f"{verdict.kind} in case {passed.count}: {verdict.findings[0].detail[:120]}"
            passed()
        return "survived", ""

    def _limit(self) -> None:
        """Have this process killed when the case that comes takes too long."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        most = int(used.ru_utime + used.ru_stime + self.seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))

    @cached_property
    def kind(self) -> Any:
        """The class of the backend whose kernels may have a fault."""
        return backend_class(self.target.spec)

    @cached_property
    def unwatched(self) -> Any:
        """The same for the two other ways, which watch nothing that a kernel does."""
        return backend_class(f"{MUTATED}:{BACKENDS[self.backend][1]}")
