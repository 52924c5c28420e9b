"""Nodes as lines of text, as llama-export-graph-ops writes them: written, read, and made into case files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opconform.backends.ggml.caching import STORED
from opconform.backends.ggml.llama.lines import NodeLines, line, node_of
from opconform.backends.ggml.names import Numbers
from opconform.backends.ggml.ops import GATES, OPS, UNARY, UNARY_INPLACE
from opconform.backends.ggml.pieces import BUILDS as CHAINS
from opconform.harness.draw.known import case_from_file, find_cases, known_cases
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Backend
from opconform.harness.run.lines import NotALineError
from opconform.harness.search import lines as exchange
from opconform.harness.search.lines import Exchanged, export_cases, import_lines
from opconform.reports.lines import exchanged_screen
from tests.judge import drawn_cases

UNITS = tuple(name.upper() for name in ("exp", "silu", "xielu", *UNARY_INPLACE, *UNARY))
_GATES = {**GATES, "swiglu_oai": 3, "swiglu_clamp": 6}
GATED = tuple(name.upper() for name in sorted(_GATES, key=_GATES.__getitem__))
SINGLE = sorted({row.node for row in OPS.values()} - {*UNITS, *GATED})
NUMBERS = Numbers(("NONE", "VIEW", *SINGLE, "UNARY", "MAP_CUSTOM1", "GLU"), UNITS, GATED)
LINES = NodeLines("b1", NUMBERS)
#: Ops of one node that no line tells: ggml keeps only what it has made of the parameters of one, and the other's cases
#: have three tensors in one.
UNTOLD = {"xielu", "opt_step_adamw"}
PIECES = {*CHAINS, *STORED, "moe_routing"}  #: of several nodes


def number(op: str) -> int:
    return NUMBERS.ops.index(op)


def text(op: str, kind: int, ne: str, params: str, *sources: str, name: str = "-") -> str:
    """A line; sources in packed form: "0 4 2 1 1" or with their four strides behind."""
    spelled = (each if len(each.split()) == 9 else f"{each} 0 0 0 0" for each in sources)
    return f"{number(op)} {kind} {ne} {len(params.split())} {params} {len(sources)} {' '.join(spelled)} {name}"


def alike(one: Case, other: Case) -> bool:
    """Whether two cases have the same layouts and parameters; those of float32 are what ggml keeps of them."""

    def params(case: Case) -> dict[str, object]:
        return {name: float(np.float32(it)) if isinstance(it, float) else it for name, it in case.params.items()}

    return (one.op, one.inputs, one.outputs, one.inplace, params(one)) == (
        other.op,
        other.inputs,
        other.outputs,
        other.inplace,
        params(other),
    )


def written(cases: Iterator[Case] | list[Case]) -> tuple[list[Case], dict[str, list[Case]]]:
    """The cases that come back from their lines, and those that have none, by the reason."""
    told: list[Case] = []
    untold: dict[str, list[Case]] = {}
    for case in cases:
        try:
            text = LINES.write(case, "x")
        except CaseError as reason:
            untold.setdefault(str(reason), []).append(case)
            continue
        name, read = LINES.read(text)
        assert name == "x"
        assert alike(case, read), (text, case, read)
        told.append(case)
    return told, untold


# ---- round trips -----------------------------------------------------------------------------------------------------


def test_every_known_case_comes_back_from_its_line_or_cannot_be_told() -> None:
    told, untold = written([known.case for known in known_cases().values()])
    assert {case.op for case in told} == {known.case.op for known in known_cases().values()} - {
        *UNTOLD,
        "mla_absorbed",
        "gated_delta_net_chunk",
        *PIECES,
    }
    assert len(told) > 400
    for reason, cases in untold.items():
        for case in cases:
            assert not plain(case), (reason, case)


def plain(case: Case) -> bool:
    """Whether there is nothing about a case that lines have no room for, in other words than the writer's."""
    row = OPS.get(case.op)
    if row is None or case.op in UNTOLD or case.before or case.shares or any(it.offset for it in case.layouts.values()):
        return False
    if case.inplace and case.op not in ("acc", "set", "add_rel_pos", "set_rows", "opt_step_sgd"):
        return False
    given = [name in case.layouts for name in row.tensors]
    if given != sorted(given, reverse=True) or (case.op == "gated_delta_net" and not given[-1]):
        return False
    if case.op == "gated_delta_net" and case.inputs["q"].shape[-1] != case.inputs["v"].shape[-1]:
        return False
    fixed = {"cumsum": (0, False, False), "solve_tri": (True, True, False), "l2_norm": ("max",)}.get(case.op)
    if fixed and not set(fixed) >= {value for value in case.params.values() if not isinstance(value, float)}:
        return False
    if case.op == "solve_tri" and tuple(case.params[name] for name in ("left", "lower", "unit")) != fixed:
        return False
    return all(layout.is_contiguous for name, layout in case.outputs.items() if name not in row.tensors)


