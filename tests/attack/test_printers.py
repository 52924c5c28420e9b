"""Whatever a device, a build, a reason or a file is called: each printer writes lines that nothing acts on."""

from __future__ import annotations

import csv
import io
import os
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opconform.cli import main
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.findings import Finding
from opconform.harness.model.text import printable, printable_lines, speak_any_encoding
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Device, Unavailable
from opconform.harness.run.process import devices_of
from opconform.harness.run.target import Target
from opconform.harness.search import session
from opconform.harness.search.result import KnownBug, KnownFailure, Result, Tally
from opconform.harness.search.settings import Settings
from opconform.reports.commands import commands
from opconform.reports.compare import Change, table_of
from opconform.reports.console import counts, matrix
from opconform.reports.rows import CsvPrinter, SqlPrinter
from opconform.reports.screen import clean, screen
from opconform.reports.states import Pair, State
from opconform.reports.summary import markdown_of
from tests.attack.strangers import FOUL, acted_on, foul
from tests.attack.test_worker import evil
from tests.histories import ACC
from tests.repro_samples import one_failure
from tests.samples import spec

FEW = settings(max_examples=60, deadline=None)


def safe(text: str) -> str:
    """The text, if no line of it holds what cannot be seen, or is a command to a CI system."""
    for line in text.split("\n"):
        assert line.isprintable(), repr(line)
        assert not acted_on(line), line
    return text


def result_of(text: str) -> Result:
    """A failing result in which every text that may come from elsewhere is `text`."""
    case = one_failure().case
    failure = replace(
        one_failure(),
        case=Case(text, {text: text}, case.inputs, case.outputs, recipe=text),
        target=f"{text}:{text}",
        device=text,
        versions=((text, text),),
        findings=(Finding(text, text, text), Finding(text, text, f"{text}\n{text}")),
        bound=text,
        bound_at=text,
        stderr=f"{text}\n{text}",
        hint=text,
        also=text,
        stage=text,
        provenance=(text, text),
        replay_options=(f"--ggml-lib {shlex.quote(text)}", text),
    )
    listed = KnownFailure(text, text, text, text, text, False, 3, text)
    bugs = (KnownBug(text, text, True), KnownBug(text, f"{text} ", False))
    tally = Tally(3, 1, Counter({text: 2}), seconds=1.0)
    return Result(
        text, f"{text}:{text}", text, tally, failure, (text,), bugs, (text,), (text,), (listed, listed), build=text
    )


@FEW
@given(foul | st.text())
@example("::error::x")
@example("std::vector<int>::error::x")
@example("a" * 50 + "::warning::x")
def test_one_line_of_visible_characters_that_no_log_acts_on(text: str) -> None:
    line = safe(printable(text))
    assert "\n" not in line
    for cut in range(0, len(line), 7):  # a table or a terminal may break it anywhere
        assert not acted_on(line[cut:]) or line[cut:].startswith("::"), line
    line.encode()
    safe(printable_lines(text))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters=":#")))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert printable("std::vector of caf\u00e9 \u6f22 \u03b3") == "std::vector of caf\u00e9 \u6f22 \u03b3"


def test_long_text_is_cut() -> None:
    assert printable("x" * 100, 10) == "x" * 10 + "…"


@FEW
@given(foul)
@example("::error::owned")
def test_the_screen_the_matrix_and_the_last_line(text: str) -> None:
    result = result_of(text)
    assert result.failure is not None
    safe(screen(result.failure, commands(result.failure, Settings(report_dir=text.replace("\0", "")))))
    safe(matrix([result, replace(result, target="x", failure=None), replace(result, op="y", tally=Tally())]))
    safe(counts([result]))
    safe(clean(text))


@FEW
@given(foul, st.sampled_from(["new failure", "fixed"]))
def test_changes_as_a_table_and_as_markdown(text: str, what: str) -> None:
    state = State("failed", 3, 1.0, text, text, frozenset({text}), (text,), detail=text)
    pair = Pair(text, text)
    change = Change(what, pair, text, text, True, text)
    safe(table_of([change]))
    page = safe(markdown_of([change], {pair: state}, {pair: state}, [text]))
    for harm in ("<b>", "<svg", "](", "@everyone", "https://", "www.", "{{"):
        assert harm not in page


@FEW
@given(foul)
def test_rows_as_csv_and_as_sql(text: str) -> None:
    where = Target("ggml", Device(text, text, {"build": text}))
    verdicts = [Verdict(one_failure().case, (Finding("value", text, text),)), Verdict(one_failure().case, (), text)]
    for kind in (CsvPrinter, SqlPrinter):
        stream = io.StringIO()
        kind(stream).verdicts(ACC, where, verdicts)
        safe(stream.getvalue())
        if kind is CsvPrinter:
            cells = [cell for row in csv.reader(io.StringIO(stream.getvalue())) for cell in row]
            assert len(cells) == 3 * 16
            assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)


@FEW
@given(foul)
def test_errors_are_one_line_each(text: str) -> None:
    assert len(safe(str(UsageError(text))).split("\n")) == 1
    assert len(safe(str(UsageError("first", text, "last"))).split("\n")) == 3
    assert len(safe(str(CaseError(text))).split("\n")) == 1


@pytest.mark.parametrize("text", FOUL)
def test_a_device_is_told_of_in_one_line(text: str) -> None:
    where = Target("mine", Device("0", text, {"driver": text}))
    assert "\n" not in safe(where.about)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp437", "utf-8"])
