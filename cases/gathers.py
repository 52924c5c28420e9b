"""Ops that move elements: TRI, DIAG, PAD, CONT and CPY."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from opconform.cases.families import choice, gather
from opconform.cases.families.gathers import SELDOM, Elsewhere, flat
from opconform.cases.shapes import check_out, diagonals, squares, tensors
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.image import Places

Shape = tuple[int, ...]

#: The triangles by name, as ggml has them: with the diagonal or without it.
_KINDS = {
    "lower": "the lower triangle without its diagonal is kept",
    "lower_diag": "the lower triangle with its diagonal is kept",
    "upper": "the upper triangle without its diagonal is kept",
    "upper_diag": "the upper triangle with its diagonal is kept",
}
_FLOATS = ("f32", "f16", "bf16")
#: The types of x and of the output, the same ones first.
_TYPES = sorted((f"{x}-{out}" for x in _FLOATS for out in _FLOATS), key=lambda pair: len(set(pair.split("-"))))
_PAIRS = (*_TYPES, "i32-i32", *(f"{name}-{name}" for name in SELDOM))
_PADS = choice(0, 1, 2, 3, 0, 7, least=0, most=1 << 20)  # sums of sizes stay within every API's integers


def _itself(case: Case) -> Places:
    """out = x, wherever the elements of either stand, in flat order."""
    return flat(case.inputs["x"]).reshape(case.outputs["out"].shape)


def _triangle(case: Case) -> Places:
    """out_ij = x_ij where the triangle `kind` has (i, j), i counting rows; else +0.

    lower: j < i, lower_diag: j ≤ i, upper: j > i, upper_diag: j ≥ i.
    """
    return _kept(case, str(case.params["kind"]))


def _kept(case: Case, kind: str) -> Places:
    rows, columns = np.ogrid[: case.inputs["x"].shape[-2], : case.inputs["x"].shape[-1]]
    kept = columns < rows if kind.startswith("lower") else columns > rows
    if kind.endswith("_diag"):
        kept = kept | (columns == rows)
    return np.where(kept, flat(case.inputs["x"]), -1)


def _square(shape: Shape, params: Mapping[str, Param]) -> Sequence[Shape]:
    if shape[-1] != shape[-2]:
        raise CaseError(f"x has shape {shape}; its last two sizes must be equal")
    return (shape,)


def _other_triangles(case: Case) -> Iterator[Elsewhere]:
    for kind, says in _KINDS.items():
        if kind != case.params["kind"]:
            yield Elsewhere(says, _kept(case, kind))
    yield Elsewhere("x is copied whole", flat(case.inputs["x"]))
    yield Elsewhere("the triangle is written, the zeros are not", _triangle(case), left=True)


def _diagonal(case: Case) -> Places:
    """out_ij = x_j where i = j, else +0: x [.., 1, n] gives [.., n, n]."""
    return _beside(case, 0)


def _beside(case: Case, above: int) -> Places:
    """x on the diagonal number `above` (0 is the main one), along which it keeps its columns."""
    rows, columns = np.ogrid[: case.outputs["out"].shape[-2], : case.outputs["out"].shape[-1]]
    return np.where(columns - rows == above, flat(case.inputs["x"]), -1)


def _of_diagonal(shape: Shape, params: Mapping[str, Param]) -> Sequence[Shape]:
    if shape[2] != 1:
        raise CaseError(f"x has shape {shape}; its second last size must be 1")
    return ((*shape[:2], shape[3], shape[3]),)


def _other_diagonals(case: Case) -> Iterator[Elsewhere]:
    right = _diagonal(case)
    for above, words in ((1, "above"), (-1, "below")):
        yield Elsewhere(f"the diagonal stands one place {words} its own", _beside(case, above))
    if case.inputs["x"].shape[-1] > 1:
        yield Elsewhere("the diagonal runs backwards", np.where(right < 0, -1, right[..., ::-1, ::-1]))
        rows = np.broadcast_to(flat(case.inputs["x"]), right.shape)
        yield Elsewhere("every row is x: there are no zeros", rows)
        yield Elsewhere("the diagonal is written, the zeros are not", right, left=True)


def _padded(case: Case) -> Places:
    """out is x with lp{k} zeros before and rp{k} after it along i{k} (0 is the innermost axis)."""
    return _placed(case, [before for before, _ in _pads(case.params)])


def _not_padded(case: Case) -> tuple[int, ...] | str:
    """The batch axes along which there are no zeros."""
    free = tuple(axis for axis in (0, 1) if not any(_pads(case.params)[3 - axis]))
    return free or "its slices are padded"


def _pads(params: Mapping[str, Param]) -> list[tuple[int, int]]:
    """The zeros before and after x along each axis, the innermost first."""
    return [(int(params[f"lp{k}"]), int(params[f"rp{k}"])) for k in range(4)]


def _placed(case: Case, before: Sequence[int]) -> Places:
    """x with `before` zeros before it along each axis, cut off where the output ends."""
    found = np.full(case.outputs["out"].shape, -1, dtype=np.int64)
    corner = tuple(slice(start, start + size) for start, size in zip(before[::-1], case.inputs["x"].shape))
    inside = found[corner]
    inside[...] = flat(case.inputs["x"])[tuple(slice(size) for size in inside.shape)]
    return found


def _of_padded(shape: Shape, params: Mapping[str, Param]) -> Sequence[Shape]:
    return (tuple(before + size + after for size, (before, after) in zip(shape, _pads(params)[::-1])),)


def _other_pads(case: Case) -> Iterator[Elsewhere]:
    pads = _pads(case.params)
    before = [start for start, _ in pads]
    if any(before):
        yield Elsewhere("the padding before x is ignored: x stands at the start", _placed(case, [0, 0, 0, 0]))
    for k, (start, after) in enumerate(pads):
        if start:
            left_out = _placed(case, [*before[:k], 0, *before[k + 1 :]])
            yield Elsewhere(f"lp{k} is ignored: all zeros stand after i{k}", left_out)
        if start != after:
            turned = _placed(case, [*before[:k], after, *before[k + 1 :]])
            yield Elsewhere(f"lp{k} and rp{k} are exchanged", turned)
    yield Elsewhere("x is written, the padding is not", _padded(case), left=True)


def _other_shapes(shape: Shape, params: Mapping[str, Param]) -> Sequence[Shape]:
    """The same shape, which is the most usual one, one row, rows merged in pairs, and the sizes backwards."""
    i3, i2, i1, i0 = shape
    return shape, (1, 1, 1, i3 * i2 * i1 * i0), shape, (1, i3, i2, i1 * i0), shape[::-1]


def _check_copy(case: Case) -> None:
    """Raises `CaseError` unless the output has as many elements as x and a type that x converts to, or its own."""
    x, out = case.inputs["x"], case.outputs["out"]
    if x.size != out.size:
        raise CaseError(f"out has {out.size} elements; it must have as many as x, {x.size}")
    if f"{x.dtype}-{out.dtype}" not in _PAIRS:
        raise CaseError(f"x is {x.dtype} and out {out.dtype}; cpy converts between {', '.join(_FLOATS)} only")
    if case.inplace is not None:
        raise CaseError("case.inplace must be null: cpy does not work in place")


def _again(case: Case) -> Places:
    """out_i = x_(i mod n) along each axis."""
    x, out = case.inputs["x"], case.outputs["out"]
    return np.tile(flat(x), [n // max(m, 1) for n, m in zip(out.shape, x.shape)])


def _larger(shape: Shape, params: Mapping[str, Param]) -> Sequence[Shape]:
    """The same shape, and it doubled and tripled along some axes."""
    return [tuple(n * r for n, r in zip(shape, times)) for times in _TIMES]


_TIMES = (
    *((1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 3, 1), (1, 2, 1, 1), (2, 1, 1, 1), (1, 1, 2, 3), (2, 3, 1, 2)),
    *((1, 1, 1, 5), (1, 1, 2, 1), (1, 3, 1, 1), (3, 1, 1, 1), (1, 2, 3, 1), (3, 1, 1, 2)),
    *((1, 1, 1, 3), (1, 1, 4, 1), (1, 2, 1, 2), (2, 1, 1, 3), (2, 2, 1, 1), (1, 1, 3, 4)),
)


def _check_repeat(case: Case) -> None:
    """Raises `CaseError` unless x fills the output, repeated."""
    x, out = case.inputs["x"], case.outputs["out"]
    if any(n % max(m, 1) or (m == 0) != (n == 0) for n, m in zip(out.shape, x.shape)):
        raise CaseError(f"out has shape {out.shape}; x, repeated, must fill it: {x.shape}")
    check_out(case, out.shape)


def _other_repeats(case: Case) -> Iterator[Elsewhere]:
    x, out = flat(case.inputs["x"]), case.outputs["out"]
    for axis, (n, m) in enumerate(zip(out.shape, x.shape)):
        if 1 < m < n:
            i = f"i{3 - axis}"
            right = _again(case)
            each = np.take(right, np.arange(n) // (n // m), axis)
            yield Elsewhere(f"x is repeated element by element along {i} ({i} / r)", each)
        if m < n:
            ending = np.where(np.arange(n).reshape([-1 if a == axis else 1 for a in range(4)]) < m, _again(case), -1)
            yield Elsewhere(f"x is not repeated along i{3 - axis}: nothing follows it", ending, left=True)


OPS = (
    gather(
        "tri",
        "one triangle of square matrices, zeros in the other",
        _triangle,
        shapes=squares,
        out=_square,
        params={"kind": choice(*_KINDS)},
        elsewhere=_other_triangles,
        bound="the bits of x inside the triangle, +0 outside",
    ),
    gather(
        "diag",
        "square matrices with given diagonals",
        _diagonal,
        shapes=diagonals,
        out=_of_diagonal,
        elsewhere=_other_diagonals,
        bound="the bits of x on the diagonal, +0 elsewhere",
    ),
    gather(
        "pad",
        "zeros before and after x along every axis",
        _padded,
        shapes=tensors,
        out=_of_padded,
        params={f"{side}{k}": _PADS for k in range(4) for side in ("lp", "rp")},
        elsewhere=_other_pads,
        alone=_not_padded,
        bound="the bits of x inside, +0 in the padding",
    ),
    gather(
        "repeat",
        "x as often as it fits along each axis",
        _again,
        shapes=tensors,
        out=_larger,
        check=_check_repeat,
        elsewhere=_other_repeats,
        seldom=SELDOM,
        alone=lambda case: (0, 1) if case.inputs["x"].shape == case.outputs["out"].shape else "x is repeated",
    ),
    *(
        gather(name, "the same elements in memory of their own", _itself, shapes=tensors, seldom=SELDOM, copies=True)
        for name in ("dup", "cont")
    ),
    gather(
        "cpy",
        "the elements of x, in flat order, in another shape and type",
        _itself,
        shapes=tensors,
        out=_other_shapes,
        check=_check_copy,
        types=_PAIRS,
        seldom=SELDOM,
        alone=lambda case: (0, 1) if case.inputs["x"].shape == case.outputs["out"].shape else "x has another shape",
        copies=True,
        bound="the bits of x where the type stays or holds the value, else one rounding to nearest even",
    ),
)
