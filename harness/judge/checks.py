"""The registry of checks: what may be wrong with a run, each with a name, a reason and a switch.

`value`, `finite`, `guard`, `inputs` and `isolation` are always on, because no correct kernel fails them. The others
run on request, because atomics and tile choices may rightly break them: each compares the case with a twin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from opconform.harness.model.buffers import GUARD, Buffers, unwritten
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Mask, Raw
from opconform.harness.model.expected import Comparison
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.layouts import Layout
from opconform.harness.model.op import Op
from opconform.harness.model.values import data_of


@dataclass(frozen=True)
class Run:
    """One finished run of a case, as the checks see it: the memory before and after, and one output's comparison."""

    case: Case
    op: Op
    values: Mapping[str, Raw]
    before: Buffers
    after: Buffers
    comparison: Comparison


@dataclass(frozen=True)
class Check:
    """A check on one run. `look` returns what it found, or None."""

    name: str
    reason: str
    look: Callable[[Run], Finding | None]


@dataclass(frozen=True)
class TwinCheck:
    """A check on request: `twin` makes a second case (None where there is none), `same` compares the two outputs."""

    name: str
    reason: str
    kind: Kind
    twin: Callable[[Case, Op, Mapping[str, Raw]], Case | None]
    same: Callable[[Case, Raw, Raw], bool]


def _non_finite(run: Run) -> Mask:
    comparison = run.comparison
    return comparison.wrong & ~np.isfinite(comparison.got) & np.isfinite(comparison.expected.value)


def _unwritten(run: Run) -> Mask:
    dtype = run.case.outputs[run.comparison.name].type
    untouched: Mask = run.comparison.raw == unwritten(dtype)
    if dtype.block > 1:
        untouched = np.repeat(untouched, dtype.block, axis=-1)
    return run.comparison.wrong & untouched & (run.case.inplace is None)


def _count(run: Run, mask: Mask) -> str:
    of = f" of {run.comparison.name}" if len(run.op.outputs) > 1 else ""
    return f"{int(np.count_nonzero(mask))} of {mask.size} elements{of}"


def _value(run: Run) -> Finding | None:
    wrong = run.comparison.wrong & ~_non_finite(run) & ~_unwritten(run)
    if not wrong.any():
        return None
    return Finding("value", Kind.WRONG_VALUES, f"{_count(run, wrong)} differ from the reference by more than the bound")


def _finite(run: Run) -> Finding | None:
    missing = _unwritten(run)
    if missing.any():
        return Finding("finite", Kind.NOT_WRITTEN, f"{_count(run, missing)} still hold what was there before the run")
    bad = _non_finite(run)
    if run.case.keep is not None:
        bad &= np.isinf(run.comparison.got)
    if not bad.any():
        return None
    return Finding("finite", Kind.NAN_INF, f"{_count(run, bad)} are NaN or infinite where the reference is not")


def _isolation(run: Run) -> Finding | None:
    bad = _non_finite(run) & ~_unwritten(run) & np.isnan(run.comparison.got)
    if run.case.keep is None or not bad.any():
        return None
    return Finding(
        "isolation",
        Kind.SLICES_MIXED,
        f"{_count(run, bad)} took NaN from another batch slice: every slice but number {run.case.keep} was NaN",
    )


def _guard(run: Run) -> Finding | None:
    return _changed(run, run.case.outputs, "guard", Kind.WROTE_OUTSIDE, "around or between the elements of")


def _inputs(run: Run) -> Finding | None:
    inputs = {name: layout for name, layout in run.case.inputs.items() if name != run.case.inplace}
    return _changed(run, inputs, "inputs", Kind.INPUT_MODIFIED, "in the memory of input")


def _changed(run: Run, layouts: Mapping[str, Layout], check: str, kind: Kind, where: str) -> Finding | None:
    for name in layouts:
        slot = run.after.plan.slots[name]
        window = slice(slot.start - GUARD, slot.start + slot.size + GUARD)
        places = np.flatnonzero(run.after.memory[window] != run.before.memory[window])
        if places.size:
            first = int(places[0]) - GUARD
            return Finding(check, kind, f"{places.size} bytes {where} {name} changed, the first at byte {first}")
    return None


def run_intact(run: Run) -> bool:
    """Whether every byte but the outputs' elements is as before. Resets those elements in `after` to compare."""
    for name in run.case.outputs:
        run.after.raw(name)[...] = run.before.raw(name)
    return bool(np.array_equal(run.after.memory, run.before.memory))


#: Always on, once `run_intact` has reset the output's elements. The order is that of blame: memory that was not to
#: be touched first, then the values.
ALWAYS: tuple[Check, ...] = (
    Check("guard", "nothing is written outside the output's elements", _guard),
    Check("inputs", "inputs are unchanged unless the op works in place", _inputs),
    Check("finite", "no NaN, infinity or unwritten element that the reference does not have", _finite),
    Check("isolation", "what stands in another batch slice, NaN included, does not reach this one", _isolation),
    Check("value", "every element is within its error bound", _value),
)


def _itself(case: Case, op: Op, values: Mapping[str, Raw]) -> Case | None:
    return case


def _packed(case: Case, op: Op, values: Mapping[str, Raw]) -> Case | None:
    twin = case.packed()
    return None if twin == case else twin.with_data(data_of(dict(values)))


def _first_slice(case: Case, op: Op, values: Mapping[str, Raw]) -> Case | None:
    """The case cut to its first slice along the outermost axis, where the slices are problems of their own.

    None where the cut would change a layout's class too: then the layout could be to blame.
    """
    layouts = case.layouts.values()
    if not op.alone(case) or min(layout.shape[0] for layout in layouts) < 2:
        return None
    if any(_cut(layout).kind is not layout.kind for layout in layouts):
        return None
    alone = {name: _cut(layout) for name, layout in case.inputs.items()}
    twin = replace(case, inputs=alone, outputs={name: _cut(layout) for name, layout in case.outputs.items()}, keep=None)
    return twin.with_data({name: np.ascontiguousarray(raw[:1]).tobytes() for name, raw in values.items()})


def _cut(layout: Layout) -> Layout:
    return replace(layout, shape=(1, *layout.shape[1:]))


def _same(case: Case, one: Raw, other: Raw) -> bool:
    return bool(np.array_equal(one[: other.shape[0]], other))


ON_REQUEST: dict[str, TwinCheck] = {
    check.name: check
    for check in (
        TwinCheck("deterministic", "the same bits on the second run", Kind.NOT_DETERMINISTIC, _itself, _same),
        TwinCheck("batch_invariant", "the same bits alone and in company", Kind.DEPENDS_ON_BATCH, _first_slice, _same),
        TwinCheck("layout_invariant", "the same bits packed and strided", Kind.DEPENDS_ON_LAYOUT, _packed, _same),
    )
}
