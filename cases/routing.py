"""MOE_ROUTING: which experts each token goes to, and how much each of them counts, as graphs of models compute it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases.activations import sigmoid, softplus
from opconform.cases.families.chains import MADE
from opconform.cases.families.choices import Choices, check_params, choice, drawn_params, types_of
from opconform.cases.shapes import is_aligned
from opconform.cases.softmax import normalised
from opconform.harness.draw.strategies import among, as_many, composite, counts, integers, rare_forms
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F32, F64, Mask, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Op, Problem, Sizes

LEAST = 2.0**-14  #: below it no sum of weights is a divisor (llama.cpp, src/llama-graph.cpp, build_moe_ffn)
_MOST_EXPERTS = 1024

#: form: of what the scores are made, "softmax", "sigmoid" or "sqrt_softplus" (√ln(1 + e^x)) of the logits, or "late":
#: of the logits themselves, with a softmax over those that are chosen. normed: whether the weights of a token are
#: divided by their sum.
_PARAMS: Choices = {
    "form": choice("softmax", "sigmoid", "late", "sqrt_softplus"),
    "normed": choice(False, True),
    "scale": choice(1.0, 2.5, 0.5, 0.7, without=1.0, least=1e-3, most=1e3),
    **MADE,
}


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The k experts with the largest scores (and biases b, where there are any), largest first, and their weights.

    ids holds the experts, out their scores without the bias: as they are, divided by their sum (by `LEAST` at least),
    or in the form "late" as a softmax over the k logits; then times scale. Scores carry the rounding of their formula.
    Where two of them may change places by that, nothing is demanded of either place, nor, if it is about which experts
    are among the k, of weights that depend on each other.
    """
    return _routed(case, raw, numerics, {})


def _routed(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: Mapping[str, Any]) -> Expected:
    """`expect`, or what a kernel gives that does `wrong` things."""
    params = {**case.params, **wrong}
    logits = Approx.of(F32.decode(raw["x"]), F32, numerics)
    scores = _scores(logits, str(params["form"]))
    keys = scores
    if "b" in case.inputs and not wrong.get("unbiased"):
        keys = scores + Approx.of(F32.decode(raw["b"]), F32, numerics)
    k = case.outputs["ids"].shape[-1]
    order = np.argsort(-keys.value, axis=-1, kind="stable")
    places = order[..., :k]
    known, which = _certain(keys.taken(order), k)
    weights = (keys if wrong.get("biased") else scores).taken(places)
    together = bool(params["normed"])
    if params["form"] == "late" and not wrong.get("unnormalised"):
        weights, together = normalised(weights, np.ones(places.shape, bool), None), True
    if params["normed"]:
        total = weights.sum()
        weights = weights / (total if wrong.get("unlimited") else total.maximum(LEAST))
    out = (weights * float(params["scale"])).stored(F32, places.shape)
    doubtful = ~known | (~which if together else np.zeros_like(known))
    ids = Expected(places.astype(np.float64), np.where(known, 0.0, np.inf))
    return replace(out, bound=np.where(doubtful, np.inf, out.bound), exact=None, bits=None, others={"ids": ids})


def _scores(logits: Approx, form: str) -> Approx:
    if form == "softmax":
        return normalised(logits, np.ones(logits.value.shape, bool), None)
    if form == "sqrt_softplus":
        return softplus(logits).sqrt()
    return sigmoid(logits) if form == "sigmoid" else logits


def _certain(keys: Approx, k: int) -> tuple[Mask, Mask]:
    """Of keys in the order of their values: which of the first k places every right kernel fills alike, and (one for
    each row) whether it is certain which k they are."""
    before = np.minimum.accumulate(keys.low, axis=-1)
    behind = np.maximum.accumulate(keys.high[..., ::-1], axis=-1)[..., ::-1]
    clear = before[..., :-1] > behind[..., 1:]  # between a place and the next one; NaN is not clear
    edge = np.ones((*clear.shape[:-1], 1), bool)
    left, right = np.concatenate([edge, clear], -1), np.concatenate([clear, edge], -1)
    return (left & right)[..., :k], right[..., k - 1 : k]


def check(case: Case) -> None:
    """Raises `CaseError` for parameters and shapes that do not fit together."""
    check_params(case, _PARAMS)
    x, ids = case.inputs["x"].shape, case.outputs["ids"].shape
    if x[:2] != (1, 1) or not 1 <= ids[3] <= x[3]:
        raise CaseError(f"x has shape {x} and ids {ids}; they must be (1, 1, tokens, experts) and (1, 1, tokens, k)")
    if ids[:3] != x[:3] or case.outputs["out"].shape != ids:
        raise CaseError(f"ids have shape {ids} and out {case.outputs['out'].shape}; both must be (1, 1, {x[2]}, k)")
    if "b" in case.inputs and case.inputs["b"].shape != (1, 1, 1, x[3]):
        raise CaseError(f"b has shape {case.inputs['b'].shape}; it must hold {x[3]} biases")
    if case.params["form"] == "late" and ("b" in case.inputs or case.params["normed"]):
        raise CaseError("in the form late there is no b, and normed is false: its weights add up to 1")
    if case.inplace is not None:
        raise CaseError("case.inplace must be null: moe_routing does not work in place")


