"""What the report shows, read from a history: the last state of each op on each device, its failures, the past, and the
last times."""

from __future__ import annotations

import shlex
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from opconform.harness.explain.failure import Failure
from opconform.harness.model.usage import UsageError
from opconform.harness.search.result import KnownBug, Lie, Result, Tally
from opconform.harness.search.settings import Settings
from opconform.harness.search.watched import Watched
from opconform.reports.commands import commands
from opconform.reports.console import abort_commands, aborts
from opconform.reports.records import About, RunRow
from opconform.reports.repro.place import bundle_of
from opconform.reports.states import (
    Pair,
    State,
    groups_of,
    last_groups,
    nothing_in,
    pairs_of,
    reading,
    results_of,
    state_of,
    target_names,
)
from opconform.reports.timings import Timing, timings_in

PAST = 60  #: runs of which the trend is drawn


@dataclass(frozen=True)
class Shown:
    """A failure as the report shows it: what is known of it (nothing but `message` where its run was killed), the
    commands that run it again, and the bundle's folder, "" where there is none here."""

    pair: Pair
    kind: str
    case_id: str
    message: str
    failure: Failure | None
    commands: tuple[str, ...]
    bundle: str = ""


@dataclass(frozen=True)
class Aborting:
    """A case that a device says yes to and aborts at, with the commands that run it and make its bundle, and the
    bundle's folder, "" where there is none here."""

    pair: Pair
    lie: Lie
    commands: tuple[str, ...]
    bundle: str = ""


@dataclass(frozen=True)
class Entry:
    """One op on one device, as the last run (with all of its shards) left it."""

    pair: Pair
    state: State
    group: tuple[RunRow, ...]
    results: tuple[Result, ...]
    failures: tuple[Shown, ...]
    aborting: tuple[Aborting, ...] = ()

    @property
    def known(self) -> int:
        """Failing cases that were expected to fail."""
        return sum(result.tally.known for result in self.results)

    @property
    def passed(self) -> int:
        return sum(result.tally.passed for result in self.results)

    @property
    def failed(self) -> int:
        return sum(result.tally.failed for result in self.results)

    @property
    def unsupported(self) -> Counter[str]:
        """How many of the cases that were drawn were not supported, by reason."""
        return sum((result.tally.unsupported for result in self.results), Counter())

    @property
    def known_unsupported(self) -> Counter[str]:
        """How many known cases were not, by reason."""
        return sum((result.tally.known_unsupported for result in self.results), Counter())

    @property
    def covered(self) -> str:
        """What share of the pairs of traits has run, of each shard; "" in a history that does not have it."""
        return ", ".join(str(result.coverage) for result in self.results if result.coverage.possible)

    @property
    def demanded(self) -> Tally:
        """What could be demanded of the elements of the cases that passed: `free` of `elements`, over all shards."""
        tallies = [result.tally for result in self.results]
        return Tally(free=sum(it.free for it in tallies), elements=sum(it.elements for it in tallies))

    @property
    def why_free(self) -> str:
        """Where the op leaves elements free, in words; "" in a history that does not say."""
        return next((result.free for result in self.results if result.free), "")

    @property
    def watched(self) -> Watched | None:
        """What came of watching, where it is a model."""
        return next((result.watched for result in self.results if result.watched), None)

    @property
    def bugs(self) -> tuple[KnownBug, ...]:
        return tuple(dict.fromkeys(bug for result in self.results for bug in result.known_bugs))


@dataclass(frozen=True)
class Moment:
    """One run of the past, its shards together, and what it said of each pair."""

    group: tuple[RunRow, ...]
    states: Mapping[Pair, State]

    @property
    def started(self) -> str:
        return self.group[0].started

    @cached_property
    def _any_build(self) -> Mapping[tuple[str, str], State]:
        return {(pair.op, pair.target): state for pair, state in self.states.items()}

    def state(self, pair: Pair) -> State | None:
        """What the run said of a pair, or of the same one with another build."""
        return self.states.get(pair) or self._any_build.get((pair.op, pair.target))


