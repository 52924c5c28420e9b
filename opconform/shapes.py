"""The shapes of an op's arguments in symbols, found by drawing problems and seeing which sizes go together."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from opconform.harness.model.case import Param
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Op, Problem

_DRAWN = 120  #: problems
_LETTERS = "nmkpqrstuvwxyz"


@dataclass(frozen=True)
class Size:
    """A size: a number, a symbol, or two of them added or multiplied. `text` is how it reads."""

    text: str
    of: Callable[[Mapping[str, int]], int]
    symbol: str = ""


@dataclass(frozen=True)
class Sample:
    """Problems of an op, the simplest first, and the sizes (innermost first) of each argument in symbols."""

    problems: Sequence[Problem]
    sizes: Mapping[str, tuple[Size, ...]]

    def values_of(self, param: str) -> list[Param]:
        """The values of a parameter that were drawn."""
        found = dict.fromkeys(problem.params[param] for problem in self.problems)
        return sorted(found, key=lambda value: (str(type(value)), value))


def drawn(op: Op) -> Sample:
    """A sample of an op; the same each time."""
    from opconform.harness.draw.sample import problems_drawn  # Hypothesis takes a quarter of a second

    problems = problems_drawn(op, Freedom(), _DRAWN)
    return Sample(problems, _in_symbols(op, problems))


def shapes_of(op: Op, problem: Problem) -> dict[str, tuple[int, ...]]:
    """The sizes of each argument of a problem, innermost first."""
    outputs = {op.outputs[0]: problem.out_shape, **problem.more_outputs}
    return {name: shape[::-1] for name, shape in {**problem.shapes, **outputs}.items()}


def _in_symbols(op: Op, problems: Sequence[Problem]) -> dict[str, tuple[Size, ...]]:
    sampled = [shapes_of(op, problem) for problem in problems]
    names = [name for name in (*op.inputs, *op.outputs) if any(name in shapes for shapes in sampled)]
    known: list[tuple[Size, list[int | None]]] = []
    found: dict[str, tuple[Size, ...]] = {}
    for letter, name in zip(itertools.cycle(_LETTERS), names):
        rank = len(next(shapes[name] for shapes in sampled if name in shapes))
        sizes = []
        for k in range(rank):
            column = [shapes[name][k] if name in shapes else None for shapes in sampled]
            size = next(_matching(column, known), None)
            if size is None:
                size = _symbol(f"{letter}{k}")
                known.append((size, column))
            sizes.append(size)
        found[name] = tuple(sizes)
    return found


def _symbol(name: str) -> Size:
    return Size(name, lambda values: values[name], name)


def _matching(column: Sequence[int | None], known: Sequence[tuple[Size, list[int | None]]]) -> Iterator[Size]:
    """The sizes that a column of sizes is always equal to, the plainest first."""
    there = [n for n in column if n is not None]
    if len(set(there)) == 1:
        yield Size(str(there[0]), lambda values: there[0])
    for size, other in known:
        if _same(column, other):
            yield size
    signs: tuple[tuple[str, Callable[[int, int], int]], ...] = (("·", operator.mul), ("+", operator.add))
    for sign, combine in signs:
        for (one, first), (two, second) in itertools.combinations_with_replacement(known, 2):
            together = [None if a is None or b is None else combine(a, b) for a, b in zip(first, second)]
            if _same(column, together):
                yield _combined(one, sign, combine, two)

    for (one, first), (two, second) in itertools.permutations(known, 2):  # what a window of that length leaves
        left = [None if a is None or b is None else a - b + 1 for a, b in zip(first, second)]
        if _same(column, left):
            yield _window(one, two)


def _window(one: Size, two: Size) -> Size:
    return Size(f"{one.text}−{two.text}+1", lambda values: one.of(values) - two.of(values) + 1)


def _combined(one: Size, sign: str, combine: Callable[[int, int], int], two: Size) -> Size:
    return Size(f"{one.text}{sign}{two.text}", lambda values: combine(one.of(values), two.of(values)))


def _same(column: Sequence[int | None], other: Sequence[int | None]) -> bool:
    """Whether two columns agree in every problem that has both, and there are some that tell."""
    both = [(a, b) for a, b in zip(column, other) if a is not None and b is not None]
    return len({a for a, _ in both}) > 1 and all(a == b for a, b in both)


def fitting(
    sample: Sample, given: Mapping[str, Sequence[int]], base: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Sizes of all arguments that fit those that are `given`; what they leave open is as in `base`."""
    values = dict(_solved(sample, base))
    values |= dict(_solved(sample, given))
    found = {}
    for name, sizes in sample.sizes.items():
        if name in given:
            found[name] = tuple(given[name])
        elif name in base:
            found[name] = tuple(size.of(values) for size in sizes)
    return found


def _solved(sample: Sample, given: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, int]]:
    for name, sizes in given.items():
        for size, n in zip(sample.sizes.get(name, ()), sizes):
            if size.symbol:
                yield size.symbol, n