def traits(case: Case) -> dict[str, Any]:
    """biased: whether there are biases. aligned: see `is_aligned`. whole: whether every expert is chosen."""
    k, experts = case.outputs["ids"].shape[3], case.inputs["x"].shape[3]
    return {"biased": "b" in case.inputs, "aligned": is_aligned(case), "whole": k == experts}


@composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Up to 512 experts, of which a token uses some, or all, now and then for many tokens; shrinks to two experts and
    one token."""
    params = draw(drawn_params(freedom, _PARAMS))
    experts = draw(among((2, 3, 4, 8, 9, 16, 31, 32, 33, 64, 128, 8, 60, 65, 256, 300, 512)))
    k = draw(among(sorted({k for k in (1, 2, 3, 4, 6, 8, 10) if k <= experts} | {min(experts, 33)})))
    tokens = draw(among((1, 2, 3, 7, 33, 70)))
    if draw(rare_forms("tokens")) == "tokens":
        tokens = as_many(draw(counts()), experts, freedom)
    shapes = {"x": (1, 1, tokens, experts)}
    if params["form"] == "late":
        params["normed"] = False
    elif draw(among(freedom.choices("biased", (False, True) if params["form"] == "softmax" else (True, False)))):
        shapes["b"] = (1, 1, 1, experts)
        params["normed"] = params["normed"] or draw(integers(0, 1)) == 1
    found = (1, 1, tokens, k)
    return Problem(params, "f32", shapes, found, more_outputs={"ids": found}, dtypes={"ids": "i32"})


def spread(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """small_int: the logits of a token are different numbers of eighths. Biases are small, as those of models."""
    if case.recipe == "small_int":
        x = values["x"]
        x[...] = (np.argsort(rng.random(x.shape), -1) - x.shape[-1] // 2) / max(8, x.shape[-1] / 8)
    if "b" in values:
        values["b"][...] = rng.integers(-64, 65, values["b"].shape) / 256


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Steps left out, and weights of what is not to be weighed."""
    wrongs: list[tuple[str, Mapping[str, Any]]] = [
        ("scale is left out", {"scale": 1.0}),
        ("the weights are not divided by their sum", {"normed": False}),
        ("b is left out", {"unbiased": True}),
        ("the weights have b in them", {"biased": True}),
    ]
    if image.case.params["form"] == "late":
        wrongs.append(("the weights are the logits, not their softmax", {"unnormalised": True}))
    else:
        other = "sigmoid" if image.case.params["form"] == "softmax" else "softmax"
        wrongs.append((f"the scores are those of {other}", {"form": other}))
    for says, wrong in wrongs:
        yield Hypothesis(says, partial(image.with_expect, _otherwise(wrong)))


def _otherwise(wrong: Mapping[str, Any]) -> Expect:
    return lambda case, raw, numerics: _routed(case, raw, numerics, wrong)


def sizes(case: Case) -> Sizes:
    """The tokens, the experts, and how many of them a token uses."""
    tokens, experts = case.inputs["x"].shape[2:]
    now = {"tokens": tokens, "experts": experts, "k": case.outputs["ids"].shape[3]}

    def made(its: Mapping[str, int]) -> tuple[Mapping[str, tuple[int, ...]], Mapping[str, Any]]:
        found = dict.fromkeys(("out", "ids"), (1, 1, its["tokens"], its["k"]))
        shapes = {"x": (1, 1, its["tokens"], its["experts"]), "b": (1, 1, 1, its["experts"])}
        return {**{name: shape for name, shape in shapes.items() if name in case.inputs}, **found}, {}

    return Sizes(now, made)


OP = Op(
    name="moe_routing",
    summary="the k experts with the largest scores of each token, and their weights",
    inputs=("x", "b"),
    params=types_of(_PARAMS),
    dtypes=("f32",),
    argument_dtypes={"ids": ("i32",)},
    problems=problems,
    expect=expect,
    bound="the rounding of each step; none of an expert's number",
    check=check,
    traits=traits,
    hypotheses=hypotheses,
    sizes=sizes,
    free="rounding may make two experts change places",
    composite=Composite(
        optional=("b",), more_outputs=("ids",), recipes=("small_int", "normal"), shape_values=spread, batch_axes=()
    ),
)
