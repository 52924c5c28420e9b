"""Bundles take any text for a name or a path; their C++ compiles."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from opconform.backends.ggml import cpp
from opconform.backends.ggml.declarations import DECLARATIONS
from opconform.harness.explain.facts import Facts
from opconform.harness.model import escape
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.reports.repro.bundle import files_of
from tests.judge import OPS, drawn_cases
from tests.repro_samples import FLUSHING, HOSTILE, described, hostile_bundle, one_failure, target
from tests.samples import acc

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

HEADERS = """
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>
"""
STUB = """
enum ggml_type { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_I32, GGML_TYPE_I64 };
struct ggml_context;
struct ggml_cgraph;
struct ggml_tensor { int64_t ne[4]; size_t nb[4]; ggml_tensor * view_src; char name[64]; };
#define GGML_UNUSED(x) (void)(x)
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
enum ggml_tri_type { GGML_TRI_TYPE_UPPER_DIAG, GGML_TRI_TYPE_UPPER, GGML_TRI_TYPE_LOWER_DIAG, GGML_TRI_TYPE_LOWER };
T ggml_tri(ggml_context *, T, ggml_tri_type);
T ggml_diag(ggml_context *, T);
T ggml_pad_ext(ggml_context *, T, int, int, int, int, int, int, int, int);
T ggml_l2_norm(ggml_context *, T, float);
T ggml_ssm_conv(ggml_context *, T, T);
T ggml_sum_rows(ggml_context *, T);
T ggml_cpy(ggml_context *, T, T);
T ggml_cont(ggml_context *, T);
T ggml_fill(ggml_context *, T, float);
T ggml_gated_delta_net(ggml_context *, T, T, T, T, T, T, int64_t);
struct test_case {
    ggml_cgraph * gf = nullptr;
    virtual ~test_case() {}
    virtual std::string vars() { return ""; }
    virtual std::string op_desc(ggml_tensor *) { return ""; }
    virtual bool run_whole_graph() { return false; }
    virtual ggml_tensor * build_graph(ggml_context * ctx) = 0;
    virtual void initialize_tensors(ggml_context *) {}
    virtual double err(const float * a, const float * b, size_t n) { return nmse(a, b, n); }
    ggml_tensor * ggml_new_tensor_1d(ggml_context *, ggml_type, int64_t);
    ggml_tensor * ggml_new_tensor_4d(ggml_context *, ggml_type, int64_t, int64_t, int64_t, int64_t);
};
"""


CPP = ("g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")


@cache
def headers() -> tempfile.TemporaryDirectory[str]:
    """A folder with the headers of C++, compiled once: they take most of the time of a test case."""
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name, "headers.h")
    file.write_text(HEADERS)
    subprocess.run([*CPP, "-x", "c++-header", str(file), "-o", f"{file}.gch"], check=True)
    return folder


def compiles(text: str, tmp_path: Path) -> None:
    """Whether upstream's file would take the struct and the line, as far as a stub of it can tell."""
    if shutil.which(CPP[0]) is None:
        pytest.fail("there is no g++") if os.environ.get("CI") == "true" else pytest.skip("there is no g++")
    struct, last = text.rstrip().rsplit("\n", 1)
    assert last.startswith("test_cases.emplace_back(new test_")
    make = (
        f"std::vector<std::unique_ptr<test_case>> make() {{ std::vector<std::unique_ptr<test_case>> test_cases; {last}"
    )
    source = tmp_path / "test.cpp"
    more = [it.text for name, it in DECLARATIONS.functions.items() if name in text and f" {name}(" not in STUB]
    stub = STUB.replace("struct test_case {", "\n".join([*more, "struct test_case {"]), 1)
    source.write_text(f"{stub}\n{struct}\n{make} return test_cases; }}\n", encoding="utf-8")
    command = [*CPP, "-fsyntax-only", "-include", f"{headers().name}/headers.h", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ["", *HOSTILE])
def test_a_cpp_test_case_compiles(text: str, tmp_path: Path) -> None:
    compiles(hostile_bundle(text or "a GPU")["test_case.cpp"], tmp_path)


@pytest.mark.parametrize("op", list(OPS))
@pytest.mark.parametrize("device", ["CPU", "Vulkan0"])
def test_the_cpp_of_every_layout_and_type_compiles(op: str, device: str, tmp_path: Path) -> None:
    made = []
    where = target(device=device, numerics=FLUSHING)
    for case in drawn_cases(op, 20, 1 << 12, 4):
        with suppress(cpp.NoTestError):
            made.append(cpp.test_case(Facts(described(case, where), where)))
    texts = {text.rstrip() for text in made}
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
    assert "nan" not in text.replace("NaN", "")
    assert "1024.0f" in text


def test_a_case_that_upstreams_comparison_cannot_run_says_so() -> None:
    case = acc(2, 3)
    strided = replace(case, inputs={**case.inputs, "b": Layout("f32", (1, 1, 3, 2), (48, 48, 16, 8), 0)})
    where = target()
    says = "It ends when the CPU device, with which upstream compares, comes to it: the CPU's ACC aborts unless b's nb0"
    assert says in cpp.test_case(Facts(described(strided, where), where))
    assert "It ends when" not in cpp.test_case(Facts(described(case, where), where))


def test_a_case_that_ggml_cannot_build_has_no_cpp() -> None:
    x = Layout.contiguous("f32", (1, 1, 2, 2))
    case = Case("cumsum", {"axis": 1, "exclusive": False, "reverse": False}, {"x": x}, {"out": x})
    where = target("opencl", "0")
    with pytest.raises(cpp.NoTestError, match="ggml_cumsum does not take this case"):
        cpp.test_case(Facts(described(case, where), where))
    along_rows = replace(case, params={**case.params, "axis": 0})
    assert "not with ggml" in str(cpp.test_case(Facts(described(along_rows, where), where)))
