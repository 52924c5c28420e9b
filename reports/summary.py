"""A history's matrix and its changes as Markdown, for the summary page of a job."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from opconform.harness.model.text import printable
from opconform.reports.compare import Change, summary_of
from opconform.reports.console import taken_by_none
from opconform.reports.states import Pair, State, target_names

_MARKS = {"passed": "✅", "failed": "❌", "known": "🟡", "unsupported": "·", "not finished": "❓"}


def markdown_of(
    changes: Sequence[Change], old: Mapping[Pair, State], new: Mapping[Pair, State], notes: Sequence[str] = ()
) -> str:
    """The verdict, ops down and devices across, those that no device takes in a line, what changed, then the notes."""
    names = target_names(new)
    targets = {names[pair]: pair[1:] for pair in new}
    lines = ["## Opconform", "", f"**{text(summary_of(changes, old, new))}**", ""]
    taken = {pair.op for pair, state in new.items() if not _takes_nothing(state)}
    every = list(dict.fromkeys(pair.op for pair in new))
    ops = [op for op in every if op in taken] or every
    cells = [[op, *(_cell(new.get(Pair(op, *target))) for target in targets.values())] for op in ops]
    lines += table(["op", *targets], cells)
    refused = taken_by_none([(pair.op, state.reasons) for pair, state in new.items() if pair.op not in ops])
    lines += ["", text(refused)] if refused else []
    if changes:
        lines += ["", "### Changes", ""]
        rows = [[change.what, change.pair.op, change.target, change.old, change.new] for change in changes]
        lines += table(["change", "op", "target", "old", "new"], rows)
    if notes:
        lines += ["", *(f"* {text(note)}" for note in notes)]
    return "\n".join([*lines, ""])


def _takes_nothing(state: State) -> bool:
    """Whether an op is plainly not there on a device."""
    return state.outcome == "unsupported" and not (state.bugs or state.mended or state.listed)


def _cell(state: State | None) -> str:
    if state is None:
        return "–"
    about = {"failed": f" {state.kind}", "not finished": f" {state.detail}"}.get(state.outcome, "")
    count = f" {state.executed}" if state.executed else ""
    return f"{_MARKS[state.outcome]} {state.outcome}{about}{count}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell if cell == '---' else text(cell) for cell in line)} |" for line in lines]


def text(words: str) -> str:
    """Text that Markdown and HTML take as it is: names of devices and kinds of failures come from elsewhere."""
    shown = printable(" ".join(words.split()))
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&@:-]|(?<=www)\.)", lambda match: f"&#{ord(match[1])};", shown)
