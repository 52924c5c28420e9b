"""Problems and values that the two delta-net ops share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.harness.draw.strategies import among, composite, counts, few, integers, outer_sizes
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import F64
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Problem

INPUTS = ("q", "k", "v", "g", "beta", "state")
PARAMS: Mapping[str, type] = {
    "scale": float,
    "heads": str,
    "state_layout": str,
    "l2norm": bool,
    "eps": float,
    "gate": str,
}

#: From the plainest to the strangest; `shape_values` says what each means.
RECIPES = (
    "small_int",
    "unit_keys",
    "normal",
    "slow_decay",
    "strong_decay",
    "signed_zero",
    "denormal",
    "wide",
    "growing",
)

_HEAD_SIZES = (1, 2, 3, 4, 5, 7, 8, 11, 13, 15, 16, 17)
_LARGE_HEAD_SIZES = (16, 31, 32, 33, 64, 100, 128)
#: How many elements the states of all tokens may have: a reference takes milliseconds. In a rare form it is more.
_BUDGET = 1 << 16
_RARE_BUDGET = 5 << 16
#: Elements of a chunk's matrices over all chunks, of which the reference holds a dozen; no more than a
#: case may have bytes.
_MATRICES = 1 << 21

#: What the sizes are like. "usual": a few small heads. The others spend on one thing: both head sizes, the number of
#: heads and how many share a key head, tokens, sequences, heads of a real size, or more heads than a grid holds.
_FORMS = among(("usual",) * 11 + ("wide", "heads", "tokens", "sequences", "real", "many"))
_WIDE = (64, 100, 128, 129, 192, 200, 256)
_KEY_HEADS = among((1, 2, 3, 4, 8, 16, 17, 32))
_SEQUENCES = among((8, 9, 16, 17, 33))

SMALLEST_GATE = 2.0**-126


@composite
def problems(
    draw: st.DrawFn,
    freedom: Freedom,
    tokens: st.SearchStrategy[int],
    long: st.SearchStrategy[int],
    own: Mapping[str, Param],
) -> Problem:
    """Problems of `tokens` tokens, or in a rare form of `long` ones, with the parameters `own` of the op.

    Shrinks to one token, one head of size 1.
    """
    per_head = draw(among(freedom.choices("gda", (True, False))))
    form = draw(_FORMS)
    sizes: tuple[int, ...] = _LARGE_HEAD_SIZES if draw(integers(0, 7)) == 7 else _HEAD_SIZES
    widths: tuple[int, ...] = _HEAD_SIZES
    if form == "wide":
        sizes = widths = _WIDE
    elif form == "real":
        sizes = widths = (64, 128)
    elif form == "many":
        sizes = widths = (1, 2)
    allowed = freedom.choices("head_size", sizes) or freedom.choices("head_size", _LARGE_HEAD_SIZES)
    keys = draw(among(allowed))
    square = draw(among(freedom.choices("square", (True, False))))
    width = keys if square else draw(among(widths))
    kept = int(own.get("snapshots", 1))
    short = form in ("wide", "real", "many") and kept < 8
    length = draw(few() if short else long if form == "tokens" else tokens)
    numbers = [
        length,
        draw({"usual": outer_sizes(), "sequences": _SEQUENCES}.get(form, few())),
        draw({"heads": _KEY_HEADS, "real": among((4, 16))}.get(form, among((1, 2, 3)))),
        draw(among(freedom.choices("heads_per_key", (4, 5, 8, 1) if form in ("heads", "real") else (1, 2, 3)))),
    ]
    if form == "many":
        numbers[1:] = draw(st.permutations((draw(counts()), 1, 1)))
        numbers[3] = numbers[3] if numbers[3] in freedom.choices("heads_per_key", (numbers[3],)) else 1
    budget = min(_BUDGET if form == "usual" else _RARE_BUDGET, freedom.max_bytes // 16)
    chunk, matrices = int(own.get("chunk", 1)), min(_MATRICES, freedom.max_bytes)
    if form == "many" and _states(numbers, kept) * keys * width > budget:
        keys, width, numbers[0] = min(allowed), min(allowed if square else widths), min(length, kept)
    while (_states(numbers, kept) * keys * width > budget or _in_matrices(numbers, chunk) > matrices) and max(
        numbers[1:]
    ) + max(numbers[0] - kept, 0) > 1:
        largest = max(range(0 if numbers[0] > kept else 1, 4), key=numbers.__getitem__)
        numbers[largest] = max(numbers[largest] // 2, 1)
    length, sequences, key_heads, shared = numbers
    if kept > length and length in freedom.choices("snapshots", (length,)) and draw(integers(0, 7)):
        kept, own = length, {**own, "snapshots": length}  # older ones are nobody's: that is tried now and then
    heads = key_heads * shared
    layout = draw(among(freedom.choices("state_layout", ("kv", "vk"))))
    normalises = draw(among(freedom.choices("l2norm", (False, True))))
    usual = draw(among(freedom.choices("usual_scale", (True, False))))
    params: dict[str, Param] = {
        "scale": usual_scale(keys) if usual else draw(among((1.0, 0.25, -3.0))),
        "heads": draw(among(freedom.choices("heads", ("tiled", "interleaved")))),
        "state_layout": layout,
        "l2norm": normalises,
        "eps": draw(among((1e-6, 1e-3))) if normalises else 1e-6,
        "gate": draw(among(freedom.choices("gate", ("log", "decay")))),
        **own,
    }
    state = (heads, *((keys, width) if layout == "kv" else (width, keys)))
    shapes = {
        "q": (sequences, length, key_heads, keys),
        "k": (sequences, length, key_heads, keys),
        "v": (sequences, length, heads, width),
        "g": (sequences, length, heads, 1 if per_head else keys),
        "beta": (sequences, length, heads, 1),
    }
    if draw(among(freedom.choices("has_state", (False, True)))):
        shapes["state"] = (sequences, *state)
    return Problem(params, "f32", shapes, shapes["v"], more_outputs={"state_out": (kept * sequences, *state)})


def _states(numbers: Sequence[int], kept: int) -> int:
    """How many states there are over all tokens, and how many of them are given back."""
    length, *others = numbers
    return max(length, kept) * math.prod(others)


def _in_matrices(numbers: Sequence[int], chunk: int) -> int:
    """The elements of a matrix of chunk × chunk, over all chunks of all heads."""
    length, *others = numbers
    return -(-length // chunk) * math.prod(others) * chunk**2


def usual_scale(keys: int) -> float:
    """1/√K, as every model has it."""
    return 1 / math.sqrt(keys)


def shape_values(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """Keys, gates and β as models have them, and worse.

    small_int: keys with one or two elements of ±1, β 0 or 1, gates 0 to −3 (decays 1 to ⅛): where no log gate but 0 is
    drawn the results are whole numbers. unit_keys: q and k of length 1, usual gates. normal: longer keys, so that
    I − βkkᵀ may grow. slow_decay: gates that are 0 or nearly so. strong_decay: gates over [−316, 0), so that
    exp(−Σg) overflows float32. signed_zero, denormal, wide: v and state of that kind. growing: β up to 2, as models
    with negative eigenvalues have it, and token by token gates up to 0.3; a chunk has none above 0, for no form of it
    may exponentiate a positive sum. Elsewhere β is in [0, 1] with exact 0 and 1, one key in sixteen is 0, and gates are
    exactly 0, tiny, or usual.
    """
    _shape_keys(case, values, rng)
    _shape_gates(case, values, rng)
    beta = values["beta"]
    ends = rng.integers(0, 2, beta.shape).astype(np.float64)
    inside = rng.random(beta.shape)
    if case.recipe == "growing":
        ends, inside = 2 * ends, 2 * inside
    beta[...] = np.where((case.recipe == "small_int") | (rng.random(beta.shape) < 0.2), ends, inside)


def _shape_keys(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    q, k = values["q"], values["k"]
    size = k.shape[-1]
    if case.recipe == "small_int":
        signs = np.sign(k)
        first, second = (rng.integers(0, size, (*k.shape[:-1], 1)) for _ in range(2))
        place = np.arange(size)
        k[...] = np.where((place == first) | (place == second), signs, 0.0)
        return
    if case.recipe == "signed_zero":
        k *= 2.0 ** -np.ceil(np.log2(size) / 2)
        return
    if case.recipe in ("denormal", "wide"):
        if case.params["l2norm"] and case.recipe == "denormal" and rng.random() < 0.5:
            return
        for x in (q, k):
            x[...] = rng.standard_normal(x.shape)
    squares = 1.0
    if case.recipe == "normal":
        squares = float(rng.choice((0.25, 2.0, 3.0 if k.shape[1] <= 20 else 1.5)))
        k *= np.sqrt(squares / size)
    else:
        for x in (q, k):
            norms = np.sqrt(np.sum(x * x, axis=-1, keepdims=True))
            x /= np.where(norms > 0, norms, 1.0)
    if case.params["l2norm"]:
        for x in (q, k):
            x *= 10.0 ** rng.uniform(-3, 3, (*x.shape[:-1], 1))
    k[rng.random(k.shape[:-1]) < 1 / 16] = 0.0


def _shape_gates(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    g = values["g"]
    chosen = rng.random(g.shape)
    tiny = -(10.0 ** rng.uniform(-9, -3, g.shape))
    if case.recipe == "small_int":
        gates = -rng.integers(0, 4, g.shape).astype(np.float64)
        gates[chosen < 0.5] = 0.0
        if case.params["gate"] == "decay":
            gates *= np.log(2.0)
    else:
        gates = -np.exp(rng.normal(-1.5, 1.5, g.shape))
        if case.recipe == "strong_decay":
            gates = -316.0 * rng.random(g.shape) ** 3
        tiny_share = 0.9 if case.recipe == "slow_decay" else 0.3
        gates = np.where(chosen < tiny_share, tiny, gates)
        if case.recipe == "growing" and "chunk" not in case.params:
            gates = np.where(rng.random(g.shape) < 0.4, 0.3 * rng.random(g.shape), gates)
        gates[rng.random(g.shape) < 0.15] = 0.0
    if case.params["gate"] == "decay":
        gates = np.exp(gates)
        if "chunk" in case.params:
            gates = np.maximum(gates, SMALLEST_GATE)
    g[...] = gates


def traits(case: Case) -> Mapping[str, Any]:
    """What limits may speak of: sizes, the kind of gate, whether there is a state, whether the scale is 1/√K, and
    whether q and k are laid out alike."""
    keys, width = case.inputs["k"].shape[3], case.inputs["v"].shape[3]
    return {
        "gda": case.inputs["g"].shape[3] == 1,
        "square": keys == width,
        "head_size": keys,
        "heads_per_key": case.inputs["v"].shape[2] // case.inputs["k"].shape[2],
        "has_state": "state" in case.inputs,
        "alike": _steps(case.inputs["q"]) == _steps(case.inputs["k"]),
        "usual_scale": bool(np.float32(case.params["scale"]) == np.float32(usual_scale(keys))),
    }


def _steps(layout: Layout) -> list[int]:
    """The strides that are ever taken."""
    return [stride for size, stride in zip(layout.shape, layout.strides) if size > 1]


def check(case: Case, snapshots: int) -> None:
    """Raises `CaseError` for parameters or shapes that do not fit together."""
    for name, allowed in (
        ("heads", ("tiled", "interleaved")),
        ("state_layout", ("kv", "vk")),
        ("gate", ("log", "decay")),
    ):
        if case.params[name] not in allowed:
            raise CaseError(f"{name} is {case.params[name]!r}; it must be one of {', '.join(allowed)}")
    if not 1e-20 <= float(case.params["eps"]) <= 1.0:
        raise CaseError(f"eps is {case.params['eps']}; it must be from 1e-20 to 1")
    if abs(float(case.params["scale"])) > 1e6:
        raise CaseError(f"scale is {case.params['scale']}; it must be within ±1e6")
    if not 1 <= snapshots <= 1024:
        raise CaseError(f"snapshots is {snapshots}; it must be from 1 to 1024")
    (sequences, length, key_heads, keys), (heads, width) = case.inputs["q"].shape, case.inputs["v"].shape[2:]
    if min(sequences, length, key_heads, keys, heads, width) < 1:
        raise CaseError("every size of q, k and v must be at least 1")
    if heads % key_heads:
        raise CaseError(f"v has {heads} heads; they must be a multiple of the {key_heads} of k")
    state = (heads, *((keys, width) if case.params["state_layout"] == "kv" else (width, keys)))
    gates = case.inputs["g"].shape[3]
    wanted = {
        "k": case.inputs["q"].shape,
        "v": (sequences, length, heads, width),
        "g": (sequences, length, heads, keys if gates == keys else 1),
        "beta": (sequences, length, heads, 1),
        "state": (sequences, *state),
        "out": (sequences, length, heads, width),
        "state_out": (snapshots * sequences, *state),
    }
    for name, layout in case.layouts.items():
        if name != "q" and layout.shape != wanted[name]:
            raise CaseError(f"{name} has shape {layout.shape}; it must be {wanted[name]}")
    if case.inplace is not None:
        raise CaseError(f"case.inplace must be null: {case.op} does not work in place")
