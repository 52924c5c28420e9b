"""Windows of images: IM2COL in two and three dimensions, its way back, COL2IM_1D, and pools in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases.families import choice, gather
from opconform.cases.families.choices import Choices, check_params, types_of
from opconform.cases.families.gathers import Elsewhere, drawn_types
from opconform.cases.families.taps import Window, crossed, met
from opconform.cases.shapes import check_out, is_aligned
from opconform.harness.draw.strategies import among, composite
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import F32, F64, DType, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Hypothesis, Image, Places
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Op, Problem, Sizes

Params = Mapping[str, Param]
_FAR = 1 << 12
STRIDE = choice(1, 2, 3, 5, least=1, most=_FAR)
PADDING = choice(0, 1, 2, 3, least=0, most=_FAR)
DILATION = choice(1, 2, 3, least=1, most=_FAR)
TAPS = (1, 2, 3, 4, 5)  #: of a kernel along an axis


def window(params: Params, axis: int, kernel: int) -> Window:
    """The windows along an axis (0 the innermost) whose parameters end with its number."""
    stride, padding, dilation = (
        int(params.get(f"{name}{axis}", usual)) for name, usual in (("s", 1), ("p", 0), ("d", 1))
    )
    return Window(kernel, stride, padding, dilation)


def geometry(axes: int) -> Choices:
    """Strides, paddings and dilations of so many axes, the innermost first."""
    kinds = (("s", STRIDE), ("p", PADDING), ("d", DILATION))
    return {f"{name}{axis}": its for name, its in kinds for axis in range(axes)}


def check_window(name: str, its: Window, n: int) -> int:
    """How many windows there are. Raises `CaseError` where not one fits."""
    count = its.count(n)
    if count < 1:
        raise CaseError(f"{name} is smaller than the kernel: {n} places, windows of {its.kernel}")
    return count


@composite
def axes(draw: st.DrawFn, freedom: Freedom, number: int, most: int) -> tuple[list[Window], list[int]]:
    """Windows along so many axes, the innermost first, and the axes' sizes: at least one window fits along each.

    Shrinks to windows of one place on axes of one.
    """
    windows, sizes = [], []
    for axis in range(number):
        kernel = draw(among(freedom.choices(f"k{axis}", TAPS)))
        params = [
            draw(among(freedom.choices(f"{name}{axis}", its.values)))
            for name, its in (("s", STRIDE), ("p", PADDING), ("d", DILATION))
        ]
        its = Window(kernel, *map(int, params))
        least = max(its.dilation * (kernel - 1) + 1 - 2 * its.padding, 1)
        windows.append(its)
        sizes.append(least + draw(among((0, 1, 2, 3, 4, 6, 9, 15)[:most])))
    return windows, sizes


def params_of(windows: list[Window]) -> dict[str, Param]:
    """The parameters that say so."""
    found: dict[str, Param] = {f"s{axis}": its.stride for axis, its in enumerate(windows)}
    found |= {f"p{axis}": its.padding for axis, its in enumerate(windows)}
    return found | {f"d{axis}": its.dilation for axis, its in enumerate(windows)}


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
    """Small images with a few channels; shrinks to one pixel and a kernel of one tap."""
    came, _, dtype = draw(among(drawn_types(freedom, _COLUMNS))).partition("-")
    is_2d = draw(among(freedom.choices("is_2d", (True, False))))
    windows, sizes = draw(axes(freedom, 2, 8))
    images, channels, outs = (draw(among((1, 2, 3))), draw(among((1, 2, 3, 5, 17))), 2)
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
    """Small volumes with a few channels; shrinks to one place and a kernel of one tap."""
    came, _, dtype = draw(among(drawn_types(freedom, _COLUMNS[:2]))).partition("-")
    windows, sizes = draw(axes(freedom, 3, 5))
    images, channels = draw(among((1, 2, 3))), draw(among((1, 2, 3)))
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


def gathered(raw: Raw, dtype: DType, places: Places, numerics: Numerics) -> Approx:
    """The elements at flat places, with 0 for -1."""
    values = np.append(dtype.decode(raw).reshape(-1), 0.0)
    return Approx.of(values[places], dtype, numerics)


def _sum_of(case: Case, raw: Mapping[str, Raw], places: Places, numerics: Numerics) -> Expected:
    x, out = case.inputs["x"], case.outputs["out"]
    total = gathered(raw["x"], x.type, met(places), numerics).sum()
    return total.stored(out.type, (*out.shape, 1))


def _first(found: Expected) -> Expected:
    """Without the last axis, which has one place."""
    return _shaped(found, found.value.shape[:-1])


def _shaped(found: Expected, shape: tuple[int, ...]) -> Expected:
    """The same elements in another shape."""
    exact, bits = found.exact, found.bits
    return Expected(
        found.value.reshape(shape),
        found.bound.reshape(shape),
        None if exact is None else exact.reshape(shape),
        None if bits is None else bits.reshape(shape),
    )


def col2im_1d(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[o, t] = Σ x[i, o·k + j] over all i·s0 + j = t + p0: signals of k elements laid over each other, s0 apart.

    A sum of m terms in any order, in float32, rounded once to the type: γ_{m−1}·Σ|x| (Higham 2002, eq. 4.4).
    """
    return _first(_sum_of(case, raw, _overlaid(case), numerics))


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
    room = ((count - 1) * stride + k - 1) // 2
    padding = min(draw(among(PADDING.values)), room)
    params: dict[str, Param] = {"s0": stride, "oc": channels, "p0": int(padding)}
    x = (1, 1, count, channels * k)
    return Problem(params, dtype, {"x": x}, _overlaid_shape(x, params))