@dataclass(frozen=True)
class Report:
    """All that is shown. `past`: the last runs that searched, the oldest first. `runs`: those that `entries` are of.
    `timings`: those of the last run on each target."""

    history: Path
    entries: Mapping[Pair, Entry]
    past: tuple[Moment, ...]
    runs: tuple[RunRow, ...]
    timings: tuple[Timing, ...] = ()

    @property
    def ops(self) -> list[str]:
        return list(dict.fromkeys(pair.op for pair in self.entries))

    @cached_property
    def names(self) -> Mapping[Pair, str]:
        """What to call each pair's target: its build is part of the name."""
        return target_names([*self.entries, *(timing.pair for timing in self.timings)])

    @cached_property
    def targets(self) -> Mapping[str, Pair]:
        """One pair of each target and build, by the target's name."""
        return {self.names[pair]: pair for pair in self.entries}

    @property
    def failures(self) -> list[Shown]:
        return [shown for entry in self.entries.values() for shown in entry.failures]

    @property
    def aborting(self) -> list[Aborting]:
        return [found for entry in self.entries.values() for found in entry.aborting]

    @property
    def aborts(self) -> list[str]:
        """One line for each device that says yes and aborts."""
        lies: dict[str, list[Lie]] = {}
        for found in self.aborting:
            lies.setdefault(self.names[found.pair], []).append(found.lie)
        return [aborts(target, its) for target, its in lies.items()]

    def device(self, pair: Pair) -> About:
        """The description and the versions of a pair's device, as the last run has them."""
        runs = (run for run in reversed(self.runs) if run.build(pair.target) == pair.build)
        return next((run.devices[pair.target] for run in runs if pair.target in run.devices), About())


def report_of(path: Path, run_id: str | None = None) -> Report:
    """What the history at `path` says: the last state of each pair, or the run `run_id` (or the start of one).

    Raises `UsageError` where there is nothing to show.
    """
    with reading(path) as db:
        groups = groups_of(db, path, run_id)
        entries = {pair: _entry(db, pair, group) for pair, group in last_groups(db, groups).items()}
        searched = groups if run_id is None else groups_of(db, path)
        past = tuple(_moment(db, group) for group in searched[-PAST:])
        timings = tuple(timings_in(db, path, run_id))
    if not entries and not timings:
        raise UsageError(nothing_in(path))
    ids = {run.id: run for entry in entries.values() for run in entry.group}
    runs = tuple(sorted(ids.values(), key=lambda run: run.started))
    return Report(path, entries, past, runs, timings)


def _moment(db: sqlite3.Connection, group: Sequence[RunRow]) -> Moment:
    return Moment(tuple(group), {pair: state_of(db, group, pair) for pair in pairs_of(db, group)})


def _entry(db: sqlite3.Connection, pair: Pair, group: Sequence[RunRow]) -> Entry:
    state = state_of(db, group, pair)
    own = [run for run in group if run.build(pair.target) == pair.build]
    found = [(run, result) for run in own for result in results_of(db, run, pair)]
    failures = [_shown(pair, result.failure, _settings(run)) for run, result in found if result.failure is not None]
    if state.kind and not failures and not any(result.watched for _, result in found):
        failures = [_lost(db, pair, own, state)]
    once = {shown.case_id: shown for shown in failures}
    lies = {lie.case.id: _aborting(pair, lie, result, run) for run, result in found for lie in result.lies}
    results = tuple(result for _, result in found)
    return Entry(pair, state, tuple(own), results, tuple(once.values()), tuple(lies.values()))


def _aborting(pair: Pair, lie: Lie, result: Result, run: RunRow) -> Aborting:
    bundle = bundle_of(lie.failure(result.target, result.device), _settings(run))
    return Aborting(pair, lie, tuple(abort_commands(lie, pair.target)), "" if bundle is None else str(bundle))


def _settings(run: RunRow) -> Settings:
    """The settings that the commands of a failure follow from."""
    options = run.options
    return Settings(report_dir=options.report_dir, repro_dir=options.repro_dir, strict=options.strict)


def _shown(pair: Pair, failure: Failure, settings: Settings) -> Shown:
    bundle = bundle_of(failure, settings)
    return Shown(
        pair,
        failure.kind,
        failure.case.id,
        "",
        failure,
        tuple(commands(failure, settings)),
        "" if bundle is None else str(bundle),
    )


def _lost(db: sqlite3.Connection, pair: Pair, runs: Sequence[RunRow], state: State) -> Shown:
    """A failure whose run did not live to describe it: the search finds it again."""
    found = db.execute(
        "SELECT error_message FROM test_backend_ops WHERE case_id = ? AND target = ? AND supported = 1 AND passed = 0 "
        "ORDER BY rowid DESC LIMIT 1",
        [state.case_id, pair.target],
    ).fetchone()
    message = str(found[0]) if found else state.detail
    return Shown(pair, state.kind, state.case_id, message, None, tuple(_searches(pair, runs)))


def _searches(pair: Pair, runs: Sequence[RunRow]) -> Iterator[str]:
    op, target = shlex.quote(pair.op), shlex.quote(pair.target)
    for run in runs:
        shard = f" --shard {run.shard[0]}/{run.shard[1]}" if run.shard[1] > 1 else ""
        strict = " --strict-supports" if run.options.strict else ""
        yield f"opconform test --op {op} --backend {target} --seed {run.seed}{shard}{strict}"
