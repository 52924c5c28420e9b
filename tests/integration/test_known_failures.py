"""Expected failures in a run: what they cover, what they never hide, FIXED, and entries that are at fault."""

from __future__ import annotations

import json
import sqlite3
import xml.etree.ElementTree as ElementTree
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from opconform.cli import main
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from tests.samples import acc

SHORT = (
    *("--op", "acc", "--max-examples", "200", "--seed", "1", "--no-isolation"),
    *("--also-seconds", "0", "--repro-dir", "none", "--database", "none"),
)

#: A backend whose acc is wrong in some way; the file's name stays while what it does changes.
MINE = """
from tests.backends.sample import {name}

class Mine({name}):
    {body}
"""

#: Beside dropping ne3, it adds nothing to rows of 5 elements and more.
ANOTHER = """def acc(self, case, buffers):
        if case.inputs["b"].ne[0] >= 5:
            buffers.array("out")[...] = buffers.array("a")
        else:
            super().acc(case, buffers)
"""

ENTRY = """
[[failure]]
backend = "mine.py:Mine"
op = "acc"
case = "two.json"
reason = "ne3 of b is ignored"
link = "https://example.org/1"
expires = {expires}
{more}
"""


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPCONFORM_DATABASE", raising=False)
    return tmp_path


def mine(name: str, body: str = "pass") -> None:
    Path("mine.py").write_text(MINE.format(name=name, body=body))


def listed(more: str = 'where = { "b.ne3" = ">1" }', expires: str = "2099-12-31") -> None:
    """known_failures.toml with one entry; its case is two slices along ne3."""
    Path("two.json").write_text(json.dumps(acc(1, 1, 1, 2).to_json()))
    Path("known_failures.toml").write_text(ENTRY.format(more=more, expires=expires))


def opconform(*arguments: str, status: int = 0) -> Result:
    found = CliRunner().invoke(main, arguments)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    assert found.exit_code == status, found.output
    return found


def searched(*arguments: str, status: int = 0) -> Result:
    return opconform("test", "--backend", "mine.py:Mine", *SHORT, *arguments, status=status)


def test_an_expected_failure_is_shown_and_does_not_turn_the_run_red() -> None:
    mine("IgnoresNe3")
    searched(status=1)
    listed()
    found = searched().output
    assert "\nknown       acc on mine.py:Mine:0: " in found
    assert "known (" in found
    assert "known failure, its case two.json fails; it covers " in found
    assert "(known_failures.toml, entry 1; until 2099-12-31;" in " ".join(found.split())
    assert " 0 failed, " in found
    assert " failed as expected, " in found


def test_an_expected_failure_does_not_hide_another_in_the_same_op_and_device() -> None:
    mine("IgnoresNe3", ANOTHER)
    listed()
    found = searched(status=1).output
    assert "WRONG VALUES  acc on mine.py:Mine:0" in found
    assert "ne_b=[5,1,1,1]" in found


def test_the_failure_beside_an_expected_one_is_not_shrunk_into_it() -> None:
    mine("IgnoresNe3")
    listed('where = { "b.ne3" = ">1", "b.ne0" = "<4" }')
    found = searched(status=1).output
    assert "ne_b=[4,1,1,2]" in found


def test_an_entry_for_a_check_on_request_is_not_fixed_where_the_check_is_not_run() -> None:
    mine("SumsByLayout")
    listed('kind = "DEPENDS ON LAYOUT"')
    x = Layout("f32", (1, 1, 1, 64), (1024, 1024, 1024, 8))
    params = {"axis": 0, "exclusive": False, "reverse": False}
    case = Case("cumsum", params, {"x": x}, {"out": x.packed()}, recipe="normal")
    Path("two.json").write_text(json.dumps(case.to_json()))
    file = Path("known_failures.toml")
    file.write_text(file.read_text().replace('"acc"', '"cumsum"'))
    found = searched("--op", "cumsum").output
    assert "its case two.json fails" in " ".join(found.split())
    assert "FIXED" not in found


