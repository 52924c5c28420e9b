"""The typed failure: everything a renderer needs, and nothing that is not plain data."""

from __future__ import annotations

import base64
import itertools
import math
import shlex
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from opconform.harness.draw.known import LARGEST
from opconform.harness.explain.diagnosis import examine
from opconform.harness.explain.stages import first_wrong_stage
from opconform.harness.judge.checks import not_written
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import DEFAULT_MAX_BYTES, Case
from opconform.harness.model.dtypes import Mask
from opconform.harness.model.expected import Comparison
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.op import Op
from opconform.harness.model.plain import decoded
from opconform.harness.model.values import data_of, inputs_of
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.runner import Runner
from opconform.harness.run.sanitizer import OPTION as SANITIZE

STRICT = "--strict-supports"  #: with it a case is run that only a precondition, or a known bug, keeps from being run


@dataclass(frozen=True)
class Worst:
    """The element farthest beyond its bound. `index` is outermost first; an error can be infinite or NaN.
    unwritten: whether it still holds what stood there before the run."""

    index: tuple[int, ...]
    got: float
    want: float
    error: float
    bound: float
    unwritten: bool = False

    @property
    def times(self) -> float:
        """How many times the bound the error is."""
        return self.error / self.bound if self.bound > 0 else math.inf


@dataclass(frozen=True)
class Wrong:
    """Where an output is wrong: the mask of wrong elements as nested rows of the output's last two axes.

    `output` is its name; a case may have several, and this is the first wrong one.

    `slices` gives, for each of the first slices over the outer axes (outermost first), its index and how many elements
    are wrong, and `slices_total` how many slices there are; `map` is the first wrong slice, row by row, True where
    wrong, cut to a size that can be shown: its first element stands at row and column `map_origin` of the slice.
    `got`, `want` and `marks` are what came back, what should have, and which elements are wrong, in C order, where the
    output has at most `FEW` elements; `unwritten`, which still hold what stood there before the run ((): none).
    `mask` is all of the mask, the base64 of zlib data of its bits in C order; "" where it is larger than 2^20 elements.
    """

    count: int
    total: int
    worst: Worst
    nmse: float
    slices: tuple[tuple[tuple[int, ...], int], ...]
    slices_wrong: int
    slices_total: int
    map_index: tuple[int, ...]
    map: tuple[tuple[bool, ...], ...]
    map_origin: tuple[int, int]
    map_is_cut: bool
    mask: str = ""
    output: str = "out"
    got: tuple[float, ...] = ()
    want: tuple[float, ...] = ()
    marks: tuple[bool, ...] = ()
    unwritten: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A failing case on a device, with what was found out about it.

    packed_twin: "passes", "fails", "unsupported", "lost" (a crash took the device along) or "is the case itself".
    bound and bound_at: the bound's formula and where it is derived. stderr: the worker's last words, for crashes and
    exceptions. hint: the fault that explains every wrong element, "" where none does. also: what became of the case
    elsewhere, and what that puts the blame on.
    provenance: which elements stand where others should, one line each. stage: the first step of a composite op that
    is wrong by itself, "" where the backend shows none. numerics: what the bound is made with. unfinished: why the case
    may not be the smallest one that fails, "" where it is.
    """

    case: Case
    target: str
    device: str
    versions: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]
    wrong: Wrong | None
    packed_twin: str
    bound: str
    bound_at: str
    stderr: str
    replay_options: tuple[str, ...] = ()
    hint: str = ""
    also: str = ""
    provenance: tuple[str, ...] = ()
    stage: str = ""
    numerics: Numerics = EXACT
    unfinished: str = ""

    @property
    def kind(self) -> Kind:
        return self.findings[0].kind

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data (numbers that JSON lacks as strings)."""
        plain = asdict(replace(self, case=None))  # type: ignore[arg-type]
        plain["case"] = self.case.to_json()
        return _jsonable(plain)  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, plain: Any) -> Failure:
        """The failure that `to_json` gave. Raises `ValueError`, one line, for anything else."""
        found = decoded(cls, plain, "failure", {Case: lambda value, _: Case.from_json(value, LARGEST)})
        if not found.findings:
            raise ValueError("failure.findings is empty; it must say what was found")
        if found.wrong is None:
            return found
        if not plain["wrong"].get("output"):  # written before a case could have several
            found = replace(found, wrong=replace(found.wrong, output=next(iter(found.case.outputs), "")))
        assert found.wrong is not None
        _check_wrong(found.wrong, found.case)
        return found


