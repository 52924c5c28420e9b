"""A watched node as a case of the harness: the same op on the same bytes, judged and replayed without the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from opconform.backends.ggml.limits import CONSTRUCTORS
from opconform.backends.ggml.llama.records import Node, Tensor
from opconform.backends.ggml.ops import OPS
from opconform.backends.ggml.rows import Row
from opconform.harness.model.buffers import ALIGNMENT
from opconform.harness.model.case import Case, Param
from opconform.harness.model.dtypes import DTYPES, QUANTISED, Raw
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops

OUT = "out"
_LARGE = 1e30  #: the largest number that a case has for a parameter
_UNLIMITED: Mapping[str, Sequence[str]] = {"clamp": ("min", "max")}  #: parameters by op that are limits


class NotACase(Exception):
    """A node that cannot be a case; the text says why."""


@dataclass(frozen=True)
class Captured:
    """A node as a case, with the exact bytes of its inputs; the elements of its outputs as the device left them (C
    order, outermost dimension first); and in words what of the node's memory the case does not keep."""

    case: Case
    values: Mapping[str, Raw]
    outputs: Mapping[str, Raw]
    lost: tuple[str, ...] = ()

    @property
    def output(self) -> Raw:
        """The elements of the first output, and most often the only one."""
        return next(iter(self.outputs.values()))


def captured(node: Node) -> Captured:
    """`node` as a case of the op that ggml's rows (ops.py) name. Raises `NotACase`."""
    row = row_of(node)
    return _with_bytes(node, row.tensors, *_laid_out(node, row))


def case_of(node: Node) -> tuple[Case, tuple[str, ...]]:
    """The same of a node whose bytes nobody has read: a case of small integers, and what it does not keep of the
    node's memory. Raises `NotACase`."""
    return _laid_out(node, row_of(node))


def _laid_out(node: Node, row: Row) -> tuple[Case, tuple[str, ...]]:
    words = _words(node)
    if not row.fits(words):
        raise NotACase(f"{node.what} has parameters that a case of {row.op} has none of")
    try:
        params = {**_implied(row), **_shaped(node, row), **row.read(words)}
    except ValueError as error:
        raise NotACase(str(error)) from None
    check_row(row)
    op = ops()[row.op]
    if row.results:
        case, lost = _packed(node, row, params)
    elif lacks := op.params.keys() - params.keys():
        raise NotACase(f"a node of {node.what} does not keep {', '.join(sorted(lacks))}")
    else:
        case, lost = laid_out(node, row.op, _finite(node, row.op, params), row.tensors)
    like = Layout.contiguous(case.dtype, case.outputs[OUT].shape)
    inputs = {**case.inputs, **{name: like for name, given in row.shaped.items() if given == OUT}}
    return replace(case, inputs={name: inputs[name] for name in op.inputs if name in inputs}), lost


def _with_bytes(node: Node, arguments: Sequence[str], case: Case, lost: tuple[str, ...]) -> Captured:
    values: dict[str, Raw] = {}
    for name, layout in case.inputs.items():
        source = node.source(arguments.index(name)) if name in arguments else None
        values[name] = _zeros(layout) if source is None else _elements(source, name).reshape(layout.blocks)
    flat, outputs = _elements(node, OUT).reshape(-1), {}
    for name, layout in case.outputs.items():
        size = math.prod(layout.blocks)
        outputs[name], flat = flat[:size].reshape(layout.blocks), flat[size:]
    return Captured(case.with_data({name: raw.tobytes() for name, raw in values.items()}), values, outputs, lost)


def _zeros(layout: Layout) -> Raw:
    """What stands for the elements of an argument of which only the shape counts: ggml keeps no source for it."""
    raw: Raw = np.zeros(layout.blocks, layout.type.raw)
    return raw


