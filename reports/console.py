"""Plain text for a terminal: the screen of a failure, and the matrix of ops and devices."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from opconform.harness.explain.failure import Failure, Wrong
from opconform.harness.model.case import Case
from opconform.harness.model.text import printable
from opconform.harness.search.result import KnownFailure, Result

WIDTH = 110
_STDERR_LINES = 12
_NAMES = 8
_BUILD = 32  #: characters of a build's name over a column


def screen(failure: Failure, commands: Sequence[str]) -> str:
    """One screen: what is wrong, with which case, where, by how much, and how to see it again."""
    case, wrong = failure.case, failure.wrong
    lines = [f"{failure.kind}  {case.op} on {failure.target}  ({failure.device})", "", *_case(case)]
    lines += _layouts(case)
    lines += [f"  values     recipe {case.recipe}, seed {case.seed}{_kept(case)}", ""]
    for finding in failure.findings:
        lines += wrapped(finding.check, finding.detail)
    if wrong is not None:
        lines += _element(failure, wrong)
        lines += places(case, wrong)
    for index, line in enumerate(failure.provenance):
        lines += wrapped("moved" if index == 0 else "", line)
    if failure.stage:
        lines += wrapped("stage", failure.stage)
    if failure.hint:
        lines += wrapped("hint", failure.hint)
    lines += wrapped("packed", twin(failure.packed_twin))
    if failure.also:
        lines += wrapped("also", failure.also)
    if failure.versions:
        lines += wrapped("versions", ", ".join(f"{name} {value}" for name, value in failure.versions))
    if failure.stderr:
        said = [part for line in failure.stderr.splitlines() for part in textwrap.wrap(clean(line), WIDTH - 4) or [""]]
        lines += ["", "  it said", *(f"    {line}" for line in said[-_STDERR_LINES:])]
    lines += ["", "  again with", *(f"    {command}" for command in commands)]
    return _shown(lines)


def _shown(lines: Iterable[str]) -> str:
    """Lines as they leave for a terminal or a log: whatever a stranger's text holds, each of them stays one line."""
    return "\n".join(printable(line.rstrip()) for line in lines)


def wrapped(label: str, text: str, width: int = 10) -> list[str]:
    first, rest = f"  {label:<{width}} ", " " * (width + 3)
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    ) or [first]


def _case(case: Case) -> list[str]:
    """The case, sizes and strides innermost first; a long one is broken between its parameters, and nowhere else."""
    spaced = re.sub(r",(?=[a-z])", ", ", str(case))
    return [line.replace(", ", ",") for line in wrapped("case", spaced)]


def clean(line: str) -> str:
    """A line of a worker's output: without colours, and printable."""
    return printable(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line.expandtabs()))


def _kept(case: Case) -> str:
    return "" if case.keep is None else f"; all batch slices but number {case.keep} are NaN"


def _layouts(case: Case) -> list[str]:
    lines = []
    for name, layout in case.layouts.items():
        place = f"is {case.inplace}" if case.inplace and name in case.outputs else str(layout.kind)
        place = f"in the memory of {case.shares[name]}" if name in case.shares else place
        at = f"strides={_tuple(layout.strides)} offset={layout.offset}  {place}"
        lines += wrapped(name, f"{layout.dtype} shape={_tuple(layout.shape)} {at}")
    return lines


def _tuple(values: Iterable[int]) -> str:
    return "(" + ",".join(map(str, values)) + ")"


def _element(failure: Failure, wrong: Wrong) -> list[str]:
    worst = wrong.worst
    times = f"{worst.times:.3g} times the bound" if math.isfinite(worst.times) else "no error is allowed here"
    if worst.bound > 0 and not math.isfinite(worst.error):
        times = "not a finite error"
    i = tuple(reversed(worst.index))
    of = wrong.output if len(failure.case.outputs) > 1 else ""
    lower = failure.numerics.lower
    precision = f"; {lower}, as the backend declares for this case" if lower else ""
    return [
        f"  worst      at {of}[{','.join(map(str, i))}] (i0,i1,…): got {worst.got:.9g}, want {worst.want:.9g}",
        f"             error {worst.error:.3g}, bound {worst.bound:.3g}: {times}",
        *wrapped("bound", f"{failure.bound}{precision}   [{failure.bound_at}]"),
        f"  nmse       {wrong.nmse:.3g} over the whole output, as upstream computes it",
    ]


def places(case: Case, wrong: Wrong) -> list[str]:
    """Which slices are wrong, and the map of the first wrong one."""
    out = case.outputs[wrong.output]
    of = f" of {wrong.output}" if len(case.outputs) > 1 else ""
    lines = [
        f"  where      {wrong.count} of {wrong.total} elements{of}, {wrong.slices_wrong} of {wrong.slices_total} slices"
    ]
    if wrong.slices_total > 1:
        shown = " ".join(f"{_outer(index)}:{_state(count)}" for index, count in wrong.slices)
        more = "" if len(wrong.slices) == wrong.slices_total else f" … {wrong.slices_total - len(wrong.slices)} more"
        lines += textwrap.wrap(shown + more, WIDTH, initial_indent=" " * 13, subsequent_indent=" " * 13)
    title = f"slice {_outer(wrong.map_index)}, " if wrong.slices_total > 1 else ""
    top, left = wrong.map_origin
    rows = f"i1 down from {top} of {out.ne[1]}" if wrong.map_is_cut else "i1 down"
    columns = f"i0 across from {left} of {out.ne[0]}" if wrong.map_is_cut else "i0 across"
    lines.append(f"             {title}{rows}, {columns} (X wrong, · right):")
    lines += ["               " + "".join("X" if cell else "·" for cell in row) for row in wrong.map]
    return lines


