"""Several sequences computed together against each alone, and a prompt in two parts against one.

A sequence's logits depend on no other sequence, and on no cut of its prompt: the state is carried over. Other batches
may be computed by other kernels, so that they differ by rounding; how far that moves the logits is measured as in
`whole`, with noise as large as the roundings in which kernels differ (`levels_of`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from opconform.backends.ggml.llama import gguf
from opconform.backends.ggml.llama.bench import Bench, Run
from opconform.backends.ggml.llama.scripts import Batch, Script, script
from opconform.backends.ggml.llama.session import ContextSizes, ModelError, Watch
from opconform.backends.ggml.llama.whole import CONFIRMING_RUNS, MARGIN, NOISY_RUNS, off_of
from opconform.harness.model.graph import Difference, Together

#: Logits by sequence and position.
Table = Mapping[tuple[int, int], np.ndarray]

_Q8 = 2.0**-7  #: what rounding activations to 8 bits moves them by, relative to the largest of a block, and a rounding
_ROUNDOFF = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8}


def levels_of(header: gguf.Header, is_cpu: bool) -> dict[str, float]:
    """How far the kernels of two batch sizes may differ in an element, relative to it, by op; for others it is `NOISE`.

    The CPU's attention adds up in float16 up to 64 tokens and in float32 from there on, as the cache is float16
    (ggml-cpu/ops.cpp: ggml_compute_forward_flash_attn_ext_f16_one_chunk and _tiled). Matrix products round activations
    to the type of the weights, or to 8 bits where that is quantised, in some kernels and not in others
    (ggml-vulkan.cpp and ggml-cuda/mmvq.cu take other kernels up to 8 tokens); GPUs round operands that are not
    contiguous to float16 (ggml-vulkan.cpp, ggml_vk_mul_mat_q_f16: y_non_contig).
    """
    names = {kind.number: name for name, kind in gguf.TYPES.items()}
    found = [_ROUNDOFF.get(names.get(info.type, ""), _Q8) for info in header.tensors]
    products = max([0.0 if is_cpu else _ROUNDOFF["f16"], *found])
    levels = {"FLASH_ATTN_EXT": max(_ROUNDOFF["f16"], products)}
    return {**levels, **({"MUL_MAT": products, "MUL_MAT_ID": products} if products else {})}


def only(batches: Script, sequence: int) -> Script:
    """The part of a script that is of one sequence, which becomes number 0."""
    found = []
    for batch in batches:
        kept = [i for i, each in enumerate(batch.sequences) if each == sequence]
        if kept:
            positions = tuple(batch.positions[i] for i in kept)
            tokens = tuple(batch.tokens[i] for i in kept)
            found.append(Batch(tokens, positions, (0,) * len(kept), (True,) * len(kept)))
    return tuple(found)


def table_of(batches: Script, run: Run, sequence: int | None = None) -> dict[tuple[int, int], np.ndarray]:
    """The logits of a run, as far as it came; all are of `sequence` where one is named."""
    found = {}
    for batch, logits in zip(batches, run.logits):
        for position, owner, row in zip(batch.positions, batch.sequences, logits):
            found[owner if sequence is None else sequence, position] = row
    return found


class Alone:
    """Each sequence decoded alone, and how far rounding moves its logits."""

    def __init__(self, bench: Bench, vocabulary: int, tokens: int, steps: int, seed: int) -> None:
        self.bench = bench
        self._parameters = vocabulary, tokens, steps, seed
        header = bench.model().header
        self._levels = levels_of(header, bench.setup.devices == ("CPU",))
        self._plain: dict[int, Table] = {}
        self._moves: dict[int, dict[tuple[int, int], float]] = {}
        self._seeds: dict[int, int] = {}

    def script(self, sequences: int, parts: int = 1) -> Script:
        """The script of so many sequences together."""
        vocabulary, tokens, steps, seed = self._parameters
        return script(vocabulary, tokens, sequences, steps, parts, seed)

    def decoded(self, sequence: int) -> tuple[Run, Table]:
        """A sequence alone, with nothing observed."""
        batches = only(self.script(sequence + 1), sequence)
        run = self.bench.run(batches)
        return run, table_of(batches, run, sequence)

    def thresholds(self, sequence: int, runs: int) -> Mapping[tuple[int, int], float]:
        """How far each of a sequence's logits may be off, after so many noisy runs in all."""
        batches = only(self.script(sequence + 1), sequence)
        found = self._moves.setdefault(sequence, {})
        if sequence not in self._plain:
            self._plain[sequence] = table_of(batches, self.bench.run(batches, Watch(told=False)), sequence)
        plain = self._plain[sequence]
        for number in range(self._seeds.get(sequence, 0), runs):
            watch = Watch(told=False, noise=number, levels=self._levels)
            for place, row in table_of(batches, self.bench.run(batches, watch), sequence).items():
                if place in plain:
                    found[place] = max(found.get(place, 0.0), float(off_of(plain[place][None], row[None])[0]))
        self._seeds[sequence] = max(runs, self._seeds.get(sequence, 0))
        return {place: MARGIN * move for place, move in found.items()}


