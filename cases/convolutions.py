"""Convolutions, direct and transposed: sums of products over the windows of `windows.py`.

A kernel slides over x without being turned round, as in every framework. Each output is one sum of products, whose
bound is that of a product of matrices (`products.product`), with what a device does to its operands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from hypothesis import strategies as st

from opconform.cases.families.choices import check_params, types_of
from opconform.cases.families.taps import Window, crossed
from opconform.cases.families.windowed import (
    FEW_TAPS,
    STRIDE,
    TAPS,
    area,
    check_window,
    crowded_axes,
    geometry,
    kernel_sizes,
    params_of,
    window,
)
from opconform.cases.products import Operand, activations, product, weights
from opconform.cases.shapes import check_out, is_aligned
from opconform.harness.draw.strategies import among, as_many, composite, counts, rare_forms
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Hypothesis, Image, Places
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Op, Problem, Sizes

Params = Mapping[str, Param]
_KERNELS = ("f32", "f16")


def _picked(operand: Operand, places: Places) -> Operand:
    """The elements at places of the last axis, and 0 for -1."""
    parts = (operand.value, operand.size, operand.offsets, operand.off)
    return Operand(*(np.concatenate([it, np.zeros((*it.shape[:-1], 1))], -1)[..., places] for it in parts))


def _as(operand: Operand, shape: tuple[int, ...], order: tuple[int, ...] = ()) -> Operand:
    """The same in another shape, its axes then in another order."""
    parts = (operand.value, operand.size, operand.offsets, operand.off)
    return Operand(*(it.reshape(shape).transpose(order or tuple(range(len(shape)))) for it in parts))


def _operands(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> tuple[Operand, Operand]:
    kernel, x = case.inputs["kernel"], case.inputs["x"]
    y = activations(x.type.decode(raw["x"]), x.type, kernel.type, numerics)
    return weights(raw["kernel"], kernel.type, numerics), y


def _convolved(
    case: Case, raw: Mapping[str, Raw], numerics: Numerics, groups: tuple[int, int, int], places: Places
) -> Expected:
    """Convolutions of x, [images, channels, plane], with a kernel [outs, channels, taps], where `places` has for each
    output the place in the plane that each tap meets. groups: images, channels and outs."""
    images, channels, outs = groups
    w, y = _operands(case, raw, numerics)
    taps = places.shape[-1]
    y = _picked(_as(y, (images, channels, -1)), places.reshape(-1, taps))  # [image, channel, place, tap]
    y = _as(y, (images, channels, -1, taps), (0, 2, 1, 3))
    y = _as(y, (images, y.value.shape[1], channels * taps))
    found = product(_as(w, (1, outs, channels * taps)), y, case.inputs["kernel"].type, numerics)
    return _turned(found, case.outputs["out"].shape)


def _turned(found: Expected, shape: tuple[int, ...]) -> Expected:
    """[image, place, out] in the shape of the output, where the places come last."""
    value, bound = (np.ascontiguousarray(it.swapaxes(-1, -2)).reshape(shape) for it in (found.value, found.bound))
    return Expected(value, bound)


def _planes(case: Case, params: Params, number: int, turned: bool = False) -> Places:
    """The places that the taps of windows over the last `number` axes meet; `turned`: the kernel is turned round."""
    sizes, kernel = case.inputs["x"].shape[-number:], case.inputs["kernel"].shape[-number:]
    taps = [window(params, number - 1 - axis, kernel[axis]).taps(sizes[axis]) for axis in range(number)]
    found = crossed(taps, sizes)
    return found[..., ::-1] if turned else found


# --- CONV_2D, CONV_2D_DW, CONV_3D ---


def conv_2d(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[n, o, y, x'] = Σ_(c, j, i) kernel[o, c, j, i]·x[n, c, y·s1 + j·d1 − p1, x'·s0 + i·d0 − p0], zeros beside x.

    The bound is that of `products.product`, for sums of channels·k1·k0 products.
    """
    return _conv_2d(case, raw, numerics)