def _overlaid_faults(image: Image) -> Iterator[Hypothesis]:
    case = image.case

    def otherwise(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return _first(_sum_of(case, raw, _overlaid(case, channels_first=True), numerics))

    def last_only(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return _first(_sum_of(case, raw, met(_overlaid(case))[..., :1], numerics))

    channels = int(case.params["oc"])
    if 1 < channels < case.inputs["x"].shape[3]:
        yield Hypothesis("the channels stand within each tap", partial(image.with_expect, otherwise))
    if met(_overlaid(case)).shape[-1] > 1:
        yield Hypothesis("of what meets in a place the last one stays", partial(image.with_expect, last_only))


def im2col_back(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[n, c, v, u] = Σ x[n, y, x', (c, j, i)] over all taps that IM2COL takes from (v, u): its transpose.

    A sum of m terms in any order: γ_{m−1}·Σ|x| (Higham 2002, eq. 4.4).
    """
    return _first(_sum_of(case, raw, _returned(case), numerics))


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
        return _first(_sum_of(case, raw, met(_returned(case))[..., :1], numerics))

    if met(_returned(image.case)).shape[-1] > 1:
        yield Hypothesis("of what meets in a place one stays", partial(image.with_expect, last_only))


# --- pools ---

_KIND = choice("max", "avg")
_LEAST = -F32.largest


def _pool_params(number: int) -> dict[str, Any]:
    kernel = choice(1, 2, 3, 4, 5, least=1, most=_FAR)
    kinds = (("k", kernel), ("s", STRIDE), ("p", PADDING))
    return {"kind": _KIND, **{f"{name}{axis}": its for name, its in kinds for axis in range(number)}}


def _pool_places(case: Case, shape: tuple[int, ...]) -> Places:
    """For each place of a pooled plane the flat places in one of `shape` that its window has; -1 beside it."""
    number = 2 if "k1" in case.params else 1
    sizes = shape[-number:]
    taps = [
        window(case.params, axis, int(case.params[f"k{axis}"])).taps(n)
        for axis, n in zip(reversed(range(number)), sizes)
    ]
    return crossed(taps, sizes)


def pool(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The largest element, or the mean, of each window, in which nothing of the padding counts as an element.

    POOL_1D takes the mean of the elements that there are, POOL_2D a sum over the size of the kernel. A window with no
    element has a mean of 0, and as its largest the least number of float32, from which ggml's kernels start. The mean
    is a sum of m terms and a division, or a sum of products with 1/m: each rounding is carried through (`Approx`).
    """
    return _pooled(case, raw, numerics)


def _pooled(case: Case, raw: Mapping[str, Raw], numerics: Numerics, by: str = "") -> Expected:
    """`by`: what a mean is divided by, where that is wrong: "size" or "elements"."""
    x, out = case.inputs["x"], case.outputs["out"]
    places = _pool_places(case, x.shape)
    number = places.ndim - 1
    planes = x.type.decode(raw["x"]).reshape(*x.shape[:-number], -1)
    size, flat = places.shape[-1], met(places)
    rows: F64 = np.concatenate([planes, np.zeros((*planes.shape[:-1], 1))], -1)[..., flat]
    elements = Approx.of(rows, x.type, numerics)
    if case.params["kind"] == "max":
        least = np.full(rows.shape, _LEAST)
        inside = np.broadcast_to(flat >= 0, rows.shape)
        found = Approx.where(inside, elements, Approx(least, least, least, numerics)).largest()
    else:
        is_by_elements = (by or ("elements" if number == 1 else "size")) == "elements"
        count = (flat >= 0).sum(-1, keepdims=True) if is_by_elements else np.full((*flat.shape[:-1], 1), size)
        divisor = np.broadcast_to(np.maximum(count, 1).astype(np.float64), (*rows.shape[:-1], 1))
        by_count = Approx(divisor, divisor, divisor, numerics)
        inverse = 1.0 / by_count
        found = (elements.sum() / by_count).either((elements * inverse).sum())
    return _first(found.stored(out.type, (*out.shape, 1)))


def _pool_shape(x: tuple[int, ...], params: Params) -> tuple[int, ...]:
    number = 2 if "k1" in params else 1
    if 0 in x:
        raise CaseError(f"x has shape {x}; it must not be empty")
    sizes = [
        check_window(f"ne{axis} of x", window(params, axis, int(params[f"k{axis}"])), x[3 - axis])
        for axis in reversed(range(number))
    ]
    return (*x[:-number], *sizes)


def _check_pool(case: Case) -> None:
    """Raises `CaseError` for parameters beyond their limits, and where no window fits."""
    check_params(case, _pool_params(2 if "k1" in case.params else 1))
    check_out(case, _pool_shape(case.inputs["x"].shape, case.params))


def _pool_traits(case: Case, name: str = "x") -> dict[str, bool]:
    """aligned: see `is_aligned`. filled: whether every window has an element. tiled: whether windows stand side by side
    without padding, and fill the rows."""
    number = 2 if "k1" in case.params else 1
    windows = [window(case.params, axis, int(case.params[f"k{axis}"])) for axis in range(number)]
    tiled = all(its.padding == 0 and its.stride == its.kernel for its in windows)
    filled = all((its.taps(n) >= 0).any(-1).all() for its, n in zip(windows, case.inputs[name].ne))
    return {"aligned": is_aligned(case), "filled": filled, "tiled": tiled}


@composite
def _pool_problems(draw: st.DrawFn, freedom: Freedom, number: int, source: str = "") -> Problem:
    """Planes with windows; shrinks to one element."""
    windows, sizes = draw(axes(freedom, number, 8))
    params: dict[str, Param] = {"kind": draw(among(freedom.choices("kind", _KIND.values)))}
    tiled, filled = (not freedom.choices(name, (False,)) for name in ("tiled", "filled"))
    windows = [
        Window(
            it.kernel,
            it.kernel if tiled else it.stride,
            0 if tiled else min(it.padding, it.kernel - 1 if filled else 9),
        )
        for it in windows
    ]
    if filled:  # windows beyond the end have none either
        sizes = [max(n, it.kernel) for n, it in zip(sizes, windows)]
    sizes = [max(n, it.kernel - 2 * it.padding, 1) for n, it in zip(sizes, windows)]
    params |= {f"k{axis}": its.kernel for axis, its in enumerate(windows)}
    params |= {name: value for name, value in params_of(windows).items() if name[0] != "d"}
    outer = [draw(among((1, 2, 3))) for _ in range(4 - number)]
    x = (*outer, *reversed(sizes))
    out = _pool_shape(x, params)
    if source:
        return Problem(params, "f32", {"x": out, source: x}, x)
    came = draw(among(freedom.choices("source", ("f32", "f16"))))
    return Problem(params, "f32", {"x": x}, out, dtypes={"x": came})


def _pool_faults(image: Image) -> Iterator[Hypothesis]:
    case = image.case
    other = "avg" if case.params["kind"] == "max" else "max"
    yield Hypothesis(f"it is a pool of kind {other}", partial(image.with_params, kind=other))
    number = 2 if "k1" in case.params else 1
    places = _pool_places(case, case.inputs["x"].shape)
    if case.params["kind"] == "avg" and (places < 0).any():
        by = "size" if number == 1 else "elements"
        says = "the mean is over the size of the kernel" if number == 1 else "the mean is over the elements alone"
        yield Hypothesis(says, partial(image.with_expect, partial(_pooled, by=by)))


def _pool(number: int) -> Op:
    return Op(
        name=f"pool_{number}d",
        summary=f"the largest element, or the mean, of windows over {'rows' if number == 1 else 'planes'}",
        inputs=("x",),
        params=types_of(_pool_params(number)),
        dtypes=("f32",),
        argument_dtypes={"x": ("f32", "f16")},
        problems=partial(_pool_problems, number=number),
        expect=pool,
        bound="the element itself; for a mean the rounding of each step, carried through",
        check=_check_pool,
        alone=lambda case: (0, 1),
        traits=lambda case: {**_pool_traits(case), "source": case.inputs["x"].dtype},
        hypotheses=_pool_faults,
    )


def pool_2d_back(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The gradient of POOL_2D: what belongs to a window goes to its largest element of y (of equal ones the first, by
    rows), or in parts of 1 / (k0·k1) to all that it has.

    A sum of m terms in any order, each of them divided first for a mean: the roundings are carried through (`Approx`).
    Which element is the largest of some that are NaN, nothing says: nothing is demanded of such a plane.
    """
    return _spread(case, raw, numerics)


def _spread(case: Case, raw: Mapping[str, Raw], numerics: Numerics, last: bool = False) -> Expected:
    """`last`: of equal elements the last one gets all."""
    x, y, out = case.inputs["x"], case.inputs["y"], case.outputs["out"]
    places = _pool_places(case, y.shape)
    windows, plane = places.shape[0] * places.shape[1], y.shape[-2] * y.shape[-1]
    planes = y.type.decode(raw["y"]).reshape(-1, plane)
    gradient = x.type.decode(raw["x"]).reshape(-1, windows)
    taken = places.reshape(windows, -1)
    if case.params["kind"] == "max":
        found = np.concatenate([planes, np.full((len(planes), 1), -np.inf)], -1)[:, taken]
        at = found.shape[-1] - 1 - found[..., ::-1].argmax(-1) if last else found.argmax(-1)
        chosen = np.take_along_axis(np.broadcast_to(taken, found.shape), at[..., None], -1)
    else:
        chosen = np.broadcast_to(taken, (len(planes), *taken.shape))
    most = max((int(np.bincount(it[it >= 0].reshape(-1), minlength=1).max(initial=1)) for it in chosen), default=1)
    terms = np.zeros((len(planes), plane, max(most, 1)))
    for number, its in enumerate(chosen):
        window_of = np.repeat(np.arange(windows), its.shape[-1])
        place = its.reshape(-1)
        window_of, place = window_of[place >= 0], place[place >= 0]
        order = np.argsort(place, kind="stable")
        place, window_of = place[order], window_of[order]
        rank = np.arange(len(place)) - np.searchsorted(place, place)
        terms[number, place, rank] = gradient[number, window_of]
    parts = Approx.of(terms, x.type, numerics)
    if case.params["kind"] == "avg":
        parts = parts / float(taken.shape[-1])
    total = parts.sum().stored(out.type, (len(planes), plane, 1))
    if case.params["kind"] == "max":
        free = np.isnan(planes).any(-1).reshape(-1, 1, 1)
        total = Expected(np.where(free, np.nan, total.value), total.bound, total.exact, total.bits)
    return _shaped(total, out.shape)


def _check_back(case: Case) -> None:
    """Raises `CaseError` unless x has the shape that POOL_2D gives y."""
    check_params(case, _pool_params(2))
    want = _pool_shape(case.inputs["y"].shape, case.params)
    if case.inputs["x"].shape != want:
        raise CaseError(f"x has shape {case.inputs['x'].shape}; POOL_2D of y gives {want}")
    check_out(case, case.inputs["y"].shape)


def _back_faults(image: Image) -> Iterator[Hypothesis]:
    other = "avg" if image.case.params["kind"] == "max" else "max"
    yield Hypothesis(f"it is the gradient of a pool of kind {other}", partial(image.with_params, kind=other))
    if image.case.params["kind"] == "max":
        says = "of equal elements the last one gets all"
        yield Hypothesis(says, partial(image.with_expect, partial(_spread, last=True)))


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
        params={"ic": choice(1, 2, 3, least=1, most=_FAR), **geometry(3)},
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
    _pool(1),
    _pool(2),
    Op(
        name="pool_2d_back",
        summary="the gradient of a pool over planes",
        inputs=("x", "y"),
        params=types_of(_pool_params(2)),
        dtypes=("f32",),
        problems=partial(_pool_problems, number=2, source="y"),
        expect=pool_2d_back,
        bound="the rounding of each step, carried through",
        check=_check_back,
        alone=lambda case: (0, 1),
        traits=partial(_pool_traits, name="y"),
        hypotheses=_back_faults,
    ),
)