@pytest.mark.parametrize(
    "op", ["acc", "set_rows", "cpy", "mul_mat", "rope", "soft_max", "pad_circular", "swiglu_split"]
)
def test_drawn_cases_come_back_from_their_lines(op: str) -> None:
    told, untold = written(drawn_cases(op, 150, 1 << 12, 2))
    assert told
    assert any(not layout.is_contiguous for case in told for layout in case.inputs.values())
    assert all("a line" in reason or "which stands for a packed tensor" in reason for reason in untold)


@pytest.mark.parametrize("op", sorted(OPS.keys() - UNTOLD))
def test_a_packed_case_of_every_op_comes_back_from_its_line(op: str) -> None:
    always = OPS[op].inplace == OPS[op].symbol
    cases = [case.packed() for case in drawn_cases(op, 12, 1 << 12, 2)]
    told, untold = written([case if always else replace(case, inplace=None) for case in cases])
    assert told or op == "gated_delta_net", untold  # one of the known cases has the state that ggml wants


# ---- the format ------------------------------------------------------------------------------------------------------


def test_a_line_reads_as_llama_cpp_writes_it() -> None:
    q = Layout.contiguous("q4_0", (1, 1, 2, 64))
    b = Layout("f32", (1, 1, 3, 64), (1536, 1536, 512, 4))
    case = Case("mul_mat", {}, {"a": q, "b": b}, {"out": Layout.contiguous("f32", (1, 1, 3, 2))})
    zeros = " ".join(["0"] * 16)
    assert (
        LINES.write(case, "ffn out-0") == f"{number('MUL_MAT')} 0 2 3 1 1 16 {zeros} 2 "
        "2 64 2 1 1 18 36 72 72 0 64 3 1 1 4 512 1536 1536 ffn_out-0"
    )


@pytest.mark.parametrize(
    ("given", "op", "params"),
    [
        (text("PAD", 0, "6 1 1 1", "1 1 0 0 0 0 0 0 1", "0 4 1 1 1"), "pad_circular", {"lp0": 1, "rp0": 1}),
        (text("PAD", 0, "6 1 1 1", "1 1 0 0 0 0 0 0 0", "0 4 1 1 1"), "pad", {"lp0": 1, "rp0": 1}),
        (text("GLU", 0, "4 1 1 1", "2 1", "0 8 1 1 1"), "swiglu", {"swapped": True}),
        (text("GLU", 0, "4 1 1 1", "2 0", "0 4 1 1 1", "0 4 1 1 1"), "swiglu_split", {}),
        (text("UNARY", 0, "4 1 1 1", str(UNITS.index("TANH")), "0 4 1 1 1"), "tanh", {}),
        (text("CPY", 1, "4 1 1 1", "", "0 4 1 1 1", "1 4 1 1 1"), "cpy", {}),
        (text("CPY", 8, "32 1 1 1", "", "0 32 1 1 1", "8 32 1 1 1"), "cpy_blocks", {}),
        (text("TOP_K", 26, "3 1 1 1", "", "0 5 1 1 1"), "top_k", {"k": 3}),
        (text("CLAMP", 0, "4 1 1 1", "0 2139095040", "0 4 1 1 1"), "clamp", {"min": 0.0, "max": 1e30}),
        (text("WIN_UNPART", 0, "2 5 6 1", "4", "0 2 4 4 4"), "win_unpart", {"w0": 5, "h0": 6, "w": 4}),
        (text("TRI", 0, "2 2 1 1", "3", "0 2 2 1 1"), "tri", {"kind": "lower"}),
    ],
)
def test_names_that_several_ops_share_are_told_apart(given: str, op: str, params: dict[str, object]) -> None:
    name, case = LINES.read(given)
    assert name == ""
    assert case.op == op
    assert params.items() <= case.params.items()
    assert set(case.params) == set(ops()[op].params)


