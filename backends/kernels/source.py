"""Kernel files as text for a compiler, and what stands in them: kernels, and structs that a launch fills."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

_INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)
_LINE = re.compile(r'^#line (\d+) "([^"]+)"$')
_KERNEL = re.compile(r'^(?:extern "C" __global__|__kernel) void (\w+)\(', re.MULTILINE)
_STRUCT = r"\b{}\s*\{{(.*?)\}}"
_FIELD = re.compile(r"(\w+)\s+(\w+)\s*(?:\[(\d+)\])?\s*;")


def found_in(folders: Sequence[Path], *names: str) -> Path:
    """The first of these names that a folder has, in the first that has it. Raises `FileNotFoundError`."""
    for name in names:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(f"none of {', '.join(map(str, folders))} has {' or '.join(names)}")


def files_of(file: Path, folders: Sequence[Path] = (), made: Mapping[str, str] | None = None) -> dict[str, str]:
    """A kernel file, which comes first, and all that it includes: texts by name.

    `made` are files that stand nowhere, by name; all others are looked for in `folders`, then beside the file.
    """
    found: dict[str, str] = {}
    wanted = [(file.name, file.read_text(encoding="utf-8"))]
    while wanted:
        name, text = wanted.pop()
        found[name] = text
        for included in _INCLUDE.findall(text):
            if included not in found:
                given = (made or {}).get(included)
                if given is None:
                    given = found_in((*folders, file.parent), included).read_text(encoding="utf-8")
                wanted.append((included, given))
    return found


def whole(name: str, files: Mapping[str, str]) -> str:
    """A kernel file with what it includes, one text that needs no search path. Every file is included once.

    `#line` keeps files and lines as they are, so that a compiler's messages, and what a checker or a debugger shows,
    name those of the repository.
    """
    return "".join(_lines(name, dict(files)))


def source_of(file: Path) -> str:
    """A file with what it includes from its own folder."""
    return whole(file.name, files_of(file))


def _lines(name: str, left: dict[str, str]) -> Iterator[str]:
    if not name.endswith(".comp"):  # GLSL begins with #version
        yield f'#line 1 "{name}"\n'
    for number, line in enumerate(left.pop(name).splitlines(), start=1):
        found = _INCLUDE.match(line)
        if found is None:
            yield line + "\n"
            continue
        if found[1] in left:
            yield from _lines(found[1], left)
        yield f'#line {number + 1} "{name}"\n'


def kernels_in(source: str) -> list[str]:
    """The names of the kernels that a source defines, for one API or the other."""
    return list(dict.fromkeys(_KERNEL.findall(source)))


def place_of(source: str, pattern: str) -> str:
    """The file and line, as `#line` names them, of the last line of a source that the pattern matches."""
    name, number, place = "", 0, ""
    for line in source.splitlines():
        moved = _LINE.match(line)
        if moved:
            name, number = moved[2], int(moved[1]) - 1
            continue
        number += 1
        if re.search(pattern, line):
            place = f"{name}:{number}"
    return place


def complaint(file: Path, said: str) -> RuntimeError:
    """What to raise for a file that a compiler refuses: all that it said, and in the last line the first error."""
    lines = said.strip().splitlines()
    first = next((line for line in lines if "error" in line), lines[-1] if lines else "it said nothing")
    return RuntimeError("\n".join([*lines, f"{file} does not compile: {first}"]))


@dataclass(frozen=True)
class Field:
    """A field of a struct: how many numbers it holds, and whether they are float32s (which travel as their bits).

    Where its name is that of an argument and one of `ne`, `start`, `nb` and `type`, `argument` and `what` are these.
    """

    name: str
    count: int
    is_float: bool
    argument: str = ""
    what: str = ""

    @classmethod
    def named(cls, name: str, count: int, is_float: bool) -> Field:
        """The field of that name."""
        argument, _, what = name.rpartition("_")
        return cls(name, count, is_float, *((argument, what) if what in ("ne", "start", "nb", "type") else ()))


@dataclass(frozen=True)
class Struct:
    """What a kernel takes by value, field by field in the order of its source."""

    fields: tuple[Field, ...]

    @cached_property
    def groups(self) -> tuple[tuple[str, tuple[Field, ...]], ...]:
        """The fields, with those together that follow each other and belong to one argument ("" where to none)."""
        together = groupby(self.fields, key=lambda it: it.argument)
        return tuple((argument, tuple(fields)) for argument, fields in together)

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Where among all numbers those of a field begin."""
        found, at = {}, 0
        for field in self.fields:
            found[field.name] = at
            at += field.count
        return found

    def by_name(self, numbers: Sequence[int]) -> list[tuple[str, list[int]]]:
        """Every field with its numbers."""
        return [(it.name, list(numbers[self.places[it.name] :][: it.count])) for it in self.fields]


def struct_in(source: str, head: str = "struct arguments") -> Struct:
    """The struct, or the block of GLSL, that begins with `head`; one without fields where the source has none."""
    found = re.search(_STRUCT.format(head.replace(" ", r"\s+")), re.sub(r"//[^\n]*", "", source), re.DOTALL)
    fields = _FIELD.findall(found[1]) if found else []
    return Struct(
        tuple(Field.named(name, int(count or 1), kind in ("float_bits", "float")) for kind, name, count in fields)
    )
