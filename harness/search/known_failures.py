"""Expected failures as data: `known_failures.toml`, what its entries cover, and when an entry is itself at fault.

    [[failure]]
    backend = "ggml:Vulkan*"           # as --backend takes it; * and ? stand for anything
    build = "b78*"                     # optional: one of the device's versions, as `opconform list` prints them
    device = "*llvmpipe*"              # optional: the device's description
    op = "acc"
    where = { "b.ne3" = ">1" }         # optional: only cases like these
    kind = "WRONG VALUES"              # optional: only failures of this kind, or of one in a list
    case = "acc/kb001"                 # the case that pins it: of `opconform list --cases`, or a file beside this one
    reason = "the outermost dimension of b is ignored"
    link = "https://github.com/ggml-org/llama.cpp/pull/19426"
    expires = 2027-06-30               # the last day on which the entry counts

A failing case that an entry covers does not make a run red, and the search goes on after it: it looks for failures that
no entry covers, and shrinks one only to cases that none covers. What an entry does hide is another fault of the same
kind in the very cases that it describes; so `where` and `kind` should say no more than they must. An entry without
`kind` covers wrong results, never the end of a process (CRASH, TIMEOUT, ERROR, SUPPORTS_OP LIES) or what a checker of
memory found (OUT OF BOUNDS, DATA RACE, …). Covered cases are run all the same: an expected CRASH costs a new process
each, an expected TIMEOUT the whole time limit.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from opconform.harness.draw.known import LARGEST, case_from_file, known_cases
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.files import read_regular
from opconform.harness.model.findings import Kind, Severity
from opconform.harness.model.op import Op
from opconform.harness.model.ops import op_names, ops
from opconform.harness.model.usage import UsageError
from opconform.harness.run.registry import backend_names, parts_of
from opconform.harness.search.result import KnownFailure, Result

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_FILE = "known_failures.toml"

#: Kinds of these severities are covered only by an entry that names them.
_UNLIKE = (Severity.END, Severity.MEMORY)

_FILE_BYTES = 1 << 20
_DOTS = 100  #: in one line of a file
_FAULTS = 40  #: faults of a file that are shown
_SHORT = 40  #: versions that are longer are left out of a message
_NEEDED = ("backend", "op", "case", "reason", "link", "expires")
_FIELDS = (*_NEEDED, "device", "build", "kind", "where")
_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}

Facts = Mapping[str, Any]


def facts_of(op: Op, case: Case) -> dict[str, Any]:
    """What `where` may speak of: the case's parameters, the op's traits, `dtype`, `inplace` (the name of an input, or
    ""), `aligned` (`Case.aligned`) and for each argument `ARG.ne0` … `ARG.ne3`, `ARG.nb0` …, `ARG.offset`, `ARG.dtype`
    and `ARG.layout`."""
    facts: dict[str, Any] = {**op.traits(case), **case.params, "dtype": case.dtype, "inplace": case.inplace or ""}
    facts["aligned"] = case.aligned
    for name, layout in case.layouts.items():
        facts |= {f"{name}.ne{axis}": size for axis, size in enumerate(layout.ne)}
        facts |= {f"{name}.nb{axis}": stride for axis, stride in enumerate(layout.nb)}
        facts |= {f"{name}.offset": layout.offset, f"{name}.dtype": layout.dtype, f"{name}.layout": str(layout.kind)}
    return facts


@dataclass(frozen=True)
class Condition:
    """One condition of `where`: a fact of the case, and a value, a list of values, or a comparison such as ">1"."""

    fact: str
    wanted: Any

    def holds(self, facts: Facts) -> bool:
        """Whether it holds; False for a case that has no such fact (an argument that is left out).

        Raises `TypeError` where a number is compared with something that is none.
        """
        if self.fact not in facts:
            return False
        value = facts[self.fact]
        if isinstance(self.wanted, str):
            for sign, compare in _COMPARISONS.items():
                if self.wanted.startswith(sign):
                    return compare(value, _number(self.wanted[len(sign) :].strip()))
        choices = self.wanted if isinstance(self.wanted, list) else [self.wanted]
        return any(isinstance(choice, bool) is isinstance(value, bool) and choice == value for choice in choices)

    def __str__(self) -> str:
        return f"{self.fact} = {self.wanted!r}"


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True)
class OnDevice:
    """A device as a run or a history tells of it: what `--backend` takes, its description and versions."""

    target: str
    description: str
    versions: Mapping[str, str]

    def __str__(self) -> str:
        names = ", ".join(value for value in self.versions.values() if len(value) <= _SHORT)
        return f"{self.target} is {self.description}{f' ({names})' if names else ''}"


@dataclass(frozen=True)
class Entry:
    """One expected failure; the module's docstring says what each field means. `place` names file and entry."""

    place: str
    backend: str
    op: str
    case_name: str
    case: Case
    reason: str
    link: str
    expires: date
    device: str = "*"
    build: str = "*"
    kinds: tuple[str, ...] = ()
    where: tuple[Condition, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.place} ({self.op} on {self.backend})"

    def expired(self, today: date | None = None) -> bool:
        return (today or date.today()) > self.expires

    def is_about(self, op: str, target: str) -> bool:
        """Whether `op` on `target` (what `--backend` takes) is what the entry names, whatever the device and build."""
        wanted, found = parts_of(self.backend), parts_of(target)
        return op == self.op and all(fnmatchcase(name, pattern or "*") for name, pattern in zip(found, wanted))

    def matches(self, op: str, device: OnDevice) -> bool:
        """Whether the entry speaks of this op on this very device and build."""
        builds = [text for name, value in device.versions.items() for text in (value, f"{name} {value}")]
        return (
            self.is_about(op, device.target)
            and fnmatchcase(device.description, self.device)
            and (self.build == "*" or any(fnmatchcase(build, self.build) for build in builds))
        )

    def covers(self, op: Op, case: Case, kind: Kind) -> bool:
        """Whether a failure of this kind, of an op and device that the entry matches, is the expected one."""
        if self.expired() or (kind not in self.kinds if self.kinds else kind.severity in _UNLIKE):
            return False
        facts = facts_of(op, case) if self.where else {}
        return all(condition.holds(facts) for condition in self.where)


