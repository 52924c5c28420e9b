"""Ops that ggml has no node for: a graph of many of its nodes, each asked of the device as it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from ctypes import c_bool, c_float, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opconform.harness.model.case import Case

if TYPE_CHECKING:
    from opconform.backends.ggml.graph import Context
    from opconform.backends.ggml.library import Library

_P = c_void_p
_SIZES = (c_int64,) * 4

#: What the graphs are made of: the C arguments after the context.
FUNCTIONS: Mapping[str, tuple[Any, ...]] = {
    "ggml_view_1d": (_P, c_int64, c_size_t),
    "ggml_reshape_4d": (_P, *_SIZES),
    "ggml_permute": (_P, c_int, c_int, c_int, c_int),
    "ggml_new_tensor_4d": (c_int, *_SIZES),
    # moves
    "ggml_cont": (_P,),
    "ggml_cpy": (_P, _P),
    "ggml_repeat_4d": (_P, *_SIZES),
    "ggml_concat": (_P, _P, c_int),
    "ggml_pad_ext": (_P, *(c_int,) * 8),
    "ggml_acc": (_P, _P, c_size_t, c_size_t, c_size_t, c_size_t),
    "ggml_set": (_P, _P, c_size_t, c_size_t, c_size_t, c_size_t),
    "ggml_fill": (_P, c_float),
    "ggml_diag": (_P,),
    "ggml_tri": (_P, c_int),
    # arithmetic
    "ggml_add": (_P, _P),
    "ggml_sub": (_P, _P),
    "ggml_mul": (_P, _P),
    "ggml_div": (_P, _P),
    "ggml_scale": (_P, c_float),
    "ggml_scale_bias": (_P, c_float, c_float),
    "ggml_exp": (_P,),
    "ggml_sqr": (_P,),
    "ggml_sqrt": (_P,),
    "ggml_sum_rows": (_P,),
    "ggml_cumsum": (_P,),
    "ggml_mul_mat": (_P, _P),
    "ggml_solve_tri": (_P, _P, c_bool, c_bool, c_bool),
    "ggml_soft_max_ext": (_P, _P, c_float, c_float),
    "ggml_flash_attn_ext": (_P, _P, _P, _P, c_float, c_float, c_float),
    "ggml_gated_delta_net": (_P, _P, _P, _P, _P, _P, c_int64),
}

NODES = 1 << 14  #: the most tensors of one graph


class RefusedError(Exception):
    """This build or this device does not take a graph; the text says why."""


Assemble = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Shown:
    """An intermediate result: the tensors that hold it, and how their arrays (outermost first) make its value."""

    name: str
    tensors: tuple[int, ...]
    assemble: Assemble


class Nodes:
    """Makes the tensors of one case's graph. Sizes and strides are innermost first, as ggml's; tensors are pointers.

    Whatever makes a node raises `RefusedError` where the build lacks its function or the device says no to it.
    `shown`: whether intermediate results are kept until the end of the run, to be read.
    """

    def __init__(
        self,
        library: Library,
        device: int,
        context: Context,
        case: Case,
        arguments: Mapping[str, int],
        *,
        alignment: int,
        shown: bool = False,
    ) -> None:
        self.case = case
        self.library = library
        self.device = library.ggml_backend_dev_name(device).decode()
        self.alignment = alignment  #: of the device's buffers, in bytes
        self.stages: list[Shown] = []
        self.outs: list[int] = []  #: the nodes that write the outputs, in order
        self.count = len(arguments)
        self._handle = device
        self._context = context
        self._arguments = arguments
        self._shown = shown
        self._memory_of: dict[int, int] = {}  # the tensor that holds the memory of a view

    def __contains__(self, name: str) -> bool:
        """Whether the case has this argument."""
        return name in self._arguments

    def __getitem__(self, name: str) -> int:
        """The tensor of an argument."""
        return self._arguments[name]

    def ne(self, tensor: int) -> tuple[int, ...]:
        """The four sizes of a tensor."""
        return self._context.sizes(tensor)[:4]

    def nb(self, tensor: int) -> tuple[int, ...]:
        """The four byte strides of a tensor."""
        return self._context.sizes(tensor)[4:]

    def require(self, function: str) -> Callable[..., int]:
        """`ggml_<function>` of this build."""
        call: Callable[..., int] | None = getattr(self.library, f"ggml_{function}")
        if call is None:
            raise RefusedError(f"this libggml ({self.library.build}) has no ggml_{function}")
        return call

    def unasked(self, function: str, *arguments: Any) -> int:
        """What `ggml_<function>` makes of `arguments`, whether the device takes it or not."""
        call = self.require(function)
        self.count += 1
        if self.count > NODES:
            raise RefusedError(f"its graph has more than {NODES} tensors")
        return int(call(self._context.handle, *arguments))

    def make(self, function: str, *arguments: Any) -> int:
        """What `ggml_<function>` makes of `arguments`, for the device to compute."""
        return self.ask(self.unasked(function, *arguments), function)

    def ask(self, node: int, function: str) -> int:
        """The node, which `ggml_<function>` made, if the device takes it."""
        library = self.library
        if not library.ggml_backend_dev_supports_op(self._handle, node):
            raise RefusedError(
                f"{self.device} of ggml {library.build} says no to {function.upper()} through supports_op"
            )
        return node

    def view(self, tensor: int, ne: Sequence[int], nb: Sequence[int], offset: int = 0) -> int:
        """`tensor` with other sizes and strides, `offset` bytes on."""
        view = self._view_of(tensor, self.make("view_1d", tensor, 1, offset))
        self._context.set_sizes(view, tuple(ne), tuple(nb))
        return view

    def _view_of(self, tensor: int, view: int) -> int:
        self._memory_of[view] = self._memory_of.get(tensor, tensor)
        return view

    def part(self, tensor: int, axis: int, start: int, count: int) -> int:
        """The elements from `start` on along an axis, as a view."""
        ne, nb = list(self.ne(tensor)), self.nb(tensor)
        ne[axis] = count
        return self.view(tensor, ne, nb, start * nb[axis])

    def reshape(self, tensor: int, *ne: int) -> int:
        """A contiguous tensor with other sizes."""
        return self._view_of(tensor, self.make("reshape_4d", tensor, *ne))

    def permuted(self, tensor: int, *order: int) -> int:
        """A view whose axis i is the tensor's axis order[i], as `numpy.transpose` counts."""
        return self._view_of(tensor, self.make("permute", tensor, *(order.index(axis) for axis in range(4))))

    def turned(self, tensor: int) -> int:
        """The two innermost axes exchanged, packed."""
        return self.make("cont", self.permuted(tensor, 1, 0, 2, 3))

    def filled(self, value: float, *ne: int) -> int:
        """A tensor of float32 that holds `value` everywhere."""
        return self.make("fill", self.make("new_tensor_4d", 0, *ne), value)

    def write(self, name: str, tensor: int, start: int = 0, axis: int = 3) -> None:
        """Copy `tensor` into an output, from `start` on along an axis."""
        target = self[name]
        if self.ne(tensor)[axis] != self.ne(target)[axis]:
            target = self.part(target, axis, start, self.ne(tensor)[axis])
        self.outs.append(self.make("cpy", tensor, target))

    def show(self, name: str, tensors: int | Sequence[int], assemble: Assemble) -> None:
        """Show an intermediate result; its tensors must be contiguous."""
        shown = (tensors,) if isinstance(tensors, int) else tuple(tensors)
        if self._shown:
            for tensor in shown:
                self.library.ggml_set_output(self._memory_of.get(tensor, tensor))
        self.stages.append(Shown(name, shown, assemble))


#: Builds the graph of one case: makes its nodes, writes its outputs, shows its stages.
Build = Callable[[Nodes], None]
