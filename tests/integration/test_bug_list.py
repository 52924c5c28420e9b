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
from opconform.harness.run.target import Target
from opconform.harness.search.session import targets_of
from opconform.harness.search.settings import Settings
from tests.lacking import lacking

LIST = Path(__file__).parents[2] / "docs" / "bugs.md"
#: Where the builds are that the tests have; the list names others too.
VARIABLES = {
    "b6673": "OPCONFORM_GGML_LIB_OLD",
    "b7836": "OPCONFORM_GGML_LIB_BROKEN",
    "b8121": "OPCONFORM_GGML_LIB_FIXED",
    "v0.5.0": "OPCONFORM_GGML_LIB",
}
_CELLS = ("op", "devices", "wrong", "right", "case")
_ROW = re.compile("".join(rf"\| (?P<{cell}>[^|]+) " for cell in _CELLS))
#: What is below the table, of kernels that only some drivers have.
_OF_SOME_DRIVERS = re.compile(r"\(`(?P<case>[^`]+)`; wrong\s+on (?P<wrong>[^;)]+?)(, right on (?P<right>[^)]+))?\)")


@dataclass(frozen=True)
class Row:
    case: str
    devices: tuple[str, ...]
    wrong: tuple[str, ...]
    right: tuple[str, ...]


@cache
def rows() -> tuple[Row, ...]:
    text = LIST.read_text(encoding="utf-8")

    def listed(words: str) -> tuple[str, ...]:
        return () if words == "–" else tuple(words.split(", "))

    found = [it for it in map(_ROW.match, text.splitlines()) if it and re.fullmatch("`[^`]+/[^`]+`", it["case"])]
    return tuple(Row(it["case"].strip("`"), *(listed(it[name]) for name in _CELLS[1:4])) for it in found)


@cache
def of_some_drivers() -> tuple[Row, ...]:
    """The faults of kernels that ggml has only where push constants may be longer than 128 bytes."""

    def listed(words: str | None) -> tuple[str, ...]:
        return tuple(re.findall(r"b\d+|v\d[\d.]*\d", words or ""))

    found = _OF_SOME_DRIVERS.finditer(LIST.read_text(encoding="utf-8"))
    return tuple(Row(it["case"], ("Vulkan0",), listed(it["wrong"]), listed(it["right"])) for it in found)


def test_the_list_has_twenty_bugs_and_names_builds_that_were_tried() -> None:
    assert len({row.case for row in rows()}) >= 20
    named = {build for row in rows() for build in (*row.wrong, *row.right)}
    assert named == {*VARIABLES, "b8390"}
    assert {device for row in rows() for device in row.devices} == {"CPU", "Vulkan0"}
    assert not [row for row in rows() if not row.wrong or set(row.wrong) & set(row.right)]


def target_of(build: str, device: str) -> Target:
    folder = os.environ.get(VARIABLES[build]) or lacking(
        "ggml", f"{VARIABLES[build]} is not set; `make setup` sets it up"
    )
    (target,), _ = targets_of([f"ggml:{device}"], Settings(options={"ggml_lib": folder}))
    return target


@pytest.mark.parametrize("device", ["CPU", "Vulkan0"])
@pytest.mark.parametrize("build", VARIABLES)
def test_each_case_is_wrong_where_the_list_says_so_and_right_elsewhere(build: str, device: str) -> None:
    target = target_of(build, device)
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


@pytest.mark.parametrize("build", ["b7836", "b8121", "v0.5.0"])
def test_what_only_some_drivers_have_is_a_known_bug_there_and_right_elsewhere(build: str) -> None:
    """Lavapipe of LLVM 15 has push constants of 128 bytes: there ggml runs the nodes one by one, and no bug is known.

    What ROPE does to further sequences is wrong with one kernel and with several, and so known on every driver.
    """
    target = target_of(build, "Vulkan0")
    has_kernels = "llvmpipe (LLVM 15" not in target.about
    wanted = {row.case: has_kernels and build in row.wrong for row in of_some_drivers()}
    assert set(wanted) == {"rms_norm_mul_rope/vulkan-step-w", "rms_norm_mul_rope_set_rows/vulkan-step-w"}
    wanted["rms_norm_mul_rope/vulkan-ne3"] = build == "b7836"
    known, wrong = {}, {}
    with Runner(target) as runner:  # as a run has it: beyond the limits that are bugs, and no others
        for name in wanted:
            case = known_cases()[name].case
            known[name] = name in {limit.pinned for limit in runner.limits(ops()[case.op])}
            (verdict,) = runner.verdicts(ops()[case.op], [case], beyond=("bug",))
            wrong[name] = None if verdict.unsupported else verdict.failed
    assert wrong == wanted
    assert known == wanted
