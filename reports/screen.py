"""The screen of a failure: plain text for a terminal.

What is wrong comes first, then the values, what explains them, where they stand and how they lie in memory; what is
only needed to look closer comes last.
Sizes and indices stand innermost first on all of it: ne=[ne0,ne1,…], i0 = ….
"""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from opconform.harness.explain.failure import FEW, Failure, Wrong
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64
from opconform.harness.model.findings import Kind
from opconform.harness.model.layouts import axes_named
from opconform.harness.model.text import printable
from opconform.harness.search.settings import RACE_RUNS
from opconform.reports.console import WIDTH, shown

UNWRITTEN = "unwritten"  #: what stands in place of an element that still holds what was there before the run
Cells = npt.NDArray[np.object_]
_STDERR_LINES = 12
_MARGIN = " " * 13


def screen(failure: Failure, commands: Sequence[str]) -> str:
    """One screen: what is wrong, with which case, where, by how much, who is to blame, and how to see it again."""
    return f"{head(failure)}\n{tail(failure, commands)}"


def head(failure: Failure) -> str:
    """What is known of a failure before anybody else is asked about it."""
    case, wrong = failure.case, failure.wrong
    lines = [f"{failure.kind}  {case.op} on {failure.target}  ({failure.device})", "", *_case(case)]
    lines += _values(failure)
    if failure.hint:
        lines += wrapped("hint", failure.hint)
    if wrong is not None:
        lines += places(case, wrong)
    lines += [*_layouts(case), ""]
    for finding in failure.findings:
        lines += wrapped(finding.check, finding.detail)
    if wrong is not None:
        lines += _element(failure, wrong)
    for index, line in enumerate(failure.provenance):
        lines += wrapped("moved" if index == 0 else "", line)
    if failure.stage:
        lines += wrapped("stage", failure.stage)
    if failure.stderr:
        lines += ["", "  it said", *(f"    {line}" for line in said(failure.stderr))]
    lines += ["", *wrapped("made by", f"recipe {case.recipe}, seed {case.seed}{_kept(case)}")]
    if failure.numerics.looser:
        lines += wrapped("declared", failure.numerics.looser)
    lines += wrapped("packed", _packed(failure))
    if failure.unfinished:
        lines += wrapped("shrunk", f"not to the end: {failure.unfinished}")
    if failure.versions:
        lines += wrapped("versions", ", ".join(f"{name} {value}" for name, value in failure.versions))
    return shown(lines)


def said(stderr: str) -> list[str]:
    """The last lines of what a worker printed."""
    lines = [part for line in stderr.splitlines() for part in textwrap.wrap(clean(line), WIDTH - 4) or [""]]
    return lines[-_STDERR_LINES:]


def tail(failure: Failure, commands: Sequence[str]) -> str:
    """What the other devices say of a failure, and how to see it again."""
    lines = ["", *wrapped("also", failure.also)] if failure.also else []
    often = f" (each runs the case up to {RACE_RUNS} times, until it fails)" if _comes_and_goes(failure) else ""
    return shown([*lines, "", f"  again with{often}", *(f"    {command}" for command in commands)])


def _comes_and_goes(failure: Failure) -> bool:
    return failure.kind == Kind.NOT_DETERMINISTIC


def wrapped(label: str, text: str, width: int = 10) -> list[str]:
    """A labelled text, broken between words; `width` is that of the column of labels."""
    first, rest = f"  {label:<{width}} ", " " * (width + 3)
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    ) or [first]


def _case(case: Case) -> list[str]:
    """The case, sizes and strides innermost first; a long one is broken between its parameters, and nowhere else."""
    spaced = re.sub(r",(?=[a-z])", ", ", str(case))
    return [line.replace(", ", ",") for line in wrapped("case", spaced)]


def clean(line: str) -> str:
    """A line of a worker's output: without colours, and printable."""
    return printable(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line.expandtabs()))


