"""Bundles without a device: what a script demands, how hostile text is taken, and that files are whole."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt

from opconform.harness.backend import Device
from opconform.harness.case import Case
from opconform.harness.checks import Finding
from opconform.harness.failure import Failure, describe
from opconform.harness.judging import Verdict, judge
from opconform.harness.layouts import Layout
from opconform.harness.numerics import EXACT, Numerics
from opconform.harness.runner import Target
from opconform.reports.repro import apis, arrays, bundle, cpp, escape
from opconform.reports.repro.bundle import files_of, write_bundle
from opconform.reports.repro.facts import Facts
from opconform.reports.repro.issue import features, title
from opconform.reports.repro.picture import picture
from opconform.reports.repro.scripts import script
from tests.judge import OPS, Bench, drawn_cases
from tests.kernels import correct, wrong
from tests.samples import acc, spec

HOSTILE = (
    'the "RTX" */ ??/ \\',
    "</script><svg onload=alert(1)>",
    "two\nlines // \\\nand\r\nmore",
    "`rm -rf ~`; $(touch pwned) ' && touch pwned #",
    '"""\nimport os  # \\',
    "\u202egnippilf\u2066",
    "@everyone #1 **bold** [link](javascript:alert(1)) <b>GH-1</b> https://example.org",
    "a | b | c",
    "\x00\x1b[31mred",
    "{{ 7 * 7 }} {% raw %}",
    "\ud800 and \u00e9\u6f22",
)
FLUSHING = Numerics(flushes_denormals=True, any_rounding=True, division_ulps=2.5)


