"""The MLA kernels: their intermediate results, sizes, and launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opconform.backends.kernels.fields import Number
from opconform.backends.kernels.launch import Launch, Shapes
from opconform.harness.model.case import Case


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


def own(case: Case) -> Mapping[str, Number | Sequence[Number]]:
    """The sizes, and scale and k_scale as one factor."""
    return {**vars(Sizes(case)), "scale": float(case.params["scale"]) * float(case.params["k_scale"])}


def launches(case: Case) -> list[Launch]:
    """The launches."""
    n, form = Sizes(case), case.params["form"]
    width, scores = n.d_c + n.d_r, n.all_queries * n.rows
    found: list[Launch] = []

    def launch(
        step: str, items: int, *buffers: str, row: int | None = None, steps: int | None = None, loop: int = 0
    ) -> None:
        found.append(Launch(f"mla_absorbed_{step}", items, buffers, row, steps, loop))

    launch("query", n.all_queries * n.d_c, "q_nope", "w_uk", "q_absorbed", loop=n.d_n)
    if form != "two_part":
        launch("join_queries", n.all_queries * width, "q_absorbed", "q_pe", "query")
        launch("join_rows", n.sequences * n.rows * width, "c_kv", "k_pe", "row")
    if form == "flash":
        launch("flash", n.all_queries, "query", "row", "mask", "top", "total", "context", row=n.kv_len)
    else:
        if form == "two_part":
            parts = ("q_absorbed", "q_pe", "c_kv", "k_pe", "mask", "scores")
            launch("scores_two_part", scores, *parts, loop=width)
        else:
            launch("scores_concat", scores, "query", "row", "mask", "scores", loop=width)
        launch("softmax", n.all_queries, "scores", "top", "total", "weights", row=n.rows)
        launch("context", n.all_queries * n.d_c, "weights", "c_kv", "context", steps=n.kv_len, loop=1)
    launch("out", n.all_queries * n.d_v, "context", "w_uv", "out", loop=n.d_c)
    return found
