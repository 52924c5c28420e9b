"""Windows of images: IM2COL in two and three dimensions, its way back, and COL2IM_1D."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from hypothesis import strategies as st

from opconform.cases.families import choice, gather
from opconform.cases.families.choices import check_params, types_of
from opconform.cases.families.gathers import Elsewhere, drawn_types
from opconform.cases.families.taps import Window, crossed, met
from opconform.cases.families.windowed import (
    FAR,
    PADDING,
    STRIDE,
    Params,
    area,
    check_window,
    crowded_axes,
    first,
    gathered,
    geometry,
    params_of,
    window,
)
from opconform.cases.shapes import check_out, is_aligned
from opconform.harness.draw.strategies import among, as_many, composite, counts, rare_forms
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Hypothesis, Image, Places
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Op, Problem, Sizes

# --- IM2COL ---

_COLUMNS = ("f32-f32", "f32-f16", "f16-f16")


def _columns(case: Case) -> Places:
    """out[n, y, x, (c, j, i)] = x[n, c, y·s1 + j·d1 − p1, x·s0 + i·d0 − p0], or 0 beside the image.

    Without is_2d there is no axis of rows: x is [n, c, width], and out [n, x, (c, i)].
    """
    return _columns_of(case, case.params)


def _columns_of(case: Case, params: Params, order: tuple[int, ...] = (0, 2, 3, 1, 4)) -> Places:
    """`order`: how the axes (images, channels, rows, columns, taps) come one after another in the output."""
    *outer, height, width = _image_shape(case, params)
    taps = _taps(case, params)
    places = crossed(taps, (height, width))
    planes = np.arange(outer[0] * outer[1]).reshape(*outer, 1, 1, 1)
    found = np.where(places < 0, -1, planes * height * width + places)
    return np.ascontiguousarray(found.transpose(order)).reshape(case.outputs["out"].shape)


def _image_shape(case: Case, params: Params) -> tuple[int, int, int, int]:
    """Images, channels, rows and columns."""
    shape = case.inputs["x"].shape
    return (shape[0], shape[1], shape[2], shape[3]) if params["is_2d"] else (shape[1], shape[2], 1, shape[3])


def _taps(case: Case, params: Params) -> tuple[Places, Places]:
    """Those of rows and of columns."""
    *_, height, width = _image_shape(case, params)
    down, across = case.inputs["kernel"].shape[-2:]
    rows = window(params, 1, down).taps(height) if params["is_2d"] else np.zeros((1, 1), dtype=np.int64)
    return rows, window(params, 0, across).taps(width)


def _column_sizes(case: Case, image: str = "x", columns: str = "out") -> Sizes:
    """The sizes of the images and those of the kernel that are read; its rows are the channels where it is not 2-D."""
    is_2d, shape, kernel = case.params["is_2d"], case.layouts[image].shape, case.inputs["kernel"].shape
    now = {f"k{axis}": kernel[3 - axis] for axis in range(3 if is_2d else 2)}
    now |= {f"x{axis}": shape[3 - axis] for axis in (0, 1, 3 if is_2d else 2)} | {"outs": kernel[0 if is_2d else 1]}

    def made(its: Mapping[str, int]) -> tuple[dict[str, tuple[int, ...]], dict[str, Param]]:
        if is_2d:
            kernel = (its["outs"], its["k2"], its["k1"], its["k0"])
            x = (its["x3"], its["k2"], its["x1"], its["x0"])
        else:
            kernel, x = (1, its["outs"], its["k1"], its["k0"]), (1, its["x2"], its["k1"], its["x0"])
        return {image: x, "kernel": kernel, columns: _columns_shape(kernel, x, case.params)}, {}

    return Sizes(now, made)


def _check_columns(case: Case) -> None:
    """Raises `CaseError` for shapes that do not fit together."""
    kernel, x = case.inputs["kernel"].shape, case.inputs["x"].shape
    check_params(case, geometry(2))
    check_out(case, _columns_shape(kernel, x, case.params))


def _columns_shape(kernel: tuple[int, ...], x: tuple[int, ...], params: Params) -> tuple[int, ...]:
    if 0 in (*kernel, *x):
        raise CaseError(f"x has shape {x} and the kernel {kernel}; neither may be empty")
    width = check_window("ne0 of x", window(params, 0, kernel[3]), x[3])
    if params["is_2d"]:
        if kernel[1] != x[1]:
            raise CaseError(f"x has {x[1]} channels and the kernel {kernel[1]}; they must be as many")
        height = check_window("ne1 of x", window(params, 1, kernel[2]), x[2])
        return (x[0], height, width, kernel[1] * kernel[2] * kernel[3])
    if params["p1"]:
        raise CaseError(f"p1 is {params['p1']}; without is_2d there is no axis that it could pad, and it must be 0")
    if x[0] != 1 or kernel[2] != x[2]:
        raise CaseError(f"x has shape {x} and the kernel {kernel}; ne3 of x must be 1, and ne1 the same of both")
    return (1, x[1], width, kernel[2] * kernel[3])


@composite
def _columns_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Small images with a few channels, now and then many of either; shrinks to one pixel and a kernel of one tap."""
    came, _, dtype = draw(among(drawn_types(freedom, _COLUMNS))).partition("-")
    is_2d = draw(among(freedom.choices("is_2d", (True, False))))
    form = draw(rare_forms("images", "channels", "wide"))
    windows, sizes = draw(crowded_axes(freedom, 2, 8, form))
    images, channels, outs = (draw(among((1, 2, 3))), draw(among((1, 2, 3, 5, 17))), 2)
    if form == "wide":
        images, channels = 1, min(channels, 2)
    elif form != "usual":
        many = as_many(draw(counts()), area(windows, sizes), freedom)
        images, channels = (many, 1) if form == "images" else (1, many)
    params: dict[str, Param] = {**params_of(windows), "is_2d": is_2d}
    if is_2d:
        kernel = (outs, channels, windows[1].kernel, windows[0].kernel)
        x = (images, channels, sizes[1], sizes[0])
    else:
        kernel, x = (1, outs, channels, windows[0].kernel), (1, images, channels, sizes[0])
        params["p1"] = 0
    out = _columns_shape(kernel, x, params)
    return Problem(params, dtype, {"kernel": kernel, "x": x}, out, dtypes={"kernel": "f16", "x": came})


