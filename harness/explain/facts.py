"""What a bundle is made from: a failure, the device it was seen on, and the numbers worked out anew from its case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from opconform.harness.explain.failure import Failure
from opconform.harness.judge.checks import ON_REQUEST, Twin
from opconform.harness.judge.oracle import compare, expectation
from opconform.harness.model.buffers import Slot
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import DTYPES, F64, Mask, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.findings import Kind, Severity
from opconform.harness.model.op import Op
from opconform.harness.model.ops import ops
from opconform.harness.model.values import inputs_of
from opconform.harness.run.script import Placed, ScriptRequest
from opconform.harness.run.target import Target

TWIN = "_twin"  #: what the arguments of a second case are called, where a check compares two


@dataclass(frozen=True)
class Tensor:
    """An argument where a script puts it: `start` is its first element's byte in the one memory of all arguments."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Demand:
    """What is demanded of one output, element by element: `value` within `bound` (infinity where nothing is demanded:
    the reference is NaN, or float32 overflows: `free`), and the very bits where `exact`."""

    value: F64
    bound: F64
    exact: Mask
    free: Mask


class Facts:
    """A failure with everything that the files of its bundle say."""

    def __init__(self, failure: Failure, target: Target) -> None:
        self.failure = failure
        self.target = target
        self.case = failure.case
        self.op: Op = ops()[failure.case.op]
        self.numerics = failure.numerics

    @property
    def is_raised(self) -> bool:
        """Whether the fault is an exception of the backend's `run`."""
        return self.failure.findings[0].check == "process" and (
            self.failure.kind is Kind.ERROR or self.failure.kind.severity is Severity.MEMORY
        )

    @property
    def is_deadly(self) -> bool:
        """Whether the fault ends the process, or keeps it from ending."""
        return self.failure.findings[0].check == "process" and not self.is_raised

    @cached_property
    def values(self) -> dict[str, Raw]:
        """The raw elements of every input."""
        return inputs_of(self.case, self.op)

    @property
    def out(self) -> str:
        """The output that is wrong; the first one where nothing was compared."""
        return self.failure.wrong.output if self.failure.wrong else self.op.outputs[0]

    @cached_property
    def demands(self) -> dict[str, Demand]:
        """What is expected of every output."""
        first = expectation(self.case, self.op, self.values, self.numerics)
        return {
            name: self._demand(name, first if name == self.op.outputs[0] else first.others[name])
            for name in self.case.outputs
        }

    def _demand(self, name: str, expected: Expected) -> Demand:
        """For an op judged by a residual the bound is that of the reference itself, which is close to that of any
        answer close to it."""
        bound, judged = expected.bound, self.op.composite.judge is not None and name == self.op.outputs[0]
        exact = np.zeros(expected.value.shape, dtype=bool) if expected.exact is None else expected.exact
        free = (np.isnan(expected.value) | np.isinf(bound)) & ~exact
        if judged:
            with np.errstate(all="ignore"):
                rounded = self.case.outputs[name].type.encode(expected.value)
            bound = compare(self.case, self.op, self.values, expected, rounded, self.numerics).bound
        bound = np.broadcast_to(bound, expected.value.shape)
        return Demand(expected.value, np.where(exact, 0.0, np.where(free, np.inf, bound)), exact, free)

    @cached_property
    def compared(self) -> Twin | None:
        """The second case of a check that compares two, with what it is compared with, or None."""
        finding = self.failure.findings[0]
        check = ON_REQUEST.get(finding.check)
        if check is None or check.name == "deterministic":
            return None
        return check.twin_found(self.case, self.op, self.values, finding.detail)

    @property
    def twin(self) -> Case | None:
        """The second case of a check that compares two, or None."""
        return None if self.compared is None else self.compared.case

    @cached_property
    def parts(self) -> tuple[Placed, ...]:
        """The cases that a script runs, each with its suffix and its place in memory: one, or a case and its twin."""
        alone = Placed.at("", self.case, 0)
        return (alone,) if self.twin is None else (alone, Placed.at(TWIN, self.twin, alone.plan.size))

    @property
    def request(self) -> ScriptRequest:
        """What the backend is asked to write a script for."""
        return ScriptRequest(
            self.target.spec,
            self.target.device.id,
            self.failure.device,
            self.parts,
            dict(self.target.options),
            self.versions,
            self.repeats,
            self.is_deadly,
            self.is_raised,
        )

    @property
    def tensors(self) -> list[Tensor]:
        return [_tensor(name + suffix, slot) for suffix, _, plan in self.parts for name, slot in plan.slots.items()]

    @property
    def elements(self) -> dict[str, Raw]:
        """The raw elements of every input of a script, twins included."""
        found: dict[str, Raw] = dict(self.values)
        if self.twin is not None:
            found |= {name + TWIN: raw for name, raw in inputs_of(self.twin, self.op).items()}
        return found

    @property
    def versions(self) -> Mapping[str, str]:
        return dict(self.failure.versions)

    @property
    def repeats(self) -> int:
        """How often a script runs the case: once, unless it is wrong only now and then."""
        return 50 if self.failure.kind == Kind.NOT_DETERMINISTIC else 1


def numpy_code(dtype: str) -> str:
    """NumPy's name for an element type; bfloat16 as the bits that NumPy can hold, a block as its bytes."""
    return str(DTYPES[dtype].native.str)


def _tensor(name: str, slot: Slot) -> Tensor:
    layout = slot.layout
    return Tensor(name, numpy_code(layout.dtype), layout.blocks, layout.strides, slot.start + layout.offset)
