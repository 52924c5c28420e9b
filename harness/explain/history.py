"""What a case has other than the one before it: the hint where a backend keeps what it should not."""

from __future__ import annotations

from collections.abc import Iterator

from opconform.harness.model.case import Case


def kept(case: Case) -> str:
    """In words what the backend misses between the case before and this one."""
    apart = list(_apart(case))
    if not apart:
        return "the case before is the same one: the backend keeps something of it"
    what = apart[0] if len(apart) == 1 else f"{', '.join(apart[:-1])} and {apart[-1]}"
    only = "nothing but " if len(apart) == 1 else ""
    return f"{only}{what} is other than in the case before: the backend keeps what it made of that one"


def _apart(case: Case) -> Iterator[str]:
    before = case.before
    assert before is not None
    for name, value in case.params.items():
        if before.params[name] != value:
            yield f"the parameter {name} ({before.params[name]}, now {value})"
    for name, layout in case.layouts.items():
        other = before.layouts[name]
        if other.shape != layout.shape:
            yield f"the shape of {name}"
        elif other.strides != layout.strides:
            places = [k for k, (one, two) in enumerate(zip(other.nb, layout.nb)) if one != two]
            yield " and ".join(f"nb{k} of {name}" for k in places)
        if other.offset != layout.offset:
            yield f"the offset of {name} ({other.offset}, now {layout.offset})"
    if (before.recipe, before.seed, before.keep) != (case.recipe, case.seed, case.keep):
        yield "the values"
