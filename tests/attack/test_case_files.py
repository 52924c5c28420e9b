"""Case files and lists of expected failures from strangers: never waited for, and refused in one line."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opconform.cli import main
from opconform.harness.draw.known import LARGEST, case_from_file, find_case, read_case
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.layouts import Layout
from opconform.harness.model.usage import UsageError
from opconform.harness.model.values import inputs_of
from opconform.harness.search.known_failures import facts_of, load
from tests.attack.strangers import anything, foul, paths, put, quickly
from tests.attack.test_printers import safe
from tests.judge import OPS, drawn_cases
from tests.samples import acc, spec

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def refusal(action: Callable[[], object]) -> str:
    """What is said: one line, in no time."""
    with quickly(), pytest.raises((UsageError, CaseError)) as caught:
        action()
    line = safe(str(caught.value))
    assert len(line.split("\n")) == 1
    assert len(line) < 5000
    return line


def special(kind: str, folder: Path) -> Path:
    path = folder / "x.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("fifo", "not a regular file; a case is a regular file with one JSON object"),
        ("folder", "Is a directory; a case is a regular file"),
        ("loop", "Too many levels of symbolic links"),
        ("link to a device", "not a regular file"),
        ("nothing", "No such file or directory"),
    ],
)
def test_what_is_no_regular_file_is_never_waited_for(kind: str, said: str, tmp_path: Path) -> None:
    path = special(kind, tmp_path)
    assert said in refusal(lambda: case_from_file(path))
    assert str(path) in refusal(lambda: find_case(str(path), str(tmp_path)))
    if kind != "nothing":
        assert refusal(lambda: load(str(path))).startswith(f"--known-failures {path}: ")
    done = CliRunner().invoke(main, ["replay", str(path), "--backend", spec("Good")])
    assert done.exit_code == 2
    assert said in done.output


def test_a_case_file_of_a_fifo_ends_pytest_with_a_usage_error(pytester: pytest.Pytester) -> None:
    os.mkfifo("x.json")
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--backend", spec("Good"), "--case", "x.json")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert [line for line in done.errlines if line] == [
        "ERROR: x.json: not a regular file; a case is a regular file with one JSON object",
        *[line for line in done.errlines[1:] if line],
    ]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\xff\xfe\x00", "not JSON: "),
        (b'{"format": "\xe4"}', "not JSON: invalid continuation byte at byte 12; it must be UTF-8"),
        (b"[" * 200_000, "not a case: nested too deep"),
        (b"[" + b"[]," * 2_000_000 + b"[]]", "not a case: it has more than 1,048,576 parts"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not a case: Exceeds the limit"),
        (b'{"seed": NaN}', "not a case: it holds NaN, which is no number of JSON"),
        (b'{"seed": -Infinity}', "not a case: it holds -Infinity"),
        (b"", "not JSON: Expecting value at line 1, column 1"),
    ],
    ids=["no text", "latin-1", "deep", "many", "digits", "NaN", "infinite", "empty"],
)
def test_what_is_no_json_says_so(raw: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(raw)
    assert refusal(lambda: case_from_file(path)).startswith(f"{path}: {said}")


@pytest.mark.parametrize("op", OPS)
def test_a_recipe_that_the_op_does_not_have_is_refused_when_it_is_read(op: str) -> None:
    plain = drawn_cases(op, 1, 1 << 12)[0].to_json()
    for recipe, said in (("salty", f"; {op} has "), ("", f"; {op} has "), ("normal\n", "; "), ("x" * 10_000, "…")):
        text = json.dumps({**plain, "recipe": recipe}).encode()
        line = refusal(lambda text=text: read_case(text, LARGEST))
        assert line.startswith("case.recipe is ")
        assert said in line


def huge_shares() -> dict[str, Any]:
    return {**acc(3).to_json(), "shares": {f"x{i}": "a" for i in range(200_000)}}


def far_apart() -> dict[str, Any]:
    """Two inputs in one memory of a terabyte, and an output whose strides do not nest."""
    plain = acc(3).to_json()
    for name in ("a", "b"):
        plain["inputs"][name]["offset"] = 1 << 39
    return {**plain, "shares": {"b": "a"}}


def spread() -> dict[str, Any]:
    plain = acc(2, 2, a=(2, 2)).to_json()
    layout = {"dtype": "f32", "shape": [1, 1, 3, 2], "strides": [4, 4, 1 << 38, (1 << 38) + 4], "offset": 0}
    return {**plain, "outputs": {"out": layout}}


@pytest.mark.parametrize("make", [huge_shares, far_apart, spread])
def test_a_case_that_is_far_apart_takes_neither_time_nor_memory(make: Callable[[], dict[str, Any]]) -> None:
    text = json.dumps(make()).encode()
    for most in (1 << 20, LARGEST):
        refusal(lambda most=most: read_case(text, most))


def test_strides_that_do_not_nest_are_told_apart_up_to_a_limit() -> None:
    assert not Layout("f32", (1, 1, 3, 2), (4, 4, 16, 24)).overlaps
    with quickly():
        assert Layout("f32", (1, 1, 3, 2), (4, 4, 1 << 38, (1 << 38) + 4)).overlaps


@FUZZ
@given(st.sampled_from(list(OPS)), st.data())
def test_any_value_in_any_place_is_a_case_that_can_run_or_one_line(op: str, data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(drawn_cases(op, 20, 1 << 12)))
    plain = copy.deepcopy(case.to_json())
    for _ in range(data.draw(st.integers(1, 2))):
        put(plain, data.draw(st.sampled_from(paths(plain))), data.draw(anything | st.sampled_from([0, 1, 2, -1, 4])))
    try:
        with quickly():
            found = read_case(json.dumps(plain).encode(), 1 << 20)
            inputs_of(found, OPS[found.op])
            facts_of(OPS[found.op], found)
            Case.from_json(found.to_json())
    except CaseError as error:
        assert len(safe(str(error)).split("\n")) == 1  # noqa: PT017


@FUZZ
@given(st.binary(max_size=40), st.integers(0, 400))
def test_any_bytes_are_a_case_or_one_line(raw: bytes, place: int) -> None:
    text = bytearray(json.dumps(acc(3).to_json()).encode())
    text[place : place + len(raw)] = raw
    for given_bytes in (raw, bytes(text)):
        try:
            read_case(given_bytes, 1 << 20)
        except ValueError as error:
            assert len(safe(str(error)).split("\n")) == 1  # noqa: PT017


# known_failures.toml

ENTRY = """[[failure]]
backend = "ggml:*"
op = "acc"
case = "acc/kb001"
reason = "x"
link = "https://example.org"
expires = 2099-01-01
"""


def said_of(text: str | bytes) -> str:
    """What is said of a list of expected failures: "" where it is one."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "known.toml")
        path.write_bytes(text.encode(errors="replace") if isinstance(text, str) else text)
        try:
            with quickly():
                load(str(path))
        except UsageError as error:
            return safe(str(error))
        return ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 100_000, "not TOML: nested too deep"),
        ("a." * 100_000 + "a = 1", "not TOML: line 1 has more than 100 dots"),
        ("[[failure]]\n" * 80_000, "more faults"),
        (b"\xff\xfe", "not TOML: "),
        ("x" * (2 << 20), "larger than 1 MiB"),
        (ENTRY.replace("acc/kb001", "a" * 5000), "no known case"),
        (ENTRY.replace("acc/kb001", "\\u0000"), "no known case"),
        (ENTRY + "kind = [" + '"x",' * 100_000 + "]", "kind is 'x'; there are"),
        (ENTRY + 'where = { "b.ne3" = ">' + "9" * 5000 + '" }', "lies outside where"),
        (ENTRY + '"a\\nb\\u001b" = 1', "is not known"),
    ],
    ids=["deep", "dots", "many", "no text", "large", "long", "null", "kinds", "digits", "field"],
)
def test_a_list_that_cannot_be_is_refused_in_no_time(text: str | bytes, said: str) -> None:
    assert said in said_of(text)
    assert len(said_of(text).split("\n")) <= 41


@FUZZ
@given(
    st.sampled_from(["backend", "op", "case", "reason", "link", "expires", "where", "kind", "build"]), foul, st.data()
)
def test_any_text_in_an_entry_is_an_entry_or_lines(field: str, text: str, data: st.DataObject) -> None:
    value = json.dumps(text.encode(errors="replace").decode())
    shapes = [value, f"[{value}]", f'{{ "b.ne3" = {value} }}', f"{{ {value} = 1 }}", "2099-01-01", "1e999", "nan", text]
    said_of(ENTRY + f"{field} = {data.draw(st.sampled_from(shapes))}\n")
    lines = [line for line in ENTRY.splitlines() if not line.startswith(field)]
    said_of("\n".join([*lines, f"{field} = {data.draw(st.sampled_from(shapes))}"]))
