"""SOLVE_TRI: triangular systems with many right-hand sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache, partial

import numpy as np
from hypothesis import strategies as st

from opconform.harness.draw.strategies import (
    EDGES,
    among,
    composite,
    counts,
    few,
    forms,
    inner_sizes,
    integers,
    lengths,
    outer_sizes,
    scales,
    tile_sizes,
    within,
)
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F32, F64, Raw
from opconform.harness.model.expected import Expected, Residual
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Op, Problem
from opconform.harness.model.work import bytes_of, everything_once

_FEW_ROWS = 4  #: of matrices that are multiplied column by column


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """A X = B (`left`) or X A = B for triangular A; the other triangle (and a unit diagonal) is never read.

    The value is the float64 substitution. What float32 cannot hold is left free: from the first row of a column whose
    solution, or a sum of products on the way to it, may pass the largest float32, nothing is demanded of that column.
    """
    a, b = _lower_left_form(case, raw)
    x = _substitute(a, b)
    magnitude = np.maximum(_product(np.abs(a), np.abs(x)), np.abs(x))
    too_large = np.maximum.accumulate(magnitude > F32.largest / 4, axis=-2)
    free = np.where(too_large, np.inf, 0.0)
    return Expected(_from_lower_left(case, x), _from_lower_left(case, free))


def judge(case: Case, raw: Mapping[str, Raw], expected: Expected, got: F64, numerics: Numerics) -> Residual:
    """The componentwise residual |B − A X̂| ≤ γ_{n+ρ}·|A||X̂| + underflow.

    Substitution in any order computes an X̂ with (A + ΔA) X̂ = B, |ΔA| ≤ γ_n |A| (Higham 2002, theorem 8.5). A division
    that the device does not round correctly, or a product with a reciprocal, is off by ρ·u, ρ ≥ 1: together γ_{n+ρ}
    (lemma 3.3). Each of a row's at most 2n + 1 operations may also underflow by η, in the division scaled by |a_ii|; a
    device that flushes may lose as much of every operand, scaled by what it is multiplied with.
    The residual itself is computed in float64, whose error is 2^-29 of the bound.

    The op demands substitution: by rows, columns or blocks, whose diagonal blocks are solved by substitution too. A
    device that inverts diagonal blocks and multiplies with the inverses declares it (`Numerics.inverted_blocks`);
    `_by_inverted_blocks` bounds what that costs. A full inverse is such a block of n rows.
    """
    a, b = _lower_left_form(case, raw)
    solution = _to_lower_left(case, got)
    x = np.where(np.isfinite(solution), solution, 0.0)
    n = a.shape[-1]
    size = np.abs(a)
    roundings = n + numerics.division_roundings + 2 * numerics.conversions
    bound = numerics.gamma(roundings) * _product(size, np.abs(x))
    diagonal = np.diagonal(size, axis1=-2, axis2=-1)[..., None]
    bound = bound + numerics.underflow * 2 * n + numerics.division_underflow * diagonal
    if numerics.flushes_denormals:
        operands = size.sum(axis=-1, keepdims=True) + np.abs(x).sum(axis=-2, keepdims=True) + 1
        bound = bound + numerics.underflow * operands
    if numerics.inverted_blocks:
        bound = bound + _by_inverted_blocks(a, x, numerics)
    error = _from_lower_left(case, np.where(np.isfinite(solution), np.abs(b - _product(a, x)), np.inf))
    bound = _from_lower_left(case, bound)
    free = np.isinf(expected.bound)
    if numerics.inverted_blocks:
        free |= ~np.isfinite(bound)
    return Residual(np.where(free, 0.0, error), np.where(free, np.inf, bound))


def _by_inverted_blocks(a: F64, x: F64, numerics: Numerics) -> F64:
    """What inverted diagonal blocks D of up to m rows add to the residual: 4 γ_{2m+ρ+2} |D||D^-1||D||X̂|.

    A block's rows of X̂ are Y R̂: R̂ is what the rows before leave of B, and Y the computed inverse. Inverses by
    substitution have D Y = I + E, |E| ≤ γ_{m+ρ}|D||Y|, by columns, or Y D = I + E, |E| ≤ γ_{m+ρ}|Y||D|, by rows (Higham
    2002, section 14.2: a method has the one or the other). The product is off by Δ, |Δ| ≤ γ_m |Y||R̂|. In the first
    case D X̂ − R̂ = E R̂ + D Δ is at most γ_{2m+ρ}|D||Y||R̂|; in the second one D X̂ − R̂ = D E D^-1 R̂ + D Δ is at most
    γ_{m+ρ}|D||Y||D||D^-1 R̂| + γ_m|D||Y||R̂|. With D^-1 R̂ = X̂ and |R̂| ≤ |D||X̂|, both up to terms of higher order,
    either is below γ_{2m+ρ}|D||Y||D||X̂|. |Y| ≤ |D^-1| / (1 − r), r = γ_{2m+ρ}‖|D||D^-1|‖_∞; where r ≤ 1/2, the factor
    4 covers this and the higher orders. Elsewhere nothing is demanded of the matrix.

    The inverse of a diagonal block is that block of A^-1. Wherever blocks begin, |D| and |D^-1| are within the parts of
    |A| and |A^-1| that lie less than m below the diagonal.
    """
    n, m = a.shape[-1], numerics.inverted_blocks
    near = np.tri(n, n, dtype=bool) & ~np.tri(n, n, -m, dtype=bool)
    with np.errstate(all="ignore"):
        inverse = _substitute(a, np.broadcast_to(np.eye(n), a.shape))
        block = np.where(near, np.abs(a), 0.0)
        both = block @ np.where(near, np.abs(inverse), 0.0)
        gamma = numerics.gamma(2 * min(m, n) + numerics.division_roundings + 2 + 2 * numerics.conversions)
        radius = gamma * both.sum(-1).max(-1, initial=0.0)[..., None, None]
        more = 4 * gamma * (both @ (block @ np.abs(x)))
        lost = 4 * numerics.underflow * (both + block).sum(-1, keepdims=True) * (1 + np.abs(x).sum(-2, keepdims=True))
        lost = lost + 4 * numerics.underflow * n * block.sum(-1, keepdims=True)
        found: F64 = np.where(radius <= 0.5, more + n * lost, np.inf)
    return found


def _lower_left_form(case: Case, raw: Mapping[str, Raw]) -> tuple[F64, F64]:
    """A and B of the equivalent system A X = B with A lower triangular, unread elements 0 and a unit diagonal 1."""
    a, b = F32.decode(raw["a"]), _to_lower_left(case, F32.decode(raw["b"]))
    a = np.where(_read(case), a, 0.0)
    if case.params["unit"]:
        a = a + np.eye(a.shape[-1])
    if not case.params["left"]:
        a = a.swapaxes(-1, -2)
    if _is_upper(case):
        a = a[..., ::-1, ::-1]
    return np.ascontiguousarray(a), b  # NumPy takes BLAS for products of what lies like that


def _is_upper(case: Case) -> bool:
    """Whether the left-sided form of the system is upper triangular: X A = B is Aᵀ Xᵀ = Bᵀ."""
    return bool(case.params["lower"]) != bool(case.params["left"])


def _to_lower_left(case: Case, b: F64) -> F64:
    if not case.params["left"]:
        b = b.swapaxes(-1, -2)
    return np.ascontiguousarray(b[..., ::-1, :] if _is_upper(case) else b)


def _from_lower_left(case: Case, x: F64) -> F64:
    if _is_upper(case):
        x = x[..., ::-1, :]
    return x if case.params["left"] else x.swapaxes(-1, -2)


def _read(case: Case) -> np.ndarray:
    """Which elements of A the op may read."""
    triangle = _triangle(case.inputs["a"].shape[-1], -1 if case.params["unit"] else 0)
    return triangle if case.params["lower"] else triangle.T


@lru_cache(maxsize=64)
def _triangle(n: int, below: int) -> np.ndarray:
    return np.tri(n, n, below, dtype=bool)


def _product(a: F64, x: F64) -> F64:
    """A X. NumPy takes longer for a product of two small matrices than for all of these in one go."""
    n = a.shape[-1]
    if not 0 < n <= _FEW_ROWS:
        return a @ x
    found: F64 = a[..., :1] * x[..., :1, :]
    for j in range(1, n):
        found += a[..., j : j + 1] * x[..., j : j + 1, :]
    return found


def _substitute(a: F64, b: F64) -> F64:
    x = np.zeros_like(b)
    for i in range(a.shape[-1]):
        known = _product(a[..., i : i + 1, :i], x[..., :i, :])[..., 0, :]
        x[..., i, :] = (b[..., i, :] - known) / a[..., i, i, None]
    return x


def shape_values(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """Make `a` a triangle that can be solved, and NaN where it must not be read.

    Off-diagonal elements are scaled by a power of two to at most 1/√n, diagonal ones keep their sign and lie in
    [1, 2): the solution grows, as it does in models, but not past float32.
    """
    a = values["a"]
    n = a.shape[-1]
    if a.size == 0:
        return
    largest = np.abs(a).max() or 1.0
    diagonal = np.diagonal(a, axis1=-2, axis2=-1)
    fraction = np.abs(np.frexp(diagonal)[0]) % 0.5
    diagonal = np.copysign(1.0 + 2 * fraction, diagonal)
    a *= 2.0 ** -np.ceil(np.log2(largest) + np.log2(n) / 2 + 1)
    a[..., np.arange(n), np.arange(n)] = diagonal
    a[..., ~_read(case)] = np.nan


def check(case: Case) -> None:
    """Raises `CaseError` unless a is square and a, b and out fit together."""
    a, b, out = case.inputs["a"], case.inputs["b"], case.outputs["out"]
    if len(a.shape) < 2 or a.shape[-1] != a.shape[-2]:
        raise CaseError(f"a has shape {a.shape}; its last two sizes must be equal")
    if len(b.shape) != len(a.shape) or b.shape[:-2] != a.shape[:-2]:
        raise CaseError(f"b has shape {b.shape}; its batch sizes must be those of a, {a.shape[:-2]}")
    solved = b.shape[-2] if case.params["left"] else b.shape[-1]
    if solved != a.shape[-1]:
        raise CaseError(f"b has shape {b.shape}; the side that a of size {a.shape[-1]} solves has {solved}")
    if out.shape != b.shape:
        raise CaseError(f"out has shape {out.shape}; it must be that of b, {b.shape}")
    if case.inplace is not None:
        raise CaseError("case.inplace must be null: solve_tri does not work in place")


@composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Systems up to 257 wide, now and then many small ones, or with many right-hand sides; shrinks to 1×1, lower, left,
    not unit."""
    left = draw(among(freedom.choices("left", (True, False))))
    lower = draw(among(freedom.choices("lower", (True, False))))
    unit = draw(among(freedom.choices("unit", (False, True))))
    form = draw(forms())
    largest = {"usual": min(draw(scales()), 257), "tiles": 129, "many": 2}.get(form, 3)
    n = draw(among(freedom.choices("n", [size for size in EDGES if size <= largest])))
    k = draw({"usual": inner_sizes(33), "tiles": tile_sizes(), "long": lengths()}.get(form, few()))
    square = draw(integers(0, 3)) == 3  # sides that are mixed up show only where both have the same size
    outer = [draw(outer_sizes()), draw(outer_sizes())] if form == "usual" else [draw(few()), draw(few())]
    if form == "many":
        outer = draw(st.permutations((draw(counts()), outer[0])))
    elif form == "long":  # a case costs as much as it has elements
        outer[draw(integers(0, 1))] = 1
    if freedom.choices("empty", (True,)) and draw(integers(0, 31)) == 31:
        k = 0
    if form == "many":
        outer = list(within(outer, 4 * n * max(n, k), freedom))
    else:
        rows, columns, *outer = within((n, n, *outer), 4, freedom)
        n = min(rows, columns)
        k = min(k, max(freedom.max_bytes // 64 // (n * outer[0] * outer[1]), 1)) if form == "long" else k
    k = n if square and k and form != "long" else k
    k = k if freedom.choices("right_sides", (k,)) else 1
    a_shape = (outer[1], outer[0], n, n)
    b_shape = (outer[1], outer[0], n, k) if left else (outer[1], outer[0], k, n)
    params = {"left": left, "lower": lower, "unit": unit}
    return Problem(params, "f32", {"a": a_shape, "b": b_shape}, b_shape)


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Faults of SOLVE_TRI's own: parameters ignored."""
    params, b = image.case.params, image.case.inputs["b"]
    for name, is_asked, is_not in (
        ("lower", "the upper triangle is read instead of the lower", "the lower triangle is read instead of the upper"),
        ("unit", "unit is ignored: the diagonal is read", "the diagonal is taken as 1"),
        ("left", "X A = B is solved instead of A X = B", "A X = B is solved instead of X A = B"),
    ):
        if name != "left" or b.shape[-1] == b.shape[-2]:
            says = is_asked if params[name] else is_not
            yield Hypothesis(says, partial(image.with_params, **{name: not params[name]}))


def flops(case: Case) -> int:
    """n unknowns of a right-hand side take n(n − 1)/2 products and as many subtractions, and n divisions: n²."""
    return case.inputs["a"].shape[-1] * case.inputs["b"].size


def moves(case: Case) -> int:
    """Bytes of b, of the solution, and of one triangle of A."""
    n, a = case.inputs["a"].shape[-1], bytes_of(case.inputs["a"])
    return everything_once(case) - a + a * (n + 1) // (2 * max(n, 1))


OP = Op(
    name="solve_tri",
    summary="A X = B or X A = B with A triangular",
    inputs=("a", "b"),
    params={"left": bool, "lower": bool, "unit": bool},
    dtypes=("f32",),
    problems=problems,
    expect=expect,
    bound="|B − A X̂| ≤ γ_{n+ρ}·|A||X̂| + underflow, ρ roundings for the division",
    check=check,
    traits=lambda case: {
        "n": case.inputs["a"].shape[-1],
        "right_sides": case.inputs["b"].shape[-1 if case.params["left"] else -2],
    },
    alone=lambda case: (0, 1),
    free="the column's solution, or a sum of products on the way to it, passes the largest float32",
    hypotheses=hypotheses,
    stacks=True,
    composite=Composite(shape_values=shape_values, judge=judge),
    flops=flops,
    moves=moves,
)
