"""The few NumPy lines that stand for an op's reference in a script: for cases too large to write out, and for ops
that are judged by a residual.

A template `ops/<op>.want.py.j2` defines `reference(values)`, which returns what is wanted and the bound;
`ops/<op>.residual.py.j2` defines `residual(got)`, which returns the error and the bound. Neither must exist: a script
then holds the numbers themselves. What the lines compute is compared with the op's own reference before they are
written anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opconform.harness.explain.facts import Facts, numpy_code
from opconform.reports.repro import arrays
from opconform.reports.repro.rendering import exists, render


def has_residual(facts: Facts) -> bool:
    """Whether the script judges by a residual."""
    return facts.op.judge is not None and exists(f"ops/{facts.op.name}.residual.py.j2")


def residual_context(facts: Facts) -> dict[str, Any]:
    """What a residual needs to know of the device."""
    numerics = facts.numerics
    return {
        "u": repr(numerics.u),
        "division": repr(2 * numerics.roundoff * numerics.division_ulps - numerics.roundoff),
        "underflow": repr(numerics.underflow),
        "flushes": numerics.flushes_denormals,
        "free": bool(facts.demands[facts.op.outputs[0]].free.any()),
    }


def made(facts: Facts) -> str | None:
    """VALUES, WANT and BOUND as lines that compute them; None where no lines are known, or where they would give
    other numbers."""
    name = f"ops/{facts.op.name}.want.py.j2"
    if not exists(name):
        return None
    (it,) = facts.demands.values()  # of an op with one output, as all are that have such a template
    exact_matters = it.exact.any() and (not np.isfinite(it.value).all() or bool((it.value == 0).any()))
    recipe = arrays.recipe(facts.case, facts.values)
    if recipe is None or facts.twin is not None or exact_matters:
        return None
    numerics = facts.numerics
    source = render(
        name,
        case=facts.case,
        params=facts.case.params,
        u=repr(numerics.u),
        flush=repr(numerics.underflow) if numerics.flushes_denormals else None,
    )
    scope: dict[str, Any] = {"np": np}
    exec(source, scope)
    codes = {argument: numpy_code(layout.dtype) for argument, layout in facts.case.inputs.items()}
    values = {argument: np.ascontiguousarray(raw).view(codes[argument]) for argument, raw in facts.values.items()}
    with np.errstate(all="ignore"):
        want, bound = scope["reference"](values)
    same = np.array_equal(want, it.value) and np.allclose(bound, it.bound, rtol=1e-9, atol=0.0)
    if not same:
        return None
    return render(
        "made.py.j2",
        seed=facts.case.seed,
        recipe=recipe,
        codes=codes,
        checksum=arrays.checksum(facts.values),
        out=facts.op.outputs[0],
        reference=source,
    )
