"""Known cases, and cases kept in files: what is tried besides what the search draws."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from opconform.harness.model import sidecar
from opconform.harness.model.case import DEFAULT_MAX_BYTES, MAX_RANK, Case, CaseError, NoBlocksError
from opconform.harness.model.files import read_regular
from opconform.harness.model.ops import ops
from opconform.harness.model.plain import parsed
from opconform.harness.model.usage import UsageError, meant
from opconform.harness.model.values import RECIPES, check_indices

LARGEST = 1 << 40  #: known cases may be of any size; a run leaves out those over its --max-bytes
_FILE_BYTES = 1 << 30
_MODELS = ("DeepSeek", "GPT-", "Gemma", "Kimi", "Llama", "Mamba", "Mixtral", "Phi-", "Qwen", "RWKV", "gpt-oss")
INLINE = 1 << 20  #: bytes of a case's inputs that stand in its file itself


@dataclass(frozen=True)
class KnownCase:
    """A case worth a name: a shape of a real model, or the trigger of a past bug (`source` is a link)."""

    id: str
    about: str
    source: str
    case: Case

    @property
    def of_model(self) -> bool:
        """Whether it is a shape of a real model: its line then begins with the model's name."""
        return self.about.startswith(_MODELS)


@cache
def known_cases(op: str = "") -> dict[str, KnownCase]:
    """Every packaged known case, by id, or those of one op; without the package gguf, those of plain types.

    Raises `CaseError` naming the file for one that is not a case.
    """
    found: dict[str, KnownCase] = {}
    for file in sorted(files("opconform.cases").joinpath("known").iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".json"):
            continue
        for entry in json.loads(file.read_text(encoding="utf-8")):
            if op and entry["case"]["op"] != op:
                continue
            try:
                case = checked(Case.from_json(entry["case"], LARGEST))
            except NoBlocksError:
                continue
            except CaseError as error:
                raise CaseError(f"{file.name}: {entry.get('id')}: {error}") from None
            found[entry["id"]] = KnownCase(entry["id"], entry["about"], entry["source"], case)
    return found


