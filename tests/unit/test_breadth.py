"""The ops that stand in tables or in modules of their own since quantised types came: right kernels pass, among them
odd ones, and wrong ones are caught, each op's own faults among them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from opconform.backends.torch.backend import CPU_NUMERICS, TorchBackend
from opconform.cases.families.conversions import ROUNDED
from opconform.harness.explain.hypotheses import named
from opconform.harness.model import blocks
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DTYPES, F32, F64, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Image, Reading
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.ops import ops
from opconform.harness.model.values import data_of, inputs_of
from opconform.harness.run.backend import Backend
from tests.encoding import encoded
from tests.judge import Bench, Benches, drawn_cases
from tests.lacking import needs_torch

UNARY = (
    *("abs", "neg", "sgn", "step", "tanh", "elu", "relu", "sigmoid", "gelu", "gelu_quick", "gelu_erf", "hardsigmoid"),
    *("hardswish", "expm1", "softplus", "floor", "ceil", "round", "trunc", "leaky_relu"),
)
GATED = ("reglu", "geglu", "swiglu", "geglu_erf", "geglu_quick")
MADE = ("arange", "fill", "timestep_embedding")
OPS = (
    *("sub", "div", "sqr", "sqrt", "log", "sin", "cos", "mean", "sum", "group_norm", "diag_mask_inf", "concat"),
    *("repeat", "dup", "mul_mat", "mul_mat_id", "out_prod", "get_rows", "set_rows", "add_id", "argsort", "top_k"),
    *("roll", "pad_reflect_1d", "pad_circular", "win_part", "win_unpart", "get_rel_pos", "add_rel_pos", *MADE),
    *("im2col", "im2col_3d", "im2col_back", "col2im_1d", "pool_1d", "pool_2d", "pool_2d_back"),
    *("upscale", "conv_2d", "conv_2d_dw", "conv_3d", "conv_transpose_1d", "conv_transpose_2d"),
    *("argmax", "count_equal", "soft_max", "swiglu_oai", *UNARY, *GATED, *(f"{gate}_split" for gate in GATED)),
    *("add1", "silu_back", "xielu", "swiglu_clamp", "rms_norm_back", "soft_max_back", "diag_mask_zero"),
    *("repeat_back", "get_rows_back", "cross_entropy_loss", "cross_entropy_loss_back", "opt_step_adamw"),
    "opt_step_sgd",
)
#: Those that torch has no row for: they are tried with the reference alone.
WITHOUT_TORCH = (
    *("rope", "rope_back", "rwkv_wkv6", "rwkv_wkv7", "gated_linear_attn", "ssm_scan", "lightning_indexer"),
    *("dsv4_hc_comb", "dsv4_hc_pre", "dsv4_hc_post", "flash_attn_ext", "cpy_blocks", "moe_routing"),
    *("mul_mat_add", "mul_mat_add_add", "mul_mat_id_mul", "mul_mat_id_add_id_mul", "ssm_conv_silu"),
    *("mul_mat_mul", "mul_mat_id_add_id", "mul_mat_swiglu", "mul_mat_geglu", "mul_mat_add_swiglu"),
    "mul_mat_id_swiglu",
    *("mul_mat_id_add_id_swiglu_oai", "ssm_conv_add_silu", "rope_set_rows", "rms_norm_mul_rope"),
    *("rms_norm_mul_rope_set_rows", "group_norm_mul_add"),
)
CASES, MAX_BYTES = 160, 1 << 18
ROUNDED_ONCE = 80  #: of the cases, rounded references: most of what may be wrong with them is wrong in many
#: Those in which float16 tells values apart as float32 does, and those that read none.
NOT_IN_HALF = ("argmax", "count_equal", "sgn", "step", "set_rows", "arange", "fill")
#: Of ops whose b is rarely drawn as a part of a, and of those with many modes, or with oddly scaled images.
MORE_CASES = {
    "swiglu_clamp": 400,
    "rope": 400,
    "rope_back": 400,
    "upscale": 320,
    "rms_norm_back": 400,
    "soft_max_back": 400,
}
LONG_ROWS = ("rms_norm_back", "soft_max_back")  #: some of their faults show in rows above 1024 only


@cache
def torch_backend() -> TorchBackend:
    needs_torch()
    return TorchBackend("cpu", {})


class Torch(Backend):
    """torch's rows on a copy of the memory, whose output is written: what a kernel is that others spoil."""

    def __init__(self) -> None:
        super().__init__("0", {})

    def run(self, case: Case, buffers: Buffers) -> None:
        copy = Buffers(case, buffers.memory.copy(), buffers.plan)
        self.read(case, copy)
        torch_backend().run(case, copy)
        found = np.array(copy.raw("out"))
        buffers.raw("out")[...] = self.written(case, buffers, found)

    def read(self, case: Case, copy: Buffers) -> None:
        """Change what is read."""

    def written(self, case: Case, buffers: Buffers, found: Raw) -> Raw:
        """Change what is written."""
        return found


