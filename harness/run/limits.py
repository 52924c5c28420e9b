"""The limits of one op on a device: which of them are about it, and whether they can be meant."""

from __future__ import annotations

from collections.abc import Iterable, Set

from opconform.harness.draw.known import known_cases
from opconform.harness.model.layouts import LayoutClass
from opconform.harness.model.limits import ANY_OP, Freedom, Limit
from opconform.harness.model.op import Op
from opconform.harness.run.backend import Unavailable

_REMEDY = "mend what Backend.limits returns"


def limits_of(op: Op, limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """Those of a device's limits that are about `op`; one of all ops ("*") is about those that have its subject.

    Raises `Unavailable` for one of this op whose subject it does not have, and for one that pins no known case.
    """
    found = []
    for limit in limits:
        if limit.op not in (op.name, "*"):
            continue
        by_layout = isinstance(limit.allowed, LayoutClass)
        has: Set[str] = {*op.inputs, *op.outputs} if by_layout else ANY_OP | op.params.keys()
        if limit.subject not in has and not by_layout:
            has = has | _traits(op)
        if limit.subject in has:
            found.append(limit)
        elif limit.op != "*":
            what = f"no {'argument' if by_layout else 'parameter or trait'} of {op.name}"
            reason = f"a limit is on {limit.subject!r}, which is {what}; it has {', '.join(sorted(has))}"
            raise Unavailable(reason, _REMEDY)
        if limit.pinned is not None and limit.pinned not in known_cases(op.name) and limit.pinned not in known_cases():
            raise Unavailable(f"a limit on {limit.subject!r} pins {limit.pinned!r}, which is no known case", _REMEDY)
    return tuple(found)


def _traits(op: Op) -> Set[str]:
    """The names of an op's traits, which each of its cases has."""
    cases = [known.case for known in known_cases(op.name).values()]
    if not cases:  # an op of another package
        from opconform.harness.draw.sample import sample  # Hypothesis takes a quarter of a second to import

        cases = sample(op, Freedom(), 1)
    return {name for case in cases[:1] for name in op.traits(case)}
