"""Plain text for a terminal: the matrix of ops and devices, its notes, and the last line."""

from __future__ import annotations

import io
import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from opconform.harness.explain.failure import STRICT
from opconform.harness.model.text import printable
from opconform.harness.search.result import KnownFailure, Lie, Result
from opconform.reports.replay import safe_options

WIDTH = 110
_NAMES = 8
_FEW_NAMES = 2  #: known cases that a cell names
_BUILD = 32  #: characters of a build's name over a column


def shown(lines: Iterable[str]) -> str:
    """Lines as they leave for a terminal or a log: whatever a stranger's text holds, each of them stays one line."""
    return "\n".join(printable(line.rstrip()) for line in lines)


class _Notes:
    """The notes under a matrix, by their text. What is of one sort stands together, in the order of `_SORTS`; a reason
    that differs only by the op's name is one note."""

    def __init__(self, texts: Iterable[tuple[str, str]] = ()) -> None:
        self._numbers = {text: number for number, (_, text) in enumerate(texts, 1)}
        self._seen: dict[tuple[str, str], set[str]] = {}

    def mark(self, sort: str, text: str, op: str = "") -> str:
        """The number that stands for a note in a cell."""
        general = re.sub(rf"\b{re.escape(op)}\b", "this op", text) if op else text
        self._seen.setdefault((sort, general), set()).add(text)
        return f"[{self._numbers.get(general, 0)}]"

    def ordered(self) -> list[tuple[str, str]]:
        """The sort and the text of each note, the first to be numbered first."""
        return sorted(self._seen, key=lambda note: list(_SORTS).index(note[0]))

    def lines(self) -> list[str]:
        """The notes as they are printed."""
        found = []
        for number, (sort, general) in enumerate(self.ordered(), 1):
            own = self._seen[sort, general]
            text = f"{sort}{_SORTS[sort]} {general if len(own) > 1 else next(iter(own))}"
            indents = {"initial_indent": f"[{number}] ", "subsequent_indent": "    "}
            found += textwrap.wrap(text, WIDTH, break_on_hyphens=False, **indents)  # type: ignore[arg-type]
        return found


_LOWER, _LOOSER, _FAILS = "lower precision", "looser arithmetic", "known cases that fail"
_NO, _BUG, _FIXED, _KNOWN, _EMPTY = "unsupported", "known bug", "FIXED", "known failure", "vacuous"
_FREE, _UNCHECKED = "WARNING", "not checked"
#: What follows the word for a sort of note; in the order in which they stand.
_SORTS = {_FAILS: ":", _FREE: ",", _NO: ":", _BUG: ",", _KNOWN: ",", _FIXED: ",", _LOWER: ",", _LOOSER: ","}
_SORTS |= {_UNCHECKED: ":", _EMPTY: ":"}


def matrix(results: Sequence[Result], bundles: Path | None = None) -> str:
    """Ops down, devices with their builds across, then every reason, known bug and limit that a cell only hints at.

    Ops that no device takes are one line under the table, where there are others. bundles: the folder where the run
    has put the bundles of what fails or aborts.
    """
    targets = {result.target: result.build for result in results}
    cells = {(result.op, result.target): result for result in results}
    rows = rows_of(results)
    notes = _Notes()
    for _ in range(2):  # the first time to know the notes, the second time with their numbers
        notes = _Notes(notes.ordered())
        drawn = [[_cell(cells.get((op, target)), notes) for target in targets] for op in rows]
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("op")
    for target, build in targets.items():
        head = f"{printable(target)}\n{printable(build, _BUILD)}" if build else printable(target)
        table.add_column(Text(head, overflow="fold"), overflow="fold")
    for op, row in zip(rows, drawn):
        table.add_row(*(Text(printable(cell)) for cell in (op, *row)))
    lines = [text_of(table), *notes.lines()]
    lines += textwrap.wrap(refused_words(results, rows), WIDTH, subsequent_indent="    ")
    lines += _aborts(results, bundles)
    left_out = list(dict.fromkeys(name for result in results for name in result.left_out))
    if left_out:
        lines += textwrap.wrap(f"left out, larger than --max-bytes or for want of time: {_listed(left_out)}", WIDTH)
    vacuous = sum(result.tally.vacuous for result in results)
    if vacuous:
        lines += textwrap.wrap(f"{vacuous} more cases say nothing and do not count: {_VACUOUS}", WIDTH)
    late = [f"{result.op} on {result.target}" for result in results if result.tally.late]
    if late:
        lines += textwrap.wrap(f"{_LATE}: {', '.join(late)}", WIDTH)
    cut = sorted((result for result in results if result.cut), key=lambda result: result.tally.executed)
    if cut:
        named = _listed([f"{result.op} on {result.target} after {result.tally.executed} cases" for result in cut])
        lines += textwrap.wrap(f"{_CUT}, {len(cut)} of {len(results)} pairs: {named}", WIDTH)
    return shown("\n".join(lines).split("\n"))