class LeavesLast(Torch):
    """Does not write the last element of the output."""

    def written(self, case: Case, buffers: Buffers, found: Raw) -> Raw:
        found.reshape(-1)[-1:] = buffers.raw("out").reshape(-1)[-1:]
        return found


class OneOff(Torch):
    """Writes each element of a row one place on."""

    def written(self, case: Case, buffers: Buffers, found: Raw) -> Raw:
        axis = next((axis for axis in (3, 2, 1, 0) if found.shape[axis] > 1), 3)
        return np.roll(found, 1, axis)


class FirstOnly(Torch):
    """Gives every outermost slice the result of the first."""

    def written(self, case: Case, buffers: Buffers, found: Raw) -> Raw:
        axis = next((axis for axis in (0, 1, 2, 3) if found.shape[axis] > 1), 0)
        return np.ascontiguousarray(np.broadcast_to(found.take([0], axis), found.shape))


class InHalf(Torch):
    """Rounds what it reads of float32 to float16."""

    def read(self, case: Case, copy: Buffers) -> None:
        for name, layout in case.inputs.items():
            if layout.dtype == "f32" and (layout.strides and 0 not in layout.strides):
                array = copy.array(name)
                array[...] = array.astype(np.float16)


@cache
def benches(op: str) -> Benches:
    return Benches(drawn_cases(op, MORE_CASES.get(op, CASES), MAX_BYTES << (4 if op in LONG_ROWS else 0)))


def taken_by_torch(made: Benches) -> Iterator[Bench]:
    for bench in made:
        if torch_backend().supports(bench.case) is None:
            yield bench


def torch_benches(op: str) -> Iterator[Bench]:
    return taken_by_torch(benches(op))


@pytest.mark.parametrize("op", OPS)
def test_torch_is_right(op: str) -> None:
    kernel, ran = Torch(), 0
    for bench in torch_benches(op):
        assert bench.passes(kernel, CPU_NUMERICS), f"{bench.case}: {bench.verdict(kernel, CPU_NUMERICS).findings}"
        ran += 1
    assert ran > 20


@pytest.mark.parametrize("wrong", [LeavesLast, OneOff, FirstOnly])
@pytest.mark.parametrize("op", OPS)
def test_a_wrong_kernel_is_caught(op: str, wrong: type[Torch]) -> None:
    if op in ("count_equal", "sum", "fill", "cross_entropy_loss") and wrong is not LeavesLast:
        pytest.skip("its output has one element, or one value")
    kernel = wrong()
    assert any(not bench.passes(kernel, CPU_NUMERICS) for bench in torch_benches(op))


@pytest.mark.parametrize("op", [op for op in OPS if op not in NOT_IN_HALF])
def test_operands_in_half_precision_are_caught(op: str) -> None:
    assert any(not bench.passes(InHalf(), CPU_NUMERICS) for bench in torch_benches(op))


class LosesTiles(Torch):
    """A product by tiles of 64 that leaves out those that are second both ways."""

    def written(self, case: Case, buffers: Buffers, found: Raw) -> Raw:
        found[..., 64:, 64:] = buffers.raw("out")[..., 64:, 64:]
        return found


