"""What training takes: the gradients through REPEAT and GET_ROWS, cross entropy and its gradient, optimiser steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases.shapes import check_out, is_aligned, rows, tensors
from opconform.harness.draw.strategies import among, as_many, composite, counts, inner_sizes, rare_forms, scales, within
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F64, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Index, Op, Problem

_ONE = (1, 1, 1, 1)
_TIMES = (1, 1, 2, 3)


def _argument(case: Case, raw: Mapping[str, Raw], name: str, numerics: Numerics) -> Approx:
    its = case.inputs[name].type
    return Approx.of(its.decode(raw[name]), its, numerics)


def _reshaped(x: Approx, shape: tuple[int, ...]) -> Approx:
    value, low, high = (ends.reshape(shape) for ends in (x.value, x.low, x.high))
    return Approx(value, low, high, x.numerics, rounded=x.rounded)


def _otherwise(function: Callable[..., Expected], **wrong: Any) -> Expect:
    return partial(function, **wrong)


# --- REPEAT_BACK ---


def repeat_back(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out_i = Σ x_j over all j with j mod n = i along each axis: γ_{r−1}·Σ|x|, r the repetitions (Higham 2002, eq.
    4.4). It is the transpose of REPEAT, so the gradient of what was repeated. Of `like` only the shape counts.
    """
    return _gathered(case, raw, numerics)