def _conv_2d(case: Case, raw: Mapping[str, Raw], numerics: Numerics, turned: bool = False) -> Expected:
    outs, channels = case.inputs["kernel"].shape[:2]
    groups = (case.inputs["x"].shape[0], channels, outs)
    return _convolved(case, raw, numerics, groups, _planes(case, case.params, 2, turned))


def conv_2d_dw(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[n, c, y, x'] = Σ_(j, i) kernel[c, 0, j, i]·x[n, c, y·s1 + j·d1 − p1, x'·s0 + i·d0 − p0]: each channel apart.

    The bound is that of `products.product`, for sums of k1·k0 products.
    """
    return _conv_2d_dw(case, raw, numerics)


def _conv_2d_dw(case: Case, raw: Mapping[str, Raw], numerics: Numerics, turned: bool = False) -> Expected:
    images, channels = case.inputs["x"].shape[:2]
    places = _planes(case, case.params, 2, turned)
    w, y = _operands(case, raw, numerics)
    taps = places.shape[-1]
    y = _picked(_as(y, (images, channels, -1)), places.reshape(-1, taps))
    found = product(_as(w, (1, channels, 1, taps)), y, case.inputs["kernel"].type, numerics)
    return _turned(found, case.outputs["out"].shape)


def conv_3d(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The same over volumes: x is [(n, c), depth, rows, columns], the kernel [(o, c), k2, k1, k0], out [(n, o), …].

    The bound is that of `products.product`, for sums of channels·k2·k1·k0 products.
    """
    return _conv_3d(case, raw, numerics)


def _conv_3d(case: Case, raw: Mapping[str, Raw], numerics: Numerics, turned: bool = False) -> Expected:
    groups = (int(case.params["n"]), int(case.params["c"]), int(case.params["oc"]))
    return _convolved(case, raw, numerics, groups, _planes(case, case.params, 3, turned))


def _sizes(x: tuple[int, ...], kernel: tuple[int, ...], params: Params, number: int) -> tuple[int, ...]:
    if 0 in (*x, *kernel):
        raise CaseError(f"x has shape {x} and the kernel {kernel}; neither may be empty")
    return tuple(
        check_window(f"ne{number - 1 - axis} of x", window(params, number - 1 - axis, k), n)
        for axis, (n, k) in enumerate(zip(x[-number:], kernel[-number:]))
    )


def _shape_2d(x: tuple[int, ...], kernel: tuple[int, ...], params: Params) -> tuple[int, ...]:
    if kernel[1] != x[1]:
        raise CaseError(f"x has {x[1]} channels and the kernel {kernel[1]}; they must be as many")
    return (x[0], kernel[0], *_sizes(x, kernel, params, 2))


def _shape_dw(x: tuple[int, ...], kernel: tuple[int, ...], params: Params) -> tuple[int, ...]:
    if kernel[:2] != (x[1], 1):
        raise CaseError(f"x has shape {x} and the kernel {kernel}; it must be ({x[1]}, 1, n1, n0)")
    return (*x[:2], *_sizes(x, kernel, params, 2))


def _shape_3d(x: tuple[int, ...], kernel: tuple[int, ...], params: Params) -> tuple[int, ...]:
    n, c, oc = (int(params[name]) for name in ("n", "c", "oc"))
    if min(n, c, oc) < 1 or x[0] != n * c or kernel[0] != oc * c:
        raise CaseError(f"x has shape {x} and the kernel {kernel}; ne3 must be n·c = {n * c} and oc·c = {oc * c}")
    return (n * oc, *_sizes(x, kernel, params, 3))


_SHAPES = {"conv_2d": _shape_2d, "conv_2d_dw": _shape_dw, "conv_3d": _shape_3d}


def _check(case: Case) -> None:
    """Raises `CaseError` for shapes and parameters that do not fit together."""
    check_params(case, geometry(3 if case.op == "conv_3d" else 2))
    check_out(case, _SHAPES[case.op](case.inputs["x"].shape, case.inputs["kernel"].shape, case.params))


def _volume_sizes(case: Case) -> Sizes:
    """Images, channels and outputs, which share an axis, and the sizes of x and of the kernel."""
    x, kernel = case.inputs["x"].shape, case.inputs["kernel"].shape
    groups = {name: int(case.params[name]) for name in ("c", "oc", "n")}
    taps, places = ({f"{name}{k}": its[3 - k] for k in range(3)} for name, its in (("k", kernel), ("x", x)))

    def made(its: Mapping[str, int]) -> tuple[dict[str, tuple[int, ...]], dict[str, Param]]:
        params: dict[str, Param] = {name: its[name] for name in groups}
        x = (its["n"] * its["c"], its["x2"], its["x1"], its["x0"])
        kernel = (its["oc"] * its["c"], its["k2"], its["k1"], its["k0"])
        return {"x": x, "kernel": kernel, "out": _shape_3d(x, kernel, {**case.params, **params})}, params

    return Sizes({**groups, **taps, **places}, made)


@composite
def _problems(draw: st.DrawFn, freedom: Freedom, op: str) -> Problem:
    """Small images with a few channels, now and then many of these or of those; shrinks to one product."""
    number = 3 if op == "conv_3d" else 2
    form = draw(rare_forms("images", "channels", "wide", *("outs",) * (op != "conv_2d_dw")))
    windows, sizes = draw(crowded_axes(freedom, number, 8 if number == 2 else 4, form))
    if form == "usual":
        images, channels = draw(among((1, 2, 3))), draw(among((1, 2, 3, 5, 16) if number == 2 else (1, 2)))
        outs = draw(among((1, 2, 3, 7, 33) if number == 2 else (1, 2, 3)))
    elif form == "wide":
        images, channels, outs = 1, draw(among((1, 2))), draw(among((1, 2)))
    else:
        many = as_many(draw(counts()), area(windows, sizes), freedom)
        images, channels, outs = (many if form == name else 1 for name in ("images", "channels", "outs"))
    taps = tuple(its.kernel for its in reversed(windows))
    params: dict[str, Param] = params_of(windows)
    if op == "conv_2d":
        kernel, x = (outs, channels, *taps), (images, channels, *reversed(sizes))
    elif op == "conv_2d_dw":
        kernel, x = (channels, 1, *taps), (images, channels, *reversed(sizes))
    else:
        kernel, x = (outs * channels, *taps), (images * channels, *reversed(sizes))
        params |= {"c": channels, "n": images, "oc": outs}
    return _problem(draw, freedom, params, kernel, x, _SHAPES[op](x, kernel, params))


def _problem(
    draw: st.DrawFn,
    freedom: Freedom,
    params: Params,
    kernel: tuple[int, ...],
    x: tuple[int, ...],
    out: tuple[int, ...],
) -> Problem:
    its = draw(among(freedom.choices("weights", _KERNELS)))
    return Problem(params, "f32", {"kernel": kernel, "x": x}, out, dtypes={"kernel": its})


def _traits(case: Case) -> dict[str, str | bool | int]:
    """aligned: see `is_aligned`. weights: the kernel's type. single: whether x has one image. k0, k1, k2: the kernel's
    inner sizes."""
    kernel, single = case.inputs["kernel"], case.inputs["x"].shape[0] == 1
    sizes = {f"k{axis}": kernel.ne[axis] for axis in range(3)}
    return {"aligned": is_aligned(case), "weights": kernel.dtype, "single": single, **sizes}


_TURNED = {"conv_2d": _conv_2d, "conv_2d_dw": _conv_2d_dw, "conv_3d": _conv_3d}


def _faults(image: Image) -> Iterator[Hypothesis]:
    case = image.case
    kernel = case.inputs["kernel"].shape
    number = 3 if case.op == "conv_3d" else 2
    if np.prod(kernel[-number:]) > 1:
        wrong = partial(_TURNED[case.op], turned=True)
        yield Hypothesis("the kernel is turned round", partial(image.with_expect, wrong))
        first = np.zeros_like(image.raw["kernel"]).reshape(*kernel[:-number], -1)
        first[..., 0] = image.raw["kernel"].reshape(first.shape)[..., 0]
        first = first.reshape(kernel)
        yield Hypothesis("only the first tap is used", partial(image.with_inputs, kernel=first))
    if case.op != "conv_3d" and case.inputs["x"].shape[1] > 1:
        spread = np.ascontiguousarray(np.broadcast_to(image.raw["x"][:, :1], image.raw["x"].shape))
        yield Hypothesis("every channel of x is the first", partial(image.with_inputs, x=spread))
    if case.inputs["x"].shape[0] > 1:
        spread = np.ascontiguousarray(np.broadcast_to(image.raw["x"][:1], image.raw["x"].shape))
        yield Hypothesis("every image is the first", partial(image.with_inputs, x=spread))


# --- transposed ---


def _scattered(
    case: Case, raw: Mapping[str, Raw], numerics: Numerics, groups: tuple[int, int, int], places: Places
) -> Expected:
    """As `_convolved`, with a kernel [channels, outs, taps]: `places` has the place in x that reaches an output by each
    tap."""
    images, channels, outs = groups
    w, y = _operands(case, raw, numerics)
    taps = places.shape[-1]
    y = _picked(_as(y, (images, channels, -1)), places.reshape(-1, taps))
    y = _as(y, (images, channels, -1, taps), (0, 2, 1, 3))
    y = _as(y, (images, y.value.shape[1], channels * taps))
    w = _as(_as(w, (channels, outs, taps), (1, 0, 2)), (1, outs, channels * taps))
    return _turned(product(w, y, case.inputs["kernel"].type, numerics), case.outputs["out"].shape)


def conv_transpose_1d(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[o, t] = Σ kernel[c, o, j]·x[c, i] over all channels c and all i·s0 + j = t.

    The bound is that of `products.product`, for sums of channels·k0 products, most of which may be 0.
    """
    return _transposed(case, raw, numerics, 1)


def conv_transpose_2d(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[n, o, v, u] = Σ kernel[c, o, j, i]·x[n, c, y, x'] over all channels c, all y·stride + j = v and all
    x'·stride + i = u.

    The bound is that of `products.product`, for sums of channels·k1·k0 products, most of which may be 0.
    """
    return _transposed(case, raw, numerics, 2)


def _transposed(
    case: Case, raw: Mapping[str, Raw], numerics: Numerics, number: int, turned: bool = False, offset: int = 0
) -> Expected:
    kernel, x, out = case.inputs["kernel"].shape, case.inputs["x"].shape, case.outputs["out"].shape
    stride = int(case.params["s0" if number == 1 else "stride"])
    taps = [Window(k, stride, offset).back(n, m) for k, n, m in zip(kernel[-number:], out[-number:], x[-number:])]
    places = crossed(taps, x[-number:])
    channels, outs = kernel[-number - 2 : -number]
    return _scattered(case, raw, numerics, (x[0], channels, outs), places[..., ::-1] if turned else places)


def _transposed_shape(x: tuple[int, ...], kernel: tuple[int, ...], stride: int, number: int) -> tuple[int, ...]:
    channels, outs = kernel[-number - 2 : -number]
    if 0 in (*x, *kernel):
        raise CaseError(f"x has shape {x} and the kernel {kernel}; neither may be empty")
    if x[-number - 1] != channels or (number == 1 and (x[:2] != (1, 1) or kernel[0] != 1)):
        raise CaseError(f"x has shape {x} and the kernel {kernel}; x must have {channels} channels")
    sizes = tuple((n - 1) * stride + k for n, k in zip(x[-number:], kernel[-number:]))
    return (1, 1, outs, *sizes) if number == 1 else (x[0], outs, *sizes)


def _check_transposed(case: Case, number: int) -> None:
    """Raises `CaseError` for shapes and parameters that do not fit together."""
    name = "s0" if number == 1 else "stride"
    check_params(case, {name: STRIDE})
    x, kernel = case.inputs["x"].shape, case.inputs["kernel"].shape
    check_out(case, _transposed_shape(x, kernel, int(case.params[name]), number))


@composite
def _transposed_problems(draw: st.DrawFn, freedom: Freedom, number: int) -> Problem:
    """Strides below, at and above the kernel's size; shrinks to one product."""
    name = "s0" if number == 1 else "stride"
    stride = int(draw(among(freedom.choices(name, STRIDE.values))))
    sizes = (1, 2, 3, 5, 8, 33, 130) if number == 1 else (1, 2, 3, 5, 8)
    form = draw(rare_forms("channels", "outs"))
    tried = TAPS if form == "usual" else FEW_TAPS
    taps = tuple(draw(kernel_sizes(freedom, axis, tried)) for axis in reversed(range(number)))
    places = tuple(draw(among(sizes)) for _ in range(number))
    channels, outs = draw(among((1, 2, 3, 5, 16))), draw(among((1, 2, 3, 7)))
    if form != "usual":
        places = (1,) * number
        many = as_many(draw(counts()), math.prod(taps), freedom)
        channels, outs = (many, 1) if form == "channels" else (1, many)
    images = 1 if number == 1 else draw(among(freedom.choices("images", (1, 2, 3))))
    if not freedom.choices("single", (False,)):
        images = 1
    kernel = (1,) * (2 - number) + (channels, outs, *taps)
    x = (1, 1, channels, *places) if number == 1 else (images, channels, *places)
    return _problem(draw, freedom, {name: stride}, kernel, x, _transposed_shape(x, kernel, stride, number))


def _transposed_faults(image: Image, number: int) -> Iterator[Hypothesis]:
    case = image.case
    if np.prod(case.inputs["kernel"].shape[-number:]) > 1:
        wrong = partial(_transposed, number=number, turned=True)
        yield Hypothesis("the kernel is turned round", partial(image.with_expect, wrong))
        wrong = partial(_transposed, number=number, offset=1)
        yield Hypothesis("the output is cut off at its start", partial(image.with_expect, wrong))
    if case.inputs["x"].shape[0] > 1:
        spread = np.ascontiguousarray(np.broadcast_to(image.raw["x"][:1], image.raw["x"].shape))
        yield Hypothesis("every image is the first", partial(image.with_inputs, x=spread))


_ONE_IMAGE = Composite(batch_axes=(0,))  #: the channels of an image come together


def _op(name: str, summary: str, terms: str) -> Op:
    params = types_of(geometry(3 if name == "conv_3d" else 2))
    return Op(
        name=name,
        summary=summary,
        inputs=("kernel", "x"),
        params=params | dict.fromkeys(("c", "n", "oc") if name == "conv_3d" else (), int),
        dtypes=("f32",),
        argument_dtypes={"kernel": _KERNELS},
        problems=partial(_problems, op=name),
        expect={"conv_2d": conv_2d, "conv_2d_dw": conv_2d_dw, "conv_3d": conv_3d}[name],
        bound=f"γ_K·Σ|kernel·x| over K = {terms} products, and what the device rounds",
        check=_check,
        traits=_traits,
        hypotheses=_faults,
        sizes=_volume_sizes if name == "conv_3d" else None,
        composite=Composite() if name == "conv_2d_dw" else _ONE_IMAGE,
    )


def _transposed_op(number: int) -> Op:
    name, stride = f"conv_transpose_{number}d", "s0" if number == 1 else "stride"
    return Op(
        name=name,
        summary=f"{'rows' if number == 1 else 'images'} spread out by a stride: the transpose of a convolution",
        inputs=("kernel", "x"),
        params={stride: int},
        dtypes=("f32",),
        argument_dtypes={"kernel": _KERNELS},
        problems=partial(_transposed_problems, number=number),
        expect=conv_transpose_1d if number == 1 else conv_transpose_2d,
        bound="γ_K·Σ|kernel·x| over K = channels·taps products, and what the device rounds",
        check=partial(_check_transposed, number=number),
        traits=_traits,
        hypotheses=partial(_transposed_faults, number=number),
        composite=_ONE_IMAGE,
    )


OPS = (
    _op("conv_2d", "images convolved with a kernel for each channel of the output", "channels·k1·k0"),
    _op("conv_2d_dw", "images convolved channel by channel", "k1·k0"),
    _op("conv_3d", "volumes convolved with a kernel for each channel of the output", "channels·k2·k1·k0"),
    _transposed_op(1),
    _transposed_op(2),
)
