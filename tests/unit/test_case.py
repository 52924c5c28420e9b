"""Case files: they come back as they were, and a hostile one gives one line and nothing else."""

from __future__ import annotations

import base64
import copy
import json
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opconform.harness.draw.known import checked
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.layouts import Layout
from opconform.harness.model.values import data_of, inputs_of
from tests.judge import OPS, drawn_cases

ACC = Case(
    "acc",
    {"nb1": 16, "nb2": 48, "nb3": 96, "offset": 4},
    {"a": Layout.contiguous("f32", (2, 2, 3, 4)), "b": Layout("f32", (2, 1, 2, 3), (64, 64, 16, 4), 8)},
    {"out": Layout("f32", (2, 2, 3, 4), (8, 16, 32, 96), 12)},
    recipe="index",
    seed=7,
    keep=1,
)
PLAIN: dict[str, Any] = ACC.to_json()

Change = Callable[[dict[str, Any]], object]


def put(*path: str | int, to: object) -> Change:
    """A change of the plain case: the value at `path` becomes `to`."""

    def change(plain: dict[str, Any]) -> None:
        target: Any = plain
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = to

    return change


def drop(*path: str) -> Change:
    """A change of the plain case: the field at `path` is missing."""

    def change(plain: dict[str, Any]) -> None:
        target: Any = plain
        for step in path[:-1]:
            target = target[step]
        del target[path[-1]]

    return change


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def packed(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw, 9)).decode()


A_BYTES, B_BYTES = 48 * 4, 12 * 4
BOMB = packed(bytes(64 << 20))  # 64 KiB of text
INPUT = ("inputs", "b")