class Fake:
    """Stands for the runner of a device that is only described."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.time_limit = 1.0
        self.max_bytes = 1 << 30

    def verdicts(self, op: Any, cases: list[Case], **_: Any) -> list[Verdict]:
        return [Verdict(case, unsupported="there is no device") for case in cases]


def target(backend: str = "ggml", device: str = "Vulkan0", text: str = "a GPU", numerics: Numerics = EXACT) -> Target:
    return Target(backend, Device(device, text, {"build": "b7836", "driver": text}, numerics), {"ggml_lib": "/no/such"})


def failure_of(bench: Bench, kernel: Any, where: Target) -> Failure:
    """The failure of a wrong kernel as if it had been seen on `where`."""
    verdict = bench.verdict(kernel, where.device.numerics)
    assert verdict.failed
    return describe(bench.op, Fake(where), verdict)  # type: ignore[arg-type]


def one_failure(where: Target | None = None, **changes: Any) -> Failure:
    bench = Bench(acc(2, 3, 1, 2, a=(4, 3, 1, 2)))
    return replace(failure_of(bench, wrong.IgnoresI3("0", {}), where or target()), **changes)


def module_of(failure: Failure, where: Target) -> dict[str, Any]:
    """The names of a script, as if it were imported; its run is that of ggml and stays unused."""
    facts = Facts(failure, where)
    scope: dict[str, Any] = {"__name__": "script"}
    exec(compile(script(facts, apis.ggml(facts)), "repro.py", "exec"), scope)
    return scope


def described(case: Case, where: Target, kind: str = "WRONG VALUES") -> Failure:
    """A failure of which nothing but the case is known."""
    bench = Bench(case)
    data = {name: np.ascontiguousarray(raw).tobytes() for name, raw in bench.values.items()}
    return Failure(
        case.with_data(data), where.label, "a GPU", (), (Finding("value", kind, "wrong"),), None, "fails", "", "", ""
    )


# ---- what a script demands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numerics", [EXACT, FLUSHING], ids=["exact", "flushing"])
@pytest.mark.parametrize("op", list(OPS))
def test_a_script_demands_what_the_oracle_demands(op: str, numerics: Numerics) -> None:
    """For right and wrong results alike, over drawn layouts, values and parameters."""
    where = target(numerics=numerics)
    kernels = [correct.Correct("0", {}), *(kernel("0", {}) for kernel in KERNELS[op])]
    outcomes = set()
    for case in drawn_cases(op, 40, 1 << 14, 3):
        bench = Bench(case)
        scope = module_of(described(case, where), where)
        for name, layout in case.inputs.items():
            np.testing.assert_array_equal(
                scope["at"](scope["filled"](), name).view(layout.type.raw), bench.values[name], strict=False
            )
        for kernel in kernels:
            after = bench.after(kernel).memory.copy()
            judged = judge(case, bench.op, bench.values, bench.before, after.copy(), numerics)
            with np.errstate(all="ignore"):
                found = scope["faults"](bench.before, after)
            assert bool(found) == judged.failed, (case, kernel, found, judged.findings)
            outcomes.add(judged.failed)
    assert outcomes == {True, False}


KERNELS: Mapping[str, tuple[type, ...]] = {
    "acc": (wrong.IgnoresI3, wrong.IgnoresNb1, wrong.ClearsSpan, wrong.LeavesTail),
    "set": (wrong.IgnoresI3, wrong.CanonicalZero, wrong.ClearsSpan),
    "cumsum": (wrong.ExclusiveBySubtraction, wrong.HalfSums, wrong.LosesCarry),
    "solve_tri": (wrong.ByInverse, wrong.IgnoresUnit, wrong.HalfDots),
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
    text = script(facts, apis.ggml(facts))
    assert len(text) < 12_000
    scope: dict[str, Any] = {"__name__": "script"}
    exec(compile(text, "repro.py", "exec"), scope)
    np.testing.assert_array_equal(scope["WANT"], facts.expected.value)
    np.testing.assert_allclose(scope["BOUND"], facts.bound, rtol=1e-9)
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
    np.testing.assert_array_equal(scope["WANT"], Facts(failure, where).expected.value)


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


# ---- hostile text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_inside_a_python_string_and_comment(text: str) -> None:
    (statement,) = ast.parse(f'"""{escape.docstring(text)} end"""').body
    assert isinstance(statement, ast.Expr)
    assert ast.literal_eval(escape.python(text)) == text
    assert ast.parse(f"x = 1  # {escape.plain(text)}\ny = 2").body[1:]
    assert escape.python(text).isascii()


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_inside_markdown(text: str) -> None:
    markdown = MarkdownIt().enable("table")
    inline = re.findall(r"<(\w+)", markdown.render(f"before {escape.code(text)} after"))
    assert inline == ["p", "code"]
    prose = markdown.render(f"before {escape.prose(text)} after")
    assert set(re.findall(r"<(\w+)", prose)) == {"p"}
    assert not re.search(r"[@#]\w|://|\bwww\.", prose.replace("&quot;", ""))
    fenced = markdown.render(f"{escape.block(text + chr(10) + '````' + chr(10) + '# not a title')}\n\nafter")
    assert re.findall(r"<(\w+)", fenced) == ["pre", "code", "p"]
    table = markdown.render(f"| a | b |\n| - | - |\n| {escape.cell(text)} | last |\n")
    assert table.count("<td>") == 2
    assert "<td>last</td>" in table


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_inside_a_cpp_string_and_comment(text: str) -> None:
    literal = escape.cpp_string(text)
    assert re.fullmatch(r'"(?:[^"\\?]|\\[0-7]{3})*"', literal)
    octal = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), literal[1:-1])
    assert octal.encode("latin-1") == text.encode(errors="replace")
    comment = escape.cpp_comment(text)
    assert "\n" not in comment
    assert "\r" not in comment
    assert comment.endswith('"')


def hostile_bundle(text: str, backend: str = "ggml") -> dict[str, str]:
    where = target(backend, "Vulkan0", text)
    where.options["ggml_lib"] = f"/tmp/{text.replace(chr(0), '')}"  # type: ignore[index]
    failure = one_failure(where, hint=text, also=text, provenance=(text,), stderr=f"{text}\n```\n{text}")
    failure = replace(failure, findings=(Finding("value", "WRONG VALUES", text),))
    return {name: content.decode() for name, content in files_of(failure, where).items()}


@pytest.mark.parametrize("text", HOSTILE)
def test_every_file_of_a_bundle_takes_hostile_text(text: str) -> None:
    files = hostile_bundle(text)
    assert {"case.json", "repro.py", "test_case.cpp", "issue.md", "map.svg", "bundle.json"} <= files.keys()
    tree = ast.parse(files["repro.py"])
    assert [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    assert files["repro.py"].count("{{") == text.count("{{") * files["repro.py"].count("{{ 7 * 7 }}")
    names = {element.tag.split("}")[1] for element in ElementTree.fromstring(files["map.svg"]).iter()}
    assert names <= {"svg", "title", "defs", "pattern", "path", "rect", "text", "g"}
    json.loads(files["bundle.json"])
    for name in ("repro.py", "test_case.cpp", "issue.md", "map.svg"):
        unseen = [character for character in files[name] if not character.isprintable() and character != "\n"]
        assert not unseen, (name, unseen)


@pytest.mark.parametrize("text", HOSTILE)
def test_an_issue_has_its_own_headings_and_no_others(text: str) -> None:
    html = MarkdownIt().enable("table").render(hostile_bundle(text)["issue.md"])
    titles = re.findall(r"<h(\d)>", html)
    assert titles == ["1", *"2" * (len(titles) - 1)]
    sections = ["The smallest case", "Expected and got", "What it said", "Other backends", "Environment"]
    assert re.findall(r"<h2>(.*?)</h2>", html) == [*sections, "How to run it"]
    tags = set(re.findall(r"<(\w+)", re.sub(r"<(pre|code)[ >].*?</\1>", "", html, flags=re.DOTALL)))
    assert tags <= {"h1", "h2", "p", "strong", "ul", "li", "em"} | {"table", "thead", "tbody", "tr", "th", "td"} | {
        "details",
        "summary",
    }


@pytest.mark.parametrize("name", HOSTILE)
def test_commands_in_an_issue_name_a_hostile_backend_as_one_word(name: str, tmp_path: Path) -> None:
    label = f"{name.replace(chr(0), '')}.py:Class:0"
    issue = {
        key: content.decode()
        for key, content in files_of(one_failure(target("torch"), target=label), target("torch")).items()
    }["issue.md"]
    line = re.search(r"^opconform (replay .*?)\n`", issue, re.DOTALL | re.MULTILINE)
    assert line is not None
    shown = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {line[1]}"], capture_output=True, text=True, cwd=tmp_path, errors="replace"
    )
    assert shown.returncode == 0
    assert shown.stdout.splitlines()[:3] == ["replay", "case.json", "--backend"]
    assert list(tmp_path.iterdir()) == []


# ---- C++ -------------------------------------------------------------------------------------------------------------

STUB = """
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>
enum ggml_type { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_I32 };
struct ggml_context;
struct ggml_tensor { int64_t ne[4]; size_t nb[4]; ggml_tensor * view_src; char name[64]; };
#define GGML_ASSERT(x) if (!(x)) throw 1
ggml_tensor * ggml_view_1d(ggml_context *, ggml_tensor *, int64_t, size_t);
ggml_tensor * ggml_set_name(ggml_tensor *, const char *);
ggml_tensor * ggml_get_first_tensor(const ggml_context *);
ggml_tensor * ggml_get_next_tensor(const ggml_context *, ggml_tensor *);
int64_t ggml_nelements(const ggml_tensor *);
size_t ggml_nbytes(const ggml_tensor *);
void ggml_backend_tensor_set(ggml_tensor *, const void *, size_t, size_t);
void init_tensor_uniform(ggml_tensor *, float min = -1.0f, float max = 1.0f);
double nmse(const float *, const float *, size_t);
using T = ggml_tensor *;
T ggml_acc(ggml_context *, T, T, size_t, size_t, size_t, size_t);
T ggml_acc_inplace(ggml_context *, T, T, size_t, size_t, size_t, size_t);
T ggml_set(ggml_context *, T, T, size_t, size_t, size_t, size_t);
T ggml_set_inplace(ggml_context *, T, T, size_t, size_t, size_t, size_t);
T ggml_cumsum(ggml_context *, T);
T ggml_solve_tri(ggml_context *, T, T, bool, bool, bool);
struct test_case {
    virtual ~test_case() {}
    virtual std::string vars() { return ""; }
    virtual ggml_tensor * build_graph(ggml_context * ctx) = 0;
    virtual void initialize_tensors(ggml_context *) {}
    virtual double err(const float * a, const float * b, size_t n) { return nmse(a, b, n); }
    ggml_tensor * ggml_new_tensor_1d(ggml_context *, ggml_type, int64_t);
    ggml_tensor * ggml_new_tensor_4d(ggml_context *, ggml_type, int64_t, int64_t, int64_t, int64_t);
};
"""


def compiles(text: str, tmp_path: Path) -> None:
    """Whether upstream's file would take the struct and the line, as far as a stub of it can tell."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.fail("there is no g++") if os.environ.get("CI") == "true" else pytest.skip("there is no g++")
    struct, last = text.rstrip().rsplit("\n", 1)
    assert last.startswith("test_cases.emplace_back(new test_")
    make = f"std::vector<std::unique_ptr<test_case>> make() {{ std::vector<std::unique_ptr<test_case>> test_cases; {last}"
    source = tmp_path / "test.cpp"
    source.write_text(f"{STUB}\n{struct}\n{make} return test_cases; }}\n", encoding="utf-8")
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-fsyntax-only"]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ["", *HOSTILE])
def test_a_cpp_test_case_compiles(text: str, tmp_path: Path) -> None:
    compiles(hostile_bundle(text or "a GPU")["test_case.cpp"], tmp_path)


