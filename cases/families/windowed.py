"""What ops with windows share: their parameters, axes on which windows fit, and sums of what meets in one place.

Where the taps of a window stand, `taps` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st

from opconform.cases.families.choices import Choices, choice
from opconform.cases.families.taps import Window
from opconform.harness.draw.strategies import among, composite
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import CaseError, Param
from opconform.harness.model.dtypes import DType, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Places
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics

Params = Mapping[str, Param]
FAR = 1 << 12  #: the largest stride, padding or dilation that a case may have
STRIDE = choice(1, 2, 3, 5, least=1, most=FAR)
PADDING = choice(0, 1, 2, 3, least=0, most=FAR)
DILATION = choice(1, 2, 3, least=1, most=FAR)
TAPS = (1, 2, 3, 4, 5)  #: of a kernel along an axis
FEW_TAPS = (1, 2)
_BEYOND = (0, 1, 2, 3, 4, 6, 9, 15)  #: by how much an axis is longer than its kernel
#: The same where the axes are long: beyond the tiles of 32 and 64 that kernels have in shared memory, or, of a single
#: axis, beyond what 16 bits count. By the number of axes.
_WIDE = {1: (1025, 4097, 65537), 2: (31, 33, 64, 66, 97, 130), 3: (16, 31, 33)}
_ROOM = 1 << 23  #: bytes that a case must be allowed for those


def window(params: Params, axis: int, kernel: int) -> Window:
    """The windows along an axis (0 the innermost) whose parameters end with its number."""
    stride, padding, dilation = (
        int(params.get(f"{name}{axis}", usual)) for name, usual in (("s", 1), ("p", 0), ("d", 1))
    )
    return Window(kernel, stride, padding, dilation)


def geometry(axes: int) -> Choices:
    """Strides, paddings and dilations of so many axes, the innermost first."""
    kinds = (("s", STRIDE), ("p", PADDING), ("d", DILATION))
    return {f"{name}{axis}": its for name, its in kinds for axis in range(axes)}


def check_window(name: str, its: Window, n: int) -> int:
    """How many windows there are. Raises `CaseError` where not one fits."""
    count = its.count(n)
    if count < 1:
        raise CaseError(f"{name} is smaller than the kernel: {n} places, windows of {its.kernel}")
    return count


def kernel_sizes(freedom: Freedom, axis: int, taps: tuple[int, ...] = TAPS) -> st.SearchStrategy[int]:
    """The length of a kernel along an axis, one of `taps` where limits leave any of them."""
    return among(freedom.choices(f"k{axis}", taps) or freedom.choices(f"k{axis}", TAPS))


@composite
def axes(
    draw: st.DrawFn, freedom: Freedom, number: int, beyond: tuple[int, ...], taps: tuple[int, ...] = TAPS
) -> tuple[list[Window], list[int]]:
    """Windows along so many axes, the innermost first, and the axes' sizes: at least one window fits along each,
    and one tap meets an element: where all are in the padding the output is 0 whatever the elements are.

    `beyond`: by how much an axis may be longer than its kernel. `taps`: the lengths of a kernel. Shrinks to windows of
    one place on axes of one.
    """
    windows, sizes = [], []
    for axis in range(number):
        kernel = draw(kernel_sizes(freedom, axis, taps))
        params = [
            draw(among(freedom.choices(f"{name}{axis}", its.values)))
            for name, its in (("s", STRIDE), ("p", PADDING), ("d", DILATION))
        ]
        its = Window(kernel, *map(int, params))
        least = max(its.dilation * (kernel - 1) + 1 - 2 * its.padding, 1)
        windows.append(its)
        sizes.append(its.reached(least + draw(among(beyond))))
    return windows, sizes


@composite
def crowded_axes(
    draw: st.DrawFn, freedom: Freedom, number: int, most: int, form: str
) -> tuple[list[Window], list[int]]:
    """`axes` of one of the `most` plainest lengths; in the form "wide" all of them are long where a case may be so
    large, and in any other one but "usual" they are the smallest: there are many of something else."""
    form = "usual" if form == "wide" and freedom.max_bytes < _ROOM else form
    beyond, taps = {"usual": (_BEYOND[:most], TAPS), "wide": (_WIDE[number], TAPS[:3])}.get(form, ((0,), FEW_TAPS))
    found: tuple[list[Window], list[int]] = draw(axes(freedom, number, beyond, taps))
    return found


def area(windows: list[Window], sizes: list[int]) -> int:
    """How many elements one image has, or all of its windows together."""
    rows = [its.count(n) * its.kernel for its, n in zip(windows, sizes)]
    return max(math.prod(rows), math.prod(sizes))


def params_of(windows: list[Window]) -> dict[str, Param]:
    """The parameters that say so."""
    found: dict[str, Param] = {f"s{axis}": its.stride for axis, its in enumerate(windows)}
    found |= {f"p{axis}": its.padding for axis, its in enumerate(windows)}
    return found | {f"d{axis}": its.dilation for axis, its in enumerate(windows)}


def gathered(raw: Raw, dtype: DType, places: Places, numerics: Numerics) -> Approx:
    """The elements at flat places, with 0 for -1."""
    values = np.append(dtype.decode(raw).reshape(-1), 0.0)
    return Approx.of(values[places], dtype, numerics)


def first(found: Expected) -> Expected:
    """Without the last axis, which has one place."""
    return shaped(found, found.value.shape[:-1])


def shaped(found: Expected, shape: tuple[int, ...]) -> Expected:
    """The same elements in another shape."""
    exact, bits = found.exact, found.bits
    return Expected(
        found.value.reshape(shape),
        found.bound.reshape(shape),
        None if exact is None else exact.reshape(shape),
        None if bits is None else bits.reshape(shape),
    )
