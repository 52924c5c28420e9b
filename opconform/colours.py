"""Colour with intent, where a terminal takes it: what failed is red, what passed is green, what is read last is dim.

$NO_COLOR turns it off (https://no-color.org); $FORCE_COLOR turns it on where the output is no terminal.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable

import click

#: Labels of lines that are read last.
_DIM = ("bound", "nmse", "made by", "declared", "packed", "shrunk", "versions")
_STATES = {"passed": "green", "FAILED": "red", "known": "yellow", "unsupported": "bright_black", "vacuous": "yellow"}


def coloured() -> bool:
    """Whether what goes to stdout is coloured."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


def echo(text: str) -> None:
    """Print text to stdout, with its colours where they are wanted."""
    click.echo(text, color=coloured())


def styled(text: str, **how: object) -> str:
    """Text in a colour, where that is wanted."""
    return click.style(text, **how) if coloured() else text  # type: ignore[arg-type]


def state(word: str) -> str:
    """The word for what came of an op on a device, padded to a column."""
    return styled(f"{word:<11}", fg=_STATES.get(word), bold=word == "FAILED")


def screen(text: str) -> str:
    """The screen of a failure: its kind red, the hint bold, what is read last dim."""
    if not coloured():
        return text
    lines, dim = text.split("\n"), False
    kind = re.match(r"[A-Z_/ ]+(?=  )", lines[0])
    if kind is not None:
        lines[0] = click.style(kind[0], fg="red", bold=True) + lines[0][kind.end() :]
    for index, line in enumerate(lines[1:], 1):
        label = re.match(r"  (\S[\w/ ]*?)?\s{2,}", f"{line[:13]:<13}  ")
        if label is not None and label[1]:
            dim = label[1] in _DIM
        elif not line:
            dim = False
        if dim:
            lines[index] = click.style(line, dim=True)
        elif line.startswith("  hint "):
            lines[index] = click.style(line, bold=True)
        else:
            lines[index] = re.sub(r"\S+!(?= |$)", lambda match: click.style(match[0], fg="red"), line)
    return "\n".join(lines)


def matrix(text: str) -> str:
    """The matrix: what passed green, what failed red."""
    if not coloured():
        return text
    styles: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (r"\bpassed \d+", lambda match: click.style(match[0], fg="green")),
        (r"\bFAILED \(\d+\) [A-Z/ _]*[A-Z]", lambda match: click.style(match[0], fg="red", bold=True)),
        (r"\bFIXED\b", lambda match: click.style(match[0], fg="green", bold=True)),
        (r"\bunsupported\b", lambda match: click.style(match[0], dim=True)),
    ]
    for pattern, style in styles:
        text = re.sub(pattern, style, text)
    return text
