"""Whether a loaded library keeps its tensors as `declarations.h` says: tensors of our own, read through the struct.

ggml has no functions for sizes, strides, sources and parameters of a node, so that they are read and written where they
stand. A build that moves a field must be refused: it would be read, and written, in the wrong place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opconform.backends.ggml.binding import Binding, Tensor
from opconform.backends.ggml.declarations import CONSTANTS
from opconform.harness.run.backend import Unavailable

_NE = (3, 5, 7, 11)
_NB = (4, 12, 60, 420)
_ROOM = 8  # tensors
_ALIGNMENT = 64  # of a buffer
_OFFSET = 24  # of the view
_WORDS = (8, 16, 32, 4, 0)  # what ggml_acc keeps of its parameters; the last one says that it is not in place
_OUTPUT = 2  # enum ggml_tensor_flag
_SETTLED = 39  # the types below this number are in every build
_REMEDY = "use another build of libggml, or a newer Opconform"


def check(c: Binding) -> None:
    """Raise `Unavailable` where the library numbers its element types otherwise, or holds a field in another place."""
    for name, number in c.declarations.choices["ggml_type"].items():
        if not has_type(c, number):
            continue
        if c.text(c.ggml_type_name(number)).lower() != name:
            raise Unavailable(f"{c.what} does not number the type {name} {number}", _REMEDY)
    wrong = [field for field, read, known in _fields(c) if read != known]
    if wrong:
        raise Unavailable(f"{c.what} does not keep {', '.join(wrong)} of a tensor where declarations.h says", _REMEDY)


def has_type(c: Binding, number: int) -> bool:
    """Whether the library has a type of this number: those that were added in 2025 and later stand at the end, and
    nothing says how many there are. ggml_type_name answers for any number, "NONE" or, in some builds, nothing."""
    name = c.ggml_type_name(number)
    return number < _SETTLED or bool(name and c.text(name) not in ("NONE", ""))


def _fields(c: Binding) -> Iterator[tuple[str, Any, Any]]:
    """The fields of struct ggml_tensor: name, what is read, and what is known to be in it."""
    params = {"mem_size": _ROOM * c.ggml_tensor_overhead(), "no_alloc": True}
    context = c.ggml_init(c.ffi.new("struct ggml_init_params *", params)[0])
    size = _NB[3] * _NE[3]
    memory = c.ffi.new("char[]", size + _ALIGNMENT)
    start = memory + -int(c.ffi.cast("uintptr_t", memory)) % _ALIGNMENT
    buffer = c.ggml_backend_cpu_buffer_from_ptr(start, size)
    whole: Tensor = c.ggml_new_tensor_4d(context, CONSTANTS["GGML_TYPE_F32"], *_NE)
    c.ggml_backend_tensor_alloc(buffer, whole, start)
    bits: Tensor = c.ggml_new_tensor_1d(context, CONSTANTS["GGML_TYPE_I32"], 1)
    view: Tensor = c.ggml_view_1d(context, whole, 2, _OFFSET)
    c.ggml_backend_view_init(view)
    node: Tensor = c.ggml_acc(context, whole, view, *_WORDS[:4])
    c.ggml_set_name(node, b"opconform")
    c.ggml_set_output(node)
    # Its number is below 64 in every build; ggml_op_name must not be asked for one that there is not.
    acc = next(number for number in range(64) if c.text(c.ggml_op_name(number)) == "ACC")

    yield "type", bits.type, CONSTANTS["GGML_TYPE_I32"]
    yield "buffer", view.buffer, buffer
    yield "ne", tuple(whole.ne), _NE
    yield "nb", tuple(whole.nb), _NB
    yield "op", node.op, acc
    yield "op_params", tuple(node.op_params), _WORDS + (0,) * (16 - len(_WORDS))
    yield "flags", node.flags, _OUTPUT
    yield "src", list(node.src), [whole, view] + [c.null] * 8
    yield "view_src", view.view_src, whole
    yield "view_offs", view.view_offs, _OFFSET
    yield "data", view.data, start + _OFFSET
    yield "name", bytes(c.ffi.buffer(node.name))[:10], b"opconform\0"
    c.ggml_backend_buffer_free(buffer)
    c.ggml_free(context)
