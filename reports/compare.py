"""Two states of the world compared: what broke, what was mended, what is no longer tested, what has become slower."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from opconform.reports.console import text_of
from opconform.reports.states import Pair, State, build_names
from opconform.reports.timings import Timing

#: In the order in which they are shown.
CHANGES = (
    "new failure",
    "not finished",
    "vanished",
    "newly unsupported",
    "newly slow",
    "still failing",
    "known failure",
    "fixed",
    "new pair",
)

_NAMES = 3  #: names of cases shown of one pair


@dataclass(frozen=True)
class Change:
    """What changed for one op on one device; `old` and `new` say it in a few words.

    A regression is a failure that was not there, a case that has become slower, and whatever was tested and is no
    longer: not to know is not green. target: the pair's target, with its builds where they differ. timing: what called
    a case slower.
    """

    what: str
    pair: Pair
    old: str
    new: str
    regression: bool
    target: str = ""
    timing: Timing | None = None

    def to_json(self) -> dict[str, Any]:
        """The change as JSON data; what called a case slower with its figures."""
        plain: dict[str, Any] = {
            "change": self.what,
            "op": self.pair.op,
            "target": self.pair.target,
            "build": self.pair.build.name,
            "old": self.old,
            "new": self.new,
            "regression": self.regression,
        }
        ratio = self.timing.ratio if self.timing else None
        if ratio is not None and ratio.interval is not None:
            interval = ratio.interval
            plain |= {"case_id": ratio.case, "case_name": ratio.name, "versus": ratio.versus}
            plain |= {"ratio": interval.middle, "ratio_low": interval.low, "ratio_high": interval.high}
        return plain


def compare(
    old: Mapping[Pair, State],
    new: Mapping[Pair, State],
    timed: Sequence[Timing] = (),
    timed_now: Sequence[Timing] = (),
) -> list[Change]:
    """Every change from `old` to `new`, regressions first; `timed` and `timed_now` are the comparisons of builds in
    the two.

    A build is compared with itself; one that `old` does not have is compared with the last build of the target there.
    A case is newly slow where a comparison of two builds in turn has called it slower, and the one before had not. Two
    times that were not taken in turn are never compared: what differs between two evenings on one machine is not the
    build alone, and no interval of either time knows of the rest.
    """
    names = build_names([*old, *new, *(timing.pair for timing in (*timed, *timed_now))])
    several = {target for target, count in Counter(pair.target for pair in _targets(names)).items() if count > 1}

    def shown(was: Pair | None, now: Pair | None) -> str:
        builds = " → ".join(dict.fromkeys(names[each] or "?" for each in (was, now) if each))
        pair = now or was
        assert pair is not None
        return f"{pair.target} ({builds})" if pair.target in several else pair.target

    changes = []
    for was, now in _matched(old, new):
        pair = now or was
        assert pair is not None
        before, after = old.get(was) if was else None, new.get(now) if now else None
        changes += [
            Change(what, pair, _words(before, after, what), _words(after, before, what), regression, shown(was, now))
            for what, regression in _changes(before, after)
        ]
    for past, timing in _newly_slow(timed, timed_now):
        said, says = _ratio_words(past), _ratio_words(timing)
        target = shown(past.pair if past else None, timing.pair)
        changes.append(Change("newly slow", timing.pair, said, says, True, target, timing))
    return sorted(changes, key=lambda change: (not change.regression, CHANGES.index(change.what)))


def _targets(pairs: Iterable[Pair]) -> set[Pair]:
    """Each target and build once."""
    return {pair._replace(op="") for pair in pairs}


def _matched(old: Mapping[Pair, State], new: Mapping[Pair, State]) -> Iterator[tuple[Pair | None, Pair | None]]:
    """What is compared with what: each pair of `new` with its like in `old`, and what only `old` has. A build that is
    no longer tested has not vanished where another build of its target was tested."""
    last = {pair[:2]: pair for pair in old}
    for pair in new:
        yield (pair if pair in old else last.get(pair[:2])), pair
    there = {pair[:2] for pair in new}
    for pair in old:
        if pair[:2] not in there:
            yield pair, None


def _newly_slow(old: Sequence[Timing], new: Sequence[Timing]) -> Iterator[tuple[Timing | None, Timing]]:
    """What is called slower and was not, each beside what was said of it before."""
    of_target = {(timing.pair.target, timing.case): timing for timing in old}
    of_build = {(timing.pair, timing.case): timing for timing in old}
    for timing in new:
        key = timing.case
        before = of_build.get((timing.pair, key)) or of_target.get((timing.pair.target, key))
        if timing.slower and not (before is not None and before.slower):
            yield before, timing


def _ratio_words(timing: Timing | None) -> str:
    row = timing.ratio if timing else None
    if row is None or row.interval is None:
        return "–"
    interval = row.interval
    return (
        f"{row.name} takes {interval.middle:.2f} ({interval.low:.2f}–{interval.high:.2f}) times as long as {row.versus}"
    )


def _changes(old: State | None, new: State | None) -> Iterator[tuple[str, bool]]:
    """What to say of a pair, and whether it is a regression; nothing where it is as it was."""
    if new is None:
        yield "vanished", True
    elif new.outcome == "not finished":
        yield "not finished", True
    elif new.outcome == "known":
        if old is None or old.outcome != "known":
            yield "known failure", False
    elif old is None or old.outcome == "not finished":
        yield ("new failure", True) if new.outcome == "failed" else ("new pair", False)
    elif new.outcome == "failed":
        known = old.outcome == "failed" and not _new_names(old, new)
        yield ("still failing", False) if known else ("new failure", True)
    elif new.outcome == "unsupported":
        if old.outcome != "unsupported":
            yield "newly unsupported", old.outcome in ("passed", "known")
    elif _new_names(old, new):
        yield "new failure", True
    elif old.outcome in ("failed", "known") or new.mended & old.bugs:
        yield "fixed", False
    elif old.outcome == "unsupported":
        yield "new pair", False
    elif set(new.reasons) - set(old.reasons):
        yield "newly unsupported", False


def _new_names(old: State, new: State) -> frozenset[str]:
    """Known cases that fail now and did not, and known bugs that were mended and are back."""
    return (new.failed_known - old.failed_known) | (new.bugs & old.mended)


def _words(state: State | None, other: State | None, what: str) -> str:
    """`state` in a few words; of cases with a name only those that `other` does not have."""
    if state is None:
        return "–"
    ran = state.outcome in ("passed", "failed", "known")
    words = f"{state.outcome} {state.executed}" if ran else state.outcome
    other = other or State("not finished")
    if state.outcome == "failed":
        names = sorted(state.failed_known - other.failed_known - {state.case_id})
        words += f": {state.kind} ({_few([state.case_id, *names])})"
    elif state.outcome == "known":
        words += f": {_few(list(dict.fromkeys(f'{known.reason} ({known.entry})' for known in state.listed)))}"
    elif state.reasons and what == "newly unsupported":
        words += f"{', unsupported' if state.executed else ''}: {'; '.join(state.reasons)}"
    if what in ("new failure", "fixed"):
        for bugs, fate in ((state.bugs & other.mended, "fails again"), (state.mended & other.bugs, "FIXED")):
            words += f", known bug {fate}: {_few(sorted(bugs))}" if bugs else ""
    return f"{words}, {state.detail}" if state.detail else words


def _few(names: Sequence[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")


def table_of(changes: Sequence[Change]) -> str:
    """The changes as a table; "" where there is none."""
    if not changes:
        return ""
    table = Table("change", "op", "target", "old", "new", box=None, pad_edge=False)
    for change in changes:
        table.add_row(*(Text(cell) for cell in (change.what, change.pair.op, change.target, change.old, change.new)))
    return text_of(table)


def summary_of(changes: Sequence[Change], old: Mapping[Pair, State], new: Mapping[Pair, State]) -> str:
    """The last line: how many of each."""
    pairs = {change.pair[:2] for change in changes}
    counts = [(sum(change.what == what for change in changes), what) for what in CHANGES]
    said = [f"{count} {what}" for count, what in counts if count]
    regressions = sum(change.regression for change in changes)
    unchanged = len({pair[:2] for pair in (*old, *new)} - pairs)
    verdict = (
        "no regression" if not regressions else "1 regression" if regressions == 1 else f"{regressions} regressions"
    )
    return "; ".join([verdict, ", ".join([*said, f"{unchanged} unchanged"])])