def row_of(node: Node) -> Row:
    """ggml's row of a node. Some names have two: gated units of one tensor and of two, copies of numbers and of blocks,
    padding with zeros and with what stands at the other end. Raises `NotACase`."""
    rows = [row for row in OPS.values() if row.node == node.what and row.op in ops()]
    if not rows:
        raise NotACase(f"Opconform has no reference of {node.what} yet")
    words, given = _words(node), len(node.sources)
    blocks = bool({tensor.type for tensor in (node, *node.sources[:1])} & QUANTISED.keys())
    found = (
        row
        for row in reversed(rows)
        if row.fits(words) and len(row.tensors) == given and (row.op == "cpy_blocks") == blocks
    )
    return rows[0] if len(rows) == 1 else next(found, rows[0])


def check_row(row: Row) -> None:
    """Raises `NotACase` for an op whose cases hold several sources of the node in one argument."""
    if apart := [name for name in row.tensors if name not in (*ops()[row.op].inputs, OUT)]:
        raise NotACase(f"the node has sources of their own for {', '.join(apart)}; a case of {row.op} has not")


def _words(node: Node) -> list[int]:
    found: list[int] = memoryview(node.params).cast("i").tolist()
    return found


def _shaped(node: Node, row: Row) -> dict[str, Param]:
    """The parameters that the output's sizes give."""
    members = ((name, given.partition(".")[2]) for name, given in row.shaped.items())
    return {name: node.ne[int(member[2:])] for name, member in members if member}


def _finite(node: Node, op: str, params: Mapping[str, Param]) -> dict[str, Param]:
    """The parameters with a large number in place of a limit at infinity, where the node reads no larger one: so its
    result is the same, and other APIs take the case."""
    found = dict(params)
    for name in _UNLIMITED.get(op, ()):
        value = found.get(name)
        if isinstance(value, float) and math.isinf(value) and _largest(node) <= _LARGE:
            found[name] = math.copysign(_LARGE, value)
    return found


def _largest(node: Node) -> float:
    """The largest magnitude that a node reads; infinite where that is not known, 0 where nobody has read it: drawn
    values stand for it."""
    source = node.source(0)
    if source is None or source.type not in DTYPES:
        return math.inf
    if source.data is None:
        return 0.0
    layout = _layout(source, source.memory.start, source.name)
    with np.errstate(invalid="ignore"):
        found = float(np.max(np.abs(layout.type.decode(layout.array(source.data))), initial=0.0))
    return math.inf if math.isnan(found) else found


def _implied(row: Row) -> dict[str, Param]:
    """The parameters of a case that ggml's op has no choice in: those that its constructor takes one value of."""
    return {
        limit.subject: limit.allowed[0]
        for limit in CONSTRUCTORS
        if limit.op == row.op and isinstance(limit.allowed, tuple) and len(limit.allowed) == 1
        if limit.subject in ops()[row.op].params
    }


def capture(node: Node, op: str, params: Mapping[str, Param], arguments: Sequence[str]) -> Captured:
    """`node` as a case of `op`, whose sources are these arguments in ggml's order. An argument `out` is what the op
    writes into, which is its output.

    Raises `NotACase` where bytes were not read, or where a case cannot hold them.
    """
    return _with_bytes(node, arguments, *laid_out(node, op, params, arguments))


def laid_out(
    node: Node, op: str, params: Mapping[str, Param], arguments: Sequence[str]
) -> tuple[Case, tuple[str, ...]]:
    """The same without the bytes, and what the case does not keep of the node's memory."""
    sources: dict[str, Tensor] = {}
    for place, name in enumerate(arguments):
        source = node.source(place)
        if source is not None and name != OUT:
            sources[name] = source
    lost: list[str] = []
    shares = _shares(sources, lost)
    inputs = {name: _layout(source, _start(name, sources, shares), name) for name, source in sources.items()}
    inplace = _inplace(node, sources, shares, lost)
    output = inputs[inplace] if inplace else _layout(node, _aligned_start(node), OUT)
    case = Case(op, dict(params), inputs, {OUT: output}, recipe="small_int", inplace=inplace, shares=shares)
    return case, tuple(lost)


