"""report.html: one file that needs nothing beside it, no network and no script.

What comes from elsewhere (device names, cases, paths, hints, a worker's last words) is escaped by the template, and
what cannot be seen in it is taken out first. Should something slip through all the same, the page's own policy lets no
script run and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from opconform.harness.explain.failure import Failure, Worst
from opconform.harness.model.text import printable_lines
from opconform.harness.model.usage import UsageError
from opconform.harness.model.version import VERSION
from opconform.harness.search.result import MUCH_FREE
from opconform.reports.html.charts import spark, strip, trend
from opconform.reports.html.data import Entry, Report
from opconform.reports.html.models import model_of
from opconform.reports.html.times import WIDE, times_of
from opconform.reports.repro.picture import picture
from opconform.reports.run import now
from opconform.reports.screen import clean, places, twin
from opconform.reports.states import Pair

_OPEN = 3  #: failures whose details are open from the start
_STDERR_LINES = 40


@dataclass(frozen=True)
class Cell:
    """One op on one device in the matrix: the state in a word, its class, and where the link leads ("" for nowhere).

    marks: the known bugs and expected failures, by their state. dated: when it was tested, "" for the last day.
    """

    word: str
    kind: str
    link: str
    entry: Entry
    marks: Mapping[str, int]
    dated: str


@dataclass(frozen=True)
class Reason:
    """Why cases were not supported, how many, and on which devices for which ops. 0 cases: a limit that the search
    knows, and keeps away from."""

    text: str
    cases: int
    where: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Known:
    """A known bug or an expected failure on one pair. `state` in words, `kind` the class that colours it."""

    pair: Pair
    state: str
    kind: str
    reason: str
    link: str
    case: str
    note: str


def write_report(report: Report, out: Path) -> None:
    """Write the page, whole or not at all. Raises `UsageError` where it cannot be written."""
    page = html(report).encode("utf-8", errors="replace")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name[:40]}-", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(page)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
            os.replace(name, out)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror}") from None


def html(report: Report) -> str:
    """The page as text."""
    failures = report.failures
    numbers = {(shown.pair, shown.case_id): index + 1 for index, shown in enumerate(failures)}
    watched = [model_of(pair, entry.watched) for pair, entry in report.entries.items() if entry.watched]
    models = {model.pair: index + 1 for index, model in enumerate(watched)}
    style = _style()
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            written=now(),
            version=VERSION,
            style=style,
            policy=_policy(style),
            failures=failures,
            numbers=numbers,
            opened=_OPEN,
            models=watched,
            times=times_of(report),
            wide=WIDE,
            cells={pair: _cell(entry, report, numbers, models) for pair, entry in report.entries.items()},
            totals=_totals(report),
            known=[known for entry in report.entries.values() for known in _known(entry)],
            reasons=_reasons(report),
            left_out=_left_out(report),
            free=_free(report),
            much_free=f"{MUCH_FREE:.0%}",
            trend=trend(report.past),
            strips={pair: strip(report.past, pair) for pair in report.entries},
            sparks={pair: spark(report.past, pair) for pair in report.entries},
        )
    )


@cache
def _style() -> Markup:
    """The style sheet beside the template: the one text that is put in as it is."""
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), "report.css")[0].strip())


def _policy(style: str) -> str:
    """No script, no network; of styles only ours, by its hash; of images only those that stand in the page."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("opconform.reports.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_seen,
    )
    environment.filters.update(
        count=lambda number: f"{number:,}",
        dataline=lambda index: ", ".join(f"i{axis}={place}" for axis, place in enumerate(reversed(index))),
        day=lambda text: str(text)[:10],
        image=_image,
        map_text=_map_text,
        minute=lambda text: str(text)[:16].replace("T", " "),
        numbers=lambda values: ", ".join(map(str, values)),
        rate=lambda number: f"{number:,.0f}" if number >= 10 else f"{number:.2g}",
        said=_said,
        share=lambda part: f"{part:.1%}" if part >= 0.001 else "below 0.1%",
        times=_times,
        twin=twin,
    )
    return environment


def _seen(value: Any) -> Any:
    """Text of visible characters only: nothing that hides, or turns the direction of what follows."""
    return value if isinstance(value, Markup) else printable_lines(value)


def _image(failure: Failure) -> str:
    """The map as an image's address; "" where nothing was compared. In an image no script runs, whatever it holds."""
    drawn = picture(failure)
    if drawn is None:
        return ""
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.encode("utf-8", errors="replace")).decode()


