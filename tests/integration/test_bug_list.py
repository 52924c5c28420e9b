"""docs/bugs.md is true: each of its cases is wrong on the builds that it names as wrong, and right on the others."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from opconform.harness.draw.known import known_cases
from opconform.harness.model.ops import ops
from opconform.harness.run.runner import Runner
from opconform.harness.search.session import targets_of
from opconform.harness.search.settings import Settings
from tests.lacking import lacking

#: Where the builds are that the tests have; the list names others too.
VARIABLES = {
    "b6673": "OPCONFORM_GGML_LIB_OLD",
    "b7836": "OPCONFORM_GGML_LIB_BROKEN",
    "b8121": "OPCONFORM_GGML_LIB_FIXED",
    "v0.5.0": "OPCONFORM_GGML_LIB",
}
_CELLS = ("op", "devices", "wrong", "right", "case")
_ROW = re.compile("".join(rf"\| (?P<{cell}>[^|]+) " for cell in _CELLS))


@dataclass(frozen=True)
class Row:
    case: str
    devices: tuple[str, ...]
    wrong: tuple[str, ...]
    right: tuple[str, ...]


@cache
def rows() -> tuple[Row, ...]:
    text = (Path(__file__).parents[2] / "docs" / "bugs.md").read_text(encoding="utf-8")

    def listed(words: str) -> tuple[str, ...]:
        return () if words == "–" else tuple(words.split(", "))

    found = [it for it in map(_ROW.match, text.splitlines()) if it and re.fullmatch("`[^`]+/[^`]+`", it["case"])]
    return tuple(Row(it["case"].strip("`"), *(listed(it[name]) for name in _CELLS[1:4])) for it in found)


def test_the_list_has_twenty_bugs_and_names_builds_that_were_tried() -> None:
    assert len({row.case for row in rows()}) >= 20
    named = {build for row in rows() for build in (*row.wrong, *row.right)}
    assert named == {*VARIABLES, "b8390"}
    assert {device for row in rows() for device in row.devices} == {"CPU", "Vulkan0"}
    assert not [row for row in rows() if not row.wrong or set(row.wrong) & set(row.right)]


@pytest.mark.parametrize("device", ["CPU", "Vulkan0"])
@pytest.mark.parametrize("build", VARIABLES)
def test_each_case_is_wrong_where_the_list_says_so_and_right_elsewhere(build: str, device: str) -> None:
    folder = os.environ.get(VARIABLES[build]) or lacking(
        "ggml", f"{VARIABLES[build]} is not set; `make setup` sets it up"
    )
    (target,), _ = targets_of([f"ggml:{device}"], Settings(options={"ggml_lib": folder}))
    told = [row for row in rows() if device in row.devices and build in (*row.wrong, *row.right)]
    wanted = {row.case: build in row.wrong for row in told}
    found = {}
    with Runner(target, strict=True) as runner:
        for name in wanted:
            case = known_cases()[name].case
            for _ in range(3):  # a race need not show each time
                (verdict,) = runner.verdicts(ops()[case.op], [case], beyond=("bug",))
                if verdict.failed:
                    break
            found[name] = None if verdict.unsupported else verdict.failed
    assert found == wanted
