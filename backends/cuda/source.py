"""Kernel files as text for a compiler."""

from __future__ import annotations

import re
from pathlib import Path

_INCLUDE = re.compile(r'^#include "([\w.]+)"$')
_KERNEL = re.compile(r'^extern "C" __global__ void (\w+)\(', re.MULTILINE)


def source_of(file: Path) -> str:
    """A kernel file with what it includes, one text that needs no search path; `#line` keeps files and lines as they
    are, so that a compiler's messages, and what a debugger shows, name those of the repository."""
    return "".join(_lines(file))


def _lines(file: Path) -> list[str]:
    lines = [f'#line 1 "{file.name}"\n']
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        found = _INCLUDE.match(line)
        if found is None:
            lines.append(line + "\n")
        else:
            lines += [*_lines(file.parent / found[1]), f'#line {number + 1} "{file.name}"\n']
    return lines


def kernels_in(source: str) -> list[str]:
    """The names of the kernels that a file defines."""
    return _KERNEL.findall(source)


def complaint(file: Path, said: str) -> RuntimeError:
    """What to raise for a file that a compiler refuses: all that it said, and in the last line the first error."""
    lines = said.strip().splitlines()
    first = next((line for line in lines if "error" in line), lines[-1] if lines else "it said nothing")
    return RuntimeError("\n".join([*lines, f"{file} does not compile: {first}"]))
