"""Bundles without a device: what a script demands, that a folder is whole, the picture, the issue."""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest

from opconform.harness.explain.facts import Facts
from opconform.harness.explain.failure import Failure
from opconform.harness.explain.failure import _wrong as wrong_of
from opconform.harness.judge.judging import judge
from opconform.harness.model.case import Case
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.ops import ops
from opconform.harness.model.text import without_folders
from opconform.harness.run.backend import Device
from opconform.harness.run.extract import CannotExtractError, source_of
from opconform.harness.run.target import Target
from opconform.reports.repro import arrays, bundle
from opconform.reports.repro.bundle import files_of, write_bundle
from opconform.reports.repro.issue import features, title
from opconform.reports.repro.picture import picture
from opconform.reports.repro.scripts import asked, script
from tests.judge import Bench, drawn_cases
from tests.kernels import correct, delta, delta_wrong, mla, small_odd, small_wrong, wrong
from tests.kernels.formula_rows import wrong_kernels
from tests.kernels.row_wrong import ROW_WRONG
from tests.repro_samples import FLUSHING, described, module_of, one_failure, target
from tests.samples import SAMPLE, acc, spec

# ---- what a script demands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numerics", [EXACT, FLUSHING], ids=["exact", "flushing"])
@pytest.mark.parametrize("op", list(ops()))
def test_a_script_demands_what_the_oracle_demands(op: str, numerics: Numerics) -> None:
    """For right and wrong results alike, over drawn layouts, values and parameters."""
    where = target(numerics=numerics)
    own = (correct.Correct, *(each.kernel for each in ROW_WRONG if each.op == op), *wrong_kernels(op))
    kernels = [kernel("0", {}) for kernel in KERNELS.get(op, own)]
    outcomes = set()
    for case in drawn_cases(op, 10, 1 << 14, 3):
        if any(layout.type.block > 1 for layout in case.outputs.values()):
            continue  # it has no script
        bench = Bench(case)
        expected = bench.expected(numerics)
        scope = module_of(described(case, where, values=bench.values), where)
        for name, layout in case.inputs.items():
            np.testing.assert_array_equal(
                scope["at"](scope["filled"](), name).view(layout.type.raw), bench.values[name], strict=False
            )
        for kernel in kernels:
            after = bench.after(kernel).memory.copy()
            judged = judge(case, bench.op, bench.values, bench.before, after.copy(), numerics, expected, bench.plan)
            with np.errstate(all="ignore"):
                found = scope["faults"](bench.before, after)
            assert bool(found) == judged.failed, (case, kernel, found, judged.findings)
            outcomes.add(judged.failed)
    assert outcomes == {True, False}


KERNELS: Mapping[str, tuple[type, ...]] = {
    "acc": (correct.Correct, wrong.IgnoresI3, wrong.IgnoresNb1, wrong.ClearsSpan, wrong.LeavesTail),
    "set": (correct.Correct, wrong.IgnoresI3, wrong.CanonicalZero, wrong.ClearsSpan),
    "cumsum": (correct.Correct, wrong.ExclusiveBySubtraction, wrong.HalfSums, wrong.LosesCarry),
    "solve_tri": (correct.Correct, wrong.ByInverse, wrong.IgnoresUnit, wrong.HalfDots),
    "tri": (correct.Correct, small_wrong.OtherTriangle, small_wrong.NoZeros),
    "diag": (correct.Correct, small_wrong.DiagonalAbove, small_wrong.NoZeros),
    "pad": (correct.Correct, small_wrong.PadsAfterOnly, small_wrong.ReadsPackedX),
    "l2_norm": (correct.Correct, small_wrong.MeanSquare, small_wrong.FastInverseRoot),
    "ssm_conv": (correct.Correct, small_wrong.FlippedTaps, small_wrong.ReadsPackedC),
    "sum_rows": (correct.Correct, small_wrong.HalfSums, small_wrong.SumsPaddedRow),
    "cpy": (correct.Correct, small_odd.TruncatesHalves, small_wrong.CopiesByIndex, small_wrong.ReadsPackedX),
    "cont": (correct.Correct, small_wrong.ReadsPackedX, wrong.WritesPacked),
    "gated_delta_net": (delta.Delta, delta_wrong.OldestFirst, delta_wrong.TransposesState, delta_wrong.WithoutScale),
    "gated_delta_net_chunk": (delta.Delta, delta_wrong.DropsDiagonal, delta_wrong.IgnoresState),
    "mla_absorbed": (mla.Mla, mla.NoRotaryPart, mla.ReadsPadding, mla.MaskedRowIsNaN),
}


