"""L2_NORM: rows divided by their Euclidean norm, as the delta rule wants its q and k."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from hypothesis import strategies as st

from opconform.cases.shapes import check_out, is_aligned, rows
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F32, F64, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem

MODES = ("max", "add")
_EPS = (1e-6, 1e-12, 10.0, 1.0, 0.0)
_SMALLEST, _LARGEST = 1e-30, 1e30  #: of eps: its reciprocal is a normal float32 too


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = x / D over the innermost axis: D = max(‖x‖, eps) (ggml) or D = √(Σx² + eps) (flash-linear-attention).

    The sum of n squares has only positive terms, each of which goes through n roundings at most, one product and n − 1
    additions in any order (Higham 2002, section 3.1 and eq. 4.4); that of eps adds one. A root halves the relative
    error of what it is taken of. Then come the root's own error, ρ_√ roundings, that of the division, ρ_÷, and one more
    for eps itself or for a product with 1/D. CUDA, OpenCL and Vulkan also promise an inverse root within 2 ulp, which
    may stand for root and division: ρ is the larger of ρ_√ + ρ_÷ and that. Together the relative error is at most γ_k,
    k = (n + 1)/2 + ρ + 1 (lemma 3.1, for k ≥ 1 need not be a whole number: (1 − u)^k ≥ 1 − ku, Bernoulli).

    Each product and each addition may underflow by η besides, so that the sum lies within 2nη; the bound is the
    distance to the farther end of the interval that this leaves for x / D. The quotient may underflow too, and a
    flushed x lose 2^-126. Where Σx² passes the largest float32 a sum of squares overflows, though x / D need not:
    nothing is demanded there, nor where D may be 0.
    """
    return _normalised(case, F32.decode(raw["x"]), numerics)


def _normalised(case: Case, x: F64, numerics: Numerics) -> Expected:
    n = x.shape[-1]
    squares = (x * x).sum(-1, keepdims=True)
    root = max(2 * numerics.sqrt_ulps * numerics.roundoff / numerics.u, 1.0) + numerics.division_roundings
    inverse_root = 2 * 2 * numerics.roundoff / numerics.u
    relative = numerics.gamma((n + 1) / 2 + max(root, inverse_root) + 1 + 2 * numerics.conversions)
    lost = 2 * n * numerics.underflow
    size = np.abs(x)
    value = x / _divisor(case, squares)
    least = size / _divisor(case, squares + lost) * (1 - relative)
    most = size / _divisor(case, np.maximum(squares - lost, 0)) * (1 + relative)
    bound = np.maximum(most - np.abs(value), np.abs(value) - least) + numerics.division_underflow
    if numerics.flushes_denormals:
        bound = bound + numerics.underflow / _divisor(case, np.maximum(squares - lost, 0))
    overflows = squares * (1 + numerics.gamma(float(n + 1))) + lost > F32.largest
    return Expected(value, np.where(overflows | np.isnan(bound), np.inf, bound))


def _divisor(case: Case, squares: F64) -> F64:
    """D for rows with these sums of squares."""
    eps = float(case.params["eps"])
    return np.maximum(np.sqrt(squares), eps) if case.params["eps_mode"] == "max" else np.sqrt(squares + eps)


def check(case: Case) -> None:
    """Raises `CaseError` for an eps that is negative or has no float32 reciprocal, or a mode that does not exist."""
    eps, mode = float(case.params["eps"]), case.params["eps_mode"]
    if not (eps == 0 or _SMALLEST <= eps <= _LARGEST):
        raise CaseError(f"eps is {eps}; it must be 0 or from {_SMALLEST:g} to {_LARGEST:g}")
    if mode not in MODES:
        raise CaseError(f"eps_mode is {mode!r}; it must be one of {', '.join(MODES)}")
    check_out(case, case.inputs["x"].shape)


@st.composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Rows up to 1025 long, with an eps below the norms or above them; shrinks to one element and eps = 1e-6."""
    mode = draw(st.sampled_from(freedom.choices("eps_mode", MODES)))
    eps = draw(st.sampled_from(freedom.choices("eps", _EPS)))
    shape = draw(rows(freedom, 4))
    return Problem({"eps": eps, "eps_mode": mode}, "f32", {"x": shape}, shape)


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Faults of L2_NORM's own: eps in the wrong place or left out, another norm."""
    mode, eps = image.case.params["eps_mode"], float(image.case.params["eps"])
    if mode == "max":
        says = "eps is compared with the sum of squares, not with its root (x / √max(Σx², eps))"
        yield Hypothesis(says, partial(image.with_params, eps=float(np.sqrt(eps))))
        says = "eps is added to the sum of squares, not a lower limit of the norm"
        yield Hypothesis(says, partial(image.with_params, eps_mode="add"))
    else:
        says = "eps is a lower limit of the norm, not added to the sum of squares"
        yield Hypothesis(says, partial(image.with_params, eps_mode="max"))
    if eps:
        yield Hypothesis("eps is left out", partial(image.with_params, eps=0.0))
    n = image.case.inputs["x"].shape[-1]
    if n > 1:
        yield Hypothesis("the mean of the squares is taken, not their sum (RMS_NORM)", partial(image.with_expect, _rms))
    yield Hypothesis("x is copied, not divided", partial(image.with_expect, _copied))


def _rms(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """x over the divisor that Σx²/n gives: √n·y / D for y = x / √n."""
    root = np.sqrt(case.inputs["x"].shape[-1])
    found = _normalised(case, F32.decode(raw["x"]) / root, numerics)
    return Expected(found.value * root, (found.bound + 2 * numerics.u * np.abs(found.value)) * root)


def _copied(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    x = F32.decode(raw["x"])
    return Expected(x, np.full(x.shape, numerics.underflow if numerics.flushes_denormals else 0.0))


OP = Op(
    name="l2_norm",
    summary="x / max(‖x‖, eps) or x / √(Σx² + eps), row by row",
    inputs=("x",),
    params={"eps": float, "eps_mode": str},
    dtypes=("f32",),
    problems=problems,
    expect=expect,
    bound="γ_k·|out| + underflow, k = (n+1)/2 + ρ + 1, ρ for root and division",
    check=check,
    traits=lambda case: {"aligned": is_aligned(case)},
    alone=lambda case: True,
    hypotheses=hypotheses,
)