def _outer(index: tuple[int, ...]) -> str:
    """An index over the outer axes, innermost first: i2, then i3."""
    return "(" + ",".join(f"i{axis + 2}={i}" for axis, i in enumerate(reversed(index))) + ")"


def _state(count: int) -> str:
    return "right" if count == 0 else f"{count} wrong"


def twin(fate: str) -> str:
    """What the fate of the contiguous twin means."""
    return {
        "passes": "the same values packed (contiguous, offset 0) pass: the fault lies in strides or offsets",
        "fails": "the same values packed (contiguous, offset 0) fail too: strides and offsets are not to blame",
        "unsupported": "the contiguous twin is not supported here",
        "lost": "the device was lost with this case; its contiguous twin could not be run",
    }.get(fate, "the case is contiguous already: strides and offsets are not to blame")


def matrix(results: Sequence[Result]) -> str:
    """Ops down, devices with their builds across, then every reason, known bug and limit that a cell only hints at."""
    targets = {result.target: result.build for result in results}
    cells = {(result.op, result.target): result for result in results}
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("op")
    notes: dict[str, int] = {}
    for target, build in targets.items():
        head = f"{printable(target)}\n{printable(build, _BUILD)}" if build else printable(target)
        table.add_column(Text(head, overflow="fold"), overflow="fold")
    for op in dict.fromkeys(result.op for result in results):
        row = [_cell(cells.get((op, target)), notes) for target in targets]
        table.add_row(*(Text(printable(cell)) for cell in (op, *row)))
    lines = [text_of(table)]
    lines += [line for note, number in notes.items() for line in _note(number, note)]
    left_out = dict.fromkeys(name for result in results for name in result.left_out)
    if left_out:
        names = _listed(list(left_out))
        lines += textwrap.wrap(f"left out, larger than --max-bytes or for want of time: {names}", WIDTH)
    return _shown("\n".join(lines).split("\n"))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")


def _note(number: int, note: str) -> list[str]:
    return textwrap.wrap(note, WIDTH, initial_indent=f"[{number}] ", subsequent_indent="    ", break_on_hyphens=False)


def _cell(result: Result | None, notes: dict[str, int]) -> str:
    if result is None:
        return "–"
    tally = result.tally
    bugs = {bug.reason for bug in result.known_bugs}  # each has a note of its own
    reasons = "".join(_mark(notes, f"unsupported: {reason}") for reason in tally.unsupported if reason not in bugs)
    if tally.executed == 0:
        return f"unsupported {reasons}".rstrip()
    cell = f"passed {tally.executed}"
    if result.known:
        cell = f"known ({tally.executed})"
    if result.failure is not None:
        cell = f"FAILED ({tally.executed}) {result.failure.kind}"
    if tally.unsupported:
        cell += f", {tally.unsupported.total()} unsupported {reasons}".rstrip()
    if result.failed_known:
        mark = _mark(notes, f"known cases that fail: {_listed(result.failed_known)}")
        cell += f", {len(result.failed_known)} known {mark}"
    for bug in result.known_bugs:
        fate = "known bug" if bug.still_fails else "FIXED"
        about = "kept out of the search" if bug.still_fails else "its pinned case passes now"
        cell += f", {fate} {_mark(notes, f'{fate}, {about}: {bug.reason} (case {bug.id})')}"
    for listed in result.known_failures:
        cell += f", {'FIXED' if listed.fixed else 'known failure'} {_mark(notes, _about_known(listed))}"
    return cell


def _about_known(listed: KnownFailure) -> str:
    """What became of an expected failure, and where it is listed."""
    if listed.fixed:
        fate = f"FIXED, its case {listed.case} passes now and nothing else fails"
    elif listed.fate == "passes":
        fate = f"known failure, though its case {listed.case} passes: pin one of the {listed.covered} that fail"
    elif listed.fate == "fails":
        fate = f"known failure, its case {listed.case} fails; it covers {listed.covered} failing cases of this run"
    else:
        fate = f"known failure, its case {listed.case} was not run ({listed.fate})"
    until = f"EXPIRED on {listed.expires}" if listed.expired else f"until {listed.expires}"
    return f"{fate}: {listed.reason} ({listed.entry}; {until}; {listed.link})"


def _mark(notes: dict[str, int], note: str) -> str:
    return f"[{notes.setdefault(note, len(notes) + 1)}]"


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


def text_of(table: Table, width: int = 200) -> str:
    """A table as plain text, without trailing blanks."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, force_terminal=False).print(table)
    return _shown(stream.getvalue().rstrip("\n").split("\n"))
