"""Failures where a reviewer reads: annotations of a GitHub workflow, the summary of its job, SARIF for code scanning.

A failure stands at the kernel's line where one is known (a checker named it, or an exception came from it), else at the
line where its bound is derived.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from opconform.harness.model.findings import Kind
from opconform.harness.model.text import printable
from opconform.harness.model.version import VERSION
from opconform.harness.search.observer import Observer
from opconform.reports.commands import commands
from opconform.reports.console import abort_commands, aborts, counts, lies_of, refused_words, rows_of
from opconform.reports.summary import table, text

if TYPE_CHECKING:
    from opconform.harness.explain.failure import Failure
    from opconform.harness.model.op import Op
    from opconform.harness.run.target import Target
    from opconform.harness.search.result import Result
    from opconform.harness.search.settings import Settings

_SOURCE = re.compile(
    r"([\w./+-]+\.(?:c|cc|cpp|cxx|h|hpp|cu|cuh|cl|comp|glsl|metal|py)):(\d{1,7})\b|"
    r'File "([^"\n]{1,400})", line (\d{1,7})'
)
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def place_of(failure: Failure) -> tuple[str, int]:
    """The file and line that a failure points to."""
    said = [finding.detail for finding in failure.findings] + [failure.stderr]
    for part in said:
        found = list(_SOURCE.finditer(part))
        if found:
            last = found[-1] if part is failure.stderr else found[0]  # the innermost frame of a traceback stands last
            return last[1] or last[3], int(last[2] or last[4])
    path, _, line = failure.bound_at.rpartition(":")
    return path, int(line) if line.isdigit() else 1


def _title(failure: Failure) -> str:
    return f"{failure.kind}: {failure.case.op} on {failure.target}"


def _message(failure: Failure, settings: Settings) -> list[str]:
    """What is wrong, in lines: the hint or the finding, the case, who is to blame, and the command that shows it."""
    lines = [failure.hint or failure.findings[0].detail, str(failure.case)]
    return [printable(line) for line in (*lines, *filter(None, [failure.also]), commands(failure, settings)[0])]


# ---- GitHub ---------------------------------------------------------------------------------------------------------


def annotation(failure: Failure, settings: Settings) -> str:
    """The line that makes GitHub annotate a failure."""
    path, line = place_of(failure)
    here = _inside(path)
    at = f"file={_property(here)},line={line}," if here else ""
    message = "%0A".join(_data(part) for part in _message(failure, settings))
    return f"::error {at}title={_property(printable(_title(failure)))}::{message}"


def _inside(path: str) -> str:
    """A path as seen from the folder of the checkout; "" for one that does not lie in it."""
    try:
        root = Path(os.environ.get("GITHUB_WORKSPACE") or ".").resolve()
        whole = Path(path).resolve()
        return whole.relative_to(root).as_posix() if whole.is_file() else ""
    except (OSError, ValueError):
        return ""


def _data(value: str) -> str:
    return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: str) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")


class GitHubPrinter(Observer):
    """Annotates each failure, and appends the matrix to the summary of the job ($GITHUB_STEP_SUMMARY)."""

    def __init__(self, settings: Settings, stream: TextIO) -> None:
        self._settings = settings
        self._stream = stream
        self._results: list[Result] = []

    def result(self, op: Op, target: Target, result: Result) -> None:
        self._results.append(result)
        if result.failure is not None:
            self._stream.write(annotation(result.failure, self._settings) + "\n")
            self._stream.flush()

    def close(self) -> None:
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary and self._results:
            with open(summary, "a", encoding="utf-8", errors="replace") as file:
                file.write(markdown_of(self._results, self._settings))


def markdown_of(results: Sequence[Result], settings: Settings) -> str:
    """Results as Markdown: ops down, devices across, those that no device takes in a line, and each failure."""
    targets = list(dict.fromkeys(result.target for result in results))
    cells = {(result.op, result.target): _cell(result) for result in results}
    ops = rows_of(results)
    rows = [[op, *(cells.get((op, target), "–") for target in targets)] for op in ops]
    lines = ["## Opconform", "", f"**{text(counts(results))}**", "", *table(["op", *targets], rows)]
    refused = refused_words(results, ops)
    lines += ["", text(refused)] if refused else []
    for target, lies in lies_of(results).items():
        lines += ["", text(aborts(target, lies)), "", *(f"* {text(abort_commands(lie, target)[0])}" for lie in lies)]
    for result in results:
        if result.failure is not None:
            lines += ["", f"### {text(_title(result.failure))}", ""]
            lines += [f"* {text(line)}" for line in _message(result.failure, settings)]
    return "\n".join([*lines, ""])


def _cell(result: Result) -> str:
    if result.failure is not None:
        return f"❌ {result.failure.kind}"
    if result.known:
        return "🟡 known"
    return f"✅ passed {result.tally.executed}" if result.tally.executed else "· unsupported"


# ---- SARIF ----------------------------------------------------------------------------------------------------------


class SarifPrinter(Observer):
    """One SARIF document at the end, also after Ctrl-C."""

    def __init__(self, settings: Settings, stream: TextIO) -> None:
        self._settings = settings
        self._stream = stream
        self._failures: list[Failure] = []

    def result(self, op: Op, target: Target, result: Result) -> None:
        if result.failure is not None:
            self._failures.append(result.failure)

    def close(self) -> None:
        self._stream.write(json.dumps(sarif(self._failures, self._settings), indent=1) + "\n")
        self._stream.flush()


def sarif(failures: Iterable[Failure], settings: Settings) -> dict[str, Any]:
    """Failures as a document of SARIF 2.1.0 (OASIS)."""
    driver = {
        "name": "Opconform",
        "semanticVersion": VERSION,
        "rules": [
            {"id": _rule(kind), "name": kind.short, "shortDescription": {"text": f"A kernel {kind.meaning}."}}
            for kind in Kind
        ],
    }
    results = [_result(failure, settings) for failure in failures]
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _rule(kind: Kind) -> str:
    return re.sub(r"[^a-z]+", "-", kind.value.lower())


def _result(failure: Failure, settings: Settings) -> dict[str, Any]:
    path, line = place_of(failure)
    location = {"artifactLocation": {"uri": _inside(path) or Path(path).name}, "region": {"startLine": max(line, 1)}}
    return {
        "ruleId": _rule(failure.kind),
        "level": "error",
        "message": {"text": "\n".join([printable(_title(failure)), *_message(failure, settings)])},
        "locations": [{"physicalLocation": location}],
        "partialFingerprints": {"opconformCase/v1": f"{failure.case.id}/{failure.target}"},
    }