def test_a_stream_of_any_encoding_takes_every_symbol(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    speak_any_encoding(stream, io.StringIO(), None)
    stream.write("γ·|x| ≤ 3 – … ✅ \u6f22 \ud800\n")
    stream.flush()
    shown = raw.getvalue().decode(encoding)
    assert shown.endswith(" \\u6f22 \\ud800\n") or encoding == "utf-8"
    if encoding == "ascii":
        assert shown == "gamma.|x| <= 3 - ... + \\u6f22 \\ud800\n"


@pytest.mark.parametrize("front", ["opconform", "pytest"])
def test_the_program_speaks_latin_1(front: str, tmp_path: Path) -> None:
    start = ("-c", "from opconform.cli import main; main()", "test")
    if front == "pytest":
        start = ("-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "opconform.conformance")
    options = ("--also-seconds", "0", "--history", "none", "--repro-dir", "none", "--database", "none")
    what = ("--backend", spec("IgnoresNe3"), "--op", "acc", "--case", "acc/kb001", "--no-isolation", *options)
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "LANG": "C", "LC_ALL": "C", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, *start, *what], env=environment, cwd=tmp_path, capture_output=True)
    shown = done.stdout.decode("latin-1")
    assert done.returncode == 1, shown + done.stderr.decode()
    assert "Traceback" not in shown
    assert "-" * 20 in shown  # the rule under the matrix's head, which latin-1 does not have


def run_in_a_shell(line: str, folder: Path) -> list[str]:
    """The words of a command, as a shell sees them; the folder shows what else it has done."""
    script = f"opconform() {{ printf '%s\\0' \"$@\"; }}\npytest() {{ :; }}\npython() {{ :; }}\n{line}\n"
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, check=False)
    return done.stdout.decode(errors="surrogateescape").split("\0")[:-1]


@pytest.mark.parametrize("text", [text for text in FOUL if "\0" not in text and "\ud800" not in text])
def test_a_command_to_copy_runs_nothing_but_itself(text: str, tmp_path: Path) -> None:
    options = (f"--ggml-lib {shlex.quote(text)}", text, f"--sanitize; {text}", f"--max-bytes {text}", "--basetemp /")
    failure = replace(one_failure(), target=f"{text}:0", replay_options=options)
    for line in commands(failure, Settings(report_dir=text)):
        run_in_a_shell(line, tmp_path)
        assert list(tmp_path.iterdir()) == []
        assert "--basetemp" not in line
    words = run_in_a_shell(commands(failure, Settings(report_dir=text))[0], tmp_path)
    assert words[words.index("--backend") + 1] == f"{text}:0"
    assert words[words.index("--ggml-lib") + 1] == text


def test_an_option_of_ours_comes_back_as_it_was() -> None:
    options = ("--ggml-lib '/opt/my ggml'", "--sanitize", "--max-bytes 128", "--cuda-host-cxx g++", "--nothing x", "''")
    line = commands(replace(one_failure(), replay_options=options), Settings())[0]
    assert line.endswith("--ggml-lib '/opt/my ggml' --sanitize --max-bytes 128 --cuda-host-cxx g++")


@FEW
@given(foul)
def test_why_a_backend_is_absent_can_be_printed_wherever_it_is_caught(text: str) -> None:
    error = Unavailable(text, text)
    for says in (str(error), error.reason, error.remedy):
        safe(says)


@pytest.mark.parametrize("name", ["ListsAFoulId", "ListsAnIdThatIsACommand"])
@pytest.mark.parametrize("isolated", [True, False])
def test_an_id_that_cannot_be_printed_as_it_is_is_refused(name: str, isolated: bool) -> None:
    with pytest.raises(Unavailable) as found:
        devices_of(evil(name), {}, isolated)
    assert "a device has the id '" in safe(str(found.value))


SEARCH = ("--op", "acc", "--max-examples", "4", "--seed", "1", "--history", "none", "--also-seconds", "0")


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("matrix",),
        ("support", "--op", "acc"),
        ("coverage", "--backend", evil("NamesFoully")),
        ("coverage", "--backend", evil("OpensFoully")),
        ("support", "--backend", evil("ListsAFoulId"), "--no-isolation"),
        ("test", *SEARCH),
        ("test", "--backend", evil("IsFoullyAbsent"), *SEARCH),
        ("test", "--backend", evil("OpensFoully"), *SEARCH),
        ("replay", "acc/kb001", "--history", "none"),
        ("repro", "acc/kb001", "--backend", evil("RefusesFoully")),
    ],
    ids=lambda arguments: "-".join(each.rpartition(":")[2] for each in arguments[:3]),
)
def test_no_command_prints_a_backends_words_as_they_are(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("ListsAFoulId", "IsFoullyAbsent", "OpensFoully", "RefusesFoully", "NamesFoully")
    monkeypatch.setattr(session, "backend_names", lambda: [evil(name) for name in names])
    found = CliRunner().invoke(main, arguments)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    assert "owned" in safe(found.output)


def test_pytest_prints_no_backends_words_as_they_are(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(pytester.path, "test_conformance.py").write_text("from opconform.conformance import *\n")
    names = ("ListsAFoulId", "IsFoullyAbsent", "OpensFoully", "RefusesFoully")
    monkeypatch.setattr(session, "backend_names", lambda: [evil(name) for name in names])
    monkeypatch.delenv("CI", raising=False)
    found = pytester.runpytest_inprocess(*SEARCH, "-rA", "-p", "no:cacheprovider")
    assert "owned" in safe(str(found.stdout))
    found.assert_outcomes(skipped=3, failed=1)
