"""Backends whose kernels come from the folder in MUTANT_FOLDER first: `mutants.py` puts a file with a fault there.

    MUTANT_FOLDER=DIR opconform test --backend benchmarks/mutated.py:OpenCL --op acc

MUTANT_STALE names what the host keeps from an earlier launch all of whose other fields were the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from opconform.backends.cuda import CudaHostBackend, host
from opconform.backends.kernels import own_buffers
from opconform.backends.kernels.own_buffers import Source
from opconform.backends.kernels.source import Struct, kernels_in
from opconform.backends.kernels.table import Kernel
from opconform.backends.opencl import OpenCLBackend
from opconform.backends.opencl import backend as opencl
from opconform.harness.model.case import Case

STALE = os.environ.get("MUTANT_STALE", "")

Fields = Callable[[Kernel, Struct, Case], "list[int]"]


def faulty(source: Source) -> Source:
    """A source with the files of the folder in place of its own, those that are made for the op too."""
    folder = Path(os.environ.get("MUTANT_FOLDER", "."))
    texts = {name: folder / name for name in source.files if (folder / name).is_file()}
    return Source(source.file, {**source.files, **{name: file.read_text("utf-8") for name, file in texts.items()}})


def stale(fields: Fields) -> Fields:
    """`fields`, which keeps what STALE names from the first launch that all other fields are shared with."""
    kept: dict[tuple[object, ...], list[int]] = {}

    def found(kernel: Kernel, struct: Struct, case: Case) -> list[int]:
        numbers = fields(kernel, struct, case)
        names = [it.name for it in struct.fields for _ in range(it.count)]
        others = tuple(number for name, number in zip(names, numbers) if _kind(name) != STALE)
        return kept.setdefault((case.op, *others), numbers)

    return found


def _kind(name: str) -> str:
    """What a field of the struct is about, in the words of STALE."""
    ends = {"_nb": "strides", "_start": "offsets", "_ne": "sizes", "_type": "types"}
    return next((kind for end, kind in ends.items() if name.endswith(end)), "parameters")


if STALE:
    for module in (opencl, host):
        setattr(module, "fields", stale(own_buffers.fields))  # noqa: B010


class OpenCL(OpenCLBackend):
    """The OpenCL backend with a fault."""

    @classmethod
    def source(cls, op: str) -> Source:
        return faulty(super().source(op))

    def build(self, op: str) -> None:
        """Compile the kernels of an op. Raises what the compiler raises."""
        self._kernel(op, kernels_in(self._source(op).text)[0])


class CudaHost(CudaHostBackend):
    """cuda-host with a fault."""

    @classmethod
    def source(cls, op: str) -> Source:
        return faulty(super().source(op))

    def build(self, op: str) -> None:
        """Compile the kernels of an op. Raises what the compiler raises."""
        self._library(op)


class Unwatched(CudaHost):
    """The same without host.cpp's watch over memory, races and indices: what a GPU alone would show."""

    def build(self, op: str) -> None:
        unwatched = tuple(option for option in host.CHECKED if "sanitize" not in option)
        setattr(host, "CHECKED", unwatched)  # noqa: B010
        super().build(op)
