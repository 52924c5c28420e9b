"""Faults of kernels for absorbed latent attention: scales mixed up, masks that are off, values read elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from opconform.cases.mla.attention import Understood, expected_of
from opconform.harness.explain.hypotheses import TILES
from opconform.harness.model.expected import Expect
from opconform.harness.model.image import Hypothesis, Image, Reading


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Faults of MLA's own: scales mixed up, the rotary part left out, masks that are off, values read elsewhere."""
    params, inputs = image.case.params, image.case.inputs
    d_c, d_r = inputs["c_kv"].shape[3], inputs["k_pe"].shape[3]
    by_width = 1 / math.sqrt(d_c + d_r)
    if by_width != params["scale"]:
        says = f"scale is 1/√{d_c + d_r} (the width of a cache row) instead of the one asked for"
        yield Hypothesis(says, _with_params(image, scale=by_width))
    if params["scale"] != 1:
        yield Hypothesis("scale is left out", _with_params(image, scale=1.0))
    if params["k_scale"] != params["v_scale"]:
        k_scale, v_scale = float(params["k_scale"]), float(params["v_scale"])
        yield Hypothesis("v_scale is used for the keys", _with_params(image, k_scale=v_scale))
        yield Hypothesis("k_scale is used for the values", _with_params(image, v_scale=k_scale))
        yield Hypothesis("k_scale and v_scale are exchanged", _with_params(image, k_scale=v_scale, v_scale=k_scale))
    for name, value in (("k_scale", params["k_scale"]), ("v_scale", params["v_scale"])):
        if value != 1:
            yield Hypothesis(f"{name} is left out", _with_params(image, **{name: 1.0}))
    for name, says in (("q_pe", "the rotary part (q_pe·k_pe)"), ("q_nope", "the latent part (q_nope·W_UK·c)")):
        nothing = inputs[name].type.encode(np.zeros(inputs[name].shape))
        yield Hypothesis(f"{says} is left out of the scores", partial(image.with_inputs, **{name: nothing}))
    if params["causal"]:
        yield Hypothesis("causal is ignored: queries see keys after them", _with_params(image, causal=False))
        yield Hypothesis(
            "the causal mask is off by one: a query sees the key after it", _read(image, Understood(shift=1))
        )
        yield Hypothesis(
            "the causal mask is off by one: a query does not see itself", _read(image, Understood(shift=-1))
        )
        says = "the causal mask counts from the first key: query i sees keys up to i"
        yield Hypothesis(says, _read(image, Understood(from_start=True)))
    if "mask" in inputs:
        yield Hypothesis("the mask is ignored", _read(image, Understood(masked=False)))
    for says, wrong in of_any_attention(int(params["kv_len"]), bool(params["causal"]) or "mask" in inputs):
        yield Hypothesis(says, _read(image, Understood(**wrong)))
    if int(params["kv_len"]) < inputs["c_kv"].shape[2]:
        says = "kv_len is ignored: padding rows of the cache are read"
        yield Hypothesis(says, _with_params(image, kv_len=inputs["c_kv"].shape[2]))
    says = f"the value is read from the wrong columns of a cache row: from {d_r} on, where the latent part starts at 0"
    yield Hypothesis(says, _read(image, Understood(value_start=d_r)))


def of_any_attention(keys: int, hides: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """What any attention may get wrong between its scores and its sums, in words and as `Understood` has it. hides:
    whether a query may see no key."""
    if hides:
        yield "a query that sees no key gets the mean of all values", {"mean": True}
        yield "a query that sees no key gets NaN: 0 / 0", {"nan": True}
    yield "the largest score is not subtracted before the exponentials: they overflow", {"unshifted": True}
    if keys > 1:
        yield "the last key is left out", {"keys": keys - 1}
    for tile in TILES:
        if keys > tile and keys % tile:
            says = f"the last keys are left out: what a tile of {tile} does not fill"
            yield says, {"keys": keys // tile * tile}
        if keys > tile:
            yield f"only the first tile of {tile} keys is looked at", {"keys": tile}


def _with_params(image: Image, **changed: bool | int | float) -> Callable[[], Reading]:
    case = replace(image.case, params={**image.case.params, **changed})
    return lambda: Reading(case, image.raw)


def _read(image: Image, reading: Understood) -> Callable[[], Reading]:
    expect: Expect = partial(expected_of, reading)
    return partial(image.with_expect, expect)