class SumsTheBeginning(Torch):
    """A product that adds up the first 1,024 of a row."""

    def read(self, case: Case, copy: Buffers) -> None:
        copy.raw("b")[..., 1024:] = 0


@pytest.mark.parametrize("wrong", [LosesTiles, SumsTheBeginning])
def test_a_product_that_is_wrong_only_for_large_matrices_or_long_rows_is_caught(wrong: type[Torch]) -> None:
    """The right kernel passes where it is: the fault is caught, not torch."""
    drawn = taken_by_torch(Benches(drawn_cases("mul_mat", 600, MAX_BYTES)))
    caught = next(bench for bench in drawn if not bench.passes(wrong(), CPU_NUMERICS))
    assert caught.passes(Torch(), CPU_NUMERICS)


class Reference(Backend):
    """Writes the reference itself, or what `reading` says of it."""

    def __init__(self, value: F64, others: Mapping[str, Expected] | None = None) -> None:
        super().__init__("0", {})
        self._values = {"out": value, **{name: expected.value for name, expected in (others or {}).items()}}

    def run(self, case: Case, buffers: Buffers) -> None:
        with np.errstate(all="ignore"):
            for name, value in self._values.items():
                buffers.raw(name)[...] = case.outputs[name].type.encode(value)


@pytest.mark.parametrize("op", [*OPS, *WITHOUT_TORCH])
def test_float64_rounded_once_passes(op: str) -> None:
    for bench in itertools.islice(benches(op), ROUNDED_ONCE):
        out = bench.case.outputs["out"]
        if out.type.block > 1:
            continue
        expected = bench.expected()
        assert bench.passes(Reference(expected.value, expected.others)), bench.case


def reader_of(bench: Bench, reading: Reading) -> Reference:
    """A kernel that reads the case so."""
    expect = reading.expect or bench.op.expect
    with np.errstate(all="ignore"):
        expected = expect(reading.case, reading.raw, EXACT)
    value = np.array(expected.value)
    if reading.source is not None:
        flat = np.append(value.reshape(-1), np.nan)
        value = flat[np.where(reading.source < 0, -1, reading.source)]
    return Reference(value, expected.others)


@pytest.mark.parametrize(
    "op", [op for op in (*OPS, *WITHOUT_TORCH) if ops()[op].hypotheses is not None and op != "dup"]
)
def test_each_fault_that_an_op_knows_is_caught(op: str) -> None:
    """Every hypothesis of the op's own, run as a kernel, fails some case."""
    caught: dict[str, bool] = {}
    hypotheses = ops()[op].hypotheses
    assert hypotheses is not None
    for bench in benches(op):
        if bench.case.outputs["out"].type.block > 1:
            continue
        for says, hypothesis in named(hypotheses(Image(bench.case, bench.values))).items():
            if not caught.get(says):
                caught[says] = not bench.passes(reader_of(bench, hypothesis.reading()))
    missed = {says for says, was in caught.items() if not was}
    assert caught
    assert not missed


# --- products with quantised weights ---

NAMES = pytest.mark.parametrize("name", [name for name in DTYPES if DTYPES[name].block > 1])


def product_case(name: str, k: int, rows: int = 3, seed: int = 0) -> Case:
    a, b = Layout.contiguous(name, (1, 1, rows, k)), Layout.contiguous("f32", (1, 1, 2, k))
    out = Layout.contiguous("f32", (1, 1, 2, rows))
    return Case("mul_mat", {}, {"a": a, "b": b}, {"out": out}, recipe="normal", seed=seed)


class Blocked(Backend):
    """A product whose activations are rounded to 8 bits in blocks of 32, as q8_0 holds them; it adds up backwards."""

    def __init__(self, spoilt: tuple[int, int] | None = None) -> None:
        super().__init__("0", {})
        self._spoilt = spoilt

    def run(self, case: Case, buffers: Buffers) -> None:
        a = case.inputs["a"].type
        w = a.decode(np.array(buffers.raw("a"))).astype(np.float32)[0, 0]
        if self._spoilt:  # one block of one row has the codes of the next block
            row, block = self._spoilt
            start = block * a.block
            w[row, start : start + a.block] = w[row, start + a.block : start + 2 * a.block]
        y = buffers.array("b").astype(np.float32)[0, 0].reshape(2, -1, 32)
        step = np.abs(y).max(-1, keepdims=True) / np.float32(127)
        codes = np.rint(np.divide(y, step, out=np.zeros_like(y), where=step != 0))
        y = (codes * step.astype(np.float16).astype(np.float32)).reshape(2, -1)
        total = np.zeros((2, w.shape[0]), np.float32)
        for i in reversed(range(w.shape[1])):
            total = total + y[:, i : i + 1] * w[None, :, i]
        buffers.array("out")[...] = total


