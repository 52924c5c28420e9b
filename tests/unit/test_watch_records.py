"""What is seen of a graph as data: overlaps, pieces, sources in their places, nodes that become cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from opconform.backends.ggml.llama.bench import Run
from opconform.backends.ggml.llama.cases import NotACase, capture, captured
from opconform.backends.ggml.llama.copies import Copies
from opconform.backends.ggml.llama.pieces import ends_around, overlaps, smallest
from opconform.backends.ggml.llama.records import NO_BUFFER, Buffer, Memory, Node, Source
from opconform.backends.ggml.llama.scripts import script
from opconform.backends.ggml.llama.whole import difference

CPU = Buffer(0, "CPU", 1 << 20, True, 2)


def packed(ne: Sequence[int]) -> tuple[int, ...]:
    steps = [4]
    for size in ne[:3]:
        steps.append(steps[-1] * size)
    return tuple(steps)


def source(name: str, ne: tuple[int, ...], start: int = 0, **more: object) -> Source:
    size = 4 * int(np.prod(ne))
    fields: dict[str, object] = {
        "type": "f32",
        "nb": packed(ne),
        "buffer": CPU,
        "memory": Memory(0, start, start + size),
        "data": np.arange(size // 4, dtype=np.float32).view(np.uint8),
        **more,
    }
    return Source(name=name, ne=ne, **fields)  # type: ignore[arg-type]


def node(index: int, what: str, name: str, start: int, sources: tuple[Source, ...] = (), **more: object) -> Node:
    ne = (4, 2, 1, 1)
    fields: dict[str, object] = {
        "type": "f32",
        "nb": packed(ne),
        "buffer": CPU,
        "memory": Memory(0, start, start + 32),
        "data": np.arange(8, dtype=np.float32).view(np.uint8),
        "op": what,
        "params": bytes(64),
        **more,
    }
    return Node(name=name, ne=ne, index=index, piece=index, what=what, sources=sources, **fields)  # type: ignore[arg-type]


def routed(scale_at: int) -> list[Node]:
    """The routing of a mixture of experts, in short: the logits are read first, and the scaled weights written last."""
    logits = source("logits", (4, 2, 1, 1), 0)
    probs = source("probs", (4, 2, 1, 1), 64)
    return [
        node(0, "MUL_MAT", "logits", 0),
        node(1, "SIGMOID", "probs", 64, (logits,)),
        node(2, "RESHAPE", "probs (reshaped)", 64, (probs,), view_of="probs"),
        node(3, "ARGSORT", "order", 128, (probs,)),
        node(4, "GET_ROWS", "weights", 192, (source("probs (reshaped)", (4, 2, 1, 1), 64, view_of="probs"),)),
        node(5, "SCALE", "scaled", scale_at, (source("weights", (4, 2, 1, 1), 192),)),
        node(
            6, "MUL_MAT_ID", "out", 320, (source("scaled", (4, 2, 1, 1), scale_at), source("order", (4, 2, 1, 1), 128))
        ),
    ]


def test_an_output_over_what_the_piece_still_reads_is_named() -> None:
    (found,) = overlaps(routed(0), 1, 5)
    assert str(found) == "the output of SCALE lies over logits, which the piece still reads"
    assert found.reader.what == "SIGMOID"


def test_an_output_with_memory_of_its_own_is_no_overlap() -> None:
    assert overlaps(routed(256), 1, 5) == ()


def test_what_nobody_reads_after_the_piece_is_no_overlap() -> None:
    nodes = routed(256)
    nodes[4] = replace(nodes[4], memory=Memory(0, 0, 32))  # the weights lie over the logits, but stay in a register
    assert overlaps(nodes, 1, 5) == ()


def test_work_in_place_is_no_overlap() -> None:
    inside = source("x", (4, 2, 1, 1), 0)
    nodes = [node(0, "SCALE", "y", 0, (inside,)), node(1, "ADD", "z", 64, (source("y", (4, 2, 1, 1), 0),))]
    assert overlaps(nodes, 0, 0) == ()
    assert nodes[0].writes_over == (inside,)


def test_views_stay_with_the_node_before_them() -> None:
    assert ends_around(routed(0), 3, 5) == [0, 2, 5, 6]
    assert ends_around(routed(0), 0, 6) == [6]


@pytest.mark.parametrize("wanted", [(1, 5), (3, 4), (0, 6), (4, 6)])
def test_the_smallest_piece_is_found(wanted: tuple[int, int]) -> None:
    def wrong(first: int, last: int) -> bool:
        return first <= wanted[0] and wanted[1] <= last

    assert smallest(routed(0), wrong) == wanted


def test_a_smaller_piece_inside_a_larger_right_one_is_found() -> None:
    """Not monotone: what starts at 3 is fused otherwise than what starts at 1, and is right."""

    def wrong(first: int, last: int) -> bool:
        return last >= 5 and first in (0, 1, 4)

    assert smallest(routed(0), wrong) == (4, 5)


def test_where_no_piece_is_wrong_none_is_found() -> None:
    assert smallest(routed(0), lambda first, last: False) is None
    assert smallest(routed(0)[:1], lambda first, last: True) is None


def test_a_source_that_is_null_keeps_the_places_of_the_others() -> None:
    q, mask = source("q", (4, 2, 1, 1)), source("mask", (4, 2, 1, 1), 64)
    attention = replace(node(0, "FLASH_ATTN_EXT", "kqv", 128, (q, mask)), missing=(1, 2))
    assert [attention.source(place) for place in range(5)] == [q, None, None, mask, None]


@pytest.mark.parametrize(
    ("name", "layer"), [("ffn_out-12", 12), ("blk.3.attn_q.weight", 3), ("cache_s_l0 (view)", 0), ("node_7", None)]
)
def test_the_name_says_the_layer(name: str, layer: int | None) -> None:
    assert node(0, "ADD", name, 0).layer == layer


def test_a_copy_says_its_original() -> None:
    assert source("Vulkan0#blk.0.attn_k.weight#0", (4, 1, 1, 1)).original == "blk.0.attn_k.weight"
    assert source("ffn_out-1", (4, 1, 1, 1)).original == ""


def test_a_copy_that_arrives_changed_is_told() -> None:
    maker = node(0, "ADD", "ffn_inp-0", 0)
    good = source("Vulkan0#ffn_inp-0#0", (4, 2, 1, 1), buffer=NO_BUFFER)
    assert good.data is not None
    bad = replace(good, data=np.roll(good.data, 4))
    copies = Copies()
    assert copies.see(maker) == ()
    assert copies.see(node(1, "MUL", "a", 64, (good,))) == ()
    (found,) = copies.see(node(2, "MUL", "b", 64, (bad,)))
    assert str(found) == "Vulkan0#ffn_inp-0#0, which MUL reads, is not what ADD wrote"
    assert copies.followed == 2


def test_a_node_is_a_case_with_the_very_bytes() -> None:
    x = source("x", (4, 2, 1, 1), 1000 * 256 + 64 + 16, view_of="y", offset=512 + 16)
    found = captured(node(0, "CUMSUM", "sums", 4096, (x,)))
    assert found.case.op == "cumsum"
    assert found.case.params == {"axis": 0, "exclusive": False, "reverse": False}
    assert found.case.inputs["x"].ne == (4, 2, 1, 1)
    assert found.case.inputs["x"].offset == 16  # as aligned as it was in y
    assert found.case.data == {"x": np.arange(8, dtype=np.float32).tobytes()}
    assert found.output.view(np.float32).ravel().tolist() == list(range(8))
    assert found.case.inplace is None
    assert found.lost == ()


def test_a_copy_of_blocks_is_a_case_of_another_op_than_one_of_numbers() -> None:
    number = source("x", (4, 2, 1, 1), 512)
    block = source("x", (32, 1, 1, 1), type="q8_0", nb=(34,) * 4, memory=Memory(0, 0, 34), data=np.zeros(34, np.uint8))
    found = [captured(node(0, "CPY", "y", 4096, (x, number))).case.op for x in (number, block)]
    assert found == ["cpy", "cpy_blocks"]


def test_where_a_device_puts_a_tensor_is_no_trait_of_a_case() -> None:
    """lavapipe's memory starts at any multiple of 16, so that its allocator gives a tensor byte 176, say."""
    x = source("x", (4, 2, 1, 1), 176)
    first = captured(node(0, "CUMSUM", "sums", 4096, (x,))).case
    assert first.inputs["x"].offset == 0
    elsewhere = captured(node(9, "CUMSUM", "sums", 8192, (source("x", (4, 2, 1, 1), 432),))).case
    assert elsewhere.id == first.id