def test_what_a_node_writes_into_follows_from_its_op_and_its_parameters() -> None:
    acc = [text("ACC", 0, "4 1 1 1", f"16 16 16 0 {flag}", "0 4 1 1 1", "0 2 1 1 1") for flag in (0, 1)]
    assert [LINES.read(each)[1].inplace for each in acc] == [None, "a"]
    case = LINES.read(text("SET_ROWS", 0, "4 3 1 1", "", "0 4 1 1 1", "27 1 1 1 1", "0 4 3 1 1"))[1]
    assert (case.inplace, list(case.inputs)) == ("a", ["a", "b", "c"])
    case = LINES.read(text("CPY", 0, "4 2 1 1", "", "0 4 2 1 1", "0 4 2 1 1 4 32 64 64"))[1]
    assert (case.inplace, case.outputs["out"].nb) == (None, (4, 32, 64, 64))


def test_an_argument_of_which_only_the_shape_counts_is_that_of_the_output() -> None:
    case = LINES.read(text("REPEAT_BACK", 0, "4 1 1 1", "", "0 4 3 1 1"))[1]
    assert case.inputs["like"] == case.outputs["out"] == Layout.contiguous("f32", (1, 1, 1, 4))


@pytest.mark.parametrize(
    ("ending", "name"),
    [(" -", ""), ("", ""), (" ffn_out-0", "ffn_out-0"), (" a name (view) \r", "a name (view)"), (" --", "--")],
)
def test_what_stands_behind_the_numbers_is_the_name(ending: str, name: str) -> None:
    assert LINES.read(EXP + ending)[0] == name


EXP = f"{number('UNARY')} 0 4 1 1 1 1 {UNITS.index('EXP')} 1 0 4 1 1 1 4 16 16 16"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "it ends where the op must stand, after 0 numbers"),
        ("hello", "'hello' stands where the op must, a whole number from 0 to"),
        ("-1 0", "'-1' stands where the op must"),
        ("1e3 0", "'1e3' stands where the op must"),
        (f"{EXP[:-3]}", "it ends where nb3 must stand, after 17 numbers"),
        (EXP.replace("4 16", "4 -16"), "'-16' stands where nb1 must"),
        (EXP.replace("0 4 1", f"0 {10**30} 1", 1), "stands where ne0 must"),
        (EXP.replace("1 1 1 1 ", "1 1 1 17 ", 1), "'17' stands where the number of params must"),
        (f"{number('CONT')} 0 4 1 1 1 0 11", "'11' stands where the number of sources must"),
        (EXP + " " + "x" * 9000, "it has more than 8192 characters"),
        ("\0" + EXP, "stands where the op must"),
    ],
)
def test_what_is_no_line_says_where_it_ends_to_be_one(given: str, said: str) -> None:
    with pytest.raises(NotALineError) as caught:
        LINES.read(given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (f"999{EXP[2:]}", "this build has no op of the numbers 999"),
        (f"{number('UNARY')} 0 4 1 1 1 1 99 1 0 4 1 1 1 0 0 0 0", "this build has no op of the numbers"),
        (f"{number('UNARY')} 0 4 1 1 1 1 -1 1 0 4 1 1 1 0 0 0 0", "this build has no op of the numbers"),
        (text("VIEW", 0, "4 1 1 1", "", "0 4 1 1 1"), "VIEW computes nothing"),
        (text("MAP_CUSTOM1", 0, "4 1 1 1", "", "0 4 1 1 1"), "no reference of MAP_CUSTOM1 yet"),
        (text("CONT", 99, "4 1 1 1", "", "0 4 1 1 1"), "it has a type of the number 99; cases have f32, f16"),
        (text("TRI", 0, "2 2 1 1", "9", "0 2 2 1 1"), "kind is 9; a case has words for"),
        (
            text("CPY", 0, "4 1 1 1", "", "0 4 1 1 1", "0 5 1 1 1"),
            "CPY writes into a source, and has none of its own",
        ),
        (text("CPY", 0, "4 1 1 1", "", "0 4 1 1 1"), "CPY writes into a source, and has none"),
        (text("CUMSUM", 0, "4 1 1 1", "", "0 4 1 1 1", "0 4 1 1 1"), "it has 2 sources; CUMSUM has at most 1"),
        (text("SOFT_MAX_BACK", 0, "4 1 1 1", "1065353216 1", "0 4 1 1 1", "0 4 1 1 1"), "has parameters that a case"),
        (f"{number('UNARY')} 0 4 1 1 1 1 {UNITS.index('XIELU')} 1 0 4 1 1 1 0 0 0 0", "does not keep alpha_n"),
        (text("OPT_STEP_ADAMW", 0, "4 1 1 1", "", *["0 4 1 1 1"] * 4, "0 7 1 1 1"), "sources of their own for m, v"),
        (text("SSM_SCAN", 0, "4 1 1 1", "", "0 4 1 1 1"), "SSM_SCAN has no source for x, dt"),
    ],
)
def test_a_line_that_can_be_no_case_says_why(given: str, said: str) -> None:
    with pytest.raises(CaseError) as caught:
        LINES.read(given)
    assert said in str(caught.value)
    assert not isinstance(caught.value, NotALineError)


