"""A plain float32 kernel for every op: one operation after the other, sums from the first term to the last.

Most ops have methods in the other modules, or a formula. What is left is computed by its own reference in float32
(`in_float32`): `Approx` values become `Rounded` ones, and the few references that go on in float64 arrays have such a
step exchanged for one in float32. Such a kernel does not say whether the reference is right. It says how large the
errors are that a bound must cover.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

from opconform.cases import convolutions, products, rope, upscale
from opconform.harness.model.approx import Approx
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64, DType, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.run.backend import Backend
from tests.kernels.attention import Attention
from tests.kernels.base import F32
from tests.kernels.correct import Correct
from tests.kernels.delta import Delta
from tests.kernels.formulas import Single
from tests.kernels.mla import Mla
from tests.kernels.recurrences import OPS as RECURRENT
from tests.kernels.recurrences import Recurrence

ONE = np.float32(1)


class Rounded(Single):
    """Numbers that are float32 from the start, however they come to be made."""

    def __init__(self, value: F64, *_: Any, **__: Any) -> None:
        kept = self.nearest(np.asarray(value))
        super().__init__(kept, kept, kept, EXACT)


# --- steps of references that are not written in `Approx` ---


ProductOf = Callable[[F32, F32], F32]


def product_of(y: F32, w: F32) -> F32:
    """y·wᵀ, product by product."""
    total = np.zeros((*np.broadcast_shapes(y.shape[:-2], w.shape[:-2]), y.shape[-2], w.shape[-2]), np.float32)
    for k in range(y.shape[-1]):
        total = total + y[..., :, None, k] * w[..., None, :, k]
    return total


def _product(multiply: ProductOf, w: products.Operand, y: products.Operand, of: DType, numerics: Numerics) -> Expected:
    """`products.product`: Σ_k y[.., n, k]·w[.., m, k]."""
    found = multiply(y.value.astype(np.float32), w.value.astype(np.float32)).astype(np.float64)
    return Expected(found, np.zeros_like(found))


def angles(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: Mapping[str, Any]) -> tuple[F64, F64]:
    """`rope.angles`: the frequencies are powers of the first one, each the product of the one before and that."""
    params = case.params
    x, n = case.inputs["x"], int(params["n_dims"])
    pairs = n if int(params["mode"]) == rope.VISION else n // 2
    turns, exponents = rope._channels(params, pairs)
    positions = raw["pos"].view(np.int32).astype(np.float32).reshape(-1, x.shape[1])
    base, scale, ext = (np.float32(params[name]) for name in ("freq_base", "freq_scale", "ext_factor"))
    step = np.full(max(int(exponents.max(initial=0)), 0) + 1, base ** (np.float32(-2) / np.float32(n)))
    step[0] = ONE
    theta = positions[turns].T * np.multiply.accumulate(step)[exponents]
    if "factors" in case.inputs:
        theta = theta / case.inputs["factors"].type.decode(raw["factors"]).reshape(-1)[:pairs].astype(np.float32)
    found = theta * scale
    if ext:
        low, high, _ = (np.float32(end) for end in rope._corrected(params))
        ramp = (np.arange(pairs, dtype=np.float32) - low) / np.maximum(np.float32(0.001), high - low)
        mix = (ONE - np.clip(ramp, np.float32(0), ONE)) * ext
        found = found * (ONE - mix) + theta * mix
    return found.astype(np.float64), np.zeros(found.shape)


def weights(n: int, m: int, mode: str, numerics: Numerics, alpha: float) -> upscale._Weights:
    """`upscale._weights`."""
    over, under = upscale._ratio(n, m, mode.endswith("+align_corners"))
    half = np.float32(0 if mode.endswith("+align_corners") else 0.5)
    along = (np.arange(m, dtype=np.float32) + half) * (np.float32(over) / np.float32(under))
    kind, _, more = mode.partition("+")
    if more == "antialias":
        wide = np.maximum(ONE, np.float32(over) / np.float32(under))
        distance = np.abs(np.arange(n, dtype=np.float32) + half - along[:, None]) / wide
        value = np.maximum(ONE - distance, np.float32(0))
        value = value / np.add.accumulate(value, -1)[:, -1:]
        return upscale._Weights(value.astype(np.float64), np.zeros(value.shape), 0.0)
    place = np.arange(-upscale._MARGIN, n + upscale._MARGIN, dtype=np.float32)
    distance = np.abs(place - (along - half)[:, None])
    value = np.maximum(ONE - distance, np.float32(0)) if kind == "bilinear" else upscale._cubic(distance, alpha)
    return upscale._folded(value.astype(np.float64), np.zeros(value.shape), n, 0.0)


def weighed(
    planes: F64, down: upscale._Weights, across: upscale._Weights, tiny: float, numerics: Numerics
) -> tuple[F64, F64]:
    """`upscale._weighed`: the rows first."""
    whole, rows, columns = (it.astype(np.float32) for it in (planes, down.value, across.value))
    lines = product_of(np.broadcast_to(rows, (*whole.shape[:2], *rows.shape)), whole.swapaxes(-1, -2))
    found = product_of(lines, columns).astype(np.float64)
    return found, np.zeros_like(found)


def _instead(multiply: ProductOf) -> tuple[tuple[ModuleType, str, Any], ...]:
    product = partial(_product, multiply)
    return (
        (products, "product", product),
        (convolutions, "product", product),
        (rope, "angles", angles),
        (upscale, "_weights", weights),
        (upscale, "_weighed", weighed),
        *((module, "Approx", Rounded) for module in _modules()),
    )


@cache
def _modules() -> tuple[ModuleType, ...]:
    """The modules of cases whose references are written in `Approx`."""
    from opconform.harness.model.ops import ops

    assert ops()  # loads them
    found = [module for name, module in sys.modules.items() if name.startswith("opconform.cases.")]
    return tuple(module for module in found if getattr(module, "Approx", None) is Approx)


@contextmanager
def in_float32(multiply: ProductOf = product_of) -> Iterator[None]:
    """References compute in float32, products of matrices by `multiply`, and have no bounds."""
    with ExitStack() as changed:
        for module, name, instead in _instead(multiply):
            changed.enter_context(mock.patch.object(module, name, instead))
        yield


class Plain(Correct):
    """What has neither a method nor a formula is computed by its reference in float32."""

    name = "plain"

    def by_reference(self, case: Case, buffers: Buffers) -> None:
        with in_float32(self.product_of):
            super().by_reference(case, buffers)

    def product_of(self, y: F32, w: F32) -> F32:
        """y·wᵀ."""
        return product_of(y, w)

    def dsv4_hc_comb(self, case: Case, buffers: Buffers) -> None:
        x = {name: self.read(buffers, name) for name in case.inputs}
        eps = np.float32(case.params["eps"])
        z = x["mixes"][0, 0, :, 8:] * x["scale"][0, 0, 0, 2] + x["base"][0, 0, 0, 8:]
        z = z.reshape(-1, 4, 4)
        p = self.exponential(z - z.max(-1, keepdims=True))
        p = p / self.summed(p)[..., None] + eps
        for axis in (-2, *((-1, -2) * (int(case.params["n_iter"]) - 1))):
            p = p / (eps + np.expand_dims(self.summed(np.moveaxis(p, axis, -1)), axis))
        self.write(buffers, "out", p.reshape(case.outputs["out"].shape))


_OWN: Mapping[str, type[Backend]] = {
    **dict.fromkeys(("gated_delta_net", "gated_delta_net_chunk"), Delta),
    "mla_absorbed": Mla,
    **dict.fromkeys(("soft_max", "flash_attn_ext"), Attention),
    **dict.fromkeys(RECURRENT, Recurrence),
}


def plain(op: str) -> type[Backend]:
    """The plain kernel of an op."""
    return _OWN.get(op, Plain)
