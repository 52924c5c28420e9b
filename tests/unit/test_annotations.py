"""Annotations, the summary of a job, and SARIF: where a failure stands, and that no text of a stranger breaks them."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from opconform.harness.explain.failure import Failure
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.search.result import Lie, Result, Tally
from opconform.harness.search.settings import Settings
from opconform.reports.annotations import GitHubPrinter, annotation, markdown_of, place_of, sarif
from tests.samples import acc


def failure(detail: str = "2 of 4 elements differ", kind: Kind = Kind.WRONG_VALUES, **more: object) -> Failure:
    found = Failure(
        case=acc(1, 1, 1, 2),
        target="ggml:Vulkan0",
        device="a device",
        versions=(),
        findings=(Finding("value", kind, detail),),
        wrong=None,
        packed_twin="passes",
        bound="u·|a+b|",
        bound_at="cases/acc.py:19",
        stderr="",
    )
    return replace(found, **more)  # type: ignore[arg-type]


def result(found: Failure | None = None, op: str = "acc") -> Result:
    return Result(op, "ggml:Vulkan0", "a device", Tally(8, 0 if found is None else 2, Counter()), found)


@pytest.mark.parametrize(
    ("found", "place"),
    [
        (failure(), ("cases/acc.py", 19)),
        (failure("Oclgrind: a write beyond x, at kernels/set.cl:12 (3 times)"), ("kernels/set.cl", 12)),
        (
            failure("TypeError", stderr='File "a.py", line 3, in run\nFile "b.py", line 44, in f\nTypeError'),
            ("b.py", 44),
        ),
        (failure("ratio 3:4 of 12:30"), ("cases/acc.py", 19)),
    ],
)
def test_a_failure_stands_at_the_kernel_s_line_or_where_its_bound_is_derived(
    found: Failure, place: tuple[str, int]
) -> None:
    assert place_of(found) == place


def test_an_annotation_is_one_line_with_file_title_hint_case_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    Path("kernels").mkdir()
    Path("kernels/set.cl").write_text("")
    line = annotation(failure("a write, at kernels/set.cl:12", hint="ne3 is dropped"), Settings())
    head, message = line.split("::", 2)[1:]
    assert head == "error file=kernels/set.cl,line=12,title=WRONG VALUES%3A acc on ggml%3AVulkan0"
    assert message.split("%0A") == [
        "ne3 is dropped",
        str(acc(1, 1, 1, 2)),
        "opconform replay opconform-out/cases/acc-a1a0d2e183.json --backend ggml:Vulkan0",
    ]
    assert annotation(failure(), Settings()).startswith("::error title=")  # the bound's file is not of this checkout


@pytest.mark.parametrize("foul", ["a\n::error::b", "100%\r\n", "\x1b[2J", "| a | <b>", "::set-output name=x::y"])
def test_a_strangers_text_stays_inside(foul: str) -> None:
    line = annotation(failure(foul, hint=foul, also=foul, target=foul), Settings())
    assert line.isprintable()
    assert line.startswith("::error ")
    shown = markdown_of([result(failure(hint=foul, target=foul))], Settings())
    assert "<b>" not in shown
    assert "\x1b" not in shown
    json.dumps(sarif([failure(foul, hint=foul)], Settings()), allow_nan=False)


def test_sarif_has_a_rule_for_each_kind_and_a_result_for_each_failure() -> None:
    document = sarif([failure(), failure("aborts", Kind.SUPPORTS_OP_LIES)], Settings())
    (run,) = document["runs"]
    rules = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert len(rules) == len(Kind)
    assert [found["ruleId"] for found in run["results"]] == ["wrong-values", "supports-op-lies"]
    assert {found["ruleId"] for found in run["results"]} <= rules
    (location,) = run["results"][0]["locations"]
    assert location["physicalLocation"]["region"] == {"startLine": 19}


def test_ops_that_a_backend_does_not_know_are_one_line_of_the_summary() -> None:
    refused = [
        Result(op, "ggml:Vulkan0", "a device", Tally(0, 0, Counter({f"there is no {op}": 3})))
        for op in ("set", "tri", "pad")
    ]
    found = markdown_of([result(), *refused], Settings()).splitlines()
    assert [line for line in found if line.startswith("| ")][2:] == ["| acc | ✅ passed 8 |"]
    assert found[-1] == "taken by no device&#58; set, tri, pad (there is no this op)".translate(
        {40: "&#40;", 41: "&#41;"}
    )
    alone = markdown_of(refused, Settings())
    assert alone.count("| · unsupported |") == 3  # a run that executes nothing shows what it was asked for
    assert "taken by no device" not in alone


def test_the_summary_of_a_job_has_the_matrix_and_the_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary, stream = tmp_path / "summary.md", io.StringIO()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    printer = GitHubPrinter(Settings(), stream)
    for found in (result(failure(hint="ne3 is dropped")), result(op="set")):
        printer.result(None, None, found)  # type: ignore[arg-type]
    printer.close()
    assert stream.getvalue().count("::error ") == 1
    text = summary.read_text()
    assert "| acc | ❌ WRONG VALUES |" in text
    assert "| set | ✅ passed 8 |" in text
    assert "* ne3 is dropped" in text


def test_what_a_device_aborts_at_is_a_line_of_the_summary_with_the_command_of_each_case() -> None:
    lie = Lie(acc(1, 1, 1, 2), "the kernel asserts rows", "signal SIGABRT")
    found = markdown_of([replace(result(), lies=(lie,))], Settings())
    case = lie.case.id.replace("-", "&#45;")
    assert f"says yes, aborts&#58; 1 op on ggml&#58;Vulkan0&#58; {case}" in found
    assert f"* opconform replay {case}" in found
