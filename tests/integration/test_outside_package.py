"""A package outside this repository adds an op, with a row for torch and one for ggml, in a few lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

#: All that such a package consists of.
MODULE = """
from opconform.backends.ggml.rows import Row, Wants
from opconform.cases.families import elementwise
from opconform.harness.model.layouts import LayoutClass

OPS = (
    elementwise("square", "x²", lambda x: x * x, mistakes={"x is doubled": lambda x: x + x}),
    elementwise("negative", "−x", lambda x: -x),
)
TORCH = {"square": lambda case, tensors: tensors["x"].square(), "negative": lambda case, tensors: -tensors["x"]}
ROWS = (Wants("CPU", "x", LayoutClass.ROWS, "aborts unless rows are contiguous", "ggml-cpu/unary-ops.cpp"),)
GGML = (Row("square", "ggml_sqr(x)", wants=ROWS), Row("negative", "ggml_neg(x)", wants=ROWS))
"""
ENTRY_POINTS = """
[opconform.ops]
squares = squares:OPS
[opconform.rows.torch]
squares = squares:TORCH
[opconform.rows.ggml]
squares = squares:GGML
"""
METADATA = """
Metadata-Version: 2.1
Name: squares
Version: 1.0
"""


def test_such_a_package_has_at_most_25_lines() -> None:
    assert sum(len(text.strip().splitlines()) for text in (MODULE, ENTRY_POINTS, METADATA)) <= 25


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which the package is installed."""
    (tmp_path / "squares.py").write_text(MODULE)
    info = tmp_path / "squares-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (info / "METADATA").write_text(METADATA.lstrip())
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def opconform(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from opconform.cli import main; main()", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("backend", ["torch", "ggml:CPU"])
def test_its_op_is_searched(installed: dict[str, str], tmp_path: Path, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    elif "OPCONFORM_GGML_LIB" not in os.environ:
        message = "OPCONFORM_GGML_LIB is not set"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    done = opconform(
        installed,
        *("test", "--op", "square,negative", "--backend", backend, "--max-examples", "64"),
        *("--report-dir", str(tmp_path), "--repro-dir", "none", "--history", "none"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "2 of 2 pairs of op and device without a failure" in done.stdout


def test_a_fault_in_it_gets_the_hint_that_it_brings(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "doubling.py").write_text(
        "from opconform import Backend\n\n\n"
        "class Doubling(Backend):\n"
        "    def run(self, case, buffers):\n"
        '        buffers.array("out")[...] = 2 * buffers.array("x")\n'
    )
    arguments = ("--max-examples", "64", "--report-dir", str(tmp_path), "--repro-dir", "none", "--history", "none")
    done = opconform(installed, "test", "--op", "square", "--backend", f"{tmp_path}/doubling.py:Doubling", *arguments)
    assert done.returncode == 1
    assert "x is doubled" in done.stdout
    assert re.search(r"\[squares\.py:\d+\]", done.stdout)  # where its formula stands
