"""The commands that show a failure again, as one types them in a shell."""

from __future__ import annotations

import os
import re
import shlex

from opconform.harness.explain.failure import Failure
from opconform.harness.judge.checks import ON_REQUEST
from opconform.harness.model.findings import Kind
from opconform.harness.run.registry import backend_names
from opconform.harness.search.settings import RACE_RUNS, Settings

_SUITE = "opconform.conformance"
_FLAGS = ("--sanitize",)  #: options of a failure that take no value


def commands(failure: Failure, settings: Settings) -> list[str]:
    """The commands that reproduce a failure, as one types them in a shell."""
    from opconform.reports.repro.place import bundle_of

    name = failure.case.id
    where = os.path.join(settings.report_dir, "cases", f"{name}.json")
    where = f"./{where}" if where.startswith("-") else where
    options = [*_options(failure), *(["--strict-supports"] if settings.strict else [])]
    options += [f"--check {finding.check}" for finding in failure.findings if finding.check in ON_REQUEST]
    if failure.kind == Kind.NOT_DETERMINISTIC:
        options.append(f"--times {RACE_RUNS}")
    tail = " ".join(["--backend", shlex.quote(failure.target), *options])
    found = [
        f"opconform replay {shlex.quote(where)} {tail}",
        f"pytest --pyargs {_SUITE} --case {shlex.quote(where)} {tail}",
    ]
    bundle = bundle_of(failure, settings)
    if bundle is not None and (bundle / "repro.py").is_file():
        found.append(f"python {shlex.quote(str(bundle / 'repro.py'))}")
    return found


def _options(failure: Failure) -> list[str]:
    """The options of a failure, written anew: a history keeps them as text, and may come from a stranger.

    Only options that a replay takes are let through, each with one value and quoted; any other text is left out.
    """
    found = []
    for text in failure.replay_options:
        try:
            name, *values = shlex.split(text)
        except ValueError:  # no word at all, or a quotation mark that is never closed
            continue
        if (name in _FLAGS and not values) or (_takes_value(name) and len(values) == 1):
            found.append(" ".join([name, *map(shlex.quote, values)]))
    return found


def _takes_value(name: str) -> bool:
    """Whether an option is --max-bytes, or one that is a backend's own: it begins with the backend's name."""
    own = (f"--{backend}-" for backend in backend_names())
    return name == "--max-bytes" or (re.fullmatch(r"--[a-z0-9-]+", name) is not None and name.startswith(tuple(own)))