HOSTILE: dict[str, Change] = {
    **{f"no {name}": drop(name) for name in ("format", "op", "params", "inputs", "outputs", "recipe", "seed")},
    **{f"a layout without {name}": drop(*INPUT, name) for name in ("dtype", "shape", "strides", "offset")},
    "another format": put("format", to="opconform-case/2"),
    "a format that is a number": put("format", to=1),
    "an op that is a list": put("op", to=["acc"]),
    "params that are a list": put("params", to=[]),
    "a param that is an object": put("params", "nb1", to={}),
    "a param that is null": put("params", "nb1", to=None),
    "a NaN param": put("params", "nb1", to=float("nan")),
    "an infinite param": put("params", "nb1", to=float("inf")),
    "inputs that are text": put("inputs", to="a"),
    "a layout that is a list": put(*INPUT, to=[1, 2]),
    "a layout that is null": put(*INPUT, to=None),
    "an unknown dtype": put(*INPUT, "dtype", to="f64"),
    "a dtype that is a number": put(*INPUT, "dtype", to=32),
    "a shape that is a number": put(*INPUT, "shape", to=4),
    "a shape that holds text": put(*INPUT, "shape", to=[2, 1, 2, "3"]),
    "a shape that holds a truth value": put(*INPUT, "shape", to=[2, True, 2, 3]),
    "a shape that holds a fraction": put(*INPUT, "shape", to=[2, 1, 2, 3.0]),
    "a shape that holds a list": put(*INPUT, "shape", to=[2, 1, 2, [3]]),
    "a negative size": put(*INPUT, "shape", to=[2, 1, 2, -3]),
    "five dimensions": put(*INPUT, to={"dtype": "f32", "shape": [1] * 5, "strides": [4] * 5, "offset": 0}),
    "a million dimensions": put(*INPUT, to={"dtype": "f32", "shape": [1] * 10**6, "strides": [4] * 10**6, "offset": 0}),
    "too few strides": put(*INPUT, "strides", to=[64, 16, 4]),
    "a negative stride": put(*INPUT, "strides", to=[64, 64, -16, 4]),
    "a stride that is no multiple of the element": put(*INPUT, "strides", to=[64, 64, 18, 4]),
    "a stride above 2^63": put(*INPUT, "strides", to=[64, 2**64, 16, 4]),
    "a giant stride": put(*INPUT, "strides", to=[2**62, 64, 16, 4]),
    "a giant shape": put(*INPUT, "shape", to=[2**40, 2**40, 2, 3]),
    "a giant shape at one address": put(*INPUT, to={"dtype": "f32", "shape": [2**62], "strides": [0], "offset": 0}),
    "a giant empty shape": put(
        *INPUT, to={"dtype": "f32", "shape": [0, 2**62, 2**62, 4], "strides": [0, 0, 0, 4], "offset": 0}
    ),
    "a negative offset": put(*INPUT, "offset", to=-4),
    "an odd offset": put(*INPUT, "offset", to=2),
    "a giant offset": put(*INPUT, "offset", to=2**62),
    "an offset that is a truth value": put(*INPUT, "offset", to=False),
    "an unknown field": put("colour", to="red"),
    "an unknown field in a layout": put(*INPUT, "colour", to="red"),
    "outputs that overlap": put("outputs", "out", "strides", to=[8, 16, 4, 4]),
    "outputs that broadcast": put("outputs", "out", "strides", to=[0, 16, 32, 96]),
    "many outputs that overlap": put(
        "outputs", "out", to={"dtype": "f16", "shape": [2, 1 << 24], "strides": [2, 2], "offset": 0}
    ),
    "no outputs": put("outputs", to={}),
    "three dimensions": put(*INPUT, to={"dtype": "f32", "shape": [1] * 3, "strides": [4] * 3, "offset": 0}),
    "an argument of another dtype": put(*INPUT, to={"dtype": "i32", "shape": [1] * 4, "strides": [4] * 4, "offset": 0}),
    "a param that is a fraction": put("params", "nb1", to=16.0),
    "a param that is a truth value": put("params", "nb1", to=True),
    "a missing param": drop("params", "nb1"),
    "an unknown param": put("params", "nb0", to=4),
    "an unknown op": put("op", to="accc"),
    "an unknown recipe": put("recipe", to="salty"),
    "no inputs": put("inputs", to={}),
    "an argument that is both input and output": put("outputs", to={"a": PLAIN["inputs"]["a"]}),
    "a recipe that is null": put("recipe", to=None),
    "a seed that is a truth value": put("seed", to=True),
    "a seed that is text": put("seed", to="7"),
    "a negative seed": put("seed", to=-1),
    "a seed above 2^63": put("seed", to=2**64),
    "a keep that is text": put("keep", to="1"),
    "a keep that is a truth value": put("keep", to=True),
    "an inplace that is a number": put("inplace", to=1),
    "an inplace that is no input": put("inplace", to="out"),
    "an inplace of another layout": put("inplace", to="a"),
    "deep nesting": put("params", "nb1", to=nested(500)),
    "a line break in a name": put("inputs", "x\nTraceback (most recent call last):", to=5),
    "a line break in a parameter's name": put("params", "x\ny", to=None),
    "a line break in a field's name": put("x\ny", to=1),
    "a name of a megabyte": put("inputs", "x" * 10**6, to=5),
    "a format of a megabyte": put("format", to="x" * 10**6),
    "an id that is a number": put("id", to=5),
    "data that is a list": put("data", to=[]),
    "data for one input only": put("data", to={"a": packed(bytes(A_BYTES))}),
    "data for too many inputs": put("data", to={name: packed(bytes(A_BYTES)) for name in "abc"}),
    "data that is null": put("data", to={"a": None, "b": None}),
    "data that is not base64": put("data", to={"a": packed(bytes(A_BYTES)), "b": "!!!!"}),
    "data that is not ASCII": put("data", to={"a": packed(bytes(A_BYTES)), "b": "ÄÄÄÄ"}),
    "data that is not zlib": put("data", to={"a": packed(bytes(A_BYTES)), "b": "AAAA"}),
    "data cut short": put("data", to={"a": packed(bytes(A_BYTES)), "b": packed(bytes(range(B_BYTES)))[:-8]}),
    "too little data": put("data", to={"a": packed(bytes(A_BYTES)), "b": packed(bytes(B_BYTES - 1))}),
    "too much data": put("data", to={"a": packed(bytes(A_BYTES)), "b": packed(bytes(B_BYTES + 1))}),
    "a bomb": put("data", to={"a": packed(bytes(A_BYTES)), "b": BOMB}),
}


def read(plain: object) -> None:
    """Everything that stands between a case file and its run."""
    case = checked(Case.from_json(plain))
    inputs_of(case, OPS[case.op])


def fault(plain: object) -> str | None:
    """What is wrong with it, or None; any other exception than `CaseError` fails the test."""
    try:
        read(plain)
    except CaseError as error:
        return str(error)
    return None


def one_line(error: pytest.ExceptionInfo[CaseError]) -> str:
    """What the user is shown."""
    text = str(error.value)
    assert len(text.splitlines()) == 1
    assert len(text) < 1000
    text.encode()  # a lone surrogate could not be printed
    return text


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_case_gives_one_line_in_no_time_and_little_memory(change: Change) -> None:
    plain = copy.deepcopy(PLAIN)
    change(plain)
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(CaseError) as error:
            read(plain)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 80 << 20  # the limit of a case is 64 MiB
    assert time.perf_counter() - start < 5
    one_line(error)


@pytest.mark.parametrize("plain", [None, True, 0, 1.5, "case", [], [PLAIN], {}, {"format": None}])
def test_what_is_not_a_case_gives_one_line(plain: object) -> None:
    with pytest.raises(CaseError) as error:
        Case.from_json(plain)
    one_line(error)


