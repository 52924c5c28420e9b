"""The screen of `opconform import` and `export`: what was written, and what was left out and why."""

from __future__ import annotations

from opconform.harness.model.text import printable
from opconform.harness.search.lines import Exchanged

_NAMES, _REASONS = 6, 40  #: names that stand with a reason, and reasons that are listed
_TOLD = 3  #: reasons in the last line


def exchanged_screen(found: Exchanged, one: str, made: str, place: object, about: str) -> str:
    """one: "line" or "case", what went in; made: what came out, and the place where it stands; about: whose tools take
    such lines."""
    reasons = sorted(found.left_out.items(), key=lambda item: -len(item[1]))
    lines = [f"left out  {_named(names)}: {reason}" for reason, names in reasons[:_REASONS]]
    if len(reasons) > _REASONS:
        lines.append(f"left out  {sum(len(names) for _, names in reasons[_REASONS:])} more, for other reasons")
    became = found.total - found.lost
    if one == "line" and found.lost > became:
        lines.append(f"was another build the writer? Name it: ops are read by the numbers of {about}")
    said = f"{became} of {_many(found.total, one)} became {_many(len(found.done), made)} in {place}"
    if found.repeated:
        said += f", {found.repeated} of them the same as others"
    if found.lost:
        told = "; ".join(f"{reason} ({len(names)})" for reason, names in reasons[:_TOLD])
        more = f"; {_many(len(reasons) - _TOLD, 'other reason')}" if len(reasons) > _TOLD else ""
        said += f"; {found.lost} not: {told}{more}"
    return "\n".join(printable(line) for line in [*lines, f"ops by the numbers of {about}", said])


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more
