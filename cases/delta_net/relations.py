"""Relations between runs of the delta-net ops that hold for every right kernel, in whatever order it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from opconform.harness.model.case import Case, Param
from opconform.harness.model.dtypes import F32, F64, Raw
from opconform.harness.model.expected import Comparison
from opconform.harness.model.findings import Kind
from opconform.harness.model.layouts import Layout
from opconform.harness.model.op import Again, Metamorphic, Op
from opconform.harness.model.values import data_of

Found = Mapping[str, Comparison]
Values = Mapping[str, Raw]

_STATE_ONCE = ("state",)  #: the input that has no tokens


def split_state(op: Op, case: Case, values: Values, found: Found, again: Again) -> str | None:
    """Some tokens, then the rest with the state carried over, against all tokens at once.

    Two runs in a row are one computation of the whole, in chunks that begin where they did: the whole's bound holds for
    them too. Of tokens that fit into one chunk there is nothing to compare.
    """
    tokens = case.inputs["v"].shape[1]
    first = tokens // 2 if "chunk" not in case.params else _whole_chunks(tokens, int(case.params["chunk"]))
    if first == 0:
        return None
    head, tail = ({n: x if n in _STATE_ONCE else x[:, part] for n, x in values.items()} for part in _parts(first))
    one = again(_case(case, head))
    if one is None:
        return None
    sequences = case.inputs["v"].shape[0]
    carried = one["state_out"].got[:sequences]
    if not np.isfinite(carried).all():
        return None
    two = again(_case(case, {**tail, "state": F32.encode(carried)}))
    if two is None:
        return None
    newest = min(_snapshots(case), tokens - first) * sequences
    out = np.concatenate([one["out"].got, two["out"].got], axis=1)
    how = f"{tokens} tokens at once and {first}, then {tokens - first} with the state carried over"
    return _apart("out", found["out"].got, out, 2 * found["out"].bound, how) or _apart(
        "state_out", found["state_out"].got[:newest], two["state_out"].got[:newest], _twice(found, newest), how
    )


def _parts(first: int) -> tuple[slice, slice]:
    return slice(None, first), slice(first, None)


def _whole_chunks(tokens: int, chunk: int) -> int:
    """About half the tokens, in whole chunks; 0 where one chunk holds them all."""
    return max(tokens // 2 // chunk, 1) * chunk if tokens > chunk else 0


def _twice(found: Found, rows: int) -> F64:
    return 2 * found["state_out"].bound[:rows]


def sequence_isolation(op: Op, case: Case, values: Values, found: Found, again: Again) -> str | None:
    """The last sequence alone against itself in company."""
    sequences = case.inputs["v"].shape[0]
    if sequences == 1:
        return None
    alone = again(_case(case, {name: x[-1:] for name, x in values.items()}))
    if alone is None:
        return None
    last = {"out": slice(-1, None), "state_out": slice(sequences - 1, None, sequences)}
    return _first_apart(found, alone, {name: (part,) for name, part in last.items()}, "its last sequence alone")


def head_permutation(op: Op, case: Case, values: Values, found: Found, again: Again) -> str | None:
    """All heads in reverse order: value heads keep their key heads, whichever way these are shared."""
    if case.inputs["v"].shape[2] == 1:
        return None
    back = (slice(None), slice(None), slice(None, None, -1))
    turned = {name: x[:, ::-1] if name in _STATE_ONCE else x[back] for name, x in values.items()}
    reverse = again(_case(case, turned))
    if reverse is None:
        return None
    return _first_apart(found, reverse, {"out": back, "state_out": back[1:]}, "its heads reversed")


def chunk_size(op: Op, case: Case, values: Values, found: Found, again: Again) -> str | None:
    """Another chunk size computes the same function."""
    sizes = (16, 32, 64)
    chunk = sizes[(sizes.index(int(case.params["chunk"])) + 1) % len(sizes)]
    whole: dict[str, Param] = {"form": "whole", "place": "set"} if chunk == sizes[0] else {}
    other = again(_case(case, values, chunk=chunk, **whole))
    return None if other is None else _both(found, other, f"chunks of {case.params['chunk']} and of {chunk}")


def recurrent_is_chunk(op: Op, case: Case, values: Values, found: Found, again: Again) -> str | None:
    """Token by token and in chunks: one function."""
    params = {name: value for name, value in case.params.items() if name not in ("chunk", "form", "place")}
    twin = replace(_case(case, values), op="gated_delta_net", params={**params, "snapshots": 1})
    other = again(twin)
    return None if other is None else _both(found, other, "chunks and token by token")


def _snapshots(case: Case) -> int:
    return int(case.params.get("snapshots", 1))


def _case(case: Case, values: Values, **params: Param) -> Case:
    """A packed case with these elements, and of their shapes."""
    inputs = {name: Layout.contiguous("f32", raw.shape) for name, raw in values.items()}
    out = values["v"].shape
    state = (_snapshots(case) * out[0], *case.outputs["state_out"].shape[1:])
    outputs = {"out": Layout.contiguous("f32", out), "state_out": Layout.contiguous("f32", state)}
    twin = replace(case, params={**case.params, **params}, inputs=inputs, outputs=outputs)
    return twin.with_data(data_of(dict(values)))


def _both(found: Found, other: Found, how: str) -> str | None:
    """What is wrong between two runs, each within its own bound of the one right answer."""
    for name, seen in found.items():
        detail = _apart(name, seen.got, other[name].got, seen.bound + other[name].bound, how)
        if detail:
            return detail
    return None


def _first_apart(found: Found, other: Found, parts: Mapping[str, tuple[slice, ...]], how: str) -> str | None:
    """What is wrong between parts of a run and a run of those parts alone: each may be off by the bound."""
    for name, part in parts.items():
        seen = found[name]
        detail = _apart(name, seen.got[part], other[name].got, 2 * seen.bound[part], f"the case and {how}")
        if detail:
            return detail
    return None


def _apart(name: str, one: F64, other: F64, bound: F64, how: str) -> str | None:
    free = np.isinf(bound) | np.isnan(one)
    apart = ~((np.abs(one - other) <= bound) | free)
    if not apart.any():
        return None
    count = int(np.count_nonzero(apart))
    return f"{count} of {apart.size} elements of {name} differ by more than the bounds between {how}"


_SEQUENCES = Metamorphic(
    "sequence_isolation", "a sequence gives the same alone and in company", Kind.SEQUENCES_MIXED, sequence_isolation
)
_HEADS = Metamorphic("head_permutation", "heads do not know each other", Kind.HEADS_MIXED, head_permutation)
_SPLIT = Metamorphic(
    "split_state", "tokens give the same in two runs with the state carried", Kind.STATE_LOST, split_state
)

RECURRENT = (_SPLIT, _SEQUENCES, _HEADS)
CHUNKED = (
    _SPLIT,
    _SEQUENCES,
    _HEADS,
    Metamorphic("chunk_size", "any chunk size computes the same function", Kind.CHUNKS_DIFFER, chunk_size),
    Metamorphic("recurrent_is_chunk", "both forms compute the same function", Kind.FORMS_DIFFER, recurrent_is_chunk),
)