def test_an_expected_wrong_value_does_not_cover_a_crash() -> None:
    mine("AbortsOnNe3")
    listed()
    arguments = [argument for argument in SHORT if argument != "--no-isolation"]
    found = opconform("test", "--backend", "mine.py:Mine", *arguments, "--max-examples", "40", status=1)
    assert "CRASH  acc on mine.py:Mine:0" in found.output


def test_an_entry_whose_case_passes_is_reported_fixed() -> None:
    mine("Good")
    listed()
    found = searched()
    assert "passed 2" in found.output
    line = (
        "FIXED: known_failures.toml, entry 1: acc on mine.py:Mine:0 passes two.json now; remove the entry, or narrow it"
    )
    assert line in found.output.splitlines()


def test_an_entry_whose_case_passes_while_others_fail_asks_for_a_better_case() -> None:
    mine("Good", ANOTHER)
    listed("")
    found = " ".join(searched().output.split())
    assert "known failure, though its case two.json passes: pin one of the " in found
    assert "FIXED" not in found


def test_an_entry_that_matches_no_device_of_its_backend_is_an_error() -> None:
    mine("Good")
    listed('build = "b7836"')
    found = searched(status=1)
    assert "known_failures.toml, entry 1 (acc on mine.py:Mine) matches nothing: build 'b7836', but mine.py:Mine:0" in (
        found.output
    )
    assert "0 failed" in found.output
    searched("--known-failures", "none")


def test_an_entry_of_another_backend_or_op_is_left_alone() -> None:
    mine("Good")
    listed('build = "b7836"', expires="2020-01-01")
    text = Path("known_failures.toml").read_text()
    Path("known_failures.toml").write_text(text.replace("mine.py:Mine", "ggml:Vulkan0"))
    searched()
    Path("known_failures.toml").write_text(text)
    opconform("test", "--backend", "mine.py:Mine", *SHORT[2:], "--op", "set", "--max-examples", "20")


def test_an_expired_entry_is_an_error_and_covers_nothing() -> None:
    mine("IgnoresNe3")
    listed(expires="2020-01-01")
    found = searched(status=1).output
    assert "known_failures.toml, entry 1 (acc on mine.py:Mine) expired on 2020-01-01: ne3 of b is ignored" in found
    assert "WRONG VALUES  acc on mine.py:Mine:0" in found
    mine("Good")
    assert "expired on 2020-01-01" in searched(status=1).output


def test_an_entry_whose_case_the_device_refuses_is_an_error() -> None:
    mine("SaysNo")
    listed("")
    found = searched(status=1).output
    assert "known_failures.toml, entry 1: its case two.json is not supported by mine.py:Mine:0: " in found


def test_a_fault_in_the_list_is_a_usage_error() -> None:
    mine("Good")
    listed(expires='"soon"')
    assert "entry 1: expires is 'soon'; it must be a date" in searched(status=2).output


def test_a_case_that_is_replayed_fails_though_it_is_listed() -> None:
    mine("IgnoresNe3")
    listed()
    opconform("test", "--backend", "mine.py:Mine", "--case", "two.json", *SHORT[-7:], status=1)
    opconform("replay", "two.json", "--backend", "mine.py:Mine", "--no-isolation", "--also-seconds", "0", status=1)


def test_json_and_the_history_say_known_and_compare_follows() -> None:
    mine("Good")
    searched("--history", "good.sqlite")
    mine("IgnoresNe3")
    searched("--history", "bad.sqlite", status=1)
    listed()
    found = searched("--history", "known.sqlite", "--output", "json")
    (result,) = json.loads(found.stdout)["results"]
    assert result["failure"] is None
    assert result["tally"]["known"] > 0
    assert result["known_failures"][0]["fate"] == "fails"
    assert "known failure  acc" in opconform("compare", "good.sqlite", "known.sqlite").output
    assert "no regression; 1 unchanged" in opconform("compare", "known.sqlite", "known.sqlite").output
    assert "known failure  acc" in opconform("compare", "bad.sqlite", "known.sqlite").output
    assert "new failure  acc" in opconform("compare", "known.sqlite", "bad.sqlite", status=1).output
    mine("Good")
    searched("--history", "mended.sqlite")
    found = opconform("compare", "known.sqlite", "mended.sqlite")
    assert "fixed   acc" in found.output
    assert "FIXED: known_failures.toml, entry 1: acc on mine.py:Mine:0 passes two.json now" in found.output
    listed('build = "b7836"')
    assert "matches nothing: build 'b7836'" in opconform("compare", "good.sqlite", "good.sqlite", status=1).output


