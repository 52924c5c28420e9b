"""Ops that move or mask elements of more than one argument, or by their place: CONCAT, DIAG_MASK_INF and
DIAG_MASK_ZERO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from hypothesis import strategies as st

from opconform.cases.families.choices import choice, drawn_params
from opconform.cases.families.gathers import ALL, drawn_types
from opconform.cases.shapes import check_out, is_aligned, rows, tensors
from opconform.harness.draw.strategies import among, composite, inner_sizes
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DTYPES, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem

_TYPES = (*ALL, "i8", "i16")
_PAST = choice(0, 1, 2, 5, 31, least=0, most=1 << 20)


def _bits(case: Case, bits: Raw) -> Expected:
    value = case.outputs["out"].type.decode(bits)
    return Expected(value, np.zeros(value.shape), exact=np.ones(value.shape, dtype=bool), bits=bits)


# --- CONCAT ---


def _axis(case: Case) -> int:
    return 3 - int(case.params["dim"])


def concat(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """a, then b along the axis `dim` (0 is the innermost): the bits of both."""
    return _bits(case, np.concatenate([raw["a"], raw["b"]], _axis(case)))


def _check_concat(case: Case) -> None:
    a, b, dim = case.inputs["a"].shape, case.inputs["b"].shape, int(case.params["dim"])
    if not 0 <= dim <= 3:
        raise CaseError(f"dim is {dim}; it counts from the innermost axis, 0 to 3")
    axis = 3 - dim
    if (*a[:axis], *a[axis + 1 :]) != (*b[:axis], *b[axis + 1 :]):
        raise CaseError(f"a has shape {a} and b {b}; they must agree but for axis {dim} (0 is the innermost)")
    check_out(case, (*a[:axis], a[axis] + b[axis], *a[axis + 1 :]))


@composite
def _concat_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Tensors that agree but for one axis; shrinks to two elements."""
    dtype = draw(among(drawn_types(freedom, (), _TYPES)))
    dim = draw(among(freedom.choices("dim", range(4))))
    a = draw(tensors(freedom, 2 * DTYPES[dtype].itemsize))
    axis = 3 - dim
    n = min(draw(inner_sizes(33)), max(a[axis], 1) * 2)
    b = (*a[:axis], n, *a[axis + 1 :])
    out = (*a[:axis], a[axis] + n, *a[axis + 1 :])
    return Problem({"dim": dim}, dtype, {"a": a, "b": b}, out)


def _concat_faults(image: Image) -> Iterator[Hypothesis]:
    case = image.case
    for says, names in (("b stands before a", ("b", "a")), ("a is repeated where b belongs", ("a", "a"))):
        yield Hypothesis(says, partial(image.with_expect, _joined(names)))
    for dim in range(4):
        axis = 3 - dim
        if dim != case.params["dim"] and case.inputs["a"].shape[axis] > 1:
            yield Hypothesis(f"b follows a along i{dim} instead", partial(image.with_expect, _joined(("a", "b"), axis)))


def _joined(names: tuple[str, str], axis: int | None = None) -> Expect:
    def wrong(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        parts = [raw[name] for name in names]
        if axis is None:
            parts = [np.resize(part, raw[name].shape) for part, name in zip(parts, ("a", "b"))]
            return _bits(case, np.concatenate(parts, _axis(case)))
        flat = np.concatenate([part.reshape(-1) for part in parts]).reshape(case.outputs["out"].shape)
        return _bits(case, flat)

    return wrong


# --- DIAG_MASK_INF and DIAG_MASK_ZERO ---


def diag_mask_inf(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """x where i0 ≤ n_past + i1, else −infinity: every bit counts."""
    return _masked(case, raw, int(case.params["n_past"]))


def diag_mask_zero(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """x where i0 ≤ n_past + i1, else +0: every bit counts."""
    return _masked(case, raw, int(case.params["n_past"]))


def _masked(case: Case, raw: Mapping[str, Raw], past: int) -> Expected:
    x = case.inputs["x"]
    row, column = np.ogrid[: x.shape[2], : x.shape[3]]
    least = x.type.encode(np.full((), -np.inf if case.op == "diag_mask_inf" else 0.0))
    return _bits(case, np.where(column > past + row, least, raw["x"]).astype(x.type.raw))


def _check_mask(case: Case) -> None:
    if not 0 <= int(case.params["n_past"]) <= 1 << 20:
        raise CaseError(f"n_past is {case.params['n_past']}; it must be from 0 to {1 << 20}")
    if case.inplace is None:
        check_out(case, case.inputs["x"].shape)
    elif case.outputs["out"].shape != case.inputs["x"].shape:
        raise CaseError("out must have the shape of x")


@composite
def _mask_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    shape = draw(rows(freedom, 4))
    params = draw(drawn_params(freedom, {"n_past": _PAST}))
    past = max(min(int(params["n_past"]), shape[-1] - 2), 0)  # something is masked, in the first row at least
    if freedom.choices("n_past", (past,)):
        params["n_past"] = past
    inplace = draw(among(freedom.choices("inplace", (False, False, True))))
    return Problem(params, "f32", {"x": shape}, shape, "x" if inplace else None)


def _mask_faults(image: Image) -> Iterator[Hypothesis]:
    past = int(image.case.params["n_past"])
    for says, other in (
        ("n_past is ignored", 0),
        ("the diagonal is masked too", past - 1),
        ("the diagonal above is not masked", past + 1),
        ("nothing is masked", 1 << 30),
    ):
        if other != past:
            yield Hypothesis(says, partial(image.with_expect, _past(other)))


def _past(past: int) -> Expect:
    return lambda case, raw, numerics: _masked(case, raw, past)


OPS = (
    Op(
        name="concat",
        summary="a, then b along one axis",
        inputs=("a", "b"),
        params={"dim": int},
        dtypes=_TYPES,
        problems=_concat_problems,
        expect=concat,
        bound="the bits of a and b",
        check=_check_concat,
        traits=lambda case: {"aligned": is_aligned(case)},
        hypotheses=_concat_faults,
        pointwise=True,
        copies=True,
    ),
    *(
        Op(
            name=name,
            summary=f"x, but {filler} right of the diagonal moved by n_past",
            inputs=("x",),
            params={"n_past": int},
            dtypes=("f32",),
            problems=_mask_problems,
            expect=expect,
            bound=f"the bits of x, or {filler}",
            check=_check_mask,
            traits=lambda case: {"aligned": is_aligned(case), "inplace": case.inplace is not None},
            hypotheses=_mask_faults,
            pointwise=True,
        )
        for name, expect, filler in (
            ("diag_mask_inf", diag_mask_inf, "−infinity"),
            ("diag_mask_zero", diag_mask_zero, "+0"),
        )
    ),
)
