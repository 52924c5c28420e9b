"""Tiny models with random weights, made on the spot: a file that every build loads, the same for the same seed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from opconform.backends.ggml.llama import gguf
from opconform.backends.ggml.llama.architectures import ARCHITECTURES
from opconform.backends.ggml.llama.quants import WEIGHT_TYPES, encode, fitting
from opconform.harness.model.usage import UsageError

_RECIPE = 1  #: to be raised when the weights of a seed change, so that no older file is taken for a new one
_SHAPES = Path(__file__).parent / "shapes.json"

#: NumPy promises this generator's stream to stay as it is for ever (NEP 19).
_Random = np.random.RandomState


def _around(mean: float, spread: float) -> Callable[[_Random, tuple[int, ...]], np.ndarray]:
    return lambda random, shape: mean + spread * random.standard_normal(shape)


def _between(low: float, high: float) -> Callable[[_Random, tuple[int, ...]], np.ndarray]:
    return lambda random, shape: random.uniform(low, high, shape)


def _matrix(random: _Random, shape: tuple[int, ...]) -> np.ndarray:
    """Rows (the innermost dimension) that keep the size of what they are multiplied with."""
    matrix: np.ndarray = random.standard_normal(shape) / np.sqrt(shape[-1])
    return matrix


#: What a tensor holds, by its name; the first pattern that is found in it counts. Trained models have such values.
_VALUES: tuple[tuple[str, Callable[[_Random, tuple[int, ...]], np.ndarray]], ...] = (
    (r"ssm_a$", _between(-4, -0.5)),  # −exp(A): a state decays
    (r"ssm_d$|time_mix_k_[ka]|time_mix_ln\.weight|norm.*weight$", _around(1, 0.1)),
    (r"ssm_dt\.bias|time_mix_(w0|decay)\.weight", _between(-5, -1)),  # slow decay after softplus or exp
    (r"time_mix_lerp|channel_mix_lerp", _between(0, 1)),
    (r"ssm_conv1d.*weight|time_mix_first|time_mix_r_k|time_mix_[av]0|attn_sinks", _around(0, 0.5)),
    (r"bias$|position_embd", _around(0, 0.1)),
    (r"token_embd|^output\.weight", _around(0, 0.25)),  # logits with a spread of about 4
    (r"", _matrix),
)

#: Matrices that libllama's quantizer leaves in float32 too (llama-quant.cpp, tensor_allows_quantization), because
#: their ops take no other type.
_FLOAT32 = re.compile(
    r"norm|ffn_gate_inp|ssm_conv1d|ssm_[ad]$|position_embd|_lerp|time_mix_([wagv]\d|first|decay|r_k|k_)"
)


@cache
def _shapes() -> Mapping[str, Sequence[tuple[str, list[int]]]]:
    table: Mapping[str, Sequence[tuple[str, list[int]]]] = json.loads(_SHAPES.read_text())
    return table


def cache_folder() -> Path:
    """Where models are kept that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opconform" / "models"


def tiny_model(name: str, type_: str = "f32", seed: int = 0, folder: Path | None = None) -> Path:
    """The GGUF file of an architecture with weights of a type, in `folder` or the cache; made where it is not there.

    Rows that a type's blocks do not fit get q8_0 or f16 (`quants.fitting`), as in models that people quantize. Raises
    `UsageError` for an architecture or a type that there is not.
    """
    if name not in ARCHITECTURES:
        raise UsageError(f"no architecture {name!r}; there are {', '.join(ARCHITECTURES)}")
    if type_ not in WEIGHT_TYPES:
        raise UsageError(f"no type {type_!r} for weights; there are {', '.join(WEIGHT_TYPES)}")
    metadata, shapes = ARCHITECTURES[name].keys, _shapes()[name]
    about = json.dumps([_RECIPE, metadata, shapes, type_, seed])
    folder = folder or cache_folder()
    path = folder / f"{name}-{type_}-{seed}-{hashlib.sha256(about.encode()).hexdigest()[:12]}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_model(path, metadata, shapes, type_, seed)
    return path


def write_model(
    path: Path, metadata: Mapping[str, object], shapes: Sequence[tuple[str, list[int]]], type_: str, seed: int
) -> None:
    """Write a model whose tensors (names and sizes, innermost first) have random weights."""
    gguf.write(path, metadata, [_tensor(tensor, tuple(ne), type_, seed) for tensor, ne in shapes])


def _tensor(name: str, ne: tuple[int, ...], type_: str, seed: int) -> gguf.Tensor:
    random = np.random.RandomState([seed, zlib.crc32(name.encode())])
    draw = next(draw for pattern, draw in _VALUES if re.search(pattern, name))
    values = draw(random, ne[::-1]).astype(np.float32)
    plain = len(ne) == 1 or name.endswith(".bias") or _FLOAT32.search(name)
    kind = "f32" if plain else fitting(type_, ne[0])
    return gguf.Tensor(name, kind, ne, encode(kind, values))