@pytest.mark.parametrize("op", list(OPS))
@pytest.mark.parametrize("device", ["CPU", "Vulkan0"])
def test_the_cpp_of_every_layout_and_type_compiles(op: str, device: str, tmp_path: Path) -> None:
    made = []
    where = target(device=device, numerics=FLUSHING)
    for case in drawn_cases(op, 30, 1 << 12, 4):
        made.append(cpp.test_case(Facts(described(case, where), where)))
    texts = {text.rstrip() for text in made if text is not None}
    assert len(texts) > 5
    structs, lines = zip(*(text.rsplit("\n", 1) for text in texts))
    compiles("\n".join([*structs, " ".join(lines)]), tmp_path)


def test_a_fault_of_the_cpu_brings_its_reference_along(tmp_path: Path) -> None:
    where = target(device="CPU")
    text = files_of(one_failure(where), where)["test_case.cpp"].decode()
    assert "it is the CPU backend that is wrong" in text
    assert "const std::vector<double> want = {" in text
    compiles(text, tmp_path)


def test_a_nan_is_no_value_of_a_cpp_test_case() -> None:
    case = replace(acc(2, 1, 1, 3), keep=1)
    where = target()
    text = cpp.test_case(Facts(described(case, where, "SLICES MIXED"), where))
    assert text is not None
    assert "nan" not in text.replace("NaN", "")
    assert "1024.0f" in text


