"""What a stranger may write: text that means harm, JSON of any shape, and a look at what a log would act on."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

from tests.repro_samples import HOSTILE

FOUL = (
    *HOSTILE,
    "\x1b]0;owned\x07\x1b]8;;https://example.org\x1b\\link",
    "\x9b31m\x90q\x9c",
    "a\n::error::owned",
    "::error file=x.py,line=1::owned",
    " \t::set-output name=x::owned",
    "x\r::stop-commands::y",
    "##[group]owned",
    "##vso[task.setvariable variable=x]owned",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\u2028\u2029\u0085\x0b\x0c",
    "\u200b\u2060\ufeff",
    "[red]x[/]",
    "[/nothing]",
    ":smile:",
    "'; DROP TABLE runs; --",
    "$(touch owned)",
    "; touch owned #",
    "`touch owned`",
    "www.example.org https://example.org",
)

#: Text with what a terminal, a log, a shell, a spreadsheet or a page would act on, at any place.
foul = st.one_of(
    st.sampled_from(FOUL),
    st.lists(st.sampled_from(["::", "##[", "error", "group", " ", "\n", "\r", "\x1b[", "\u202e", "a", ":", "]"]))
    .map("".join)
    .filter(bool),
    st.text(st.characters(), max_size=20),  # surrogates included
)

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | foul
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(foul, inner, max_size=3), max_leaves=8
)


def acted_on(line: str) -> bool:
    """Whether a CI system would take a line of a log for a command.

    GitHub's runner (its ActionCommand.cs) takes `::word` after blanks, here of any word, for a later runner may know
    more, and `##[word]` anywhere; Azure and TeamCity take `##word[`.
    """
    return bool(re.match(r"\s*::[a-z]", line, re.IGNORECASE) or re.search(r"##\w*\[", line))


def paths(plain: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in JSON data."""
    steps = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    return [path] * bool(path) + [found for step, inner in steps for found in paths(inner, (*path, step))]


def put(plain: Any, path: tuple[Any, ...], value: object) -> None:
    """Change JSON data: at `path` stands `value`."""
    for step in path[:-1]:
        plain = plain[step]
    plain[path[-1]] = value


@contextmanager
def quickly(seconds: float = 5.0) -> Iterator[None]:
    """What may be hostile must not take long either."""
    start = time.perf_counter()
    yield
    assert time.perf_counter() - start < seconds