def _gathered(case: Case, raw: Mapping[str, Raw], numerics: Numerics, kept: int = 0, each: bool = False) -> Expected:
    """The sums, or those of the first `kept` repetitions; `each`: as if elements were repeated one by one."""
    x, out = case.inputs["x"], case.outputs["out"].shape
    times = tuple(n // max(m, 1) for n, m in zip(x.shape, out))
    split = tuple(size for pair in zip(*((out, times) if each else (times, out))) for size in pair)
    order = (0, 2, 4, 6, 1, 3, 5, 7) if each else (1, 3, 5, 7, 0, 2, 4, 6)
    addends = x.type.decode(raw["x"]).reshape(split).transpose(order).reshape(*out, int(np.prod(times)))
    addends = np.ascontiguousarray(addends[..., : kept or None])
    total = Approx.of(addends, x.type, numerics).sum()
    return _reshaped(total, out).stored(case.outputs["out"].type, out)


def _check_repeats(case: Case) -> None:
    x, like = case.inputs["x"].shape, case.inputs["like"].shape
    if any(n % max(m, 1) or (m == 0) != (n == 0) for n, m in zip(x, like)):
        raise CaseError(f"like has shape {like}; repeated, it must fill that of x, {x}")
    check_out(case, like)


@composite
def _repeat_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Tensors that were repeated along some axes; shrinks to one element, once."""
    out = draw(tensors(freedom, 16).filter(lambda shape: 0 not in shape))
    x = tuple(n * draw(among(_TIMES)) for n in out)
    for axis in range(len(out)):  # as many repetitions as fit
        if within(x, 4, freedom) != x:
            x = (*x[:axis], out[axis], *x[axis + 1 :])
    return Problem({}, "f32", {"x": x, "like": out}, out)


def _repeat_faults(image: Image) -> Iterator[Hypothesis]:
    case = image.case
    if case.inputs["x"].shape != case.outputs["out"].shape:
        yield Hypothesis(
            "only the first repetition is taken", partial(image.with_expect, _otherwise(_gathered, kept=1))
        )
        says = "neighbours are added up, as if each element had been repeated by itself"
        yield Hypothesis(says, partial(image.with_expect, _otherwise(_gathered, each=True)))


# --- GET_ROWS_BACK ---


def get_rows_back(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out_r = Σ a_j over all j with b_j = r, as float32: γ_{c−1}·Σ|a|, c their number (Higham 2002, eq. 4.4).

    It is the transpose of GET_ROWS: rows that no index names are 0, exactly. Of `table` only the shape counts.
    """
    return _scattered(case, raw, numerics)


def _scattered(case: Case, raw: Mapping[str, Raw], numerics: Numerics, kept: str = "") -> Expected:
    """The sums, or the first or last row alone of those that an index names."""
    a, out = case.inputs["a"].type, case.outputs["out"]
    values = a.decode(raw["a"])[0, 0]
    at = raw["b"].view(np.int32).reshape(-1)
    value, bound = np.zeros(out.shape), np.zeros(out.shape)
    for r in set(at.tolist()) & set(range(out.shape[2])):
        places = np.flatnonzero(at == r)
        places = {"first": places[:1], "last": places[-1:]}.get(kept, places)
        total = Approx.of(np.ascontiguousarray(values[places].T), a, numerics).sum()
        found = _reshaped(total, (out.shape[3],)).stored(out.type, (out.shape[3],))
        value[0, 0, r], bound[0, 0, r] = found.value, found.bound
    return Expected(value, bound)


def _check_rows_back(case: Case) -> None:
    a, b, table = (case.inputs[name].shape for name in ("a", "b", "table"))
    if a[:2] != (1, 1) or table[:2] != (1, 1) or a[3] != table[3] or b != (1, 1, 1, a[2]):
        raise CaseError(f"a has shape {a}, b {b}, table {table}; they must be (1, 1, n, m), (1, 1, 1, n), (1, 1, k, m)")
    check_out(case, table)


@composite
def _rows_back_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """The gradients of rows, some of which were taken several times, now and then of many rows or to a table of many;
    shrinks to one row of one element."""
    kind = draw(among(freedom.choices("source", ("f32", "f16"))))
    n = draw(inner_sizes(draw(scales())))
    table, count = draw(among((1, 2, 3, 5, 17))), draw(among((1, 2, 3, 4, 7, 33)))
    form = draw(rare_forms("rows", "table"))
    if form != "usual":
        n = draw(among((1, 2, 3)))
        many = as_many(draw(counts()), n, freedom)
        table, count = (table, many) if form == "rows" else (many, count)
    shapes = {"a": (1, 1, count, n), "b": (1, 1, 1, count), "table": (1, 1, table, n)}
    return Problem({}, "f32", shapes, shapes["table"], dtypes={"a": kind, "b": "i32"})


def _rows_back_faults(image: Image) -> Iterator[Hypothesis]:
    b = image.raw["b"]
    for kept in ("first", "last"):
        says = f"of the rows that an index names only the {kept} one counts"
        yield Hypothesis(says, partial(image.with_expect, _otherwise(_scattered, kept=kept)))
    in_order = (np.arange(b.size) % image.case.inputs["table"].shape[2]).astype(b.dtype).reshape(b.shape)
    yield Hypothesis("indices are ignored: rows are added in order", partial(image.with_inputs, b=in_order))


# --- CROSS_ENTROPY_LOSS and its gradient ---


def cross_entropy_loss(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """−Σ labels·ln(softmax x) / rows: the mean over all rows of the cross entropy, one number.

    ln(softmax x) = (x − max x) − ln Σ e^(x − max x); each step rounds, and the sum of all elements is taken in any
    order. A label of 0 adds nothing, and rounds nothing: the sum has as many terms as there are other labels.
    """
    return _loss(case, raw, numerics)


def _log_softmax(x: Approx) -> Approx:
    away = x - x.largest()
    return away - away.exp().sum().log()


def _loss(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: str = "") -> Expected:
    x, labels = (_argument(case, raw, name, numerics) for name in ("x", "labels"))
    terms = (labels if wrong == "unlogged" else _log_softmax(x)) * (x if wrong == "unlogged" else labels)
    if wrong == "first":
        terms = _reshaped(terms, (-1, terms.value.shape[-1]))
        terms = Approx(terms.value[:1], terms.low[:1], terms.high[:1], numerics, rounded=True)
    terms = _reshaped(terms, (1, 1, 1, -1))
    its = terms.value.reshape(-1)
    kept = (labels.value.reshape(-1)[: its.size] != 0) | ~np.isfinite(its)
    total = terms.at(np.flatnonzero(kept)).sum()
    count = 1 if wrong == "summed" else int(np.prod(case.inputs["x"].shape[:3]))
    mean = (total / float(count)).either(total * total.constant(1 / count))
    return (mean if wrong == "positive" else -mean).stored(case.outputs["out"].type, _ONE)


def _check_loss(case: Case) -> None:
    x, labels = case.inputs["x"].shape, case.inputs["labels"].shape
    if x != labels or 0 in x:
        raise CaseError(f"x has shape {x} and labels {labels}; they must be the same, and not empty")
    check_out(case, _ONE)


@composite
def _loss_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Rows up to 1025 long; shrinks to one element."""
    shape = draw(rows(freedom, 8).filter(lambda shape: 0 not in shape))
    return Problem({}, "f32", {"x": shape, "labels": shape}, _ONE)


def _label(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """Three of four seeds have the labels of a classifier, one 1 in each row; the others any numbers. The 1 is not
    where x is largest: a loss of 0 would say nothing."""
    x, labels = values["x"], values["labels"]
    if rng.integers(0, 4):
        place = rng.integers(0, x.shape[-1], (*x.shape[:3], 1))
        place = (place + (place == x.argmax(-1, keepdims=True))) % x.shape[-1]
        labels[...] = np.arange(x.shape[-1]) == place


def _loss_faults(image: Image) -> Iterator[Hypothesis]:
    for says, wrong in (
        ("the sign is wrong", "positive"),
        ("the sum over the rows is returned, not their mean", "summed"),
        ("only the first row counts", "first"),
        ("x itself is multiplied with labels", "unlogged"),
    ):
        yield Hypothesis(says, partial(image.with_expect, _otherwise(_loss, wrong=wrong)))


def cross_entropy_loss_back(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """(softmax(x) − labels)·grad / rows, grad being one element: the rounding of each step (`cross_entropy_loss`)."""
    return _loss_back(case, raw, numerics)


def _loss_back(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: str = "") -> Expected:
    grad, x, labels = (_argument(case, raw, name, numerics) for name in ("grad", "x", "labels"))
    weights = (x - x.largest()).exp()
    count = 1.0 if wrong == "summed" else float(np.prod(case.inputs["x"].shape[:3]))
    away = weights / weights.sum()
    away = away if wrong == "unlabelled" else away - labels
    grad = grad * 0.0 + 1.0 if wrong == "ungraded" else grad
    return (
        (away * (grad / count)).either(away * grad / count).stored(case.outputs["out"].type, case.outputs["out"].shape)
    )


def _check_loss_back(case: Case) -> None:
    grad, x, labels = (case.inputs[name].shape for name in ("grad", "x", "labels"))
    if grad != _ONE or x != labels or 0 in x:
        raise CaseError(f"grad has shape {grad}, x {x}, labels {labels}; grad is one element, the others are alike")
    check_out(case, x)


@composite
def _loss_back_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Rows up to 1025 long; shrinks to one element."""
    shape = draw(rows(freedom, 12).filter(lambda shape: 0 not in shape))
    return Problem({}, "f32", {"grad": _ONE, "x": shape, "labels": shape}, shape)


def _loss_back_faults(image: Image) -> Iterator[Hypothesis]:
    for says, wrong in (
        ("grad is left out", "ungraded"),
        ("labels are not subtracted", "unlabelled"),
        ("it is not divided by the number of rows", "summed"),
    ):
        yield Hypothesis(says, partial(image.with_expect, _otherwise(_loss_back, wrong=wrong)))


# --- OPT_STEP_ADAMW and OPT_STEP_SGD ---

_ADAMW = ("alpha", "beta1", "beta2", "eps", "wd", "beta1h", "beta2h")
_SGD = ("alpha", "wd")


def _settings(case: Case, raw: Mapping[str, Raw], names: tuple[str, ...], numerics: Numerics) -> dict[str, Approx]:
    given = case.inputs["settings"].type.decode(raw["settings"]).reshape(-1)
    return {
        name: Approx.of(np.ascontiguousarray(given[i : i + 1]), case.inputs["settings"].type, numerics)
        for i, name in enumerate(names)
    }


def opt_step_adamw(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """One step of AdamW (Loshchilov and Hutter 2019), in place: x holds the weights w, and after them, along its
    outermost axis, their moments m and v.

    m ← beta1·m + (1 − beta1)·g; v ← beta2·v + (1 − beta2)·g²;
    w ← (1 − alpha·wd)·w − alpha·(m·beta1h) / (√(v·beta2h) + eps).

    The settings hold alpha, beta1, beta2, eps, wd, beta1h and beta2h. Each step rounds once.
    """
    return _adamw(case, raw, numerics)


def _adamw(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: str = "") -> Expected:
    x, out = case.inputs["x"], case.outputs["out"]
    parts = np.split(x.type.decode(raw["x"]), 3)
    w, m, v = (Approx.of(np.ascontiguousarray(part), x.type, numerics) for part in parts)
    g, p = _argument(case, raw, "grad", numerics), _settings(case, raw, _ADAMW, numerics)
    m = m * p["beta1"] + g * (1 - p["beta1"])
    v = v * p["beta2"] + ((g if wrong == "unsquared" else g * g) * (1 - p["beta2"])).either(g * (g * (1 - p["beta2"])))
    ahead = m if wrong == "uncorrected" else m * p["beta1h"]
    root = (v if wrong == "uncorrected" else v * p["beta2h"]).sqrt() + p["eps"]
    step = (p["alpha"] * ahead / root).either(p["alpha"] * (ahead / root))
    kept = w if wrong == "undecayed" else w * (1 - p["alpha"] * p["wd"])
    found = [it.stored(out.type, part.shape) for it, part in zip((kept - step, m, v), parts)]
    return Expected(np.concatenate([it.value for it in found]), np.concatenate([it.bound for it in found]))


def opt_step_sgd(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """One step of gradient descent, in place: x ← (1 − alpha·wd)·x − alpha·g; the settings hold alpha and wd. Each step
    rounds once."""
    return _sgd(case, raw, numerics)


def _sgd(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: str = "") -> Expected:
    x, g = (_argument(case, raw, name, numerics) for name in ("x", "grad"))
    p = _settings(case, raw, _SGD, numerics)
    kept = x if wrong == "undecayed" else x * (1 - p["alpha"] * p["wd"])
    step = g if wrong == "unscaled" else g * p["alpha"]
    return (kept + step if wrong == "uphill" else kept - step).stored(case.outputs["out"].type, case.inputs["x"].shape)


def _check_step(case: Case) -> None:
    x, grad, settings = (case.inputs[name].shape for name in ("x", "grad", "settings"))
    copies, count = (3, len(_ADAMW)) if case.op == "opt_step_adamw" else (1, len(_SGD))
    if x != (copies * grad[0], *grad[1:]) or settings != (1, 1, 1, count):
        raise CaseError(
            f"x has shape {x}, grad {grad}, settings {settings}; x is {copies} × grad, and {count} settings"
        )
    if case.inplace != "x" or case.outputs["out"].shape != x:
        raise CaseError("case.inplace must be 'x': the step is taken in place")


@composite
def _step_problems(draw: st.DrawFn, freedom: Freedom, copies: int, count: int) -> Problem:
    """Any tensor; shrinks to one element."""
    grad = draw(tensors(freedom, 4 * (copies + 1)).filter(lambda shape: 0 not in shape))
    if copies > 1 and not freedom.choices("moments", ("anywhere",)):
        grad = (*within((64 * grad[3], *grad[2::-1]), 4 * (copies + 1), freedom)[::-1],)
        grad = (*grad[:3], max(grad[3] // 64, 1) * 64)
    x = (copies * grad[0], *grad[1:])
    return Problem({}, "f32", {"x": x, "grad": grad, "settings": (1, 1, 1, count)}, x, "x")


def _set_up(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """Settings as optimisers have them; second moments are never negative."""
    alpha, decay = rng.choice((1e-3, 0.1, 1.0)), rng.choice((0.0, 0.01, 0.1))
    if case.op == "opt_step_sgd":
        values["settings"][...] = np.reshape((alpha, decay), (1, 1, 1, 2))
        return
    beta1, beta2, steps = rng.choice((0.9, 0.5)), rng.choice((0.999, 0.95)), int(rng.choice((1, 2, 100)))
    given = (alpha, beta1, beta2, rng.choice((1e-8, 1e-3)), decay, 1 / (1 - beta1**steps), 1 / (1 - beta2**steps))
    values["settings"][...] = np.reshape(given, (1, 1, 1, 7))
    first = 2 * values["grad"].shape[0]
    values["x"][first:] = np.abs(values["x"][first:])


def _step_faults(image: Image) -> Iterator[Hypothesis]:
    if image.case.op == "opt_step_sgd":
        function: Callable[..., Expected] = _sgd
        faults = (
            ("the weights do not decay", "undecayed"),
            ("alpha is left out of the step", "unscaled"),
            ("the step is added", "uphill"),
        )
    else:
        function = _adamw
        faults = (
            ("the weights do not decay", "undecayed"),
            ("beta1h and beta2h are left out", "uncorrected"),
            ("g is not squared in v", "unsquared"),
        )
    for says, wrong in faults:
        yield Hypothesis(says, partial(image.with_expect, _otherwise(function, wrong=wrong)))


_STEPS = "the rounding of each step, carried through the formula"
_TAME = ("small_int", "normal", "signed_zero", "denormal")


def _aligned(case: Case) -> dict[str, Any]:
    return {"aligned": is_aligned(case)}


def _step_traits(case: Case) -> dict[str, Any]:
    """moments: whether those of AdamW stand at multiples of 256 bytes from the weights ("aligned"), or "anywhere"."""
    size = case.inputs["grad"].size * case.inputs["grad"].type.itemsize
    return {"aligned": is_aligned(case), "moments": "anywhere" if size % 256 else "aligned"}


OPS = (
    Op(
        name="repeat_back",
        summary="the sum of all repetitions: the gradient of what REPEAT repeated",
        inputs=("x", "like"),
        params={},
        dtypes=("f32",),
        problems=_repeat_problems,
        expect=repeat_back,
        bound="γ_{r−1}·Σ|x| over the r repetitions",
        check=_check_repeats,
        traits=_aligned,
        alone=lambda case: (
            (0, 1) if case.inputs["x"].shape[:2] == case.outputs["out"].shape[:2] else "slices are added"
        ),
        hypotheses=_repeat_faults,
    ),
    Op(
        name="get_rows_back",
        summary="rows of a added up where b names them: the gradient of the table of GET_ROWS",
        inputs=("a", "b", "table"),
        params={},
        dtypes=("f32",),
        argument_dtypes={"a": ("f32", "f16"), "b": ("i32",)},
        problems=_rows_back_problems,
        expect=get_rows_back,
        bound="γ_{c−1}·Σ|a| over the c rows that an index names",
        check=_check_rows_back,
        traits=lambda case: {"source": case.inputs["a"].dtype, "aligned": is_aligned(case)},
        hypotheses=_rows_back_faults,
        indices={"b": Index("table", 2)},
    ),
    Op(
        name="cross_entropy_loss",
        summary="−Σ labels·ln(softmax x) / rows, one number",
        inputs=("x", "labels"),
        params={},
        dtypes=("f32",),
        problems=_loss_problems,
        expect=cross_entropy_loss,
        bound=_STEPS,
        check=_check_loss,
        traits=_aligned,
        hypotheses=_loss_faults,
        composite=Composite(recipes=(*_TAME, "wide"), shape_values=_label, batch_axes=()),
    ),
    Op(
        name="cross_entropy_loss_back",
        summary="(softmax(x) − labels)·grad / rows",
        inputs=("grad", "x", "labels"),
        params={},
        dtypes=("f32",),
        problems=_loss_back_problems,
        expect=cross_entropy_loss_back,
        bound=_STEPS,
        check=_check_loss_back,
        traits=_aligned,
        hypotheses=_loss_back_faults,
        composite=Composite(recipes=(*_TAME, "wide"), batch_axes=()),
    ),
    *(
        Op(
            name=name,
            summary=summary,
            inputs=("x", "grad", "settings"),
            params={},
            dtypes=("f32",),
            problems=partial(_step_problems, copies=copies, count=count),
            expect=expect,
            bound=_STEPS,
            check=_check_step,
            traits=_step_traits,
            hypotheses=_step_faults,
            composite=Composite(recipes=_TAME, shape_values=_set_up, batch_axes=()),
        )
        for name, expect, copies, count, summary in (
            ("opt_step_adamw", opt_step_adamw, 3, 7, "one step of AdamW on weights and their two moments, in place"),
            ("opt_step_sgd", opt_step_sgd, 1, 2, "x ← (1 − alpha·wd)·x − alpha·grad, in place"),
        )
    ),
)
