"""The registry of checks: what may be wrong with a run, each with a name, a reason and a switch.

`value`, `finite`, `guard`, `inputs` and `isolation` are always on, because no correct kernel fails them. The others
run on request, because atomics and tile choices may rightly break them: each compares the case with a twin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from opconform.harness.model.buffers import GUARD, Buffers, unwritten
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Mask, Raw
from opconform.harness.model.expected import Comparison
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.layouts import Layout
from opconform.harness.model.op import Op
from opconform.harness.model.values import data_of, spoilt_by_itself


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
class Twin:
    """A second case, and the part of each output of the first one that must have its bits. `says` names it among the
    twins of a case; "" where there is no other."""

    case: Case
    parts: Mapping[str, tuple[slice, ...]] = field(default_factory=dict)
    says: str = ""

    def has_bits_of(self, name: str, one: Raw, own: Raw) -> bool:
        """Whether `own`, the twin's output, is that part of `one`, bit for bit."""
        return bool(np.array_equal(one[self.parts.get(name, ())], own))


@dataclass(frozen=True)
class TwinCheck:
    """A check on request: it compares a case with its twins.

    twins: none where a case has nothing to compare, or the reason why it cannot be checked. left_out: what of a case
    its twins do not look at; "" where they look at all of it.
    """

    name: str
    reason: str
    kind: Kind
    twins: Callable[[Case, Op, Mapping[str, Raw]], Sequence[Twin] | str]
    left_out: Callable[[Case, Op], str] = field(default=lambda case, op: "")

    def finding(self, twin: Twin) -> Finding:
        """What is found where a twin differs."""
        return Finding(self.name, self.kind, f"not {self.reason}{f': {twin.says}' if twin.says else ''}")

    def twin_found(self, case: Case, op: Op, values: Mapping[str, Raw], detail: str) -> Twin | None:
        """The twin that a finding of this `detail` speaks of."""
        twins = self.twins(case, op, values)
        return None if isinstance(twins, str) else next((twin for twin in twins if twin.says in detail), None)


def _non_finite(run: Run) -> Mask:
    comparison = run.comparison
    return comparison.wrong & ~np.isfinite(comparison.got) & np.isfinite(comparison.expected.value)


def not_written(case: Case, comparison: Comparison) -> Mask:
    """Which wrong elements still hold what stood there before the run; none where the op works in place."""
    dtype = case.outputs[comparison.name].type
    untouched: Mask = comparison.raw == unwritten(dtype)
    if dtype.block > 1:
        untouched = np.repeat(untouched, dtype.block, axis=-1)
    return comparison.wrong & untouched & (case.inplace is None)


def _unwritten(run: Run) -> Mask:
    return not_written(run.case, run.comparison)


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
    bad, elsewhere = _non_finite(run), _from_elsewhere(run)
    if elsewhere.any():  # the check of isolation tells more of NaN
        bad &= np.isinf(run.comparison.got)
    if not bad.any():
        return None
    return Finding("finite", Kind.NAN_INF, f"{_count(run, bad)} are NaN or infinite where the reference is not")


def _from_elsewhere(run: Run) -> Mask:
    """NaN where every slice but one was spoilt, in an element of that one."""
    if run.case.keep is None:
        return np.zeros(run.comparison.got.shape, dtype=bool)
    own = spoilt_by_itself(run.case, run.op, run.comparison.name)
    return _non_finite(run) & np.isnan(run.comparison.got) & ~own


def _isolation(run: Run) -> Finding | None:
    bad = _from_elsewhere(run) & ~_unwritten(run)
    if not bad.any():
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
            first, layout = int(places[0]) - GUARD, layouts[name]
            beside = ", right after the last element" if first == layout.end else ""
            beside = ", before the first element" if first < layout.offset else beside
            said = f"{places.size} bytes {where} {name} changed, the first at byte {first}{beside}"
            return Finding(check, kind, said)
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


def _itself(case: Case, op: Op, values: Mapping[str, Raw]) -> Sequence[Twin]:
    return (Twin(case),)


