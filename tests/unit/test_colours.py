"""Colours: they mark what they should, change no letter, and are where $FORCE_COLOR and $NO_COLOR want them."""

from __future__ import annotations

import click
import pytest

from opconform import colours
from opconform.reports.screen import screen
from tests.repro_samples import one_failure

MATRIX = "op   a:0         b:0\nacc  passed 40   FAILED (3) WRONG VALUES\nset  unsupported [1]"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def test_a_forced_colour_marks_the_kind_the_hint_and_what_is_read_last(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = screen(one_failure(hint="ne3 is dropped"), ["opconform replay it"])
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = colours.screen(plain)
    assert click.unstyle(shown) == plain
    lines = dict(zip(plain.split("\n"), shown.split("\n")))
    first = plain.split("\n")[0]
    assert lines[first] == click.style("WRONG VALUES", fg="red", bold=True) + first.removeprefix("WRONG VALUES")
    assert lines["  hint       ne3 is dropped"] == click.style("  hint       ne3 is dropped", bold=True)
    dim = {line.split()[0] for line, styled in lines.items() if styled == click.style(line, dim=True)}
    assert {"bound", "nmse", "packed", "versions"} <= dim
    assert not {"case", "values", "where", "layouts", "worst", "again"} & dim
    table = colours.matrix(MATRIX)
    assert click.unstyle(table) == MATRIX
    assert click.style("passed 40", fg="green") in table
    assert click.style("FAILED (3) WRONG VALUES", fg="red", bold=True) in table
    assert colours.state("FAILED") == click.style("FAILED     ", fg="red", bold=True)


def test_no_color_is_stronger_and_no_terminal_is_plain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = screen(one_failure(), [])
    for variables in ({}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert (colours.screen(plain), colours.matrix(MATRIX), colours.state("passed")) == (
            plain,
            MATRIX,
            "passed     ",
        )
        colours.echo(click.style("red", fg="red"))
        assert capsys.readouterr().out == "red\n"
