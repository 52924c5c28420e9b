"""`opconform import` and `export` with the numbers of a real libggml, and the lines of a model that ran on it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from opconform.backends.ggml.library import VARIABLE
from opconform.backends.ggml.llama.lines import NodeLines
from opconform.harness.draw.known import find_cases, known_cases
from opconform.harness.model.case import Case
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.registry import backend_class

BUILDS = (VARIABLE, f"{VARIABLE}_OLD", f"{VARIABLE}_BROKEN", f"{VARIABLE}_FIXED")


def folder_in(variable: str) -> str:
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} is not set")
    return folder


def opconform(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    command = [sys.executable, "-c", "from opconform.cli import main; main()", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("variable", BUILDS)
def test_each_build_writes_and_reads_its_own_numbers(variable: str) -> None:
    lines = backend_class("ggml").lines({"ggml_lib": folder_in(variable)})
    assert isinstance(lines, NodeLines)
    numbers = lines.numbers
    assert {"ADD", "MUL_MAT", "UNARY", "GLU"} <= set(numbers.ops)
    assert {"TANH", "SILU"} <= set(numbers.units)
    assert numbers.gates[:3] == ("REGLU", "GEGLU", "SWIGLU")
    for name in ("acc/upstream-2026-01", "mul_mat/uneven"):
        case = known_cases()[name].case
        text = lines.write(case, name)
        assert int(text.split()[0]) == numbers.ops.index(case.op.upper())
        assert lines.read(text)[0] == name


def layouts(case: Case) -> tuple[object, ...]:
    return case.op, tuple(sorted((name, layout.packed()) for name, layout in case.layouts.items()))


def test_the_lines_of_a_model_become_its_cases_and_those_its_lines(tmp_path: Path) -> None:
    lib = ("--ggml-lib", folder_in(VARIABLE))
    model = ["--arch", "kimi-linear", "--steps", "0", "--tokens", "9", "--backend", "ggml:CPU", "--no-values"]
    status, out, err = opconform("capture", *model, "-o", "captured", *lib, cwd=tmp_path)
    assert status == 0, out + err
    status, out, err = opconform("import", "captured/test-file.txt", "-o", "imported", *lib, cwd=tmp_path)
    assert status == 0, out + err
    assert "left out" not in out
    captured, imported = (
        {layouts(case) for _, case in find_cases(str(tmp_path / name), "none")} for name in ("captured", "imported")
    )
    assert captured == imported
    (tmp_path / "captured" / "test-file.txt").rename(tmp_path / "ops.txt")
    status, out, err = opconform("export", "captured", "-o", "again.txt", *lib, cwd=tmp_path)
    assert status == 0, out + err
    given, again = (
        {line.rpartition(" ")[0] for line in (tmp_path / name).read_text().splitlines()}
        for name in ("ops.txt", "again.txt")
    )
    attention = NodeLines.of({"ggml_lib": lib[1]}).numbers.ops.index("FLASH_ATTN_EXT")
    odd = {line.split()[0] for line in again - given}
    assert odd <= {str(attention)}  # a graph asks for attention of a precision, which is none of a case
    assert len(again) > len(given) / 2
    status, out, err = opconform("test", "--case", "imported", "--backend", "ggml:CPU", *lib, cwd=tmp_path)
    assert status == 0, out + err
    cases = [case for _, case in find_cases(str(tmp_path / "imported"), "none")]
    empty = [case for case in cases if not any(math.prod(its.shape) for its in case.outputs.values())]
    assert f"{len(cases) - len(empty)} cases run, " in out  # one without an element says nothing


def test_without_a_library_nobody_knows_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    status, _, err = opconform("export", "cumsum/upstream-127", "-o", "x.txt", cwd=tmp_path)
    assert status == 1
    assert "no libggml was given" in err
    with pytest.raises(Unavailable, match="is not a folder"):
        backend_class("ggml").lines({"ggml_lib": str(tmp_path / "nothing")})
    (tmp_path / "libggml.so").write_bytes(b"no library")
    with pytest.raises(Unavailable, match="does not name its ops"):
        backend_class("ggml").lines({"ggml_lib": str(tmp_path)})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import", "nothing.txt"], "nothing.txt: No such file or directory"),
        (["import"], "Missing argument 'FILE'"),
        (["export", "cumsum/upstream-127"], "Missing option '-o'"),
        (["export", "nothing", "-o", "x"], "no case 'nothing'"),
        (["export", "cumsum/upstream-127", "--op", "acc", "-o", "x"], "takes cases, or --op"),
        (["export", "--op", "nothing", "-o", "x"], "no op 'nothing'"),
        (["export", "--op", "acc", "--backend", "torch", "-o", "x"], "has no tools that read cases"),
        (["export", "--op", "acc", "--backend", "ggml", "--backend", "torch", "-o", "x"], "takes one backend"),
    ],
)
def test_what_cannot_be_exchanged_is_one_line_of_usage(arguments: list[str], says: str, tmp_path: Path) -> None:
    status, _, err = opconform(*arguments, *("--ggml-lib", folder_in(VARIABLE)), cwd=tmp_path)
    assert status == 2
    assert says in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_backend_that_cannot_be_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise RuntimeError('mine')\nclass Mine: pass\n")
    status, _, err = opconform("export", "acc/kb001", "-o", "x", "--backend", "mine.py:Mine", cwd=tmp_path)
    assert status == 2
    assert "--backend mine.py:Mine cannot be imported: RuntimeError: mine" in err
