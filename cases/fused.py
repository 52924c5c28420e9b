"""Pieces that begin with a product or a convolution, and go on element by element (see `pieces.py`)."""

from __future__ import annotations

from dataclasses import replace

from opconform.cases import products, ssm_conv
from opconform.cases.activations import silu
from opconform.cases.families.behind import behind
from opconform.harness.model.op import Op, Problem


def _one_vector(problem: Problem) -> Problem:
    """One matrix times one vector."""
    m, k = problem.shapes["a"][2:]
    return replace(problem, shapes={"a": (1, 1, m, k), "b": (1, 1, 1, k)}, out_shape=(1, 1, 1, m))


_FIRST: dict[str, Op] = {op.name: op for op in (*products.OPS, ssm_conv.OP)}

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
)
