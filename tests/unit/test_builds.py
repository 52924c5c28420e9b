"""The build is part of a target's name: in the history, the matrix, the report, comparisons, runs and bundles."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from opconform.cli import main
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.builds import Build, names_apart
from opconform.harness.run.backend import Device
from opconform.harness.run.target import Target
from opconform.harness.search.settings import Settings
from opconform.reports import states
from opconform.reports.compare import compare, table_of
from opconform.reports.console import matrix
from opconform.reports.html.data import report_of
from opconform.reports.html.page import html
from opconform.reports.merge import merge
from opconform.reports.repro.bundle import write_bundle
from opconform.reports.repro.place import bundle_of, bundle_path
from opconform.reports.run import Run, about_devices
from opconform.reports.states import Pair, devices_in, states_of, target_names
from opconform.reports.summary import markdown_of
from tests.histories import FAILED, PASSED, VULKAN, failure_of, record, result_of
from tests.repro_samples import one_failure

OLD = replace(VULKAN, device=Device("Vulkan0", "llvmpipe", {"build": "b7836", "driver": "22.3"}))
NEW = replace(VULKAN, device=Device("Vulkan0", "llvmpipe", {"build": "b8121", "driver": "22.3"}))
DRIVER = replace(VULKAN, device=Device("Vulkan0", "llvmpipe", {"build": "b8121", "driver": "25.0"}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


def ran(path: Path, target: Target, *verdicts: Verdict, ops: tuple[str, ...] = ("acc",), **chosen: object) -> Run:
    """A run of one build, with the same results for each of these ops."""
    run = Run(
        Settings(history=str(path), seed=7, **chosen),  # type: ignore[arg-type]
        "search",
        about_devices([target]),
        [(op, target.label) for op in ops],
    )
    for op in ops:
        record(run, list(verdicts), replace(result_of(list(verdicts)), op=op, build=target.build.name), close=False)
    record(run, [])
    return run


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def test_names_tell_builds_apart() -> None:
    assert [where.build.name for where in (OLD, NEW, DRIVER)] == ["b7836", "b8121", "b8121"]
    assert list(names_apart([OLD.build, NEW.build]).values()) == ["b7836", "b8121"]
    assert list(names_apart([NEW.build, DRIVER.build]).values()) == ["b8121, driver 22.3", "b8121, driver 25.0"]
    assert Build.of({"torch": "2.13", "BLAS": "MKL"}).name == "torch 2.13"
    assert (Build().name, str(Build()), str(OLD.build)) == ("", "", "build b7836, driver 22.3")
    pairs = [Pair("acc", "ggml:Vulkan0", where.build) for where in (OLD, NEW)] + [Pair("acc", "mine:0")]
    assert list(target_names(pairs).values()) == ["ggml:Vulkan0 (b7836)", "ggml:Vulkan0 (b8121)", "mine:0"]


def test_the_report_has_a_column_for_each_build(path: Path) -> None:
    ran(path, OLD, FAILED, ops=("acc", "set"))
    ran(path, NEW, PASSED, ops=("acc",))
    page = html(report_of(path))
    heads = re.findall(r'<th scope="col">(ggml:[^<]*)<', page)
    assert heads == ["ggml:Vulkan0 (b7836)", "ggml:Vulkan0 (b8121)"]
    cells = [text_of(cell) for cell in re.findall(r"<td>(.*?)</td>", page[: page.index("</table>")], re.DOTALL)]
    assert cells == ["FAILED 1 WRONG VALUES", "passed 1", "FAILED 1 WRONG VALUES", "not tested"]
    assert "WRONG VALUES acc on ggml:Vulkan0 (b7836)" in text_of(page)
    assert "acc on ggml:Vulkan0 (b8121) 1" in text_of(page)
    devices = page[page.index('id="devices"') :]
    assert devices.index("b7836") < devices.index("b8121")


def test_a_build_that_was_tested_long_before_has_been_replaced(path: Path) -> None:
    runs = [ran(path, target, verdict) for target, verdict in ((OLD, FAILED), (NEW, PASSED), (DRIVER, PASSED))]
    found = {pair.build: state.outcome for pair, state in states_of(path).items()}
    assert found == {OLD.build: "failed", NEW.build: "passed", DRIVER.build: "passed"}  # all were begun just now
    with closing(sqlite3.connect(path)) as db:
        for run, day in zip(runs, ("01", "02", "02")):
            db.execute("UPDATE runs SET started = ? WHERE run_id = ?", (f"2026-01-{day}T01:00:00Z", run.id))
        db.commit()
    assert {pair.build for pair in states_of(path)} == {NEW.build, DRIVER.build}
    assert states.BESIDE.total_seconds() < 24 * 3600


def test_shards_of_two_builds_are_not_added_up(path: Path) -> None:
    ran(path, NEW, PASSED, shard=(1, 2))
    ran(path, DRIVER, FAILED, shard=(2, 2))
    found = {pair.build: (state.outcome, state.executed) for pair, state in states_of(path).items()}
    assert found == {NEW.build: ("passed", 1), DRIVER.build: ("failed", 1)}
    devices = {pair.build: device.versions["driver"] for pair, device in devices_in(path).items()}
    assert devices == {NEW.build: "22.3", DRIVER.build: "25.0"}


def test_a_build_is_compared_with_itself_and_a_new_one_with_the_last(path: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    ran(old, OLD, PASSED)
    ran(new, OLD, PASSED)
    ran(new, NEW, FAILED)
    before, after = states_of(old), states_of(new)
    (change,) = compare(before, after)
    assert (change.what, change.pair.build, change.target) == (
        "new failure",
        NEW.build,
        "ggml:Vulkan0 (b7836 → b8121)",
    )
    assert change.target in table_of([change])
    assert compare(after, before) == []  # the other build has not vanished: its target was tested
    assert [change.what for change in compare(after, {})] == ["vanished", "vanished"]
    page = markdown_of([change], before, after)
    assert "b7836 → b8121" in page
    assert page.index("ggml&#58;Vulkan0 &#40;b7836&#41;") < page.index("ggml&#58;Vulkan0 &#40;b8121&#41;")


def test_histories_of_two_machines_keep_their_builds_after_a_merge(tmp_path: Path) -> None:
    one, two, out = (tmp_path / f"{name}.sqlite" for name in ("one", "two", "out"))
    ran(one, NEW, PASSED)
    ran(two, DRIVER, FAILED)
    merge(out, [one, two])
    assert {pair.build: state.outcome for pair, state in states_of(out).items()} == {
        NEW.build: "passed",
        DRIVER.build: "failed",
    }
    assert "ggml:Vulkan0 (b8121, driver 25.0)" in text_of(html(report_of(out)))


def test_the_matrix_names_the_build() -> None:
    head = matrix([replace(result_of([PASSED]), build="b8121")]).splitlines()[:2]
    assert head == ["      ggml:Vulkan0", "op    b8121"]
    long = matrix([replace(result_of([PASSED]), build="driver " + "x" * 100)])
    assert "driver " + "x" * 25 + "…" in long


def test_runs_can_be_told_apart(path: Path) -> None:
    ran(path, OLD, PASSED, FAILED, ops=("acc", "set", "tri", "pad", "cpy"))
    ran(path, NEW, PASSED)
    ran(path, DRIVER, PASSED)
    done = CliRunner().invoke(main, ["runs", "--history", str(path)])
    head, first, second, third = (re.split(r"\s{2,}", line) for line in done.output.splitlines())
    assert head == ["run", "started", "ended", "what", "target", "build", "ops", "result", "seed", "shard"]
    assert first[3:9] == [
        *("search", "ggml:Vulkan0", "b7836", "acc, set, tri and 2 more", "5 of 5 fail, 10 cases", "7")
    ]
    assert second[3:8] == ["search", "ggml:Vulkan0", "b8121, driver 22.3", "acc", "no failure, 1 cases"]
    assert third[3:8] == ["search", "ggml:Vulkan0", "b8121, driver 25.0", "acc", "no failure, 1 cases"]


def test_a_bundle_of_another_build_is_not_overwritten(tmp_path: Path) -> None:
    failures = [one_failure(where) for where in (OLD, NEW, DRIVER)]
    folders = [write_bundle(failure, where, tmp_path) for failure, where in zip(failures, (OLD, NEW, DRIVER))]
    assert len(set(folders)) == 3
    assert folders[0] == tmp_path / failures[0].case.id
    for failure, folder in zip(failures, folders):
        assert bundle_path(tmp_path, failure) == folder
        assert bundle_of(failure, Settings(repro_dir=str(tmp_path))) == folder
    assert [write_bundle(failure, where, tmp_path) for failure, where in zip(failures, (OLD, NEW, DRIVER))] == folders


def test_a_bundle_that_does_not_say_its_build_is_its_targets(tmp_path: Path) -> None:
    failure = one_failure(OLD)
    folder = tmp_path / failure.case.id
    folder.mkdir()
    (folder / "bundle.json").write_text('{"target": "ggml:Vulkan0"}')
    assert bundle_path(tmp_path, failure) == folder
    (folder / "bundle.json").write_text('{"target": "ggml:CPU"}')
    assert bundle_path(tmp_path, failure) != folder
    (folder / "bundle.json").write_text("[" * 100_000)
    assert bundle_path(tmp_path, failure_of(FAILED)).parent == tmp_path
