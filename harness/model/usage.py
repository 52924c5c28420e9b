"""What the user asked for and cannot have."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from opconform.harness.model.text import printable


class UsageError(Exception):
    """Something the user asked for does not exist or cannot be: one line that lists what does, or several such lines.

    What stands in a file or is named by a device is not printed as it is: each line is made printable, long words are
    shortened, and the line is cut after `LONGEST` characters.
    """

    LONGEST = 4000

    def __init__(self, *lines: str) -> None:
        short = (re.sub(r"\S{400,}", lambda word: f"{word[0][:200]}…{word[0][-100:]}", line) for line in lines)
        super().__init__(*(printable(line, self.LONGEST) for line in short))

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def meant(name: str, known: Iterable[str]) -> str:
    """The end of a line on an unknown name: whether one of those nearest to it was meant; "" without such."""
    near = difflib.get_close_matches(name[:100], list(known), 3)
    return f"; did you mean {' or '.join(near)}?" if near else ""