def _other_columns(case: Case) -> Iterator[Elsewhere]:
    params = dict(case.params)
    if case.inputs["kernel"].shape[-1] > 1 and _image_shape(case, params)[1] > 1:
        yield Elsewhere("the taps of a row come before the channels", _columns_of(case, params, (0, 2, 3, 4, 1)))
    for name, says in (("p0", "p0 is ignored: no column of zeros"), ("p1", "p1 is ignored: no row of zeros")):
        if params.get(name) and (params["is_2d"] or name == "p0"):
            yield Elsewhere(says, _moved(case, name))
    yield Elsewhere("what lies beside the image is not written", _columns(case), left=True)


def _moved(case: Case, padding: str) -> Places:
    """Each window starts where it would without the padding."""
    rows, columns = _taps(case, case.params)
    p = int(case.params[padding])
    *outer, height, width = _image_shape(case, case.params)
    if padding == "p0":
        columns = _shifted(window(case.params, 0, columns.shape[1]), columns.shape[0], p, width)
    else:
        rows = _shifted(window(case.params, 1, rows.shape[1]), rows.shape[0], p, height)
    places = crossed((rows, columns), (height, width))
    planes = np.arange(outer[0] * outer[1]).reshape(*outer, 1, 1, 1)
    found = np.where(places < 0, -1, planes * height * width + places)
    return np.ascontiguousarray(found.transpose(0, 2, 3, 1, 4)).reshape(case.outputs["out"].shape)


def _shifted(its: Window, count: int, p: int, n: int) -> Places:
    found = np.arange(count)[:, None] * its.stride + np.arange(its.kernel) * its.dilation
    return np.where(found < n, found, -1)


# --- IM2COL_3D ---


def _volumes(case: Case) -> Places:
    """out[(n, z), y, x, (c, k, j, i)] = x[(n, c), z·s2 + k·d2 − p2, y·s1 + j·d1 − p1, x·s0 + i·d0 − p0], or 0."""
    return _volumes_of(case, (0, 2, 3, 4, 1, 5))


