"""Plain kernels in float32 of ops that have no kernel of their own, and products of matrices in every order: right ones
pass, wrong ones are caught."""

from __future__ import annotations

import numpy as np
import pytest

from opconform.harness.model.numerics import EXACT
from tests.judge import Bench, Benches, drawn_benches
from tests.kernels.plain import Plain, in_float32, plain
from tests.kernels.product_odd import OPS, RIGHT, WRONG, TorchProduct

ONE_OF_EACH = ("mul_mat", "mul_mat_id", "out_prod", "conv_2d")


#: References that are computed in float32, of every kind: those whose steps are exchanged, and some in `Approx`.
BY_REFERENCE = (
    *("rope", "rope_set_rows", "rms_norm_mul_rope", "upscale", "dsv4_hc_comb"),
    *("cross_entropy_loss", "lightning_indexer", "timestep_embedding", "moe_routing", "pool_2d_back"),
)


def benches(op: str, count: int = 32) -> Benches:
    return drawn_benches(op, count, 1 << 12)


@pytest.mark.parametrize("op", BY_REFERENCE)
def test_no_plain_kernel_is_blamed(op: str) -> None:
    kernel = plain(op)("0", {})
    assert isinstance(kernel, Plain)
    for bench in benches(op):
        assert bench.passes(kernel), f"{bench.case}: {bench.verdict(kernel).findings}"


@pytest.mark.parametrize("op", ONE_OF_EACH)
def test_no_order_of_summation_is_blamed(op: str) -> None:
    assert op in OPS
    for kernel in RIGHT:
        if kernel is TorchProduct:
            pytest.importorskip("torch")
        its = kernel()
        for bench in benches(op):
            assert bench.passes(its), f"{kernel}: {bench.case}: {bench.verdict(its).findings}"


@pytest.mark.parametrize("op", ONE_OF_EACH)
def test_products_that_are_left_out_or_rounded_are_caught(op: str) -> None:
    missed = [kernel.__name__ for kernel in WRONG if all(bench.passes(kernel()) for bench in benches(op))]
    assert not missed


def test_references_are_themselves_again_afterwards() -> None:
    bench: Bench = next(iter(benches("mul_mat")))
    before = bench.expected().bound.max()
    with in_float32():
        pass
    assert Bench(bench.case).expected().bound.max() == before


@pytest.mark.parametrize("n", [2, 3, 5, 6, 9, 33, 1025])
def test_a_sum_is_off_by_what_its_additions_may_round(n: int) -> None:
    """The orders with the largest partial sums stay below the bound. Where signs are mixed a sum that is off by 3/4 of
    γ·Σ|x|, which is what numbers of one sign may be off by, is beyond it."""
    rng = np.random.default_rng(n)
    x = (rng.standard_normal((200, n)) * np.exp2(rng.integers(-3, 4, (200, n)))).astype(np.float32)
    total, magnitude = x.astype(np.float64).sum(-1), np.abs(x.astype(np.float64)).sum(-1)
    bound = EXACT.of_sum(n - 1.0, magnitude, total)
    for ordered in (np.sort(x, -1), np.sort(x, -1)[:, ::-1], x):
        assert (np.abs(np.add.accumulate(ordered, -1)[:, -1] - total) <= bound).all()
    mixed = np.abs(total) < magnitude / 8
    if n > 8:
        assert mixed.any()
        assert (bound[mixed] < 0.75 * EXACT.gamma(n - 1.0) * magnitude[mixed]).all()
    assert (bound <= EXACT.gamma(n - 1.0) * magnitude).all()
