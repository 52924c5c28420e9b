"""Pieces on ggml: the calls of a few nodes, one on the result of another, computed in one graph.

Such a graph is that of a model: what is between stands where ggml's allocator puts it, and is no output of the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from opconform.backends.ggml.binding import Tensor
from opconform.backends.ggml.nodes import Build, Nodes
from opconform.backends.ggml.ops import OPS
from opconform.backends.ggml.rows import Row
from opconform.harness.model.layouts import LayoutClass
from opconform.harness.model.limits import Limit

_RMS_NORM_MUL = ("normed = ggml_rms_norm(x, eps)", "weighed = ggml_mul(normed, w)")

#: Those that begin with an op of another family, whose limits they have as well.
BEHIND: Mapping[str, tuple[str, ...]] = {
    "mul_mat_add": ("product = ggml_mul_mat(a, b)", "biased = ggml_add(product, bias)"),
    "mul_mat_add_add": (
        "product = ggml_mul_mat(a, b)",
        "biased = ggml_add(product, bias)",
        "added = ggml_add(biased, residual)",
    ),
    "mul_mat_mul": ("product = ggml_mul_mat(a, b)", "scaled = ggml_mul(product, s)"),
    "mul_mat_id_mul": ("product = ggml_mul_mat_id(a, b, ids)", "weighed = ggml_mul(product, s)"),
    "mul_mat_id_add_id": ("product = ggml_mul_mat_id(a, b, ids)", "biased = ggml_add_id(product, bias, ids)"),
    "mul_mat_id_add_id_mul": (
        "product = ggml_mul_mat_id(a, b, ids)",
        "biased = ggml_add_id(product, bias, ids)",
        "weighed = ggml_mul(biased, s)",
    ),
    **{
        f"mul_mat_{gate}": (
            "gate = ggml_mul_mat(a, b)",
            "up = ggml_mul_mat(c, b)",
            f"gated = ggml_glu_split(gate, up, GGML_GLU_OP_{gate.upper()})",
        )
        for gate in ("swiglu", "geglu")
    },
    "mul_mat_add_swiglu": (
        "gate = ggml_mul_mat(a, b)",
        "biased_gate = ggml_add(gate, bias)",
        "up = ggml_mul_mat(c, b)",
        "biased_up = ggml_add(up, bias_c)",
        "gated = ggml_glu_split(biased_gate, biased_up, GGML_GLU_OP_SWIGLU)",
    ),
    "mul_mat_id_swiglu": (
        "gate = ggml_mul_mat_id(a, b, ids)",
        "up = ggml_mul_mat_id(c, b, ids)",
        "gated = ggml_glu_split(gate, up, GGML_GLU_OP_SWIGLU)",
    ),
    "mul_mat_id_add_id_swiglu_oai": (
        "gate = ggml_mul_mat_id(a, b, ids)",
        "biased_gate = ggml_add_id(gate, bias, ids)",
        "up = ggml_mul_mat_id(c, b, ids)",
        "biased_up = ggml_add_id(up, bias_c, ids)",
        "gated = ggml_swiglu_oai(biased_gate, biased_up, 1.702, 7.0)",
    ),
    "group_norm_mul_add": (
        "normed = ggml_group_norm(x, n_groups, eps)",
        "weighed = ggml_mul(normed, w)",
        "added = ggml_add(weighed, b)",
    ),
    "ssm_conv_silu": ("convolved = ggml_ssm_conv(x, c)", "active = ggml_silu(convolved)"),
    "ssm_conv_add_silu": (
        "convolved = ggml_ssm_conv(x, c)",
        "biased = ggml_add(convolved, bias)",
        "active = ggml_silu(biased)",
    ),
}

_ROPE_OF_WEIGHED = OPS["rope"].call.replace("(x,", "(weighed,", 1)

#: The calls of each piece, as `Row` reads them, with the names of results.
CHAINS: Mapping[str, tuple[str, ...]] = {
    "rms_norm_mul": _RMS_NORM_MUL,
    "rms_norm_mul_add": (*_RMS_NORM_MUL, "added = ggml_add(weighed, b)"),
    "rms_norm_mul_add_mul": (*_RMS_NORM_MUL, "added = ggml_add(weighed, b)", "scaled = ggml_mul(added, s)"),
    "add_rms_norm_mul": (
        "added = ggml_add(a, b)",
        "normed = ggml_rms_norm(added, eps)",
        "weighed = ggml_mul(normed, w)",
    ),
    "norm_mul_add": (
        "normed = ggml_norm(x, eps)",
        "weighed = ggml_mul(normed, w)",
        "added = ggml_add(weighed, b)",
    ),
    "rms_norm_mul_rope": (*_RMS_NORM_MUL, f"turned = {_ROPE_OF_WEIGHED}"),
    "softcap": ("scaled = ggml_scale(x, down)", "bent = ggml_tanh(scaled)", "grown = ggml_scale(bent, up)"),
    **{
        f"{name}_mul": (f"active = ggml_{name}(x)", "gated = ggml_mul(active, y)")
        for name in ("silu", "sigmoid", "softplus", "gelu")
    },
    "relu_sqr": ("active = ggml_relu(x)", "squared = ggml_sqr(active)"),
    "snake": (
        "turned = ggml_mul(x, a)",
        "waved = ggml_sin(turned)",
        "squared = ggml_sqr(waved)",
        "scaled = ggml_mul(squared, b)",
        "added = ggml_add(x, scaled)",
    ),
    **BEHIND,
    "sqr_sum_rows": ("squared = ggml_sqr(x)", "summed = ggml_sum_rows(squared)"),
}


def _read(piece: str, text: str) -> tuple[str, Row]:
    """The name of a result, and the call that makes it."""
    name, _, call = text.partition(" = ")
    return name, Row(piece, call)


Steps = Sequence[tuple[str, Row]]
_STEPS: Mapping[str, Steps] = {piece: [_read(piece, text) for text in chain] for piece, chain in CHAINS.items()}
_MOST = {"adds": tuple("abcdefghijkl"), "muls": tuple("abcdefghij")}


#: Those of as many nodes as a case has arguments, with the function of each node and the name of the first result.
_LONG: Mapping[str, tuple[str, str]] = {"adds": ("ggml_add", "added"), "muls": ("ggml_mul", "multiplied")}


@cache
def _long(op: str, given: tuple[str, ...]) -> Steps:
    """A sum of so many: "added" is that of the first two, "added2" that of three, and so on; or a product."""
    (function, first), steps, left = _LONG[op], list[tuple[str, Row]](), given[0]
    for number, name in enumerate(given[1:], 1):
        result = f"{first}{number}" if number > 1 else first
        steps.append(_read(op, f"{result} = {function}({left}, {name})"))
        left = result
    return steps


def steps_of(op: str, inputs: Iterable[str]) -> Steps:
    """The calls of a piece with these arguments, in order, each with the name of its result."""
    return _STEPS[op] if op in _STEPS else _long(op, tuple(inputs))


def build(nodes: Nodes) -> None:
    """The nodes of a piece, behind copies of its arguments where the graph makes those itself.

    What is kept is copied to its output behind the last result: the nodes of the piece stand side by side, and only the
    count of what reads a result says that it is needed.
    """
    case = nodes.case
    results = nodes.begin_with(
        [name for name, its in case.inputs.items() if case.params["made"] and its.dtype == "f32"]
    )
    nodes.write("out", computed(nodes, steps_of(case.op, sorted(case.inputs)), results))
    if "mid" in case.outputs:
        nodes.write("mid", results[str(case.params["kept"])])


def computed(nodes: Nodes, steps: Steps, results: dict[str, Tensor]) -> Tensor:
    """The last result of these calls; all of them are put into `results`, which holds the arguments."""
    for result, row in steps:
        nodes.site.library.c.require(row.symbol)
        given = row.values(nodes.case, results.__getitem__, nodes.null)
        if row is steps[-1][1] and nodes.case.params.get("turned"):
            given = given[::-1]
        results[result] = nodes.ask(nodes.call(row.symbol, *given, name=result), row.symbol.removeprefix("ggml_"))
    return results[steps[-1][0]]


#: Which node of a piece the traits of its cases are about, where they are about one.
_ABOUT: Mapping[str, int] = {**dict.fromkeys(BEHIND, 0), "rms_norm_mul_rope": -1}
BUILDS: Mapping[str, Build] = dict.fromkeys((*CHAINS, *_LONG), build)
_WHOLE = ("aligned", "grid", "recipe")  #: subjects of limits that are about a case, not about one op in it
_IN_PLACE = ("inplace", "loose_inplace")  #: subjects that say nothing of a piece, whose nodes have tensors of their own
_TURNED = ("ggml_add", "ggml_mul")  #: a piece may give the last of them its operands the other way round


def taken_over(limit: Limit, piece: str) -> Limit:
    """A node's limit as the piece's own. A fault that a known case of the node's op pins is only kept away from."""
    found = replace(limit, op=piece)
    return replace(found, kind="kernel", pinned=None) if limit.pinned else found


