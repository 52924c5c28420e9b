"""Relations between runs of absorbed latent attention that hold for every right kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from opconform.cases.mla.problems import FORMS
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64, Raw
from opconform.harness.model.expected import Comparison
from opconform.harness.model.findings import Kind
from opconform.harness.model.layouts import Layout
from opconform.harness.model.op import Again, Metamorphic, Op
from opconform.harness.model.values import data_of


def _sequence_isolation(
    op: Op, case: Case, values: Mapping[str, Raw], found: Mapping[str, Comparison], again: Again
) -> str | None:
    batch = case.inputs["q_nope"].shape[0]
    if batch == 1:
        return None
    cut = {name: raw[-1:] for name, raw in values.items()}
    return _compared(_with(case, cut), again, found["out"], lambda got: got[-1:], "its last sequence alone")


def _head_permutation(
    op: Op, case: Case, values: Mapping[str, Raw], found: Mapping[str, Comparison], again: Again
) -> str | None:
    if case.inputs["q_nope"].shape[1] == 1:
        return None
    by_head = ("q_nope", "q_pe", "w_uk", "w_uv")
    turned = {name: raw[:, ::-1] if name in by_head else raw for name, raw in values.items()}
    return _compared(_with(case, turned), again, found["out"], lambda got: got[:, :, ::-1], "its heads reversed")


def _other_form(
    op: Op, case: Case, values: Mapping[str, Raw], found: Mapping[str, Comparison], again: Again
) -> str | None:
    form = FORMS[(FORMS.index(str(case.params["form"])) + 1) % len(FORMS)]
    twin = replace(_with(case, values), params={**case.params, "form": form})
    return _compared(twin, again, found["out"], lambda got: got, f"the form {form}")


def _with(case: Case, values: Mapping[str, Raw]) -> Case:
    """A packed case with these elements, and of their shapes."""
    inputs = {name: Layout.contiguous(case.inputs[name].dtype, raw.shape) for name, raw in values.items()}
    batch, out = values["q_nope"].shape[0], case.outputs["out"]
    outputs = {"out": Layout.contiguous(out.dtype, (batch, *out.shape[1:]))}
    return replace(case, inputs=inputs, outputs=outputs).with_data(data_of(dict(values)))


def _compared(twin: Case, again: Again, found: Comparison, part: Callable[[F64], F64], what: str) -> str | None:
    """What is wrong between a run and its twin: each may be off by its bound, and no more."""
    others = again(twin)
    if others is None:
        return None
    other = others["out"]
    got, bound = part(found.got), other.bound + part(found.bound)
    apart = ~((np.abs(other.got - got) <= bound) | np.isinf(bound) | np.isnan(got))
    if not apart.any():
        return None
    return (
        f"{int(np.count_nonzero(apart))} of {apart.size} elements differ from those of {what} by more than both bounds"
    )


RELATIONS = (
    Metamorphic(
        "sequence_isolation",
        "a sequence gives the same alone and in company",
        Kind.SEQUENCES_MIXED,
        _sequence_isolation,
    ),
    Metamorphic("head_permutation", "heads do not know each other", Kind.HEADS_MIXED, _head_permutation),
    Metamorphic("form", "two parts, concatenated rows and flash are one function", Kind.FORMS_DIFFER, _other_form),
)
