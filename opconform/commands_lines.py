"""`opconform import` and `export`: files of lines that a library's own tools write and read, as cases and back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from opconform.arguments import complete_case, shared
from opconform.harness.draw.known import LARGEST, find_cases, known_cases
from opconform.harness.model.ops import chosen_ops
from opconform.harness.model.usage import UsageError
from opconform.harness.run.lines import Lines
from opconform.harness.run.registry import backend_class, split_target, with_class
from opconform.harness.search.lines import export_cases, import_lines
from opconform.harness.search.settings import OUT, bytes_of
from opconform.reports.lines import exchanged_screen

BACKEND = "ggml"  #: whose lines are meant where no backend is named
PATH = click.Path(path_type=Path)  #: which a shell completes


@click.command("import")
@click.argument("file", type=PATH)
@click.option("-o", "--out", metavar="DIR", type=PATH, help=f"where the case files go (default: {OUT}/imported/NAME)")
@click.option("--max-bytes", metavar="SIZE", default="1G", show_default=True, help="memory that a case may take")
@shared("--backend", "--ggml-lib")
def import_command(values: dict[str, Any], file: Path, out: Path | None, max_bytes: str) -> None:
    """Make case files of the lines that llama-export-graph-ops wrote: the nodes of a model's graph.

    FILE is what test-backend-ops --test-file reads, of the build that --ggml-lib names: it numbers the ops. Exit
    status: 0 cases were written, 1 no line can be a case, 2 usage, and a file of another kind.
    """
    lines, folder = _lines(values), out or Path(OUT, "imported", file.stem)
    found = import_lines(file, lines, folder, bytes_of(max_bytes))
    click.echo(exchanged_screen(found, "line", "case file", folder, lines.about))
    sys.exit(0 if found.done else 1)


@click.command("export")
@click.argument("cases", metavar="[CASE]...", nargs=-1, shell_complete=complete_case)
@click.option("-o", "--out", metavar="FILE", type=PATH, required=True, help="the file to write")
@shared("--backend", "--op", "--ggml-lib", "--report-dir")
def export(values: dict[str, Any], cases: Sequence[str], out: Path) -> None:
    """Write cases as lines for test-backend-ops --test-file.

    CASE is a file, a folder of files, or the id of a known case or stored failure; without any, all known cases are
    meant, or those of --op. The lines number ops as the build does that --ggml-lib names. Exit status: 0 lines were
    written, 1 none could be, 2 usage.
    """
    if cases and values["op"]:
        raise UsageError("opconform export takes cases, or --op for the known cases of ops")
    chosen = {op.name for op in chosen_ops(values["op"])}
    known = [(name, known.case) for name, known in known_cases().items() if known.case.op in chosen]
    named = [each for name in cases for each in find_cases(name, values["report_dir"] or OUT, LARGEST)]
    lines = _lines(values)
    found = export_cases(named or known, lines, out)
    click.echo(exchanged_screen(found, "case", "line", out, lines.about))
    sys.exit(0 if found.done else 1)


def _lines(values: dict[str, Any]) -> Lines:
    """The lines of the backend that is named, or of ggml. Raises `UsageError` and `Unavailable`."""
    named = values["backend"] or (BACKEND,)
    if len(named) > 1:
        raise UsageError(f"it takes one backend, not {', '.join(named)}: lines are of one build")
    spec, _, _ = split_target(with_class(named[0]))
    options = {"ggml_lib": values["ggml_lib"]} if values["ggml_lib"] else {}
    try:
        found = backend_class(spec)
    except UsageError:
        raise
    except Exception as error:  # a user's file may do anything
        raise UsageError(f"--backend {named[0]} cannot be imported: {type(error).__name__}: {error}") from None
    return found.lines(options)