def _packed(case: Case, op: Op, values: Mapping[str, Raw]) -> Sequence[Twin]:
    twin = case.packed()
    return () if twin == case else (Twin(twin.with_data(data_of(dict(values)))),)


_MOST_SLICES = 32  #: of more slices so many are run alone, the first and the last among them


def _slices_left_out(case: Case, op: Op) -> str:
    """One text for any number of slices: the sizes of cases differ, and each text is a note of its own."""
    axes = op.alone(case)
    if isinstance(axes, str):
        return ""
    number = math.prod(case.outputs[op.outputs[0]].shape[axis] for axis in axes)
    return f"all but {_MOST_SLICES} slices of a case that has more" if number > _MOST_SLICES else ""


def _slices_alone(case: Case, op: Op, values: Mapping[str, Raw]) -> Sequence[Twin] | str:
    """Each batch slice as a case of its own.

    Not checked where the slices are no problems of their own, as `Op.alone` says, or where a slice has a layout of
    another class: then the layout could be to blame.
    """
    shape = case.outputs[op.outputs[0]].shape
    axes = op.alone(case)
    if isinstance(axes, str):
        return axes
    sizes = [shape[axis] for axis in axes]
    number = math.prod(sizes)
    if number < 2:
        return ()
    found = []
    alone: dict[tuple[str, tuple[int, ...]], Layout] = {}  # slices have few sizes: most have those of the one before
    for flat in sorted(set(np.linspace(0, number - 1, min(number, _MOST_SLICES)).astype(int).tolist())):
        index = dict(zip(axes, (int(i) for i in np.unravel_index(flat, sizes))))
        parts = {name: _part(layout.shape, shape, index) for name, layout in case.layouts.items()}
        cut = {name: _cut(name, layout, parts[name], alone) for name, layout in case.layouts.items()}
        if any(cut[name].kind is not layout.kind for name, layout in case.layouts.items()):
            return "a slice alone has a layout of another class"
        inputs, outputs = ({name: cut[name] for name in names} for names in (case.inputs, case.outputs))
        twin = replace(case, inputs=inputs, outputs=outputs, keep=None)
        data = {name: np.ascontiguousarray(raw[parts[name]]) for name, raw in values.items()}
        says = "slice " + ", ".join(f"i{len(shape) - 1 - axis} = {i}" for axis, i in index.items())
        found.append(Twin(twin.with_data(data_of(data)), {name: parts[name] for name in case.outputs}, says))
    return found


def _part(its: tuple[int, ...], shape: tuple[int, ...], index: Mapping[int, int]) -> tuple[slice, ...]:
    """What an argument of shape `its` has in a slice of an output of `shape`: one place along each batch axis; all of
    them where it has several times as many (states, kept at several times); what is repeated there."""
    parts = [slice(None)] * len(its)
    for axis, i in index.items():
        n, m = shape[axis], its[axis]
        parts[axis] = slice(i, None, n) if m > n else slice(i % m, i % m + 1)
    return tuple(parts)


def _cut(
    name: str, layout: Layout, parts: tuple[slice, ...], made: dict[tuple[str, tuple[int, ...]], Layout]
) -> Layout:
    """The layout of a part of the tensor `name`, which starts where the tensor does: it is laid out alone. `made` keeps
    those of each size."""
    shape = tuple([len(range(n)[part]) for n, part in zip(layout.shape, parts)])
    if (name, shape) not in made:
        made[name, shape] = replace(layout, shape=shape)
    return made[name, shape]


ON_REQUEST: dict[str, TwinCheck] = {
    check.name: check
    for check in (
        TwinCheck("deterministic", "the same bits on the second run", Kind.NOT_DETERMINISTIC, _itself),
        TwinCheck(
            "batch_invariant",
            "the same bits alone and in company",
            Kind.DEPENDS_ON_BATCH,
            _slices_alone,
            _slices_left_out,
        ),
        TwinCheck("layout_invariant", "the same bits packed and strided", Kind.DEPENDS_ON_LAYOUT, _packed),
    )
}
