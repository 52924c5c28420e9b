"""The runs of a history, a line for each: enough to tell them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from opconform.harness.model.text import printable
from opconform.reports.database import CASES
from opconform.reports.records import RunRow
from opconform.reports.states import Pair, build_names, reading, runs_of
from opconform.reports.timings import timing_rows

_NAMES = 3  #: names in a cell
_LONG = 60  #: characters of a name


def run_lines(path: Path) -> Iterator[tuple[str, ...]]:
    """For each run, the oldest first: its id, when it began and ended, what it did, on which targets and builds, the
    ops, what came of them, the seed and the shard."""
    with reading(path) as db:
        runs = runs_of(db)
        cases = Counter(dict(db.execute(f"SELECT run_id, count(*) FROM {CASES} GROUP BY run_id")))
        done: dict[str, list[tuple[str, str, bool, int]]] = {run.id: [] for run in runs}
        for run_id, *result in db.execute(
            "SELECT run_id, op, target, kind <> '', passed + failed FROM results ORDER BY rowid"
        ):
            done.get(run_id, []).append((str(result[0]), str(result[1]), bool(result[2]), int(result[3])))
        times: dict[str, Counter[str]] = {run.id: Counter() for run in runs}
        for run_id, row in timing_rows(db):
            times.setdefault(run_id, Counter()).update([row.what, *(["slower"] if row.slower else [])])
    pairs_of = {run.id: list(dict.fromkeys([*run.pairs, *(tuple(it[:2]) for it in done[run.id])])) for run in runs}
    targets_of = {run.id: list(dict.fromkeys(target for _, target in pairs_of[run.id])) for run in runs}
    builds = build_names(Pair("", target, run.build(target)) for run in runs for target in targets_of[run.id])
    for run in runs:
        pairs, targets = pairs_of[run.id], targets_of[run.id]
        names = [builds[Pair("", target, run.build(target))] for target in targets]
        yield (
            run.id,
            run.started[:19],
            (run.ended or "unfinished")[:19],
            run.command,
            _few(targets),
            _few(list(dict.fromkeys(filter(None, names)))) or "–",
            _few(list(dict.fromkeys(op for op, _ in pairs))),
            _times(times[run.id]) if run.command == "perf" else _outcome(run, len(pairs), done[run.id], cases[run.id]),
            "–" if run.command == "perf" else str(run.seed),
            f"{run.shard[0]}/{run.shard[1]}",
        )


def _few(names: Sequence[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(printable(name, _LONG) for name in names[:_NAMES]) + (f" and {more} more" if more > 0 else "")


def _outcome(run: RunRow, pairs: int, results: Sequence[tuple[str, str, bool, int]], cases: int) -> str:
    """What came of a run's pairs of op and target, and how many cases ran."""
    failing = sum(fails for _, _, fails, _ in results)
    words = f"{failing} of {pairs} fail" if failing else "no failure" if results else "no result"
    left = pairs - len(results)
    if left > 0 and (results or run.ended is None):
        words += f", {left} not finished"
    return f"{words}, {max(sum(ran for *_, ran in results), cases):,} cases"


def _times(counts: Counter[str]) -> str:
    """What came of a run that took times."""
    words = [f"{counts['warm']:,} case{'s' * (counts['warm'] != 1)} timed"]
    words += [f"{counts['slower']:,} of {counts['ratio']:,} slower than the other build"] if counts["ratio"] else []
    return ", ".join(words + [f"{counts[what]:,} {what}" for what in ("failed", "unsupported") if counts[what]])
