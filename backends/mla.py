"""What the MLA kernels of all APIs get alike: their intermediate results, sizes and places."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from opconform.backends.fields import bits
from opconform.harness.model.case import Case

TYPES = ("f32", "f16", "bf16", "none")  #: the kernels' numbers for the types of the cache and of the mask
ARGUMENTS = ("q_nope", "q_pe", "c_kv", "k_pe", "w_uk", "w_uv", "mask", "out")

Shapes = Mapping[str, tuple[int, ...]]
Place = Callable[[str], list[int]]  #: of an argument: its first byte, then four byte strides


class Sizes:
    """The sizes of a case by name."""

    def __init__(self, case: Case) -> None:
        self.sequences, self.heads, self.queries, self.d_n = case.inputs["q_nope"].shape
        _, _, self.rows, self.d_c = case.inputs["c_kv"].shape
        self.d_r, self.d_v = case.inputs["k_pe"].shape[3], case.inputs["w_uv"].shape[3]
        self.kv_len = int(case.params["kv_len"])

    @property
    def all_queries(self) -> int:
        """Queries of all heads and sequences."""
        return self.sequences * self.heads * self.queries


def scratch(case: Case) -> Shapes:
    """The intermediate results. The concatenated forms have query, (q_absorbed | q_pe), and row, (c_kv | k_pe)."""
    n = Sizes(case)
    queries = (n.sequences, n.heads, n.queries)
    found: dict[str, tuple[int, ...]] = {"q_absorbed": (*queries, n.d_c)}
    if case.params["form"] != "two_part":
        found |= {"query": (*queries, n.d_c + n.d_r), "row": (n.sequences, 1, n.rows, n.d_c + n.d_r)}
    if case.params["form"] != "flash":
        found |= {"scores": (*queries, n.rows), "weights": (*queries, n.rows)}
    found |= {"top": (*queries, 1), "total": (*queries, 1)}  # of each softmax: its highest score, its denominator
    return {**found, "context": (*queries, n.d_c)}


def fields(case: Case, place: Place) -> list[int]:
    """The fields that every kernel gets. scale and k_scale are one factor."""
    n, params = Sizes(case), case.params
    found = [n.sequences, n.heads, n.queries, n.rows, n.kv_len, n.d_n, n.d_r, n.d_c, n.d_v]
    found += [int(params["causal"]), TYPES.index(case.inputs["c_kv"].dtype)]
    found += [TYPES.index(case.inputs["mask"].dtype if "mask" in case.inputs else "none")]
    found += [bits(float(params["scale"]) * float(params["k_scale"])), bits(float(params["v_scale"]))]
    for name in ARGUMENTS:
        found += place(name) if name in case.layouts else [0] * 5
    return found