def test_compared_with_nothing_every_failure_is_new() -> None:
    mine("IgnoresNe3")
    searched("--history", "bad.sqlite", status=1)
    assert "1 regression; 1 new failure" in opconform("compare", "none", "bad.sqlite", status=1).output
    mine("Good")
    searched("--history", "good.sqlite")
    assert "no regression; 1 new pair" in opconform("compare", "none", "good.sqlite").output


def test_the_summary_is_markdown_that_takes_any_name(empty_folder: Path) -> None:
    mine("IgnoresNe3")
    searched("--history", "bad.sqlite", status=1)
    with closing(sqlite3.connect("bad.sqlite")) as db, db:
        for table, column in (("results", "target"), ("results", "result"), ("runs", "pairs")):
            db.execute(f"UPDATE {table} SET {column} = replace({column}, 'mine.py:Mine:0', '<b>|x')")
    Path("summary.md").write_text("before\n")
    opconform("compare", "none", "bad.sqlite", "--summary", "summary.md", status=1)
    text = Path("summary.md").read_text(encoding="utf-8")
    assert text.startswith("before\n## Opconform\n")
    assert "| op | &#60;b&#62;&#124;x |\n| --- | --- |\n| acc | ❌ failed WRONG VALUES " in text
    assert "| new failure | acc | &#60;b&#62;&#124;x | – | failed " in text
    opconform("compare", "none", "bad.sqlite", "--summary", "none/summary.md", status=2)


def test_an_alias_keeps_the_results_of_two_builds_apart() -> None:
    mine("Good")
    searched("--history", "one.sqlite")
    mine("IgnoresNe3")
    opconform("test", "--backend", "mine.py:Mine@old", *SHORT, "--history", "one.sqlite", status=1)
    with closing(sqlite3.connect("one.sqlite")) as db:
        rows = db.execute("SELECT target, kind FROM results ORDER BY target").fetchall()
    assert rows == [("mine.py:Mine:0", ""), ("mine.py:Mine:0@old", "WRONG VALUES")]
    listed()
    text = Path("known_failures.toml").read_text()
    Path("known_failures.toml").write_text(text.replace('"mine.py:Mine"', '"mine.py:Mine@new"'))
    opconform("test", "--backend", "mine.py:Mine@old", *SHORT, status=1)
    opconform("test", "--backend", "mine.py:Mine@new", *SHORT)


def test_pytest_shows_an_expected_failure_as_xfailed(pytester: pytest.Pytester) -> None:
    mine("IgnoresNe3")
    listed()
    arguments = ("--backend", "mine.py:Mine", *SHORT, "-p", "no:cacheprovider")
    Path("test_conformance.py").write_text("from opconform.conformance import *\n")
    result = pytester.runpytest_inprocess(*arguments, "--junitxml", "results.xml")
    assert result.ret == 0
    result.assert_outcomes(xfailed=1)
    (skipped,) = ElementTree.parse("results.xml").getroot().iter("skipped")
    assert skipped.get("type") == "pytest.xfail"
    message = "ne3 of b is ignored (known_failures.toml, entry 1; https://example.org/1)"
    assert skipped.get("message") == message
    listed('build = "b7836"')
    mine("Good")
    result = pytester.runpytest_inprocess(*arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["known_failures.toml, entry 1 (acc on mine.py:Mine) matches nothing: *"])
    listed(expires="3")
    assert pytester.runpytest_inprocess(*arguments).ret == pytest.ExitCode.USAGE_ERROR
