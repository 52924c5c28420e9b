"""Known cases can fail: wrong kernels of the plainest sort, and such as compute in a lower precision, are caught.

`benchmarks/vacuous.py` looks at those too that are large.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opconform.harness.draw.known import known_cases
from opconform.harness.judge.vacuous import weaknesses
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops
from opconform.harness.model.values import inputs_of
from tests.judge import Bench
from tests.kernels import delta_odd, mla
from tests.kernels.base import Kernel
from tests.kernels.precision import ROUNDED, BluntAttention, BluntDelta, BluntFlash, is_caught, off_by_a_ten_thousandth

MOST_BYTES = 3 << 20
#: What some right answers are by definition: what these cases pin is that they are written, and nothing else.
OF_NOTHING = {"mla_absorbed/empty-cache": "an output of zeros passes too"}

SMALL = [known.id for known in known_cases().values() if known.case.nbytes <= MOST_BYTES]
OPS = list(dict.fromkeys(name.partition("/")[0] for name in SMALL))


def weaknesses_of(case: Case) -> list[str]:
    op = ops()[case.op]
    return list(weaknesses(op, case, inputs_of(case, op)))


def has_empty(case: Case) -> bool:
    return any(layout.size == 0 for layout in case.layouts.values())


@pytest.mark.parametrize("op", OPS)
def test_no_known_case_is_passed_by_zeros_by_a_copy_or_by_what_stops_after_a_tile(op: str) -> None:
    for name in SMALL:
        case = known_cases()[name].case
        if name.startswith(f"{op}/") and not has_empty(case):
            wanted = [OF_NOTHING[name]] if name in OF_NOTHING else []
            assert weaknesses_of(case) == wanted, name


@pytest.mark.parametrize(
    ("recipe", "n", "wanted"),
    [
        ("normal", 100_001, "an output of zeros passes too"),
        ("whole", 100_001, None),
        ("small_int", 7, None),
    ],
)
def test_a_case_that_cannot_fail_is_told(recipe: str, n: int, wanted: str | None) -> None:
    case = Case(
        "sum_rows",
        {},
        {"x": Layout.contiguous("f32", (1, 1, 1, n))},
        {"out": Layout.contiguous("f32", (1, 1, 1, 1))},
        recipe=recipe,
    )
    assert weaknesses_of(case) == ([] if wanted is None else [wanted])


def test_a_row_whose_end_does_not_count_is_told() -> None:
    layout = Layout.contiguous("f32", (1, 1, 1, 8))
    values = np.array([2.0**20, 3, 5, 7, 2.0**-9, 2.0**-9, 2.0**-9, 2.0**-9], np.float32)
    params = {"axis": 0, "exclusive": False, "reverse": False}
    case = Case("cumsum", params, {"x": layout}, {"out": layout}).with_data({"x": values.tobytes()})
    assert "what x holds from place 4 of 8 on does not count" in weaknesses_of(case)
    assert weaknesses_of(replace(case, data=None, recipe="whole")) == []


#: Cases of models that hold 16 bits from the start: nothing is lost where those are read in 16 bits.
LOSSLESS = {"cont/mla-rope", "cpy/kv-cache-f16", "silu/qwen3next-expert-f16"}
#: Beside those of models, the delta nets with the heads of one.
MORE = (
    "cumsum/upstream-1024",
    "gated_delta_net/kimi-two-heads",
    "gated_delta_net/qwen3-next-packed",
    "gated_delta_net_chunk/acc-heads",
    "gated_delta_net_chunk/acc-sequences",
    "gated_delta_net_chunk/last-chunk-13",
    "mla_absorbed/kimi-decode-two-part",
    "mla_absorbed/kimi-prefill-bf16",
    "solve_tri/kb037",
)
_QUICK = 8 << 20  #: bytes; twins of the larger ones are below it
MODELS = [name for name, known in known_cases().items() if known.of_model and known.case.nbytes <= _QUICK]


@pytest.mark.parametrize("name", [*MORE, *(name for name in MODELS if name not in {*MORE, *LOSSLESS})])
def test_the_shapes_of_models_catch_operands_of_a_lower_precision(name: str) -> None:
    bench = Bench(known_cases()[name].case)
    assert [precision for precision in ROUNDED if not is_caught(bench, precision)] == []


def test_there_are_cases_of_models_for_what_models_are_made_of() -> None:
    assert len(MODELS) > 90
    ops_of_models = {known_cases()[name].case.op for name in MODELS}
    assert ops_of_models >= {"mul_mat_add", "rms_norm", "rope_set_rows", "flash_attn_ext", "moe_routing", "silu"}
    assert {*MODELS} >= LOSSLESS
    for name in LOSSLESS:
        bench = Bench(known_cases()[name].case)
        assert not is_caught(bench, "f16")
        assert is_caught(bench, "bf16")


@pytest.mark.parametrize(
    ("name", "kernel", "right"),
    [
        ("mla_absorbed/kimi-decode-two-part", BluntAttention, mla.Blas),
        ("mla_absorbed/kimi-decode-flash", BluntFlash, mla.Online32),
        ("mla_absorbed/kimi-prefill-bf16", BluntAttention, mla.Blas),
        ("gated_delta_net/kimi-two-heads", BluntDelta, delta_odd.Blas),
        ("gated_delta_net/qwen3-next-packed", BluntDelta, delta_odd.Blas),
        ("gated_delta_net_chunk/acc-heads", BluntDelta, delta_odd.Blas),
        ("gated_delta_net_chunk/last-chunk-13", BluntDelta, delta_odd.Blas),
        ("gated_delta_net_chunk/strong-decay", BluntDelta, delta_odd.Blas),
    ],
)
def test_an_exponential_off_by_a_ten_thousandth_is_caught(name: str, kernel: type[Kernel], right: type[Kernel]) -> None:
    bench = Bench(known_cases()[name].case)
    assert bench.passes(right())
    assert not bench.passes(kernel())


@pytest.mark.parametrize("name", ["exp/kimi-chunk", "silu/kimi-expert"])
def test_an_exponential_off_by_a_ten_thousandth_is_caught_where_it_stands_alone(name: str) -> None:
    bench = Bench(known_cases()[name].case)

    class Blunt(Kernel):
        def exp(self, case: Case, buffers: object) -> None:
            self.write(buffers, "out", off_by_a_ten_thousandth(self.read(buffers, "x")))  # type: ignore[arg-type]

        def silu(self, case: Case, buffers: object) -> None:
            x = self.read(buffers, "x")  # type: ignore[arg-type]
            self.write(buffers, "out", x / (1 + off_by_a_ten_thousandth(-x)))  # type: ignore[arg-type]

    assert not bench.passes(Blunt())


def test_the_bound_of_the_attention_of_models_is_far_below_upstreams_tolerance() -> None:
    """test-backend-ops asks for a normalised mean squared error of 1e-7 at most."""
    for name, share in (
        ("mla_absorbed/kimi-decode-two-part", 1e-8),
        ("mla_absorbed/kimi-prefill-bf16", 1e-8),
        ("mla_absorbed/deepseek-v3-batch-scaled", 1e-8),
        ("mla_absorbed/deepseek-v3-prefill-scaled", 2e-8),
    ):
        expected = Bench(known_cases()[name].case).expected()
        assert np.sum(expected.bound**2) < share * np.sum(expected.value**2)
