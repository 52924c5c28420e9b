"""Ops of a row: SUM_ROWS, L2_NORM."""

from __future__ import annotations

from typing import Any

from opconform.cases.families import choice, row_op
from opconform.harness.model.approx import Approx


def _over_norm(x: Approx, squares: Approx, p: dict[str, Any]) -> Approx:
    """x / max(√squares, eps) or x / √(squares + eps). Some kernels square eps (CUDA's rsqrt of max(Σx², eps²))."""
    eps = float(p["eps"])
    if p["eps_mode"] == "add":
        return x * (squares + eps).rsqrt()
    return x * squares.maximum(x.constant(eps**2, roundings=3)).rsqrt()


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
        "l2_norm",
        "x / max(‖x‖, eps) or x / √(Σx² + eps), row by row",
        lambda x, p: _over_norm(x, (x * x).sum(), p),
        params={
            "eps": choice(1e-6, 1e-12, 10.0, 1.0, 0.0, without=0.0, least=0.0, most=1e30),
            "eps_mode": choice("max", "add"),
        },
        mistakes={
            "eps is compared with the sum of squares, not with its root (x / √max(Σx², eps))": lambda x, p: (
                x * (x * x).sum().maximum(p["eps"]).rsqrt()
            ),
            "eps is added to the sum of squares, not a lower limit of the norm": lambda x, p: _over_norm(
                x, (x * x).sum(), {**p, "eps_mode": "add"}
            ),
            "eps is a lower limit of the norm, not added to the sum of squares": lambda x, p: _over_norm(
                x, (x * x).sum(), {**p, "eps_mode": "max"}
            ),
            "the mean of the squares is taken, not their sum (RMS_NORM)": lambda x, p: _over_norm(x, (x * x).mean(), p),
        },
        copied="divided",
        bound="γ_k·|out| + underflow, k = (n+1)/2 + ρ + 1, ρ for root and division",
    ),
)
