"""The few NumPy lines that stand for an op's reference in a script: for cases too large to write out, and for ops
that are judged by a residual.

They lie in a folder `scripts` beside the op's module. A template `<op>.want.py.j2` defines `reference(values)`, which
returns what is wanted and the bound; `<op>.residual.py.j2` defines `residual(got)`, which returns the error and the
bound. Neither must exist: a script then holds the numbers themselves. What the lines of the first kind compute is
compared with the op's own reference before they are written anywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from opconform.harness.explain.facts import Facts, numpy_code
from opconform.harness.model.ops import folder_of_op
from opconform.harness.run import templates
from opconform.reports.repro import arrays
from opconform.reports.repro.rendering import render


def _lines(facts: Facts, kind: str) -> Path | None:
    """The op's own template of a kind, if it has one."""
    file = folder_of_op(facts.op.name) / "scripts" / f"{facts.op.name}.{kind}.py.j2"
    return file if file.is_file() else None


def residual(facts: Facts) -> str:
    """The function `residual` as source; "" where the script judges by the difference."""
    template = _lines(facts, "residual") if facts.op.composite.judge is not None else None
    if template is None:
        return ""
    numerics = facts.numerics
    known = {
        "u": repr(numerics.u),
        "division": repr(2 * numerics.roundoff * numerics.division_ulps - numerics.roundoff),
        "underflow": repr(numerics.underflow),
        "flushes": numerics.flushes_denormals,
        "free": bool(facts.demands[facts.op.outputs[0]].free.any()),
    }
    return templates.render(template, params=facts.case.params, residual=known)


def made(facts: Facts) -> str | None:
    """VALUES, WANT and BOUND as lines that compute them; None where no lines are known, or where they would give
    other numbers."""
    template = _lines(facts, "want")
    if template is None:
        return None
    (it,) = facts.demands.values()  # of an op with one output, as all are that have such a template
    exact_matters = it.exact.any() and (not np.isfinite(it.value).all() or bool((it.value == 0).any()))
    recipe = arrays.recipe(facts.case, facts.values)
    if recipe is None or facts.twin is not None:
        return None
    numerics = facts.numerics
    source = templates.render(
        template,
        case=facts.case,
        params=facts.case.params,
        u=repr(numerics.u),
        flush=repr(numerics.underflow) if numerics.flushes_denormals else None,
        roundoff=repr(numerics.roundoff),
        least=repr(2.0**-126 if numerics.flushes_denormals else 2.0**-149),
    )
    scope: dict[str, Any] = {"np": np}
    exec(source, scope)
    codes = {argument: numpy_code(layout.dtype) for argument, layout in facts.case.inputs.items()}
    values = {argument: np.ascontiguousarray(raw).view(codes[argument]) for argument, raw in facts.values.items()}
    with np.errstate(all="ignore"):
        want, bound, *exact = scope["reference"](values)
    same = np.array_equal(want, it.value) and np.allclose(bound, it.bound, rtol=1e-9, atol=0.0)
    if not same or (exact_matters and not (exact and np.array_equal(exact[0], it.exact))):
        return None
    return render(
        "made.py.j2",
        seed=facts.case.seed,
        recipe=recipe,
        codes=codes,
        checksum=arrays.checksum(facts.values),
        out=facts.op.outputs[0],
        reference=source,
        exact=bool(exact),
    )
