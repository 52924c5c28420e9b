"""Files of lines from strangers: never waited for, refused or left out in one line each, and nothing half written."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opconform.cli import main
from opconform.harness.draw.known import find_cases, known_cases
from opconform.harness.model.case import CaseError
from opconform.harness.model.usage import UsageError
from opconform.harness.search import lines as exchange
from opconform.harness.search.lines import import_lines
from opconform.reports.lines import exchanged_screen
from tests.attack.strangers import foul, quickly
from tests.attack.test_case_files import refusal, special
from tests.attack.test_printers import safe
from tests.unit.test_lines import LINES, SUMS, text

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
LIMIT = 1 << 16


def imported(raw: bytes) -> str:
    """What is said of a file, on a screen or as a refusal; every case that was written is one."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ops.txt").write_bytes(raw)
        try:
            with quickly(20):
                found = import_lines(folder / "ops.txt", LINES, folder / "out", LIMIT)
        except UsageError as error:
            assert sorted(path.name for path in folder.iterdir()) == ["ops.txt"]
            (line,) = str(error).split("\n")
            return safe(line)
        written = sorted(path.name for path in (folder / "out").iterdir()) if found.done else []
        assert written == sorted(found.done.values())
        assert all(path.isascii() and not path.startswith((".", "-")) for path in written)
        if written:
            cases = find_cases(str(folder / "out"), "none", LIMIT)
            assert {case.id for _, case in cases} == found.done.keys()
        lines = exchanged_screen(found, "line", "case file", "out", LINES.about).split("\n")
        return "\n".join(map(safe, lines))


def _written() -> list[str]:
    found = []
    for name, known in known_cases().items():
        try:
            found.append(LINES.write(known.case, name))
        except CaseError:
            continue
    return found


WRITTEN = _written()
numbers = st.sampled_from(
    (
        *("0", "1", "-1", "2", "3", "4", "7", "16", "26", "27", "30", "255", "65536", "2147483647", "2147483648"),
        *("-2147483648", "4294967296", str(2**62), str(2**63 - 1), str(2**63), "9" * 30),
        *("1e30", "0x10", "1.5", "nan", "٣", "\0", ""),
    )
)


@st.composite
def changed(draw: st.DrawFn) -> str:
    """A line that was written, with some words changed, taken out or put in."""
    words = draw(st.sampled_from(WRITTEN)).split(" ")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(words) - 1))
        how = draw(st.sampled_from(("change", "change", "change", "take", "put", "swap")))
        if how == "change":
            words[at] = draw(numbers)
        elif how == "put":
            words.insert(at, draw(numbers))
        elif how == "take" and len(words) > 1:
            del words[at]
        else:
            other = draw(st.integers(0, len(words) - 1))
            words[at], words[other] = words[other], words[at]
    return " ".join(words)


@FUZZ
@given(st.lists(changed(), min_size=1, max_size=4))
def test_changed_lines_become_cases_or_reasons(lines: list[str]) -> None:
    imported("\n".join(lines).encode(errors="surrogateescape"))


@FUZZ
@given(st.lists(st.one_of(foul, st.sampled_from(WRITTEN), numbers), max_size=6))
def test_foul_lines_among_good_ones_are_said_safely(lines: list[str]) -> None:
    imported("\n".join(lines).encode("utf-16-le", errors="surrogatepass") + "\n".join(lines).encode(errors="replace"))


@FUZZ
@given(st.sampled_from(WRITTEN), foul)
def test_a_foul_name_names_no_file(line: str, name: str) -> None:
    imported(f"{line.rpartition(' ')[0]} {name}".encode(errors="replace"))


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes_are_no_crash(raw: bytes) -> None:
    imported(raw)


