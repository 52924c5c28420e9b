"""The parameters of a row: the values that they are tried with, and those that a case file may have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from hypothesis import strategies as st

from opconform.harness.draw.strategies import among, composite
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom

_SMALLEST, _LARGEST = 1e-30, 1e30  #: of a number that is not 0: its reciprocal is a normal float32 too


@dataclass(frozen=True)
class Choice:
    """One parameter.

    values: what it is tried with, the simplest first. without: the value by which a kernel acts that ignores it; None
    where no value says that. least, most: the numbers that a case may have; of words, a case may have `values` only.
    """

    values: tuple[Param, ...]
    without: Param | None = None
    least: float = -math.inf
    most: float = math.inf

    @property
    def type(self) -> type:
        return type(self.values[0])


Choices = Mapping[str, Choice]


def choice(*values: Param, without: Param | None = None, least: float = -math.inf, most: float = math.inf) -> Choice:
    """A parameter that is tried with `values`; see `Choice`."""
    return Choice(values, without, least, most)


def types_of(params: Choices) -> dict[str, type]:
    """The parameters' types, as `Op.params` has them."""
    return {name: its.type for name, its in params.items()}


def check_params(case: Case, params: Choices) -> None:
    """Raises `CaseError` for a number beyond its limits, or a word that does not exist."""
    for name, its in params.items():
        value = case.params[name]
        if isinstance(value, str):
            if value not in its.values:
                raise CaseError(f"{name} is {value!r}; it must be one of {', '.join(map(str, its.values))}")
        elif isinstance(value, float) and value and not _SMALLEST <= abs(value) <= _LARGEST:
            raise CaseError(f"{name} is {value}; its size must be 0 or from {_SMALLEST:g} to {_LARGEST:g}")
        elif not its.least <= float(value) <= its.most:
            raise CaseError(f"{name} is {value}; it must be from {_number(its.least)} to {_number(its.most)}")


@composite
def drawn_params(draw: st.DrawFn, freedom: Freedom, params: Choices) -> dict[str, Param]:
    """Parameters within the limits of a device; shrinks to the first value of each."""
    return {name: draw(among(freedom.choices(name, its.values))) for name, its in params.items()}


def ignored(image: Image, params: Choices) -> Iterator[Hypothesis]:
    """Each parameter in turn taken for the value that makes it no matter."""
    for name, its in params.items():
        if its.without is not None and image.case.params[name] != its.without:
            yield Hypothesis(f"{name} is left out", partial(image.with_params, **{name: its.without}))


def _number(value: float) -> str:
    """A limit as a person writes it: 1048576 and not 1.04858e+06."""
    return str(int(value)) if abs(value) < 1e15 and float(value).is_integer() else f"{value:g}"
