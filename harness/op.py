"""What an op declares: its arguments, the problems it is tried on, its reference and its error bound."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opconform.harness.case import Case, Param
from opconform.harness.dtypes import F64, Mask, Raw
from opconform.harness.numerics import Numerics

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from opconform.harness.hypotheses import Hypothesis, Image
    from opconform.harness.strategies import Freedom


@dataclass(frozen=True)
class Problem:
    """What an op's strategy draws: everything of a case but layouts and values.

    `shapes` (outermost first) covers every input; `out_shape` is the output's. `inplace` names the input whose memory
    the output takes over.
    """

    params: Mapping[str, Param]
    dtype: str
    shapes: Mapping[str, tuple[int, ...]]
    out_shape: tuple[int, ...]
    inplace: str | None = None


@dataclass(frozen=True)
class Expected:
    """The right answer and how far from it a correct backend may be.

    `value` and `bound` are float64 of the output's shape. A bound of infinity leaves an element free (only where
    float32 itself overflows). Where `exact` is true the output must hold the very bits of `bits` (a NaN may change
    its payload, a denormal may be flushed where the device says so).
    """

    value: F64
    bound: F64
    exact: Mask | None = None
    bits: Raw | None = None


@dataclass(frozen=True)
class Residual:
    """A judgement on what the backend returned instead of on its distance from `Expected.value`.

    `error` and `bound` are float64 of the output's shape.
    """

    error: F64
    bound: F64


Expect = Callable[[Case, Mapping[str, Raw], Numerics], Expected]


@dataclass(frozen=True)
class Op:
    """An op. One module in `cases/` declares one as `OP`.

    problems: the strategy of problems for a `Freedom` (what the backend can take, how big a case may be).
    expect: the float64 reference and the bound; its docstring derives the bound and cites the source.
    bound: the bound's formula in one line, as a failure prints it.
    check: raises `CaseError` for a case whose parameters and shapes do not fit together.
    shape_values: gives drawn values the structure the op needs (a triangle that can be solved), in place.
    traits: what limits may speak of beside parameters ("view" of an ACC).
    judge: where the error is not |got - value|: a residual computed from what was returned.
    batch_axes: the outer axes of every argument whose slices must not reach each other.
    alone: whether the outermost slices of a case are problems of their own, cut from every argument alike.
    hypotheses: faults of the op's own that a diagnosis tries, the plainest first; `hypotheses.py` has those of all ops.
    sources: of an op that only moves (or adds) elements: for each input the flat index of the element that goes into
    each element of the output, -1 for none.
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
    outputs: tuple[str, ...] = ("out",)
    shape_values: Callable[[Case, dict[str, F64], np.random.Generator], None] | None = None
    traits: Callable[[Case], Mapping[str, Any]] = field(default=lambda case: {})
    judge: Callable[[Case, Mapping[str, Raw], Expected, F64, Numerics], Residual] | None = None
    batch_axes: tuple[int, ...] = (0, 1)
    alone: Callable[[Case], bool] = field(default=lambda case: False)
    hypotheses: Callable[[Image], Iterable[Hypothesis]] | None = None
    sources: Callable[[Case], Mapping[str, npt.NDArray[np.int64]]] | None = None

    def where_bound(self) -> str:
        """file:line of the bound's derivation, for the screen of a failure."""
        derivation = self.judge or self.expect
        path = Path(inspect.getsourcefile(derivation) or "?")
        return f"{path.parent.name}/{path.name}:{inspect.getsourcelines(derivation)[1]}"
