"""Ops of a row: sums and norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opconform.cases.families import choice, row_op
from opconform.harness.model.approx import Approx
from opconform.harness.model.dtypes import F16


def _over_norm(x: Approx, squares: Approx, p: dict[str, Any]) -> Approx:
    """x / max(√squares, eps) or x / √(squares + eps)."""
    return x.over_norm(_limited(squares, p))


def _limited(squares: Approx, p: dict[str, Any]) -> Approx:
    """What the norm is the root of: max(squares, eps²) or squares + eps. Some kernels square eps (CUDA's rsqrt of
    max(Σx², eps²))."""
    eps = float(p["eps"])
    return squares + eps if p["eps_mode"] == "add" else squares.maximum(squares.constant(eps**2, roundings=3))


def over_half(x: Approx, squares: Approx) -> Approx:
    """x / √squares as a wrong kernel has it that stores the reciprocal of the root in f16 (`HALVED`)."""
    return x * squares.rsqrt().through(F16)


def standardised(x: Approx, variance: Approx, p: Mapping[str, Any]) -> Approx:
    """(x − mean) / √(variance + eps). Some kernels add −mean·scale to x·scale instead of scaling x − mean."""
    square, mean = variance + float(p["eps"]), x.mean()
    return (x - mean).over_root(square).besides(x.over_root(square), mean.over_root(square))


def _norm_back(dz: Approx, x: Approx, eps: float) -> Approx:
    """(dz − x·Σx·dz / (Σx² + n·eps)) / √(Σx²/n + eps). Some kernels divide the means, and some scale dz and x apart."""
    squares, along, n = (x * x).sum(), (x * dz).sum(), float(max(x.value.shape[-1], 1))
    mean = (x * x).mean() + eps
    ratio = (along / (squares + squares.constant(eps * n, roundings=2))).either((x * dz).mean() / mean)
    taken = x * ratio
    return (dz - taken).over_root(mean).besides(dz.over_root(mean), taken.over_root(mean))


def _over_less(x: Approx) -> float:
    """n / (n − 1)."""
    n = int(x.value.shape[-1])
    return n / max(n - 1, 1)


#: What a hint says of `over_half`.
HALVED = "1 / norm is rounded to f16"
#: Of a norm.
EPS = choice(1e-6, 1e-5, 1e-12, 1.0, 0.0, without=0.0, least=0.0)

OPS = (
    row_op(
        "sum_rows",
        "the sum of each row",
        Approx.sum,
        to_one=True,
        mistakes={"the mean of each row is returned, not its sum": Approx.mean},
        bound="γ_{n−1}·Σ|x_j| over the n elements of the row",
    ),
    row_op(
        "mean",
        "the mean of each row",
        Approx.mean,
        to_one=True,
        mistakes={"the sum of each row is returned, not its mean": Approx.sum},
        bound="γ_n·Σ|x_j|/n over the n elements of the row",
    ),
    row_op(
        "l2_norm",
        "x / max(‖x‖, eps) or x / √(Σx² + eps), row by row",
        lambda x, p: _over_norm(x, (x * x).sum(), p),
        params={
            "eps_mode": choice("max", "add"),
            "eps": choice(1e-6, 1e-12, 10.0, 1.0, 0.0, without=0.0, least=0.0),
        },
        mistakes={
            "eps is compared with the sum of squares, not with its root (x / √max(Σx², eps))": lambda x, p: x.over_root(
                (x * x).sum().maximum(p["eps"])
            ),
            "eps is added to the sum of squares, not a lower limit of the norm": lambda x, p: _over_norm(
                x, (x * x).sum(), {**p, "eps_mode": "add"}
            ),
            "eps is a lower limit of the norm, not added to the sum of squares": lambda x, p: _over_norm(
                x, (x * x).sum(), {**p, "eps_mode": "max"}
            ),
            "the mean of the squares is taken, not their sum (RMS_NORM)": lambda x, p: _over_norm(x, (x * x).mean(), p),
            HALVED: lambda x, p: over_half(x, _limited((x * x).sum(), p)),
        },
        copied="divided",
        bound="γ_k·|out| + underflow, k = (n+1)/2 + ρ + 1, ρ for root and division",
    ),
    row_op(
        "rms_norm",
        "x / √(mean of x² + eps), row by row",
        lambda x, p: x.over_root((x * x).mean() + p["eps"]),
        params={"eps": EPS},
        mistakes={
            "the sum of the squares is taken, not their mean": lambda x, p: x.over_root((x * x).sum() + p["eps"]),
            "eps is added to the root, not under it": lambda x, p: x / ((x * x).mean().sqrt() + p["eps"]),
            HALVED: lambda x, p: over_half(x, (x * x).mean() + p["eps"]),
        },
        copied="normalised",
    ),
    row_op(
        "norm",
        "(x − mean) / √(variance + eps), row by row",
        lambda x, p: standardised(x, x.variance(), p),
        params={"eps": EPS},
        mistakes={
            "the mean is not subtracted from x": lambda x, p: x.over_root(x.variance() + p["eps"]),
            "the variance is taken over n − 1": lambda x, p: standardised(x, x.variance() * _over_less(x), p),
            "the standard deviation and eps are added: (x − mean) / (√variance + eps)": lambda x, p: (
                (x - x.mean()) / (x.variance().sqrt() + p["eps"])
            ),
            HALVED: lambda x, p: over_half(x - x.mean(), x.variance() + p["eps"]),
        },
        copied="normalised",
    ),
    row_op(
        "rms_norm_back",
        "(dz − x·Σx·dz / (Σx² + n·eps)) / √(Σx²/n + eps): the gradient of x through RMS_NORM, row by row",
        lambda dz, x, p: _norm_back(dz, x, float(p["eps"])),
        inputs=("dz", "x"),
        params={"eps": EPS},
        mistakes={
            "dz and x are exchanged": lambda dz, x, p: _norm_back(x, dz, float(p["eps"])),
            "the part along x is left out": lambda dz, x, p: dz.over_root((x * x).mean() + float(p["eps"])),
            "eps counts once, not n times, beside Σx²": lambda dz, x, p: (
                dz - x * ((x * dz).sum() / ((x * x).sum() + float(p["eps"])))
            ).over_root((x * x).mean() + float(p["eps"])),
        },
        copied="projected",
    ),
    row_op(
        "soft_max_back",
        "scale · y·(dy − Σ y·dy): the gradient of x through y = softmax(scale·x), row by row",
        lambda dy, y, p: (dy - (y * dy).sum()).times(y, y.constant(float(p["scale"]))),
        inputs=("dy", "y"),
        params={"scale": choice(1.0, 0.125, 2.0, 0.08838834764831845, without=1.0)},
        mistakes={
            "dy and y are exchanged": lambda dy, y, p: (y - (y * dy).sum()) * dy * float(p["scale"]),
            "Σ y·dy is left out": lambda dy, y, p: dy * y * float(p["scale"]),
            "the mean of y·dy is taken, not its sum": lambda dy, y, p: (dy - (y * dy).mean()) * y * float(p["scale"]),
        },
        copied="projected",
    ),
)
