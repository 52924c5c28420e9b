"""What has been tried: which pairs of traits a case has shown to a backend, of those that can be drawn for it.

A fault shows mostly where two things meet: a stride of 0 and a long row, bf16 and an odd offset. A trait is a value of
something that cases differ in: the layout class of an argument, whether one of its dimensions is above 1, the size
class of the case, a parameter, an element type, the recipe of the values. What was drawn, whether it ran or not, says
which pairs there are; the search prefers what shows a new one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from opconform.harness.model.case import Case, Param
from opconform.harness.model.layouts import Layout, LayoutClass
from opconform.harness.model.op import Problem

Trait = tuple[str, object]

_SIZES = (0, 1, 8, 33, 257, 1025, 65535)  #: the largest size of each class but the last
_TILES = (31, 65)  #: kernels hold squares of 32 or 64 elements in shared memory
_EXPECTED = 8  #: a pair that chance would have drawn so often and that never came is none
_WORTH = 6  #: so many new pairs are worth the time of one more case of a large problem
_REFUSALS = 3  #: a pair that was refused so often and never ran is not drawn again,
_AGAIN = 32  #: but for one case in so many: something else may have been the reason
_HOPELESS = 16  #: how many problems in a row are passed over because they would be refused


def _size_class(size: int) -> str:
    least = 0
    for most in _SIZES:
        if size <= most:
            return str(most) if least >= most - 1 else f"{least + 1} to {most}"
        least = most
    return f"above {least}"


def _offset_class(layout: Layout) -> str:
    """none; or what the offset is a multiple of: a device's alignment, a vector of four float32, or neither."""
    if not layout.offset:
        return "none"
    return "256" if layout.offset % 256 == 0 else "16" if layout.offset % 16 == 0 else "odd"


def _value_class(value: Param) -> object:
    """A word or a truth value itself; a number by its sign and its size."""
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return _size_class(value) if value > 3 else value
    if value in (0.0, 1.0):
        return value
    return "below 0" if value < 0 else "below 1" if value < 1 else "above 1"


def _of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Trait]:
    """Which dimensions are above 1, how long the longest is, and where, and whether another is as long as a tile."""
    for name, shape in shapes.items():
        for k, size in enumerate(reversed(shape)):
            yield f"{name} ne{k}", "1" if size == 1 else "above 1"
    yield "empty", any(0 in shape for shape in shapes.values())
    yield "longest", _longest(shapes.values())
    yield "two long axes", max(map(_two_long, shapes.values()), default=0)


def _longest(shapes: Iterable[tuple[int, ...]]) -> str:
    """The size class of the longest dimension, and where it is if it is long. A long row has classes of its own; of
    rows, matrices and batches it counts whether there are more than a grid holds."""
    sizes = [(size, -axis) for shape in shapes for axis, size in enumerate(shape)]
    longest, axis = max(sizes, default=(0, 0))
    if longest <= _SIZES[3]:
        return _size_class(longest)
    if axis == -3:
        return f"{_size_class(longest)} along ne0"
    return f"above {_SIZES[-1] if longest > _SIZES[-1] else _SIZES[3]} along ne{3 + axis}"


def _two_long(shape: tuple[int, ...]) -> int:
    """How many of the tiles that kernels have the second longest dimension exceeds."""
    second = sorted(shape)[-2] if len(shape) > 1 else 0
    return sum(second > tile for tile in _TILES)


def _form(shape: tuple[int, ...]) -> Hashable:
    """What an output is like: how long it is, and along which axis; if two are longer than a tile, along which."""
    tiles = _two_long(shape)
    return _longest([shape]), tiles, tiles and frozenset(sorted(range(len(shape)), key=shape.__getitem__)[-2:])


def problem_traits(problem: Problem) -> Iterator[Trait]:
    """What is settled before layouts and values are drawn."""
    yield from _of_shapes(problem.shapes)
    for name, value in problem.params.items():
        yield name, _value_class(value)
    for name in problem.shapes:
        yield f"{name} type", problem.dtype_of(name)
    yield "type", problem.dtype
    yield "in place", problem.inplace is not None


