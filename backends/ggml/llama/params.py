"""The parameter structs of libllama: fields that move between builds, found by their defaults and checked.

libllama takes and gives `struct llama_model_params` and `struct llama_context_params` by value. Nothing says how large
they are or where a field stands, but their default values tell the fields apart, and what the values bring about is
checked afterwards (`Server.open` in worker.py). A struct that does not look as known raises `Unavailable`, with what is
odd.
"""

from __future__ import annotations

import platform
import struct
from typing import Any

from opconform.backends.ggml.llama.binding import LLAMA_REMEDY, Llama, Pointer
from opconform.harness.run.backend import Unavailable

_FILL = b"\xa5"  #: of memory that no field is in
_LAYERS = (-1, 0, 999)  #: what n_gpu_layers has been by default
_SPLIT_LAYER = 1  #: enum llama_split_mode
_DEFAULT_SIZES = (512, 2048, 512, 1)  #: n_ctx, n_batch, n_ubatch, n_seq_max
_DEFAULT_THREADS = (4, 4)  #: GGML_DEFAULT_N_THREADS, for steps and for prompts
_F16 = 1  #: enum ggml_type: the cache's K and V by default
_BOOLS_AFTER_TYPES = 24  #: bytes from type_k over type_v and the abort callback's pair of pointers
FLASH = {"auto": -1, "off": 0, "on": 1}  #: enum llama_flash_attn_type


class Params:
    """One of the structs in memory of our own."""

    def __init__(self, llama: Llama, default: str) -> None:
        """The defaults that the function `default` gives."""
        self._llama = llama
        self._default = default
        self._struct = llama.c.ffi.new("llama_params *")
        self._memory = llama.c.ffi.buffer(self._struct)
        self._memory[:] = _FILL * len(self._memory)
        if platform.machine() in ("x86_64", "AMD64"):
            # A struct of this size is returned in memory whose address is a hidden first argument: what the function
            # does not write keeps the filling.
            llama.cast(default, "void *(*)(void *)")(self._struct)
        else:
            self._struct[0] = getattr(llama.c, default)()

    @property
    def value(self) -> Any:
        """The struct, to be given to a function."""
        return self._struct[0]

    def ints(self) -> tuple[int, ...]:
        """The whole struct as int32."""
        return struct.unpack(f"={len(self._memory) // 4}i", self._memory)

    def set(self, form: str, offset: int, *values: float) -> None:
        """Write values, packed as `struct` packs `form`."""
        struct.pack_into("=" + form, self._memory, offset, *values)

    def set_pointer(self, offset: int, pointer: Pointer) -> None:
        self.set("Q", offset, self._llama.address(pointer))

    def byte(self, offset: int) -> int:
        return int(self._memory[offset][0])

    def odd(self, what: str) -> Unavailable:
        """The complaint that the struct does not look as known."""
        name = self._default.replace("_default_", "_")
        return Unavailable(f"struct {name} of {self._llama.file.name} does not look as known: {what}", LLAMA_REMEDY)


class ModelParams(Params):
    """struct llama_model_params."""

    def __init__(self, llama: Llama) -> None:
        super().__init__(llama, "llama_model_default_params")
        ints = self.ints()
        if any(ints[:4]):
            raise self.odd("it does not start with two pointers that are NULL")
        if ints[4] not in _LAYERS or ints[5] != _SPLIT_LAYER:
            raise self.odd(f"n_gpu_layers and split_mode are {ints[4]} and {ints[5]}")
        self.extra_bufts = self._find_extra_bufts()

    def _find_extra_bufts(self) -> int:
        """The truth values stand together after the pointers: of those that are true by default use_extra_bufts is
        the last."""
        for word in range(56, 128, 8):
            values = [self.byte(word + i) for i in range(8)]
            truths = next((i for i, value in enumerate(values) if value > 1), 8)
            if any(values[:truths]):
                return word + max(i for i in range(truths) if values[i])
        raise self.odd("no truth values stand after its pointers")

    def place(self, devices: Pointer, gpu_layers: int) -> None:
        """Compute on these devices (a list that ends with NULL), the last so many layers; weights stay as stored."""
        self.set_pointer(0, devices)
        self.set("i", 16, gpu_layers)
        self.set("B", self.extra_bufts, 0)


class ContextParams(Params):
    """struct llama_context_params."""

    def __init__(self, llama: Llama) -> None:
        super().__init__(llama, "llama_context_default_params")
        ints = self.ints()
        if ints[:4] != _DEFAULT_SIZES:
            raise self.odd(f"n_ctx, n_batch, n_ubatch and n_seq_max are {list(ints[:4])}")
        unset = self._only([i for i in range(4, 20) if ints[i : i + 4] == (-1,) * 4], "four -1 end in flash_attn_type")
        self.flash = 4 * (unset + 3)
        self.threads = 4 * self._only([i for i in range(4, unset) if ints[i : i + 2] == _DEFAULT_THREADS], "n_threads")
        empty = (0,) * 4
        types = [
            i
            for i in range(unset + 8, 40, 2)
            if ints[i - 4 : i] == empty and ints[i : i + 2] == (_F16, _F16) and ints[i + 2 : i + 6] == empty
        ]
        self.type_k = 4 * self._only(types, "type_k and type_v")
        self.eval_callback = self.type_k - 16
        self._unified = self.type_k + _BOOLS_AFTER_TYPES + 5
        truths = [self.byte(self.type_k + _BOOLS_AFTER_TYPES + i) for i in range(6)]
        if truths[:2] != [0, 1] or max(truths) > 1:
            raise self.odd(f"embeddings, offload_kqv and the rest are {truths}")

    def _only(self, found: list[int], what: str) -> int:
        if len(found) != 1:
            raise self.odd(f"{what}: {len(found) or 'none'} found")
        return found[0]

    def sizes(self, n_ctx: int, n_batch: int, n_ubatch: int, n_seq_max: int) -> None:
        self.set("4I", 0, n_ctx, n_batch, n_ubatch, n_seq_max)

    def compute(self, threads: int, flash: str, unified: bool) -> None:
        """On so many threads of the CPU, with flash attention "on", "off" or "auto", with one cache for all sequences
        or one for each."""
        self.set("2i", self.threads, threads, threads)
        self.set("i", self.flash, FLASH[flash])
        self.set("B", self._unified, unified)

    def watch(self, callback: Pointer) -> None:
        """Ask `callback` about every node."""
        self.set_pointer(self.eval_callback, callback)
