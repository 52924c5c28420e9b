"""map.svg: every slice of the output, wrong elements marked, readable at a glance for one to four dimensions.

i0 runs across and i1 down; slices stand side by side along i2 and below each other along i3. What is too large for a
page is drawn with several elements to a cell, and a tensor of one long row is broken into lines.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field

import numpy as np

from opconform.harness.explain.failure import Failure, Wrong
from opconform.harness.model.dtypes import Mask
from opconform.reports.repro.rendering import render

_WIDTH, _SLICE_HEIGHT = 900, 420  #: pixels of the page's width, and at most for a slice
_CELL, _LEAST_CELL = 22, 3
_SLICES = 8  #: shown along each of i2 and i3, and in a line
_CELLS = 24_000  #: drawn in all
_LINE = 64  #: elements of a line where one long row is broken
_LABEL = 104  #: pixels that a slice's label takes
_GAP, _TEXT = 18, 20


@dataclass(frozen=True)
class Slice:
    """One slice as it is drawn: where, its label, and its cells as SVG paths: all of them, those that are wrong in
    whole, and those that are wrong in part."""

    x: int
    y: int
    width: int
    height: int
    label: str
    wrong: bool
    there: str
    full: str
    part: str
    worst: tuple[int, int] | None


@dataclass
class Page:
    """All that the template draws."""

    title: str
    notes: list[str]
    axes: str = ""
    cell: int = _CELL
    width: int = _WIDTH
    height: int = 0
    top: int = 0
    slices: list[Slice] = field(default_factory=list)


def picture(failure: Failure) -> str | None:
    """The SVG; None where nothing was compared (a crash)."""
    if failure.wrong is None:
        return None
    wrong, name = failure.wrong, failure.wrong.output
    out = failure.case.outputs[name]
    title = f"{name} of {failure.case.op.upper()} on {failure.target}: {wrong.count} of {wrong.total} elements wrong"
    mask = whole_mask(wrong, out.shape)
    if mask is None:
        top, left = wrong.map_origin
        place = ", ".join(f"i{axis + 2}={i}" for axis, i in enumerate(reversed(wrong.map_index)))
        note = f"The first wrong slice ({place}) from i1={top}, i0={left} on; {wrong.slices_wrong} slices are wrong."
        return _drawn(Page(title, [note]), np.array(wrong.map, dtype=bool), None)
    worst = (0,) * (4 - mask.ndim) + wrong.worst.index
    return _drawn(Page(title, []), mask, worst)


def whole_mask(wrong: Wrong, shape: tuple[int, ...]) -> Mask | None:
    """All of the mask, of the output's shape; None where the failure does not keep it."""
    if not wrong.mask:
        return None
    bits = np.frombuffer(zlib.decompress(base64.b64decode(wrong.mask)), np.uint8)
    return np.unpackbits(bits, count=wrong.total).astype(bool).reshape(shape)


