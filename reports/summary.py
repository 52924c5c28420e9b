"""A history's matrix and its changes as Markdown, for the summary page of a job."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from opconform.harness.model.text import printable
from opconform.reports.compare import Change, summary_of
from opconform.reports.states import Pair, State, target_names

_MARKS = {"passed": "✅", "failed": "❌", "known": "🟡", "unsupported": "·", "not finished": "❓"}


def markdown_of(
    changes: Sequence[Change], old: Mapping[Pair, State], new: Mapping[Pair, State], notes: Sequence[str] = ()
) -> str:
    """The verdict, ops down and devices across, what changed, then the notes."""
    names = target_names(new)
    targets = {names[pair]: pair[1:] for pair in new}
    lines = ["## Opconform", "", f"**{_text(summary_of(changes, old, new))}**", ""]
    lines += _table(
        ["op", *targets],
        [
            [op, *(_cell(new.get(Pair(op, *target))) for target in targets.values())]
            for op in dict.fromkeys(pair.op for pair in new)
        ],
    )
    if changes:
        lines += ["", "### Changes", ""]
        rows = [[change.what, change.pair.op, change.target, change.old, change.new] for change in changes]
        lines += _table(["change", "op", "target", "old", "new"], rows)
    if notes:
        lines += ["", *(f"* {_text(note)}" for note in notes)]
    return "\n".join([*lines, ""])


def _cell(state: State | None) -> str:
    if state is None:
        return "–"
    about = {"failed": f" {state.kind}", "not finished": f" {state.detail}"}.get(state.outcome, "")
    count = f" {state.executed}" if state.executed else ""
    return f"{_MARKS[state.outcome]} {state.outcome}{about}{count}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell if cell == '---' else _text(cell) for cell in line)} |" for line in lines]


def _text(text: str) -> str:
    """Text that Markdown and HTML take as it is: names of devices and kinds of failures come from elsewhere."""
    shown = printable(" ".join(text.split()))
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&@:-]|(?<=www)\.)", lambda match: f"&#{ord(match[1])};", shown)