def _map_text(failure: Failure) -> str:
    """The map as the console shows it, without its margin."""
    assert failure.wrong is not None
    label, *rest = places(failure.case, failure.wrong)
    return textwrap.dedent("\n".join([label.replace("where", "     ", 1), *rest]))


def _said(stderr: str) -> str:
    return "\n".join(clean(line) for line in stderr.splitlines()[-_STDERR_LINES:])


def _times(worst: Worst) -> str:
    """How far beyond its bound an element is, in words."""
    if worst.bound > 0 and not math.isfinite(worst.error):
        return "not a finite error"
    return f"{worst.times:.3g} times the bound" if math.isfinite(worst.times) else "no error is allowed here"


def _cell(entry: Entry, report: Report, numbers: Mapping[tuple[Pair, str], int], models: Mapping[Pair, int]) -> Cell:
    outcome, link = entry.state.outcome, ""
    if entry.failures:
        link = f"#failure-{numbers[entry.pair, entry.failures[0].case_id]}"
    elif entry.pair in models:
        link = f"#model-{models[entry.pair]}"
    elif outcome in ("known", "unsupported"):
        link = f"#{outcome}"
    last = max(run.started for run in report.runs)
    started = max(run.started for run in entry.group)
    dated = "" if started[:10] == last[:10] else started
    word = {"failed": "FAILED", "known": "known failure"}.get(outcome, outcome)
    marks = Counter(known.state for known in _known(entry) if (known.state, outcome) != ("known failure", "known"))
    return Cell(word, outcome.replace(" ", "-"), link, entry, marks, dated)


def _known(entry: Entry) -> Iterator[Known]:
    for bug in entry.bugs:
        state, kind = ("known bug", "known") if bug.still_fails else ("FIXED", "fixed")
        yield Known(entry.pair, state, kind, bug.reason, "", bug.id, "")
    for listed in entry.state.listed:
        note = f"{listed.entry}; covers {listed.covered} cases here; expires {listed.expires}"
        state, kind = "known failure", "known"
        if listed.expired:
            state, kind = "expired", "failed"
        elif listed.fixed:
            state, kind = "FIXED", "fixed"
        if listed.fate not in ("fails", "passes"):
            note = f"the pinned case was not run: {listed.fate}; {note}"
        # a page has no script, and no link that could be one
        link = listed.link if listed.link.startswith(("https://", "http://")) else ""
        yield Known(entry.pair, state, kind, listed.reason, link, listed.case, note)


def _totals(report: Report) -> dict[str, int]:
    entries = report.entries.values()
    return {
        "pairs": len(entries),
        "failing": sum(entry.state.outcome == "failed" for entry in entries),
        "known": sum(entry.state.outcome == "known" for entry in entries),
        "unfinished": sum(bool(entry.state.detail) for entry in entries),
        "executed": sum(entry.state.executed for entry in entries),
        "passed": sum(entry.passed for entry in entries),
        "failed": sum(entry.failed for entry in entries),
        "expected": sum(entry.known for entry in entries),
        "unsupported": sum(entry.unsupported.total() for entry in entries),
        "slower": sum(timing.slower for timing in report.timings),
        "timed": sum(timing.timed for timing in report.timings),
        "mended": sum(known.kind == "fixed" for entry in entries for known in _known(entry)),
    }


def _reasons(report: Report) -> list[Reason]:
    """Every reason and every limit once, the one that concerns most cases first."""
    counts: Counter[str] = Counter()
    where: dict[str, dict[str, list[str]]] = {}
    for pair, entry in report.entries.items():
        limits = {limit: 0 for result in entry.results for limit in result.limits}
        for text, count in {**limits, **(entry.unsupported + entry.known_unsupported)}.items():
            counts[text] += count
            where.setdefault(text, {}).setdefault(report.names[pair], []).append(pair.op)
    return [Reason(text, count, where[text]) for text, count in counts.most_common()]


def _free(report: Report) -> list[Entry]:
    """The pairs with elements of which nothing could be demanded, those with most of them first."""
    entries = [entry for entry in report.entries.values() if entry.demanded.free]
    return sorted(entries, key=lambda entry: -entry.demanded.free_share)


def _left_out(report: Report) -> list[str]:
    """Known cases that did not run: larger than --max-bytes, or for want of time."""
    entries = report.entries.values()
    return list(dict.fromkeys(name for entry in entries for result in entry.results for name in result.left_out))
