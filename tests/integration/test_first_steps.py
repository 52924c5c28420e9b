"""A newcomer's first steps: the demo, what an op is, a backend to fill in, and a known case of one's own."""

from __future__ import annotations

import json
import os
import re
import textwrap
import time
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from opconform import commands_case, commands_describe
from opconform.cli import main
from opconform.harness.draw.known import checked, known_cases
from opconform.harness.model.case import Case
from opconform.harness.model.ops import op_names, ops
from opconform.harness.search import session
from opconform.shapes import Sample, drawn, fitting, shapes_of
from tests.samples import acc


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "backend_names", list)
    monkeypatch.setattr(commands_describe, "drawn", lambda op: sample_of(op.name))
    monkeypatch.setattr(commands_case, "drawn", lambda op: sample_of(op.name))
    return tmp_path


@cache
def sample_of(op: str) -> Sample:
    return drawn(ops()[op])


def opconform(*arguments: str) -> Result:
    found = CliRunner().invoke(main, arguments)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found


def test_the_demo_shows_a_failure_its_cause_and_a_kernel_that_passes() -> None:
    start = time.monotonic()
    found = opconform("demo")
    assert found.exit_code == 0
    assert time.monotonic() - start < 30
    assert re.search(r"^WRONG VALUES  acc on \S+demo_kernel\.py:Broken:0  \(demo\)$", found.output, re.MULTILINE)
    assert "hint       the outermost dimension (ne3) of b is not handled: only i3 = 0 is processed" in found.output
    assert re.search(r"^passed      acc on \S+demo_kernel\.py:Mended:0: \d+ cases", found.output, re.MULTILINE)
    (file, line) = re.findall(r"The fault is in (\S+):(\d+):", found.output)[0]
    assert "return min(n3, 1)" in Path(file).read_text().splitlines()[int(line) - 1]
    assert {path.name for path in Path().rglob("*")} == {"opconform-out", "cases", "acc-a1a0d2e183.json"}


@pytest.mark.parametrize("op", op_names())
def test_every_op_is_described(op: str) -> None:
    text = opconform("describe", op).output
    assert text.startswith(f"{op}  {ops()[op].summary}\n")
    for name in (*ops()[op].inputs, *ops()[op].outputs, *ops()[op].params):
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name
    assert ops()[op].bound in text
    skeleton = text[text.index('  """A backend for ') :]
    compile(textwrap.dedent(skeleton), "mine.py", "exec")
    sample = sample_of(op)
    for problem in sample.problems:
        shapes = shapes_of(ops()[op], problem)
        assert fitting(sample, shapes, shapes) == shapes


@pytest.mark.parametrize("op", ["cumsum", "gated_delta_net"])
def test_a_skeleton_is_a_backend_that_runs_and_is_not_right_yet(op: str) -> None:
    Path("mine.py").write_text(opconform("describe", op, "--skeleton").output)
    arguments = ("--op", op, "--max-examples", "16", "--no-isolation", "--history", "none", "--also-seconds", "0")
    found = opconform("test", "--backend", "mine.py", *arguments)
    assert f"  {op} on mine.py:Mine:0" in found.output
    assert "ERROR" not in found.output
    assert found.exit_code == 1


def test_a_skeleton_says_in_brief_which_quantised_types_there_are() -> None:
    lines = opconform("describe", "mul_mat", "--skeleton").output.splitlines()
    assert any(
        "# f32 f16 bf16, or one of " in line and "(an element is the bytes of a block)" in line for line in lines
    )
    assert max(map(len, lines)) <= 160


def test_what_an_argument_s_sizes_have_to_do_with_the_others_is_said() -> None:
    text = opconform("describe", "ssm_conv").output
    assert re.search(r"^  out +f32 +ne=\[n1,n0−m0\+1,n2,1\]   output$", text, re.MULTILINE)
    said = opconform("describe", "acx").output
    assert "no op 'acx'; there are abs, acc, " in said
    assert re.search(r"; did you mean (\w+ or )*acc( or \w+)*\?$", said.strip())


def test_an_output_that_a_case_may_leave_out_is_said_to_be_one() -> None:
    text = opconform("describe", "softcap").output
    assert re.search(r"^  mid .* output; may be left out$", text, re.MULTILINE)
    assert 'buffers.array("mid") if "mid" in case.outputs else None' in text


NEW = ("--about", "a shape", "--source", "https://example.org/1")


def entry(*arguments: str) -> Case:
    found = opconform("new-case", *arguments, *NEW)
    assert found.exit_code == 0, found.output
    plain = json.loads(found.output)
    assert (plain["about"], plain["source"]) == ("a shape", "https://example.org/1")
    return checked(Case.from_json(plain["case"]))


