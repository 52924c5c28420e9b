"""Two other ways to judge the same kernels: the fixed cases of ggml's test-backend-ops, and five inputs of one shape.

`upstream`: the sizes, views and ranges of values that test-backend-ops gives each op (ggml, tests/test-backend-ops.cpp
at d99724f, August 2026), judged as it does: NMSE over the whole output, at most 1e-7, and memory beside the tensors
unharmed. Outputs of more than `MOST_ELEMENTS`, and types and forms that the kernels do not have, are left out. Where
upstream has no op of that name its cases of the next one are taken: GATED_DELTA_NET's for the chunked form, and
FLASH_ATTN_EXT's with K rows of 576 for absorbed attention (a query of 128 in front of it, and values of 128 behind).

`five`: what a kernel's own test mostly is: one aligned shape, packed, five times standard normal values, and
allclose with atol = rtol = 1e-2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from opconform.harness.judge.oracle import expectation
from opconform.harness.model.buffers import Buffers, Plan
from opconform.harness.model.case import Case, Param
from opconform.harness.model.dtypes import F64
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import EXACT
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Backend
from opconform.harness.run.worker import answer

MOST_NMSE = 1e-7
MOST_ELEMENTS = 1 << 22  #: of an output: ADD and MUL have four cases that are larger, DIAG one, CPY one
TOLERANCE = 1e-2
Draw = Callable[[np.random.Generator, str, tuple[int, ...]], F64]


def _uniform(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> F64:
    return rng.uniform(-1, 1, shape)


def _normal(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> F64:
    return rng.standard_normal(shape)


@dataclass(frozen=True)
class Peer:
    """A case with fixed layouts, how its values are drawn, and its number, which seeds them."""

    case: Case
    draw: Draw = field(default=_uniform, compare=False)
    number: int = 0
    allclose: bool = False  #: else NMSE, and the memory around the tensors

    def complaint(self, backend: Backend) -> str:
        """What is found wrong with what a backend computes; "" where nothing is."""
        case, op = self.case, ops()[self.case.op]
        rng = np.random.default_rng(self.number)
        values = {}
        for name, layout in case.inputs.items():
            drawn = self.draw(rng, name, layout.shape)
            values[name] = np.ascontiguousarray(layout.type.encode(drawn))
        plan = Plan.of(case)
        memory = rng.uniform(-1, 1, plan.size // 4).astype(np.float32).view(np.uint8)
        buffers = Buffers(case, memory, plan)
        for name in case.inputs:
            buffers.raw(name)[...] = values[name]
        before = memory.copy()
        result = answer(backend, case, memory)
        if result.unsupported is not None:
            raise LookupError(f"{case} is not supported: {result.unsupported}")
        if result.error is not None:
            return result.error.splitlines()[-1]
        expected = expectation(case, op, values, EXACT)
        for name, layout in case.outputs.items():
            want = expected.value if name == op.outputs[0] else expected.others[name].value
            got = layout.type.decode(np.array(buffers.raw(name)))
            wrong = self._differs(got, want)
            if wrong:
                return f"{name}: {wrong}"
            buffers.raw(name)[...] = Buffers(case, before, plan).raw(name)
        return "" if self.allclose or np.array_equal(before, memory) else "memory beside the output has changed"

    def _differs(self, got: F64, want: F64) -> str:
        with np.errstate(all="ignore"):
            if self.allclose:
                return "" if np.allclose(got, want, TOLERANCE, TOLERANCE, equal_nan=True) else "not allclose"
            if (np.isnan(got) | np.isnan(want)).any() or (np.isinf(got) & (got != want)).any():
                return "NaN, or an infinity"
            nmse = float(np.sum((got - want) ** 2) / np.sum(want**2))
            return f"NMSE {nmse:.1e}" if nmse > MOST_NMSE else ""  # NaN, of infinities that match, passes


# ---- layouts as ggml makes them (innermost size first) ---------------------------------------------------------------


def new(*ne: int, dtype: str = "f32") -> Layout:
    """ggml_new_tensor."""
    return Layout.contiguous(dtype, (*ne, 1, 1, 1)[:4][::-1])


def permute(layout: Layout, *axes: int) -> Layout:
    """ggml_permute: axis i goes to place axes[i]."""
    ne, nb = [0] * 4, [0] * 4
    for axis, place in enumerate(axes):
        ne[place], nb[place] = layout.ne[axis], layout.nb[axis]
    return replace(layout, shape=tuple(ne[::-1]), strides=tuple(nb[::-1]))


def view(layout: Layout, *ne: int, offset: int = 0, nb: Sequence[int] | None = None) -> Layout:
    """ggml_view_4d, with the strides of the layout unless others are given."""
    strides = tuple(nb)[::-1] if nb else layout.strides
    return Layout(layout.dtype, ne[::-1], strides, layout.offset + offset)


def _case(
    op: str, params: Mapping[str, Param], inputs: Mapping[str, Layout], inplace: str | None = None, **outputs: Layout
) -> Case:
    return Case(op, params, inputs, outputs, inplace=inplace)


# ---- upstream's cases ------------------------------------------------------------------------------------------------


def _acc() -> Iterator[Case]:
    for ne_a, ne_b, padded in (
        ((256, 17, 1, 1), (256, 16, 1, 1), 0),
        ((256, 17, 2, 3), (256, 16, 2, 3), 0),
        ((256, 17, 2, 3), (128, 16, 2, 3), 0),
        ((256, 17, 2, 3), (256, 16, 2, 3), 1),
        ((256, 17, 2, 3), (128, 16, 2, 3), 2),
        ((256, 17, 2, 3), (64, 16, 2, 3), 3),
    ):
        a, b = new(*ne_a), new(*ne_b)
        if padded:
            whole = new(*(size + (axis == padded) for axis, size in enumerate(ne_b)))
            b = view(whole, *ne_b, offset=whole.nb[1])
        params = {"nb1": a.nb[1], "nb2": a.nb[2], "nb3": a.nb[3], "offset": 0}
        yield _case("acc", params, {"a": a, "b": b}, out=a)


def _set() -> Iterator[Case]:
    for dtype, dim, inplace in itertools.product(("f32", "i32"), (1, 2, 3), (False, True)):
        ne = (6, 5, 4, 3)
        b = new(*ne, dtype=dtype)
        a = new(*(size * 2 if axis < dim else size for axis, size in enumerate(ne)), dtype=dtype)
        offset = sum((a.ne[axis] - ne[axis]) // 2 * a.nb[axis] for axis in range(dim))
        params = {"nb1": b.nb[1], "nb2": b.nb[2], "nb3": b.nb[3], "offset": offset}
        yield _case("set", params, {"a": a, "b": b}, "a" if inplace else None, out=a)


def _cumsum() -> Iterator[Case]:
    lengths = [(n, 5, 4, 3) for n in (10, 127, 128, 255, 256, 511, 512, 1023, 1024, 2047, 2048)]
    for ne in (*lengths, (128, 128, 4, 4), (20481, 4, 1, 1), (201 * 1204, 1, 1, 1), (312 * 1205, 1, 1, 1)):
        x = new(*ne)
        yield _case("cumsum", {"axis": 0, "exclusive": False, "reverse": False}, {"x": x}, out=x)


def _solve_tri() -> Iterator[Case]:
    params = {"left": True, "lower": True, "unit": False}
    for n, k, n2, n3 in (
        *((10, 3, 4, 3), (11, 5, 1, 1), (17, 9, 2, 4), (30, 8, 7, 1), (42, 10, 5, 2), (64, 10, 2, 2)),
        *((64, 64, 2, 2), (79, 417, 5, 3), (80, 80, 2, 8), (80, 79, 2, 8), (80, 81, 2, 8), (84, 32, 4, 4)),
        *((95, 40, 8, 8), (128, 32, 4, 2), (100, 41, 4, 4), (128, 128, 4, 4)),
    ):
        a, b = new(n, n, n2, n3), new(k, n, n2, n3)
        yield _case("solve_tri", params, {"a": a, "b": b}, out=b)


def _triangle(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> F64:
    if name == "a":
        return np.tril(rng.uniform(0.1, 1.0, shape))
    return rng.uniform(-1, 1, shape)


_DELTA = (  # heads, size, tokens, sequences, value heads a key head, permuted, KDA, snapshots
    *((32, 128, 1, 1, 1, 0, 0, 1), (32, 16, 1, 1, 1, 0, 0, 1), (32, 16, 1, 1, 1, 1, 1, 1), (32, 16, 1, 1, 1, 0, 1, 1)),
    *((16, 64, 1, 2, 1, 0, 0, 1), (4, 64, 4, 1, 1, 0, 0, 1), (4, 64, 4, 2, 1, 0, 0, 1), (8, 32, 4, 2, 2, 0, 0, 1)),
    *((4, 64, 4, 2, 1, 1, 0, 1), (4, 64, 4, 1, 1, 1, 0, 1), (4, 64, 1, 1, 1, 0, 1, 1), (4, 64, 1, 2, 1, 0, 1, 1)),
    *((4, 16, 1, 2, 1, 0, 1, 1), (4, 32, 4, 1, 1, 0, 1, 1), (4, 64, 4, 2, 1, 0, 1, 1), (8, 32, 4, 2, 2, 0, 1, 1)),
    *((4, 64, 4, 2, 1, 1, 1, 1), (4, 16, 4, 2, 1, 1, 1, 1), (4, 64, 64, 1, 1, 0, 0, 1), (4, 64, 127, 1, 1, 0, 0, 1)),
    *(
        (4, 64, 256, 1, 1, 0, 0, 1),
        (4, 64, 65, 1, 1, 0, 0, 1),
        (4, 64, 100, 1, 1, 0, 0, 1),
        (4, 64, 200, 1, 1, 0, 0, 1),
    ),
    *((4, 64, 127, 2, 1, 0, 0, 1), (4, 64, 64, 1, 1, 0, 1, 1), (4, 64, 33, 1, 1, 0, 1, 1), (4, 64, 100, 1, 1, 0, 1, 1)),
    *((4, 16, 2, 1, 1, 0, 0, 2), (4, 32, 4, 1, 1, 0, 0, 4), (4, 64, 4, 2, 1, 0, 0, 4), (8, 128, 4, 1, 1, 0, 0, 4)),
    *((4, 64, 4, 2, 1, 0, 1, 4), (8, 32, 4, 2, 2, 0, 1, 4), (4, 32, 8, 1, 1, 0, 0, 3), (4, 64, 16, 2, 1, 0, 0, 4)),
)


def _delta_net(chunked: bool) -> Iterator[Case]:
    for number, (heads, size, tokens, sequences, repeat, permuted, kda, snapshots) in enumerate(_DELTA):
        if chunked and snapshots > 1:
            continue
        values = heads * repeat
        inputs = {
            name: permute(new(size, tokens, count, sequences), 0, 2, 1, 3)
            if permuted
            else new(size, count, tokens, sequences)
            for name, count in (("q", heads), ("k", heads), ("v", values))
        }
        inputs["g"] = new(size if kda else 1, values, tokens, sequences)
        inputs["beta"] = new(1, values, tokens, sequences)
        inputs["state"] = new(size, size, values, sequences)
        params: dict[str, Param] = {"scale": size**-0.5, "heads": "tiled", "state_layout": "vk", "l2norm": False}
        params |= {"eps": 1e-6, "gate": "log"}
        if chunked:
            params |= {
                "chunk": 64,
                "form": ("whole", "blockwise")[number % 2],
                "place": ("set", "acc")[number % 3 == 0],
            }
        else:
            params["snapshots"] = snapshots
        last = new(size, size, values, sequences * (1 if chunked else snapshots))
        outputs = {"out": new(size, values, tokens, sequences), "state_out": last}
        yield _case("gated_delta_net_chunk" if chunked else "gated_delta_net", params, inputs, None, **outputs)


def _gated(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> F64:
    low, high = {"g": (-20, -1e-4), "beta": (0, 1), "v": (-0.3, 5)}.get(name, (-1, 1))
    drawn = rng.uniform(low, high, shape)
    if name in ("q", "k"):
        drawn /= np.maximum(np.sqrt((drawn**2).sum(axis=-1, keepdims=True)), 1e-6)
    return drawn


def _mla() -> Iterator[Case]:
    sizes = [(1, kv, queries) for kv in (113, 512, 1024) for queries in (1, 3)]
    sizes += [(1, 113, 32), (4, 512, 1), (20, 512, 1)]
    for heads, kv, queries in sorted(sizes, key=math.prod):
        for masked, form in itertools.product(
            (True, False), ("flash",) if kv > 113 else ("flash", "two_part", "concat")
        ):
            yield absorbed(form, heads, kv, queries, masked)


def absorbed(form: str, heads: int, kv: int, queries: int, masked: bool) -> Case:
    """Absorbed attention of DeepSeek's sizes, on a cache of f16 rows that both parts are views of."""
    cache = new(576, 2 * kv, 1, 1, dtype="f16")
    inputs = {
        "q_nope": new(128, queries, heads, 1),
        "q_pe": new(64, queries, heads, 1),
        "c_kv": view(cache, 512, kv, 1, 1),
        "k_pe": view(cache, 64, kv, 1, 1, offset=1024),
        "w_uk": new(512, 128, heads, 1),
        "w_uv": new(128, 512, heads, 1),
    }
    if masked:
        inputs["mask"] = new(kv, queries, 1, 1, dtype="f16")
    params: dict[str, Param] = {"scale": 576**-0.5, "form": form, "causal": False, "kv_len": kv}
    params |= {"k_scale": 1.0, "v_scale": 1.0}
    case = _case("mla_absorbed", params, inputs, out=new(128, heads, queries, 1))
    return replace(case, shares={"k_pe": "c_kv"})