@dataclass(frozen=True)
class Covered:
    """How many pairs of traits a search has run, of how many it could draw for a device."""

    pairs: int = 0
    possible: int = 0

    @property
    def share(self) -> float:
        return self.pairs / self.possible if self.possible else 1.0

    def __str__(self) -> str:
        """As in "97 % of 1,204 pairs"; never rounded up to all of them."""
        percent = int(100 * self.share)
        return f"{percent} % of {self.possible:,} trait pairs"


class Coverage:
    """The pairs of traits of one op on one device: which ran, which were refused, which were drawn at all.

    Two traits of problems make a pair if any problem drawn had both. Variants are drawn whatever the problem is, so any
    of their traits makes a pair with every other one, unless it never came where chance would have had it `_EXPECTED`
    times: a tensor of one element has no stride of 0. A trait has a number, and a set of traits is an integer with a
    bit for each.
    """

    def __init__(self) -> None:
        self._numbers: dict[Trait, int] = {}
        self._drawn: list[int] = []  #: by trait, the traits that it was drawn together with
        self._ran: list[int] = []
        self._refused: list[int] = []
        self._taken: list[int] = []  #: those of cases that were chosen to be run
        self._times: list[int] = []  #: by trait, how many of the cases drawn had it
        self._cases = 0
        self._names: list[str] = []
        self._sets: dict[Hashable, int] = {}
        self._dimensions: dict[str, int] = {}
        self._outputs: set[Hashable] = set()  #: the forms that the outputs of cases to be run have
        self._of_variants = 0  #: the traits that variants add
        self._passed_over = 0
        self._refusals: Counter[tuple[int, int]] = Counter()
        self._hopeless: list[int] = []  #: by trait, the traits together with which it is refused each time
        self._hopeless_numbers = 0  #: the traits for which there has been any
        self._spared = 0  #: hopeless cases met
        self._problem = 0  #: the traits of the problem at hand,
        self._of_problem: tuple[int, ...] = ()  #: and their numbers
        self._hopeful = True  #: whether variants of it can show anything new
        self._met = self._met_taken = 0  #: what variants of it had, and those that were chosen
        self._met_cases = 0
        self._seen: dict[int, tuple[Case, int]] = {}  #: cases of the problem at hand by identity, and what they add
        self._tried: list[tuple[int, int]] = []  #: of the cases drawn for one place, how much is new, and what they add
        self._planned: dict[int, int] = {}  #: by trait, those that chosen cases of the problem at hand have beside it

    def promise(self, problem: Problem) -> tuple[bool, int]:
        """Whether a problem is the first of its kind, with two traits that no problem run has had together or an output
        like none before; and how many new pairs variants of it might show."""
        self._settle()
        traits, refused = self._set(problem_traits(problem)), self._refused_alone()
        first, pairs = _form(problem.out_shape) not in self._outputs, 0
        for number in _bits(traits):
            untaken = ~self._taken[number]
            first = first or bool(traits & untaken)
            pairs += (self._there(number, refused) & self._of_variants & untaken).bit_count()
        return first, pairs

    def wants(self, problem: Problem) -> bool:
        """Whether to run a problem, which is the one at hand then: not if such problems are refused each time. A trait
        that no case to be run has had yet is tried all the same."""
        hopeless = self._is_hopeless(self.meets(problem)) and all(self._taken[number] for number in self._of_problem)
        if hopeless and self._passed_over < _HOPELESS:
            self._passed_over += 1
            return False
        self._passed_over = 0
        return True

    def refuses(self, case: Case) -> bool:
        """Whether the device is likely to refuse a case of the problem at hand, or the case to say nothing."""
        return bool(self._hopeless_numbers) and self._is_hopeless(self._problem | self._added(case))

    def _is_hopeless(self, traits: int) -> bool:
        suspects = traits & self._hopeless_numbers
        if not suspects or not any(self._hopeless[number] & traits for number in _bits(suspects)):
            return False
        self._spared += 1
        return self._spared % _AGAIN != 0

    def meets(self, problem: Problem) -> int:
        """The problem at hand is this one. Returns its traits."""
        self._settle()
        self._tried.clear()
        self._planned.clear()
        self._problem = traits = self._set(problem_traits(problem))
        self._of_problem = _bits(traits)
        for number in self._of_problem:
            self._drawn[number] |= traits
        self._hopeful = self._open()
        return traits

    def _settle(self) -> None:
        """Enter what variants of the problem at hand had, which its own traits had then too."""
        for number in self._of_problem:
            self._times[number] += self._met_cases
            self._drawn[number] |= self._met
            if self._met_taken:
                self._taken[number] |= self._met_taken | self._problem
        self._met = self._met_taken = self._met_cases = 0
        self._seen.clear()

    def choose(self, cases: Sequence[Case]) -> int:
        """The index of the case that shows most new pairs; -1 where none shows any, or another one may show more. It is
        asked again with one case more each time; a single one begins the next place, and the best before has its own.
        """
        if len(cases) == 1 and self._tried:
            _, added = max(self._tried, key=lambda each: each[0])
            for number in _bits(added):
                self._planned[number] = self._planned.get(number, 0) | self._problem | added
        added = self._added(cases[-1])
        traits = self._problem | added
        self._cases += 1
        self._met_cases += 1
        self._met |= added
        new = 0
        for number in _bits(added):
            self._drawn[number] |= traits
            self._times[number] += 1
            new += (traits & ~self._taken[number] & ~self._planned.get(number, 0)).bit_count()
        self._tried[len(cases) - 1 :] = [(new, added)]
        if len(cases) == 1:
            return 0 if new or not self._hopeful else -1
        best = max(range(len(cases)), key=lambda index: self._tried[index][0])
        return best if self._tried[best][0] else -1

    def worth_more(self) -> bool:
        """Whether the case that was chosen last shows so much that one more of its problem is worth its time."""
        return bool(self._tried) and max(new for new, _ in self._tried) >= _WORTH

    def takes(self, case: Case) -> int:
        """A case of the problem at hand will be run. Returns its traits."""
        added = self._added(case)
        traits = self._problem | added
        self._outputs.add(_form(next(iter(case.outputs.values())).shape))
        for number in _bits(added):
            self._drawn[number] |= traits
            self._taken[number] |= traits
        self._met |= added
        self._met_taken |= added
        return traits

    def says_nothing(self, case: Case) -> None:
        """A case of the problem at hand is vacuous, and will not be run."""
        self.ran(self._problem | self._added(case), refused=True)

    def ran(self, traits: int, refused: bool) -> None:
        """A case with these traits ran; or the device refused it, or it says nothing."""
        table = self._refused if refused else self._ran
        for number in _bits(traits):
            table[number] |= traits
            if refused:
                self._suspect(number, traits & ~self._ran[number])
            elif self._hopeless[number] & traits:
                self._hopeless[number] &= ~traits

    def _suspect(self, number: int, others: int) -> None:
        """A case was refused that has this trait together with others, which has not run yet."""
        for other in _bits(others):
            self._refusals[number, other] += 1
            if self._refusals[number, other] >= _REFUSALS:
                self._hopeless[number] |= 1 << other
                self._hopeless_numbers |= 1 << number

    @property
    def covered(self) -> Covered:
        """The pairs that ran, of those that there are. What the device refuses each time there is not."""
        self._settle()
        pairs = possible = 0
        refused = self._refused_alone()
        for number in range(len(self._numbers)):
            there = self._there(number, refused)
            possible += there.bit_count()
            pairs += (there & self._ran[number]).bit_count()
        return Covered(pairs // 2, possible // 2)

    def _refused_alone(self) -> int:
        """The traits that were refused and never ran."""
        return sum(1 << other for other, tried in enumerate(self._refused) if tried and not self._ran[other])

    def _there(self, number: int, refused: int) -> int:
        """The traits with which this one makes a pair; none of those in `refused`, which never ran."""
        if refused >> number & 1:
            return 0
        is_of_variant = self._of_variants >> number & 1
        others = ~0 if is_of_variant else self._of_variants
        maybe = others & ((1 << len(self._numbers)) - 1) & ~self._drawn[number] & ~self._same(number)
        found = self._seen_together(number, refused)
        for other in _bits(maybe & ~refused):
            if self._times[number] * self._times[other] < _EXPECTED * self._cases:
                found |= 1 << other
        return found

    def _seen_together(self, number: int, refused: int) -> int:
        """The traits that this one was drawn together with, without those together with which it never ran."""
        return self._drawn[number] & ~refused & ~(self._refused[number] & ~self._ran[number]) & ~(1 << number)

    def _same(self, number: int) -> int:
        """The traits that are values of the same thing."""
        return self._dimensions[self._names[number]]

    def _open(self) -> bool:
        """Whether a variant could show a new pair with a trait of the problem at hand."""
        refused = self._refused_alone()
        return any(  # what was seen is soon told; what is still to come takes a look at each trait
            pairs(number, refused) & self._of_variants & ~self._taken[number]
            for pairs in (self._seen_together, self._there)
            for number in self._of_problem
        )

    def _added(self, case: Case) -> int:
        """What the variant adds to the traits of its problem: layouts, offsets and values."""
        seen = self._seen.get(id(case))
        if seen is not None:
            return seen[1]
        added, sets = 0, self._sets
        for name, layout in case.layouts.items():
            if case.inplace is None or name not in case.outputs:
                key = name, layout.kind, layout.offset
                found = sets.get(key)
                added |= self._once(key, _of_layout(name, layout)) if found is None else found
        kept, together = case.keep is not None, bool(case.shares)
        if all(layout.size for layout in case.layouts.values()):  # what is empty has no values
            values = (("recipe", case.recipe), ("one slice kept", kept))
            added |= self._once((case.recipe, kept), values)
        added |= self._once(together, (("side by side", together),))
        self._of_variants |= added
        self._seen[id(case)] = case, added
        return added

    def _once(self, key: Hashable, traits: Iterable[Trait]) -> int:
        """The set of these traits, which `key` stands for."""
        found = self._sets.get(key)
        if found is None:
            found = self._sets[key] = self._set(traits)
        return found

    def _set(self, traits: Iterable[Trait]) -> int:
        found = 0
        for trait in traits:
            number = self._numbers.get(trait)
            if number is None:
                number = self._numbers[trait] = len(self._numbers)
                for table in (self._drawn, self._ran, self._refused, self._taken, self._times, self._hopeless):
                    table.append(0)
                self._names.append(trait[0])
                self._dimensions[trait[0]] = self._dimensions.get(trait[0], 0) | 1 << number
            found |= 1 << number
        return found


@lru_cache(maxsize=4096)
def _bits(traits: int) -> tuple[int, ...]:
    """The numbers in a set of traits."""
    found: list[int] = []
    for place, byte in enumerate(traits.to_bytes((traits.bit_length() + 7) // 8, "little")):
        if byte:
            found += _bits_of_byte(place, byte)
    return tuple(found)


@cache
def _bits_of_byte(place: int, byte: int) -> tuple[int, ...]:
    return tuple(8 * place + bit for bit in range(8) if byte >> bit & 1)


def _of_layout(name: str, layout: Layout) -> tuple[Trait, Trait]:
    kind = max(layout.kind, LayoutClass.CONTIGUOUS)
    return (f"{name} layout", kind), (f"{name} offset", _offset_class(layout))
