"""Which element stands where another should, for ops that only move (or add) elements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from opconform.harness.model.buffers import unwritten
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.expected import Comparison
from opconform.harness.model.layouts import Layout, axes_named
from opconform.harness.model.op import Op
from opconform.harness.model.values import data_of, index_coded
from opconform.harness.run.runner import Runner

_SHOWN = 4  #: elements that are told of


def provenance(op: Op, runner: Runner, case: Case, time_limit: float) -> tuple[str, ...]:
    """For an op that only moves elements: of the first wrong ones, which element of which input stands there.

    The case is run once for each input, whose elements then name their own places while all others are 0.
    A run may take `time_limit` seconds.
    """
    if op.sources is None:
        return ()
    coded = {name: codes for name, layout in case.inputs.items() if (codes := index_coded(layout)) is not None}
    if len(coded) < len(case.inputs):
        return ()
    nothing = {name: np.zeros_like(codes) for name, codes in coded.items()}
    cases = [
        replace(case, recipe="index", keep=None).with_data(data_of({**nothing, name: codes}))
        for name, codes in coded.items()
    ]
    verdicts = runner.verdicts(op, cases, beyond=("bug",), until_death=True, time_limit=time_limit)
    got = {name: verdict.comparison for name, verdict in zip(coded, verdicts) if verdict.comparison is not None}
    if len(got) < len(coded):
        return ()
    return tuple(_traced(op, case, coded, got))


def _traced(op: Op, case: Case, coded: Mapping[str, Raw], got: Mapping[str, Comparison]) -> Iterator[str]:
    assert op.sources is not None
    out = op.outputs[0]
    sources, ne = op.sources(case), case.outputs[out].ne
    wrong = np.zeros(case.outputs[out].shape, dtype=bool)
    for name, source in sources.items():
        codes = case.inputs[name].type.decode(coded[name]).reshape(-1)
        want = np.where(source >= 0, codes[np.maximum(source, 0)], 0.0)
        wrong |= want != got[name].got
    places = np.flatnonzero(wrong)
    for flat in places[:_SHOWN]:
        wanted = [
            f"{name}{_index(case.inputs[name].ne, source.reshape(-1)[flat])}"
            for name, source in sources.items()
            if source.reshape(-1)[flat] >= 0
        ]
        yield f"{out}{_index(ne, flat)} holds {_held(case, got, flat)}, should hold {' + '.join(wanted)}"
    if len(places) > _SHOWN:
        yield f"and {len(places) - _SHOWN} more"


def _held(case: Case, got: Mapping[str, Comparison], flat: int) -> str:
    """What an output element holds, from the runs in which only one input is not 0."""
    raws = {int(comparison.raw.reshape(-1)[flat]) for comparison in got.values()}
    values = {name: float(comparison.got.reshape(-1)[flat]) for name, comparison in got.items()}
    if raws == {unwritten(case.inputs[next(iter(got))].type)}:
        return "what was there before"
    if any(np.isnan(value) for value in values.values()):
        return "NaN, as gaps do"
    if len(raws) == 1 and raws != {0} and len(got) > 1:
        return f"{next(iter(values.values())):g} whatever the inputs hold, as gaps do"
    held = [_element(case.inputs[name], name, value) for name, value in values.items() if value != 0]
    return " + ".join(held) or "0"


def _element(layout: Layout, name: str, value: float) -> str:
    if value.is_integer() and 1 <= value <= layout.size:
        return f"{name}{_index(layout.ne, int(value) - 1)} (flat {int(value) - 1})"
    return f"{value:g} (no element of {name})"


def _index(ne: tuple[int, ...], flat: int) -> str:
    return axes_named(np.unravel_index(flat, ne[::-1])[::-1])
