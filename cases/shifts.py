"""Ops that move elements by parameters: ROLL, PAD_REFLECT_1D, the circular PAD, WIN_PART, WIN_UNPART, GET_REL_POS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from hypothesis import strategies as st

from opconform.cases.families import choice, gather
from opconform.cases.families.gathers import ALL, Elsewhere, Params, Shape, flat
from opconform.cases.shapes import check_out, rows, tensors
from opconform.harness.draw.strategies import among, composite, inner_sizes, rare_forms, scales
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.image import Places
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Problem

_FAR = 1 << 20  #: sums of sizes stay within every API's integers
_SHIFTS = choice(0, 1, -1, 2, 3, -5, 16, -100, least=-_FAR, most=_FAR)
_PADS = choice(0, 1, 2, 3, 0, 7, 100, least=0, most=_FAR)
_AXES = range(4)


def _picked(case: Case, *places: Places) -> Places:
    """The elements of x at these places along each axis, the outermost first."""
    found: Places = flat(case.inputs["x"])[np.ix_(*places)]
    return found


def _whole(freedom: Freedom, itemsize: int) -> st.SearchStrategy[Shape]:
    """Shapes like `tensors`, never empty: a shift is smaller than the size."""
    return tensors(freedom, itemsize).filter(lambda shape: 0 not in shape)


# --- ROLL ---


def _rolled(case: Case) -> Places:
    """out_i = x_((i − shift) mod n) along each axis; shift{k} belongs to i{k}, 0 the innermost."""
    return _rolled_by(case, [int(case.params[f"shift{k}"]) for k in _AXES])


def _rolled_by(case: Case, shifts: Sequence[int]) -> Places:
    found: Places = np.roll(flat(case.inputs["x"]), shifts[::-1], (0, 1, 2, 3))
    return found


def _within_axes(freedom: Freedom, shape: Shape, params: Params) -> Params:
    return {name: int(np.fmod(int(params[name]), n)) for name, n in zip(params, shape[::-1])}


def _check_roll(case: Case) -> None:
    """Raises `CaseError` for a shift by a whole axis or more, which ggml_roll refuses too."""
    for k, n in enumerate(case.inputs["x"].ne):
        if abs(int(case.params[f"shift{k}"])) >= n:
            raise CaseError(f"shift{k} is {case.params[f'shift{k}']}; its size must be below ne{k}, {n}")
    check_out(case, case.inputs["x"].shape)


def _other_rolls(case: Case) -> Iterator[Elsewhere]:
    shifts = [int(case.params[f"shift{k}"]) for k in _AXES]
    yield Elsewhere("x is rolled the other way round", _rolled_by(case, [-shift for shift in shifts]))
    for k, shift in enumerate(shifts):
        if shift:
            yield Elsewhere(f"shift{k} is ignored", _rolled_by(case, [*shifts[:k], 0, *shifts[k + 1 :]]))
    places = [np.clip(np.arange(n) - shift, 0, n - 1) for n, shift in zip(case.inputs["x"].shape, shifts[::-1])]
    yield Elsewhere("what leaves at one end does not come back at the other", _picked(case, *places))


# --- pads with elements of x ---


def _reflected(case: Case) -> Places:
    """Along i0 the p0 elements after the first one, backwards, then x, then the p1 before the last one, backwards."""
    return _mirrored(case, 1)


def _mirrored(case: Case, apart: int) -> Places:
    """`apart`: 1 where the mirror stands on the end's element, 0 where it stands beside it."""
    *outer, n = case.inputs["x"].shape
    at = np.arange(case.outputs["out"].shape[-1]) - int(case.params["p0"])
    at = np.where(at < 0, -at - 1 + apart, np.where(at >= n, 2 * n - 1 - apart - at, at))
    return _picked(case, *map(np.arange, outer), np.clip(at, 0, n - 1))


def _of_reflected(shape: Shape, params: Params) -> Sequence[Shape]:
    p0, p1, n = int(params["p0"]), int(params["p1"]), shape[-1]
    if max(p0, p1) >= max(n, 1):
        raise CaseError(f"p0 is {p0} and p1 {p1}; both must be below ne0, {n}")
    return ((*shape[:-1], n + p0 + p1),)


def _below_the_row(freedom: Freedom, shape: Shape, params: Params) -> Params:
    return {name: int(params[name]) % shape[-1] for name in params}


