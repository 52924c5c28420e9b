"""What a user reads on the console, to the letter. OPCONFORM_UPDATE_SNAPSHOTS=1 writes the snapshots anew."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from opconform.harness.explain.failure import Failure, Worst, Wrong
from opconform.harness.model.case import Case
from opconform.harness.model.findings import Finding
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops
from opconform.harness.model.values import data_of, inputs_of
from opconform.harness.search.result import KnownBug, Lie, Result, Tally
from opconform.harness.search.settings import Settings
from opconform.reports.commands import commands
from opconform.reports.console import counts, matrix
from opconform.reports.screen import screen
from tests.samples import acc

SNAPSHOTS = Path(__file__).parent / "snapshots"
DEVICE = "NVIDIA GeForce RTX 4090"
VERSIONS = (("driver", "580.95.5"), ("ggml", "b7836"))


def same_as(name: str, text: str) -> None:
    """Hold `text` against the snapshot of that name."""
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("OPCONFORM_UPDATE_SNAPSHOTS"):
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")
    assert all(line == line.rstrip() for line in text.splitlines())


def too_wide(text: str) -> list[str]:
    """Lines above 120 columns that are no path and no command."""
    return [
        line for line in text.splitlines() if len(line) > 120 and not line.startswith(("    opconform ", "    pytest "))
    ]


def failure(case: Case, kind: str, detail: str, **more: object) -> Failure:
    check = "process" if kind in ("CRASH", "TIMEOUT", "ERROR") else "value"
    found = Failure(
        case=case,
        target="ggml:Vulkan0",
        device=DEVICE,
        versions=VERSIONS,
        findings=(Finding(check, kind, detail),),
        wrong=None,
        packed_twin="is the case itself",
        bound="outside the view the bits of a; inside u·|a+b|",
        bound_at="cases/acc.py:16",
        stderr="",
    )
    return replace(found, **more)  # type: ignore[arg-type]


def wrong(mask: np.ndarray, worst: Worst, nmse: float = 0.25) -> Wrong:
    outer = mask.reshape(*mask.shape[:-2], -1).sum(axis=-1)
    first = tuple(int(i) for i in np.argwhere(outer)[0])
    return Wrong(
        count=int(mask.sum()),
        total=mask.size,
        worst=worst,
        nmse=nmse,
        slices=tuple((tuple(map(int, index)), int(count)) for index, count in np.ndenumerate(outer)),
        slices_wrong=int(np.count_nonzero(outer)),
        slices_total=outer.size,
        map_index=first,
        map=tuple(tuple(bool(cell) for cell in row) for row in mask[first]),
        map_origin=(0, 0),
        map_is_cut=False,
    )


def show(found: Failure) -> str:
    text = screen(found, commands(found, Settings()))
    assert not too_wide(text)
    return text


def dropped_slices() -> Failure:
    mask = np.zeros((2, 2, 3, 5), dtype=bool)
    mask[1, :, :2, :4] = True
    worst = Worst((1, 0, 0, 3), got=-2.0, want=1.0, error=3.0, bound=2.0**-24)
    case = acc(4, 2, 2, 2, a=(5, 3, 2, 2))
    return failure(
        case,
        "WRONG VALUES",
        "16 of 60 elements differ from the reference by more than the bound",
        wrong=wrong(mask, worst),
    )


def test_wrong_values() -> None:
    same_as("wrong_values", show(dropped_slices()))


def test_a_case_that_needs_its_strides_says_so() -> None:
    case = acc(4, 2, 2, 2, a=(5, 3, 2, 2))
    padded = Layout("f32", (2, 2, 2, 4), (128, 64, 32, 4), 256)
    case = replace(case, inputs={**case.inputs, "b": padded}, recipe="wide", seed=3)
    found = replace(dropped_slices(), case=case, packed_twin="passes")
    same_as("strided", show(found))


def test_an_element_that_allows_no_error() -> None:
    mask = np.array([[[[False, True]]]])
    worst = Worst((0, 0, 0, 1), got=float("nan"), want=-0.0, error=float("nan"), bound=0.0)
    found = failure(
        acc(2),
        "NAN/INF",
        "1 of 2 elements are NaN or infinite where the reference is not",
        wrong=wrong(mask, worst, float("nan")),
        packed_twin="fails",
    )
    same_as("nan", show(found))


def test_crash() -> None:
    said = "ggml_vulkan: Found 1 Vulkan devices:\n\x1b[31mGGML_ASSERT(src1->ne[3] == 1) failed\x1b[0m"
    found = failure(acc(1, 1, 1, 2), "CRASH", "the process ended with signal SIGABRT", stderr=said)
    same_as("crash", show(found))


def test_timeout() -> None:
    found = failure(acc(3), "TIMEOUT", "no answer within 30 s", replay_options=("--ggml-lib '/opt/my ggml'",))
    same_as("timeout", show(found))


def test_in_place() -> None:
    found = failure(acc(3, inplace=True), "WROTE OUTSIDE", "4 bytes around or between the elements of out changed")
    same_as("inplace", show(found))


def test_keep() -> None:
    case = replace(acc(2, 1, 2, 2), keep=3)
    found = failure(
        case,
        "SLICES MIXED",
        "2 of 8 elements took NaN from another batch slice: every slice but number 3 was NaN",
        packed_twin="unsupported",
    )
    same_as("keep", show(found))


def test_nothing_but_paths_and_commands_is_wider_than_120_columns() -> None:
    huge = Layout("f32", (1, 1, 1, 7), (1 << 60, 1 << 60, 1 << 60, 8), 1 << 20)
    case = Case("acc", dict.fromkeys(("nb1", "nb2", "nb3", "offset"), 1 << 60), {"a": huge, "b": huge}, {"out": huge})
    mask = np.ones((8, 8, 24, 96), dtype=bool)
    worst = Worst((7, 7, 23, 95), got=-1.234567890123e-30, want=-1.23456789e300, error=1e300, bound=1e-300)
    found = failure(
        case,
        "WRONG VALUES",
        "all " * 80,
        wrong=wrong(mask, worst),
        stderr="x" * 3000 + "\n" + "word " * 500,
        versions=tuple((f"library{i}", "1.2.3.4") for i in range(30)),
    )
    text = show(found)
    assert "\n    " + "x" * 50 not in text  # the last lines of what it said are kept, and those are words
    for name in ("nb1", "offset", "nb_a", "offset_out"):
        assert f"{name}=" in text


@pytest.mark.parametrize("noise", ["\x1b[2J\x1b]0;title\x07", "\r\n\x00\x08", "\t\tindented\x1b[1;31m red"])
def test_what_a_worker_says_cannot_drive_the_terminal(noise: str) -> None:
    text = show(failure(acc(3), "CRASH", "the process ended with signal SIGABRT", stderr=f"a{noise}b"))
    assert all(char.isprintable() or char == "\n" for char in text)


def result(op: str, target: str, passed: int = 1000, found: Failure | None = None, **more: object) -> Result:
    tally = Tally(passed, 0 if found is None else 3, Counter(more.pop("unsupported", {})))  # type: ignore[call-overload]
    return Result(op, target, DEVICE, tally, found, **more)  # type: ignore[arg-type]


def all_kinds_of_results() -> list[Result]:
    crash = failure(acc(1, 1, 1, 2), "CRASH", "the process ended with signal SIGABRT")
    many = tuple(f"acc/known-{number}" for number in range(12))
    bugs = (KnownBug("acc/old", "reads a padded b as packed", True), KnownBug("acc/older", "drops ne3", False))
    return [
        result("acc", "vulkan:0", found=dropped_slices(), failed_known=("acc/kb001", "acc/kb116")),
        result("acc", "ggml:Vulkan0", found=crash, failed_known=many),
        result("acc", "torch:cpu", known_bugs=bugs, unsupported={"no bf16 here": 12}),
        result("cumsum", "vulkan:0", 0, unsupported={"has no kernel for cumsum": 1000}),
        result("cumsum", "ggml:Vulkan0", left_out=("cumsum/kb053",)),
        result("solve_tri", "torch:cpu", unsupported={"no bf16 here": 3, "upper is not written yet": 9}),
    ]


def test_matrix_with_notes() -> None:
    text = matrix(all_kinds_of_results()) + "\n" + counts(all_kinds_of_results())
    same_as("matrix", text)
    table, _, notes = text.partition("\n[1] ")
    assert not too_wide(notes)
    assert len(set(map(len, table.splitlines()))) > 1


def test_a_matrix_of_many_devices_keeps_every_name_and_count() -> None:
    targets = [f"/home/someone/work/backends/mine.py:Backend{number}:0" for number in range(8)]
    text = matrix([result(op, target, 100 + 10 * i) for i, target in enumerate(targets) for op in ("acc", "set")])
    header = text[: text.index("─")].splitlines()
    starts = sorted({found.start() for line in header for found in re.finditer("/home", line)})
    names = ["".join(line[start:end].strip() for line in header) for start, end in pairwise([*starts, 1000])]
    assert names == targets
    assert all(text.count(f"passed {100 + 10 * number}") == 2 for number in range(8))
    assert all(len(line) <= 200 for line in text.splitlines())


def test_what_a_device_says_yes_to_and_aborts_at_is_one_line_under_the_matrix() -> None:
    lie = Lie(acc(1, 1, 1, 2), "the kernel asserts that the rows of b are contiguous", "signal SIGABRT")
    other = Lie(acc(1, 1, 1, 3), "the kernel asserts more", "signal SIGABRT")
    found = [result("acc", "mine:0", lies=(lie,)), result("set", "mine:0", lies=(other,)), result("acc", "vulkan:0")]
    text = " ".join(matrix(found).split())
    assert f"says yes, aborts: 2 ops on mine:0: {lie.case.id}, {other.case.id}; e.g. the kernel asserts that" in text
    assert f"(opconform replay {lie.case.id} --strict-supports --backend mine:0)" in text
    assert f"(opconform repro {lie.case.id} --strict-supports --backend mine:0)" in text
    assert text.count("says yes") == 1
    assert "(the bundle of each of them: in out/repro)" in " ".join(matrix(found, Path("out/repro")).split())


def test_known_cases_that_a_device_does_not_take_are_counted_beside_those_drawn() -> None:
    found = result("acc", "mine:0", unsupported={"no bf16 here": 12})
    found.tally.known_unsupported.update({"b is too large": 3, "no bf16 here": 1})
    text = matrix([found])
    assert "passed 1000, 12 unsupported [1], 4 known unsupported [2][1]" in text
    assert "[2] unsupported: b is too large" in text
    found = result("acc", "mine:0", 0)
    found.tally.known_unsupported.update({"b is too large": 3})
    assert "taken by no device" in matrix([found, result("set", "mine:0")])


def test_no_results_are_an_empty_matrix() -> None:
    assert counts([]) == (
        "0 cases run, 0 passed, 0 failed, 0 unsupported; 0 of 0 pairs of op and device without a failure"
    )
    assert matrix([]).startswith("op")


def small_failure(got: tuple[float, ...], want: tuple[float, ...], case: Case, **more: object) -> Failure:
    """A failure of `case` of whose output few elements are there."""
    marks = tuple(one != other for one, other in zip(got, want))
    mask = np.array(marks).reshape(case.outputs["out"].shape)
    worst = Worst(tuple(int(i) for i in np.argwhere(mask)[0]), got=0.0, want=1.0, error=1.0, bound=0.0)
    case = case.with_data(data_of(inputs_of(case, ops()[case.op])))
    seen = replace(wrong(mask, worst), got=got, want=want, marks=marks)
    return failure(case, "WRONG VALUES", "some differ", wrong=seen, **more)


def test_the_values_of_small_arguments_stand_first_and_what_came_back_beside_what_should() -> None:
    found = small_failure((-4.0, -2.0), (-4.0, 1.0), acc(1, 1, 1, 2), hint="ne3 is dropped")
    text = show(found)
    same_as("values", text)
    assert (
        text.index("values") < text.index("hint") < text.index("where") < text.index("layouts") < text.index("packed")
    )


def test_rows_of_several_axes_are_shown_and_what_is_large_is_not() -> None:
    got = tuple(float(i) for i in range(12))
    want = (*got[:7], math.nan, *got[8:])
    text = show(small_failure(got, want, acc(3, 2, 1, 2)))
    rows = [line.strip() for line in text.splitlines() if re.search(r"i0=0…2 i1=\d i3=\d", line)]
    assert len(rows) == 16
    assert rows[10].split() == ["i0=0…2", "i1=0", "i3=1", "6", "7!", "8"]
    large = small_failure(got, want, acc(3, 2, 1, 2, a=(3, 2, 1, 2)))
    large = replace(large, case=acc(60, 2), wrong=replace(large.wrong, got=(), want=(), marks=()))  # type: ignore[type-var]
    assert "values" not in show(large)


def test_a_packed_case_does_not_clear_a_view_that_its_parameters_describe() -> None:
    text = show(small_failure((0.0, 1.0), (1.0, 1.0), acc(2), hint="the stride nb1 of the view is ignored"))
    said = "needs no gaps and no offset (of the view that nb1, nb2, nb3, offset describe this says nothing)"
    assert said in " ".join(text.split())


def test_shrinking_that_was_cut_short_is_said() -> None:
    text = show(replace(dropped_slices(), unfinished="shrinking was cut short after 60 s: a smaller case may fail too"))
    assert "  shrunk     not to the end: shrinking was cut short after 60 s: a smaller case may fail too" in text


def test_a_race_says_how_often_it_is_run_again() -> None:
    text = show(failure(acc(3), "NOT DETERMINISTIC", "wrong at first"))
    assert "  again with (each runs the case up to 50 times, until it fails)" in text
    commands = [line for line in text.splitlines() if re.match("    (opconform|pytest) ", line)]
    assert len(commands) == 2
    assert all(line.endswith(" --times 50") for line in commands)


def test_what_is_computed_in_a_lower_precision_says_so_beside_its_count() -> None:
    half = "lower precision: u = 2^-11"
    found = [result("acc", "a:0"), result("set", "a:0"), result("cumsum", "a:0")]
    found[0].tally.looser = Counter({half: 1000})
    found[1].tally.looser = Counter({half: 400})
    found[2].tally.looser = Counter({"looser arithmetic: division ulps 2.5 instead of 0.5": 1000})
    lines = matrix(found).splitlines()
    assert lines[2:5] == [
        "acc      passed 1000 in lower precision [1]",
        "set      passed 1000, 400 of them in lower precision [1]",
        "cumsum   passed 1000 [2]",
    ]
    assert lines[5] == "[1] lower precision, as the backend declares: u = 2^-11"
    assert lines[6] == "[2] looser arithmetic, as the backend declares: division ulps 2.5 instead of 0.5"


def test_ops_that_no_device_takes_are_one_line() -> None:
    found = [result("acc", "mine.py:Mine:0")]
    found += [result(op, "mine.py:Mine:0", 0, unsupported={f"no kernel for {op}": 304}) for op in ("cumsum", "set")]
    lines = matrix(found).splitlines()
    assert lines[2:] == ["acc   passed 1000", "taken by no device: cumsum, set (no kernel for this op)"]


def test_a_pair_of_which_every_case_says_nothing_does_not_pass() -> None:
    found = result("acc", "mine.py:Mine:0", 0)
    found.tally.vacuous = 7
    lines = matrix([found]).splitlines()
    assert lines[2] == "acc   vacuous 7 [1]"
    assert lines[-1] == (
        "7 more cases say nothing and do not count: a kernel that writes zeros, or copies an input, passes them"
    )


def test_what_was_ended_by_its_share_of_the_time_is_said_the_least_of_it_first() -> None:
    done, some, few = (result("acc", f"{name}:0") for name in "abc")
    some.tally.passed, few.tally.passed = 300, 8
    assert "--minutes" not in matrix([done, some, few])
    lines = matrix([done, replace(some, cut=True), replace(few, cut=True)]).splitlines()
    assert lines[-2:] == [
        "ended by --minutes before as many cases were drawn as were asked for, 2 of 3 pairs: acc on c:0 after 8 cases,",
        "acc on b:0 after 300 cases",
    ]


def test_a_case_that_answers_only_at_its_second_try_is_said() -> None:
    found = result("acc", "a:0")
    assert "time limit" not in matrix([found])
    found.tally.late = 1
    said = "no answer came within the time limit, and one came when there was more time: acc on a:0"
    assert matrix([found, result("set", "a:0")]).splitlines()[-1] == said


def test_a_large_share_of_free_elements_is_a_warning_and_a_small_one_is_not() -> None:
    much, little = (result("exp", target) for target in ("a:0", "b:0"))
    much.tally.free, much.tally.elements = 64, 1000
    little.tally.free, little.tally.elements = 40, 1000
    because = "float32 overflows"
    text = matrix([replace(much, free=because), replace(little, free=because)])
    assert "passed 1000, 6% free [1]" in text
    assert text.count("free [") == 1
    assert "[1] WARNING, nothing is demanded of 6% of the elements of exp: float32 overflows" in text


def test_what_was_not_checked_is_said_with_the_reason() -> None:
    found = result("acc", "a:0")
    found.tally.unchecked.update(["batch_invariant: the view of a crosses its slices"] * 7)
    text = matrix([found])
    assert "passed 1000, 7 not checked [1]" in text
    assert "[1] not checked: batch_invariant: the view of a crosses its slices" in text
