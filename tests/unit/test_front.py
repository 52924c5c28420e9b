"""The front is light: asking for help, or another project's pytest, pays for nothing that it does not use."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import opconform
from opconform.cli import main

HEAVY = ("torch", "hypothesis", "numpy", "rich", "jinja2", "opconform.backends", "opconform.cases")


def test_the_command_line_and_the_plugin_import_nothing_heavy() -> None:
    script = f"import opconform.cli, opconform.plugin, sys; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_help_takes_less_than_a_third_of_a_second_of_a_processor() -> None:
    before = os.times()
    subprocess.run([sys.executable, "-c", "from opconform.cli import main; main(['-h'])"], check=True)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.3


def test_every_command_loads_and_its_help_says_what_the_list_says() -> None:
    context = click.Context(main)
    listed = CliRunner().invoke(main, ["--help"], terminal_width=200).output
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        assert command.name == name
        (line,) = [line for line in listed.splitlines() if line.startswith(f"  {name} ")]
        said = " ".join((command.help or "").split())
        assert said.startswith(line.split(maxsplit=1)[1].rstrip(".")), name
        assert CliRunner().invoke(main, [name, "-h"]).exit_code == 0


@pytest.mark.parametrize("name", opconform.__all__)
def test_every_public_name_is_there_at_its_first_use(name: str) -> None:
    assert name in dir(opconform)
    assert getattr(opconform, name) is getattr(opconform, name)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Bakend'"):
        _ = opconform.Bakend
