"""Which products ggml's Vulkan device computes on a copy of 16 bits, as read in its source."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opconform.backends.ggml.backend import copies_to_16_bits
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout


def product(weights: str, columns: int, batches: int, apart: str = "", b_type: str = "f32") -> Case:
    b = Layout.contiguous(b_type, (2, batches, columns, 32))
    if apart == "rows":
        b = replace(b, strides=(*(2 * step for step in b.strides[:3]), b.strides[3]))
    if apart == "outermost":
        b = replace(b, strides=(2 * b.strides[0], *b.strides[1:]))
    if apart == "matrices":
        b = replace(b, strides=(2 * b.strides[0], 2 * b.strides[1], *b.strides[2:]))
    a = Layout.contiguous(weights, (2, batches, 4, 32))
    out = Layout.contiguous("f32", (2, batches, columns, 4))
    return Case("mul_mat", {}, {"a": a, "b": b}, {"out": out}, recipe="normal")


def single(case: Case) -> Case:
    """The same without an outermost axis."""
    inputs = {name: replace(layout, shape=(1, *layout.shape[1:])) for name, layout in case.inputs.items()}
    outputs = {name: replace(layout, shape=(1, *layout.shape[1:])) for name, layout in case.outputs.items()}
    return replace(case, inputs=inputs, outputs=outputs)


def test_products_of_matrices_copy_a_b_whose_rows_are_apart() -> None:
    assert copies_to_16_bits(single(product("f16", 9, 1, "rows")))
    assert copies_to_16_bits(single(product("f16", 2, 3, "rows")))
    assert copies_to_16_bits(product("f16", 9, 1, "outermost"))
    assert not copies_to_16_bits(single(product("f16", 9, 1, "outermost")))


@pytest.mark.parametrize("apart", ["", "matrices"])
def test_rows_side_by_side_are_read_as_they_are(apart: str) -> None:
    assert not copies_to_16_bits(product("f16", 9, 2, apart))


def test_few_columns_keep_their_type() -> None:
    assert not copies_to_16_bits(single(product("f16", 8, 1, "rows")))
    assert not copies_to_16_bits(product("f16", 1, 3, "rows"))
    assert not copies_to_16_bits(single(product("bf16", 8, 1)))


def test_beside_bf16_every_other_b_becomes_bf16() -> None:
    assert copies_to_16_bits(single(product("bf16", 9, 1)))
    assert not copies_to_16_bits(single(product("bf16", 9, 1, b_type="bf16")))


@pytest.mark.parametrize(("weights", "tokens", "copied"), [("f16", 1, False), ("f16", 2, True), ("bf16", 1, True)])
def test_one_token_of_experts_keeps_its_type(weights: str, tokens: int, copied: bool) -> None:
    b = Layout.contiguous("f32", (1, tokens, 2, 32))
    b = replace(b, strides=(*(2 * step for step in b.strides[:3]), b.strides[3]))
    a, ids = Layout.contiguous(weights, (1, 4, 8, 32)), Layout.contiguous("i32", (1, 1, tokens, 2))
    out = Layout.contiguous("f32", (1, tokens, 2, 8))
    case = Case("mul_mat_id", {}, {"a": a, "b": b, "ids": ids}, {"out": out}, recipe="normal")
    assert copies_to_16_bits(case) is copied