def _packed(node: Node, row: Row, params: Mapping[str, Param]) -> tuple[Case, tuple[str, ...]]:
    """A node with several outputs in one tensor: that of a recurrence, and the states behind it."""
    place = {name: node.source(number) for number, name in enumerate(row.tensors)}
    if lacks := [name for name, tensor in place.items() if tensor is None]:
        raise NotACase(f"{node.what} has no source for {', '.join(lacks)}")
    if row.op not in _RESULTS:
        raise NotACase(f"{node.what} packs {', '.join(row.results)} into one tensor")
    sizes = {name: tensor.ne[::-1] for name, tensor in place.items() if tensor is not None}
    shapes = _RESULTS[row.op](sizes, params)
    own: dict[str, Param] = {}
    if row.op == "gated_delta_net":  # its constructor has no choice in the rest of the case's parameters
        own = {"heads": "tiled", "state_layout": "vk", "gate": "log", "l2norm": False, "eps": 1e-6}
        own |= {"scale": 1 / math.sqrt(sizes["v"][-1]), "snapshots": int(params.get("snapshots", 1))}
    case, lost = laid_out(node, row.op, {**params, **own}, row.tensors)
    inputs = dict(case.inputs)
    if row.op == "gated_delta_net":
        inputs["state"] = _state(inputs["state"], shapes["state_out"], sizes["v"][0], node)
    size = math.prod(node.ne)
    if size != sum(map(math.prod, shapes.values())):
        raise NotACase(f"{node.what} has {size} elements of output, not those of {', '.join(row.results)}")
    layouts = {name: Layout.contiguous(node.type, shape) for name, shape in shapes.items()}
    return replace(case, inputs=inputs, outputs=layouts, inplace=None), lost


def _state(given: Layout, result: tuple[int, ...], sequences: int, node: Node) -> Layout:
    """The delta rule's state in the sizes of a case: a graph may have any."""
    state = (sequences, *result[1:])
    if not given.is_contiguous or given.size != math.prod(state):
        raise NotACase(f"the state of {node.what} is not packed, or has not the sizes of that in its output")
    return Layout.contiguous(given.dtype, state, given.offset)


Shapes = Mapping[str, tuple[int, ...]]


def _delta_results(sizes: Shapes, params: Mapping[str, Param]) -> dict[str, tuple[int, ...]]:
    sequences, _, heads, size = sizes["v"]
    return {"out": sizes["v"], "state_out": (int(params.get("snapshots", 1)) * sequences, heads, size, size)}


def _walk_results(sizes: Shapes, params: Mapping[str, Param]) -> dict[str, tuple[int, ...]]:
    _, tokens, heads, size = sizes["k"]
    return {"out": (1, 1, tokens, heads * size), "state_out": sizes["state"]}


def _scan_results(sizes: Shapes, params: Mapping[str, Param]) -> dict[str, tuple[int, ...]]:
    return {"out": sizes["x"], "state_out": (sizes["x"][0], *sizes["state"][1:])}


#: The shapes of the outputs that an op packs, by those of its sources (outermost first).
_RESULTS: Mapping[str, Callable[[Shapes, Mapping[str, Param]], dict[str, tuple[int, ...]]]] = {
    "gated_delta_net": _delta_results,
    "rwkv_wkv6": _walk_results,
    "rwkv_wkv7": _walk_results,
    "gated_linear_attn": _walk_results,
    "ssm_scan": _scan_results,
}


def packed_ne(case: Case) -> tuple[int, ...]:
    """The sizes, innermost first, of the tensor that a node packs the outputs of `case` into: a row holds what the op
    gives for a token, heads side by side; that of ssm_scan is a single row."""
    out, size = case.outputs[OUT], sum(layout.size for layout in case.outputs.values())
    rows = {"gated_delta_net": out.shape[-1] * out.shape[-2], "ssm_scan": size}
    row = rows.get(case.op, out.shape[-1])
    return row, size // max(row, 1), 1, 1


