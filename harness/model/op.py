"""What an op declares: its arguments, the problems it is tried on, its reference and its error bound."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opconform.harness.model.case import Case, Param
from opconform.harness.model.dtypes import F64, Raw
from opconform.harness.model.expected import Comparison, Expect, Expected, Residual
from opconform.harness.model.findings import Kind
from opconform.harness.model.numerics import Numerics

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from opconform.harness.model.image import Hypothesis, Image
    from opconform.harness.model.limits import Freedom


@dataclass(frozen=True)
class Problem:
    """What an op's strategy draws: everything of a case but layouts and values.

    `shapes` (outermost first) covers every input that the case has (those in `Composite.optional` may be absent);
    `out_shape` is the first output's, `more_outputs` the others'. `dtype` is the first output's element type and every
    argument's that `dtypes` does not name. `inplace` names the input whose memory the first output takes over.
    """

    params: Mapping[str, Param]
    dtype: str
    shapes: Mapping[str, tuple[int, ...]]
    out_shape: tuple[int, ...]
    inplace: str | None = None
    more_outputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)

    @property
    def every_shape(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of all arguments, inputs and outputs."""
        return (*self.shapes.values(), self.out_shape, *self.more_outputs.values())

    def dtype_of(self, argument: str) -> str:
        """An argument's element type."""
        return self.dtypes.get(argument, self.dtype)


@dataclass(frozen=True)
class Stage:
    """One step on an op's way to its outputs, which a backend may show (`Backend.stages`).

    `expect` gets the values (float64) of the inputs and of the stages as the backend itself showed them, so that what
    went wrong before is not held against this stage and its bound stays that of one step. `needs` names the stages it
    reads (a recurrence reads what its own stage held a token before): where one is not shown, this one is not judged.
    An output of the case is a stage too where one has its name. `says` is what a report calls the stage.
    """

    name: str
    needs: tuple[str, ...]
    expect: Callable[[Case, Mapping[str, F64], Numerics], Expected]
    says: str = ""


ShapeValues = Callable[[Case, dict[str, F64], np.random.Generator], None]


