"""Arrays as Python source: written out where a person can read them, else packed, else the lines that make them."""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Mapping

import numpy as np

from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import DTYPES, Raw
from opconform.harness.run.templates import packed as packed_text

READABLE = 64  #: elements that are written out
PACKED = 4096  #: elements that are packed before anything else is tried
_WIDTH = 112


def expression(array: np.ndarray, code: str) -> str:
    """Python that gives `array` with NumPy's type `code`; uses `np` and, where it is packed, `unpacked`."""
    array = np.ascontiguousarray(array)
    written = None if array.dtype.kind == "V" else _written(array, code)
    return packed(array, code) if written is None else written


def is_packed(source: str) -> bool:
    return source.startswith("unpacked(")


def _written(array: np.ndarray, code: str) -> str | None:
    """The elements in digits, or None where they are too many or would lose a bit that way."""
    flat = array.reshape(-1)
    if flat.size and (flat.view(f"u{flat.itemsize}") == flat.view(f"u{flat.itemsize}")[0]).all():
        if not _survives(flat[:1], code):
            return None
        return f"np.full({array.shape}, {_digits(flat[0])}, {_type(code)})"
    if flat.size > READABLE or not _survives(flat, code):
        return None
    listed = ", ".join(map(_digits, flat))
    whole = f"np.array([{listed}], {_type(code)})"
    if len(whole) > _WIDTH:
        whole = f"np.array(\n    [\n{_filled(listed, 8)},\n    ],\n    {_type(code)},\n)"
    return whole if array.ndim == 1 else f"{whole}.reshape{array.shape}"


def _type(code: str) -> str:
    return "float" if code == "<f8" else f'"{code}"'


def _filled(text: str, indent: int) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)


def _survives(flat: np.ndarray, code: str) -> bool:
    read = int if flat.dtype.kind in "iu" else float
    again = np.array([read(_digits(element).replace("np.", "")) for element in flat], dtype=code)
    return again.tobytes() == flat.tobytes()


def _digits(element: np.generic) -> str:
    value = element.item()
    if isinstance(value, int):
        return str(value)
    if not np.isfinite(value):
        return f"{'-' if value < 0 else ''}np.{'nan' if np.isnan(value) else 'inf'}"
    text = str(element)  # the shortest digits that read back as this very element
    return text[:-2] if text.endswith(".0") and text != "-0.0" else text


def packed(array: np.ndarray, code: str) -> str:
    """The exact bytes as base64 of zlib data."""
    return f'unpacked("{code}", {array.shape}, """\n{packed_text(np.ascontiguousarray(array).tobytes())}\n""")'


_RECIPES = {
    "small_int": "np.array([1, 2, 3, 4, -1, -2, -3, -4])[rng.integers(0, 8, shape)]",
    "index": "(np.arange(np.prod(shape)) % {limit} + 1).reshape(shape) * ({times} if number else 1)",
    "normal": "rng.standard_normal(shape)",
    "signed_zero": "np.array([0.0, -0.0, 1.0, -1.0])[rng.integers(0, 4, shape)]",
    "denormal": "rng.uniform(-1.5, 1.5, shape) * {smallest_normal!r}",
    "wide": "np.ldexp(rng.uniform(-1, 1, shape), rng.integers(-30, 31, shape))",
}


def recipe(case: Case, values: Mapping[str, Raw]) -> str | None:
    """An expression for an input of `shape`, the `number`-th, that makes the very elements `values`; it takes them
    from `rng`, which is seeded with the case's seed. None where the case is not made in such a way."""
    if case.dtype == "bf16" or case.recipe not in _RECIPES:
        return None
    dtype = DTYPES[case.dtype]
    limit = int(min(1 / dtype.unit_roundoff if dtype.is_float else dtype.largest, 2**31 - 1))
    source = _RECIPES[case.recipe].format(
        limit=limit, times=-2 if dtype.is_float else -1, smallest_normal=dtype.smallest_normal
    )
    rng = np.random.default_rng(case.seed)
    for number, (name, raw) in enumerate(values.items()):
        made = eval(source, {"np": np, "rng": rng, "shape": case.inputs[name].shape, "number": number})
        if np.asarray(made).astype(dtype.native).tobytes() != np.ascontiguousarray(raw).tobytes():
            return None
    return source


def checksum(values: Mapping[str, Raw]) -> int:
    """What a script compares the elements it has made with: NumPy may change its generator one day."""
    total = 0
    for raw in values.values():
        total = zlib.crc32(np.ascontiguousarray(raw).tobytes(), total)
    return total
