"""Blame inside a composite op: its stages in order, each judged on what the stages before it really gave."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64
from opconform.harness.model.layouts import axes_named
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Stage
from opconform.harness.model.values import inputs_of
from opconform.harness.run.messages import StageError
from opconform.harness.run.runner import Runner


def first_wrong_stage(op: Op, runner: Runner, case: Case, numerics: Numerics) -> str:
    """The first stage of a failing case that is wrong by itself, in words; "" where the backend shows none.

    Whatever goes wrong here, the failure itself must still be shown.
    """
    if op.composite.stages is None or runner.lost:
        return ""
    try:
        shown = runner.stages(op, case)
        if isinstance(shown, StageError):
            return f"not known, for the backend cannot show its stages ({shown.last_line})"
        return "" if shown is None else judged_stages(op, case, shown, numerics)
    except Exception as error:
        return f"not known, for the diagnosis failed ({type(error).__name__}: {error})"


def judged_stages(op: Op, case: Case, shown: Mapping[str, F64], numerics: Numerics) -> str:
    """The first stage in `shown` that is beyond the bound of its own step; who was right, where none is."""
    assert op.composite.stages is not None
    raw = inputs_of(case, op)
    values = {**shown, **{name: layout.type.decode(raw[name]) for name, layout in case.inputs.items()}}
    right: list[str] = []
    for stage in op.composite.stages(case):
        if stage.name not in shown or any(name not in values for name in stage.needs):
            continue
        got = shown[stage.name]
        wrong = _what_is_wrong(stage, case, values, got, numerics)
        if wrong:
            before = f"; right before it: {', '.join(right)}" if right else ""
            return f"{stage.says or stage.name}: {wrong}{before}"
        right.append(stage.name)
    return f"none is wrong by itself of {', '.join(right)}" if right else ""


def _what_is_wrong(stage: Stage, case: Case, values: Mapping[str, F64], got: F64, numerics: Numerics) -> str:
    """What speaks against one stage, "" where nothing does."""
    with np.errstate(all="ignore"):
        expected = stage.expect(case, values, numerics)
        want = expected.value
        if got.shape != want.shape:
            return f"the backend shows {list(got.shape)} elements instead of {list(want.shape)}"
        error, bound = np.abs(got - want), np.broadcast_to(expected.bound, want.shape)
        right = (error <= bound) | np.isnan(want) | np.isinf(bound) | (got == want)
        times = np.where(right, -1.0, np.nan_to_num(error / bound, nan=np.inf, posinf=np.inf))
    if right.all():
        return ""
    worst = np.unravel_index(int(np.argmax(times)), times.shape)
    return (
        f"{int(np.count_nonzero(~right))} of {right.size} elements are wrong, the worst at {axes_named(worst[::-1])}: "
        f"got {got[worst]:g}, want {want[worst]:g} (bound {bound[worst]:.3g})"
    )
