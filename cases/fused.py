"""Pieces that begin with a product, a convolution or a norm, and go on element by element: see `pieces.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from opconform.cases import glu, groups, products, ssm_conv
from opconform.cases.activations import silu
from opconform.cases.families.behind import behind
from opconform.harness.model.approx import Approx
from opconform.harness.model.op import Op, Problem


def _one_vector(problem: Problem) -> Problem:
    """One matrix times one vector."""
    m, k = problem.shapes["a"][2:]
    return replace(problem, shapes={"a": (1, 1, m, k), "b": (1, 1, 1, k)}, out_shape=(1, 1, 1, m))


_FIRST: dict[str, Op] = {op.name: op for op in (*products.OPS, *groups.OPS, ssm_conv.OP)}
_FIRST["mul_mat"] = replace(_FIRST["mul_mat"], argument_dtypes=products.ARGUMENTS, problems=products.problems)

#: What gpt-oss gates with (llama.cpp, src/llama-graph.cpp, LLM_FFN_SWIGLU_OAI_MOE).
_OAI_ALPHA, _OAI_LIMIT = 1.702, 7.0


def _oai(gate: Approx, up: Approx) -> Approx:
    return glu.oai(gate, up, _OAI_ALPHA, _OAI_LIMIT)


def _gated(first: str, name: str, products_of: str, gated: Callable[[Approx, Approx], Approx]) -> Op:
    """Two products of the same rows, the one with a through a gate, times the other."""
    return behind(
        _FIRST[first],
        name,
        f"{products_of}, gated by those with a",
        lambda gate, up: (gate, up, gated(gate, up)),
        arguments={"c": ("weights",)},
        steps=("gate", "up"),
        vector=_one_vector if first == "mul_mat" else None,
        mistakes={
            "the products with a and c are exchanged": lambda gate, up: gated(up, gate),
            "the activation is left out": lambda gate, up: gate * up,
            "both products are those with a": lambda gate, up: gated(gate, gate),
            "both products are those with c": lambda gate, up: gated(up, up),
        },
    )


def _biased(
    first: str, name: str, products_of: str, kinds: tuple[str, ...], gated: Callable[[Approx, Approx], Approx]
) -> Op:
    """The same with a bias for each product."""
    return behind(
        _FIRST[first],
        name,
        f"{products_of} and a bias, gated by those with a and another bias",
        lambda gate, up, bias, bias_c: (gate, gate + bias, up, up + bias_c, gated(gate + bias, up + bias_c)),
        arguments={"c": ("weights",), "bias": kinds, "bias_c": kinds},
        steps=("gate", "biased_gate", "up", "biased_up"),
        vector=_one_vector if first == "mul_mat" else None,
        mistakes={
            "the biases are left out": lambda gate, up, bias, bias_c: gated(gate, up),
            "bias is left out": lambda gate, up, bias, bias_c: gated(gate, up + bias_c),
            "bias_c is left out": lambda gate, up, bias, bias_c: gated(gate + bias, up),
            "the biases are exchanged": lambda gate, up, bias, bias_c: gated(gate + bias_c, up + bias),
            "the products with a and c are exchanged": lambda gate, up, bias, bias_c: gated(up + bias_c, gate + bias),
        },
    )


_OF_ROWS = "products of the rows of b with those of c"
_OF_EXPERTS = "products of rows with the matrices of c that ids choose"

OPS = (
    behind(
        _FIRST["mul_mat"],
        "mul_mat_add",
        "products of the rows of b with those of a, and a bias",
        lambda product, bias: (product, product + bias),
        arguments={"bias": ("whole", "row")},
        steps=("product",),
        vector=_one_vector,
        mistakes={"the bias is left out": lambda product, bias: product},
    ),
    behind(
        _FIRST["mul_mat"],
        "mul_mat_add_add",
        "products of the rows of b with those of a, a bias and a residual",
        lambda product, bias, residual: (product, product + bias, product + bias + residual),
        arguments={"bias": ("whole", "row"), "residual": ("whole",)},
        steps=("product", "biased"),
        vector=_one_vector,
        mistakes={
            "the bias is left out": lambda product, bias, residual: product + residual,
            "the residual is left out": lambda product, bias, residual: product + bias,
        },
    ),
    behind(
        _FIRST["mul_mat"],
        "mul_mat_mul",
        "products of the rows of b with those of a, times one scale",
        lambda product, s: (product, product * s),
        arguments={"s": ("one",)},
        steps=("product",),
        vector=_one_vector,
        mistakes={"the scale is left out": lambda product, s: product},
    ),
    behind(
        _FIRST["mul_mat_id"],
        "mul_mat_id_mul",
        "products of rows with the matrices that ids choose, times a weight for each",
        lambda product, s: (product, product * s),
        arguments={"s": ("column",)},
        steps=("product",),
        mistakes={"the weights are left out": lambda product, s: product},
    ),
    behind(
        _FIRST["mul_mat_id"],
        "mul_mat_id_add_id",
        "products of rows with the matrices that ids choose, with their biases",
        lambda product, bias: (product, product + bias),
        arguments={"bias": ("experts",)},
        steps=("product",),
        mistakes={"the biases are left out": lambda product, bias: product},
    ),
    behind(
        _FIRST["mul_mat_id"],
        "mul_mat_id_add_id_mul",
        "products of rows with the matrices that ids choose, with their biases, times a weight for each",
        lambda product, bias, s: (product, product + bias, (product + bias) * s),
        arguments={"bias": ("experts",), "s": ("column",)},
        steps=("product", "biased"),
        mistakes={
            "the biases are left out": lambda product, bias, s: product * s,
            "the biases are added behind the weights": lambda product, bias, s: product * s + bias,
        },
    ),
    _gated("mul_mat", "mul_mat_swiglu", _OF_ROWS, glu.GATES["swiglu"]),
    _gated("mul_mat", "mul_mat_geglu", _OF_ROWS, glu.GATES["geglu"]),
    _biased("mul_mat", "mul_mat_add_swiglu", _OF_ROWS, ("whole", "row"), glu.GATES["swiglu"]),
    _gated("mul_mat_id", "mul_mat_id_swiglu", _OF_EXPERTS, glu.GATES["swiglu"]),
    _biased("mul_mat_id", "mul_mat_id_add_id_swiglu_oai", _OF_EXPERTS, ("experts",), _oai),
    behind(
        _FIRST["ssm_conv"],
        "ssm_conv_silu",
        "silu of the causal convolution of x with a filter for each channel",
        lambda convolved: (convolved, silu(convolved)),
        arguments={},
        steps=("convolved",),
        mistakes={"silu is left out": lambda convolved: convolved},
    ),
    behind(
        _FIRST["ssm_conv"],
        "ssm_conv_add_silu",
        "silu of the causal convolution of x with a filter for each channel, and a bias",
        lambda convolved, bias: (convolved, convolved + bias, silu(convolved + bias)),
        arguments={"bias": ("row",)},
        steps=("convolved", "biased"),
        mistakes={
            "the bias is left out": lambda convolved, bias: silu(convolved),
            "the bias is added behind silu": lambda convolved, bias: silu(convolved) + bias,
        },
    ),
    behind(
        _FIRST["group_norm"],
        "group_norm_mul_add",
        "the norm of groups of channels of x, times w, and b added",
        lambda normed, w, b: (normed, normed * w, normed * w + b),
        arguments={"w": ("channel", "whole"), "b": ("channel", "whole")},
        steps=("normed", "weighed"),
        mistakes={
            "w is left out": lambda normed, w, b: normed + b,
            "b is left out": lambda normed, w, b: normed * w,
            "w and b are exchanged": lambda normed, w, b: normed * b + w,
        },
    ),
)
