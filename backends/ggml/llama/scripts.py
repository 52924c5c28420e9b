"""What a model is given to decode: a prompt, for several sequences at once where wanted, then steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Batch:
    """Tokens to decode together, each with its position in its sequence; `wanted` says whose logits are read."""

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    sequences: tuple[int, ...]
    wanted: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len({len(self.tokens), len(self.positions), len(self.sequences), len(self.wanted)}) != 1 or not self.tokens:
            raise ValueError("a batch has one position, sequence and wish for each of its tokens, and at least one")


Script = tuple[Batch, ...]  #: batches to decode one after the other


def script(
    vocabulary: int, tokens: int, sequences: int = 1, steps: int = 0, parts: int = 1, seed: int = 0
) -> tuple[Batch, ...]:
    """A prompt of so many tokens for each of the sequences, in so many parts, then steps of one token each.

    The tokens are random; a seed gives each sequence the same ones, however many sequences there are, and however its
    prompt is cut. The logits of every token are wanted.
    """
    random = [np.random.RandomState([seed, sequence]) for sequence in range(sequences)]
    all_tokens = [rows.randint(0, vocabulary, tokens + steps).tolist() for rows in random]
    cuts = [tokens * part // parts for part in range(parts + 1)] + [tokens + step + 1 for step in range(steps)]
    return tuple(_batch(all_tokens, start, end) for start, end in pairwise(cuts) if end > start)


def _batch(tokens: Sequence[Sequence[int]], start: int, end: int) -> Batch:
    places = [(sequence, position) for sequence in range(len(tokens)) for position in range(start, end)]
    return Batch(
        tokens=tuple(int(tokens[sequence][position]) for sequence, position in places),
        positions=tuple(position for _, position in places),
        sequences=tuple(sequence for sequence, _ in places),
        wanted=(True,) * len(places),
    )
