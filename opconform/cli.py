"""The command line. Each command stands in a module of its own, which is imported when it is called.

Exit status: 0 all passed, 1 a failure (or nothing was executed), 2 usage, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Any

import click

from opconform import __version__
from opconform.harness.model.text import speak_any_encoding

#: The commands in the order in which the help lists them: where each stands, and its line there.
_COMMANDS = {
    "demo": ("commands_demo:demo", "See a failure found, shrunk and explained, in half a minute."),
    "list": ("commands_look:list_command", "Ops, backends and devices; for what is missing, why, and how to get it."),
    "describe": (
        "commands_describe:describe",
        "What an op computes: arguments and parameters, formula, bound.",
    ),
    "new-case": ("commands_case:new_case", "Write a known case: a shape or a trigger worth a name, checked."),
    "support": ("commands_look:support", "What each device takes of each op, with the reason where it does not."),
    "coverage": ("commands_coverage:coverage", "Which of the ops that a backend's own library names are tested."),
    "test": ("commands_run:test", "Search for failing cases of each op on each device; ends with the matrix."),
    "perf": (
        "commands_perf:perf",
        "Time cases on each device, against what the device itself can do and against another build.",
    ),
    "replay": ("commands_run:replay", "Run one case, from a file or by id, on the devices named."),
    "watch": ("commands_watch:watch", "Judge a running model, node by node and as a whole, and name what is wrong."),
    "capture": ("commands_watch:capture", "Write the distinct nodes of a running model as case files."),
    "import": (
        "commands_lines:import_command",
        "Make case files of the lines that llama-export-graph-ops wrote.",
    ),
    "export": ("commands_lines:export", "Write cases as lines for test-backend-ops --test-file."),
    "repro": ("commands_repro:repro", "Write the bundle of a failing case."),
    "runs": ("commands_history:runs_command", "The runs in a history, the oldest first."),
    "compare": ("commands_history:compare_command", "Compare the last results of two histories."),
    "merge": ("commands_history:merge_command", "Put the runs of several histories into one."),
    "report": ("commands_history:report_command", "Make one HTML page of a history, to read without a network."),
    "matrix": ("commands_ci:matrix", "The jobs that the devices here make: one for each device and shard."),
}


_RUNNING = ("test", "replay", "repro")  #: commands that begin with a worker, which starts while they are imported
_WITHOUT_WORKER = frozenset(("-h", "--help", "--no-isolation", "--sanitize"))


class _Lazy(click.Group):
    """A group that knows its commands by name, and imports one when it is called: the help must be quick."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        # No strategy of ours needs what others register with Hypothesis: trio's hook alone imports pytest.
        os.environ.setdefault("HYPOTHESIS_NO_PLUGINS", "1")
        module, _, attribute = _COMMANDS[name][0].partition(":")
        found: click.Command = getattr(import_module(f"opconform.{module}"), attribute)
        return found

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in _RUNNING and not _WITHOUT_WORKER.intersection(args) and not context.resilient_parsing:
            from opconform.harness.run import begun

            begun.begin()
            context.call_on_close(begun.end)
        return super().resolve_command(context, args)

    def invoke(self, context: click.Context) -> Any:
        from opconform.harness.run.interrupts import heed, heeded

        try:
            with heeded():
                result = super().invoke(context)
                heed()
                return result
        except KeyboardInterrupt:
            click.echo("\nstopped by Ctrl-C", err=True)
            sys.exit(128 + signal.SIGINT)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


_HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


@click.group(cls=_Lazy, context_settings=_HELP)
@click.version_option(__version__, prog_name="opconform")
def main() -> None:
    """Does a compute backend compute tensor ops correctly, for every shape, stride and offset?"""
    speak_any_encoding(sys.stdout, sys.stderr)
