"""Blocks of quantised types: decoded, encoded, drawn, laid out, and in case files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from opconform.harness.draw.variants import PACKED, Departure
from opconform.harness.model import blocks
from opconform.harness.model.buffers import GUARD, Buffers, Plan, unwritten
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DTYPES, QUANTISED
from opconform.harness.model.image import Image
from opconform.harness.model.layouts import Layout, LayoutClass

NAMES = pytest.mark.parametrize("name", QUANTISED)
ENCODED = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4")


def case_of(name: str, departure: Departure = PACKED) -> Case:
    block = DTYPES[name].block
    layout = departure.layout(name, (1, 2, 3, 2 * block))
    return Case("cont", {}, {"x": layout}, {"out": layout.packed()})


@NAMES
def test_drawn_blocks_are_numbers_with_any_scale(name: str) -> None:
    raw = blocks.drawn(name, np.random.default_rng(0), (5, 7), widest=True)
    assert raw.dtype == DTYPES[name].raw
    values = DTYPES[name].decode(raw)
    assert values.shape == (5, 7 * DTYPES[name].block)
    assert not np.isnan(values).any()
    finite = np.isfinite(values)
    if name == "mxfp4":  # 12·2^(253 − 128) is no float32, which the package decodes into
        finite |= np.repeat(blocks.as_bytes(name, raw)[:, 0] >= 253, 32).reshape(values.shape)
    assert finite.all()
    assert len(np.unique(values)) > 10


def test_every_exponent_of_mxfp4_that_is_a_number_is_drawn() -> None:
    def exponents(widest: bool) -> npt.NDArray[np.uint8]:
        return blocks.as_bytes("mxfp4", blocks.drawn("mxfp4", np.random.default_rng(0), (5000,), widest))[:, 0]

    assert set(exponents(widest=True)) == set(range(255))
    assert set(exponents(widest=False)) == set(range(100, 151))


def test_a_scale_of_mxfp4_may_be_a_denormal_float32() -> None:
    raw = np.zeros((4, 17), np.uint8)
    raw[:, 0] = (0, 1, 2, 127)
    found = blocks.with_tiny_scale("mxfp4", raw.view("V17")[:, 0])
    assert found.reshape(4, 32).all(1).tolist() == [True, True, False, False]


@NAMES
@pytest.mark.parametrize("count", [1, 15, 16, 257])
def test_many_blocks_are_what_each_is_alone(name: str, count: int) -> None:
    raw = blocks.drawn(name, np.random.default_rng(count), (count,), widest=False)
    values = blocks.decode(name, raw)
    alone = [blocks.decode(name, raw[index : index + 1]) for index in range(count)]
    assert (values == np.concatenate(alone)).all()
    if name in ENCODED:
        own = [blocks.encode(name, each) for each in alone]
        assert (blocks.encode(name, values) == np.concatenate(own)).all()


@pytest.mark.parametrize("name", ENCODED)
def test_an_encoded_block_is_near_its_values(name: str) -> None:
    values = np.random.default_rng(1).standard_normal((3, 4 * 32))
    found = DTYPES[name].decode(DTYPES[name].encode(values))
    largest = np.abs(values.reshape(-1, 32)).max(1).repeat(32).reshape(values.shape)
    assert (np.abs(found - values) <= largest / (3 if name == "mxfp4" else 6)).all()


@NAMES
def test_equal_values_give_equal_blocks(name: str) -> None:
    values = np.random.default_rng(2).standard_normal((2, 512))
    assert (DTYPES[name].encode(values) == DTYPES[name].encode(values.copy())).all()


@NAMES
def test_the_parts_of_an_element_make_it(name: str) -> None:
    raw = blocks.drawn(name, np.random.default_rng(3), (4,), widest=False)
    scaled, least = blocks.magnitudes(name, raw)
    values = np.abs(DTYPES[name].decode(raw))
    assert (values <= (scaled + least) * (1 + 2**-20)).all()
    assert least.any() == bool(blocks.BLOCKS[name].mins)
    stored, centre = blocks.magnitudes(name, raw, stored_codes=True)
    its = blocks.BLOCKS[name]
    assert (values <= (stored + centre) * (1 + 2**-20)).all()
    assert centre.any() == bool(its.mins or any(its.centred))


def test_a_q4_0_block_is_what_ggml_common_h_says() -> None:
    block = np.zeros((1, 18), np.uint8)
    block[0, :2] = np.array([0.5], "<f2").view(np.uint8)
    block[0, 2] = 0xF1  # the first element's code in the low half, the 17th's in the high one
    values = DTYPES["q4_0"].decode(block.view("V18")[:, 0])
    assert (values[0], values[16], values[1]) == ((1 - 8) * 0.5, (15 - 8) * 0.5, -8 * 0.5)


@NAMES
def test_a_layout_counts_elements_and_strides_go_from_block_to_block(name: str) -> None:
    dtype = DTYPES[name]
    layout = Layout.contiguous(name, (1, 2, 3, 2 * dtype.block))
    assert layout.nb[:2] == (dtype.itemsize, 2 * dtype.itemsize)
    assert layout.end == 12 * dtype.itemsize
    assert layout.kind is LayoutClass.PACKED
    padded = Departure(pads=(1, 0, 0, 0), offset=3).layout(name, layout.shape)
    assert (padded.nb[1], padded.offset) == (3 * dtype.itemsize, 3 * dtype.itemsize)
    assert padded.kind is LayoutClass.ROWS


@NAMES
def test_blocks_stand_in_memory_between_poison(name: str) -> None:
    case, dtype = case_of(name, Departure(pads=(1, 0, 0, 0), offset=1)), DTYPES[name]
    plan = Plan.of(case)
    buffers = Buffers(case, np.zeros(plan.size, np.uint8), plan)
    raw = blocks.drawn(name, np.random.default_rng(4), (1, 2, 3, 2), widest=False)
    buffers.fill({"x": raw})
    assert (buffers.raw("x") == raw).all()
    assert (buffers.raw("out") == unwritten(dtype)).all()
    start = plan.slots["x"].start
    assert (buffers.memory[start - GUARD : start + dtype.itemsize] == 0xFF).all()
    gap = buffers.memory[start + 3 * dtype.itemsize : start + 4 * dtype.itemsize]
    assert (gap == 0xFF).all()
    packed = Image(case, {"x": raw}).read("x", case.inputs["x"].packed().strides, case.inputs["x"].offset)
    assert (packed[0, 0, 0] == raw[0, 0, 0]).all()
    assert packed[0, 0, 1, 0] != raw[0, 0, 1, 0]


def test_a_case_file_with_part_of_a_block_is_refused() -> None:
    plain = case_of("q4_K").to_json()
    plain["inputs"]["x"]["shape"] = [1, 2, 3, 300]
    with pytest.raises(CaseError, match="multiple of 256"):
        Case.from_json(plain)


def test_a_case_file_with_blocks_is_read_back() -> None:
    case = case_of("q6_K", Departure(pads=(2, 0, 0, 0)))
    raw = blocks.drawn("q6_K", np.random.default_rng(5), (1, 2, 3, 2), widest=False)
    case = case.with_data({"x": raw.tobytes()})
    assert Case.from_json(case.to_json()) == case
    assert Case.from_json(case.to_json()).data == case.data


def test_without_the_decoder_a_case_file_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "available", lambda: False)
    with pytest.raises(CaseError, match="gguf"):
        Case.from_json(replace(case_of("q4_0")).to_json())
