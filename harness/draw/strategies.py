"""Hypothesis strategies for problems, named for what they yield. Every size shrinks to 1, or to the least of its form.

Layouts and values are not drawn choice by choice: Hypothesis draws a problem and a seed, and `variants.py` makes many
cases of them.
"""

from __future__ import annotations

import contextlib
import inspect
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache, update_wrapper
from typing import Any, Concatenate, Generic, NoReturn, ParamSpec, TypeVar

from hypothesis import strategies as st

from opconform.harness.model.limits import Freedom, Left, NothingLeftError

T = TypeVar("T")
P = ParamSpec("P")
_STRATEGIES = 256  #: of one function that are kept


def composite(build: Callable[Concatenate[st.DrawFn, P], T]) -> Callable[P, st.SearchStrategy[T]]:
    """`st.composite`, but quickly made: that one reads and parses the source of each function, to warn of one that
    never draws, which takes more than half of the time in which all ops are imported. Equal arguments that can be
    hashed give the same strategy: Hypothesis looks at each new one before it draws."""
    make: Callable[..., st.SearchStrategy[T]] = st.composite(_Sourceless(build))

    @lru_cache(maxsize=_STRATEGIES, typed=True)
    def made(*args: Any) -> st.SearchStrategy[T]:
        return make(*(each.freedom if isinstance(each, _TheVery) else each for each in args))

    def strategy(*args: P.args, **kwargs: P.kwargs) -> st.SearchStrategy[T]:
        if not kwargs:
            with contextlib.suppress(TypeError):  # of an argument that cannot be hashed
                return made(*(_TheVery(each) if isinstance(each, Freedom) else each for each in args))
        return make(*args, **kwargs)

    return update_wrapper(strategy, build)


class _TheVery:
    """A freedom that equals no other one: it has hundreds of limits, and hashing them takes longer than a draw."""

    def __init__(self, freedom: Freedom) -> None:
        self.freedom = freedom

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _TheVery) and self.freedom is other.freedom

    def __hash__(self) -> int:
        return id(self.freedom)