GOOD = SUMS[0].encode()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "it has no line"),
        (b"\n \n\r\n", "it has no line"),
        (b"\x7fELF\x02\x01\x01\0" * 100, "stands where the op must"),
        (b"\xff\xfe" + SUMS[0].encode("utf-16-le"), "stands where the op must"),
        (b'{"format": "opconform-case/1"}', "stands where the op must"),
        (b"\xe4" * 100, "stands where the op must"),
        (b"7" * (1 << 20), "it has more than 8192 characters"),
        (b"7 " * (1 << 19), "it has more than 8192 characters"),
        (GOOD[: len(GOOD) // 2], "it ends where"),
    ],
    ids=["empty", "blank", "elf", "utf-16", "case", "latin-1", "digits", "numbers", "cut"],
)
def test_a_file_of_another_kind_is_one_line(raw: bytes, said: str) -> None:
    found = imported(raw)
    assert "ops.txt: line 1: " in found
    assert said in found
    assert "takes lines of op type ne0..3" in found


def test_a_line_of_a_megabyte_is_left_out_alone() -> None:
    found = imported(GOOD + b"\n" + GOOD + b" " * (1 << 20) + b"x\n" + SUMS[1].encode())
    assert "left out  line 2: it has more than 8192 characters" in found
    assert "2 of 3 lines became 2 case files" in found


def test_latin_1_and_zero_bytes_in_a_name_do_no_harm() -> None:
    named = GOOD.rpartition(b" ")[0]
    assert "3 of 3 lines became 1 case file in" in imported(
        b"\n".join(named + end for end in (b" \xe4", b" a\0b", b""))
    )


def test_files_that_are_too_large_or_have_too_many_lines_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ops.txt"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "larger than 16 MiB" in refusal(lambda: import_lines(path, LINES, tmp_path / "out", LIMIT))
    path.write_bytes(b"\n" * (exchange.MOST_LINES + 1))
    assert "more than 65536 lines" in refusal(lambda: import_lines(path, LINES, tmp_path / "out", LIMIT))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (text("CUMSUM", 0, f"{2**62} 2 2 2", "", f"0 {2**62} 2 2 2"), "it must be from 0 to 9223372036854775807"),
        (text("CUMSUM", 0, "1048576 1 1 1", "", "0 1048576 1 1 1"), "bytes; --max-bytes allows"),
        (text("CUMSUM", 0, "4 1 1 1", "", f"0 4 1 1 1 {2**62} 4 4 4"), "bytes; --max-bytes allows"),
        (text("CUMSUM", 0, "4 1 1 1", "", "0 4 1 1 1 3 16 16 16"), "multiples of 4"),
        (text("CPY", 0, "4 2 1 1", "", "0 4 2 1 1", "0 4 2 1 1 4 8 16 16"), "two elements share a byte"),
        (text("CONT", 2, "33 1 1 1", "", "2 33 1 1 1"), "must be a multiple of 32"),
        (text("GET_ROWS", 0, "4 3 1 1", "", "0 4 0 1 1", "26 3 1 1 1"), "b cannot hold 1 places of 0 that there are"),
        (text("CUMSUM", 0, "0 0 0 0", "", "0 0 0 0 0"), ""),
    ],
)
def test_sizes_and_strides_that_cannot_be_are_a_reason(given: str, said: str) -> None:
    assert said in imported(given.encode())


@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "link to a device", "nothing", "nul"])
def test_what_is_no_regular_file_is_never_waited_for(kind: str, tmp_path: Path) -> None:
    path = Path("a\0b") if kind == "nul" else special(kind, tmp_path)
    before = sorted(tmp_path.iterdir())
    assert "a file of lines is a regular file of text" in refusal(
        lambda: import_lines(path, LINES, tmp_path / "out", LIMIT)
    )
    assert sorted(tmp_path.iterdir()) == before


def test_a_fifo_ends_the_command_with_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opconform.commands_lines._lines", lambda values: LINES)
    os.mkfifo(tmp_path / "x")
    with quickly():
        done = CliRunner().invoke(main, ["import", str(tmp_path / "x"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "not a regular file" in done.output
    (tmp_path / "y").write_bytes(b"\x80")
    done = CliRunner().invoke(main, ["import", str(tmp_path / "y"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert len(done.output.strip().splitlines()) == 4  # usage, where help is, a blank line, what is wrong
    (tmp_path / "z").write_text(text("VIEW", 0, "4 1 1 1", "", "0 4 1 1 1"))
    done = CliRunner().invoke(main, ["import", str(tmp_path / "z"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "0 of 1 line became 0 case files" in done.output
    assert not (tmp_path / "out").exists()
