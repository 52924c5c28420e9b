"""The shapes of the report's small drawings. Colour never stands alone: what failed hangs below the line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from opconform.reports.html.data import Moment
from opconform.reports.states import Outcome, Pair, State

_HIGH = 110  #: pixels of a whole bar of the trend
_STEP, _BAR = 18, 12
_LEAST = 3  #: pixels of what is there at all
_STRIP = 20  #: runs in a strip
_SPARK = (120, 22)  #: pixels of a line of rates

#: What a bar is made of, from the line outwards.
_ABOVE: tuple[Outcome, ...] = ("passed", "unsupported")
_BELOW: tuple[Outcome, ...] = ("failed", "known", "not finished")


@dataclass(frozen=True)
class Block:
    """A rectangle, and the class that colours it."""

    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True)
class Bar:
    """One run of the trend: what it says, and its rectangles."""

    started: str
    counts: Counter[str]
    executed: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Trend:
    """Pairs by their outcome, run by run; `line` is where bars stand and hang, `most` the pairs of the longest."""

    width: int
    height: float
    line: float
    most: int
    bars: tuple[Bar, ...]


def trend(past: Sequence[Moment]) -> Trend:
    """A bar for each run."""
    counts = [Counter[str](state.outcome for state in moment.states.values()) for moment in past]
    most = max((sum(count.values()) for count in counts), default=0)
    heights: list[dict[str, float]] = [
        {kind: max(count[kind] * _HIGH / most, _LEAST) if count[kind] else 0 for kind in (*_ABOVE, *_BELOW)}
        for count in counts
    ]
    line = max((sum(high[kind] for kind in _ABOVE) for high in heights), default=0) + 1
    below = max((sum(high[kind] for kind in _BELOW) for high in heights), default=0) + 1
    bars = tuple(
        Bar(
            moment.started,
            count,
            sum(state.executed for state in moment.states.values()),
            tuple(_stacked(index * _STEP + (_STEP - _BAR) / 2, line, high)),
        )
        for index, (moment, count, high) in enumerate(zip(past, counts, heights))
    )
    return Trend(_STEP * len(past), round(line + below, 2), round(line, 2), most, bars)


def _stacked(x: float, line: float, high: Mapping[str, float]) -> Iterator[Block]:
    """What stands on the line and what hangs below it."""
    top = bottom = line
    for kind in _ABOVE:
        top -= high[kind]
        if high[kind]:
            yield Block(x, round(top, 2), _BAR, round(high[kind], 2), _class(kind))
    for kind in _BELOW:
        if high[kind]:
            yield Block(x, round(bottom, 2), _BAR, round(high[kind], 2), _class(kind))
        bottom += high[kind]


@dataclass(frozen=True)
class Strip:
    """The last runs of one pair as a row of marks; `says` is the same in words."""

    width: int
    blocks: tuple[Block, ...]
    says: str


def strip(past: Sequence[Moment], pair: Pair) -> Strip:
    """One mark for each of the last runs, whatever the build: what passed stands above the middle, what failed hangs
    below it."""
    states = _of(past, pair)[-_STRIP:]
    shape = {"passed": (0, 8), "failed": (8, 8), "known": (8, 5), "unsupported": (6, 4), "not finished": (8, 8)}
    blocks = [
        Block(6 * index, *(shape[state.outcome][0], 5, shape[state.outcome][1]), _class(state.outcome))
        for index, state in enumerate(states)
    ]
    counts = Counter(state.outcome for state in states)
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    number = "the last run" if len(states) == 1 else f"the last {len(states)} runs"
    return Strip(6 * len(states), tuple(blocks), f"{number}: {said}" if states else "not searched yet")


@dataclass(frozen=True)
class Spark:
    """A pair's rates as a line; `low` and `high` in cases per second. Empty where there are not two of them."""

    width: int
    height: int
    points: str
    low: float
    high: float


def spark(past: Sequence[Moment], pair: Pair) -> Spark | None:
    """The rates of the last runs, from 0 up."""
    rates = [state.rate for state in _of(past, pair)[-_STRIP:] if state.rate > 0]
    if len(rates) < 2:
        return None
    width, height = _SPARK
    step, scale = (width - 4) / (len(rates) - 1), (height - 4) / max(rates)
    points = " ".join(f"{2 + index * step:.1f},{height - 2 - rate * scale:.1f}" for index, rate in enumerate(rates))
    return Spark(width, height, points, min(rates), max(rates))


def _of(past: Sequence[Moment], pair: Pair) -> list[State]:
    """The states of an op on a target, run by run, whatever the build."""
    states = (moment.state(pair) for moment in past)
    return [state for state in states if state is not None]


def _class(outcome: str) -> str:
    return outcome.replace(" ", "-")