def _other_mirrors(case: Case) -> Iterator[Elsewhere]:
    p0, p1, *outer, n = (int(case.params["p0"]), int(case.params["p1"]), *case.inputs["x"].shape)
    at = np.arange(case.outputs["out"].shape[-1]) - p0
    axes = [np.arange(m) for m in outer]
    if p0 or p1:
        yield Elsewhere("the elements at the ends are mirrored as well", _mirrored(case, 0))
        yield Elsewhere("the ends are repeated, not mirrored", _picked(case, *axes, np.clip(at, 0, n - 1)))
    if p0 != p1:
        turned = np.arange(n + p0 + p1) - p1
        turned = np.where(turned < 0, -turned, np.where(turned >= n, 2 * n - 2 - turned, turned))
        yield Elsewhere("p0 and p1 are exchanged", _picked(case, *axes, np.clip(turned, 0, n - 1)))
    inside = np.where((at >= 0) & (at < n), _mirrored(case, 1), -1)
    yield Elsewhere("x is written, the padding is not", inside, left=True)


def _pads(params: Params) -> list[tuple[int, int]]:
    """The elements before and after x along each axis, the outermost first."""
    return [(int(params[f"lp{k}"]), int(params[f"rp{k}"])) for k in reversed(_AXES)]


def _around(case: Case) -> Places:
    """out_i = x_((i − lp) mod n) along each axis, of lp + n + rp elements: x again and again on either side."""
    return _around_by(case, [before for before, _ in _pads(case.params)])


def _around_by(case: Case, before: Sequence[int]) -> Places:
    sizes = zip(case.inputs["x"].shape, case.outputs["out"].shape, before)
    return _picked(case, *(np.mod(np.arange(m) - start, n) for n, m, start in sizes))


def _of_pads(shape: Shape, params: Params) -> Sequence[Shape]:
    if 0 in shape:
        raise CaseError(f"x has shape {shape}; there is nothing to pad with")
    return (tuple(before + n + after for n, (before, after) in zip(shape, _pads(params))),)


def _is_once(case: Case) -> Mapping[str, bool]:
    """once: whether no axis has more elements before x than x has along it."""
    return {"once": all(before <= n for n, (before, _) in zip(case.inputs["x"].shape, _pads(case.params)))}


def _round_once(freedom: Freedom, shape: Shape, params: Params) -> Params:
    if freedom.choices("once", (False,)):
        return params
    return {**params, **{f"lp{k}": min(int(params[f"lp{k}"]), n) for k, n in enumerate(shape[::-1])}}


def _other_tori(case: Case) -> Iterator[Elsewhere]:
    pads, shape = _pads(case.params), case.inputs["x"].shape
    before = [start for start, _ in pads]
    if any(start % n for start, n in zip(before, shape)):
        yield Elsewhere("x stands at the start", _around_by(case, [0, 0, 0, 0]))
    if any((start - after) % n for (start, after), n in zip(pads, shape)):
        yield Elsewhere("the pads before and after x are exchanged", _around_by(case, [after for _, after in pads]))
    at = [np.arange(m) - start for m, start in zip(case.outputs["out"].shape, before)]
    ends = _picked(case, *(np.clip(place, 0, n - 1) for place, n in zip(at, shape)))
    yield Elsewhere("the ends are repeated", ends)
    i3, i2, i1, i0 = np.meshgrid(*((place >= 0) & (place < n) for place, n in zip(at, shape)), indexing="ij")
    yield Elsewhere("the padding is 0", np.where(i3 & i2 & i1 & i0, _around(case), -1))


# --- windows of an image ---


