"""ROPE: pairs of channels turned by an angle that grows with the token's position, in all of ggml's modes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from opconform.cases.shapes import is_aligned
from opconform.harness.draw.strategies import among, as_many, composite, counts, rare_forms, within
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import DTYPES, F64, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.layouts import LayoutClass
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Index, Op, Problem

#: ggml's numbers of the modes (GGML_ROPE_TYPE_…).
NORMAL, NEOX, MROPE, VISION, IMROPE = 0, 2, 8, 24, 40
_MODES = {NORMAL: "normal", NEOX: "neox", MROPE: "mrope", VISION: "vision", IMROPE: "imrope"}
INPLACE = {"inplace", "loose_inplace"}  #: the traits of a case that works in place
_POWER_ULPS = 16  #: of pow (OpenCL C specification, "Relative error as ULPs")
_FAR = 2**31 - 1

Places = npt.NDArray[np.int64]


def _channels(params: Mapping[str, Param], pairs: int) -> tuple[Places, Places]:
    """For each pair of channels: which of the four positions of a token turns it, and the exponent of its frequency.

    The modes with sections count sectors modulo the sum of the sections. mrope: as many neighbours as a section has;
    imrope: each third one, as far as its section goes, the rest by the fourth position; vision: each section starts
    from the first frequency again.
    """
    i = np.arange(pairs, dtype=np.int64)
    mode = int(params["mode"])
    if mode in (NORMAL, NEOX):
        return np.zeros_like(i), i
    sections = [int(params[f"s{k}"]) for k in range(4)]
    sector = i % max(sum(sections), 1)
    if mode == IMROPE:
        turns = np.full(pairs, 3)
        for k in (0, 2, 1):
            turns[(sector % 3 == k) & (sector < 3 * sections[k])] = k
        return turns, i
    starts = np.cumsum([0, *sections[:3]])
    turns = np.searchsorted(starts[1:], sector, side="right")
    return turns, sector - starts[turns] if mode == VISION else i


def _corrected(params: Mapping[str, Param]) -> tuple[float, float, bool]:
    """Between which pairs YaRN goes over from the one frequency to the other (Peng et al. 2023; ggml's
    ggml_rope_yarn_corr_dims), and whether float32 may put them elsewhere, where they are near whole numbers."""
    n, base = int(params["n_dims"]), float(params["freq_base"])
    ends, near = [], False
    for name, rounded in (("beta_fast", math.floor), ("beta_slow", math.ceil)):
        turns = float(params[name]) * 2 * math.pi
        place = n * math.log(int(params["n_ctx_orig"]) / turns) / (2 * math.log(base)) if turns else math.inf
        if math.isinf(place):
            return 0.0, 0.0, True
        near = near or abs(place - round(place)) < 1e-3
        ends.append(float(rounded(place)))
    return max(0.0, ends[0]), min(n - 1.0, ends[1]), near


def angles(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: Mapping[str, Any]) -> tuple[F64, F64]:
    """The angle of each token and pair, and how far a kernel's may be off: [tokens, pairs].

    θ = position · base^(−2e/n) / factor, e the exponent of the pair. The frequency may come from e products or from a
    power: each of e steps brings the error of base^(−2/n), a power (16 ulps) of a rounded exponent, and a rounding.
    With YaRN θ = s·θ·(1 − mix) + θ·mix, mix = ramp · ext_factor: a ramp is off by 3u·|y| + 2u. Where cos and sin are
    promised within ±π only (`sin_within_pi`), kernels rely on what hardware does, a product with 1/2π: |θ|·2u more.
    """
    params = {**case.params, **wrong}
    x, n = case.inputs["x"], int(params["n_dims"])
    tokens, pairs = x.shape[1], n if int(params["mode"]) == VISION else n // 2
    turns, exponents = _channels(params, pairs)
    positions = raw["pos"].view(np.int32).astype(np.float64).reshape(-1, tokens)
    base, scale, ext = (float(params[name]) for name in ("freq_base", "freq_scale", "ext_factor"))
    u, power = numerics.u, numerics.ulps(_POWER_ULPS)
    theta = positions[turns].T * base ** (-2.0 * exponents / n)
    step = power + u * (1 + 2 * math.log(max(base, 1.0)) / n)
    relative = exponents * (step + u) + power + 4 * u + 2 * u * exponents * 2 / n * math.log(max(base, 1.0))
    if "factors" in case.inputs and not wrong.get("unfactored"):
        factors = case.inputs["factors"].type.decode(raw["factors"]).reshape(-1)[:pairs]
        theta, relative = theta / factors, relative + numerics.division_roundings * u
    size, found = np.abs(theta * scale) * (relative + 2 * u), theta * scale
    if ext:
        low, high, near = _corrected(params)
        y = (np.arange(pairs) - low) / max(0.001, high - low)
        mix = (1 - np.clip(y, 0.0, 1.0)) * ext
        found = theta * scale * (1 - mix) + theta * mix
        parts = np.abs(theta * scale * (1 - mix)) + np.abs(theta * mix)
        size = parts * (relative + 4 * u) + (np.abs(theta * scale) + np.abs(theta)) * (3 * u * np.abs(y) + 2 * u) * abs(
            ext
        )
        if near:
            size = np.full(size.shape, np.inf)
    if numerics.sin_within_pi:
        size = size + 2 * u * np.abs(found)
    return found, size


def _waves(theta: F64, off: F64, like: Approx, scale: F64) -> tuple[Approx, Approx]:
    """cos and sin of the angles, times `scale`, which comes from a logarithm: off by 8u."""
    numerics = like.numerics
    made = []
    for function in (np.cos, np.sin):
        value = function(theta)
        step = np.minimum(off, 2.0) + np.maximum(numerics.ulps(numerics.sin_ulps), numerics.sin_absolute)
        step = step * np.abs(scale) + np.abs(value * scale) * 9 * numerics.u
        step = np.where(np.isinf(off), np.nan, step)
        value = value * scale
        made.append(Approx(value, value - step, value + step, numerics))
    return made[0], made[1]


def back(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """ROPE by the negative angle, with the same magnitude: the transpose of a rotation (`expect` has the bound)."""
    return _turned(case, raw, numerics, {})


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """Pairs (x, y) become (x·cos θ − y·sin θ, x·sin θ + y·cos θ), times a magnitude; other channels keep their bits.

    Pairs are neighbours (normal), or n_dims/2 apart (neox, mrope, imrope), or n_dims apart, over all channels (vision).
    The angles' errors (`angles`) move cos and sin by as much; the rest is the rounding of each step.
    """
    return _turned(case, raw, numerics, {})


def _turned(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: Mapping[str, Any]) -> Expected:
    layout = case.inputs["x"]
    found = turned(case, Approx.of(layout.type.decode(raw["x"]), layout.type, numerics), raw, wrong)
    exact = np.ones(layout.shape, dtype=bool)
    exact[..., np.concatenate(found.places)] = False
    whole = found.all.stored(layout.type, layout.shape)
    kept = np.zeros_like(raw["x"]) if wrong.get("cleared") else raw["x"]
    value = np.where(exact, layout.type.decode(kept), whole.value)
    return Expected(value, np.where(exact, 0.0, whole.bound), exact=exact, bits=kept)


@dataclass(frozen=True)
class Turned:
    """All channels, and which of them have been turned: the first and the second ones of the pairs."""

    all: Approx
    places: tuple[Places, Places]


def turned(case: Case, it: Approx, raw: Mapping[str, Raw], wrong: Mapping[str, Any]) -> Turned:
    """`it` as ROPE turns it, with the parameters of `case` but for what is `wrong`."""
    params, numerics = {**case.params, **wrong}, it.numerics
    theta, off = angles(case, raw, numerics, wrong)
    magnitude = float(params["attn_factor"])
    if float(params["ext_factor"]):
        magnitude *= 1 + 0.1 * math.log(1 / float(params["freq_scale"]))
    first, second = _pairs(params, theta.shape[1])
    x, y = (it.at(place) for place in (first, second))
    cos, sin = _waves(theta[None, :, None], off[None, :, None], x, np.asarray(magnitude))
    if bool(wrong.get("backwards")) != (case.op == "rope_back"):
        sin = -sin
    return Turned(it.replaced(first, x * cos - y * sin).replaced(second, x * sin + y * cos), (first, second))


def _pairs(params: Mapping[str, Param], pairs: int) -> tuple[Places, Places]:
    """The channels of each pair."""
    i, mode = np.arange(pairs, dtype=np.int64), int(params["mode"])
    return (2 * i, 2 * i + 1) if mode == NORMAL else (i, i + pairs)


def _geometry(params: Mapping[str, Param]) -> list[list[int]]:
    """What a mode is about, apart from vision's: which channels are a pair, which position turns it and how fast. Of
    few pairs several modes make the same."""
    pairs = int(params["n_dims"]) // 2
    return [places.tolist() for places in (*_channels(params, pairs), *_pairs(params, pairs))]


def check(case: Case) -> None:
    """Raises `CaseError` for parameters and shapes that do not fit together."""
    params, x, pos = case.params, case.inputs["x"].shape, case.inputs["pos"].shape
    n, mode = int(params["n_dims"]), int(params["mode"])
    if mode not in _MODES:
        raise CaseError(f"mode is {mode}; it must be one of {', '.join(map(str, _MODES))}")
    if not 2 <= n <= x[3] or n % 2 or (mode == VISION and 2 * n != x[3]):
        raise CaseError(f"n_dims is {n}; it must be even, from 2 to {x[3]}, and half of that in the mode of vision")
    positions = x[1] * (1 if mode in (NORMAL, NEOX) else 4)
    if pos != (1, 1, 1, positions):
        raise CaseError(f"pos has shape {pos}; it must have {positions} positions")
    sections = [int(params[f"s{k}"]) for k in range(4)]
    if mode not in (NORMAL, NEOX) and (min(sections) < 0 or not 0 < sum(sections) <= x[3] or not sections[0]):
        raise CaseError(f"sections are {sections}; they must be from 0 on, the first above 0, {x[3]} together at most")
    if mode == VISION and any(sections[2:]) and sum(sections[:2]) < n:
        raise CaseError(f"sections are {sections}; the mode of vision has two: the others must be 0, or out of reach")
    if params["ext_factor"] and min(float(params[it]) for it in ("n_ctx_orig", "beta_fast", "beta_slow")) <= 0:
        raise CaseError("with ext_factor, n_ctx_orig, beta_fast and beta_slow must be above 0")
    pairs = n if mode == VISION else n // 2  # a factor for each pair of channels that turn
    if "factors" in case.inputs and (case.inputs["factors"].shape[3] < pairs or case.inputs["factors"].shape[2] != 1):
        raise CaseError(f"factors have shape {case.inputs['factors'].shape}; there must be {pairs} at least")
    for name, least in (
        ("freq_base", 1.0),
        ("freq_scale", 1e-6),
        ("n_ctx_orig", 0),
        ("beta_fast", 0),
        ("beta_slow", 0),
    ):
        if not least <= float(params[name]) <= 1e12:
            raise CaseError(f"{name} is {params[name]}; it must be from {least:g} to 1e12")
    if case.outputs["out"].shape != x:
        raise CaseError(f"out has shape {case.outputs['out'].shape}; it must be that of x, {x}")


def traits(case: Case) -> dict[str, Any]:
    """factored: whether there are frequency factors. extended: whether YaRN is on. whole: whether all channels turn.
    one_sequence: whether ne3 is 1. loose_inplace: whether it works in place on rows that do not stand side by side."""
    return {
        "aligned": is_aligned(case),
        "factored": "factors" in case.inputs,
        "extended": bool(case.params["ext_factor"]),
        "whole": int(case.params["n_dims"]) == case.inputs["x"].shape[3],
        "one_sequence": case.inputs["x"].shape[0] == 1,
        "inplace": case.inplace is not None,
        "loose_inplace": case.inplace is not None and case.inputs["x"].kind > LayoutClass.CONTIGUOUS,
    }


@composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Heads of up to 256 channels in every mode, now and then many heads, tokens or sequences of few channels; shrinks
    to one pair of one token."""
    dtype = draw(among(freedom.choices("dtype", ("f32", "f16"))))
    mode = draw(among(freedom.choices("mode", tuple(_MODES))))
    batches = (1, 2, 3) if freedom.choices("one_sequence", (False,)) else (1,)
    form = draw(rare_forms("heads", "tokens", *("batch",) * (len(batches) > 1)))
    half = draw(among((1, 2, 3, 4, 8, 16, 20, 32, 40, 64) if form == "usual" else (1, 2)))
    n, width = 2 * half, 2 * half
    if mode == VISION:
        width = 2 * n
    elif draw(among(freedom.choices("whole", (True, False)))) is False:
        width = n + 2 * draw(among((1, 3, 16)))
    if form == "usual":
        heads, tokens, batch = (draw(among(sizes)) for sizes in ((1, 2, 3, 8, 33), (1, 2, 3, 7, 32), batches))
        shape = within([width, heads, tokens, batch], DTYPES[dtype].itemsize, freedom)[::-1]
    else:
        many = as_many(draw(counts()), max(width, 4), freedom)  # or four positions each
        shape = (*(many if form == name else 1 for name in ("batch", "tokens", "heads")), width)
    if shape[3] != width:
        shape = (*shape[:3], width)
    sections = [0, 0, 0, 0]
    if mode not in (NORMAL, NEOX):
        pairs = half if mode != VISION else n
        first = draw(among(sorted({1, max(pairs // 4, 1), max(pairs // 2, 1), pairs})))
        second = min(draw(among((1, 2, 8, 24))), pairs - first)
        sections = [first, second, 0 if mode == VISION else pairs - first - second, 0]
        if mode == IMROPE and pairs >= 3:
            sections = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3, 0]
    extended = draw(among(freedom.choices("extended", (False, False, True))))
    params: dict[str, Param] = {
        "n_dims": n,
        "mode": mode,
        "n_ctx_orig": 4096 if extended else draw(among((0, 4096))),
        "freq_base": draw(among((10000.0, 500000.0, 1000000.0, 100.0))),
        "freq_scale": draw(among((1.0, 0.25, 0.5))),
        "ext_factor": draw(among((1.0, 0.5))) if extended else 0.0,
        "attn_factor": draw(among((1.0, 0.5, 1.25))),
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        **{f"s{k}": size for k, size in enumerate(sections)},
    }
    shapes = {"x": shape, "pos": (1, 1, 1, shape[1] * (1 if mode in (NORMAL, NEOX) else 4))}
    if draw(among(freedom.choices("factored", (False, False, True)))):
        shapes["factors"] = (1, 1, 1, n if mode == VISION else half)
    inplace = "x" if draw(among(freedom.choices("inplace", (False, False, True)))) else None
    kinds = {name: "i32" if name == "pos" else "f32" for name in shapes if name != "x"}
    return Problem(params, dtype, shapes, shape, inplace, dtypes=kinds)


def place(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """Positions as models have them: one after another from some place on, or any; and factors from 1 to 8."""
    shape = values["pos"].shape
    start = rng.choice((0, 0, 1, 100, 4095, 40000))
    form = rng.integers(0, 3)
    if form < 2:
        values["pos"][...] = (start + np.arange(shape[-1]) // (1 if form == 0 else 2)).reshape(shape)
    else:
        values["pos"][...] = rng.integers(0, 8192, shape)
    if "factors" in values:
        values["factors"][...] = np.exp2(rng.uniform(0, 3, values["factors"].shape))


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Other modes, parameters left out, other positions."""
    params = image.case.params
    for mode, name in _MODES.items():
        other = {"mode": mode}
        same_count = (mode in (NORMAL, NEOX)) == (int(params["mode"]) in (NORMAL, NEOX))
        if VISION not in (mode, params["mode"]) and same_count and _geometry({**params, **other}) != _geometry(params):
            yield Hypothesis(
                f"the pairs or their angles are those of mode {name}", partial(image.with_expect, _otherwise(other))
            )
    for name, neutral, says in (
        ("freq_scale", 1.0, "freq_scale is left out"),
        ("ext_factor", 0.0, "ext_factor is left out"),
        ("attn_factor", 1.0, "attn_factor is left out"),
        ("freq_base", 10000.0, "freq_base is taken for 10000"),
    ):
        if params[name] != neutral:
            yield Hypothesis(says, partial(image.with_expect, _otherwise({name: neutral})))
    yield Hypothesis("the factors are left out", partial(image.with_expect, _otherwise({"unfactored": True})))
    way = "forwards" if image.case.op == "rope_back" else "backwards"
    says = f"pairs are turned {way}: the sine has the wrong sign"
    yield Hypothesis(says, partial(image.with_expect, _otherwise({"backwards": True})))
    if int(params["mode"]) != VISION and int(params["n_dims"]) < image.case.inputs["x"].shape[3]:
        says = "the channels that are not turned are set to 0, not copied"
        yield Hypothesis(says, partial(image.with_expect, _otherwise({"cleared": True})))
    pos = image.raw["pos"]
    first = np.broadcast_to(pos[..., :1], pos.shape)
    yield Hypothesis("every token has the first one's position", partial(image.with_inputs, pos=first))
    in_order = np.arange(pos.size, dtype=pos.dtype).reshape(pos.shape)
    yield Hypothesis("positions are ignored: tokens count from 0", partial(image.with_inputs, pos=in_order))
    if image.case.inputs["x"].shape[0] > 1:
        says = "only the first sequence has its positions: those of the others are taken for 0"
        yield Hypothesis(says, partial(image.with_expect, _first_sequence))


def _otherwise(wrong: Mapping[str, Any]) -> Expect:
    return lambda case, raw, numerics: _turned(case, raw, numerics, wrong)


def _first_sequence(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    first, still = (_turned(case, {**raw, "pos": pos}, numerics, {}) for pos in (raw["pos"], np.zeros_like(raw["pos"])))
    found = {name: getattr(still, name).copy() for name in ("value", "bound", "exact")}
    for name, its in found.items():
        its[:1] = getattr(first, name)[:1]
    return replace(still, **found)


_FLOATS = ("freq_base", "freq_scale", "ext_factor", "attn_factor", "beta_fast", "beta_slow")
OPS = tuple(
    Op(
        name=name,
        summary=summary,
        inputs=("x", "pos", "factors"),
        params={
            **dict.fromkeys(("n_dims", "mode", "n_ctx_orig"), int),
            **dict.fromkeys(_FLOATS, float),
            **{f"s{k}": int for k in range(4)},
        },
        dtypes=("f32", "f16"),
        argument_dtypes={"pos": ("i32",), "factors": ("f32",)},
        problems=problems,
        expect=reference,
        bound="(|x| + |y|)·(δθ + the error of cos and sin) and the rounding of each step; the bits of other channels",
        check=check,
        traits=traits,
        hypotheses=hypotheses,
        indices={"pos": Index(below=_FAR)},
        composite=Composite(
            optional=("factors",),
            recipes=("small_int", "normal", "signed_zero", "denormal", "wide"),
            shape_values=place,
        ),
    )
    for name, reference, summary in (
        ("rope", expect, "pairs of channels turned by position · base^(−2i/n)"),
        ("rope_back", back, "pairs of channels turned back by position · base^(−2i/n): the gradient of x through ROPE"),
    )
)