def test_strides_of_a_source_stay_and_its_gaps_do_not_count() -> None:
    data = np.arange(16, dtype=np.float32).view(np.uint8)
    x = source("x", (4, 2, 1, 1), 0, nb=(4, 32, 64, 64), memory=Memory(0, 0, 48), data=data[:48])
    case = captured(node(0, "SUM_ROWS", "sums", 4096, (x,))).case
    assert case.inputs["x"].nb == (4, 32, 64, 64)
    assert case.data == {"x": np.float32([0, 1, 2, 3, 8, 9, 10, 11]).tobytes()}


def test_work_in_place_and_shared_memory_become_the_cases_own() -> None:
    x = source("x", (4, 2, 1, 1), 512)
    assert capture(node(0, "SCALE", "y", 512, (x,)), "scale", {}, ("x",)).case.inplace == "x"
    row = {"view_of": "qkv", "nb": (4, 64, 128, 128), "offset": 0}
    q = source("q", (4, 2, 1, 1), 512, memory=Memory(0, 512, 592), data=np.zeros(80, np.uint8), **row)
    row["offset"] = 16
    k = source("k", (4, 2, 1, 1), 528, memory=Memory(0, 528, 608), data=np.zeros(80, np.uint8), **row)
    found = capture(node(0, "MUL", "y", 4096, (q, k)), "mul", {}, ("a", "b"))
    assert found.case.shares == {"b": "a"}
    assert (found.case.inputs["a"].offset, found.case.inputs["b"].offset) == (0, 16)