class _Sourceless(Generic[P, T]):
    """A function as an object, from which no way leads to its source."""

    def __init__(self, build: Callable[Concatenate[st.DrawFn, P], T]) -> None:
        update_wrapper(self, build)
        del self.__wrapped__  # type: ignore[attr-defined]
        self.__signature__ = inspect.signature(build)
        self._build = build

    def __call__(self, draw: st.DrawFn, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._build(draw, *args, **kwargs)

    def __hash__(self) -> int:
        """The same in each process: Hypothesis tells by it what was drawn by which function."""
        return zlib.crc32(f"{self._build.__module__}.{self._build.__qualname__}".encode())


#: Sizes where kernels break: small ones, primes, and one below, at and one above each power of two.
EDGES = tuple(
    sorted({1, 2, 3, 4, 5, 6, 7, 11, 13, *(n + d for n in (8, 16, 32, 64, 128, 256, 512, 1024) for d in (-1, 0, 1))})
)


def among(values: Iterable[T]) -> st.SearchStrategy[T]:
    """One of `values`; shrinks to the first. The same strategy each time: to make one costs more than to draw. To draw
    from none raises `NothingLeftError`."""
    options = tuple(values)
    if not options:
        return st.just(values.subject if isinstance(values, Left) else "").map(_nothing_left)
    return _among(options, tuple(map(type, options)))  # True and 1 are equal, and no key tells them apart


def _nothing_left(subject: str) -> NoReturn:
    raise NothingLeftError(subject)


@lru_cache(maxsize=4096)
def _among(options: tuple[T, ...], types: tuple[type, ...]) -> st.SearchStrategy[T]:
    return st.sampled_from(options)


@cache
def integers(least: int, most: int) -> st.SearchStrategy[int]:
    """A whole number from `least` to `most`; shrinks to `least`. The same strategy each time."""
    return st.integers(least, most)


@cache
def _up_to(limit: int) -> st.SearchStrategy[int]:
    sizes = [size for size in EDGES if size <= limit]
    large = [size for size in sizes if 2 * size > limit]
    return st.sampled_from(sizes + large * (len(sizes) // len(large)))


#: How large the sizes of one problem may grow: mostly small, for a small case costs little and says much.
_SCALES = st.sampled_from((8, 8, 8, 17, 17, 33, 65, 257, 1025))
_OUTER = st.sampled_from((1, 2, 3, 2, 3, 2, 5))


def scales() -> st.SearchStrategy[int]:
    """The largest inner size a problem draws; shrinks to 8."""
    return _SCALES


def inner_sizes(scale: int) -> st.SearchStrategy[int]:
    """Sizes of the inner dimensions: edges up to `scale`, more than half of them above its half; shrinks to 1."""
    return _up_to(max(scale, 1))


def outer_sizes() -> st.SearchStrategy[int]:
    """Sizes of the batch dimensions, above 1 in six draws of seven; shrinks to 1."""
    return _OUTER


#: What the sizes of a problem are like. "usual": edges of all kinds, mostly small. The rare forms spend all they may
#: cost on one thing: "many" rows, matrices or heads, more than an interface's grids and 16-bit counters hold; two axes
#: that are both longer than a "tile"; one "long" row. An index of 16 bits shows from 65,537 on: of the 150 problems of
#: a default run a few have as many along each axis.
FORMS = ("usual", "many", "tiles", "long")
_FORMS = st.sampled_from(("usual",) * 15 + ("many",) * 3 + ("tiles",) * 4 + ("long",))
_MANY = st.sampled_from((4097, 65537, 65537, 65536, 70001))
_TILES = st.sampled_from((33, 33, 31, 32, 34, 63, 64, 65, 66, 66, 67, 97, 129, 130))
_LARGE_TILES = st.sampled_from((66, 67, 97, 129, 130))
_LONG = st.sampled_from((1026, 2047, 2049, 4097, 8193, 16385, 65537, 65537, 70001))
_FEW = st.sampled_from((1, 1, 2, 3))
_FEW_IN_MANY = st.sampled_from((1, 2, 1, 2))


def forms() -> st.SearchStrategy[str]:
    """One of `FORMS`, a rare one in a third of all draws; shrinks to "usual"."""
    return _FORMS


def counts() -> st.SearchStrategy[int]:
    """How many rows, matrices or heads there are in the form "many"; shrinks to 4097."""
    return _MANY


def tile_sizes() -> st.SearchStrategy[int]:
    """Sizes around the tiles of 32 and 64 that kernels have in shared memory, and beyond two of them; shrinks to 33."""
    return _TILES


def lengths() -> st.SearchStrategy[int]:
    """Sizes of the one axis in the form "long"; shrinks to 1026."""
    return _LONG


def few() -> st.SearchStrategy[int]:
    """Sizes of the axes that a rare form does not spend on; shrinks to 1."""
    return _FEW


#: Of forms that a strategy has beside the usual one, each has one draw of so many.
_RARELY = 40
#: What a tensor holds at most whose many parts are more than one or two elements each.
_MANY_ELEMENTS = 9 << 15


@cache
def rare_forms(*names: str) -> st.SearchStrategy[str]:
    """ "usual", or one of `names`, each in one draw of forty; shrinks to "usual"."""
    return st.sampled_from(("usual",) * (_RARELY - len(names)) + names)


def as_many(count: int, each: int, freedom: Freedom) -> int:
    """`count` parts of a tensor, of `each` elements of up to 32 bits; 4,097 where so many would take long, and fewer
    where they take more than a sixteenth of the bytes allowed."""
    each = max(each, 1)
    if count * each > _MANY_ELEMENTS:
        count = min(count, 4097)
    return min(count, max(freedom.max_bytes // 64 // each, 1))


@composite
def rare_sizes(draw: st.DrawFn, form: str, axes: Sequence[int], inner: int, outer: Sequence[int]) -> list[int]:
    """Four sizes, the innermost first, in a rare form: "long" along `inner`, "many" along one of `outer`, "tiles" along
    two of `axes`; shrinks to sizes of 1 beside that."""
    sizes = [1, 1, *draw(st.permutations((1, draw(few()))))]
    if form == "long":
        sizes[inner] = draw(lengths())
    elif form == "many":
        axis = draw(st.sampled_from(list(outer)))
        sizes = [1, 1, 1, 1]  # a case costs as much as it has elements
        others = [other for other in range(4) if other != axis]
        others += [other for other in others if other == inner] * 4  # a row of one element says little
        sizes[draw(st.sampled_from(others))] = draw(_FEW_IN_MANY)
        sizes[axis] = draw(counts())
    else:
        pairs = [(one, other) for one in axes for other in axes if one < other]
        pairs += [pair for pair in pairs if pair == (0, 1)] * 6  # the rows and columns that most transposes have
        one, other = draw(st.sampled_from(pairs))
        tiles = _LARGE_TILES if draw(integers(0, 2)) else tile_sizes()  # beyond two tiles of 32, and beyond one of 64
        sizes[one], sizes[other] = draw(tiles), draw(tiles)
    return sizes


#: What a tensor of a usual run takes at most, so that no problem takes the time of hundreds of others (two
#: squares of 129 do not); or twice its one long axis. Of what may be held altogether this is a small share.
_USUAL_BYTES, _USUAL_SHARE = 9 << 14, 512


def within(shape: Sequence[int], itemsize: int, freedom: Freedom) -> tuple[int, ...]:
    """`shape` cut until the tensor takes at most a sixteenth of the bytes allowed, its largest sizes first. The rest is
    room for the other arguments, padding and guards. Of a tensor above 144 KiB, or above a share of the bytes allowed,
    the batches go first: what is long stays so."""
    sizes = list(shape)
    budget = max(freedom.max_bytes // 16 // itemsize, 1)
    usual = max(
        max(_USUAL_BYTES, freedom.max_bytes // _USUAL_SHARE) // itemsize, max(sizes) * (2 if itemsize <= 8 else 1)
    )
    while usual < budget and _product(sizes) > usual:
        least = min((axis for axis, size in enumerate(sizes) if size > 1), key=sizes.__getitem__)
        sizes[least] = 2 if sizes[least] == 3 else sizes[least] // 2
    while _product(sizes) > budget:
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        sizes[largest] = max(sizes[largest] // 2, 1)
    return tuple(sizes)


def _product(sizes: Iterable[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
