"""The bytes and the operations of a case, as its op counts them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opconform.harness.draw.known import known_cases
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops
from opconform.harness.model.values import data_of, inputs_of, places_of
from opconform.harness.model.work import Work, bytes_of, everything_once
from tests.samples import acc


def work_of(case: Case) -> Work:
    return Work.of(ops()[case.op], case)


def known(name: str) -> Case:
    return known_cases()[name].case


def test_an_op_that_moves_elements_touches_each_once() -> None:
    case = known("tri/qwen3-next-chunk")
    assert work_of(case) == Work(2 * 4 * 64 * 64 * 32, 0)


def test_an_element_that_is_repeated_by_its_stride_is_read_once() -> None:
    assert bytes_of(Layout("f32", (2, 3, 5), (0, 20, 4))) == 3 * 5 * 4
    assert bytes_of(Layout("f16", (2, 0, 5), (0, 20, 2))) == 0


def test_blocks_are_counted_as_blocks() -> None:
    assert bytes_of(Layout.contiguous("q4_0", (16, 256))) == 16 * 256 // 32 * 18
    assert bytes_of(Layout("q4_0", (3, 16, 256), (0, 144, 18))) == 16 * 256 // 32 * 18


def test_a_product_takes_a_product_and_a_sum_for_each_term() -> None:
    assert work_of(known("mul_mat/uneven")) == Work(16 * 256 // 32 * 18 + 4 * (256 + 16), 2 * 256 * 16)


def test_acc_in_place_touches_only_the_view() -> None:
    assert work_of(acc(8, 2, a=(8, 4))) == Work((32 + 16 + 32) * 4, 16)
    assert work_of(acc(8, 2, a=(8, 4), inplace=True)) == Work(3 * 16 * 4, 16)


def test_set_does_not_read_what_it_replaces() -> None:
    case = replace(acc(8, 2, a=(8, 4)), op="set")
    assert work_of(case) == Work((16 + 16 + 32) * 4, 0)


def test_a_triangular_solve_reads_one_triangle_and_takes_n_squared_operations_a_side() -> None:
    case = known("solve_tri/kimi-blocks")
    n, batch, sides = 16, 64, case.inputs["b"].shape[-1]
    assert work_of(case) == Work(4 * batch * (n * (n + 1) // 2 + 2 * n * sides), n * n * sides * batch)


def test_a_convolution_takes_a_product_and_a_sum_for_each_tap() -> None:
    case = known("ssm_conv/kimi-prefill")
    assert work_of(case).flops == 2 * 4 * 37 * 4096


def test_the_recurrence_passes_over_the_state_seven_times_a_token() -> None:
    assert work_of(known("gated_delta_net/kimi-prefill")).flops == 7 * 16 * 32 * 128 * 128


def rows_more(case: Case, name: str) -> int:
    """What one more row of the cache adds for one decoded token."""
    rows = int(case.params["kv_len"])
    more = replace(case, params={**case.params, "kv_len": rows + 1})
    return int(getattr(work_of(more), name)) - int(getattr(work_of(case), name))


@pytest.mark.parametrize("form", ["two-part", "concat", "flash"])
def test_absorbed_attention_takes_what_was_published_for_each_row_of_the_cache(form: str) -> None:
    """1.15 KB and 0.28 MFLOP for each token in the cache of DeepSeek-V3, whichever way the scores are computed."""
    case = known(f"mla_absorbed/deepseek-v3-decode-{form}")
    if case.inputs["c_kv"].shape[2] == case.params["kv_len"]:
        case = replace(case, params={**case.params, "kv_len": int(case.params["kv_len"]) - 1})
    assert rows_more(case, "flops") == 128 * (2 * 576 + 2 * 512) == 278_528
    assert rows_more(case, "moved") == 576 * case.inputs["c_kv"].type.itemsize


def test_a_causal_query_pays_only_for_the_rows_that_it_sees() -> None:
    case = known("mla_absorbed/kimi-prefill")
    full = replace(case, params={**case.params, "causal": False})
    queries, heads = 16, 32
    hidden = queries * (queries - 1) // 2
    assert work_of(full).flops - work_of(case).flops == 2 * heads * hidden * (2 * 512 + 64)


@pytest.mark.parametrize(
    ("case", "index", "of"),
    [("mul_mat_id/uneven", "ids", "a"), ("get_rows/cpu-strides", "b", "a"), ("ssm_scan/mamba-2-layer", "ids", "state")],
)
def test_of_what_an_index_names_only_that_is_moved(case: str, index: str, of: str) -> None:
    """Of many experts a token uses a few: the bytes of the others are none that it takes."""
    for seed in range(8):
        some = replace(known(case), seed=seed)
        op, layout = ops()[some.op], some.inputs[of]
        raw = inputs_of(some, op)[index]
        assert np.array_equal(places_of(some, op, index), raw)
        left = 1 - len(np.unique(raw)) / op.indices[index].size(some)
        assert work_of(some).moved == everything_once(some) - round(left * bytes_of(layout))
        with_data = some.with_data(data_of(inputs_of(some, op)))
        assert work_of(with_data) == work_of(some)


def test_an_argument_whose_shape_alone_matters_is_not_read() -> None:
    case = known("fill/uneven")
    assert work_of(case).moved == bytes_of(case.outputs["out"])