def _volumes_of(case: Case, order: tuple[int, ...]) -> Places:
    planes, *sizes = case.inputs["x"].shape
    channels = int(case.params["ic"])
    kernel = case.inputs["kernel"].shape[1:]
    taps = [window(case.params, 2 - axis, kernel[axis]).taps(sizes[axis]) for axis in range(3)]
    places = crossed(taps, sizes)
    start = np.arange(planes).reshape(planes // channels, channels, 1, 1, 1, 1) * int(np.prod(sizes))
    found = np.where(places < 0, -1, start + places)
    return np.ascontiguousarray(found.transpose(order)).reshape(case.outputs["out"].shape)


def _volumes_shape(kernel: tuple[int, ...], x: tuple[int, ...], params: Params) -> tuple[int, ...]:
    channels = int(params["ic"])
    if 0 in (*kernel, *x):
        raise CaseError(f"x has shape {x} and the kernel {kernel}; neither may be empty")
    if channels < 1 or x[0] % channels or kernel[0] % channels:
        raise CaseError(f"x has shape {x} and the kernel {kernel}; ic is {channels}, which must divide ne3 of both")
    depth, height, width = (
        check_window(f"ne{2 - axis} of x", window(params, 2 - axis, kernel[axis + 1]), x[axis + 1]) for axis in range(3)
    )
    return (x[0] // channels * depth, height, width, channels * int(np.prod(kernel[1:])))


def _check_volumes(case: Case) -> None:
    """Raises `CaseError` for shapes that do not fit together."""
    check_params(case, geometry(3))
    check_out(case, _volumes_shape(case.inputs["kernel"].shape, case.inputs["x"].shape, case.params))


def _volume_sizes(case: Case) -> Sizes:
    """Images and channels, which share an axis, and the sizes of x and of the kernel."""
    x, kernel, channels = case.inputs["x"].shape, case.inputs["kernel"].shape, int(case.params["ic"])
    now = {"ic": channels, "images": x[0] // channels, "outs": kernel[0] // channels}
    now |= {f"{name}{k}": its[3 - k] for name, its in (("k", kernel), ("x", x)) for k in range(3)}

    def made(its: Mapping[str, int]) -> tuple[dict[str, tuple[int, ...]], dict[str, Param]]:
        params: dict[str, Param] = {"ic": its["ic"]}
        x = (its["images"] * its["ic"], its["x2"], its["x1"], its["x0"])
        kernel = (its["outs"] * its["ic"], its["k2"], its["k1"], its["k0"])
        return {"x": x, "kernel": kernel, "out": _volumes_shape(kernel, x, {**case.params, **params})}, params

    return Sizes(now, made)


@composite
def _volumes_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Small volumes with a few channels, now and then many of either; shrinks to one place and a kernel of one tap."""
    came, _, dtype = draw(among(drawn_types(freedom, _COLUMNS[:2]))).partition("-")
    form = draw(rare_forms("images", "channels", "wide"))
    windows, sizes = draw(crowded_axes(freedom, 3, 5, form))
    images, channels = draw(among((1, 2, 3))), draw(among((1, 2, 3)))
    if form == "wide":
        images = channels = 1
    elif form != "usual":
        many = as_many(draw(counts()), area(windows, sizes), freedom)
        images, channels = (many, 1) if form == "images" else (1, min(many, FAR))
    kernel = (2 * channels, *(its.kernel for its in reversed(windows)))
    x = (images * channels, *reversed(sizes))
    params: dict[str, Param] = {"ic": channels, **params_of(windows)}
    out = _volumes_shape(kernel, x, params)
    return Problem(params, dtype, {"kernel": kernel, "x": x}, out, dtypes={"kernel": "f16", "x": came})


def _other_volumes(case: Case) -> Iterator[Elsewhere]:
    if np.prod(case.inputs["kernel"].shape[1:]) > 1 and int(case.params["ic"]) > 1:
        yield Elsewhere("the taps come before the channels", _volumes_of(case, (0, 2, 3, 4, 5, 1)))
    yield Elsewhere("what lies beside the volume is not written", _volumes(case), left=True)


# --- sums of what windows put in one place ---


def _sum_of(case: Case, raw: Mapping[str, Raw], places: Places, numerics: Numerics) -> Expected:
    x, out = case.inputs["x"], case.outputs["out"]
    total = gathered(raw["x"], x.type, met(places), numerics).sum()
    return total.stored(out.type, (*out.shape, 1))


def col2im_1d(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[o, t] = Σ x[i, o·k + j] over all i·s0 + j = t + p0: signals of k elements laid over each other, s0 apart.

    A sum of m terms in any order, in float32, rounded once to the type: γ_{m−1}·Σ|x| (Higham 2002, eq. 4.4).
    """
    return first(_sum_of(case, raw, _overlaid(case), numerics))


def _overlaid(case: Case, channels_first: bool = False) -> Places:
    """`channels_first`: element j of channel o stands at j·channels + o."""
    _, _, count, width = case.inputs["x"].shape
    _, _, channels, length = case.outputs["out"].shape
    k = width // channels
    column = Window(k, int(case.params["s0"]), int(case.params["p0"])).back(length, count)  # [t, tap] → i
    o, j = np.arange(channels)[:, None, None], np.arange(k)
    element = j * channels + o if channels_first else o * k + j
    found: Places = np.where(column < 0, -1, column * width + element)[None, None]
    return found


def _overlaid_shape(x: tuple[int, ...], params: Params) -> tuple[int, ...]:
    stride, channels, padding = (int(params[name]) for name in ("s0", "oc", "p0"))
    if x[:2] != (1, 1) or channels < 1 or x[3] % channels or not x[3] or not x[2]:
        raise CaseError(f"x has shape {x}; it must be a matrix, with rows of a multiple of oc, {channels}")
    length = (x[2] - 1) * stride + x[3] // channels - 2 * padding
    if length < 1:
        raise CaseError(f"x has shape {x}; with p0 = {padding} nothing is left of it")
    return (1, 1, channels, length)


def _check_overlaid(case: Case) -> None:
    check_params(case, {"s0": STRIDE, "p0": PADDING})
    check_out(case, _overlaid_shape(case.inputs["x"].shape, case.params))


@composite
def _overlaid_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Signals with a stride below, at and above their length; shrinks to one element."""
    dtype = draw(among(freedom.choices("dtype", ("f32", "f16", "bf16"))))
    stride, k = draw(among((1, 2, 3, 5, 8))), draw(among((1, 2, 3, 4, 7, 16)))
    channels, count = draw(among((1, 2, 3, 5))), draw(among((1, 2, 3, 7, 33, 130)))
    form = draw(rare_forms("signals", "channels"))
    if form != "usual":
        k, many = draw(among((1, 2))), draw(counts())
        channels, count = (1, many) if form == "signals" else (many, 1)
        channels, count = (as_many(n, max(stride if n == count else 1, k), freedom) for n in (channels, count))
    room = ((count - 1) * stride + k - 1) // 2
    padding = min(draw(among(PADDING.values)), room)
    params: dict[str, Param] = {"s0": stride, "oc": channels, "p0": int(padding)}
    x = (1, 1, count, channels * k)
    return Problem(params, dtype, {"x": x}, _overlaid_shape(x, params))


def _overlaid_faults(image: Image) -> Iterator[Hypothesis]:
    case = image.case

    def otherwise(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return first(_sum_of(case, raw, _overlaid(case, channels_first=True), numerics))

    def last_only(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return first(_sum_of(case, raw, met(_overlaid(case))[..., :1], numerics))

    channels = int(case.params["oc"])
    if 1 < channels < case.inputs["x"].shape[3]:
        yield Hypothesis("the channels stand within each tap", partial(image.with_expect, otherwise))
    if met(_overlaid(case)).shape[-1] > 1:
        yield Hypothesis("of what meets in a place the last one stays", partial(image.with_expect, last_only))


def im2col_back(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[n, c, v, u] = Σ x[n, y, x', (c, j, i)] over all taps that IM2COL takes from (v, u): its transpose.

    A sum of m terms in any order: γ_{m−1}·Σ|x| (Higham 2002, eq. 4.4).
    """
    return first(_sum_of(case, raw, _returned(case), numerics))


def _returned(case: Case) -> Places:
    kernel, x, out = case.inputs["kernel"].shape, case.inputs["x"].shape, case.outputs["out"].shape
    is_2d = bool(case.params["is_2d"])
    images, channels, height, width = out if is_2d else (out[1], out[2], 1, out[3])
    down, across = (kernel[2], kernel[3]) if is_2d else (1, kernel[3])
    above, beside = (x[1], x[2]) if is_2d else (1, x[2])
    rows = window(case.params, 1, down).back(height, above) if is_2d else np.zeros((1, 1), dtype=np.int64)
    columns = window(case.params, 0, across).back(width, beside)
    places = crossed((rows, columns), (above, beside))  # [v, u, (j, i)] → window
    taps = np.arange(down * across)
    n, c = np.arange(images).reshape(-1, 1, 1, 1, 1), np.arange(channels).reshape(-1, 1, 1, 1)
    found = ((n * above * beside + places) * channels + c) * (down * across) + taps
    return np.where(places < 0, -1, found).reshape(*out, -1)


def _check_returned(case: Case) -> None:
    """Raises `CaseError` unless x has the shape that IM2COL gives an image of the output's."""
    check_params(case, geometry(2))
    out = case.outputs["out"].shape
    want = _columns_shape(case.inputs["kernel"].shape, out, case.params)
    if case.inputs["x"].shape != want:
        raise CaseError(f"x has shape {case.inputs['x'].shape}; IM2COL of the output's shape gives {want}")
    check_out(case, out)


@composite
def _returned_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """What IM2COL would give, turned round; shrinks to one element."""
    problem = draw(_columns_problems(Freedom((), freedom.max_bytes)))
    kernel, image = problem.shapes["kernel"], problem.shapes["x"]
    params = {**problem.params, "is_2d": problem.params["is_2d"]}
    return Problem(params, "f32", {"x": problem.out_shape, "kernel": kernel}, image)


def _returned_faults(image: Image) -> Iterator[Hypothesis]:
    def last_only(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return first(_sum_of(case, raw, met(_returned(case))[..., :1], numerics))

    if met(_returned(image.case)).shape[-1] > 1:
        yield Hypothesis("of what meets in a place one stays", partial(image.with_expect, last_only))


OPS = (
    gather(
        "im2col",
        "the windows of images as rows of a matrix",
        _columns,
        shapes=lambda freedom, itemsize: st.nothing(),
        params={**geometry(2), "is_2d": choice(True, False)},
        elsewhere=_other_columns,
        check=_check_columns,
        types=_COLUMNS,
        alone=lambda case: "windows overlap",
        unread=("kernel",),
        problems=_columns_problems,
        sizes=_column_sizes,
        bound="the bits of x, or one rounding to float16; +0 beside it",
    ),
    gather(
        "im2col_3d",
        "the windows of volumes as rows of a matrix",
        _volumes,
        shapes=lambda freedom, itemsize: st.nothing(),
        params={"ic": choice(1, 2, 3, least=1, most=FAR), **geometry(3)},
        elsewhere=_other_volumes,
        check=_check_volumes,
        types=_COLUMNS[:2],
        alone=lambda case: "windows overlap",
        unread=("kernel",),
        problems=_volumes_problems,
        sizes=_volume_sizes,
        bound="the bits of x, or one rounding to float16; +0 beside it",
    ),
    Op(
        name="im2col_back",
        summary="rows of windows added up in the images that they came from",
        inputs=("x", "kernel"),
        params=types_of({**geometry(2), "is_2d": choice(True, False)}),
        dtypes=("f32",),
        argument_dtypes={"kernel": ("f32", "f16")},
        problems=_returned_problems,
        expect=im2col_back,
        bound="γ_{m−1}·Σ|x| over the m taps that meet in a place",
        check=_check_returned,
        traits=lambda case: {"aligned": is_aligned(case)},
        hypotheses=_returned_faults,
        sizes=partial(_column_sizes, image="out", columns="x"),
        shape_only=("kernel",),
        composite=Composite(batch_axes=(0,)),
    ),
    Op(
        name="col2im_1d",
        summary="signals laid over each other, one stride apart, and added up",
        inputs=("x",),
        params={"s0": int, "oc": int, "p0": int},
        dtypes=("f32", "f16", "bf16"),
        problems=_overlaid_problems,
        expect=col2im_1d,
        bound="γ_{m−1}·Σ|x| over the m elements that meet, and one rounding to the type",
        check=_check_overlaid,
        traits=lambda case: {"aligned": is_aligned(case)},
        hypotheses=_overlaid_faults,
    ),
)