def _attended(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> F64:
    drawn = rng.uniform(-1, 1, shape)
    if name == "mask":  # blocks of -inf, as upstream's masks have them
        for number in range(max(drawn.shape[-2] * drawn.shape[-1] // 1024, 1)):
            row, column = rng.integers(drawn.shape[-2]), rng.integers(max(drawn.shape[-1] - 64, 1))
            drawn[..., row : row + 1, column : column + 64] = -np.inf if number % 2 else 0.0
    return drawn


def _ssm_conv() -> Iterator[Case]:
    for taps, channels in itertools.product((3, 4, 9), (1024, 1536, 2048)):
        for length, sequences in ((taps, 1), (2 * taps, 1), (taps, 4), (taps - 1 + 64, 1), (taps - 1 + 64, 4)):
            x, c = new(length, channels, sequences), new(taps, channels)
            out = new(channels, length - taps + 1, sequences)
            yield _case("ssm_conv", {}, {"x": x, "c": c}, out=out)


def _rows(op: str, turned: bool, **more: Param) -> Iterator[Case]:
    """NORM and RMS_NORM of a tensor and of a view of half its sizes, L2_NORM of a permuted one too."""
    for eps, n in itertools.product(
        (0.0, 1e-6, 1e-4, 1e-1, 10.0), (64, 1025) if op == "l2_norm" else (64, 1025, 33, 132, 260)
    ):
        x = new(n, 5, 4, 3)
        half = view(x, n // 2, 2, 2, 1)
        for each in (x, half, *((permute(new(5, n, 4, 3), 1, 0, 2, 3),) if turned and n in (64, 1025) else ())):
            yield _case(op, {"eps": eps, **more}, {"x": each}, out=new(*each.ne))


def _sum_rows() -> Iterator[Case]:
    forms = [((10, 5, 4, 3), False, False), *(((n, 1, 1, 1), False, False) for n in (33,))]
    forms += [((33, 256, 1, 1), False, False), ((33, 1024, 1, 1), False, False)]
    forms += [((n, 5, 6, 3), *how) for n in (11, 16) for how in ((True, False), (False, True), (True, True))]
    for ne, turned, sliced in forms:
        x = new(*ne)
        if sliced:
            nb = (x.nb[0], x.nb[1], 2 * x.nb[2], x.nb[3])
            x = view(x, ne[0], ne[1], ne[2] // 2, ne[3] - 1, offset=x.nb[3], nb=nb)
        if turned:
            x = permute(x, 0, 2, 3, 1)
        yield _case("sum_rows", {}, {"x": x}, out=new(1, *x.ne[1:]))


def _pad() -> Iterator[Case]:
    def padded(x: Layout, pads: Sequence[tuple[int, int]]) -> Case:
        params = {
            f"{side}{axis}": pad[which] for axis, pad in enumerate(pads) for which, side in enumerate(("lp", "rp"))
        }
        out = new(*(size + sum(pad) for size, pad in zip(x.ne, pads)))
        return _case("pad", params, {"x": x}, out=out)

    for ne, p0, p1 in (
        *(((1024, 1), 1, 0), ((1024, 2), 1, 0), ((1024, 16), 0, 1), ((1023, 1), 1, 0), ((1023, 8), 1, 0)),
        *(((1025, 1), 1, 0), ((1025, 8), 1, 0), ((2048, 1), 1, 0), ((2048, 4), 1, 0), ((2049, 1), 1, 0)),
        *(((100, 1), 100, 0), ((100, 1), 0, 100), ((100, 100), 50, 50), ((512, 512), 1, 1)),
    ):
        yield padded(new(*ne), ((0, p0), (0, p1), (0, 0), (0, 0)))
    for x in (new(11, 22, 33, 44), view(new(11, 22, 33, 44), 6, 11, 17, 22), permute(new(11, 22, 33, 44), 2, 1, 0, 3)):
        for left, right in itertools.product((0, 1), (0, 1)):
            yield padded(x, ((left, right),) * 4)
    yield padded(new(512, 512, 3), ((1, 1),) * 4)


_TYPES = ("f32", "f16", "bf16", "i32")


def _cpy() -> Iterator[Case]:
    def copied(x: Layout, out: Layout) -> Case:
        return _case("cpy", {}, {"x": x}, out=out)

    for dtype, k in itertools.product(_TYPES, (1, 2, 3)):
        x = new(k, 2, 3, 4, dtype=dtype)
        yield copied(x, new(*x.ne, dtype=dtype))
        turned = permute(x, 0, 2, 1, 3)
        yield copied(turned, new(*turned.ne, dtype=dtype))
        turned = permute(x, 0, 3, 1, 2)
        yield copied(turned, permute(new(*(turned.ne[axis] for axis in (0, 2, 1, 3)), dtype=dtype), 0, 2, 1, 3))
    for one, other in itertools.product(_TYPES[:3], _TYPES[:3]):
        yield copied(new(256, 4, 4, 4, dtype=one), new(256, 4, 4, 4, dtype=other))
        for axes in ((0, 2, 1, 3), (1, 0, 2, 3)):
            x = permute(new(256, 2, 3, 4, dtype=one), *axes)
            yield copied(x, new(*x.ne, dtype=other))
    for dtype, ne in itertools.product(_TYPES, ((256, 4, 3, 1), (256, 4, 3, 3), (256, 4, 1, 1))):
        x = permute(new(*ne, dtype=dtype), 1, 0, 2, 3)
        yield copied(x, new(*x.ne, dtype=dtype))
    for dtype in ("f32", "f16"):
        x, whole = new(128, 2, 3, dtype=dtype), new(128, 4, 3, dtype=dtype)
        yield copied(x, view(whole, *x.ne))
        for sizes in itertools.islice(itertools.permutations((3, 5, 7, 32)), 1, None):
            yield copied(new(*sizes, dtype=dtype), new(3, 5, 7, 32, dtype=dtype))
            yield copied(new(*sizes, dtype=dtype), new(32, 7, 5, 3, dtype=dtype))
    for ne in ((2, 2097121, 1, 1), (2, 2, 524281, 1)):
        x = permute(new(*ne), 1, 0, 2, 3)
        yield copied(x, new(*x.ne))


def _cont() -> Iterator[Case]:
    for dtype, ne in itertools.product(
        _TYPES, ((2, 1, 1, 1), (2, 1, 3, 5), (2, 3, 5, 7), (1, 4, 4, 1), (1, 8, 17, 1), (10, 10, 10, 1))
    ):
        x = new(*ne, dtype=dtype)
        sliced = view(x, ne[0], 1, ne[2], ne[3], offset=x.nb[0] * (ne[1] - 1))
        for each in (permute(x, 1, 0, 2, 3), sliced, permute(x, 0, 2, 1, 3), permute(x, 2, 0, 1, 3)):
            yield _case("cont", {}, {"x": each}, out=new(*each.ne, dtype=dtype))


def _binary(op: str) -> Iterator[Case]:
    sizes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((1, 1, 8, 1), (1, 1, 1, 1)), ((1, 1, 1, 1), (32, 1, 1, 1))]
    sizes += [((10, 5, 1, 1), (1, 1, 1, 1)), ((10, 5, 4, 1), (1, 1, 1, 1))]
    repeats = (
        (1, 1, 1, 1),
        (2, 1, 1, 1),
        (1, 2, 1, 1),
        (1, 1, 2, 1),
        (1, 1, 1, 2),
        (1, 1, 2, 2),
        (1, 2, 2, 2),
        (2, 2, 2, 2),
    )
    sizes += [((10, 5, 4, 3), nr) for nr in repeats]
    sizes += [((1280, 1, 1, 1), (1, 1, 1, 1)), ((1280, 1, 1, 1), (1, 16, 16, 1)), ((1280, 16, 16, 1), (1, 1, 1, 1))]
    sizes += [((1, 1, 1280, 1), (16, 16, 1, 1)), ((16, 16, 1280, 1), (1, 1, 1, 1)), ((1, 1, 65536, 1), (256, 1, 1, 1))]
    for (ne, nr), dtype, turned in itertools.product(sizes, ("f32", "f16"), (False, True)):
        if turned and math.prod(ne) > 1000:
            continue
        a = new(*(size * times for size, times in zip(ne, nr)), dtype=dtype)
        b = new(*ne, dtype=dtype)
        if turned:
            b = permute(new(*(ne[axis] for axis in (1, 2, 0, 3)), dtype=dtype), 1, 2, 0, 3)
        yield _case(op, {}, {"a": a, "b": b}, out=a)


def _elementwise(op: str, params: Mapping[str, Param], sizes: Sequence[Sequence[int]], halved: bool) -> Iterator[Case]:
    for dtype, ne in itertools.product(("f32", "f16") if op != "scale" else ("f32",), sizes):
        x = new(*ne, dtype=dtype)
        yield _case(op, params, {"x": x}, out=x)
        if halved:
            whole = new(3 * ne[0], 2 * ne[1], 5 * ne[2], 4 * ne[3], dtype=dtype)
            yield _case(op, params, {"x": view(whole, *ne)}, out=new(*ne, dtype=dtype))


def _square(op: str) -> Iterator[Case]:
    if op == "tri":
        for kind in ("lower", "lower_diag", "upper", "upper_diag"):
            yield _case(op, {"kind": kind}, {"x": new(10, 10, 4, 3)}, out=new(10, 10, 4, 3))
    else:
        for n, n2, n3 in ((10, 4, 3), (79, 19, 13), (256, 8, 16)):
            yield _case(op, {}, {"x": new(n, 1, n2, n3)}, out=new(n, n, n2, n3))


def _wide(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> F64:
    return rng.uniform(-150, 150, shape)


def _narrow(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> F64:
    return rng.uniform(-10, 10, shape)


_UNARY = ((128, 2, 2, 2), (5, 7, 11, 13))
_CLAMPED = ((10, 5, 4, 3), (7, 1, 5, 3), (1024, 1024, 1, 1))

_UPSTREAM: Mapping[str, Callable[[], Iterator[Case]]] = {
    "acc": _acc,
    "set": _set,
    "cumsum": _cumsum,
    "solve_tri": _solve_tri,
    "gated_delta_net": lambda: _delta_net(False),
    "gated_delta_net_chunk": lambda: _delta_net(True),
    "mla_absorbed": _mla,
    "ssm_conv": _ssm_conv,
    "norm": lambda: _rows("norm", True),
    "rms_norm": lambda: _rows("rms_norm", False),
    "l2_norm": lambda: _rows("l2_norm", True, eps_mode="max"),
    "sum_rows": _sum_rows,
    "pad": _pad,
    "cpy": _cpy,
    "cont": _cont,
    "add": lambda: _binary("add"),
    "mul": lambda: _binary("mul"),
    "exp": lambda: _elementwise("exp", {}, _UNARY, True),
    "silu": lambda: _elementwise("silu", {}, _UNARY, True),
    "clamp": lambda: _elementwise("clamp", {"min": -0.5, "max": 0.5}, _CLAMPED, False),
    "scale": lambda: itertools.chain(
        _elementwise("scale", {"scale": 2.0, "bias": 0.0}, ((10, 10, 10, 10),), False),
        _elementwise("scale", {"scale": 2.0, "bias": 1.0}, ((10, 10, 10, 10), (100, 10, 10, 10)), False),
    ),
    "tri": lambda: _square("tri"),
    "diag": lambda: _square("diag"),
}
_DRAWS: Mapping[str, Draw] = {
    "solve_tri": _triangle,
    "gated_delta_net": _gated,
    "gated_delta_net_chunk": _gated,
    "mla_absorbed": _attended,
    "rms_norm": _narrow,
    "cpy": _wide,
    "silu": _wide,
}


def upstream(op: str) -> list[Peer]:
    """test-backend-ops' cases of an op, the smallest first."""
    cases = sorted(_UPSTREAM[op](), key=lambda case: case.nbytes)
    cases = [case for case in cases if case.outputs["out"].size <= MOST_ELEMENTS]
    found = []
    for number, case in enumerate(cases):
        draw = _DRAWS.get(op, _uniform)
        if op == "exp":
            draw = _narrow if case.dtype == "f16" else _wide
        found.append(Peer(case, draw, number))
    return found


# ---- one shape -------------------------------------------------------------------------------------------------------


def _one(op: str) -> Case:
    """One aligned, packed case of middling size, as a kernel's own test has it."""
    x = new(256, 64)
    if op in ("acc", "set"):
        params: dict[str, Param] = {"nb1": x.nb[1], "nb2": x.nb[2], "nb3": x.nb[3], "offset": 0}
        return _case(op, params, {"a": x, "b": new(128, 32)}, out=x)
    if op == "cumsum":
        return _case(op, {"axis": 0, "exclusive": False, "reverse": False}, {"x": x}, out=x)
    if op == "solve_tri":
        return _case(
            op, {"left": True, "lower": True, "unit": False}, {"a": new(64, 64), "b": new(16, 64)}, out=new(16, 64)
        )
    if op.startswith("gated_delta_net"):
        case = next(case for case in _delta_net("chunk" in op) if case.inputs["q"].shape == (1, 64, 4, 64))
        return replace(
            case, params={**case.params, "form": "blockwise", "place": "set"} if "chunk" in op else case.params
        )
    if op == "mla_absorbed":
        return absorbed("flash", 4, 128, 1, False)
    if op == "ssm_conv":
        return _case(op, {}, {"x": new(67, 256), "c": new(4, 256)}, out=new(256, 64))
    if op in ("add", "mul"):
        return _case(op, {}, {"a": x, "b": x}, out=x)
    params_of: dict[str, dict[str, Param]] = {
        "norm": {"eps": 1e-5},
        "rms_norm": {"eps": 1e-5},
        "l2_norm": {"eps": 1e-6, "eps_mode": "max"},
        "scale": {"scale": 0.125, "bias": 0.0},
        "clamp": {"min": -0.5, "max": 0.5},
        "tri": {"kind": "lower_diag"},
        "pad": {f"{side}{axis}": int(axis < 2) for axis in range(4) for side in ("lp", "rp")},
    }
    params = params_of.get(op, {})
    its = new(64, 64) if op == "tri" else new(64) if op == "diag" else x
    out = {"sum_rows": new(1, 64), "diag": new(64, 64), "pad": new(258, 66), "tri": its}.get(op, x)
    return _case(op, params, {"x": its}, out=out)


def _well_posed(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> F64:
    """Standard normal values, which a triangle with a heavy diagonal leaves solvable."""
    drawn = rng.standard_normal(shape)
    if name == "a":
        drawn = np.tril(drawn) / shape[-1] + np.eye(shape[-1])
    return drawn


def _gates(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> F64:
    if name == "g":
        return -np.logaddexp(0, rng.standard_normal(shape))
    if name == "beta":
        return 1 / (1 + np.exp(-rng.standard_normal(shape)))
    drawn = rng.standard_normal(shape)
    return drawn / np.sqrt((drawn**2).sum(axis=-1, keepdims=True)) if name in ("q", "k") else drawn


def five(op: str) -> list[Peer]:
    """Five inputs of one shape."""
    draw = _well_posed if op == "solve_tri" else _gates if op.startswith("gated") else _normal
    return [Peer(_one(op), draw, number, allclose=True) for number in range(5)]