@dataclass(frozen=True)
class Composite:
    """What an op has that takes several steps, or arguments that a case may leave out or hold side by side.

    optional: inputs that a case may leave out, and outputs after the first.
    more_outputs: the names of the outputs after `out`.
    recipes: the value recipes the op is tried with, the simplest first; () for those of `values.py`. A recipe that only
    the op knows is drawn as "normal", and `shape_values` gives it its meaning.
    shape_values: gives drawn values the structure the op needs (a triangle that can be solved), in place.
    packs: arguments that models hold side by side in the rows of one tensor, with how many leading axes they share.
    judge: where the error is not |got - value|: a residual computed from what was returned.
    batch_axes: the outer axes of every argument whose slices must not reach each other.
    stages: the steps on the way to the outputs, in order, for the blame of a failure.
    metamorphic: relations between runs that hold for every right kernel; a packed case that is drawn is asked for one.
    """

    optional: tuple[str, ...] = ()
    more_outputs: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    shape_values: ShapeValues | None = None
    packs: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    judge: Callable[[Case, Mapping[str, Raw], Expected, F64, Numerics], Residual] | None = None
    batch_axes: tuple[int, ...] = (0, 1)
    stages: Callable[[Case], Sequence[Stage]] | None = None
    metamorphic: tuple[Metamorphic, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """The few numbers that the shapes of a case follow from, where sizes of arguments are products or sums of them.

    now: those of the case, by name. made: the shapes (outermost first) and the parameters that other ones give, as far
    as they depend on them; raises `CaseError` where they give none.
    """

    now: Mapping[str, int]
    made: Callable[[Mapping[str, int]], tuple[Mapping[str, tuple[int, ...]], Mapping[str, Param]]]


@dataclass(frozen=True)
class Index:
    """What the whole numbers of an argument say: places along an axis of another argument (an axis of its shape,
    outermost first), or, where there is no `of`, any number below `below`.

    unique: whether all of a row of the argument (its last axis) must differ, as where each says where to write.
    """

    of: str = ""
    axis: int = 0
    unique: bool = False
    below: int = 0

    def size(self, case: Case) -> int:
        """The first number that is too large."""
        return case.inputs[self.of].shape[self.axis] if self.of else self.below


@dataclass(frozen=True)
class Op:
    """An op. A module in `cases/` declares one as `OP`, or several as `OPS`.

    problems: the strategy of problems for a `Freedom` (what the backend can take, how big a case may be).
    expect: the float64 reference and the bound; its docstring derives the bound and cites the source.
    bound: the bound's formula in one line, as a failure prints it.
    check: raises `CaseError` for a case whose parameters and shapes do not fit together.
    argument_dtypes: the element types of arguments that need not have the first output's.
    traits: what limits may speak of beside parameters ("view" of an ACC).
    alone: the batch axes along which the slices of a case are problems of their own, cut from every argument that has
    as many (or from what is repeated along them); or the reason why there are none.
    hypotheses: faults of the op's own that a diagnosis tries, the plainest first; `hypotheses.py` has those of all ops.
    sources: of an op that only moves (or adds) elements: for each input the flat index of the element that goes into
    each element of the output, -1 for none.
    pointwise: whether an element of the output comes from single elements of the inputs, so that an infinity or a NaN
    stays where it is.
    free: where nothing is demanded of an element, in words: what a report says that has many such elements.
    independent: of an op with many products: axes of the output along which its elements do not depend on each other,
    and for each the axis of every argument that goes along with it; what is not named is needed whole. A large node of
    a model is judged at some indices along the first of them.
    copies: whether the op by definition gives the elements of its input, all of them and no other.
    shape_only: the arguments whose elements are not read: their shape alone matters.
    indices: the arguments that hold places in others; a case whose numbers lie outside is none.
    flops: how many operations on floating-point numbers a case takes; 0 for an op that only moves elements.
    moves: bytes that a case must read and write; by default each element of every argument once.
    sizes: what the shapes of a case follow from, for shrinking, where a size cannot change by itself.
    stacks: whether `expect` also takes inputs with one more axis before their own, for several cases that differ in
    their values alone, and gives its arrays with that axis.
    composite: what only few ops have.
    """

    name: str
    summary: str
    inputs: tuple[str, ...]
    params: Mapping[str, type]
    dtypes: tuple[str, ...]
    problems: Callable[[Freedom], SearchStrategy[Problem]]
    expect: Expect
    bound: str
    check: Callable[[Case], None]
    argument_dtypes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    traits: Callable[[Case], Mapping[str, Any]] = field(default=lambda case: {})
    alone: Callable[[Case], tuple[int, ...] | str] = field(default=lambda case: "its slices are no cases of their own")
    hypotheses: Callable[[Image], Iterable[Hypothesis]] | None = None
    sources: Callable[[Case], Mapping[str, npt.NDArray[np.int64]]] | None = None
    independent: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    pointwise: bool = False
    copies: bool = False
    shape_only: tuple[str, ...] = ()
    indices: Mapping[str, Index] = field(default_factory=dict)
    flops: Callable[[Case], int] = field(default=lambda case: 0)
    moves: Callable[[Case], int] | None = None
    sizes: Callable[[Case], Sizes] | None = None
    stacks: bool = False
    free: str = "float32 cannot hold what some order of computing meets on its way there, or the reference is NaN"
    composite: Composite = field(default_factory=Composite)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs, the first one's ahead."""
        return ("out", *self.composite.more_outputs)

    def where_bound(self) -> str:
        """file:line of the bound's derivation, for the screen of a failure."""
        derivation = inspect.unwrap(self.composite.judge or self.expect)
        path = derivation.__module__.removeprefix("opconform.").replace(".", "/")
        return f"{path}.py:{inspect.getsourcelines(derivation)[1]}"


Again = Callable[[Case], Mapping[str, Comparison] | None]


@dataclass(frozen=True)
class Metamorphic:
    """A relation between runs that holds for every right kernel of an op.

    `look` gets a packed case that passed, its inputs, its comparisons by output, and a function that runs another case
    (of any op) on the same device: its comparisons by output, right or wrong, or None where nothing came back. It
    returns the detail of what it found, or None.
    """

    name: str
    reason: str
    kind: Kind
    look: Callable[[Op, Case, Mapping[str, Raw], Mapping[str, Comparison], Again], str | None]
