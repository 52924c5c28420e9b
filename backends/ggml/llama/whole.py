"""The whole graph against its nodes: the same decode with nothing observed, and stopped after every node.

Both ways compute the same ops on the same device, so that they may differ by rounding alone: a fused kernel keeps in a
register what another one stores. How far rounding moves the logits of this model is measured (Parker, Monte Carlo
Arithmetic, 1997): the decode is repeated node by node, with each float32 output moved at random by up to `NOISE` of
itself. Logits of a token that are off by more than `MARGIN` times the largest such move of that token are wrong. Where
a model turns rounding into large moves (activations rounded to 8 bits, a tie between experts), the tokens concerned
get a wide threshold in this way, and no false alarm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from opconform.backends.ggml.llama.bench import Bench, Run, Setup
from opconform.backends.ggml.llama.pieces import Overlap, ends_around, overlaps, smallest
from opconform.backends.ggml.llama.records import Node
from opconform.backends.ggml.llama.scripts import Script
from opconform.backends.ggml.llama.session import UNOBSERVED, Died, Watch
from opconform.harness.run.watching import LateError

MARGIN = 8.0  #: the moves of a few noisy runs are a sample; the largest possible one is a few times larger
NOISY_RUNS = 3
CONFIRMING_RUNS = 9  #: more of them before a difference is called wrong: a tie may have come out one way by chance
ATTEMPTS = 2  #: a driver may die now and then of what is not the graph's fault
_SHORT = 24  #: computing nodes of a piece whose overlaps are told
TIMES = 2  #: how often the whole is decoded: a race shows itself only now and then

#: Environment variables by which a backend leaves out what it does with a whole graph, by the start of a device's name.
SWITCHES: Mapping[str, tuple[str, ...]] = {
    "Vulkan": ("GGML_VK_DISABLE_FUSION", "GGML_VK_DISABLE_GRAPH_OPTIMIZE"),
    "CUDA": ("GGML_CUDA_DISABLE_FUSION", "GGML_CUDA_DISABLE_GRAPHS"),
    "Metal": ("GGML_METAL_FUSION_DISABLE", "GGML_METAL_CONCURRENCY_DISABLE", "GGML_METAL_GRAPH_OPTIMIZE_DISABLE"),
    "MTL": ("GGML_METAL_FUSION_DISABLE", "GGML_METAL_CONCURRENCY_DISABLE", "GGML_METAL_GRAPH_OPTIMIZE_DISABLE"),
}


@dataclass(frozen=True)
class Difference:
    """How far two runs are apart, at the token whose logits are farthest in terms of its threshold."""

    decode: int
    row: int  #: of the decode's logits
    off: float  #: the largest difference of two logits of the row; infinite where only one of them is a number
    threshold: float
    scale: float  #: the spread of the decode's logits
    first: int  #: the first decode in which a token is too far off; `decode` where none is

    @property
    def wrong(self) -> bool:
        return not self.off <= self.threshold


#: For each decode, how far each of its rows of logits may be off.
Thresholds = Sequence[np.ndarray]


@dataclass(frozen=True)
class Piece:
    """The smallest wrong piece that was found: the decode it is in, its nodes, and what may be the cause. late: the
    time was up before smaller ones were tried."""

    decode: int
    nodes: tuple[Node, ...]
    difference: Difference | None
    died: Died | None
    overlaps: tuple[Overlap, ...]
    late: bool = False

    @property
    def ops(self) -> tuple[str, ...]:
        """What its nodes compute, views left out."""
        return tuple(node.what for node in self.nodes if node.computes)


@dataclass(frozen=True)
class Switch:
    """A decode of the whole with an environment variable set to 1; `difference` is None where the worker died."""

    variable: str
    difference: Difference | None

    @property
    def right(self) -> bool:
        return self.difference is not None and not self.difference.wrong


@dataclass(frozen=True)
class Whole:
    """The verdict.

    differences: of each time the whole was decoded, as far as no worker died. died: the deaths, each with the decode
    that it was in. by_node: the death of the decode node by node, without which nothing can be compared. asked: whether
    the whole is right where the backend is asked to stop nowhere, but asked, which alone makes libllama wait for the
    device after each split; None where that was not tried. nodes: all nodes of every decode, without values. logits:
    of the decode node by node. runs: how often the script was decoded for all this. late: the time was up before the
    search was over.
    """

    differences: tuple[Difference, ...]
    died: tuple[tuple[int, Died], ...] = ()
    by_node: Died | None = None
    asked: bool | None = None
    piece: Piece | None = None
    switches: tuple[Switch, ...] = ()
    nodes: tuple[tuple[Node, ...], ...] = ()
    logits: tuple[np.ndarray, ...] = ()
    runs: int = 0
    late: bool = False

    @property
    def wrong_times(self) -> int:
        """How many times of `TIMES` the whole was wrong."""
        return sum(difference.wrong for difference in self.differences) + len(self.died)

    @property
    def right(self) -> bool:
        return self.by_node is None and not self.wrong_times


class Runs(Protocol):
    """What decodes a script in different ways: a `Bench`, or whatever else has a graph with outputs."""

    setup: Setup
    runs: int

    def run(
        self,
        script: Script,
        watch: Sequence[Watch] | Watch | None = None,
        see: Callable[[int, Node], None] | None = None,
    ) -> Run: ...


def compare(bench: Runs, script: Script, search: bool = True) -> Whole:
    """Decode `script` whole and node by node, and find the smallest wrong piece where they differ.

    Raises `ModelError` where libllama does not decode the script at all, and `LateError` where the time is up before
    there is a verdict.
    """
    for _ in range(ATTEMPTS):
        nodes: list[list[Node]] = [[] for _ in script]
        alone = bench.run(script, Watch(), partial(_append, nodes))
        if not alone.died:
            break
    else:
        return Whole((), by_node=alone.died, nodes=tuple(map(tuple, nodes)), runs=bench.runs)
    thresholds = _thresholds(bench, script, alone)
    runs = [bench.run(script) for _ in range(TIMES)]
    thresholds = _confirmed(bench, script, alone, thresholds, runs)
    verdict = Whole(
        differences=tuple(difference(alone, run, thresholds) for run in runs if not run.died),
        died=tuple((run.decode, run.died) for run in runs if run.died),
        nodes=tuple(map(tuple, nodes)),
        logits=alone.logits,
        runs=bench.runs,
    )
    if verdict.right or not search:
        return verdict
    try:
        asked = bench.run(script, UNOBSERVED)
        asked_right = not asked.died and not difference(alone, asked, thresholds).wrong
        verdict = replace(verdict, asked=asked_right)
        for switch in _switches(bench.setup, script, alone, thresholds):
            verdict = replace(verdict, switches=(*verdict.switches, switch))
        if not asked_right:
            piece = _search(bench, script, alone, thresholds, verdict.nodes)
            verdict = replace(verdict, piece=piece, late=piece is not None and piece.late)
    except LateError:
        verdict = replace(verdict, late=True)
    return replace(verdict, runs=bench.runs)


def _append(nodes: list[list[Node]], number: int, node: Node) -> None:
    nodes[number].append(node)


def difference(one: Run, other: Run, thresholds: Thresholds, start: int = 0) -> Difference:
    """How far apart two runs are, from the decode `start` on, as far as both go."""
    found = []
    for decode in range(start, min(len(one.logits), len(other.logits))):
        off, threshold = off_of(one.logits[decode], other.logits[decode]), thresholds[decode]
        with np.errstate(divide="ignore", invalid="ignore"):
            row = int(np.argmax(np.nan_to_num(off / threshold, nan=0.0, posinf=np.inf)))
        logits = one.logits[decode]
        scale = float(logits[np.isfinite(logits)].std())
        found.append(Difference(decode, row, float(off[row]), float(threshold[row]), scale, decode))
    farthest = max(found, key=lambda each: (each.wrong, each.off / max(each.threshold, 1e-300), -each.decode))
    return replace(farthest, first=next((each.decode for each in found if each.wrong), farthest.decode))


def off_of(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The largest difference in each row. Two infinities of one sign are alike, and two that are no numbers."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.abs(a - b)
    apart[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
    return np.asarray(np.where(np.isnan(apart), np.inf, apart).max(1))


def _thresholds(bench: Runs, script: Script, alone: Run, seeds: Sequence[int] = range(NOISY_RUNS)) -> Thresholds:
    """How far from the decode node by node is wrong; infinitely far in a decode that no noisy run came to."""
    moves: list[list[np.ndarray]] = [[] for _ in script]
    for seed in seeds:
        for decode, logits in enumerate(bench.run(script, Watch(told=False, noise=seed)).logits):
            moves[decode].append(off_of(alone.logits[decode], logits))
    rows = [len(logits) for logits in alone.logits]
    return [MARGIN * np.max(found, axis=0) if found else np.full(count, np.inf) for found, count in zip(moves, rows)]


def _confirmed(bench: Runs, script: Script, alone: Run, thresholds: Thresholds, runs: Sequence[Run]) -> Thresholds:
    """The same with more noise, where one of the `runs` would be wrong by these thresholds."""
    suspected = [run for run in runs if not run.died and difference(alone, run, thresholds).wrong]
    if not suspected:
        return thresholds
    more = _thresholds(bench, script, alone, range(NOISY_RUNS, NOISY_RUNS + CONFIRMING_RUNS))
    return [one if np.isinf(other).all() else np.maximum(one, other) for one, other in zip(thresholds, more)]


def _search(
    bench: Runs, script: Script, alone: Run, thresholds: Thresholds, nodes: Sequence[Sequence[Node]]
) -> Piece | None:
    """The smallest wrong piece, as far as the time goes. What a decode does wrong may show itself in a later one,
    through the cache; and it may do wrong only after others that were not stopped. A race can lead astray: each
    decode is looked through `_SEARCHES` times."""
    orders = [(False, decode) for decode in range(len(script))] + [(True, decode) for decode in range(1, len(script))]
    for freely, decode in (order for order in orders for _ in range(_SEARCHES)):
        tries = _Tries(bench, script, alone, thresholds, nodes[decode], decode, UNOBSERVED if freely else _STOPPED)
        if not tries.free():
            continue
        late = False
        try:
            found = smallest(nodes[decode], tries.wrong)
        except LateError:
            found, late = tries.least(), True
            if found is None:
                raise
        if found and (late or all(tries.stays(found) for _ in range(TIMES))):
            first, last = found
            inside = tuple(node for node in nodes[decode] if first <= node.index <= last)
            wrong, died = tries.seen[found]
            # In a long piece much lies over much, and a death has other causes.
            short = sum(node.computes for node in inside) <= _SHORT
            because = overlaps(nodes[decode], first, last) if short and not died else ()
            return Piece(decode, inside, wrong, died, because, late)
    return None


_STOPPED = Watch(told=False)
_SEARCHES = 2  #: how often a decode is looked through, before the next one


class _Tries:
    """Runs in which some nodes of one decode are computed together, and all others alone; those of the decodes before
    it as `before` says."""

    def __init__(
        self,
        bench: Runs,
        script: Script,
        alone: Run,
        thresholds: Thresholds,
        nodes: Sequence[Node],
        decode: int,
        before: Watch,
    ) -> None:
        self._bench, self._script, self._alone, self._thresholds = bench, script, alone, thresholds
        self._nodes, self._decode, self._before = nodes, decode, before
        self._count = len(script)  # decodes to run: those up to the first that is wrong
        self.seen: dict[tuple[int, int], tuple[Difference | None, Died | None]] = {}

    def free(self) -> bool:
        """Whether it goes wrong where the decode is stopped nowhere."""
        found, died = self._tried(UNOBSERVED)
        if found and found.wrong:
            self._count = found.first + 1
        return died is not None or (found is not None and found.wrong)

    def wrong(self, first: int, last: int) -> bool:
        """Whether it goes wrong where the nodes from `first` to `last` are one piece."""
        if (first, last) not in self.seen:
            ends = ends_around(self._nodes, first, last)
            self.seen[first, last] = self._tried(Watch(ends=ends, told=False))
        return self._went_wrong((first, last))

    def stays(self, place: tuple[int, int]) -> bool:
        """Whether a piece goes wrong once more. What comes and goes, a death or a race, leads the search anywhere."""
        del self.seen[place]
        return self.wrong(*place)

    def least(self) -> tuple[int, int] | None:
        """The shortest piece that has gone wrong so far."""
        return min(filter(self._went_wrong, self.seen), key=lambda place: place[1] - place[0], default=None)

    def _went_wrong(self, place: tuple[int, int]) -> bool:
        found, died = self.seen[place]
        return died is not None or (found is not None and found.wrong)

    def _tried(self, watch: Watch) -> tuple[Difference | None, Died | None]:
        later = self._count - self._decode - 1
        watches = [*[self._before] * self._decode, watch, *[_STOPPED] * later]
        for _ in range(ATTEMPTS):
            run = self._bench.run(self._script[: self._count], watches)
            if not run.died:
                break
        else:
            return None, run.died
        return difference(self._alone, run, self._thresholds, self._decode), None


def _switches(setup: Setup, script: Script, alone: Run, thresholds: Thresholds) -> Iterator[Switch]:
    """The whole with each of the devices' switches, in a fresh worker each."""
    variables = [
        variable
        for start, names in SWITCHES.items()
        if any(device.startswith(start) for device in setup.devices)
        for variable in names
    ]
    for variable in dict.fromkeys(variables):
        with Bench(replace(setup, environment={**setup.environment, variable: "1"})) as bench:
            run = bench.run(script)
        yield Switch(variable, None if run.died else difference(alone, run, thresholds))
