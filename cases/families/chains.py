"""Pieces: short chains of ops that backends compute together, each op on the result of the one before.

A case has the last result, and at times one of those before it, which then is read again behind the piece. What else
stands between is never looked at. A kernel may round it to float32 as single ops do, or not: the bound of a formula
covers both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from hypothesis import strategies as st

from opconform.cases.families.choices import Choices, choice, drawn_params
from opconform.cases.families.formulas import BOUND, NO_PARAMS, Formula, Row, as_op, repeatable
from opconform.cases.shapes import rows, tensors
from opconform.harness.draw.strategies import among, composite, integers
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Op, Problem

#: Takes the arguments, then the case's parameters by name; gives the result of each op.
Chain = Callable[..., tuple[Approx, ...]]

NONE, KEPT = "none", "mid"  #: no result is kept; the output that holds one
#: made: whether the graph makes the arguments itself, by copies: its allocator may then lay a result over one that
#: nothing reads any more. turned: whether the last op takes its two operands in the other order.
MADE: Choices = {"made": choice(False, True)}
TURNED: Choices = {"turned": choice(False, False, True)}


def check_kept(case: Case, name: str, shape: tuple[int, ...]) -> None:
    """Raises `CaseError` unless there is an output for what is kept, and only then, of the shape that `name` has."""
    kept = str(case.params["kept"])
    if (kept != NONE) != (KEPT in case.outputs):
        raise CaseError(f"kept is {kept}, and outputs are {', '.join(case.outputs)}; {KEPT} holds what is kept")
    if KEPT in case.outputs and case.outputs[KEPT].shape != shape:
        raise CaseError(f"{KEPT} has shape {case.outputs[KEPT].shape}; it must be that of {name}, {shape}")


@dataclass(frozen=True)
class _Piece(Row):
    """What a row of the table says, as `piece` documents it."""

    steps: tuple[str, ...] = ()
    chain: Chain = tuple
    optional: tuple[str, ...] = ()

    def expect(
        self, formula: Formula, part: int | None, case: Case, raw: Mapping[str, Raw], numerics: Numerics
    ) -> Expected:
        """What `formula` gives for the last result; one that is kept is always that of the chain."""
        last = super().expect(formula, part, case, raw, numerics)
        if KEPT not in case.outputs:
            return last
        place = self.steps.index(str(case.params["kept"]))
        alone = replace(case, outputs={"out": case.outputs[KEPT]})
        kept = super().expect(lambda *given: self.chain(*given)[place], None, alone, raw, numerics)
        return replace(last, others={KEPT: kept})

    def check(self, case: Case) -> None:
        super().check(case)
        first = case.inputs[self.inputs[0]].shape
        check_kept(case, self.inputs[0], first)
        if set(case.inputs) != set(self.inputs[: len(case.inputs)]):
            raise CaseError(f"case.inputs are {', '.join(case.inputs)}; only the last of them may be left out")
        last = self.others(case)[-1] if self.others(case) else self.inputs[0]
        if case.params.get("turned") and case.inputs[last].shape != first:
            raise CaseError(f"{last} has shape {case.inputs[last].shape}; turned, it must be that of {self.inputs[0]}")


def piece(
    name: str,
    summary: str,
    chain: Chain,
    *,
    steps: tuple[str, ...],
    inputs: tuple[str, ...] = ("x",),
    optional: tuple[str, ...] = (),
    params: Choices = NO_PARAMS,
    turned: bool = True,
    mistakes: Mapping[str, Formula] | None = None,
    along_rows: bool = False,
    to_one: bool = False,
    bound: str = BOUND,
) -> Op:
    """A chain of ops on float32, whose arguments after the first are repeated over it.

    chain: takes an `Approx` for each of `inputs` that a case has, then the parameters; gives the result of each op, of
    which those before the last are called `steps`, and any of those may be kept. optional: the last inputs, where a
    case may leave them out from some on. turned: whether the operands of the last op may change places. The others are
    as `elementwise` and `row_op` have them.
    """
    said = {**params, "kept": choice(NONE, *steps), **MADE, **(TURNED if turned else {})}
    row = _Piece(
        inputs,
        lambda *given: chain(*given)[-1],
        said,
        ("f32",),
        mistakes or {},
        along_rows=along_rows,
        to_one=to_one,
        steps=steps,
        chain=chain,
        optional=optional,
    )
    return replace(
        as_op(row, name, summary, bound, chain),
        problems=partial(_problems, row=row),
        composite=Composite(optional=(*optional, KEPT), more_outputs=(KEPT,)),
    )


@composite
def _problems(draw: st.DrawFn, freedom: Freedom, row: _Piece) -> Problem:
    """Rows up to 1025 long, or any axis; further arguments are as large as the first one, all of them a row or a
    column, or each something that fills it if it is repeated; shrinks to one element, nothing kept."""
    params = draw(drawn_params(freedom, row.params))
    if draw(integers(0, 1)):
        params["kept"] = NONE
    shape = draw((rows if row.along_rows else tensors)(freedom, 4))
    if row.along_rows and shape[-1] == 1 and draw(integers(0, 15)) < 15:  # rows of one are their own sums
        shape = (*shape[:-1], 2)
    names, parts = row.inputs[: len(row.inputs) - draw(integers(0, len(row.optional)))], dict[str, tuple[int, ...]]()
    may_repeat = True in freedom.choices("repeats", (False, True)) and 0 not in shape
    alike = draw(among(("whole", "each", "whole", "row", "column", "each"))) if may_repeat else "whole"
    for name in names[1:]:
        kind = draw(among(("whole", "row", "part"))) if alike == "each" else alike
        if kind == "row":
            parts[name] = (1, 1, 1, shape[-1])
        elif kind == "column":
            parts[name] = (1, 1, shape[-2], 1)
        elif kind == "part":  # which may double the shape
            shape, parts[name] = draw(repeatable(shape, 4, freedom))
    shapes = {name: parts.get(name, shape) for name in names}
    if params.get("turned"):
        params["turned"] = shapes[names[-1]] == shape
    more = {KEPT: shape} if params["kept"] != NONE else {}
    return Problem(params, "f32", shapes, row.out_shape(shape), more_outputs=more)