@pytest.mark.parametrize("op", ["acc", "set", "cumsum"])
@pytest.mark.parametrize("recipe", ["small_int", "index", "normal", "wide"])
def test_a_large_case_is_a_few_lines_with_the_same_numbers(op: str, recipe: str) -> None:
    shape = (2, 3, 40, 250)
    x = Layout.contiguous("f32", shape)
    nb = {"nb1": 1000, "nb2": 40000, "nb3": 120000, "offset": 0}
    case = Case(op, nb, {"a": x, "b": x}, {"out": x}, recipe, 7)
    if op == "cumsum":
        case = Case(op, {"axis": 1, "exclusive": True, "reverse": True}, {"x": x}, {"out": x}, recipe, 7)
    where = target(numerics=FLUSHING)
    facts = Facts(described(case, where), where)
    text = script(facts, asked(facts))
    assert len(text) < 12_000
    scope: dict[str, Any] = {"__name__": "script"}
    exec(compile(text, "repro.py", "exec"), scope)
    np.testing.assert_array_equal(scope["WANT"]["out"], facts.demands["out"].value)
    np.testing.assert_allclose(scope["BOUND"]["out"], facts.demands["out"].bound, rtol=1e-9)
    for name, raw in facts.values.items():
        np.testing.assert_array_equal(scope["VALUES"][name].view(np.uint32), raw)


def test_a_large_case_with_bytes_of_its_own_is_packed() -> None:
    x = Layout.contiguous("f32", (1, 1, 1, 40_000))
    params = {"axis": 0, "exclusive": False, "reverse": False}
    values = np.random.default_rng(5).standard_normal(40_000).astype("<f4")
    case = Case("cumsum", params, {"x": x}, {"out": x}).with_data({"x": values.tobytes()})
    where = target()
    failure = replace(described(Case("cumsum", params, {"x": x}, {"out": x}), where), case=case)
    scope = module_of(failure, where)
    assert scope["VALUES"]["x"].tobytes() == values.tobytes()
    np.testing.assert_array_equal(scope["WANT"]["out"], Facts(failure, where).demands["out"].value)


def test_one_byte_written_outside_is_a_fault() -> None:
    where = target()
    bench = Bench(acc(2))
    scope = module_of(described(bench.case, where), where)
    after = bench.after(correct.Correct("0", {})).memory
    assert scope["faults"](bench.before, after) == []
    after[3] ^= 1
    (found,) = scope["faults"](bench.before, after)
    assert "1 bytes changed that are not the output's, the first at byte 3" in found


@pytest.mark.parametrize(
    "array",
    [
        np.array([1.0, -0.0, 0.1, np.nan, np.inf, -np.inf], "<f4"),
        np.array([0x7FC00001, 1], "<u4").view("<f4"),
        np.full((2, 3), 2.5, "<f8"),
        np.arange(-5, 5, dtype="<i4").reshape(2, 5),
        np.random.default_rng(1).standard_normal((3, 50)),
        np.random.default_rng(1).standard_normal(40).astype("<f2"),
        np.zeros((0, 4), "<f4"),
        np.nextafter(np.float32(0), np.float32(1), dtype="<f4").reshape(1),
    ],
)
def test_an_array_reads_back_to_the_bit(array: np.ndarray) -> None:
    scope = {"np": np}
    exec("import base64, zlib\n" + script_function("unpacked"), scope)
    again = eval(arrays.expression(array, array.dtype.str), scope)
    assert (again.dtype, again.shape, again.tobytes()) == (array.dtype, array.shape, array.tobytes())