def stale(entries: Iterable[Entry], tested: Mapping[Any, OnDevice], today: date | None = None) -> list[str]:
    """What is wrong with entries in the light of a run; `tested` has every op and target that it tested, by tuples that
    begin with the op.

    An entry is judged only where its op was tested on a backend and device that its `backend` names: then one of those
    devices must match its `device` and `build`. An entry of which the run tested nothing is left alone, expired or not.
    """
    found = []
    for entry in entries:
        about = [(op, device) for (op, *_), device in tested.items() if entry.is_about(op, device.target)]
        if not about:
            continue
        if entry.expired(today):
            found.append(f"{entry.title} expired on {entry.expires}: {entry.reason}; renew it or remove it")
        if not any(entry.matches(op, device) for op, device in about):
            patterns = [f"{name} {value!r}" for name in ("device", "build") if (value := getattr(entry, name)) != "*"]
            seen = "; ".join(
                f"{device.target} is {device.description} ({', '.join(device.versions.values())})"
                for _, device in about
            )
            found.append(f"{entry.title} matches nothing: {' and '.join(patterns)}, but {seen}; remove or mend it")
    return found


def problems(entries: Iterable[Entry], tested: Mapping[Any, OnDevice], results: Iterable[Result]) -> list[str]:
    """What is wrong with the entries after a run, one line each: they are stale, or their case cannot be run."""
    refused = [
        f"{known.entry}: its case {known.case} is not supported by {result.target}: {known.fate}"
        for result in results
        for known in result.known_failures
        if known.fate not in ("fails", "passes") and "--max-bytes" not in known.fate
    ]
    return [*stale(entries, tested), *refused]


def fixed(results: Iterable[Result]) -> list[str]:
    """The entries that have nothing left to cover, one line for each device."""
    return [
        fixed_line(result.op, result.target, known)
        for result in results
        for known in result.known_failures
        if known.fixed
    ]


def fixed_line(op: str, target: str, known: KnownFailure) -> str:
    """What to say of an entry that has nothing left to cover on a device."""
    return f"FIXED: {known.entry}: {op} on {target} passes {known.case} now; remove the entry, or narrow it"