def compared(alone: Alone, sequences: int) -> Iterator[Together]:
    """The comparisons, one after the other."""
    tables: dict[tuple[int, int], np.ndarray] = {}
    for sequence in range(sequences):
        run, table = alone.decoded(sequence)
        if run.died:
            yield Together("alone", 1, ended=run.died.in_decode(run.decode))
            return
        tables |= table
    if sequences > 1:
        yield _compared(alone, tables, "together", sequences, alone.script(sequences))
    if len(alone.script(1, 2)) > len(alone.script(1)):
        yield _compared(alone, tables, "a prompt in two parts", 1, alone.script(1, 2))


def _compared(alone: Alone, tables: Table, way: str, sequences: int, batches: Script) -> Together:
    setup = alone.bench.setup
    if sequences == 1:
        return _judged(alone, tables, way, 1, batches, alone.bench)
    room = max(len(batch.tokens) for batch in batches)
    sizes: ContextSizes = replace(setup.sizes, sequences=sequences, batch=room)
    try:
        with Bench(replace(setup, sizes=sizes)) as bench:
            return _judged(alone, tables, way, sequences, batches, bench)
    except ModelError as error:
        return Together(way, sequences, error=str(error))


def _judged(alone: Alone, tables: Table, way: str, sequences: int, batches: Script, bench: Bench) -> Together:
    run = bench.run(batches)
    if run.died:
        return Together(way, sequences, ended=run.died.in_decode(run.decode))
    found = table_of(batches, run)
    wrong, worst = [], None
    for sequence in range(sequences):
        own = {place: row for place, row in found.items() if place[0] == sequence}
        difference = _difference(own, tables, alone.thresholds(sequence, NOISY_RUNS))
        if difference.wrong:
            difference = _difference(own, tables, alone.thresholds(sequence, NOISY_RUNS + CONFIRMING_RUNS))
        if difference.wrong:
            wrong.append((sequence, difference, _whose(own, tables, sequence, difference.threshold)))
        if worst is None or _times(difference) > _times(worst):
            worst = difference
    return Together(way, sequences, tuple(wrong), worst)


def _times(difference: Difference) -> float:
    return difference.off / max(difference.threshold, 1e-300)


def _difference(own: Table, tables: Table, thresholds: Mapping[tuple[int, int], float]) -> Difference:
    """How far a sequence is off where it is off farthest, in terms of its thresholds."""
    found = []
    for place, row in own.items():
        expected = tables[place]
        off = float(off_of(expected[None], row[None])[0])
        scale = float(expected[np.isfinite(expected)].std())
        where = f"the token at {place[1]} of sequence {place[0]}"
        found.append(Difference(off, thresholds.get(place, np.inf), scale, where))
    return max(found, key=_times)


def _whose(own: Table, tables: Table, sequence: int, threshold: float) -> int | None:
    """The other sequence whose logits these are, for half of the tokens or more; None where they are nobody's."""
    others = {other for other, _ in tables} - {sequence}
    for other in sorted(others):
        alike = [
            float(off_of(tables[other, place[1]][None], row[None])[0]) <= threshold
            for place, row in own.items()
            if (other, place[1]) in tables
        ]
        if alike and 2 * sum(alike) >= len(alike):
            return other
    return None
