"""What a backend does not take, and what is left to be drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from opconform.harness.model.case import DEFAULT_MAX_BYTES, Case
from opconform.harness.model.layouts import LayoutClass
from opconform.harness.model.lazy import lazy

MANY_ROWS = 130  #: more rows than this take long on some devices
ANY_OP = frozenset({"dtype", "empty", "aligned", "many_rows", "recipe"})  #: subjects that every op has


@dataclass(frozen=True)
class Limit:
    """Something a backend does not take: data, with the reason a person can act on and where that is written.

    `subject` is an argument's name (then `allowed` is the widest `LayoutClass`), "dtype", "empty", "aligned"
    (`Case.aligned`), "many_rows" (more than `MANY_ROWS` in one argument, which are not drawn then; a case that has them
    is run all the same), "recipe" (of values on which a kernel is known to be wrong), a parameter or a trait of the op
    (then `allowed` lists the values). `kind`: "api" is refused by the interface itself; "kernel" is a precondition that
    the kernel only asserts, which --strict-supports tries all the same; "bug" is a wrong answer that is known and
    pinned by the known case `pinned`, which every run tries again. `device` is a prefix of the device ids it holds for.
    """

    op: str
    subject: str
    allowed: LayoutClass | tuple[Any, ...]
    reason: str
    source: str
    kind: Literal["api", "kernel", "bug"] = "api"
    device: str = ""
    pinned: str | None = None

    def forbids(self, case: Case, traits: Mapping[str, Any]) -> bool:
        """Whether `case`, with its op's `traits`, is beyond this limit."""
        if isinstance(self.allowed, LayoutClass):
            layout = case.layouts.get(self.subject)
            if layout is None or (case.inplace and self.subject in case.outputs):  # it is left out, or it is an input
                return False
            return layout.kind > self.allowed
        if self.subject == "dtype":
            return case.dtype not in self.allowed
        if self.subject == "recipe":
            return case.recipe not in self.allowed
        if self.subject == "aligned":
            return case.aligned not in self.allowed
        if self.subject == "many_rows":
            return False
        if self.subject == "empty":
            return any(layout.size == 0 for layout in case.layouts.values()) not in self.allowed
        told = case.params if self.subject in case.params else traits
        return told[self.subject] not in self.allowed


T = TypeVar("T")


class NothingLeftError(Exception):
    """Limits leave nothing of what an op must choose from. The text names the choice, where it is known."""


class Left(list[T]):
    """What limits leave of the values of a subject, in their order."""

    def __init__(self, subject: str, values: Iterable[T]) -> None:
        super().__init__(values)
        self.subject = subject


@dataclass(frozen=True)
class Freedom:
    """What may be drawn for one op on one device: what `limits` leave, within `max_bytes` a case."""

    limits: tuple[Limit, ...] = ()
    max_bytes: int = DEFAULT_MAX_BYTES

    def choices(self, subject: str, values: Iterable[T]) -> list[T]:
        """Those of `values` that every limit on `subject` (a parameter, a trait, "dtype", "empty") allows."""
        kept = list(values)
        for limit in self.limits:
            if limit.subject == subject and isinstance(limit.allowed, tuple):
                kept = [value for value in kept if value in limit.allowed]
        return Left(subject, kept)

    def forbids(self, case: Case, traits: Callable[[Case], Mapping[str, Any]]) -> Limit | None:
        """The first limit that does not take `case`, whose `traits` its op tells; None where all of them do."""
        if not self.limits:
            return None
        layouts = case.layouts
        limits = self._of_no_layout
        for name, widest in self._narrowest.items():
            if name in layouts and layouts[name].kind > widest:
                limits = self.limits
                break
        if not limits:
            return None
        known = traits(case)
        return next((limit for limit in limits if limit.forbids(case, known)), None)

    @lazy
    def _narrowest(self) -> dict[str, LayoutClass]:
        """Of each argument that a limit speaks of the widest class that all of them allow."""
        found: dict[str, LayoutClass] = {}
        for limit in self.limits:
            if isinstance(limit.allowed, LayoutClass):
                found[limit.subject] = min(found.get(limit.subject, limit.allowed), limit.allowed)
        return found

    @lazy
    def _of_no_layout(self) -> tuple[Limit, ...]:
        """The other limits."""
        return tuple(limit for limit in self.limits if not isinstance(limit.allowed, LayoutClass))

    def widest(self, argument: str, broadcast: bool) -> LayoutClass:
        """The widest layout class for an argument; outputs never broadcast."""
        widest = LayoutClass.BROADCAST if broadcast else LayoutClass.STRIDED
        for limit in self.limits:
            if limit.subject == argument and isinstance(limit.allowed, LayoutClass):
                widest = min(widest, limit.allowed)
        return widest