def _kept(case: Case) -> str:
    return "" if case.keep is None else f"; all batch slices but number {case.keep} are NaN"


# ---- values ---------------------------------------------------------------------------------------------------------


def _values(failure: Failure) -> list[str]:
    """The elements of every argument that has few, what came back beside what should have."""
    rows = list(_rows(failure))
    if not rows:
        return []
    names = max(len(name) for name, _, _ in rows)
    where = max(len(place) for _, place, _ in rows)
    column = max(len(cell) for _, _, cells in rows for cell in cells)
    fit = max((WIDTH - len(_MARGIN) - names - where - 4) // (column + 2), 1)
    lines, before = [], ""
    for name, place, cells in rows:
        for start in range(0, len(cells), fit):
            label = f"{'' if name == before else name:<{names}}  {place if start == 0 else '':<{where}}"
            numbers = "  ".join(f"{cell:>{column}}" for cell in cells[start : start + fit])
            lines.append(f"{_MARGIN}{label}  {numbers}")
            before = name
    return [f"  values     {lines[0][len(_MARGIN) :]}", *lines[1:]]


def _rows(failure: Failure) -> Iterator[tuple[str, str, list[str]]]:
    """A name, a place such as "i0=0…3 i1=2", and elements along one axis."""
    case, wrong = failure.case, failure.wrong
    for name, layout in case.inputs.items():
        if case.data is not None and 0 < layout.size <= FEW:
            raw = np.frombuffer(case.data[name], layout.type.raw).reshape(layout.shape)
            yield from _along(name, _shown(layout.type.decode(raw)))
    if wrong is None or not wrong.got:
        return
    shape = case.outputs[wrong.output].shape
    of = f" {wrong.output}" if len(case.outputs) > 1 else ""
    missing = wrong.unwritten or (False,) * len(wrong.got)
    got = [
        f"{UNWRITTEN if left else f'{value:.9g}'}{'!' if bad else ' '}"
        for value, bad, left in zip(wrong.got, wrong.marks, missing)
    ]
    yield from _along(f"got{of}", np.array(got, dtype=object).reshape(shape))
    yield from _along(f"want{of}", _shown(np.array(wrong.want).reshape(shape)))


def _shown(values: F64) -> Cells:
    """Elements as they are shown, with room for an exclamation mark."""
    cells = np.empty(values.shape, dtype=object)
    cells.reshape(-1)[:] = [f"{value:.9g} " for value in values.flat]
    return cells


def _along(name: str, values: Cells) -> Iterator[tuple[str, str, list[str]]]:
    """The elements of a tensor, row by row; those that are wrong have an exclamation mark."""
    ne = values.shape[::-1]
    spread = [k for k, n in enumerate(ne) if n > 1]
    axis = spread[0] if spread else 0
    for index in itertools.product(*(range(n) for k, n in reversed(list(enumerate(ne))) if k != axis)):
        at: list[int | slice] = list(index)
        at.insert(len(ne) - 1 - axis, slice(None))
        place = [f"i{axis}=0…{ne[axis] - 1}"] if ne[axis] > 1 else []
        fixed = list(reversed(index))
        fixed.insert(axis, 0)
        place += [f"i{k}={fixed[k]}" for k in spread if k != axis]
        yield name, " ".join(place), list(values[tuple(at)])


# ---- where ----------------------------------------------------------------------------------------------------------


def _layouts(case: Case) -> list[str]:
    lines: list[str] = []
    for name, layout in case.layouts.items():
        place = f"in the memory of {case.inplace}" if case.inplace and name in case.outputs else str(layout.kind)
        place = f"in the memory of {case.shares[name]}" if name in case.shares else place
        at = f"nb={_list(layout.nb)} offset={layout.offset}  {place}"
        lines += wrapped("" if lines else "layouts", f"{name}: {layout.dtype} ne={_list(layout.ne)} {at}")
    return lines


def _list(values: Sequence[int]) -> str:
    return "[" + ",".join(map(str, values)) + "]"


def _element(failure: Failure, wrong: Wrong) -> list[str]:
    worst = wrong.worst
    times = f"{worst.times:.3g} times the bound" if math.isfinite(worst.times) else "no error is allowed here"
    if worst.bound > 0 and not math.isfinite(worst.error):
        times = "not a finite error"
    of = f"{wrong.output} " if len(failure.case.outputs) > 1 else ""
    lower = failure.numerics.lower if failure.numerics.is_lower else ""
    precision = f"; {lower}, as the backend declares for this case" if lower else ""
    at = f"  worst      {of}at {_index(worst.index)}:"
    lines = [
        f"{at} got {worst.got:.9g}, want {worst.want:.9g}",
        f"             error {worst.error:.3g}, bound {worst.bound:.3g}: {times}",
        *wrapped("bound", f"{failure.bound}{precision}   [{failure.bound_at}]"),
        f"  nmse       {wrong.nmse:.3g} over the whole output, as upstream computes it",
    ]
    if worst.unwritten:  # its bits say nothing, nor does what is computed from them
        lines = [f"{at} nothing was written, want {worst.want:.9g}", *lines[2:-1]]
    return lines


def _index(index: Sequence[int]) -> str:
    return " ".join(f"i{axis}={place}" for axis, place in enumerate(reversed(index)))


def places(case: Case, wrong: Wrong) -> list[str]:
    """Which slices are wrong, and the map of the first wrong one."""
    out = case.outputs[wrong.output]
    of = f" of {wrong.output}" if len(case.outputs) > 1 else ""
    lines = [
        f"  where      {wrong.count} of {wrong.total} elements{of}, {wrong.slices_wrong} of {wrong.slices_total} slices"
    ]
    if wrong.slices_total > 1:
        shown = " ".join(f"{_outer(index)}:{_state(count)}" for index, count in wrong.slices)
        more = "" if len(wrong.slices) == wrong.slices_total else f" … {wrong.slices_total - len(wrong.slices)} more"
        lines += textwrap.wrap(shown + more, WIDTH, initial_indent=" " * 13, subsequent_indent=" " * 13)
    title = f"slice {_outer(wrong.map_index)}, " if wrong.slices_total > 1 else ""
    top, left = wrong.map_origin
    rows = f"i1 down from {top} of {out.ne[1]}" if wrong.map_is_cut else "i1 down"
    columns = f"i0 across from {left} of {out.ne[0]}" if wrong.map_is_cut else "i0 across"
    lines.append(f"             {title}{rows}, {columns} (X wrong, · right):")
    lines += ["               " + "".join("X" if cell else "·" for cell in row) for row in wrong.map]
    return lines


def _outer(index: tuple[int, ...]) -> str:
    """An index over the outer axes, innermost first: i2, then i3."""
    return axes_named(reversed(index), 2)


def _state(count: int) -> str:
    return "right" if count == 0 else f"{count} wrong"


def _packed(failure: Failure) -> str:
    """What the contiguous twin says. A view that parameters describe is no layout, and no twin changes it."""
    view = [name for name in failure.case.params if re.fullmatch(r"nb\d|offset", name)]
    if failure.packed_twin != "is the case itself" or not view:
        return twin(failure.packed_twin)
    return f"{twin(failure.packed_twin)} (of the view that {', '.join(view)} describe this says nothing)"


def twin(fate: str) -> str:
    """What the fate of the contiguous twin means."""
    return {
        "passes": "the same values packed (contiguous, offset 0) pass: the fault lies in strides or offsets",
        "fails": "the same values packed (contiguous, offset 0) fail too: the fault needs no gaps and no offset",
        "unsupported": "the contiguous twin is not supported here",
        "lost": "the device was lost with this case; its contiguous twin could not be run",
    }.get(fate, "every argument is packed already (contiguous, offset 0): the fault needs no gaps and no offset")
