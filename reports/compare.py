"""Two states of the world compared: what broke, what was mended, what is no longer tested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from opconform.reports.console import text_of
from opconform.reports.states import Pair, State, build_names

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
ENOUGH_CASES = 50  #: fewer than these, and the speed of a pair says nothing


@dataclass(frozen=True)
class Change:
    """What changed for one op on one device; `old` and `new` say it in a few words.

    A regression is a failure that was not there, and whatever was tested and is no longer: not to know is not green.
    target: the pair's target, with its builds where they differ.
    """

    what: str
    pair: Pair
    old: str
    new: str
    regression: bool
    target: str = ""


def compare(old: Mapping[Pair, State], new: Mapping[Pair, State], slow: float = 2.0) -> list[Change]:
    """Every change from `old` to `new`, regressions first. `slow` is the factor from which a pair is newly slow.

    A build is compared with itself; one that `old` does not have is compared with the last build of the target there.
    """
    names = build_names([*old, *new])
    several = {target for target, count in Counter(pair.target for pair in _targets(names)).items() if count > 1}
    changes = []
    for was, now in _matched(old, new):
        pair = now or was
        assert pair is not None
        before, after = old.get(was) if was else None, new.get(now) if now else None
        shown = " → ".join(dict.fromkeys(names[each] or "?" for each in (was, now) if each))
        target = f"{pair.target} ({shown})" if pair.target in several else pair.target
        changes += [
            Change(what, pair, _words(before, after, what), _words(after, before, what), regression, target)
            for what, regression in _changes(before, after, slow)
        ]
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


def _changes(old: State | None, new: State | None, slow: float) -> Iterator[tuple[str, bool]]:
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
    else:
        if set(new.reasons) - set(old.reasons):
            yield "newly unsupported", False
        if min(old.executed, new.executed) >= ENOUGH_CASES and new.rate * slow < old.rate:
            yield "newly slow", False


def _new_names(old: State, new: State) -> frozenset[str]:
    """Known cases that fail now and did not, and known bugs that were mended and are back."""
    return (new.failed_known - old.failed_known) | (new.bugs & old.mended)


def _words(state: State | None, other: State | None, what: str) -> str:
    """`state` in a few words; of cases with a name only those that `other` does not have."""
    if state is None:
        return "–"
    if what == "newly slow":
        return f"{state.rate:.0f} cases/s"
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