def test_a_new_case_has_the_sizes_that_were_asked_for_and_the_others_follow() -> None:
    case = entry("cumsum", "--id", "cumsum/mine", "--ne", "x=128,3", "--param", "axis=1", "--recipe", "index")
    assert (case.inputs["x"].ne, case.outputs["out"].ne) == ((128, 3, 1, 1), (128, 3, 1, 1))
    assert (case.params["axis"], case.recipe) == (1, "index")
    case = entry(
        "acc", "--id", "acc/mine", "--ne", "a=8,4,2", "--ne", "b=4,2,2", "--nb", "b=4,32,64,128", "--seed", "3"
    )
    assert case.params == acc(4, 2, 2, a=(8, 4, 2)).params
    assert (case.inputs["b"].nb, case.seed) == ((4, 32, 64, 128), 3)
    like = entry("acc", "--id", "acc/like", "--like", "acc/kb001", "--offset", "b=64")
    assert like.inputs["a"] == known_cases()["acc/kb001"].case.inputs["a"]
    assert like.inputs["b"].offset == 64


def test_new_cases_go_into_a_file_one_after_the_other() -> None:
    for name in ("one", "two"):
        found = opconform("new-case", "cumsum", "--id", f"cumsum/{name}", "--ne", "x=5,2", "--into", "mine.json", *NEW)
        assert found.exit_code == 0
    entries = json.loads(Path("mine.json").read_text())
    assert [each["id"] for each in entries] == ["cumsum/one", "cumsum/two"]
    again = opconform("new-case", "cumsum", "--id", "cumsum/one", "--ne", "x=5,2", "--into", "mine.json", *NEW)
    assert (again.exit_code, "it has cumsum/one already" in again.output) == (2, True)


def test_a_new_case_leaves_the_other_lines_of_a_packaged_file_as_they_are() -> None:
    packaged = (Path(commands_case.__file__).parent / "cases" / "known" / "fused.json").read_text("utf-8")
    Path("mine.json").write_text(packaged, "utf-8")
    opconform("new-case", "cumsum", "--id", "cumsum/one", "--ne", "x=5,2", "--into", "mine.json", *NEW)
    before, after = (
        [line.rstrip(",") for line in text.splitlines()] for text in (packaged, Path("mine.json").read_text())
    )
    assert [line for line in after if "cumsum/one" not in line] == before


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("a FIFO", "not a regular file"),
        ("[" * 10**5 + "]" * 10**5, "nested too deep"),
        ('{"id": "cumsum/one"}', "it is no list of cases"),
        ("\xff", "can't decode byte"),
    ],
    ids=["fifo", "deep", "object", "latin-1"],
)
def test_a_file_that_takes_no_new_case_is_refused_and_stays(what: str, says: str) -> None:
    path = Path("mine.json")
    if what == "a FIFO":
        os.mkfifo(path)
    else:
        path.write_bytes(what.encode("latin-1"))
    found = opconform("new-case", "cumsum", "--id", "cumsum/one", "--ne", "x=5,2", "--into", "mine.json", *NEW)
    assert found.exit_code == 2
    assert says in found.output.splitlines()[-1]
    assert path.is_fifo() or path.read_bytes() == what.encode("latin-1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("cumsum --id cumsum/mine --ne x=1,3", "says nothing of a kernel: a copy of x passes too"),
        ("cumsum --id acc/mine", "it must be cumsum/ and a name"),
        ("cumsum --id cumsum/upstream-10", "--id cumsum/upstream-10 is taken: "),
        ("cumsum --id cumsum/mine --ne y=3", "--ne y=3: write NAME=…, with a name of x, out"),
        ("cumsum --id cumsum/mine --ne x=3,b", "--ne x=3,b: write up to four numbers with commas, innermost first"),
        ("cumsum --id cumsum/mine --param axis=far", "--param axis=far: it is int"),
        ("cumsum --id cumsum/mine --ne x=5 --param axis=7", "axis is 7"),
        ("cumsum --id cumsum/mine --ne x=5 --recipe odd", "recipe is 'odd'"),
        ("cumsum --id cumsum/mine --like acc/kb001", "--like acc/kb001 is of acc, not of cumsum"),
        ("acc --id acc/mine --ne b=4,2 --ne a=1", "acc"),
    ],
)
def test_what_is_no_case_worth_keeping_is_refused(arguments: str, message: str) -> None:
    found = opconform("new-case", *arguments.split(), *NEW)
    assert found.exit_code == 2
    assert message in found.output.splitlines()[-1] or message == "acc"