def load(name: str | None) -> tuple[Entry, ...]:
    """The entries of the file `name`; of `DEFAULT_FILE` in this folder where it is None and there is one; none for
    "none". Raises `UsageError`, a line for each fault."""
    if name == "none" or (name is None and not os.path.lexists(DEFAULT_FILE)):
        return ()
    path = Path(name or DEFAULT_FILE)
    try:
        document = _toml(read_regular(path, _FILE_BYTES).decode())
    except OSError as error:
        raise UsageError(f"--known-failures {path}: {error.strerror}") from None
    except ValueError as error:  # not TOML, bytes that are no text, a name that no file has
        raise UsageError(f"{path}: not TOML: {error}") from None
    faults = [f"{path}: {key!r} is not known; entries are tables [[failure]]" for key in document if key != "failure"]
    tables = document.get("failure", [])
    if not (isinstance(tables, list) and all(isinstance(table, dict) for table in tables)):
        raise UsageError(f"{path}: failure must be an array of tables: write [[failure]] above each entry")
    found: list[Entry] = []
    for number, table in enumerate(tables, 1):
        place = f"{path}, entry {number}"
        wrong = list(_faults(table))
        if not wrong:
            try:
                found.append(_entry(place, table, path.parent))
            except (UsageError, CaseError) as error:
                wrong = [str(error)]
        faults += [f"{place}: {fault}" for fault in wrong]
    if faults:
        more = len(faults) - _FAULTS
        raise UsageError(*faults[:_FAULTS], *([f"{path}: {more} more faults"] if more > 0 else []))
    return tuple(found)


def _toml(text: str) -> dict[str, Any]:
    """The tables in TOML text. Raises `ValueError`."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > _DOTS:  # the parser's memory grows with the square of a key's parts
            raise ValueError(f"line {number} has more than {_DOTS} dots")
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _faults(table: Mapping[str, Any]) -> Iterable[str]:
    """What is wrong with the fields of an entry, one line each."""
    for name in table:
        if name not in _FIELDS:
            yield f"{name!r} is not known; there are {', '.join(_FIELDS)}"
    for name in _NEEDED:
        if name not in table:
            yield f"{name!r} is missing"
    for name in ("backend", "op", "case", "reason", "link", "device", "build"):
        if name in table and not (isinstance(table[name], str) and table[name].strip()):
            yield f"{name} is {table[name]!r}; it must be text"
    expires = table.get("expires", date.max)
    if not isinstance(expires, date) or isinstance(expires, datetime):
        yield f"expires is {expires!r}; it must be a date, such as 2027-06-30, without quotes"
    if isinstance(table.get("link"), str) and not table["link"].startswith(("https://", "http://")):
        yield f"link is {table['link']!r}; it must begin with https://"
    if isinstance(table.get("op"), str) and table["op"] not in op_names():
        yield f"op is {table['op']!r}; there are {', '.join(op_names())}"
    if isinstance(table.get("backend"), str):
        spec = parts_of(table["backend"])[0]
        if ".py:" not in spec and not any(fnmatchcase(name, spec) for name in backend_names()):
            yield f"backend is {table['backend']!r}; there are {', '.join(backend_names())}, or path/to/file.py:Class"
    for kind in _listed(table.get("kind", [])):
        if kind not in list(Kind):
            yield f"kind is {kind!r}; there are {', '.join(Kind)}"
    if not isinstance(table.get("where", {}), dict):
        yield f'where is {table["where"]!r}; it must be a table, such as {{ "b.ne3" = ">1" }}'


def _entry(place: str, table: Mapping[str, Any], folder: Path) -> Entry:
    """The entry that a table without faults makes. Raises `UsageError` or `CaseError`."""
    name, op = table["case"], ops()[table["op"]]
    if name in known_cases():
        case = known_cases()[name].case
    elif os.path.isfile(folder / name):
        case = case_from_file(folder / name, LARGEST)
    else:
        raise UsageError(f"case is {name!r}; no known case (opconform list --cases) and no file in {folder}")
    if case.op != op.name:
        raise UsageError(f"case {name} is of {case.op}, not of {op.name}")
    facts = facts_of(op, case)
    conditions = tuple(Condition(fact, wanted) for fact, wanted in table.get("where", {}).items())
    for condition in conditions:
        if condition.fact not in facts:
            raise UsageError(f"where: no {condition.fact!r} in case {name}; there are {', '.join(facts)}")
        try:
            holds = condition.holds(facts)
        except TypeError:
            raise UsageError(f"where: {condition} compares with {facts[condition.fact]!r}") from None
        if not holds:
            value = facts[condition.fact]
            raise UsageError(f"case {name} lies outside where: {condition}, but its {condition.fact} is {value!r}")
    return Entry(
        place=place,
        case_name=name,
        case=case,
        kinds=tuple(_listed(table.get("kind", []))),
        where=conditions,
        **{
            key: table[key] for key in ("backend", "op", "reason", "link", "expires", "device", "build") if key in table
        },
    )
