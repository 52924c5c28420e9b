"""The routing of a mixture of experts: right kernels of several kinds pass, wrong ones are caught, and what rounding
may decide is left free."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from opconform.harness.draw.known import checked
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F32
from opconform.harness.model.layouts import Layout
from opconform.harness.run.backend import Backend
from tests.judge import Bench, Benches, drawn_cases

ONE, LEAST = np.float32(1), np.float32(2.0**-14)


@cache
def benches() -> Benches:
    return Benches(drawn_cases("moe_routing", 300, 1 << 16))


class Router(Backend):
    """Step by step in float32, as single ops do."""

    def __init__(self) -> None:
        super().__init__("0", {})

    def run(self, case: Case, buffers: Buffers) -> None:
        x, k = np.array(buffers.array("x")), case.outputs["ids"].shape[-1]
        scores = self.scores(case, x)
        keys = scores + buffers.array("b") if "b" in case.inputs else scores
        places = self.chosen(keys, k)
        buffers.array("ids")[...] = places
        weights = self.weights(case, x, scores, places)
        buffers.array("out")[...] = weights * np.float32(case.params["scale"])

    def scores(self, case: Case, x: np.ndarray) -> np.ndarray:
        form = case.params["form"]
        if form == "softmax":
            return softmax(x)
        if form == "sqrt_softplus":
            return np.sqrt(np.maximum(x, 0) + np.log(ONE + np.exp(-np.abs(x))))
        return ONE / (ONE + np.exp(-x)) if form == "sigmoid" else x

    def chosen(self, keys: np.ndarray, k: int) -> np.ndarray:
        return np.argsort(-keys, -1, kind="stable")[..., :k]

    def weights(self, case: Case, x: np.ndarray, scores: np.ndarray, places: np.ndarray) -> np.ndarray:
        weights = np.take_along_axis(scores, places, -1)
        if case.params["form"] == "late":
            return softmax(weights)
        if case.params["normed"]:
            weights = weights / np.maximum(weights.sum(-1, keepdims=True, dtype=np.float32), LEAST)
        return weights


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True, dtype=np.float32)


class Direct(Router):
    """Divides powers by their sum over the chosen experts, and leaves the sum over all of them out."""

    def weights(self, case: Case, x: np.ndarray, scores: np.ndarray, places: np.ndarray) -> np.ndarray:
        logits = np.take_along_axis(x, places, -1)
        small = np.take_along_axis(scores, places, -1).sum(-1) < 2 * LEAST
        if case.params["form"] != "softmax" or not case.params["normed"] or small.any():
            return super().weights(case, x, scores, places)
        return softmax(logits)


class TiesFromTheEnd(Router):
    """Puts equal scores in the other order."""

    def chosen(self, keys: np.ndarray, k: int) -> np.ndarray:
        return keys.shape[-1] - 1 - np.argsort(-keys[..., ::-1], -1, kind="stable")[..., :k]


class Wide(Router):
    """In float64."""

    def scores(self, case: Case, x: np.ndarray) -> np.ndarray:
        return super().scores(case, x.astype(np.float64))


class Smallest(Router):
    def chosen(self, keys: np.ndarray, k: int) -> np.ndarray:
        return np.argsort(keys, -1, kind="stable")[..., :k]


class OneShort(Router):
    """Does not look at the last expert."""

    def chosen(self, keys: np.ndarray, k: int) -> np.ndarray:
        seen = np.array(keys)
        seen[..., -1] = -np.inf if keys.shape[-1] > k else seen[..., -1]
        return super().chosen(seen, k)


class Overwrites(Router):
    """Writes its experts over the logits of the next token before it reads them: llama.cpp#19768."""

    def run(self, case: Case, buffers: Buffers) -> None:
        ids = np.zeros(case.outputs["ids"].shape, np.int32)
        super().run(case, buffers)
        ids[...] = buffers.array("ids")
        x, k = np.array(buffers.array("x")), ids.shape[-1]
        x[:, :, 1:, :k] = ids[:, :, :-1].view(np.float32)
        buffers.array("ids")[...] = self.chosen(self.scores(case, x), k)


@pytest.mark.parametrize("kernel", [Router, Direct, TiesFromTheEnd, Wide])
def test_right_kernels_pass(kernel: Callable[[], Backend]) -> None:
    its = kernel()
    for bench in benches():
        with np.errstate(all="ignore"):
            assert bench.passes(its), f"{bench.case}: {bench.verdict(its).findings}"


@pytest.mark.parametrize("kernel", [Smallest, OneShort, Overwrites])
def test_wrong_kernels_are_caught(kernel: Callable[[], Backend]) -> None:
    with np.errstate(all="ignore"):
        assert sum(not bench.passes(kernel()) for bench in benches()) > 20


def test_most_places_are_certain() -> None:
    free = [np.isinf(bench.expected().bound).mean() for bench in benches()]
    assert np.mean(free) < 0.02


def case_of(form: str, experts: int, k: int, **params: object) -> Case:
    found = Layout.contiguous("f32", (1, 1, 1, k))
    return Case(
        "moe_routing",
        {"form": form, "normed": False, "scale": 1.0, "made": False, **params},  # type: ignore[dict-item]
        {"x": Layout.contiguous("f32", (1, 1, 1, experts))},
        {"out": found, "ids": Layout.contiguous("i32", (1, 1, 1, k))},
    )


def test_only_what_rounding_may_decide_is_free() -> None:
    """Logits of 2 and 2 + 2^-22 have the same softmax in float32; which of them comes first is free, 5 is not."""
    bench = Bench(case_of("softmax", 4, 3), {"x": F32.encode(np.array([[[[2.0, 5.0, 2.0 + 2.0**-22, -1.0]]]]))})
    expected = bench.expected()
    assert np.isinf(expected.bound).tolist() == [[[[False, True, True]]]]
    assert np.isinf(expected.others["ids"].bound).tolist() == [[[[False, True, True]]]]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (case_of("late", 4, 2, normed=True), "in the form late there is no b, and normed is false"),
        (case_of("softmax", 4, 5), "they must be (1, 1, tokens, experts) and (1, 1, tokens, k)"),
        (case_of("early", 4, 2), "form is 'early'; it must be one of softmax, sigmoid, late"),
    ],
)
def test_what_does_not_fit_together_is_refused(case: Case, says: str) -> None:
    with pytest.raises(CaseError) as error:
        checked(case)
    assert says in str(error.value)
