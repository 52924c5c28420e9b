"""UPSCALE: images in another size, by the nearest pixel, or by weights of the pixels around a place.

An output row is a sum of input rows with weights that follow from a coordinate; so is a column. A kernel computes the
coordinate in float32, is off by some δ there, and each weight then by its slope times δ: `_Weights` holds, for an axis,
the weights and how far each may be off.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from opconform.cases.shapes import check_out, is_aligned
from opconform.harness.draw.strategies import among, as_many, composite, counts, rare_forms, within
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F32, F64, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.op import Op, Problem

_ALIGNED = "+align_corners"
MODES = (
    *("nearest", "bilinear", "bicubic", "bilinear+antialias"),
    *(f"{mode}{_ALIGNED}" for mode in ("nearest", "bilinear", "bicubic")),
)
_ALPHA = -0.75  #: of bicubic convolution, as PyTorch and ggml have it
_STEEPEST = {"bilinear": 1.0, "bicubic": 1.35}  #: the greatest slope of a weight (at 0.6 of the cubic)
_MARGIN = 4  #: columns for places beside the image

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Weights:
    """Of an axis: [out, in], and how far each may be off; `terms`: the roundings of a sum with them."""

    value: F64
    off: F64
    terms: float


def _ratio(n: int, m: int, is_aligned: bool) -> tuple[int, int]:
    """How far one step of the output (m places) goes in the input (n places), as a fraction."""
    return (n - 1, m - 1) if is_aligned and n > 1 and m > 1 else (n, m)


def _coordinates(n: int, m: int, mode: str, numerics: Numerics) -> tuple[F64, F64]:
    """Where the places of the output lie in the input, and how far a kernel may be off.

    i + 1/2 is divided by the rounded quotient of the sizes, or multiplied with its inverse, and 1/2 is subtracted; with
    align_corners the halves are left out. The distance from the pixel before is one more subtraction.
    """
    over, under = _ratio(n, m, mode.endswith(_ALIGNED))
    half = 0.0 if mode.endswith(_ALIGNED) else 0.5
    along = (np.arange(m) + half) * over / under
    at = along - half
    off = numerics.gamma(2 + numerics.division_roundings) * along + 2 * numerics.u * np.maximum(np.abs(at), 1.0)
    return at, off


def _nearest(n: int, m: int, mode: str, numerics: Numerics) -> tuple[Places, Places]:
    """The pixel of each place, ⌊i·n / m⌋, and the one that a kernel may take instead: the one before, where the
    quotient is whole. A division that is rounded correctly is exact for a whole ratio of the sizes."""
    over, under = _ratio(n, m, mode.endswith(_ALIGNED))
    i = np.arange(m)
    at = np.minimum(i * over // under, n - 1)
    if numerics.division_ulps <= 0.5 and not numerics.any_rounding and under % over == 0:
        return at, at
    reach = numerics.gamma(2 + numerics.division_roundings) * i * over / under
    low = np.floor(i * over / under - reach).clip(0, n - 1).astype(np.int64)
    high = np.floor(i * over / under + reach).clip(0, n - 1).astype(np.int64)
    return at, np.where(low != at, low, high)


def _cubic(distance: F64, alpha: float) -> F64:
    """The weight of a pixel at a distance (Keys 1981, eq. 15, with a = α)."""
    near = ((alpha + 2) * distance - (alpha + 3)) * distance**2 + 1
    far = alpha * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _cubic_size(distance: F64) -> F64:
    """The polynomials of `_cubic` with the sizes of their terms: what their rounding is relative to."""
    near = (1.25 * distance + 2.25) * distance**2 + 1
    far = 0.75 * (((distance + 5) * distance + 8) * distance + 4)
    return np.where(distance <= 1, near, far)


def _around(n: int, m: int, mode: str, numerics: Numerics, alpha: float = _ALPHA) -> _Weights:
    """Bilinear and bicubic weights; what lies beside the image is its nearest pixel.

    A weight is off by its steepest slope times δ, and by the rounding of its polynomial: γ_8 of the sizes of its terms
    (Higham 2002, section 5.1, for Horner's rule of degree 3).
    """
    kind = mode.partition("+")[0]
    at, off = _coordinates(n, m, mode, numerics)
    place = np.arange(-_MARGIN, n + _MARGIN)
    distance = np.abs(place - at[:, None])
    reach = 1 if kind == "bilinear" else 2
    touched = distance < reach + off[:, None]
    if kind == "bilinear":
        value = np.maximum(1 - distance, 0.0)
        wrong = _STEEPEST[kind] * off[:, None] + 0 * distance
        terms = 8.0
    else:
        value = _cubic(distance, alpha)
        wrong = _STEEPEST[kind] * off[:, None] + numerics.gamma(8.0) * _cubic_size(distance)
        terms = 12.0
    return _folded(value, np.where(touched, wrong, 0.0), n, terms)


def _folded(value: F64, off: F64, n: int, terms: float) -> _Weights:
    """What lies beside the image added to its ends."""
    found = []
    for each in (value, off):
        inside = each[:, _MARGIN : _MARGIN + n].copy()
        inside[:, 0] += each[:, :_MARGIN].sum(-1)
        inside[:, -1] += each[:, _MARGIN + n :].sum(-1)
        found.append(inside)
    return _Weights(found[0], found[1], terms)


def _antialiased(n: int, m: int, numerics: Numerics) -> _Weights:
    """Triangles as wide as an output pixel is in the input, and at least two pixels; their weights add up to 1.

    The weight 1 − |s + 1/2 − c|/h of pixel s is off by δ/h and by a few roundings of numbers up to 2; divided by the
    sum T of all, w/T is off by (off + w/T·Σ off) / T.
    """
    at = (np.arange(m) + 0.5) * n / m
    wide = max(1.0, n / m)
    roundings = numerics.gamma(2 + numerics.division_roundings)
    off = roundings * at + 2 * numerics.u * np.maximum(at, 1.0)
    distance = np.abs(np.arange(n) + 0.5 - at[:, None]) / wide
    raw = np.maximum(1 - distance, 0.0)
    slack = off[:, None] / wide + 4 * roundings
    wrong = np.where(distance < 1 + slack, slack, 0.0)
    total = raw.sum(-1, keepdims=True)
    value = raw / total
    least = np.maximum(total - wrong.sum(-1, keepdims=True), 1e-30)
    return _Weights(value, (wrong + value * wrong.sum(-1, keepdims=True)) / least, 2.0 * (2 * wide + 2) + 8)


def _weights(n: int, m: int, mode: str, numerics: Numerics, alpha: float) -> _Weights:
    if mode == "bilinear+antialias":
        return _antialiased(n, m, numerics)
    return _around(n, m, mode, numerics, alpha)


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[i3, i2, y, x'] = Σ Wy[y, j]·Wx[x', k]·x[i3·n3 / m3, i2·n2 / m2, j, k], the two outer places rounded down.

    nearest: the pixel ⌊x'·n / m⌋. bilinear, bicubic: the 2 or 4 pixels around (x' + 1/2)·n / m − 1/2, or around
    x'·(n − 1) / (m − 1) with align_corners. antialias: see `_antialiased`. With weights off by D and K roundings
    the error is below Σ((|Wy| + Dy)(|Wx| + Dx) − |Wy||Wx|)·|x| + γ_K·Σ(|Wy| + Dy)(|Wx| + Dx)·|x|. Where a quotient of
    sizes is whole, a division that is not rounded correctly may end below it, at the pixel before.
    """
    return _resized(case, raw, numerics)


def _picked(planes: F64, down: tuple[Places, Places], across: tuple[Places, Places], tiny: float) -> tuple[F64, F64]:
    """The nearest pixels, and how far from them is what a kernel may take instead. Elements up to `tiny` may be 0;
    of a pixel that is not finite nothing is demanded."""
    value: F64 = planes[..., down[0], :][..., across[0]]
    off = np.zeros_like(value)
    for rows, columns in itertools.product(down, across):
        instead = planes[..., rows, :][..., columns]
        with np.errstate(invalid="ignore"):
            off = np.maximum(off, np.where(instead == value, 0.0, np.abs(instead - value)))
    return value, np.where(np.isfinite(value), off + tiny, np.inf)


def _weighed(planes: F64, down: _Weights, across: _Weights, tiny: float, numerics: Numerics) -> tuple[F64, F64]:
    """The weighted sums over both axes, and their bounds. Elements up to `tiny` may be taken as 0."""
    size = np.abs(planes)
    with np.errstate(invalid="ignore"):
        value: F64 = down.value @ planes @ across.value.T
        exact = np.abs(down.value) @ size @ np.abs(across.value).T
        whole = (np.abs(down.value) + down.off) @ (size + tiny) @ (np.abs(across.value) + across.off).T
        terms = down.terms + across.terms
        off = np.maximum(whole - exact, 0.0) + numerics.gamma(terms) * whole
        # Of products with 0 and 1 nothing is left, but for what the float64 sums above lose.
        off = np.where(off > 2.0**-48 * exact, off + 2.0**-48 * whole, 0.0)
        off = off + terms * numerics.underflow
        return value, np.where(whole <= F32.largest, off, np.inf)


def _exchanged(case: Case) -> list[Places]:
    """The pixels that the two inner axes have where each goes by the scale of the other, as far as the image goes."""
    (n1, n0), (m1, m0) = case.inputs["x"].shape[2:], case.outputs["out"].shape[2:]
    given = ((m1, n0 / m0, n1), (m0, n1 / m1, n0))
    return [np.minimum((np.arange(m) * ratio).astype(np.int64), n - 1) for m, ratio, n in given]


def _resized(
    case: Case,
    raw: Mapping[str, Raw],
    numerics: Numerics,
    alpha: float = _ALPHA,
    turned: bool = False,
) -> Expected:
    """`turned`: the scales of the two inner axes are exchanged, as far as the image goes."""
    x, out, mode = case.inputs["x"], case.outputs["out"], str(case.params["mode"])
    (n3, n2, n1, n0), (m3, m2, m1, m0) = x.shape, out.shape
    planes: F64 = x.type.decode(raw["x"])
    tiny = F32.smallest_normal if numerics.flushes_denormals else 0.0
    inner = (n1, m1), (n0, m0)
    if turned or mode.startswith("nearest"):
        places = [(at, at) for at in _exchanged(case)] if turned else [_nearest(*nm, mode, numerics) for nm in inner]
        resize = partial(_picked, down=places[0], across=places[1], tiny=tiny)
    else:
        down, across = (_weights(*nm, mode, numerics, alpha) for nm in inner)
        resize = partial(_weighed, down=down, across=across, tiny=tiny, numerics=numerics)
    outer = [_nearest(n, m, mode.removesuffix(_ALIGNED), numerics) for n, m in ((n3, m3), (n2, m2))]
    value = bound = np.zeros(0)
    for number, (three, two) in enumerate((a, b) for a in outer[0] for b in outer[1]):
        if number and np.array_equal(three, outer[0][0]) and np.array_equal(two, outer[1][0]):
            continue
        one, off = resize(planes[three][:, two])
        with np.errstate(invalid="ignore"):
            if not number:
                value, bound = one, off
            else:
                bound = np.maximum(bound, np.abs(one - value) + off)
    return Expected(value, np.where(np.isnan(bound), np.inf, bound))


def check(case: Case) -> None:
    """Raises `CaseError` for a mode that there is not, and for empty images."""
    mode = case.params["mode"]
    if mode not in MODES:
        raise CaseError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
    x, out = case.inputs["x"].shape, case.outputs["out"].shape
    if 0 in (*x, *out):
        raise CaseError(f"x has shape {x} and out {out}; neither may be empty")
    check_out(case, out)


@composite
def _problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Images that grow, shrink or keep their size along each axis; shrinks to one pixel."""
    mode = draw(among(freedom.choices("mode", MODES)))
    ne = [draw(among(sizes)) for sizes in ((1, 2, 3, 5, 8, 17, 33), (1, 2, 3, 7, 16), (1, 2, 3), (1, 2, 3))]
    form = draw(rare_forms("i2", "i3"))
    scale = among(((2, 1), (1, 1), (3, 1), (1, 2), (7, 3), (2, 3), (5, 1), (1, 4)))
    if form == "usual":
        shape = within(ne, 16, freedom)[::-1]
        scales = [draw(scale) for _ in range(2)]
        scales = [draw(among(((1, 1), (2, 1), (1, 2), (3, 2)))) for _ in range(2)] + scales
    else:
        scales = [(1, 1), (1, 1), *(draw(among(((2, 1), (1, 1), (1, 2)))) for _ in range(2))]
        many = as_many(draw(counts()), 4, freedom)
        shape = (*((many, 1) if form == "i3" else (1, many)), 1, draw(among((1, 2))))
    out = tuple(max(n * over // under, 1) for n, (over, under) in zip(shape, scales))
    return Problem({"mode": mode}, "f32", {"x": shape}, out)


def _faults(image: Image) -> Iterator[Hypothesis]:
    mode = str(image.case.params["mode"])
    kind = mode.partition("+")[0]
    for other in ("nearest", "bilinear", "bicubic"):
        if other != kind:
            yield Hypothesis(f"it is {other}", partial(image.with_params, mode=other))
    if mode != f"{kind}{_ALIGNED}":
        yield Hypothesis("the corners are aligned", partial(image.with_params, mode=f"{kind}{_ALIGNED}"))
    else:
        yield Hypothesis("the corners are not aligned", partial(image.with_params, mode=kind))
    if mode == "bilinear+antialias":
        yield Hypothesis("antialias is left out", partial(image.with_params, mode="bilinear"))
    if kind == "bicubic":
        says = "alpha is −0.5, not −0.75"
        yield Hypothesis(says, partial(image.with_expect, partial(_resized, alpha=-0.5)))
    sizes = zip(image.case.inputs["x"].shape[2:], image.case.outputs["out"].shape[2:])
    right = [_nearest(n, m, mode, EXACT)[0] for n, m in sizes]
    if kind == "nearest" and not all(map(np.array_equal, right, _exchanged(image.case))):
        says = "the scales of i0 and i1 are exchanged"
        yield Hypothesis(says, partial(image.with_expect, partial(_resized, turned=True)))


def _traits(case: Case) -> Mapping[str, bool]:
    """aligned: see `is_aligned`. planes: whether only the two inner sizes change. to_one_column: whether what is made,
    without aliases, is one column of another height."""
    x, out = case.inputs["x"].shape, case.outputs["out"].shape
    smooth = str(case.params["mode"]).endswith("+antialias")
    return {
        "aligned": is_aligned(case),
        "planes": x[:2] == out[:2],
        "to_one_column": smooth and out[3] == 1 and x[2] != out[2],
    }


OPS = (
    Op(
        name="upscale",
        summary="images in another size",
        inputs=("x",),
        params={"mode": str},
        dtypes=("f32",),
        problems=_problems,
        expect=expect,
        bound="what the weights may be off by, carried through, and γ_K·Σ|weight·x|",
        check=check,
        alone=lambda case: (0, 1) if _traits(case)["planes"] else "there are more planes, or fewer, than x has",
        traits=_traits,
        hypotheses=_faults,
    ),
)
