"""`opconform coverage`: the ops that the loaded library names, and which of them are tested."""

from __future__ import annotations

import os
import re

import pytest
from click.testing import CliRunner, Result

from opconform.backends.ggml.caching import STORED
from opconform.backends.ggml.graphs import GRAPHS
from opconform.backends.ggml.names import names_in
from opconform.backends.ggml.ops import OPS
from opconform.backends.ggml.pieces import BUILDS as CHAINS
from opconform.cli import main
from tests.lacking import lacking
from tests.samples import spec

LIB = os.environ.get("OPCONFORM_GGML_LIB", "")
#: Ops of which a library may have no name of its own: several nodes, or another's name.
UNNAMED = {"gated_delta_net_chunk", "mla_absorbed", "pad_circular", "cpy_blocks"}


def coverage(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["coverage", *arguments])


def said_of(library: str) -> str:
    result = coverage("--backend", "ggml:CPU", "--ggml-lib", library)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def said() -> str:
    if not LIB:
        lacking("ggml", "OPCONFORM_GGML_LIB is not set")
    return said_of(LIB)


@pytest.fixture(params=["OPCONFORM_GGML_LIB", "OPCONFORM_GGML_LIB_BROKEN", "OPCONFORM_GGML_LIB_FIXED"])
def lines(request: pytest.FixtureRequest) -> list[str]:
    """What is said of each build."""
    if not os.environ.get(request.param):
        lacking("ggml", f"{request.param} is not set")
    newest = request.param == "OPCONFORM_GGML_LIB"
    text: str = request.getfixturevalue("said") if newest else said_of(os.environ[request.param])
    return text.splitlines()


def test_the_last_line_counts_the_ops_that_the_library_names(lines: list[str]) -> None:
    found = re.fullmatch(r"(\d+) of (\d+) ops", lines[-1])
    assert found
    tested, named = map(int, found.groups())
    assert sum(" tested on " in line for line in lines) == tested
    untested = [line.partition("NOT TESTED: ") for line in lines if "NOT TESTED" in line]
    assert len(untested) == named - tested <= 5
    assert all(reason and reason != "no device here takes it" for _, _, reason in untested)
    assert named > 100


def test_a_line_says_what_stands_in_brackets(lines: list[str]) -> None:
    assert "of 32 drawn cases of each op, those that the device takes" in lines[-2]


def test_each_line_says_where_an_op_is_tested_or_why_not(said: str) -> None:
    by_name = {line.split()[0]: line for line in said.splitlines()[1:-2]}
    assert re.search(r"ACC +op +tested on ggml:CPU \(32\)$", by_name["ACC"])
    assert re.search(r"gated unit +tested on ggml:CPU \(\d+\) as reglu, reglu_split$", by_name["REGLU"])
    assert by_name["VIEW"].endswith("apart: it computes nothing")
    assert by_name["CUSTOM"].endswith("apart: a function of the caller computes it")


def test_no_op_of_the_adapter_is_left_out(said: str) -> None:
    names = {line.split()[0].lower() for line in said.splitlines()[1:-2]}
    missing = {op for op in (*OPS, *GRAPHS) if op.removesuffix("_split") not in names}
    assert missing == {*UNNAMED, *CHAINS, *STORED, "moe_routing"}  # pieces have several nodes


class Library:
    """A library that names two ops, one unary op and one gated unit; behind a table stands what was not meant."""

    ops = ("NONE", "ACC", "NEWEST", "GLU", "f(x)")
    unary = ("ABS", "REGLU", "")
    gated = ("REGLU", "reglu(x)")

    def __getattr__(self, name: str) -> object:
        table = {"ggml_op_name": self.ops, "ggml_unary_op_name": self.unary, "ggml_glu_op_name": self.gated}[name]
        return lambda number: table[number]

    def text(self, pointer: str) -> str:
        return pointer


def test_names_are_read_up_to_the_last_one() -> None:
    found = {name.name: name for name in names_in(Library())}  # type: ignore[arg-type]
    assert list(found) == ["NONE", "ACC", "NEWEST", "GLU", "ABS", "REGLU"]
    assert found["NEWEST"].ops == ()
    assert found["NEWEST"].why
    assert found["ACC"].ops == ("acc",)


def test_a_backend_that_names_no_ops_is_red() -> None:
    result = coverage("--backend", spec("Good"), "--no-isolation")
    assert result.exit_code == 1
    assert "names no ops of its own" in result.output