def _drawn(page: Page, marked: Mask, worst: tuple[int, ...] | None) -> str:
    mask: np.ndarray = marked.reshape([1] * (4 - marked.ndim) + list(marked.shape))
    page.axes = f"i0 across ({mask.shape[3]}), i1 down ({mask.shape[2]})"
    line = None
    if mask.shape[2] == 1 and mask.shape[3] > _LINE:
        line = _LINE
        page.notes.append(f"A row is broken into lines of {_LINE} elements.")
    grid = _grid(page, mask)
    shown, columns = sum(map(len, grid)), len(grid[0])
    high, wide = (-(-mask.shape[3] // line), line) if line else mask.shape[2:]
    budget = (_WIDTH - _GAP * (columns + 1)) // columns
    across, down = _per_cell(wide, budget, high, _CELLS // shown)
    page.cell = max(_LEAST_CELL, min(_CELL, budget // -(-wide // across), _SLICE_HEIGHT // -(-high // down)))
    if across * down > 1:
        page.notes.append(f"A cell stands for {across} elements along i0 and {down} along i1.")
    several = mask.shape[0] * mask.shape[1] > 1
    size = (-(-wide // across) * page.cell, -(-high // down) * page.cell)
    step = (max(size[0], _LABEL if several else 0) + _GAP, size[1] + _GAP + (_TEXT if several else 0))
    page.top = 2 * _TEXT + _TEXT * len(page.notes) + _GAP
    for row, places in enumerate(grid):
        for column, (i3, i2) in enumerate(places):
            here, there = mask[i3, i2], np.ones((high, wide), dtype=bool)
            if line:
                here, there = _lines(here[0], line), _lines(np.ones(mask.shape[3], dtype=bool), line)
            place = (_GAP + column * step[0], page.top + row * step[1] + (_TEXT if several else 0))
            mark = _mark(worst, (i3, i2), line, (across, down)) if worst is not None else None
            label = f"i2={i2}, i3={i3}" if several else ""
            paths = _paths(here, there, (across, down), page.cell)
            page.slices.append(Slice(*place, *size, label, bool(here.any()), *paths, _times(mark, page.cell)))
    page.width = max(_GAP + columns * step[0], 7 * max(len(page.title), *map(len, page.notes), 64) + 2 * _GAP)
    page.height = page.top + len(grid) * step[1] + _TEXT
    return render("map.svg.j2", page=page)


def _grid(page: Page, mask: Mask) -> list[list[tuple[int, int]]]:
    """Which slices (i3, i2) are shown, line by line: i3 down and i2 across, or one of them in lines like a text."""
    n3, n2 = mask.shape[:2]
    if n3 > 1 and n2 > 1:
        across = _window(page, mask, 1, "i2", _SLICES)
        return [[(i3, i2) for i2 in across] for i3 in _window(page, mask, 0, "i3", _SLICES)]
    axis, name = (1, "i2") if n3 == 1 else (0, "i3")
    shown = [(0, i) if axis else (i, 0) for i in _window(page, mask, axis, name, _SLICES**2)]
    if axis == 0 and len(shown) <= _SLICES:
        return [[place] for place in shown]
    return [shown[first : first + _SLICES] for first in range(0, len(shown), _SLICES)]


def _window(page: Page, mask: Mask, axis: int, name: str, most: int) -> list[int]:
    """The indices along an outer axis that are shown: all of them, or `most` from the first wrong one on."""
    size = mask.shape[axis]
    if size <= most:
        return list(range(size))
    where = np.flatnonzero(mask.any(axis=tuple(other for other in range(4) if other != axis)))
    first = min(max(int(where[0]) - 1, 0), size - most)
    page.notes.append(f"Shown are {name} = {first} … {first + most - 1} of {size}.")
    return list(range(first, first + most))


def _per_cell(wide: int, budget: int, high: int, cells: int) -> tuple[int, int]:
    """How many elements a cell stands for, across and down, so that a slice fits its budget."""
    across, down = 1, 1
    while -(-wide // across) * _LEAST_CELL > budget:
        across += 1
    while -(-high // down) * _LEAST_CELL > _SLICE_HEIGHT:
        down += 1
    while -(-wide // across) * -(-high // down) > cells:
        across, down = across + 1, down + 1
    return across, down


def _lines(row: Mask, line: int) -> Mask:
    padded = np.zeros(-(-row.size // line) * line, dtype=bool)
    padded[: row.size] = row
    return padded.reshape(-1, line)


def _mark(
    worst: tuple[int, ...], here: tuple[int, int], line: int | None, per_cell: tuple[int, int]
) -> tuple[int, int] | None:
    """The cell (column, row) of the worst element, where it stands in this slice."""
    i3, i2, i1, i0 = worst
    if (i3, i2) != here:
        return None
    if line:
        i1, i0 = divmod(i0, line)
    return i0 // per_cell[0], i1 // per_cell[1]


def _times(mark: tuple[int, int] | None, cell: int) -> tuple[int, int] | None:
    return None if mark is None else (mark[0] * cell, mark[1] * cell)


def _paths(mask: Mask, there: Mask, per_cell: tuple[int, int], cell: int) -> tuple[str, str, str]:
    """The cells that exist, those that are wrong in whole, and those that are wrong in part."""
    elements = _in_cells(there, per_cell)
    with np.errstate(invalid="ignore"):
        share = _in_cells(mask, per_cell) / elements
    return _path(elements > 0, cell), _path(share == 1, cell), _path((share > 0) & (share < 1), cell)


def _in_cells(mask: Mask, per_cell: tuple[int, int]) -> np.ndarray:
    """How many elements of each cell are set."""
    across, down = per_cell
    rows, columns = -(-mask.shape[0] // down), -(-mask.shape[1] // across)
    padded = np.zeros((rows * down, columns * across))
    padded[: mask.shape[0], : mask.shape[1]] = mask
    counts: np.ndarray = padded.reshape(rows, down, columns, across).sum(axis=(1, 3))
    return counts


def _path(cells: Mask, cell: int) -> str:
    """Rectangles over the cells, from the slice's corner, one for each run along a row."""
    parts = []
    for row, values in enumerate(cells):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], values.astype(np.int8), [0]))))
        for first, end in edges.reshape(-1, 2):
            length = int(end - first) * cell
            parts.append(f"M{int(first) * cell} {row * cell}h{length}v{cell}h{-length}z")
    return "".join(parts)