def test_a_parameter_beyond_32_bits_is_no_line() -> None:
    x = Layout.contiguous("f32", (1, 1, 1, 4))
    case = Case("roll", {f"shift{k}": 2**40 for k in range(4)}, {"x": x}, {"out": x})
    with pytest.raises(CaseError, match="do not fit into 16 numbers of 32 bits"):
        LINES.write(case, "x")


def test_a_build_without_an_op_has_no_line_of_it() -> None:
    numbers = replace(NUMBERS, ops=tuple(name for name in NUMBERS.ops if name != "CUMSUM"))
    with pytest.raises(CaseError, match="test-backend-ops of ggml b1 has no CUMSUM"):
        NodeLines("b1", numbers).write(known_cases()["cumsum/upstream-127"].case, "x")


def test_a_node_is_written_as_it_was_read() -> None:
    given = text("SOFT_MAX", 0, "4 2 1 1", "1065353216 0", "0 4 2 1 1 4 32 64 64", name="kq")
    words = given.split()
    again = line(node_of(given, NUMBERS)).split()
    at = 7 + 2
    assert again[:6] + again[7:9] == words[:6] + words[7:at]
    assert again[7 + 16 :] == words[at:]


# ---- files -----------------------------------------------------------------------------------------------------------

SUMS = [text("CUMSUM", 0, f"{n} 2 1 1", "", f"0 {n} 2 1 1", name=f"sums-{n}") for n in (3, 5)]


def import_text(folder: Path, *given: str, max_bytes: int = 1 << 20) -> Exchanged:
    (folder / "ops.txt").write_text("\n".join(given) + "\n")
    return import_lines(folder / "ops.txt", LINES, folder / "out", max_bytes)


def test_equal_lines_and_equal_cases_become_one_file(tmp_path: Path) -> None:
    other = SUMS[0].replace("sums-3", "another name")
    found = import_text(tmp_path, SUMS[0], SUMS[1], SUMS[0], "", other)
    assert (len(found.done), found.repeated, found.lost, found.total) == (2, 2, 0, 4)
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == sorted(found.done.values())
    assert [name.partition("-")[0] + name[17:] for name in files if "-3" in name] == ["cumsum-sums-3.json"]
    cases = [case for _, case in find_cases(str(tmp_path / "out"), "none")]
    assert {case.id for case in cases} == found.done.keys()
    assert sorted(case.inputs["x"].ne for case in cases) == [(3, 2, 1, 1), (5, 2, 1, 1)]


def test_what_is_left_out_has_its_line_and_reason(tmp_path: Path) -> None:
    large = text("CUMSUM", 0, "1048576 1 1 1", "", "0 1048576 1 1 1")
    wrong = text("CUMSUM", 0, "4 1 1 1", "", "0 5 1 1 1")
    found = import_text(tmp_path, SUMS[0], "no line", large, wrong, "no line")
    screen = exchanged_screen(found, "line", "case file", "out", LINES.about).splitlines()
    assert screen[0].startswith("left out  line 2, line 5: 'no' stands where the op must")
    assert "left out  line 3: case.inputs.x takes 4194304 bytes; --max-bytes allows 1048576" in screen
    assert any(each.startswith("left out  line 4: out has shape") for each in screen)
    assert screen[-3].startswith("was another build the writer? ")
    assert screen[-2] == "ops by the numbers of test-backend-ops of ggml b1"
    assert screen[-1].startswith("1 of 5 lines became 1 case file in out; 4 not: 'no' stands where the op must")


