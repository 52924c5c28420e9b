"""Recurrent states that decay channel by channel: RWKV_WKV6, RWKV_WKV7, GATED_LINEAR_ATTN and SSM_SCAN.

Each walks through the tokens of a sequence with a matrix of state for each head, and gives an output for each token and
the state after the last one. The bound is carried along: the state is an `Approx`, so each step takes the interval of
what a right kernel may have before a token to that after it (`harness/model/approx.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases.activations import softplus
from opconform.cases.families.choices import choice, drawn_params
from opconform.cases.shapes import is_aligned
from opconform.harness.draw.strategies import among, as_many, composite, counts, few, rare_forms
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import F64, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Index, Op, Problem, Sizes

_RECIPES = ("small_int", "normal", "signed_zero")
_SCALE = choice(1.0, 0.125, 2.0, 0.3, without=1.0)
_ROOM = 1 << 17  #: elements of all states over all tokens
_SIZES = (1, 4, 16, 32, 64, 128)
_BOUND = "the rounding of each step, carried through the recurrence"

#: One step: the state [B, H, …] before the token and the token's arguments [B, H, n] to the output and the state after.
Step = Callable[[Approx, Mapping[str, Approx], Case, str], tuple[Approx, Approx]]


def _at(x: Approx, index: Any) -> Approx:
    value, low, high = (np.ascontiguousarray(it[index]) for it in (x.value, x.low, x.high))
    return Approx(value, low, high, x.numerics, rounded=x.rounded)


def _stacked(parts: list[Approx], dtype: Any, shape: tuple[int, ...]) -> Expected:
    """What is expected of values that were found one after another along the second axis."""
    found = [part.stored(dtype, part.value.shape) for part in parts]
    value, bound = (np.stack([getattr(it, name) for it in found], 1) for name in ("value", "bound"))
    return Expected(value.reshape(shape), bound.reshape(shape))


def _column(x: Approx) -> Approx:
    """[.., n] as [.., n, 1]."""
    return _at(x, (..., None))


def _row(x: Approx) -> Approx:
    """[.., n] as [.., 1, n]."""
    return _at(x, (..., None, slice(None)))


def _sum_rows(x: Approx) -> Approx:
    """Σ over the last axis, which goes."""
    return _at(x.sum(), (..., 0))


def _turned(x: Approx) -> Approx:
    value, low, high = (np.ascontiguousarray(it.swapaxes(-1, -2)) for it in (x.value, x.low, x.high))
    return Approx(value, low, high, x.numerics, rounded=x.rounded)


#: What any recurrence may get wrong, by what a hint says of it.
_FAULTS = {
    "the initial state is ignored: taken as 0": "no state",
    "every token starts from the initial state: none is carried on": "not carried",
    "the state decays after the update instead of before it": "decayed late",
    "the state does not decay": "no decay",
}


def _begun(state: Approx, wrong: str) -> Approx:
    """The state before the first token."""
    return state.held(np.zeros(state.value.shape), 0.0) if wrong == "no state" else state


def _updated(state: Approx, decay: Approx, *added: Approx, wrong: str) -> Approx:
    """decay·s and what is added to it, in any order."""
    after = state if wrong in ("no decay", "decayed late") else state * decay
    after = Approx.total([after, *added]) if len(added) > 1 else after + added[0]
    return after * decay if wrong == "decayed late" else after


# --- RWKV and gated linear attention: states [B, H, S, S] ---


def _wkv6(state: Approx, x: Mapping[str, Approx], case: Case, wrong: str) -> tuple[Approx, Approx]:
    """out_j = Σ_i r_i·(tf_i·k_i·v_j + s_ij), then s_ij ← td_i·s_ij + k_i·v_j (Peng et al. 2024, "Eagle and Finch")."""
    kv = _column(x["k"]) * _row(x["v"])
    decay = _row(x["td"]) if wrong == "decayed along v" else _column(x["td"])
    after = _updated(state, decay, kv, wrong=wrong)
    before = after if wrong == "read after" else state
    seen = before if wrong == "no bonus" else before + kv * _column(x["tf"])
    return _sum_rows(_turned(seen * _column(x["r"]))), after


def _gla(state: Approx, x: Mapping[str, Approx], case: Case, wrong: str) -> tuple[Approx, Approx]:
    """s_ij ← g_i·s_ij + k_i·v_j, then out_j = Σ_i scale·q_i·s_ij (Yang et al. 2023, "Gated Linear Attention")."""
    decay = _row(x["g"]) if wrong == "decayed along v" else _column(x["g"])
    after = _updated(state, decay, _column(x["k"]) * _row(x["v"]), wrong=wrong)
    query = x["q"] if wrong == "unscaled" else x["q"] * float(case.params["scale"])
    return _sum_rows(_turned((state if wrong == "read before" else after) * _column(query))), after


def _wkv7(state: Approx, x: Mapping[str, Approx], case: Case, wrong: str) -> tuple[Approx, Approx]:
    """s_ij ← w_j·s_ij + v_i·k_j + (Σ_l a_l·s_il)·b_j, then out_i = Σ_j r_j·s_ij (Peng et al. 2025, "RWKV-7")."""
    added = [_column(x["v"]) * _row(x["k"])]
    if wrong != "no rank one":
        added.append(_column(_sum_rows(state * _row(x["a"]))) * _row(x["b"]))
    decay = _column(x["w"]) if wrong == "decayed along v" else _row(x["w"])
    after = _updated(state, decay, *added, wrong=wrong)
    return _sum_rows((state if wrong == "read before" else after) * _row(x["r"])), after


@dataclass(frozen=True)
class _Rule:
    """An op of this kind: its arguments by token, those by head alone, one step, and what wrong kernels do."""

    tokens: tuple[str, ...]
    heads: tuple[str, ...]
    step: Step
    faults: Mapping[str, str]
    longest: int

    def expect(self, case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: str = "") -> Expected:
        first = case.inputs[self.tokens[0]]
        (_, total, heads, size), sequences = first.shape, case.inputs["state"].shape[2]
        tokens = total // max(sequences, 1)
        inputs = {
            name: Approx.of(layout.type.decode(raw[name]), layout.type, numerics)
            for name, layout in case.inputs.items()
        }
        shape = (sequences, heads, size, size)
        state = inputs["state"]
        state = Approx(state.value.reshape(shape), state.low.reshape(shape), state.high.reshape(shape), numerics)
        if wrong == "first state":
            state = _at(state, np.zeros(sequences, dtype=int))
        state = first_state = _begun(state, wrong)
        outs = []
        for t in range(tokens):
            places = np.arange(sequences) * tokens + t
            given = {name: _at(inputs[name], (0, places)) for name in self.tokens}
            given |= {name: _at(inputs[name], (0, slice(None))) for name in self.heads}
            out, state = self.step(first_state if wrong == "not carried" else state, given, case, wrong)
            outs.append(out)
        f32 = case.outputs["out"].type
        found = _stacked(outs, f32, case.outputs["out"].shape)
        its = case.outputs["state_out"].shape
        last = state.stored(f32, state.value.shape)
        return Expected(
            found.value,
            found.bound,
            others={"state_out": Expected(last.value.reshape(its), last.bound.reshape(its))},
        )

    def check(self, case: Case) -> None:
        first, state = case.inputs[self.tokens[0]].shape, case.inputs["state"].shape
        (_, total, heads, size), sequences = first, state[2]
        if any(case.inputs[name].shape != (1, total, heads, size) for name in self.tokens):
            raise CaseError(f"{', '.join(self.tokens)} must have one shape (1, tokens, heads, size)")
        if any(case.inputs[name].shape != (1, 1, heads, size) for name in self.heads):
            raise CaseError(f"{', '.join(self.heads)} must have shape (1, 1, {heads}, {size})")
        if not sequences or total % sequences or not total or state != (1, 1, sequences, heads * size * size):
            raise CaseError(
                f"state has shape {state}; it must be (1, 1, n, {heads * size * size}), n a part of {total}"
            )
        outs = {"out": (1, 1, total, heads * size), "state_out": state}
        for name, shape in outs.items():
            if case.outputs[name].shape != shape:
                raise CaseError(f"{name} has shape {case.outputs[name].shape}; it must be {shape}")
        if case.inplace is not None:
            raise CaseError(f"case.inplace must be null: {case.op} does not work in place")

    def sizes(self, case: Case) -> Sizes:
        """A head's size, heads, sequences and the tokens of each."""
        (_, total, heads, size), sequences = case.inputs[self.tokens[0]].shape, case.inputs["state"].shape[2]
        now = {"size": size, "heads": heads, "sequences": sequences, "tokens": total // sequences}
        return Sizes(now, lambda its: (self.shapes(**its), {}))

    def shapes(self, size: int, heads: int, sequences: int, tokens: int) -> dict[str, tuple[int, ...]]:
        """Of all arguments, the outputs among them."""
        total, state = sequences * tokens, (1, 1, sequences, heads * size * size)
        found: dict[str, tuple[int, ...]] = dict.fromkeys(self.tokens, (1, total, heads, size))
        found |= dict.fromkeys(self.heads, (1, 1, heads, size))
        return {**found, "state": state, "out": (1, 1, total, heads * size), "state_out": state}

    def traits(self, case: Case) -> dict[str, Any]:
        """head_size: that of a head. aligned: see `is_aligned`."""
        return {"head_size": case.inputs[self.tokens[0]].shape[3], "aligned": is_aligned(case)}

    def hypotheses(self, image: Image) -> Iterator[Hypothesis]:
        faults = {"every sequence starts from the state of the first": "first state", **self.faults, **_FAULTS}
        for says, wrong in faults.items():
            yield Hypothesis(says, partial(image.with_expect, _otherwise(self, wrong)))

    def settle(self, case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
        """Decays are from 0.3 to 1, and what RWKV-7 removes and adds along a key is as small as there: a = −κ and
        b = κ·η with |κ| = 1 and η from 0 to 1."""
        for name in ("td", "g", "w"):
            if name in values and case.recipe != "small_int":
                values[name][...] = rng.uniform(0.3, 1.0, values[name].shape)
        if "a" in values and case.recipe != "small_int":
            length = np.sqrt((values["a"] ** 2).sum(-1, keepdims=True))
            key = values["a"] / np.where(length > 0, length, 1.0)
            values["a"][...] = -key
            values["b"][...] = key * rng.uniform(0, 1, values["b"].shape)


def _otherwise(rule: _Rule, wrong: str) -> Expect:
    return partial(rule.expect, wrong=wrong)


@composite
def _problems(draw: st.DrawFn, freedom: Freedom, rule: _Rule, scaled: bool) -> Problem:
    """A few tokens of some sequences, now and then many of these, or many heads; shrinks to one token of one head with
    one channel."""
    form = draw(rare_forms("heads", "sequences"))
    if form == "usual":
        size = draw(among(freedom.choices("head_size", _SIZES)))
        heads, sequences = draw(among((1, 2, 3))), draw(among((1, 2, 3)))
        room = max(_ROOM // size**2, 1)
        heads = min(heads, room)
        sequences = min(sequences, max(room // heads, 1))
        longest = min(rule.longest, room // (heads * sequences))
        tokens = draw(among([n for n in (1, 2, 3, 5, 7, 13, 33) if n <= max(longest, 1)]))
    else:
        size, tokens = min(freedom.choices("head_size", _SIZES)), draw(few())
        many = as_many(draw(counts()), max(size**2, size * tokens), freedom)
        heads, sequences = (many, 1) if form == "heads" else (1, many)
    shapes = rule.shapes(size, heads, sequences, tokens)
    outs = {name: shapes.pop(name) for name in ("out", "state_out")}
    params: dict[str, Param] = draw(drawn_params(freedom, {"scale": _SCALE})) if scaled else {}
    return Problem(params, "f32", shapes, outs["out"], more_outputs={"state_out": outs["state_out"]})


_RULES = {
    "rwkv_wkv6": (
        "RWKV-6: Σ_i r_i·(tf_i·k_i·v_j + s_ij), then s ← td·s + k·vᵀ",
        _Rule(
            ("k", "v", "r", "td"),
            ("tf",),
            _wkv6,
            {
                "the state decays along v, not along k": "decayed along v",
                "the output reads the state after the token": "read after",
                "tf is left out": "no bonus",
            },
            33,
        ),
        ("k", "v", "r", "tf", "td", "state"),
    ),
    "rwkv_wkv7": (
        "RWKV-7: s ← s·diag(w) + v·kᵀ + (s·a)·bᵀ, then s·r",
        _Rule(
            ("r", "w", "k", "v", "a", "b"),
            (),
            _wkv7,
            {
                "the state decays along v, not along k": "decayed along v",
                "the output reads the state before the token": "read before",
                "(s·a)·bᵀ is left out": "no rank one",
            },
            13,
        ),
        ("r", "w", "k", "v", "a", "b", "state"),
    ),
    "gated_linear_attn": (
        "gated linear attention: s ← diag(g)·s + k·vᵀ, then scale·sᵀ·q",
        _Rule(
            ("k", "v", "q", "g"),
            (),
            _gla,
            {
                "the state decays along v, not along k": "decayed along v",
                "the output reads the state before the token": "read before",
                "scale is left out": "unscaled",
            },
            33,
        ),
        ("k", "v", "q", "g", "state"),
    ),
}


def _expect_of(rule: _Rule) -> Expect:
    def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return rule.expect(case, raw, numerics)

    expect.__wrapped__ = rule.step  # type: ignore[attr-defined]  # so that a failure names the line of the step
    return expect


# --- SSM_SCAN ---


def ssm_scan(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """s ← e^(Δ·A)·s + Δ·x·B, then out = Σ_n C_n·s_n, with Δ = ln(1 + e^dt); state number ids[b] is that of sequence b.

    A has an element for each head (Mamba-2), or one for each head and channel of the state (Mamba-1). Head h reads
    group ⌊h / (heads/groups)⌋ of B and C (Gu and Dao 2023; Dao and Gu 2024). The bound is carried along.
    """
    return _scanned(case, raw, numerics)


def _scanned(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: str = "") -> Expected:
    given = {
        name: Approx.of(layout.type.decode(raw[name]), layout.type, numerics)
        for name, layout in case.inputs.items()
        if name != "ids"
    }
    sequences, tokens, heads, _ = case.inputs["x"].shape
    groups, ids = case.inputs["b"].shape[2], raw["ids"].view(np.int32).reshape(-1).astype(np.int64)
    if wrong == "first state":
        ids = np.zeros_like(ids)
    if wrong == "in order":
        ids = np.arange(sequences, dtype=np.int64) % case.inputs["state"].shape[0]
    state = _at(given["state"], np.clip(ids, 0, case.inputs["state"].shape[0] - 1))  # [B, H, D, N]
    state = first = _begun(state, wrong)
    group = np.arange(heads) % groups if wrong == "interleaved" else np.arange(heads) // max(heads // groups, 1)
    a = _at(given["a"], (0, slice(None)))  # [1, H, N or 1]
    outs = []
    for t in range(tokens):
        dt = _at(given["dt"], (0, slice(None), t))  # [B, H]
        delta = dt if wrong == "no softplus" else softplus(dt)
        decay = _at((_column(delta) * a).exp(), (..., None, slice(None)))  # [B, H, 1, N or 1]
        x = _at(given["x"], (slice(None), t)) * _column(delta)  # [B, H, D]
        b, c = (_at(given[name], (slice(None), t, group)) for name in ("b", "c"))  # [B, H, N]
        state = first if wrong == "not carried" else state
        after = _updated(state, decay, _column(x) * _row(b), wrong=wrong)
        outs.append(_sum_rows((state if wrong == "read before" else after) * _row(c)))
        state = after
    f32 = case.outputs["out"].type
    found, last = _stacked(outs, f32, case.outputs["out"].shape), state.stored(f32, state.value.shape)
    return Expected(found.value, found.bound, others={"state_out": last})


def _check_scan(case: Case) -> None:
    state, x, dt, a, b, c, ids = (case.inputs[name].shape for name in ("state", "x", "dt", "a", "b", "c", "ids"))
    sequences, tokens, heads, width = x
    if 0 in x or state[1:3] != (heads, width) or dt != (1, sequences, tokens, heads) or ids != (1, 1, 1, sequences):
        raise CaseError(f"x has shape {x}, state {state}, dt {dt}, ids {ids}, which do not fit together")
    if b != c or b[:2] != (sequences, tokens) or b[3] != state[3] or heads % max(b[2], 1):
        raise CaseError(f"b has shape {b} and c {c}; they must be (B, T, a part of {heads}, {state[3]})")
    if a[:3] != (1, 1, heads) or a[3] not in (1, state[3]):
        raise CaseError(f"a has shape {a}; it must be (1, 1, {heads}, 1 or {state[3]})")
    for name, shape in (("out", x), ("state_out", (sequences, *state[1:]))):
        if case.outputs[name].shape != shape:
            raise CaseError(f"{name} has shape {case.outputs[name].shape}; it must be {shape}")
    if case.inplace is not None:
        raise CaseError("case.inplace must be null: ssm_scan does not work in place")


@composite
def _scan_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """A few tokens of some sequences, now and then many of these, or many heads; shrinks to one token of one head."""
    form = draw(among(freedom.choices("form", ("mamba2", "mamba1"))))
    sizes, widths = (
        freedom.choices("d_state", (1, 4, 16, 33, 64, 128, 256)),
        freedom.choices("head_dim", (1, 2, 16, 32, 64)),
    )
    groups = draw(among((1, 2)))
    rare = draw(rare_forms("heads", "sequences"))
    if rare == "usual":
        states, width = draw(among(sizes)), draw(among(widths))
        heads, sequences = groups * draw(among((1, 2, 3, 4))), draw(among((1, 2, 3)))
    else:
        states, width = min(sizes), min(widths)
        many = as_many(draw(counts()), states * width * groups, freedom)
        heads, sequences = groups * (many if rare == "heads" else 1), many if rare == "sequences" else 1
    if not freedom.choices("whole", (False,)) and states == 256:
        width = max(width, 32)
    size = heads * width * states * sequences
    tokens = draw(among([n for n in (1, 2, 3, 7, 17) if n == 1 or n * size <= 1 << 16]))
    shapes = {
        "state": (sequences + draw(among((0, 0, 1, 3))), heads, width, states),
        "x": (sequences, tokens, heads, width),
        "dt": (1, sequences, tokens, heads),
        "a": (1, 1, heads, states if form == "mamba1" else 1),
        "b": (sequences, tokens, groups, states),
        "c": (sequences, tokens, groups, states),
        "ids": (1, 1, 1, sequences),
    }
    more = {"state_out": (sequences, heads, width, states)}
    return Problem({}, "f32", shapes, shapes["x"], more_outputs=more, dtypes={"ids": "i32"})


def _scan_values(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """A is below 0, so that states decay; dt from −4 to 2."""
    values["a"][...] = -np.abs(values["a"]) - 2.0**-8
    if case.recipe != "small_int":
        values["dt"][...] = rng.uniform(-4.0, 2.0, values["dt"].shape)


def _scan_faults(image: Image) -> Iterator[Hypothesis]:
    faults = {
        "ln(1 + e^dt) is left out: dt is taken as it is": "no softplus",
        "every sequence starts from the first state": "first state",
        "ids are ignored: states are taken in order": "in order",
        "heads share B and C as h mod groups, not as h / r": "interleaved",
        "the output reads the state before the token": "read before",
        **_FAULTS,
    }
    for says, wrong in faults.items():
        yield Hypothesis(says, partial(image.with_expect, partial(_scanned, wrong=wrong)))


def _scan_traits(case: Case) -> dict[str, Any]:
    """form: "mamba1" where A has an element for each channel of the state. d_state, head_dim: sizes of a state.
    whole: whether subgroups of 8 threads, one for each row of a state, fill workgroups of d_state threads.
    side_by_side: whether the rows of a token stand side by side in x, b and c; tokens may be apart."""
    state = case.inputs["state"].shape
    rows = [case.inputs[name] for name in ("x", "b", "c")]
    return {
        "form": "mamba1" if case.inputs["a"].shape[3] > 1 or state[3] == 1 else "mamba2",
        "d_state": state[3],
        "head_dim": state[2],
        "whole": state[1] * state[2] % max(state[3] // 8, 1) == 0,
        "side_by_side": all(its.strides[2] == its.shape[3] * its.strides[3] for its in rows),
        "aligned": is_aligned(case),
    }


OPS = (
    *(
        Op(
            name=name,
            summary=summary,
            inputs=inputs,
            params={"scale": float} if "scale" in summary else {},
            dtypes=("f32",),
            problems=partial(_problems, rule=rule, scaled="scale" in summary),
            expect=_expect_of(rule),
            bound=_BOUND,
            check=rule.check,
            traits=rule.traits,
            hypotheses=rule.hypotheses,
            sizes=rule.sizes,
            composite=Composite(more_outputs=("state_out",), recipes=_RECIPES, shape_values=rule.settle, batch_axes=()),
        )
        for name, (summary, rule, inputs) in _RULES.items()
    ),
    Op(
        name="ssm_scan",
        summary="selective state spaces: s ← e^(Δ·A)·s + Δ·x·B, then Σ C·s, Δ = ln(1 + e^dt)",
        inputs=("state", "x", "dt", "a", "b", "c", "ids"),
        params={},
        dtypes=("f32",),
        argument_dtypes={"ids": ("i32",)},
        problems=_scan_problems,
        expect=ssm_scan,
        bound=_BOUND,
        check=_check_scan,
        traits=_scan_traits,
        hypotheses=_scan_faults,
        indices={"ids": Index("state", 0)},
        composite=Composite(
            more_outputs=("state_out",),
            recipes=_RECIPES,
            shape_values=_scan_values,
            packs={("x", "b", "c"): 2},
            batch_axes=(),
        ),
    ),
)
