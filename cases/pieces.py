"""Pieces: neighbours in the graphs of models that ggml's Vulkan or CUDA backend computes in one kernel.

Which they are: src/ggml-vulkan/ggml-vulkan.cpp (ggml_vk_can_fuse and what it stands beside) and
src/ggml-cuda/ggml-cuda.cu (ggml_cuda_can_fuse, ggml_cuda_try_fuse).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from operator import mul
from typing import Any

from opconform.cases.activations import gelu, relu, sigmoid, silu, softplus
from opconform.cases.families import choice
from opconform.cases.families.chains import piece
from opconform.cases.rows import EPS, standardised
from opconform.harness.model.approx import Approx
from opconform.harness.model.op import Op

Params = Mapping[str, Any]
_ADDENDS = tuple("bcdefghijkl")  #: one more addition than ggml-vulkan takes at once (MAX_FUSED_ADDS, 9), and one
_FACTORS = tuple("bcdefghij")  #: one more multiplication than ggml-cuda takes at once (8)


def _normed(x: Approx, p: Params) -> Approx:
    """x / √(mean of x² + eps)."""
    return x.over_root(_square(x, p))


def _square(x: Approx, p: Params) -> Approx:
    return (x * x).mean() + float(p["eps"])


def weighed(x: Approx, w: Approx, p: Params) -> tuple[Approx, Approx]:
    """x normalised, and that times w. A fused kernel multiplies three factors, in any order."""
    normed = _normed(x, p)
    return normed, (normed * w).either(x.times(_square(x, p).rsqrt(), w))


def _rms_norm_mul_add(x: Approx, w: Approx, b: Approx, p: Params) -> tuple[Approx, ...]:
    normed, product = weighed(x, w, p)
    return normed, product, product + b


def _rms_norm_mul_add_mul(x: Approx, w: Approx, b: Approx, s: Approx, p: Params) -> tuple[Approx, ...]:
    *before, added = _rms_norm_mul_add(x, w, b, p)
    return *before, added, added * s


def _add_rms_norm_mul(a: Approx, b: Approx, w: Approx, p: Params) -> tuple[Approx, ...]:
    added = a + b
    return added, *weighed(added, w, p)


def _norm_mul_add(x: Approx, w: Approx, b: Approx, p: Params) -> tuple[Approx, ...]:
    """The norm, that times w, and b. A fused kernel multiplies three factors, in any order."""
    variance = x.variance()
    normed, square = standardised(x, variance, p), variance + float(p["eps"])
    product = (normed * w).either((x - x.mean()).times(square.rsqrt(), w))
    return normed, product, product + b


def _adds(*given: Any) -> tuple[Approx, ...]:
    """Sums of a and b, of those and c, and so on, each in any order."""
    terms = given[:-1]
    return tuple(Approx.total(terms[: count + 1]) for count in range(1, len(terms)))


def _muls(*given: Any) -> tuple[Approx, ...]:
    """The products of a and b, of that and c, and so on."""
    first, *others = given[:-1]
    return tuple(accumulate(others, mul, initial=first))[1:]


def _softcap(x: Approx, p: Params) -> tuple[Approx, ...]:
    scaled = x * float(p["down"])
    bent = scaled.tanh()
    return scaled, bent, bent * float(p["up"])


def _snake(x: Approx, a: Approx, b: Approx, p: Params) -> tuple[Approx, ...]:
    turned = x * a
    waved = turned.sin()
    squared = waved * waved
    scaled = squared * b
    return turned, waved, squared, scaled, x + scaled.either(waved.times(waved, b))


def _gated(name: str, formula: Callable[[Approx], Approx]) -> Op:
    """An activation of one tensor times another, as gates are computed that are no GLU."""
    return piece(
        f"{name}_mul",
        f"{name}(x) · y",
        lambda x, y, p: (formula(x), formula(x) * y),
        inputs=("x", "y"),
        steps=("active",),
        mistakes={
            f"{name} is taken of y, not of x": lambda x, y, p: x * formula(y),
            f"{name} is taken of the product": lambda x, y, p: formula(x * y),
            "x is multiplied as it is": lambda x, y, p: x * y,
        },
    )


OPS = (
    piece(
        "rms_norm_mul",
        "x / √(mean of x² + eps) · w, row by row",
        weighed,
        inputs=("x", "w"),
        params={"eps": EPS},
        steps=("normed",),
        along_rows=True,
        mistakes={
            "the sum of the squares is taken, not their mean": lambda x, w, p: (
                x.over_root((x * x).sum() + float(p["eps"])) * w
            ),
            "the norm is that of x·w": lambda x, w, p: _normed(x * w, p),
            "w is added": lambda x, w, p: _normed(x, p) + w,
        },
    ),
    piece(
        "rms_norm_mul_add",
        "x / √(mean of x² + eps) · w + b, row by row",
        _rms_norm_mul_add,
        inputs=("x", "w", "b"),
        params={"eps": EPS},
        steps=("normed", "weighed"),
        along_rows=True,
        mistakes={
            "b is added before w is multiplied": lambda x, w, b, p: (_normed(x, p) + b) * w,
            "b is left out": lambda x, w, b, p: _normed(x, p) * w,
            "w and b are exchanged": lambda x, w, b, p: _normed(x, p) * b + w,
        },
    ),
    piece(
        "rms_norm_mul_add_mul",
        "(x / √(mean of x² + eps) · w + b) · s, row by row",
        _rms_norm_mul_add_mul,
        inputs=("x", "w", "b", "s"),
        params={"eps": EPS},
        steps=("normed", "weighed", "added"),
        along_rows=True,
        mistakes={
            "s is left out": lambda x, w, b, s, p: _normed(x, p) * w + b,
            "b is added last": lambda x, w, b, s, p: _normed(x, p) * w * s + b,
        },
    ),
    piece(
        "add_rms_norm_mul",
        "y / √(mean of y² + eps) · w of y = a + b, row by row",
        _add_rms_norm_mul,
        inputs=("a", "b", "w"),
        params={"eps": EPS},
        steps=("added", "normed"),
        along_rows=True,
        mistakes={
            "the norm is that of a alone": lambda a, b, w, p: (a + b).over_root(_square(a, p)) * w,
            "b is left out": lambda a, b, w, p: _normed(a, p) * w,
        },
    ),
    piece(
        "norm_mul_add",
        "(x − mean) / √(variance + eps) · w + b, row by row",
        _norm_mul_add,
        inputs=("x", "w", "b"),
        params={"eps": EPS},
        steps=("normed", "weighed"),
        along_rows=True,
        mistakes={
            "the mean is not subtracted from x": lambda x, w, b, p: x.over_root(x.variance() + float(p["eps"])) * w + b,
            "b is left out": lambda x, w, b, p: _norm_mul_add(x, w, b, p)[1],
            "w and b are exchanged": lambda x, w, b, p: _norm_mul_add(x, b, w, p)[-1],
        },
    ),
    piece(
        "adds",
        "a + b + c + …, up to eleven additions",
        _adds,
        inputs=("a", *_ADDENDS),
        optional=_ADDENDS[2:],
        steps=("added",),
        mistakes={
            "the last addend is left out": lambda *given: _adds(*given)[-2],
            "the last addend is subtracted": lambda *given: _adds(*given)[-2] - given[-2],
            "the second addend is left out": lambda a, b, *others: _adds(a, *others)[-1],
        },
        bound="γ_n·Σ|addend| of n additions",
    ),
    piece(
        "muls",
        "a · b · c · …, up to nine multiplications",
        _muls,
        inputs=("a", *_FACTORS),
        optional=_FACTORS[2:],
        steps=("multiplied",),
        mistakes={
            "the last factor is left out": lambda *given: (*given[:1], *_muls(*given))[-2],
            "the last factor is added": lambda *given: (*given[:1], *_muls(*given))[-2] + given[-2],
            "the second factor is left out": lambda a, b, *others: _muls(a, *others)[-1],
        },
    ),
    piece(
        "softcap",
        "up · tanh(down · x)",
        _softcap,
        params={"down": choice(0.5, 1.0 / 30, 0.02, without=1.0), "up": choice(2.0, 30.0, 50.0, without=1.0)},
        steps=("scaled", "bent"),
        turned=False,
        mistakes={
            "tanh is left out": lambda x, p: x * float(p["down"]) * float(p["up"]),
            "down and up are exchanged": lambda x, p: _softcap(x, {"down": p["up"], "up": p["down"]})[-1],
        },
    ),
    *(
        _gated(name, formula)
        for name, formula in (("silu", silu), ("sigmoid", sigmoid), ("softplus", softplus), ("gelu", gelu))
    ),
    piece(
        "relu_sqr",
        "max(x, 0)²",
        lambda x, p: (relu(x), relu(x) * relu(x)),
        steps=("active",),
        turned=False,
        mistakes={"x is squared below 0 too": lambda x, p: x * x, "the square is left out": lambda x, p: relu(x)},
    ),
    piece(
        "snake",
        "x + sin²(a·x) · b",
        _snake,
        inputs=("x", "a", "b"),
        steps=("turned", "waved", "squared", "scaled"),
        mistakes={
            "the sine is not squared": lambda x, a, b, p: x + (x * a).sin() * b,
            "a and b are exchanged": lambda x, a, b, p: _snake(x, b, a, p)[-1],
            "x is not added": lambda x, a, b, p: _snake(x, a, b, p)[3],
        },
    ),
    piece(
        "sqr_sum_rows",
        "the sum of the squares of each row",
        lambda x, p: (x * x, (x * x).sum()),
        steps=("squared",),
        turned=False,
        along_rows=True,
        to_one=True,
        mistakes={"the squares are left out": lambda x, p: x.sum(), "the mean is taken": lambda x, p: (x * x).mean()},
    ),
)
