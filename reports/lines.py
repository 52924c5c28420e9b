"""The screen of `opconform import` and `export`: what was written, and what was left out and why."""

from __future__ import annotations

from opconform.harness.model.text import printable
from opconform.harness.search.lines import Exchanged

_NAMES, _REASONS = 6, 40  #: names that stand with a reason, and reasons that are listed


def exchanged_screen(found: Exchanged, one: str, made: str, about: str) -> str:
    """one: "line" or "case", what went in; made: what came out, and where; about: whose numbers the lines have."""
    reasons = sorted(found.left_out.items(), key=lambda item: -len(item[1]))
    lines = [f"left out  {_named(names)}: {reason}" for reason, names in reasons[:_REASONS]]
    if len(reasons) > _REASONS:
        lines.append(f"left out  {sum(len(names) for _, names in reasons[_REASONS:])} more, for other reasons")
    became = found.total - found.lost
    same = f", {found.repeated} of them the same as others" if found.repeated else ""
    said = f"{became} of {found.total} {one}s became {len(found.done)} {made}{same}; ops by the numbers of {about}"
    if found.lost:
        told = "; ".join(f"{reason} ({len(names)})" for reason, names in reasons[:3])
        more = f"; {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
        said += f"; {found.lost} not: {told}{more}"
    return "\n".join(printable(line) for line in [*lines, said])


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more