def test_what_a_case_cannot_keep_is_said() -> None:
    x = source("x", (4, 2, 1, 1), 512)
    assert capture(node(0, "MUL", "y", 4096, (x, x)), "mul", {}, ("a", "b")).lost == ("b lies in the memory of a",)
    assert capture(node(0, "MUL", "y", 520, (x,)), "mul", {}, ("a",)).lost == ("the output lies over a",)


def test_what_cannot_be_a_case_says_why() -> None:
    with pytest.raises(NotACase, match="no reference of MAP_CUSTOM1 yet"):
        captured(node(0, "MAP_CUSTOM1", "y", 0))
    with pytest.raises(NotACase, match="the bytes of x were not read"):
        captured(node(0, "CUMSUM", "y", 0, (source("x", (4, 2, 1, 1), data=None),)))
    with pytest.raises(NotACase, match="a is odd"):
        capture(node(0, "MUL", "y", 0, (source("x", (4, 2, 1, 1), type="odd"),)), "mul", {}, ("a",))


def test_a_sequence_gets_the_same_tokens_alone_and_among_others() -> None:
    alone, together = script(256, 5, 1, 2), script(256, 5, 3, 2)
    assert [len(batch.tokens) for batch in together] == [15, 3, 3]
    for one, all_ in zip(alone, together):
        mine = [token for token, sequence in zip(all_.tokens, all_.sequences) if sequence == 0]
        assert mine == list(one.tokens)
    cut = script(256, 5, 1, 2, parts=2)
    assert [batch.positions for batch in cut] == [(0, 1), (2, 3, 4), (5,), (6,)]
    assert sum((batch.tokens for batch in cut), ()) == sum((batch.tokens for batch in alone), ())


def test_each_token_has_a_threshold_of_its_own() -> None:
    one = Run((np.zeros((3, 4)), np.zeros((2, 4))))
    other = Run((np.array([[0, 0, 5.0, 0], [0, 0.2, 0, 0], [0.1, 0, 0, 0]]), np.zeros((2, 4))))
    thresholds = [np.array([10.0, 0.1, 1.0]), np.array([1.0, 1.0])]
    found = difference(one, other, thresholds)
    assert (found.decode, found.row, found.off, found.threshold, found.wrong) == (0, 1, 0.2, 0.1, True)
    assert not difference(one, other, [10 * thresholds[0], thresholds[1]]).wrong
    assert not difference(one, other, thresholds, start=1).wrong


def test_logits_that_are_no_numbers_are_off_only_where_they_differ() -> None:
    nan, inf = float("nan"), float("inf")
    one, limits = Run((np.array([[1.0, nan, inf]]), np.array([[1.0, 2.0, 3.0]]))), [np.ones(1), np.ones(1)]
    assert difference(one, one, limits).off == 0
    other = Run((one.logits[0], np.array([[1.0, nan, 3.0]])))
    found = difference(one, other, limits)
    assert (found.off, found.first, found.wrong) == (inf, 1, True)
    assert not difference(one, other, [np.ones(1), np.array([inf])]).wrong  # nothing to compare with