def checked(case: Case) -> Case:
    """`case`, if its op exists and takes it. Raises `CaseError`."""
    op = ops().get(case.op)
    if op is None:
        raise CaseError(f"case.op is {case.op!r}; there are {', '.join(ops())}")
    for what, got, wanted in (("inputs", case.inputs, op.inputs), ("outputs", case.outputs, op.outputs)):
        if not set(wanted) - set(op.composite.optional) <= set(got) <= set(wanted):
            raise CaseError(f"case.{what} are {', '.join(got) or 'none'}; {case.op} has {', '.join(wanted)}")
    if set(case.params) != set(op.params):
        raise CaseError(f"case.params are {', '.join(case.params)}; {case.op} has {', '.join(op.params)}")
    for name, kind in op.params.items():
        value = case.params[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise CaseError(f"case.params.{name} is {value!r}; it must be of type {kind.__name__}")
    recipes = dict.fromkeys([*op.composite.recipes, *RECIPES])
    if case.recipe not in recipes:
        raise CaseError(f"case.recipe is {case.recipe!r}; {case.op} has {', '.join(recipes)}")
    for name, layout in case.layouts.items():
        allowed = op.argument_dtypes.get(name, (case.dtype,))
        if case.dtype not in op.dtypes or layout.dtype not in allowed:
            types = op.dtypes if case.dtype not in op.dtypes else allowed
            raise CaseError(f"{name} has dtype {layout.dtype}; {case.op} takes {' or '.join(types)} there")
        if len(layout.shape) != MAX_RANK:
            raise CaseError(f"{name} has {len(layout.shape)} dimensions; it must have {MAX_RANK}")
    op.check(case)
    check_indices(case, op)
    if case.before is not None:
        checked(case.before)
    return case


def case_from_file(path: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> Case:
    """The case in a JSON file. Raises `UsageError`, one line that names the file."""
    try:
        return read_case(read_regular(path, _FILE_BYTES), max_bytes, path.parent)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; a case is a regular file with one JSON object") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def read_case(text: bytes, max_bytes: int, folder: Path | None = None) -> Case:
    """The case that JSON text describes, if its op exists and takes it; `folder` is where the bytes of a large one may
    stand beside it. Raises `ValueError`, one line, and `OSError`."""
    try:
        plain = parsed(text)
    except json.JSONDecodeError as error:
        raise CaseError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise CaseError(f"not JSON: {error.reason} at byte {error.start}; it must be UTF-8") from None
    except ValueError as error:  # nested too deep, a number of thousands of digits
        raise CaseError(f"not a case: {error}") from None
    if folder is None or not isinstance(plain, dict) or not sidecar.names_file(plain.get("data")):
        return checked(Case.from_json(plain, max_bytes))
    about = plain.pop("data")
    case = checked(Case.from_json(plain, max_bytes))
    sizes = {name: math.prod(layout.blocks) * layout.type.itemsize for name, layout in case.inputs.items()}
    raw, data, at = sidecar.get(about, folder, sum(sizes.values()), "case.data"), {}, 0
    for name, size in sizes.items():
        data[name] = raw[at : at + size]
        at += size
    return case.with_data(data)


def find_case(name: str, report_dir: str, max_bytes: int = DEFAULT_MAX_BYTES) -> tuple[str, Case]:
    """The case that `name` means, with the name to show: a file, the id of a known case, or of a stored failure.

    Raises `UsageError` that says where it looked.
    """
    path = Path(name)
    if path.suffix == ".json" or os.path.isfile(path):
        case = case_from_file(path, max_bytes)
        return case.id, case
    if name in known_cases():
        return name, known_cases()[name].case
    stored = case_path(report_dir, name)
    if Path(name).name == name and os.path.isfile(stored):
        return name, case_from_file(stored, max_bytes)
    where = f"no such file, no known case (opconform list --cases), none in {stored.parent}"
    raise UsageError(f"no case {name!r}: {where}{meant(name, known_cases())}")


def find_cases(name: str, report_dir: str, max_bytes: int = DEFAULT_MAX_BYTES) -> list[tuple[str, Case]]:
    """The cases that `name` means: that of `find_case`, or those of all the files *.json in a folder. Raises
    `UsageError`."""
    folder = Path(name)
    if folder.suffix == ".json" or not os.path.isdir(name):  # False for a name that no file can have
        return [find_case(name, report_dir, max_bytes)]
    found = [case_from_file(path, max_bytes) for path in _files_in(name)]
    return [(case.id, case) for case in found]


def _files_in(folder: str) -> list[Path]:
    """The case files of a folder. Raises `UsageError` where there is none."""
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise UsageError(f"{folder}: no file of this folder is a case (*.json)")
    return paths


def known_in(folder: str) -> list[KnownCase]:
    """The case files of a folder as known cases; the path of each is its id. Raises `UsageError`."""
    if not os.path.isdir(folder):
        raise UsageError(f"--known-cases is {folder!r}; it must be a folder of case files, as opconform import writes")
    about = f"a case of {folder}"
    return [KnownCase(str(path), about, str(path), case_from_file(path, LARGEST)) for path in _files_in(folder)]


def case_path(report_dir: str, case_id: str) -> Path:
    """Where a failing case is kept."""
    return Path(report_dir) / "cases" / f"{case_id}.json"


def store(case: Case, report_dir: str) -> Path:
    """Write a case file, whole or not at all; returns its path."""
    path = case_path(report_dir, case.id)
    write_case(case, path)
    return path


def write_case(case: Case, path: Path) -> None:
    """Write a case into a file, whole or not at all; the bytes of a large one stand beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if case.data is None or sum(map(len, case.data.values())) <= INLINE:
        plain = case.to_json()
    else:
        raw = b"".join(case.data[name] for name in case.inputs)
        plain = {**replace(case, data=None).to_json(), "data": sidecar.put(raw, path.parent, path.stem, 0)}
    with sidecar.whole_file(path) as file:
        json.dump(plain, file, indent=1)
