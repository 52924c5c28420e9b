"""Ops over more than a row: SUM of all elements, GROUP_NORM over groups of channels, ADD_REL_POS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases.families.formulas import parts_of_row
from opconform.cases.rows import HALVED, over_half, standardised
from opconform.cases.shapes import check_out, is_aligned, tensors
from opconform.harness.draw.strategies import (
    among,
    as_many,
    composite,
    counts,
    inner_sizes,
    rare_forms,
    tile_sizes,
    within,
)
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import F64, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem, Sizes


def total(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The sum of all n elements in any order (`Numerics.of_sum`)."""
    x = case.inputs["x"].type
    found = Approx.of(x.decode(raw["x"]).reshape(1, 1, 1, -1), x, numerics).sum()
    return found.stored(case.outputs["out"].type, (1, 1, 1, 1))


@composite
def _sum_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    dtype = draw(among(freedom.choices("dtype", ("f32", "f16"))))
    return Problem({}, dtype, {"x": draw(tensors(freedom, 4))}, (1, 1, 1, 1))


def _partial_sums(image: Image) -> Iterator[Hypothesis]:
    x = image.raw["x"]
    for axis, k in enumerate((3, 2, 1, 0)):
        if x.shape[axis] > 1:
            first = np.where(np.arange(x.shape[axis]).reshape([-1 if a == axis else 1 for a in range(4)]) == 0, x, 0)
            yield Hypothesis(f"only i{k} = 0 is summed", partial(image.with_inputs, x=first.astype(x.dtype)))