def test_a_case_that_ggml_cannot_build_has_no_cpp() -> None:
    x = Layout.contiguous("f32", (1, 1, 2, 2))
    case = Case("cumsum", {"axis": 1, "exclusive": False, "reverse": False}, {"x": x}, {"out": x})
    where = target("opencl", "0")
    assert cpp.test_case(Facts(described(case, where), where)) is None
    along_rows = replace(case, params={**case.params, "axis": 0})
    assert "not with ggml" in str(cpp.test_case(Facts(described(along_rows, where), where)))


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
    assert {"sample.py", "tests/kernels/base.py", "opconform/__init__.py", "opconform/harness/buffers.py"} <= modules
    assert not any("search" in name or "repro" in name for name in modules)


# ---- the picture and the issue ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (500,), (5, 9), (3, 4, 5), (2, 3, 4, 5), (1, 1, 1, 3000), (12, 20, 9, 70)])
def test_a_picture_is_well_formed_and_marks_every_wrong_slice(shape: tuple[int, ...]) -> None:
    mask = np.zeros(shape, dtype=bool)
    mask[..., -1] = True
    x = Layout.contiguous("f32", shape)
    bench_failure = one_failure()
    assert bench_failure.wrong is not None
    import base64
    import zlib

    packed = base64.b64encode(zlib.compress(np.packbits(mask).tobytes())).decode()
    worst = replace(bench_failure.wrong.worst, index=tuple(size - 1 for size in shape))
    drawn = replace(
        bench_failure,
        case=replace(bench_failure.case, outputs={"out": x}),
        wrong=replace(bench_failure.wrong, mask=packed, count=int(mask.sum()), total=mask.size, worst=worst),
    )
    text = picture(drawn)
    assert text is not None
    assert len(text) < 500_000
    root = ElementTree.fromstring(text)
    slices = root.findall("{*}g")
    four = (1,) * (4 - len(shape)) + shape
    assert len(slices) == min(four[0], 8) * min(four[1], 8)
    assert all(any(path.get("fill") == "#c62828" for path in group.findall("{*}path")) for group in slices)
    assert float(root.get("width", "0")) >= 300


def test_a_mask_too_large_to_keep_is_drawn_from_its_map() -> None:
    failure = one_failure()
    assert failure.wrong is not None
    text = picture(replace(failure, wrong=replace(failure.wrong, mask="")))
    assert text is not None
    assert "The first wrong slice (i2=0, i3=1) from i1=0, i0=0 on" in ElementTree.fromstring(text).findall("{*}text")[-1].text  # type: ignore[operator]


def test_a_crash_has_no_picture_and_says_what_it_said() -> None:
    crash = Finding("process", "CRASH", "the process ended with signal SIGABRT")
    files = files_of(one_failure(findings=(crash,), wrong=None, stderr="GGML_ASSERT(nb0 == 4) failed"), target())
    assert "map.svg" not in files
    issue = files["issue.md"].decode()
    assert "GGML_ASSERT(nb0 == 4) failed" in issue
    assert "Expected and got" not in issue
    assert "def watched():" in files["repro.py"].decode()


def test_a_title_says_what_the_case_needs() -> None:
    where = target()
    assert title(Facts(one_failure(where), where)) == "ACC on Vulkan0 (b7836): wrong values with ne0 = 4, ne1 = 3, ne3 > 1"
    a = Layout("f32", (1, 1, 1, 2), (8, 8, 8, 4), 16)
    assert features(Case("acc", {}, {"a": a}, {"out": a}, inplace="a")) == [
        "ne0 > 1",
        "a at an offset",
        "the output in place",
    ]


def test_an_issue_names_no_local_path() -> None:
    where = target()
    where.options["ggml_lib"] = str(Path.home() / "secret" / "bin")  # type: ignore[index]
    issue = files_of(one_failure(where), where)["issue.md"].decode()
    assert str(Path.home() / "secret") not in issue
