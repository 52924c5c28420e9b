"""`opconform perf`: on clocks that are made up, what it says and how it ends; on each API, that it gives figures."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from opconform.backends.cuda import backend as cuda
from opconform.cli import main
from opconform.harness.draw.known import known_cases
from opconform.harness.model.ops import chosen_ops, ops
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.process import devices_of
from opconform.harness.run.timing import SAMPLE_SECONDS, seconds_of
from opconform.harness.search.speed import subjects_of
from opconform.reports.rows import CSV_COLUMNS
from tests import fake_cupy
from tests.lacking import lacking, needs_torch

SPEEDS = Path(__file__).parent.parent / "backends" / "speeds.py"
CASE = "cumsum/upstream-127"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def perf(*arguments: str, status: int = 0, isolated: bool = False) -> Result:
    more = () if isolated else ("--no-isolation",)
    found = CliRunner().invoke(main, ["perf", "--seconds", "0.004", *arguments, *more])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    assert found.exit_code == status, found.output
    return found


def of(name: str) -> str:
    return f"{SPEEDS}:{name}"


def times(name: str, *arguments: str, case: str = CASE, **more: Any) -> list[dict[str, Any]]:
    """The rows of one case as JSON."""
    found = perf("--backend", name, "--case", case, "--output", "json", *arguments, **more)
    rows: list[dict[str, Any]] = json.loads(found.stdout)["times"]
    return rows


# ---- clocks that are made up -----------------------------------------------------------------------------------------


def test_the_table_has_times_rates_and_shares() -> None:
    said = perf("--backend", of("Even"), "--case", CASE).output
    (line,) = [line for line in said.splitlines() if CASE in line]
    low, high = line.split()[2].split("–")
    assert 1000 <= float(low.replace(",", "")) <= float(high.replace(",", "")) <= 1300
    assert "clock: made up" in said
    assert "product of float32 matrices on it: 0.336 GFLOP/s" in said  # 2·256³ in 100 ticks
    assert "1 timed, 0 failed, 0 not supported\n" in said


def test_a_row_holds_the_rates_of_its_own_time() -> None:
    warm, cold = times(of("Even"))
    assert (warm["cache"], cold["cache"]) == ("warm", "cold")
    moved, flops = 2 * 4 * 127 * 60, 127 * 60
    for row in (warm, cold):
        assert row["bandwidth_gb_s"] == pytest.approx(moved / row["time_us"] / 1e3)
        assert row["flops"] == pytest.approx(flops / row["time_us"] * 1e6)
        assert row["share_of_copy"] == pytest.approx(500 / row["time_us"])
        assert row["share_of_product"] == pytest.approx(row["flops"] / row["product_flops"])
        assert row["time_low_us"] <= row["time_us"] <= row["time_high_us"]
        assert row["target"].endswith("speeds.py:Even:0")


def test_a_share_that_nobody_can_tell_is_left_open() -> None:
    warm, _ = times(of("NoProduct"))
    assert "share_of_product" not in warm
    assert perf("--backend", of("NoProduct"), "--case", CASE).output.count("–") > 0


def test_the_memory_of_a_graph_is_told_where_it_is_known() -> None:
    warm, _ = times(of("Remembers"))
    assert (warm["planned_bytes"], warm["allocated_bytes"]) == (1_000_000, 2_000_000)
    said = perf("--backend", of("Remembers"), "--case", CASE).output
    assert "1.00 MB" in said
    assert "2.00 MB" in said
    assert "planned" not in perf("--backend", of("Even"), "--case", CASE).output


def test_csv_has_upstreams_columns_first_and_every_figure() -> None:
    text = perf("--backend", of("Even"), "--case", CASE, "--output", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0])[: len(CSV_COLUMNS)] == CSV_COLUMNS
    assert {row["test_mode"] for row in rows} == {"perf"}
    assert {row["op_name"] for row in rows} == {"CUMSUM"}
    assert all(float(row["time_us"]) > 0 and float(row["bandwidth_gb_s"]) > 0 for row in rows)
    assert rows[0]["op_params"].startswith("type=f32,ne_x=[127,5,4,3]")


def test_a_case_that_is_not_supported_is_told_and_nothing_timed_is_a_failure() -> None:
    said = perf("--backend", of("Refuses"), "--case", CASE, status=1).output
    assert "1 not timed: it takes nothing" in said
    assert "nothing was timed: that is a failure, not a pass" in said
    (row,) = times(of("Refuses"), status=1)
    assert (row["supported"], row["error_message"]) == (0, "it takes nothing")


@pytest.mark.parametrize(("name", "why"), [("Breaks", "no clock today"), ("Lies", "not a number from 0 on")])
def test_a_case_that_fails_is_a_failure(name: str, why: str) -> None:
    said = perf("--backend", of(name), "--case", CASE, status=1, isolated=True).output
    assert f"{CASE}: FAILED" in said
    assert why in said


def test_a_process_that_dies_takes_no_other_case_with_it() -> None:
    said = perf("--backend", of("Dies"), "--case", CASE, "--case", "cumsum/upstream-128", status=1, isolated=True)
    assert f"{CASE}: FAILED: the process ended with exit status 3" in said.output
    assert "1 timed, 1 failed" in said.output


def test_what_the_command_cannot_do_is_a_usage_error() -> None:
    both = ("--vs", of("Even"), "--vs-lib", ".")
    assert "give one" in perf("--backend", of("Even"), "--case", CASE, *both, status=2).output
    assert "above 0" in perf("--backend", of("Even"), "--case", CASE, "--slower", "0", status=2).output
    assert "no backend" in perf("--backend", of("Even"), "--case", CASE, "--vs", "nobody", status=2).output


# ---- one build against another ---------------------------------------------------------------------------------------


def against(new: str, old: str, *arguments: str, status: int = 0) -> Result:
    return perf("--backend", of(new), "--vs", of(old), "--case", CASE, *arguments, status=status)


def test_a_slower_build_is_called_slower() -> None:
    said = against("Slower", "Even", status=1).output
    (line,) = [line for line in said.splitlines() if line.strip().startswith(CASE) and "SLOWER" in line]
    low, high = map(float, line.split()[2].split("–"))
    assert 1.1 < low < 1.5 < high + 0.2
    assert "1 slower by more than 10%" in said
    assert against("Slower", "Even", "--slower", "60").exit_code == 0


@pytest.mark.parametrize(("new", "old"), [("BarelySlower", "Even"), ("Faster", "Even"), ("Even", "Slower")])
def test_a_build_that_is_not_slower_by_the_margin_is_not_called_so(new: str, old: str) -> None:
    assert "SLOWER" not in against(new, old).output


def test_fifty_runs_of_a_build_against_itself_raise_no_alarm() -> None:
    """Also where processes of one build differ from each other by more than the margin."""
    for _ in range(50):
        assert "0 slower" in against("Unlike", "Unlike").output


def test_a_comparison_is_a_row_of_its_own() -> None:
    warm, cold, ratio = times(of("Slower"), "--vs", of("Even"), status=1)
    assert "ratio" not in {*warm, *cold}
    assert ratio["slower"] == 1
    assert 1.1 < ratio["ratio_low"] <= ratio["ratio"] <= ratio["ratio_high"]
    assert ratio["ratio_confidence"] > 0.9999
    assert ratio["versus"].endswith("speeds.py:Even:0 (Even)")


def test_what_the_other_build_does_not_take_is_no_failure() -> None:
    said = against("Even", "Refuses").output
    assert "not timed: " in said
    assert "it takes nothing" in said


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_times_go_into_the_history_and_the_report(tmp_path: Path) -> None:
    (*_, said) = times(of("Slower"), "--vs", of("Even"), status=1)
    times(of("Even"), "--vs", of("Even"), "--history", "even.sqlite")
    runs = CliRunner().invoke(main, ["runs"]).output
    assert "1 case timed, 1 of 1 slower than the other build" in runs
    report = CliRunner().invoke(main, ["report"])
    assert report.output == "opconform-out/report.html  1 of 1 timed cases slower\n"
    page = Path("opconform-out", "report.html").read_text()
    assert CASE in page
    assert f"{said['ratio']:.2f} (" in page
    found = CliRunner().invoke(main, ["compare", "even.sqlite", "opconform-out/history.sqlite"])
    assert found.exit_code == 1
    assert f"newly slow  cumsum  {of('Slower')}:0" in found.output


def test_what_csv_prints_is_what_the_history_holds() -> None:
    text = perf("--backend", of("Even"), "--case", CASE, "--output", "csv", "--vs", of("Even")).stdout
    with closing(sqlite3.connect("opconform-out/history.sqlite")) as db:
        db.row_factory = sqlite3.Row
        kept = [dict(row) for row in db.execute("SELECT * FROM timings")]
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["cache"] for row in rows] == ["warm", "cold", "warm"]
    for row, there in zip(rows, kept, strict=True):
        for name, value in row.items():
            known = "" if there[name] is None else there[name]
            assert value == (f"{known:f}" if isinstance(known, float) else str(known)), name


def test_nothing_is_kept_with_history_none_nor_where_it_cannot_be() -> None:
    perf("--backend", of("Even"), "--case", CASE, "--history", "none")
    assert not Path("opconform-out").exists()
    Path("taken").write_text("")
    said = perf("--backend", of("Even"), "--case", CASE, "--history", "taken/h.sqlite", status=2).output
    assert "--history taken/h.sqlite: taken is not a folder" in said


# ---- how a sample is taken -------------------------------------------------------------------------------------------


class Counted:
    launches = 0

    def launch(self) -> None:
        self.launches += 1


def test_a_backend_without_a_clock_is_timed_by_its_launches() -> None:
    case = Counted()
    assert 0 <= seconds_of(case, 7) < SAMPLE_SECONDS  # type: ignore[arg-type]
    assert case.launches == 7


def test_shapes_of_real_models_are_timed_unless_cases_are_named() -> None:
    subjects = subjects_of(chosen_ops(()))
    assert {subject.op.name for subject in subjects} == {name for name in ops() if _has_known(name)}
    models = [subject.name for subject in subjects_of([ops()["acc"]])]
    assert models == [name for name in known_cases() if name.startswith("acc/kimi-chunk")]
    assert [subject.name for subject in subjects_of([ops()["set"]])][:1] == ["set/kimi-chunk-1.0"]


def _has_known(op: str) -> bool:
    return any(known.case.op == op for known in known_cases().values())


# ---- each API --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "clock"),
    [
        ("ggml:CPU", "graphs, host clock"),
        ("ggml:Vulkan0", "graphs, host clock"),
        ("opencl:0", "profiling events"),
        ("torch:cpu", "host clock"),
        ("vulkan:0", "timestamps"),
    ],
)
def test_each_api_gives_figures(device: str, clock: str) -> None:
    spec = device.partition(":")[0]
    try:
        devices_of(spec, {})
    except Unavailable as reason:
        lacking(spec, str(reason))
    for row in times(device, isolated=True):
        assert row["clock"] == clock
        for figure in ("time_us", "bandwidth_gb_s", "flops", "copy_us", "share_of_copy", "share_of_product", "n_runs"):
            assert row[figure] > 0


def test_ggml_computes_a_node_as_often_as_it_stands_in_a_graph() -> None:
    """Nodes that a graph does not mark as to be computed cost nothing: no device copies or multiplies so fast."""
    if not os.environ.get("OPCONFORM_GGML_LIB"):
        lacking("ggml:CPU", "OPCONFORM_GGML_LIB is not set")
    warm, cold = times("ggml:CPU", case="cumsum/kimi-gates", isolated=True)
    assert warm["copy_us"] > 1  # 1 MB at less than 1 TB/s
    assert warm["product_flops"] < 1e13
    assert cold["time_us"] > 1


def test_a_build_of_ggml_is_compared_with_itself() -> None:
    folder = os.environ.get("OPCONFORM_GGML_LIB")
    if not folder:
        lacking("ggml:CPU", "OPCONFORM_GGML_LIB is not set")
    *_, ratio = times("ggml:CPU", "--ggml-lib", str(folder), "--vs-lib", str(folder), isolated=True)
    assert (ratio["slower"], ratio["versus"]) == (0, f"ggml:CPU ({ratio['build']})")


def test_a_backend_without_a_libggml_has_no_other_one() -> None:
    needs_torch()
    said = perf("--backend", "torch:cpu", "--case", CASE, "--vs-lib", ".", status=2).output
    assert "--vs-lib is for ggml; torch:cpu has no libggml" in said


def test_ggml_plans_the_memory_of_a_graph_of_many_nodes() -> None:
    if not os.environ.get("OPCONFORM_GGML_LIB"):
        lacking("ggml:CPU", "OPCONFORM_GGML_LIB is not set")
    warm, _ = times("ggml:CPU", case="gated_delta_net_chunk/acc-heads", isolated=True)
    assert warm["allocated_bytes"] >= warm["planned_bytes"] > 0


def test_cuda_is_timed_by_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setattr(cuda, "_DRIVER", None)
    monkeypatch.setattr(cuda, "_EVICTING", 1 << 16)
    for row in times("cuda:0"):
        assert row["clock"] == "CUDA events"
        assert row["time_us"] > 0
        assert row["share_of_copy"] > 0
        assert row["share_of_product"] > 0


def test_a_kernel_of_ours_multiplies_where_cupy_finds_no_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setattr(cuda, "_DRIVER", None)
    monkeypatch.delattr(fake_cupy, "matmul")
    product = cuda.CudaBackend("0", {}).product(8)
    assert product is not None
    assert product.timed(2) > 0