def _bounds(channels: int, groups: int) -> Iterator[slice]:
    """The channels of each group: as many as divide them with the last group smaller, or left out."""
    each = -(-channels // groups)
    for start in range(0, channels, each):
        yield slice(start, min(start + each, channels))


def group_norm(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """(x − mean) / √(variance + eps) over the elements of ⌈channels / n_groups⌉ channels at a time, i3 by i3."""
    return _normed(standardised, case, raw, numerics)


Norm = Callable[[Approx, Approx, dict[str, Any]], Approx]


def _normed(norm: Norm, case: Case, raw: Mapping[str, Raw], numerics: Numerics, of_part: str | None = None) -> Expected:
    """`norm` of each group. of_part: what a wrong kernel makes its sums of, in words of `_parts_of_group`."""
    x = case.inputs["x"]
    values = x.type.decode(raw["x"])
    value, bound = np.zeros(x.shape), np.zeros(x.shape)
    for channels in _bounds(x.shape[1], int(case.params["n_groups"])):
        part: F64 = np.ascontiguousarray(values[:, channels])
        count = part[:1].size
        taken = dict(_parts_of_group(count)).get(of_part) if of_part else None
        flat = Approx.of(part.reshape(x.shape[0], -1), x.type, numerics, taken)
        found = norm(flat, flat.variance(), dict(case.params)).stored(case.outputs["out"].type, flat.value.shape)
        value[:, channels], bound[:, channels] = found.value.reshape(part.shape), found.bound.reshape(part.shape)
    return Expected(value, bound)


def _parts_of_group(count: int) -> Iterator[tuple[str, int]]:
    return parts_of_row(count, "group")


def _check_groups(case: Case) -> None:
    groups, eps = int(case.params["n_groups"]), float(case.params["eps"])
    if not 1 <= groups <= 1 << 16:
        raise CaseError(f"n_groups is {groups}; it must be from 1 to 65536")
    if not 0 <= eps <= 1e30:
        raise CaseError(f"eps is {eps}; it must be from 0 to 1e30")
    check_out(case, case.inputs["x"].shape)


def _traits(case: Case) -> dict[str, bool]:
    """aligned: see `is_aligned`. even: whether all groups have as many channels."""
    channels, groups = case.inputs["x"].shape[1], int(case.params["n_groups"])
    return {"aligned": is_aligned(case), "even": _is_even(channels, groups)}


def _is_even(channels: int, groups: int) -> bool:
    return channels % -(-channels // groups) == 0


#: Of all that a case holds, where large images are drawn.
_IMAGES = 1 << 25


@composite
def _group_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Channels in groups, which need not divide them; now and then large images, as models have them, or many small
    ones; shrinks to one element."""
    channels, groups = draw(inner_sizes(33)), draw(among((1, 2, 3, 4, 5, 8, 32)))
    form = draw(rare_forms("image", "many"))
    ne = [draw(inner_sizes(17)), draw(inner_sizes(9)), channels, draw(among((1, 2, 3)))]
    if form == "image":
        ne = [draw(tile_sizes()), draw(tile_sizes()), max(draw(among((1, 2, 3, 8))), groups), 1]
    elif form == "many":
        ne[:2] = 1, draw(among((1, 2)))
        ne[2] = min(channels, 4)
        ne[3] = as_many(draw(counts()), ne[1] * ne[2], freedom)
    if not freedom.choices("even", (False,)) and not _is_even(ne[2], groups):
        ne[2] *= groups
    shape = tuple(ne[::-1]) if form == "image" and freedom.max_bytes >= _IMAGES else within(ne, 4, freedom)[::-1]
    eps = draw(among((1e-6, 1e-5, 1.0, 0.0)))
    return Problem({"n_groups": groups, "eps": eps}, "f32", {"x": shape}, shape)


def _group_faults(image: Image) -> Iterator[Hypothesis]:
    case = image.case
    other = 2 if case.params["n_groups"] == 1 else 1
    yield Hypothesis(f"there are {other} groups", partial(image.with_params, n_groups=other))
    yield Hypothesis("eps is left out", partial(image.with_params, eps=0.0))
    mistakes: dict[str, Norm] = {
        "the mean is not subtracted": lambda x, variance, p: x.over_root(variance + float(p["eps"])),
        HALVED: lambda x, variance, p: over_half(x - x.mean(), variance + float(p["eps"])),
    }
    for says, norm in mistakes.items():
        yield Hypothesis(says, partial(image.with_expect, partial(_normed, norm)))
    first = next(_bounds(case.inputs["x"].shape[1], int(case.params["n_groups"])))
    for says, _ in _parts_of_group(image.raw["x"][:1, first].size):
        wrong = partial(_normed, standardised, of_part=says)
        yield Hypothesis(says, partial(image.with_expect, wrong))


# --- ADD_REL_POS ---


def add_rel_pos(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[i, q, y·n + x] = a[i, q, y·n + x] + ph[i, q, y] + pw[i, q, x]: attention of query q to a window of n × n.

    A sum of three numbers in any order: γ_2·(|a| + |ph| + |pw|) (Higham 2002, eq. 4.4). The two axes of pw and ph
    before the innermost one count queries, as that of a does.
    """
    return _with_positions(case, raw, numerics, "ph", "pw")


def _with_positions(case: Case, raw: Mapping[str, Raw], numerics: Numerics, down: str, across: str) -> Expected:
    """`down` goes with the row of the window, `across` with its column; "" for none."""
    _, count, queries, places = case.inputs["a"].shape
    n = case.inputs["pw"].shape[3]
    parts = np.zeros((count, queries, n, n, 3))
    a, *others = (case.inputs[name].type.decode(raw[name]) for name in ("a", *filter(None, (down, across))))
    parts[..., 0] = a.reshape(count, queries, n, n)
    found = dict(zip(filter(None, (down, across)), (it.reshape(count, queries, n) for it in others)))
    if down:
        parts[..., 1] = found[down][:, :, :, None]
    if across:
        parts[..., 2] = found[across][:, :, None, :]
    sums = Approx.of(parts.reshape(1, count, queries, places, 3), case.inputs["a"].type, numerics).sum()
    stored = sums.stored(case.outputs["out"].type, (1, count, queries, places, 1))
    exact = None if stored.exact is None else stored.exact[..., 0]
    bits = None if stored.bits is None else stored.bits[..., 0]
    return Expected(stored.value[..., 0], stored.bound[..., 0], exact, bits)


def _check_positions(case: Case) -> None:
    a, pw, ph = (case.inputs[name].shape for name in ("a", "pw", "ph"))
    if pw != ph or a != (1, pw[0], pw[1] * pw[2], pw[3] * pw[3]):
        raise CaseError(f"a has shape {a}, pw {pw}, ph {ph}; for (m, y, x, n) of both others a is (1, m, y·x, n·n)")
    if case.inplace is None:
        check_out(case, a)
    elif case.inplace != "a" or case.outputs["out"].shape != a:
        raise CaseError("out must have the shape of a, and its memory where it works in place")


def _position_sizes(case: Case) -> Sizes:
    """The window, the queries in either direction, and how many there are of them."""
    part = case.inputs["pw"].shape

    def made(its: Mapping[str, int]) -> tuple[dict[str, tuple[int, ...]], dict[str, Param]]:
        m, y, x, n = (its[name] for name in "myxn")
        a = (1, m, y * x, n * n)
        return {"a": a, "pw": (m, y, x, n), "ph": (m, y, x, n), "out": a}, {}

    return Sizes(dict(zip("myxn", part)), made)


@composite
def _position_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Windows of up to 14 × 14, as SAM has them; shrinks to one place."""
    n, y, x = (draw(among(sizes)) for sizes in ((1, 2, 3, 5, 7, 14), (1, 2, 3, 5), (1, 2, 3, 7)))
    m = draw(among((1, 2, 3)))
    part = within((n, x, y, m), 4 * n, freedom)[::-1]
    a = (1, part[0], part[1] * part[2], part[3] * part[3])
    inplace = draw(among(freedom.choices("inplace", (False, False, True))))
    return Problem({}, "f32", {"a": a, "pw": part, "ph": part}, a, "a" if inplace else None)


def _position_faults(image: Image) -> Iterator[Hypothesis]:
    for says, down, across in (
        ("pw and ph are exchanged", "pw", "ph"),
        ("pw is left out", "ph", ""),
        ("ph is left out", "", "pw"),
    ):
        wrong = partial(_with_positions, down=down, across=across)
        yield Hypothesis(says, partial(image.with_expect, wrong))


_SUM: Expect = total
OPS = (
    Op(
        name="sum",
        summary="the sum of all elements",
        inputs=("x",),
        params={},
        dtypes=("f32", "f16"),
        problems=_sum_problems,
        expect=_SUM,
        bound="(n−1)·u·(Σ|x| + |Σx|)/2 over all n elements",
        check=lambda case: check_out(case, (1, 1, 1, 1)),
        traits=lambda case: {"aligned": is_aligned(case)},
        hypotheses=_partial_sums,
    ),
    Op(
        name="group_norm",
        summary="(x − mean) / √(variance + eps) over groups of channels",
        inputs=("x",),
        params={"n_groups": int, "eps": float},
        dtypes=("f32",),
        problems=_group_problems,
        expect=group_norm,
        bound="the rounding of each step, carried through the formula",
        check=_check_groups,
        traits=_traits,
        hypotheses=_group_faults,
    ),
    Op(
        name="add_rel_pos",
        summary="attention to a window, and the part of its positions in either direction",
        inputs=("a", "pw", "ph"),
        params={},
        dtypes=("f32",),
        problems=_position_problems,
        expect=add_rel_pos,
        bound="γ_2·(|a| + |ph| + |pw|)",
        check=_check_positions,
        traits=lambda case: {"aligned": is_aligned(case)},
        hypotheses=_position_faults,
        sizes=_position_sizes,
    ),
)