def script_function(name: str) -> str:
    from opconform.reports.repro.scripts import _UNPACKED

    assert f"def {name}(" in _UNPACKED
    return _UNPACKED


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_a_bundle_is_one_folder_named_by_the_case(tmp_path: Path) -> None:
    failure = one_failure()
    folder = write_bundle(failure, target(), tmp_path / "repro")
    assert folder == tmp_path / "repro" / failure.case.id
    assert Case.from_json(json.loads((folder / "case.json").read_text())).data == failure.case.data
    listed = json.loads((folder / "bundle.json").read_text())["files"]
    assert {*listed, "bundle.json"} == {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_second_bundle_of_the_same_failure_replaces_the_first(tmp_path: Path) -> None:
    folder = write_bundle(one_failure(), target(), tmp_path)
    (folder / "old").touch()
    assert write_bundle(one_failure(), target(), tmp_path) == folder
    assert not (folder / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_the_same_case_on_another_device_has_a_bundle_of_its_own(tmp_path: Path) -> None:
    folders = [write_bundle(one_failure(where), where, tmp_path) for where in (target(), target(device="../CPU:1"))]
    assert folders[1] == tmp_path / f"{folders[0].name}-ggml-..-CPU-1"
    assert write_bundle(one_failure(), target(), tmp_path) == folders[0]


@pytest.mark.parametrize("there", [False, True], ids=["nothing there", "a bundle there"])
@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_bundle_is_written_whole_or_not_at_all(
    step: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        write_bundle(one_failure(), target(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fails(*arguments: Any) -> None:
        raise OSError("No space left on device")

    rename = os.rename
    if step == "write":
        monkeypatch.setattr(Path, "write_bytes", fails)
    else:
        monkeypatch.setattr(bundle.os, "rename", lambda a, b: fails() if str(a).endswith(".part") else rename(a, b))
    with pytest.raises(OSError, match="No space left"):
        write_bundle(one_failure(), target(), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".*"))


def test_a_backend_that_cannot_be_imported_has_a_bundle_without_a_script(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("raise SystemError('no driver')")
    where = Target(f"{file}:Mine", Device("0", "mine"))
    folder = write_bundle(one_failure(where), where, tmp_path / "repro")
    assert not (folder / "repro.py").exists()
    assert "cannot be imported: SystemError: no driver" in (folder / "issue.md").read_text()


def test_a_backend_of_a_file_brings_what_it_imports(tmp_path: Path) -> None:
    where = Target(spec("IgnoresNe3"), Device("0", "NumPy"))
    folder = write_bundle(one_failure(where), where, tmp_path)
    modules = {str(file.relative_to(folder / "modules")) for file in folder.rglob("modules/**/*.py")}
    assert {
        "sample.py",
        "tests/kernels/base.py",
        "opconform/__init__.py",
        "opconform/harness/model/buffers.py",
    } <= modules
    assert not any("search" in name or "repro" in name for name in modules)


@pytest.mark.parametrize(
    ("finding", "says"),
    [
        (Finding("sanitizer", Kind.OUT_OF_BOUNDS, "a write"), "only a checker sees this fault"),
        (
            Finding("split_state", Kind.STATE_LOST, "another state"),
            "the fault shows only between several runs (split_state)",
        ),
    ],
    ids=["sanitizer", "relation"],
)
def test_what_one_run_cannot_show_has_no_script_but_all_the_rest(finding: Finding, says: str) -> None:
    where = target()
    wrong = replace(described(delta_case(), where), findings=(finding,), replay_options=("--sanitize",))
    files = files_of(wrong, where)
    assert set(files) == {"case.json", "issue.md", "bundle.json"}
    issue = files["issue.md"].decode()
    assert f"There is no `repro.py` for this case: {says}" in issue
    assert "opconform replay case.json --backend ggml:Vulkan0 --sanitize" in issue


def test_a_fault_in_making_the_script_leaves_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: Any) -> None:
        raise KeyError("acc")

    monkeypatch.setattr(bundle, "script", fails)
    files = files_of(one_failure(), target())
    assert {"case.json", "test_case.cpp", "issue.md", "map.svg", "bundle.json"} == set(files)
    assert "making it failed with KeyError: 'acc'" in files["issue.md"].decode()
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_that_a_backend_saw_is_one_that_its_script_raises() -> None:
    where = target()
    for kind, raised in ((Kind.ERROR, True), (Kind.DATA_RACE, True), (Kind.CRASH, False), (Kind.TIMEOUT, False)):
        facts = Facts(replace(one_failure(), findings=(Finding("process", kind, "it"),)), where)
        assert (facts.is_raised, facts.is_deadly) == (raised, not raised)


def test_a_function_brings_classes_tables_and_other_names_along() -> None:
    found = source_of(uses_all)
    scope: dict[str, Any] = {}
    exec(found["source"], scope)
    assert scope[found["name"]](3) == uses_all(3) == 17
    with pytest.raises(CannotExtractError, match="NAMELESS, which is neither a function nor a plain value"):
        source_of(uses_an_object)


def over(change: Callable[[int], int], times: int) -> Callable[[int], int]:
    def changed(x: int) -> int:
        for _ in range(times):
            x = change(x)
        return x

    return changed


def with_offset(offset: int) -> Callable[[int], int]:
    return lambda x: x + offset


LAMBDAS = {"plus": lambda x: x + 1, "times": lambda x: x * 1, "thrice": over(lambda x: x * 3, 2), "far": with_offset(7)}
TWINS = {"one": over(lambda x: x + 1, 1), "two": lambda x: over(lambda x: x + 1, 1)(_twice(x))}


@pytest.mark.parametrize("function", [*LAMBDAS.values(), *TWINS.values()], ids=[*LAMBDAS, *TWINS])
def test_a_lambda_and_a_closure_bring_what_they_keep(function: Callable[[int], int]) -> None:
    found = source_of(function)
    scope: dict[str, Any] = {}
    exec(found["source"], scope)
    assert scope[found["name"]](5) == function(5)


def test_a_name_that_stands_for_two_things_is_refused() -> None:
    inner = over(lambda x: x + 1, 2)
    with pytest.raises(CannotExtractError, match="stands for two things"):
        source_of(over(inner, 3))


TABLE = {"two": (1, 1), "five": [2, 3]}
NAMELESS = Path()


class Pair(NamedTuple):
    left: int
    right: Case  # an annotation, which a script does not need

    def total(self) -> int:
        return self.left + _doubled(self.right)  # type: ignore[arg-type]


def _twice(x: int) -> int:
    return 2 * x


_doubled = _twice


def uses_all(x: int) -> int:
    return Pair(x, 2).total() + sum(map(sum, TABLE.values())) + _doubled(x - math.floor(1.5)) - 1  # type: ignore[arg-type]


def uses_an_object() -> Path:
    return NAMELESS


# ---- the picture and the issue ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(7,), (500,), (5, 9), (3, 4, 5), (2, 3, 4, 5), (1, 1, 1, 3000), (12, 20, 9, 70), (1, 90, 2, 16), (9, 1, 2, 3)],
)
def test_a_picture_is_well_formed_and_marks_every_wrong_slice(shape: tuple[int, ...]) -> None:
    mask = np.zeros(shape, dtype=bool)
    mask[..., -1] = True
    x = Layout.contiguous("f32", shape)
    failure = one_failure()
    assert failure.wrong is not None
    packed = base64.b64encode(zlib.compress(np.packbits(mask).tobytes())).decode()
    worst = replace(failure.wrong.worst, index=tuple(size - 1 for size in shape))
    drawn = replace(
        failure,
        case=replace(failure.case, outputs={"out": x}),
        wrong=replace(failure.wrong, mask=packed, count=int(mask.sum()), total=mask.size, worst=worst),
    )
    text = picture(drawn)
    assert text is not None
    assert len(text) < 500_000
    root = ElementTree.fromstring(text)
    slices = root.findall("{*}g")
    four = (1,) * (4 - len(shape)) + shape
    one_by_one = 1 in four[:2]  # then they stand in lines like a text
    assert len(slices) == (min(four[0] * four[1], 64) if one_by_one else min(four[0], 8) * min(four[1], 8))
    assert all(any(path.get("fill") == "#c62828" for path in group.findall("{*}path")) for group in slices)
    assert float(root.get("width", "0")) >= 300


def test_a_mask_too_large_to_keep_is_drawn_from_its_map() -> None:
    failure = one_failure()
    assert failure.wrong is not None
    text = picture(replace(failure, wrong=replace(failure.wrong, mask="")))
    assert text is not None
    assert (
        "The first wrong slice (i2=0, i3=1) from i1=0, i0=0 on"
        in ElementTree.fromstring(text).findall("{*}text")[-1].text
    )  # type: ignore[operator]


def test_a_crash_has_no_picture_and_says_what_it_said() -> None:
    crash = Finding("process", Kind.CRASH, "the process ended with signal SIGABRT")
    files = files_of(one_failure(findings=(crash,), wrong=None, stderr="GGML_ASSERT(nb0 == 4) failed"), target())
    assert "map.svg" not in files
    issue = files["issue.md"].decode()
    assert "GGML_ASSERT(nb0 == 4) failed" in issue
    assert "Expected and got" not in issue
    assert "def watched():" in files["repro.py"].decode()


def test_a_title_says_what_the_case_needs() -> None:
    where = target()
    assert (
        title(Facts(one_failure(where), where), "Vulkan0")
        == "ACC on Vulkan0 (b7836): wrong values with ne0 = 4, ne1 = 3, ne3 > 1"
    )
    a = Layout("f32", (1, 1, 1, 2), (8, 8, 8, 4), 16)
    assert features(Case("acc", {}, {"a": a}, {"out": a}, inplace="a")) == [
        "ne0 > 1",
        "a at an offset",
        "the output in place",
    ]


def delta_case(**inputs: Layout) -> Case:
    """One token of a delta net: 2 value heads, 3 keys, 2 values, no state to begin with."""
    sizes = {"q": (1, 3), "k": (1, 3), "v": (2, 2), "g": (2, 1), "beta": (2, 1)}
    plain = {name: Layout.contiguous("f32", (1, 1, *rest)) for name, rest in sizes.items()}
    outputs = {"out": Layout.contiguous("f32", (1, 1, 2, 2)), "state_out": Layout.contiguous("f32", (1, 2, 3, 2))}
    params = {"scale": 1.0, "heads": "tiled", "state_layout": "kv", "l2norm": False, "eps": 1e-6, "gate": "log"}
    return Case("gated_delta_net", {**params, "snapshots": 1}, {**plain, **inputs}, outputs, "normal")


def test_an_issue_on_an_op_of_many_arguments_is_readable() -> None:
    where = target()
    shared = {name: Layout("f32", (1, 1, 1, 3), (24, 24, 24, 4), 12 * (name == "k")) for name in ("q", "k")}
    case = replace(delta_case(**shared), shares={"k": "q"})
    wrong = replace(seen_in("state_out", case, where), stage="delta: β (v − Sᵀk): 4 of 4 elements are wrong")
    assert title(Facts(wrong, where), "Vulkan0") == (
        "GATED_DELTA_NET on Vulkan0 (b7836): wrong values from the step delta on with out of ne [2, 2, 1, 1], "
        "k at an offset, k in the memory of q"
    )
    for stage in ("", "state_out: the last states", "none is wrong by itself of decay, out"):
        assert title(Facts(replace(wrong, stage=stage), where), "Vulkan0").startswith(
            "GATED_DELTA_NET on Vulkan0 (b7836): wrong values in state_out with out of ne"
        )
    files = files_of(wrong, where)
    issue = files["issue.md"].decode()
    assert "| `k` | f32 | 3, 1, 1, 1 | 4, 24, 24, 24 | 12 | in the memory of q |" in issue
    assert "**First wrong step:** delta: β (v − Sᵀk): 4 of 4 elements are wrong." in issue
    assert "Rounding can explain an error of " in issue
    assert "There is no `repro.py` for this case: its graph cannot be built here: " in issue
    assert "There is no test for ggml's `tests/test-backend-ops.cpp`: its graph cannot be built here: " in issue
    picture = ElementTree.fromstring(files["map.svg"].decode())
    assert picture.findtext("{*}title") == "state_out of GATED_DELTA_NET on ggml:Vulkan0: 12 of 12 elements wrong"
    assert len(picture.findall("{*}g")) == 2


def seen_in(output: str, case: Case, where: Target) -> Failure:
    """A failure of `case` in which one output is NaN from end to end."""
    bench = Bench(case)
    after = bench.after(delta.Delta("0", {}))
    after.array(output)[...] = np.nan
    verdict = judge(case, bench.op, bench.values, bench.before, after.memory, EXACT)
    comparison = verdict.comparison
    assert comparison is not None
    return replace(
        described(case, where),
        findings=(Finding("value", Kind.WRONG_VALUES, f"{output} differs"),),
        wrong=wrong_of(case, comparison),
        versions=tuple(where.device.versions.items()),
    )


def test_a_bundle_names_no_folder_of_its_author(tmp_path: Path) -> None:
    """That of a registered backend and that of a file, with a traceback; in no file, and not in the folder's name."""
    where = target()
    where.options["ggml_lib"] = str(Path.home() / "secret" / "bin")  # type: ignore[index]
    folder = tmp_path / "my secret"
    folder.mkdir()
    shutil.copy(SAMPLE, folder / "mine.py")
    mine = Target(f"{folder / 'mine.py'}:IgnoresNe3", Device("0", "NumPy, mine", {"numpy": "2"}))
    said = f'Traceback (most recent call last):\n  File "{folder}/mine.py", line 3, in run\n{tmp_path}/k.cl:7: no'
    changes: dict[str, Any] = {
        "stderr": said,
        "also": f"passes on {tmp_path}/other.py:Good:0",
        "findings": (Finding("value", Kind.WRONG_VALUES, f"{tmp_path}/k.cl:7 says so"),),
    }
    for each, failure in ((where, one_failure(where)), (mine, one_failure(mine, **changes))):
        files = files_of(failure, each)
        assert {"issue.md", "repro.py", "test_case.cpp", "bundle.json", "map.svg"} <= set(files)
        for name, content in files.items():
            for secret in (str(Path.home() / "secret"), str(tmp_path), "my secret"):
                assert secret not in content.decode(), name
    issue = files["issue.md"].decode()
    assert "opconform replay case.json --backend mine.py:IgnoresNe3:0\n" in issue
    assert 'File "mine.py", line 3, in run\nk.cl:7: no' in issue
    assert "Result: passes on other.py:Good:0." in issue
    bundles = [
        write_bundle(replace(failure, target=f"{tmp_path}/{n}/mine.py:IgnoresNe3:0"), mine, tmp_path) for n in "abc"
    ]
    assert len(set(bundles)) == 3  # files of one name in several folders
    assert not any(str(tmp_path)[1:].replace("/", "-") in bundle.name for bundle in bundles)


def test_a_path_in_a_text_becomes_the_name_of_its_file() -> None:
    for text, shown in {
        'File "/home/me/my kernels/mine.py", line 3': 'File "mine.py", line 3',
        "/home/me/ggml/src/ggml.c:12: GGML_ASSERT(a/b) failed": "ggml.c:12: GGML_ASSERT(a/b) failed",
        "see https://example.org/a/b, or 1/2/3, or </b>/x/y": "see https://example.org/a/b, or 1/2/3, or </b>/x/y",
    }.items():
        assert without_folders(text) == shown


def test_an_issue_names_the_device_in_words() -> None:
    where = Target("opencl", Device("0", "NVIDIA H200", {"driver": "580.1"}))
    issue = files_of(one_failure(where), where)["issue.md"].decode()
    assert issue.startswith(
        "# ACC on NVIDIA H200: wrong values with ne0 = 4, ne1 = 3, ne3 > 1\n\nOn `NVIDIA H200`, ACC ("
    )
    assert "opconform replay case.json --backend opencl:0\n" in issue


@pytest.mark.parametrize(
    ("versions", "quoted"),
    [
        ({"driver": "580.1", "CUDA": "12.9"}, ', "driver 580.1, CUDA 12.9".'),
        ({}, "."),
        ({"build": "b7836", "ggml": "0.9.4"}, ', "build b7836, ggml 0.9.4".'),
    ],
    ids=["another backend", "nothing known", "ggml"],
)
def test_a_test_of_ggml_names_the_versions_that_were_seen(versions: dict[str, str], quoted: str) -> None:
    where = Target("cuda", Device("0", "a GPU", versions))
    first, *_ = files_of(one_failure(where), where)["test_case.cpp"].decode().splitlines()
    assert first == f'// ACC: wrong values on "a GPU"{quoted}'


def test_an_issue_draws_the_wrong_slice_in_text() -> None:
    where = target()
    issue = files_of(one_failure(where), where)["issue.md"].decode()
    drawn = ["slice (i2=0,i3=1), i1 down, i0 across (X wrong, · right):", *["  XX··"] * 3, "```"]
    assert "\n".join(["", *drawn, ""]) in issue


def test_an_issue_says_why_its_case_may_not_be_the_smallest() -> None:
    where = target()
    done, short = (
        files_of(one_failure(where, **more), where)["issue.md"].decode() for more in ({}, {"unfinished": "why"})
    )
    assert "\n## The smallest case\n\n```" in done
    assert "not shrunk" not in done
    assert "\n## A case that fails\n\nIt was not shrunk to the end: why.\n\n```" in short