def test_a_case_above_max_bytes_is_refused_with_the_limit() -> None:
    with pytest.raises(CaseError, match="--max-bytes allows 500") as error:
        Case.from_json(PLAIN, max_bytes=500)
    one_line(error)


def test_a_case_that_only_sums_up_to_too_much_is_refused() -> None:
    sizes = sum(layout.end for layout in ACC.layouts.values())
    Case.from_json(PLAIN, max_bytes=sizes)
    with pytest.raises(CaseError, match="--max-bytes"):
        Case.from_json(PLAIN, max_bytes=sizes - 1)


_scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
_json = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


def _paths(plain: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in JSON data."""
    steps = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    return [path] * bool(path) + [found for step, inner in steps for found in _paths(inner, (*path, step))]


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_value_in_any_place_gives_a_case_that_its_op_can_judge_or_one_line(data: st.DataObject) -> None:
    plain = copy.deepcopy(PLAIN)
    put(*data.draw(st.sampled_from(_paths(PLAIN))), to=data.draw(_json))(plain)
    assert len((fault(plain) or "").splitlines()) <= 1


@given(_json)
def test_any_json_is_a_case_or_one_line(plain: object) -> None:
    with pytest.raises(CaseError) as error:
        Case.from_json(plain)
    one_line(error)


@pytest.mark.parametrize("op", OPS)
def test_cases_come_back_from_json_as_they_were(op: str) -> None:
    for case in drawn_cases(op, 200, 1 << 16):
        again = Case.from_json(json.loads(json.dumps(case.to_json())))
        assert again == case
        assert (again.id, again.key, again.data) == (case.id, case.key, None)
        assert list(again.inputs) == list(case.inputs)  # the order of arguments is the op's


@pytest.mark.parametrize("op", OPS)
def test_exact_bytes_come_back_as_they_were(op: str) -> None:
    for case in drawn_cases(op, 100, 1 << 16):
        values = inputs_of(case, OPS[op])
        exact = case.with_data(data_of(values))
        again = Case.from_json(json.loads(json.dumps(exact.to_json())))
        assert again.data == exact.data
        found = inputs_of(again, OPS[op])
        assert {name: raw.tobytes() for name, raw in found.items()} == exact.data
        assert all(found[name].shape == case.inputs[name].shape for name in found)


def test_exact_bytes_keep_nan_payloads_and_signed_zeros() -> None:
    words = [0x7F800001, 0xFFFFFFFF, 0x80000000, 0x00000001]
    layout = Layout.contiguous("f32", (1, 1, 1, 4))
    raw = b"".join(word.to_bytes(4, "little") for word in words)
    case = Case("cumsum", {"axis": 0}, {"x": layout}, {"out": layout}, data={"x": raw})
    again = Case.from_json(json.loads(json.dumps(case.to_json())))
    assert inputs_of(again, OPS["cumsum"])["x"].reshape(-1).tolist() == words


def test_ids_are_the_same_in_every_version() -> None:
    assert ACC.id == "acc-af2935297d"
    assert ACC.packed().id == "acc-1ac3ccf452"
    layout = Layout.contiguous("f32", (1, 1, 1, 1))
    params = {"axis": 0, "exclusive": False, "reverse": False}
    assert Case("cumsum", params, {"x": layout}, {"out": layout}).id == "cumsum-dd3a644413"


def test_exact_bytes_do_not_change_the_id() -> None:
    assert ACC.with_data({"a": bytes(A_BYTES), "b": bytes(B_BYTES)}).id == ACC.id


def test_every_field_changes_the_id() -> None:
    found = set()
    for change in (
        put("op", to="set"),
        put("params", "nb1", to=20),
        put("inputs", "a", "strides", to=[96, 48, 16, 8]),
        put("outputs", "out", "offset", to=16),
        put("recipe", to="normal"),
        put("seed", to=8),
        put("keep", to=None),
    ):
        plain = copy.deepcopy(PLAIN)
        change(plain)
        found.add(Case.from_json(plain).id)
    assert len(found - {ACC.id}) == 7


def test_a_truth_value_and_a_number_are_different_parameters() -> None:
    layout = Layout.contiguous("f32", (1, 1, 1, 1))
    one = Case("cumsum", {"axis": 1}, {"x": layout}, {"out": layout})
    other = Case("cumsum", {"axis": True}, {"x": layout}, {"out": layout})
    assert one.id != other.id


def test_a_case_reads_as_ggml_writes_it() -> None:
    assert str(ACC) == (
        "ACC(type=f32,ne_a=[4,3,2,2],ne_b=[3,2,1,2],nb1=16,nb2=48,nb3=96,offset=4,"
        "nb_b=[4,16,64,64],offset_b=8,nb_out=[96,32,16,8],offset_out=12)"
    )