def _grid(width: int, height: int, w: int) -> tuple[int, int]:
    """How many windows of w × w cover an image, across and down."""
    return -(-width // w), -(-height // w)


def _windows(case: Case) -> Places:
    """Window i3 = py·npx + px of w × w pixels is x from (px·w, py·w) on; zeros where x ends before."""
    return _parted(case, across=False)


def _parted(case: Case, across: bool) -> Places:
    """`across`: the windows are counted down first."""
    _, height, width, channels = case.inputs["x"].shape
    w = int(case.params["w"])
    npx, npy = _grid(width, height, w)
    window = np.arange(case.outputs["out"].shape[0])
    px, py = (window // npy, window % npy) if across else (window % npx, window // npx)
    y = (py[:, None] * w + np.arange(w))[:, :, None, None]
    x = (px[:, None] * w + np.arange(w))[:, None, :, None]
    found = (y * width + x) * channels + np.arange(channels)
    return np.where((y < height) & (x < width), found, -1)


def _of_windows(shape: Shape, params: Params) -> Sequence[Shape]:
    w = int(params["w"])
    if shape[0] != 1:
        raise CaseError(f"x has shape {shape}; its first size must be 1")
    npx, npy = _grid(shape[2], shape[1], w)
    return ((npx * npy, w, w, shape[3]),)


def _images(freedom: Freedom, itemsize: int) -> st.SearchStrategy[Shape]:
    """Shapes of one image: rows, columns, channels; shrinks to one element."""
    return _image_sizes().map(lambda each: (1, *_small(each, freedom.max_bytes // 64 // itemsize)))


@composite
def _image_sizes(draw: st.DrawFn) -> tuple[int, ...]:
    """Rows, columns and channels; now and then more pixels than 16 bits count."""
    if draw(rare_forms("many")) == "many":
        return draw(among((257, 66))), draw(among((257, 1025))), draw(among((1, 2)))
    return draw(inner_sizes(33)), draw(inner_sizes(33)), draw(inner_sizes(65))


def _small(sizes: tuple[int, ...], most: int) -> tuple[int, ...]:
    """`sizes`, the largest cut until they are `most` elements or fewer."""
    left = list(sizes)
    while np.prod(left) > max(most, 1):
        left[int(np.argmax(left))] //= 2
    return tuple(left)


def _other_windows(case: Case) -> Iterator[Elsewhere]:
    npx, npy = _grid(case.inputs["x"].shape[2], case.inputs["x"].shape[1], int(case.params["w"]))
    if npx > 1 and npy > 1:
        yield Elsewhere("the windows are counted down the columns first", _parted(case, across=True))
    right = _windows(case)
    yield Elsewhere("the rows and columns of a window are exchanged", right.swapaxes(1, 2))
    yield Elsewhere("x is written, the zeros are not", right, left=True)


def _image(case: Case) -> Places:
    """Pixel (i1, i2) is pixel (i1 mod w, i2 mod w) of window (i2 // w)·npx + i1 // w: WIN_PART, turned back."""
    _, height, width, _ = case.outputs["out"].shape
    return _put_together(case, _grid(width, height, int(case.params["w"]))[0])


def _put_together(case: Case, npx: int) -> Places:
    """The image of windows that stand `npx` in a row."""
    w = int(case.params["w"])
    _, height, width, channels = case.outputs["out"].shape
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    pixel = ((y // w * npx + x // w) * w + y % w) * w + x % w
    found: Places = np.minimum(pixel[None, :, :, None] * channels + np.arange(channels), case.inputs["x"].size - 1)
    return found


def _of_image(shape: Shape, params: Params) -> Sequence[Shape]:
    w0, h0, w = (int(params[name]) for name in ("w0", "h0", "w"))
    npx, npy = _grid(w0, h0, w)
    if shape[:3] != (npx * npy, w, w):
        raise CaseError(f"x has shape {shape}; an image of {w0} × {h0} has {npx * npy} windows of {w} × {w}")
    return ((1, h0, w0, shape[3]),)


_IMAGE = {name: choice(1, 2, 3, 5, least=1, most=1 << 12) for name in ("w0", "h0", "w")}
_WINDOW = choice(1, 2, 3, 4, 7, 14, least=1, most=1 << 12)


@composite
def _image_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Windows that cover an image, more or less; shrinks to one element."""
    dtype = draw(among(freedom.choices("dtype", ALL)))
    w = draw(among((1, 2, 3, 4, 7, 14)))
    height, width, channels = _small(draw(_image_sizes()), freedom.max_bytes // 64 // DTYPES[dtype].itemsize // w)
    params: dict[str, Param] = {"w0": width, "h0": height, "w": w}
    npx, npy = _grid(width, height, w)
    return Problem(params, dtype, {"x": (npx * npy, w, w, channels)}, (1, height, width, channels))


def _other_images(case: Case) -> Iterator[Elsewhere]:
    width, w = case.outputs["out"].shape[2], int(case.params["w"])
    if width % w and width > w:
        yield Elsewhere("a window that is not full is not counted", _put_together(case, width // w))
    yield Elsewhere("the rows and columns of the image are exchanged", _turned(case))


def _turned(case: Case) -> Places:
    """The image with i1 and i2 exchanged, as far as it has them."""
    _, height, width, _ = case.outputs["out"].shape
    right = _image(case)
    side = min(height, width)
    found: Places = right.copy()
    found[:, :side, :side] = right[:, :side, :side].swapaxes(1, 2)
    return found


# --- GET_REL_POS ---


def _relative(case: Case) -> Places:
    """Row i1 of matrix i2 is row n − 1 − i1 + i2 of x: what belongs to the distance of the places i1 and i2."""
    return _by_distance(case, -1)


def _by_distance(case: Case, sign: int) -> Places:
    _, n, _, channels = case.outputs["out"].shape
    i2, i1 = np.ogrid[:n, :n]
    found: Places = (n - 1 + sign * (i1 - i2))[None, :, :, None] * channels + np.arange(channels)
    return found


def _check_relative(case: Case) -> None:
    """Raises `CaseError` unless x has a row for every distance of two places."""
    n, channels = case.outputs["out"].shape[1], case.outputs["out"].shape[3]
    if f"{case.inputs['x'].dtype}-{case.dtype}" not in _PLACES:
        raise CaseError(f"x is {case.inputs['x'].dtype} and out {case.dtype}; there are {', '.join(_PLACES)}")
    if case.inputs["x"].shape != (1, 1, 2 * n - 1, channels):
        raise CaseError(f"x has shape {case.inputs['x'].shape}; for {n} places it must be (1, 1, {2 * n - 1}, n0)")
    check_out(case, (1, n, n, channels))


_PLACES = ("f16-f16", "f32-f32", "bf16-bf16", "bf16-f16", "f32-f16")


@composite
def _relative_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """As many places as a side of a window has, and the width of a head; shrinks to one element."""
    outs = freedom.choices("dtype", ("f16", "f32", "bf16"))
    pairs = [pair for pair in freedom.choices("types", _PLACES) if pair.partition("-")[2] in outs]
    came, _, dtype = draw(among(pairs)).partition("-")
    n = draw(among((1, 2, 3, 5, 7, 8, 14, 2, 3, 5, 7, 8)))  # of one place it is a copy
    channels = draw(inner_sizes(min(draw(scales()), 257)))
    if draw(rare_forms("global")) == "global":  # attention to a whole image, not to a window of it
        n, channels = draw(among((64, 66))), min(channels, 17)
    shapes = {"x": (1, 1, 2 * n - 1, channels)}
    return Problem({}, dtype, shapes, (1, n, n, channels), dtypes={"x": came})


def _other_distances(case: Case) -> Iterator[Elsewhere]:
    if case.outputs["out"].shape[1] > 1:
        yield Elsewhere("the distances are counted the other way round", _by_distance(case, 1))
        n, channels = case.outputs["out"].shape[1], case.outputs["out"].shape[3]
        same = np.arange(n)[None, None, :, None] * channels + np.arange(channels)
        yield Elsewhere("every matrix is the first rows of x", np.broadcast_to(same, case.outputs["out"].shape))


def _alone(case: Case) -> str:
    """Why no slice is a problem of its own."""
    return "its slices move into each other"


OPS = (
    gather(
        "roll",
        "x moved on along each axis; what leaves at one end comes back at the other",
        _rolled,
        shapes=_whole,
        params={f"shift{k}": _SHIFTS for k in _AXES},
        elsewhere=_other_rolls,
        check=_check_roll,
        fit=_within_axes,
        alone=_alone,
    ),
    gather(
        "pad_reflect_1d",
        "rows that go on backwards before their first and after their last element",
        _reflected,
        shapes=lambda freedom, itemsize: rows(freedom, itemsize).filter(lambda shape: 0 not in shape),
        out=_of_reflected,
        params={"p0": _PADS, "p1": _PADS},
        elsewhere=_other_mirrors,
        fit=_below_the_row,
    ),
    gather(
        "pad_circular",
        "x again and again before and after it along every axis",
        _around,
        shapes=_whole,
        out=_of_pads,
        params={f"{side}{k}": choice(0, 1, 2, 3, 0, 7, least=0, most=_FAR) for k in _AXES for side in ("lp", "rp")},
        elsewhere=_other_tori,
        fit=_round_once,
        alone=_alone,
        traits=_is_once,
    ),
    gather(
        "win_part",
        "an image cut into windows of w × w, with zeros where it ends",
        _windows,
        shapes=_images,
        out=_of_windows,
        params={"w": _WINDOW},
        elsewhere=_other_windows,
        alone=_alone,
        bound="the bits of x inside the image, +0 outside",
    ),
    gather(
        "win_unpart",
        "windows of w × w put together to an image",
        _image,
        shapes=_images,
        out=_of_image,
        params=_IMAGE,
        elsewhere=_other_images,
        problems=_image_problems,
        alone=_alone,
    ),
    gather(
        "get_rel_pos",
        "for any two places the row of x that belongs to their distance",
        _relative,
        shapes=_images,
        params={},
        elsewhere=_other_distances,
        check=_check_relative,
        problems=_relative_problems,
        types=_PLACES,
        alone=_alone,
        bound="the bits of x where the type stays or holds the value, else one rounding to nearest even",
    ),
)
