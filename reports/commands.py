"""The commands that show a failure again, as one types them in a shell."""

from __future__ import annotations

import os
import shlex

from opconform.harness.explain.failure import STRICT, Failure
from opconform.harness.judge.checks import ON_REQUEST
from opconform.harness.model.findings import Kind
from opconform.harness.search.settings import RACE_RUNS, Settings
from opconform.reports.replay import safe_options

_SUITE = "opconform.conformance"


def commands(failure: Failure, settings: Settings) -> list[str]:
    """The commands that reproduce a failure, as one types them in a shell."""
    from opconform.reports.repro.place import bundle_of

    name = failure.case.id
    where = os.path.join(settings.report_dir, "cases", f"{name}.json")
    where = f"./{where}" if where.startswith("-") else where
    options = list(dict.fromkeys([*safe_options(failure.replay_options), *([STRICT] if settings.strict else [])]))
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