_VACUOUS = "a kernel that writes zeros, or copies an input, passes them"
_CUT = "ended by --minutes before as many cases were drawn as were asked for"
_LATE = "no answer came within the time limit, and one came when there was more time"


def aborts(target: str, lies: Sequence[Lie]) -> str:
    """One line on cases that a device takes and that end its process, one of each op: how many, and which."""
    of = f"{len(lies)} op{'s' if len(lies) > 1 else ''} on {target}"
    return f"says yes, aborts: {of}: {', '.join(lie.case.id for lie in lies)}; e.g. {lies[0].reason}"


def lies_of(results: Sequence[Result]) -> dict[str, list[Lie]]:
    """Those of each device that has any."""
    found: dict[str, list[Lie]] = {}
    for result in results:
        if result.lies:
            found.setdefault(result.target, []).extend(result.lies)
    return found


def abort_commands(lie: Lie, target: str) -> list[str]:
    """How to run such a case, and how to make its bundle."""
    options = [f"{STRICT} --backend", shlex.quote(target), *safe_options(lie.replay_options)]
    return [" ".join([f"opconform {what}", lie.case.id, *dict.fromkeys(options)]) for what in ("replay", "repro")]


def _aborts(results: Sequence[Result], bundles: Path | None) -> list[str]:
    """The line of each device, with the commands of one of its cases, and where the bundles are."""
    lines = []
    for target, lies in lies_of(results).items():
        lines += textwrap.wrap(aborts(target, lies), WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        lines += [f"    ({command})" for command in abort_commands(lies[0], target)]  # whole, to be copied
    if lines and bundles is not None:
        lines += [f"    (the bundle of each of them: in {bundles})"]
    return lines


def rows_of(results: Sequence[Result]) -> list[str]:
    """The ops that have a row of their own: those that some device takes, and all where there is none."""
    taken = dict.fromkeys(result.op for result in results if not _takes_nothing(result))
    every = list(dict.fromkeys(result.op for result in results))
    return [op for op in every if op in taken] or every


def _takes_nothing(result: Result) -> bool:
    """Whether an op is plainly not there on a device."""
    return not (result.tally.executed or result.tally.vacuous or result.failure or result.known_bugs or result.known)


def refused_words(results: Sequence[Result], rows: Sequence[str]) -> str:
    """One line on the ops that have no row, as no device takes them."""
    return taken_by_none([(result.op, list(result.tally.reasons)) for result in results if result.op not in rows])


def taken_by_none(refused: Sequence[tuple[str, Sequence[str]]]) -> str:
    """One line on ops that no device takes, each with reasons; "" where there are none."""
    if not refused:
        return ""
    reasons = [re.sub(rf"\b{re.escape(op)}\b", "this op", reason) for op, why in refused for reason in why]
    ops = ", ".join(dict.fromkeys(op for op, _ in refused))
    return f"taken by no device: {ops} ({'; '.join(list(dict.fromkeys(reasons))[:_NAMES])})"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")


def _cell(result: Result | None, notes: _Notes) -> str:
    if result is None:
        return "–"
    tally = result.tally
    reasons = "".join(_marks(tally.reasons, result, notes))
    if tally.executed == 0 and tally.vacuous:
        return f"vacuous {tally.vacuous} {notes.mark(_EMPTY, _VACUOUS)}"
    if tally.executed == 0:
        return f"unsupported {reasons}".rstrip()
    cell = f"passed {tally.executed}"
    if result.known:
        cell = f"known ({tally.executed})"
    if result.failure is not None:
        cell = f"FAILED ({tally.executed}) {result.failure.kind}"
    for words, count in tally.looser.items():
        cell += _arithmetic(words, count, tally.executed, notes)
    if tally.much_free:
        about = f"nothing is demanded of {tally.free_share:.0%} of the elements of {result.op}: {result.free}"
        cell += f", {tally.free_share:.0%} free {notes.mark(_FREE, about)}"
    if tally.unchecked:
        marks = "".join(notes.mark(_UNCHECKED, reason, result.op) for reason in tally.unchecked)
        cell += f", {tally.unchecked.total()} not checked {marks}"
    if result.failed_known:
        cell += f", fails {_named(result.failed_known, notes)}"
    for refused, what in ((tally.unsupported, "unsupported"), (tally.known_unsupported, "known unsupported")):
        if refused:
            cell += f", {refused.total()} {what} {''.join(_marks(refused, result, notes))}".rstrip()
    for bug in result.known_bugs:
        if bug.still_fails:
            cell += f", known bug {notes.mark(_BUG, f'kept out of the search: {bug.reason} (case {bug.id})')}"
        else:
            cell += f", FIXED {notes.mark(_FIXED, f'its pinned case passes now: {bug.reason} (case {bug.id})')}"
    for listed in result.known_failures:
        sort = _FIXED if listed.fixed else _KNOWN
        cell += f", {sort} {notes.mark(sort, _about_known(listed))}"
    return cell


def _marks(reasons: Iterable[str], result: Result, notes: _Notes) -> Iterator[str]:
    """The numbers of the notes on why cases of a pair did not run."""
    bugs = {bug.reason for bug in result.known_bugs}  # each has a note of its own
    return (notes.mark(_NO, reason, result.op) for reason in reasons if reason not in bugs)


def _arithmetic(words: str, count: int, executed: int, notes: _Notes) -> str:
    """That a backend declares an arithmetic looser than float32, by which the bound was made."""
    kind, _, declared = words.partition(": ")
    mark = notes.mark(_LOWER if kind == _LOWER else _LOOSER, f"as the backend declares: {declared}")
    some = "" if count >= executed else f"{count} of them "
    before = f", {some}" if some else " "
    return f"{before}in {_LOWER} {mark}" if kind == _LOWER else f"{before}{mark}"


def _named(names: Sequence[str], notes: _Notes) -> str:
    """Known cases by their names: two of them, or the first, and the others in a note."""
    if len(names) <= _FEW_NAMES:
        return " and ".join(names)
    return f"{names[0]} and {len(names) - 1} more {notes.mark(_FAILS, _listed(names))}"


def _about_known(listed: KnownFailure) -> str:
    """What became of an expected failure, and where it is listed."""
    if listed.fixed:
        fate = f"its case {listed.case} passes now and nothing else fails"
    elif listed.fate == "passes":
        fate = f"though its case {listed.case} passes: pin one of the {listed.covered} that fail"
    elif listed.fate == "fails":
        fate = f"its case {listed.case} fails; it covers {listed.covered} failing cases of this run"
    else:
        fate = f"its case {listed.case} was not run ({listed.fate})"
    until = f"EXPIRED on {listed.expires}" if listed.expired else f"until {listed.expires}"
    return f"{fate}: {listed.reason} ({listed.entry}; {until}; {listed.link})"


def counts(results: Sequence[Result]) -> str:
    """The last line: what ran, and what became of it."""
    tallies = [result.tally for result in results]
    failing = sum(result.failure is not None for result in results)
    executed, passed, failed, known, unsupported = (
        sum(tally.executed for tally in tallies),
        sum(tally.passed for tally in tallies),
        sum(tally.failed for tally in tallies),
        sum(tally.known for tally in tallies),
        sum(tally.unsupported.total() for tally in tallies),
    )
    pairs = f"{len(results) - failing} of {len(results)} pairs of op and device without a failure"
    expected = f", {known} failed as expected" if known else ""
    return f"{executed} cases run, {passed} passed, {failed} failed{expected}, {unsupported} unsupported; {pairs}"


def covered(results: Sequence[Result]) -> str:
    """The share of the pairs of traits that each search has run, a line for each."""
    found = (f"{result.op} on {result.target}: {result.coverage}" for result in results if result.coverage.possible)
    return shown(found)


def text_of(table: Table, width: int = 200) -> str:
    """A table as plain text, without trailing blanks."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, force_terminal=False).print(table)
    return shown(stream.getvalue().rstrip("\n").split("\n"))