def inherited(limits: Iterable[Limit]) -> Iterator[Limit]:
    """What pieces have from the ops of their nodes: the limits on the layouts of what a node reads of the case, and on
    a case as a whole. Faults that known cases of those ops pin are only kept away from; not so where a case of the
    piece itself pins the same, which a limit that is no bug would keep from being run."""
    known: dict[str, list[Limit]] = {}
    pinned: set[tuple[str, str]] = set()
    for limit in limits:
        known.setdefault(limit.op, []).append(limit)
        if limit.pinned:
            pinned.add((limit.op, limit.subject))
    ops = {row.symbol: row.op for row in OPS.values()}
    for piece in BUILDS:
        steps = steps_of(piece, _MOST.get(piece, ()))
        made = {name for name, _ in steps}
        for _, step in steps:
            op = ops.get(step.symbol, step.symbol.removeprefix("ggml_"))
            theirs = OPS[op].tensors
            is_its_own = piece in _ABOUT and step is steps[_ABOUT[piece]][1]
            may_be_turned = step.symbol in _TURNED and (step is steps[-1][1] or piece in _LONG)
            for limit in known.get(op, ()):
                is_layout = isinstance(limit.allowed, LayoutClass)
                found = taken_over(limit, piece)
                has_case = bool(limit.pinned) and (piece, limit.subject) in pinned
                is_about_it = is_its_own and not is_layout and limit.subject not in _IN_PLACE
                if (limit.subject in _WHOLE or is_about_it) and not has_case:
                    yield found
                if is_layout and limit.subject in theirs:
                    for its, name in zip(theirs, step.tensors):
                        if name not in made and (may_be_turned or limit.subject == its):
                            yield replace(found, subject=name)