def _layout(tensor: Tensor, start: int, name: str) -> Layout:
    """A tensor's layout in memory that starts at byte `start` of its buffer."""
    if tensor.type not in DTYPES:
        raise NotACase(f"{name} is {tensor.type}; cases have {', '.join(DTYPES)}")
    layout = Layout(tensor.type, tensor.ne[::-1], tensor.nb[::-1], tensor.memory.start - start)
    itemsize = layout.type.itemsize
    if any(step % itemsize for step in (*layout.strides, layout.offset)):
        raise NotACase(f"{name} has strides or an offset that are no multiples of {itemsize} bytes")
    return layout


def _elements(tensor: Tensor, name: str) -> Raw:
    if tensor.data is None:
        raise NotACase(f"the bytes of {name} were not read")
    layout = _layout(tensor, tensor.memory.start, name)
    raw: Raw = layout.array(tensor.data).copy()
    return raw


def _shares(sources: Mapping[str, Tensor], lost: list[str]) -> dict[str, str]:
    """Which arguments lie in the memory of another: they are parts of one tensor, with their elements apart."""
    shares: dict[str, str] = {}
    names = list(sources)
    for number, name in enumerate(names):
        for owner in names[:number]:
            one, other = sources[owner], sources[name]
            if owner in shares or _root(one) != _root(other):
                continue
            if one.type != other.type or (one.memory.overlaps(other.memory) and not _interleaved(one, other)):
                lost.append(f"{name} lies in the memory of {owner}")
            else:
                shares[name] = owner
            break
    return shares


def _root(tensor: Tensor) -> tuple[int, str]:
    """What tells the memory of a tensor from that of others: its buffer and the tensor that it is a view of."""
    return tensor.memory.buffer, tensor.view_of or tensor.name


def _interleaved(one: Tensor, other: Tensor) -> bool:
    """Whether the elements of two overlapping tensors are apart, as those of q and k in one row of a projection: they
    have one way of stepping from row to row, and neither's row reaches into the other's."""
    if one.nb[1:] != other.nb[1:] or one.nb[0] != other.nb[0]:
        return False
    first, second = sorted((one, other), key=lambda tensor: tensor.memory.start)
    apart, row = second.memory.start - first.memory.start, first.nb[1]
    return first.ne[0] * first.nb[0] <= apart and apart + second.ne[0] * second.nb[0] <= row


def _start(name: str, sources: Mapping[str, Tensor], shares: Mapping[str, str]) -> int:
    """The byte of the buffer that the memory of an argument starts at. An offset in whole blocks of a quantised type is
    hardly ever aligned: its memory starts with it."""
    owner = shares.get(name, name)
    together = [owner, *(other for other, at in shares.items() if at == owner)]
    first, kind = min((sources[each] for each in together), key=_first_byte), DTYPES.get(sources[name].type)
    return first.memory.start if kind is not None and kind.block > 1 else _aligned_start(first)


def _first_byte(tensor: Tensor) -> int:
    return tensor.memory.start


def _aligned_start(tensor: Tensor) -> int:
    """Where the memory of a tensor may start so that its offset stays as aligned as it is in the tensor that it is a
    view of. Where that one starts is no trait of the case: a device gives memory where a tensor may start."""
    return tensor.memory.start - tensor.offset % ALIGNMENT


def _inplace(node: Node, sources: Mapping[str, Tensor], shares: Mapping[str, str], lost: list[str]) -> str | None:
    """The argument that the output is written over, element for element."""
    found = None
    for name, source in sources.items():
        if not node.memory.overlaps(source.memory):
            continue
        same = (source.memory, source.ne, source.nb, source.type) == (node.memory, node.ne, node.nb, node.type)
        if same and found is None and name not in shares and name not in shares.values():
            found = name
        else:
            lost.append(f"the output lies over {name}")
    return found
