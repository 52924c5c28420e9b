"""issue.md: what a maintainer wants to read, ready to be sent."""

from __future__ import annotations

import math
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from opconform.harness.explain.companions import Companions
from opconform.harness.explain.facts import Facts
from opconform.harness.explain.failure import STRICT, Failure, Wrong
from opconform.harness.judge.checks import ON_REQUEST
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout, LayoutClass
from opconform.harness.model.version import VERSION
from opconform.harness.run.script import Script
from opconform.reports.repro.rendering import render
from opconform.reports.screen import UNWRITTEN, places

_INLINE = 12_000  #: a longer file is named and not shown: an issue on GitHub holds 65,536 characters
_STDERR_LINES = 30
_ALIKE = 2  #: an op of so many inputs at most has the same axes in all of them


def issue(facts: Facts, files: Mapping[str, str], made: Script | str, companions: Sequence[Companions] = ()) -> str:
    """The text. `files` are the bundle's other files by name, `made` is what the backend gave for repro.py, or why
    there is none."""
    failure, case = facts.failure, facts.case
    device = next((each.device for each in companions if each.device), failure.device or failure.target)
    return render(
        "issue.md.j2",
        title=title(facts, device),
        does=failure.kind.meaning,
        op=facts.op.name.upper(),
        summary=facts.op.summary,
        device=device,
        failure=failure,
        case=case,
        tensors=[_tensor(name, layout, case) for name, layout in case.layouts.items()],
        params=dict(case.params),
        element=None if failure.wrong is None else _element(failure.wrong),
        picture=None if failure.wrong is None else _picture(case, failure.wrong),
        cause=_cause(failure),
        environment=_environment(failure),
        stderr="\n".join(failure.stderr.splitlines()[-_STDERR_LINES:]),
        has_map="map.svg" in files,
        lacks=made if isinstance(made, str) else "",
        made=made,
        also=[each.says for each in companions if each.says],
        shown=_shown(files, companions),
        replay=" ".join(["opconform replay case.json --backend", shlex.quote(failure.target), *_options(failure)]),
        version=VERSION,
    )


def _shown(files: Mapping[str, str], companions: Sequence[Companions]) -> list[tuple[str, str, str]]:
    """The files that the issue holds: name, language and text."""
    languages = {name: language for each in companions for name, language in each.shown.items()}
    languages["repro.py"] = "python"
    return [
        (name, language, files[name])
        for name, language in languages.items()
        if name in files and len(files[name]) <= _INLINE
    ]


def title(facts: Facts, device: str) -> str:
    """One line: the op, the device with its build, what is wrong, and what the case needs for it. `device`: what those
    who get the issue call it."""
    failure = facts.failure
    build = facts.versions.get("build", "")
    where = f"{device} ({build})" if build else device
    what = failure.kind.short
    needs = features(facts.case)
    return f"{facts.op.name.upper()} on {where}: {what}{_part(facts)}" + (f" with {', '.join(needs)}" if needs else "")


def _part(facts: Facts) -> str:
    """Which of an op's outputs or steps is wrong first, where it has several."""
    stage, outputs = re.split(r"[ :]", facts.failure.stage)[0], facts.case.outputs
    steps = facts.op.composite.stages(facts.case) if facts.op.composite.stages else ()
    if stage not in outputs and any(stage == step.name for step in steps):
        return f" from the step {stage} on"
    return f" in {facts.out}" if len(outputs) > 1 and facts.failure.wrong else ""


def features(case: Case) -> list[str]:
    """What a shrunk case still has, and its failure therefore needs. Of an op of many arguments, whose axes mean
    different things, the sizes are those of its output."""
    found = []
    if len(case.inputs) > _ALIKE:
        name, out = next(iter(case.outputs.items()))
        found.append(f"{name} of ne [{', '.join(map(str, out.ne))}]")
    else:
        largest = [max(sizes) for sizes in zip(*((*layout.ne, 1, 1, 1, 1)[:4] for layout in case.layouts.values()))]
        found += [f"ne{axis} {'> 1' if size == 2 else f'= {size}'}" for axis, size in enumerate(largest) if size != 1]
    for name, layout in case.layouts.items():
        if name in case.outputs and case.inplace:
            continue
        if layout.kind > LayoutClass.CONTIGUOUS:
            found.append(f"{name} not contiguous")
        if layout.offset:
            found.append(f"{name} at an offset")
    found += [f"{name} in the memory of {owner}" for name, owner in case.shares.items()]
    return found + (["the output in place"] if case.inplace else [])


def _tensor(name: str, layout: Layout, case: Case) -> dict[str, Any]:
    owner = case.inplace if name == next(iter(case.outputs)) else case.shares.get(name)
    place = str(layout.kind) if owner is None else f"in the memory of {owner}"
    return {
        "name": name,
        "dtype": layout.dtype,
        "ne": ", ".join(map(str, layout.ne)),
        "nb": ", ".join(map(str, layout.nb)),
        "offset": layout.offset,
        "place": place,
    }


def _element(wrong: Wrong) -> dict[str, Any]:
    worst = wrong.worst
    return {
        "index": ", ".join(f"i{axis}={place}" for axis, place in enumerate(reversed(worst.index))),
        "got": UNWRITTEN if worst.unwritten else f"{worst.got:.9g}",
        "unwritten": worst.unwritten,
        "want": f"{worst.want:.9g}",
        "error": f"{worst.error:.3g}",
        "bound": f"{worst.bound:.3g}",
        "times": f"{worst.times:.3g}" if math.isfinite(worst.times) else "",
        "none_allowed": worst.bound == 0,
        "nmse": f"{wrong.nmse:.3g}",
        "whole": bool(wrong.mask),
    }


def _picture(case: Case, wrong: Wrong) -> str:
    """What the console shows, without its margin."""
    label, *rest = places(case, wrong)
    return textwrap.dedent("\n".join([label.replace("where", "     ", 1), *rest]))


def _cause(failure: Failure) -> str:
    """The likely class of the fault, as far as it is known."""
    if failure.hint:
        return f"{failure.hint}."
    if failure.packed_twin == "passes":
        return "strides or offsets: the same values in contiguous tensors give the right result."
    if failure.packed_twin == "fails":
        return "not strides or offsets, for the same values in contiguous tensors fail too."
    return "not known; the tensors are contiguous, so the fault needs no gaps and no offset."


def _options(failure: Failure) -> list[str]:
    """The options without which the fault does not show: of a checker, of a strict run, and of a check on request."""
    found = [option for option in ("--sanitize", STRICT) if option in failure.replay_options]
    check = failure.findings[0].check
    return [*found, *(["--check", check] if check in ON_REQUEST else [])]


def _environment(failure: Failure) -> dict[str, str]:
    return {"device": failure.device, **dict(failure.versions)}
