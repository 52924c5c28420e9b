"""Intervals for a median that hold whatever the samples' distribution is, and when one build is slower than another.

Times are skewed and have long tails, so nothing here takes them for normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95

#: A ratio of two builds is taken in sittings: each has fresh processes, and a coin says which of the two goes first.
#: A case has at least FEWEST of them (the fewest whose range is an interval at CONFIDENCE), and MOST at most.
FEWEST, MOST = 6, 24
DISSENTERS = 1  #: sittings of MOST that may contradict


@dataclass(frozen=True)
class Interval:
    """A median with an interval: `low` ≤ the true median ≤ `high` with at least the probability `confidence`."""

    low: float
    middle: float
    high: float
    confidence: float
    count: int

    @property
    def precision(self) -> float:
        """Half its width, as a part of the median."""
        return (self.high - self.low) / (2 * self.middle) if self.middle > 0 else math.inf

    def times(self, factor: float) -> Interval:
        """The interval of what is `factor` times as much."""
        return Interval(self.low * factor, self.middle * factor, self.high * factor, self.confidence, self.count)


def median(values: Sequence[float]) -> float:
    """The median; of an even number the mean of the two in the middle."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def median_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The median of independent samples, between the k-th smallest and the k-th largest of them.

    The true median lies below the k-th smallest of n with the probability P(X < k), X binomial of n and 1/2, and above
    the k-th largest with the same (David and Nagaraja, Order Statistics, 3rd ed., section 7.1). k is the largest for
    which twice that is at most 1 − confidence. Samples too few for that give their range, with the confidence that it
    has: 1 − 2^(1−n). Raises `ValueError` without a sample.
    """
    if not samples:
        raise ValueError("there is no sample")
    ordered, n = sorted(samples), len(samples)
    k, reached = _rank(n, confidence)
    return Interval(ordered[k - 1], median(ordered), ordered[n - k], reached, n)


@cache
def _rank(n: int, confidence: float) -> tuple[int, float]:
    """The rank k, and the confidence that it reaches."""
    ways, chosen, k = 1, 1, 1  # subsets of fewer than k of n things, and of k − 1
    while k < (n + 1) // 2:
        chosen = chosen * (n - k + 1) // k
        if (ways + chosen) / 2 ** (n - 1) > 1 - confidence:
            break
        ways, k = ways + chosen, k + 1
    return k, float(1 - ways / 2 ** (n - 1))


def _below(n: int, k: int) -> float:
    """P(X < k) for X binomial of n and 1/2."""
    return float(sum(math.comb(n, i) for i in range(k)) / 2**n)


@dataclass(frozen=True)
class Versus:
    """How many times as long one build takes as another, a ratio for each sitting.

    slower: whether it takes more than `margin` longer. The claim is made only after MOST sittings of which all but
    DISSENTERS at most say so. Of two equal builds every sitting's ratio is above 1 as often as below it, since nothing
    but a coin tells which is which, and sittings are independent; so a claim comes by chance with a probability of at
    most Σ_{i ≤ DISSENTERS} C(MOST, i) / 2^MOST = 1.5e-6 for one case (the sign test; David and Nagaraja, section 7.1).
    Stopping early can only make the claim rarer.
    """

    ratios: tuple[float, ...]
    margin: float

    @property
    def interval(self) -> Interval:
        """The median ratio: what was claimed of it, if anything was, else an interval at CONFIDENCE."""
        return median_interval(self.ratios, CERTAINTY if self.slower else CONFIDENCE)

    @property
    def slower(self) -> bool:
        return len(self.ratios) >= MOST and self._contradicting <= DISSENTERS

    @property
    def open(self) -> bool:
        """Whether more sittings may still change what is said."""
        return len(self.ratios) < FEWEST or (len(self.ratios) < MOST and self._contradicting <= DISSENTERS)

    @property
    def _contradicting(self) -> int:
        return sum(ratio <= 1 + self.margin for ratio in self.ratios)

    def and_then(self, ratio: float) -> Versus:
        """With one more sitting."""
        return Versus((*self.ratios, ratio), self.margin)


#: The confidence of the interval of a ratio that is called slower: its lower end is then above the margin.
CERTAINTY = 1 - 2 * _below(MOST, DISSENTERS + 1)
