"""Files of lines that a library's own tools take (`harness.run.lines`): their lines become case files, and back."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from opconform.harness.draw.known import write_case
from opconform.harness.judge.vacuous import weaknesses
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.files import read_regular
from opconform.harness.model.ops import ops
from opconform.harness.model.sidecar import whole_file
from opconform.harness.model.usage import UsageError
from opconform.harness.model.values import inputs_of, recipes_of
from opconform.harness.run.lines import Lines, NotALineError
from opconform.harness.search.watching import drawn, fitting

LARGEST_FILE = 1 << 24  #: bytes; the graphs of a large model take some hundred thousand
MOST_LINES = 1 << 16
MADE = 1 << 24  #: bytes of a case whose values are made to see whether they can be
WEIGHED = 1 << 16  #: bytes of a case whose values are chosen so that they say something of a kernel


@dataclass
class Exchanged:
    """What became of lines or cases. done: what was made, by what tells it from others; repeated: how many more made
    the same. left_out: the names (of lines: "line 7") of those that made nothing, by the reason."""

    done: dict[str, str] = field(default_factory=dict)
    repeated: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, name: str, reason: str) -> None:
        self.left_out.setdefault(reason, []).append(name)

    @property
    def lost(self) -> int:
        """How many made nothing."""
        return sum(map(len, self.left_out.values()))

    @property
    def total(self) -> int:
        return len(self.done) + self.repeated + self.lost


# ---- lines into cases ------------------------------------------------------------------------------------------------


def import_lines(path: Path, lines: Lines, folder: Path, max_bytes: int) -> Exchanged:
    """Write a case file into `folder` for each distinct case among the lines of a file; `done` has their names by the
    cases' ids. Cases have at most `max_bytes`. No file appears before all of them are written.

    Raises `UsageError`, one line, for what is no such file, and for a folder that cannot be written.
    """
    given, found = _lines_of(path), Exchanged()
    cases: dict[str, Case] = {}
    known: dict[str, str | CaseError] = {}
    for number, text in given.items():
        if text not in known:
            known[text] = _made(text, lines, max_bytes, found, cases)
        elif isinstance(known[text], str):
            found.repeated += 1
        if isinstance(error := known[text], CaseError):
            found.leave_out(f"line {number}", str(error))
    if all(isinstance(made, NotALineError) for made in known.values()):
        number, text = next(iter(given.items()), (1, ""))
        first = known.get(text, "it has no line")
        raise UsageError(f"{path}: line {number}: {first}; {lines.about} takes lines of {lines.form}, and a name")
    if cases:
        _write({found.done[key]: case for key, case in cases.items()}, folder)
    return found


def _made(text: str, lines: Lines, max_bytes: int, found: Exchanged, cases: dict[str, Case]) -> str | CaseError:
    """The id of the case that a line is, noted in `found` and `cases`; or why it is none."""
    try:
        name, read = lines.read(text)
        case = suited(fitting(Case.from_json(read.to_json(), max_bytes)))
    except CaseError as error:
        return error
    found.repeated += case.id in cases
    if cases.setdefault(case.id, case) is case:
        found.done[case.id] = _file_name(case.id, name)
    return case.id


def _lines_of(path: Path) -> dict[int, str]:
    """The lines of a file that are not blank, by number. Raises `UsageError`."""
    try:
        raw = read_regular(path, LARGEST_FILE)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: {said}; a file of lines is a regular file of text") from None
    if raw.count(b"\n") > MOST_LINES:
        raise UsageError(f"{path}: more than {MOST_LINES} lines")
    split = raw.decode(errors="replace").split("\n")
    return {number: text for number, text in enumerate(split, 1) if text.strip()}


def suited(case: Case) -> Case:
    """A case with the values that suit it: the simplest recipe of its op, and where that says nothing of a kernel (an
    output of zeros passes), the first that does. Raises `CaseError` where none can be made."""
    op, simplest = ops()[case.op], drawn(case)
    for name, index in op.indices.items():
        layout = case.inputs.get(name)
        if layout is None or not layout.size:
            continue
        wanted, there = layout.shape[-1] if index.unique else 1, index.size(case)
        if wanted > there:
            raise CaseError(f"{name} cannot hold {wanted} places of {there} that there are")
    if case.nbytes > MADE:
        return simplest
    try:
        recipes = recipes_of(op, case.dtype) if case.nbytes <= WEIGHED else ()
        tries = (replace(simplest, recipe=recipe) for recipe in recipes)
        found = next((each for each in tries if not any(weaknesses(op, each, inputs_of(each, op)))), simplest)
        inputs_of(found, op)
    except (ValueError, ArithmeticError) as error:
        raise CaseError(f"its values cannot be made: {error}") from None
    return found


def _file_name(case_id: str, name: str) -> str:
    """The op, the digits of the case and the name of the node, as a file is called everywhere."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:60]
    return f"{case_id}-{readable}.json" if readable else f"{case_id}.json"


def _write(cases: Mapping[str, Case], folder: Path) -> None:
    """Write files into a folder of their own beside `folder`, which then takes its name; where there is one already the
    files move into it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".import-") as place:
            made = Path(place) / "cases"
            for name, case in cases.items():
                write_case(case, made / name)
            if not os.path.lexists(folder):
                made.rename(folder)
                return
            for name in cases if folder.is_dir() else ():
                os.replace(made / name, folder / name)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{folder} cannot be written: {said}") from None
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; -o takes one, or a name that there is not yet")


# ---- cases into lines ------------------------------------------------------------------------------------------------


def export_cases(cases: Iterable[tuple[str, Case]], lines: Lines, path: Path) -> Exchanged:
    """Write a file with a line for each case that lines have room for; `done` has the lines, by what stands before the
    name. Raises `UsageError` for a file that cannot be written."""
    found = Exchanged()
    for name, case in cases:
        try:
            text = lines.write(case, name)
        except CaseError as error:
            found.leave_out(name, str(error))
            continue
        node = text.rpartition(" ")[0]
        found.repeated += node in found.done
        found.done.setdefault(node, text)
    if found.done:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.writelines(f"{text}\n" for text in found.done.values())
        except (OSError, ValueError) as error:
            said = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"{path} cannot be written: {said}") from None
    return found
