"""How a kernel may misunderstand where an argument lies, or where the view of an ACC does."""

from __future__ import annotations

from collections.abc import Callable

from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout, contiguous_strides

Place = tuple[tuple[int, ...], int]  # strides, outermost first, and an offset
ViewOf = Callable[[object, Case], tuple[tuple[int, ...], int]]  # a method; strides innermost first

# --- an argument ---


def packed(layout: Layout) -> Place:
    return contiguous_strides(layout.shape, layout.type.itemsize), layout.offset


def packed_at_0(layout: Layout) -> Place:
    return packed(layout)[0], 0


def no_offset(layout: Layout) -> Place:
    return layout.strides, 0


def offset_in_elements(layout: Layout) -> Place:
    return layout.strides, layout.offset * layout.type.itemsize


def offset_divided_twice(layout: Layout) -> Place:
    size = layout.type.itemsize
    return layout.strides, layout.offset // size // size * size


def ignored(k: int) -> Callable[[Layout], Place]:
    """i{k} is taken to be packed upon the dimension inside it."""

    def place(layout: Layout) -> Place:
        nb = list(layout.nb)
        nb[k] = nb[k - 1] * layout.ne[k - 1] if k else layout.type.itemsize
        return tuple(nb[::-1]), layout.offset

    return place


def swapped(j: int, k: int) -> Callable[[Layout], Place]:
    def place(layout: Layout) -> Place:
        nb = list(layout.nb)
        nb[j], nb[k] = nb[k], nb[j]
        return tuple(nb[::-1]), layout.offset

    return place


def still(k: int) -> Callable[[Layout], Place]:
    """i{k} stays at 0."""

    def place(layout: Layout) -> Place:
        nb = list(layout.nb)
        nb[k] = 0
        return tuple(nb[::-1]), layout.offset

    return place


# --- a view ---


def right_view(case: Case) -> tuple[tuple[int, ...], int]:
    names = ("nb1", "nb2", "nb3")
    return (case.inputs["b"].type.itemsize, *(int(case.params[n]) for n in names)), int(case.params["offset"])


def nb_of(case: Case, name: str) -> tuple[int, ...]:
    layout = case.inputs[name]
    return contiguous_strides(layout.shape, layout.type.itemsize)[::-1]


def view_offset(change: Callable[[int, int], int]) -> ViewOf:
    def view(self: object, case: Case) -> tuple[tuple[int, ...], int]:
        nb, offset = right_view(case)
        return nb, change(offset, nb[0])

    return view


def view_of_a(*dimensions: int) -> ViewOf:
    def view(self: object, case: Case) -> tuple[tuple[int, ...], int]:
        nb, offset = right_view(case)
        return tuple(nb_of(case, "a")[k] if k in dimensions else nb[k] for k in range(4)), offset

    return view


def view_packed(case: Case) -> tuple[tuple[int, ...], int]:
    return nb_of(case, "b"), right_view(case)[1]


def view_upon(k: int) -> ViewOf:
    def view(self: object, case: Case) -> tuple[tuple[int, ...], int]:
        nb, offset = right_view(case)
        return (*nb[:k], nb[k - 1] * case.inputs["b"].ne[k - 1], *nb[k + 1 :]), offset

    return view


def view_swapped(j: int, k: int) -> ViewOf:
    def view(self: object, case: Case) -> tuple[tuple[int, ...], int]:
        nb, offset = right_view(case)
        changed = list(nb)
        changed[j], changed[k] = nb[k], nb[j]
        return tuple(changed), offset

    return view