def test_values_that_cannot_be_made_are_a_reason(tmp_path: Path) -> None:
    rows = text("GET_ROWS", 0, "4 3 1 1", "", "0 4 0 1 1", "26 3 1 1 1")
    assert import_text(tmp_path, rows).left_out == {"b cannot hold 1 places of 0 that there are": ["line 1"]}


def test_a_case_that_would_say_nothing_gets_other_values(tmp_path: Path) -> None:
    """RELU gives the two small integers that come first back: a copied input would pass."""
    relu = f"{number('UNARY')} 0 2 1 1 1 1 {UNITS.index('RELU')} 1 0 2 1 1 1 0 0 0 0 -"
    (name,) = import_text(tmp_path, relu).done.values()
    assert case_from_file(tmp_path / "out" / name).recipe not in ("small_int", "index")


def test_files_of_an_earlier_import_stay_and_those_of_a_broken_one_never_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_text(tmp_path, SUMS[0])
    import_text(tmp_path, SUMS[1])
    assert len(list((tmp_path / "out").iterdir())) == 2
    real, calls = exchange.write_case, []

    def full(case: Case, path: Path) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        real(case, path)

    monkeypatch.setattr(exchange, "write_case", full)
    more = [text("CUMSUM", 0, f"{n} 1 1 1", "", f"0 {n} 1 1 1") for n in (7, 8)]
    before = sorted(tmp_path.rglob("*.json"))
    with pytest.raises(UsageError, match="cannot be written: No space left on device"):
        import_text(tmp_path, *more)
    assert sorted(tmp_path.rglob("*.json")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ops.txt", "out"]


def test_a_folder_that_is_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="out is no folder"):
        import_text(tmp_path, SUMS[0])
    assert (tmp_path / "out").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ops.txt", "out"]


def test_an_export_has_each_node_once_and_says_what_it_cannot_tell(tmp_path: Path) -> None:
    known = {name: known_cases()[name].case for name in ("cumsum/upstream-127", "cumsum/long-row-reverse")}
    path = tmp_path / "new" / "ops.txt"
    found = export_cases([*known.items(), ("again", known["cumsum/upstream-127"])], LINES, path)
    assert path.read_text().split() == LINES.write(known["cumsum/upstream-127"], "cumsum/upstream-127").split()
    assert (len(found.done), found.repeated) == (1, 1)
    assert found.left_out == {"a line does not tell reverse of this case": ["cumsum/long-row-reverse"]}
    again = import_lines(path, LINES, tmp_path / "back", 1 << 30)
    ((_, case),) = find_cases(str(tmp_path / "back"), "none", 1 << 30)
    assert alike(case, known["cumsum/upstream-127"])
    assert again.lost == 0


def test_nothing_to_write_leaves_no_file(tmp_path: Path) -> None:
    case = known_cases()["cumsum/long-row-reverse"].case
    assert not export_cases([("x", case)], LINES, tmp_path / "ops.txt").done
    assert not (tmp_path / "ops.txt").exists()
    with pytest.raises(UsageError, match="cannot be written: Is a directory"):
        export_cases([("x", known_cases()["cumsum/upstream-127"].case)], LINES, tmp_path)


def test_a_backend_without_such_lines_says_so() -> None:
    with pytest.raises(UsageError, match="has no tools that read cases from a file"):
        Backend.lines({})


def test_a_folder_without_case_files_is_no_case(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file of this folder is a case"):
        find_cases(str(tmp_path), "none")


def test_infinities_become_no_case_where_they_are_no_limit(tmp_path: Path) -> None:
    scale = text("SCALE", 0, "4 1 1 1", f"{np.float32(math.inf).view(np.int32)} 0", "0 4 1 1 1")
    found = import_text(tmp_path, SUMS[0], scale)
    assert "case.params.scale is not a finite number" in found.left_out