def _check_wrong(wrong: Wrong, case: Case) -> None:
    """Raise `ValueError` for what cannot be drawn: a map that is not of the output, or one too large to show."""
    out = case.outputs.get(wrong.output)
    if out is None or len(out.shape) < 2:
        raise ValueError(f"failure.wrong.output is {wrong.output[:40]!r}; no output of the case, or one without rows")
    outer = len(out.shape) - 2
    if len(wrong.worst.index) != len(out.shape) or len(wrong.map_index) != outer:
        raise ValueError("failure.wrong: the index of an element has as many places as the output has dimensions")
    if len(wrong.slices) > _MAP_SLICES or any(len(index) != outer for index, _ in wrong.slices):
        raise ValueError(f"failure.wrong.slices: at most {_MAP_SLICES} slices, each with its place")
    columns = {len(row) for row in wrong.map}
    if not 1 <= len(wrong.map) <= _MAP_ROWS or len(columns) != 1 or not 1 <= min(columns) <= _MAP_COLUMNS:
        raise ValueError(f"failure.wrong.map: up to {_MAP_ROWS} rows of one length, up to {_MAP_COLUMNS}")
    if wrong.got and not len(wrong.got) == len(wrong.want) == len(wrong.marks) == out.size <= FEW:
        raise ValueError(f"failure.wrong: got, want and marks have an element for each of the output's, at most {FEW}")
    if wrong.unwritten and len(wrong.unwritten) != len(wrong.got):
        raise ValueError("failure.wrong: unwritten has an element for each of got, or none")
    if wrong.mask:
        whole = _unpacked(wrong.mask)
        if wrong.total != out.size or out.size > _MASK or len(whole) != -(-out.size // 8):
            raise ValueError("failure.wrong.mask is not a bit for each element of the output")


def _unpacked(mask: str) -> bytes:
    """The bits of a mask; never more than the largest mask has. Raises `ValueError`."""
    try:
        return zlib.decompressobj().decompress(base64.b64decode(mask, validate=True), _MASK // 8 + 1)
    except zlib.error as error:
        raise ValueError(f"failure.wrong.mask: {error}") from None


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value


def describe(op: Op, runner: Runner, verdict: Verdict, seen: Sequence[Verdict] = ()) -> Failure:
    """The failure of `verdict`, with its exact bytes, its contiguous twin's fate and a diagnosis.

    `seen` are verdicts on other cases of the same op and device, which tell explanations apart.
    """
    case = verdict.case if verdict.case.data else verdict.case.with_data(data_of(inputs_of(verdict.case, op)))
    comparison = verdict.comparison
    wrong = _wrong(case, comparison) if comparison is not None and comparison.wrong.any() else None
    twin = _packed_twin(op, runner, case)
    numerics = verdict.numerics if verdict.comparisons else runner.numerics
    hint, provenance = examine(op, runner, replace(verdict, case=case), seen)
    device = runner.target.device
    return Failure(
        case=case,
        target=runner.target.label,
        device=device.description,
        versions=tuple(device.versions.items()),
        findings=verdict.findings,
        wrong=wrong,
        packed_twin=twin,
        bound=op.bound,
        bound_at=op.where_bound(),
        stderr=verdict.stderr,
        replay_options=replay_options(runner, case),
        hint=hint,
        provenance=provenance,
        stage=first_wrong_stage(op, runner, case, numerics) if verdict.comparisons else "",
        numerics=numerics,
    )


def replay_options(runner: Runner, case: Case) -> tuple[str, ...]:
    """The options with which a replay has the device and takes the case."""
    options = [
        f"--{name.replace('_', '-')} {shlex.quote(value)}" if name != SANITIZE else f"--{name}"
        for name, value in runner.target.options.items()
    ]
    if case.nbytes > DEFAULT_MAX_BYTES:
        options.append(f"--max-bytes {runner.max_bytes}")
    if runner.strict:
        options.append(STRICT)
    return tuple(options)


def _packed_twin(op: Op, runner: Runner, case: Case) -> str:
    twin = case.packed()
    if twin == case:
        return "is the case itself"
    try:
        if case.before is not None:  # what is kept of that one must not be held against the twin
            runner.fresh()
        verdict = runner.verdicts(op, [twin])[0]
    except Unavailable:
        return "lost"
    if verdict.unsupported is not None:
        return "unsupported"
    return "fails" if verdict.failed else "passes"


FEW = 16  #: elements that a screen shows one by one
_MASK = 1 << 20  #: the largest mask that is kept whole
_MAP_ROWS, _MAP_COLUMNS, _MAP_SLICES = 24, 96, 64
_MAP_MARGIN = 8  #: right elements shown before the first wrong one, where the map does not begin at 0


def _wrong(case: Case, comparison: Comparison) -> Wrong:
    wrong, missing = comparison.wrong, not_written(case, comparison)
    with np.errstate(all="ignore"):
        times = comparison.error / comparison.bound
    times = np.where(np.isnan(times), np.inf, times)
    index = np.unravel_index(int(np.argmax(np.where(wrong, times, -1.0))), wrong.shape)
    worst = Worst(
        tuple(int(i) for i in index),
        float(comparison.got[index]),
        float(comparison.expected.value[index]),
        float(comparison.error[index]),
        float(comparison.bound[index]),
        bool(missing[index]),
    )
    outer = wrong.reshape(*wrong.shape[:-2], -1).sum(axis=-1)
    places = itertools.islice(np.ndenumerate(outer), _MAP_SLICES)
    first = tuple(int(i) for i in np.argwhere(outer)[0])
    rows = wrong[first]
    row, column = (int(i) for i in np.argwhere(rows)[0])
    top = 0 if row < _MAP_ROWS else row - _MAP_MARGIN
    left = 0 if column < _MAP_COLUMNS else column - _MAP_MARGIN
    shown = rows[top : top + _MAP_ROWS, left : left + _MAP_COLUMNS]
    return Wrong(
        count=int(np.count_nonzero(wrong)),
        total=wrong.size,
        worst=worst,
        nmse=comparison.nmse,
        slices=tuple((tuple(int(i) for i in where), int(count)) for where, count in places),
        slices_wrong=int(np.count_nonzero(outer)),
        slices_total=outer.size,
        map_index=first,
        map=tuple(tuple(bool(cell) for cell in row) for row in shown),
        map_origin=(top, left),
        map_is_cut=shown.shape != rows.shape,
        mask=base64.b64encode(zlib.compress(np.packbits(wrong).tobytes())).decode() if wrong.size <= _MASK else "",
        output=comparison.name,
        **_one_by_one(comparison, missing),
    )


def _one_by_one(comparison: Comparison, missing: Mask) -> dict[str, Any]:
    if comparison.wrong.size > FEW:
        return {}
    return {
        "got": tuple(float(value) for value in comparison.got.flat),
        "want": tuple(float(value) for value in comparison.expected.value.flat),
        "marks": tuple(bool(bad) for bad in comparison.wrong.flat),
        "unwritten": tuple(bool(cell) for cell in missing.flat) if missing.any() else (),
    }