@NAMES
def test_rounded_activations_pass_where_they_are_declared(name: str) -> None:
    bench = Bench(product_case(name, 512))
    assert bench.passes(Blocked(), Numerics(block_operands=32))
    assert not bench.passes(Blocked())


@NAMES
def test_one_wrong_block_in_a_row_of_4096_is_caught(name: str) -> None:
    bench = Bench(product_case(name, 4096, seed=1))
    assert bench.passes(Blocked(), Numerics(block_operands=32))
    assert not bench.passes(Blocked((1, 3)), Numerics(block_operands=32))


class Stored(Backend):
    """A product with the codes of q4_0 or q5_0 as they are stored. Their centre is multiplied with sums of the
    activations (here of 16, in float16), which have 8 bits themselves. `share`: how much of the centre counts."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__("0", {})
        self._share = share

    def run(self, case: Case, buffers: Buffers) -> None:
        its, raw = case.inputs["a"].type, np.array(buffers.raw("a"))
        plain = blocks.as_bytes(its.name, raw)
        plain[:, slice(*blocks.BLOCKS[its.name].centred)] = 0
        least = its.decode(plain.view(raw.dtype).reshape(raw.shape))[0, 0]
        w = (its.decode(raw)[0, 0] - least).astype(np.float32)
        y = buffers.array("b").astype(np.float32)[0, 0].reshape(2, -1, 32)
        step = np.abs(y).max(-1, keepdims=True) / np.float32(127)
        sums = np.repeat(y.reshape(2, -1, 16).sum(-1).astype(np.float16).astype(np.float32) / 16, 16, axis=-1)
        y = (np.rint(y / step) * step.astype(np.float16).astype(np.float32)).reshape(2, -1)
        total = np.zeros((2, w.shape[0]), np.float32)
        for i in range(w.shape[1]):
            total += y[:, i : i + 1] * w[None, :, i] + sums[:, i : i + 1] * np.float32(self._share) * least[None, :, i]
        buffers.array("out")[...] = total


@pytest.mark.parametrize("name", ["q4_0", "q5_0"])
def test_codes_that_are_centred_behind_the_sum_pass_where_that_is_declared(name: str) -> None:
    case, declared = product_case(name, 256), Numerics(block_operands=32, stored_codes=True)
    its, w, y = DTYPES[name], np.zeros((1, 1, 3, 256)), np.full((1, 1, 2, 256), 50.45 / 127)
    w[..., ::32] = y[..., ::32] = 1.0  # all others have the code that is 0 once it is centred, and are rounded down
    bench = Bench(case, {"a": its.encode(w), "b": F32.encode(y)})
    assert bench.passes(Stored(), declared)
    assert not bench.passes(Stored(), Numerics(block_operands=32))
    assert not bench.passes(Stored(7 / 8), declared)


class OfHalves(Backend):
    """A product beside a b of float16, in float32 from the last one on. What `its` names is rounded to `to` first; with
    `skipped` the last product is left out."""

    def __init__(self, its: str = "", to: str = "f16", skipped: int = 0) -> None:
        super().__init__("0", {})
        self._its, self._to, self._skipped = its, DTYPES[to], skipped

    def _read(self, case: Case, buffers: Buffers, name: str) -> np.ndarray:
        found = case.inputs[name].type.decode(np.array(buffers.raw(name)))[0, 0]
        return (self._to.decode(self._to.encode(found)) if name == self._its else found).astype(np.float32)

    def run(self, case: Case, buffers: Buffers) -> None:
        w, y = self._read(case, buffers, "a"), self._read(case, buffers, "b")
        total = np.zeros((2, w.shape[0]), np.float32)
        for i in reversed(range(w.shape[1] - self._skipped)):
            total = total + y[:, i : i + 1] * w[None, :, i]
        buffers.array("out")[...] = total


def of_halves(name: str, k: int = 256, seed: int = 0) -> Bench:
    """Weights of this type beside a b of float16."""
    case = product_case(name, k, seed=seed)
    return Bench(replace(case, inputs={**case.inputs, "b": Layout.contiguous("f16", (1, 1, 2, k))}))


def test_a_b_of_float16_is_read_as_it_is_even_where_its_like_would_be_rounded() -> None:
    for name in ("f16", "f32"):
        for numerics in (Numerics(), Numerics(narrow_operands=True)):
            assert of_halves(name).passes(OfHalves(), numerics)
            assert not of_halves(name).passes(OfHalves("b", "bf16"), numerics)
            assert not of_halves(name).passes(OfHalves(skipped=1), numerics)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q8_0", "q6_K", "q4_K"])
def test_blocks_decoded_to_float16_pass_where_that_is_declared(name: str) -> None:
    bench = of_halves(name, DTYPES[name].block)
    assert bench.passes(OfHalves("a"), Numerics(narrow_weights=True))
    assert not bench.passes(OfHalves("a"), Numerics())
    assert not bench.passes(OfHalves("a", skipped=1), Numerics(narrow_weights=True))


class Quantises(Backend):
    """Rounds rows to blocks as the usual encoder does; where told so, two neighbouring blocks are exchanged."""

    def __init__(self, exchanged: int | None = None) -> None:
        super().__init__("0", {})
        self._exchanged = exchanged

    def run(self, case: Case, buffers: Buffers) -> None:
        x = case.inputs["x"].type.decode(np.array(buffers.raw("x")))
        made = encoded(case.outputs["out"].dtype, x)
        if self._exchanged is not None:
            at = self._exchanged
            made[..., [at, at + 1]] = made[..., [at + 1, at]]
        buffers.raw("out")[...] = made


@pytest.mark.parametrize("name", ROUNDED)
def test_blocks_that_are_made_are_judged_one_by_one(name: str) -> None:
    x, out = (Layout.contiguous(dtype, (1, 1, 3, 4096)) for dtype in ("f32", name))
    bench = Bench(Case("cpy_blocks", {}, {"x": x}, {"out": out}, "normal", seed=3))
    assert bench.passes(Quantises())
    assert not bench.passes(Quantises(exchanged=7))


@NAMES
def test_blocks_that_are_decoded_are_judged_one_by_one(name: str) -> None:
    x, out = (Layout.contiguous(dtype, (1, 1, 3, 4096)) for dtype in (name, "f32"))
    bench = Bench(Case("cpy_blocks", {}, {"x": x}, {"out": out}, "normal", seed=3))
    value = bench.expected().value
    assert bench.passes(Reference(value))
    spoilt = value.copy()
    block = x.type.block
    spoilt[0, 0, 1, block : 2 * block] = value[0, 0, 1, 2 * block : 3 * block]
    assert not bench.passes(Reference(spoilt))


@NAMES
def test_one_wrong_block_of_a_row_that_is_gathered_is_caught(name: str) -> None:
    block = DTYPES[name].block
    a, out = (Layout.contiguous(dtype, (1, 1, 3, 4 * block)) for dtype in (name, "f32"))
    b = Layout.contiguous("i32", (1, 1, 1, 3))
    bench = Bench(Case("get_rows", {}, {"a": a, "b": b}, {"out": out}, "normal", seed=3))
    value = bench.expected().value
    assert bench.passes(Reference(value))
    spoilt = value.copy()
    spoilt[..., 1, block : 2 * block] = value[..., 1, 2 * block : 3 * block]
    assert not bench.passes(Reference(spoilt))


class Copies(Backend):
    """Copies blocks; where told so, with one bit of one block turned."""

    def __init__(self, turned: int | None = None) -> None:
        super().__init__("0", {})
        self._turned = turned

    def run(self, case: Case, buffers: Buffers) -> None:
        made = np.array(buffers.raw("x"), order="C")
        if self._turned is not None:
            made.reshape(-1).view(np.uint8)[self._turned] ^= 1
        buffers.raw("out")[...] = made


@NAMES
def test_copies_of_blocks_are_judged_bit_by_bit(name: str) -> None:
    its = Layout.contiguous(name, (1, 1, 3, 4 * DTYPES[name].block))
    bench = Bench(Case("cpy_blocks", {}, {"x": its}, {"out": its}, "normal", seed=3))
    assert bench.passes(Copies())
    size = 12 * DTYPES[name].itemsize
    assert not any(bench.passes(Copies(byte)) for byte in (0, size // 2, size - 1))


# --- indices in case files ---


def test_an_index_out_of_range_is_an_error_and_no_crash() -> None:
    case = drawn_cases("get_rows", 8, MAX_BYTES)[0]
    values = inputs_of(case, ops()["get_rows"])
    values["b"] = np.full_like(values["b"], case.inputs["a"].shape[2])
    with pytest.raises(CaseError, match="holds the index"):
        inputs_of(case.with_data(data_of(values)), ops()["get_rows"])
    values["b"] = np.full_like(values["b"], 2**32 - 1)  # -1
    with pytest.raises(CaseError, match="holds the index -1"):
        inputs_of(case.with_data(data_of(values)), ops()["get_rows"])


def test_an_index_that_is_there_twice_is_refused_where_rows_are_written() -> None:
    case = next(it for it in drawn_cases("set_rows", 64, MAX_BYTES) if it.inputs["c"].shape[-1] > 1)
    values = inputs_of(case, ops()["set_rows"])
    values["c"] = np.zeros_like(values["c"])
    with pytest.raises(CaseError, match="twice"):
        inputs_of(case.with_data(data_of(values)), ops()["set_rows"])


@pytest.mark.parametrize("op", [op for op in (*OPS, *WITHOUT_TORCH) if ops()[op].indices])
def test_drawn_indices_are_in_range_and_reach_both_ends(op: str) -> None:
    its, ends = ops()[op], set()
    for bench in benches(op):
        for name, index in its.indices.items():
            found = bench.values[name].view(bench.case.inputs[name].type.native)
            size = index.size(bench.case)
            assert ((found >= 0) & (found < size)).all()
            if index.of and size > 1:
                ends |= {end for end, place in (("first", 0), ("last", size - 1)) if (found == place).any()}
    assert ends in ({"first", "last"}, set())


def test_equal_values_may_be_sorted_in_any_order() -> None:
    x = Layout.contiguous("f32", (1, 1, 1, 4))
    case = Case("argsort", {"order": "desc"}, {"x": x}, {"out": Layout.contiguous("i32", (1, 1, 1, 4))})
    bench = Bench(case, {"x": F32.encode(np.array([[[[2.0, 5.0, 2.0, 1.0]]]]))})
    for order, right in (([1, 0, 2, 3], True), ([1, 2, 0, 3], True), ([1, 0, 0, 3], False), ([0, 1, 2, 3], False)):
        assert bench.passes(Reference(np.array([[[order]]], np.float64))) is right


def test_the_largest_may_come_in_any_order_but_none_twice() -> None:
    x = Layout.contiguous("f32", (1, 1, 1, 4))
    case = Case("top_k", {"k": 2}, {"x": x}, {"out": Layout.contiguous("i32", (1, 1, 1, 2))})
    bench = Bench(case, {"x": F32.encode(np.array([[[[2.0, 5.0, 2.0, 1.0]]]]))})
    for order, right in (([1, 0], True), ([2, 1], True), ([1, 1], False), ([0, 2], False), ([1, 3], False)):
        assert bench.passes(Reference(np.array([[[order]]], np.float64))) is right


def test_blocks_are_drawn_as_well_as_encoded() -> None:
    seeds = {case.seed % 2 for case in drawn_cases("get_rows", 64, MAX_BYTES) if case.inputs["a"].type.block > 1}
    assert seeds == {0, 1}
    assert blocks.available()
