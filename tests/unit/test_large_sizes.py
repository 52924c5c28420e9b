"""The problems of every op are large now and then: faults that show from some size on would stay."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from opconform.harness.draw.problems import Problems
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Problem
from opconform.harness.model.ops import op_names, ops

_DRAWN = 1500  #: problems at most, those of ten searches
_COUNTED = 1 << 12  #: more than this along one axis of an argument or the output, or
_PIXELS = 1 << 14  #: so many elements on two of its axes

#: Those that are never so large, and why.
_SMALL = {
    "add_rel_pos": "a window of 14 × 14 places is what its model has",
    "get_rel_pos": "an image of 64 × 64 places is what its model has",
}


def _is_large(problem: Problem) -> bool:
    shapes = [*problem.every_shape, problem.out_shape]
    longest = max(size for shape in shapes for size in shape)
    return longest > _COUNTED or max(math.prod(sorted(shape)[-2:]) for shape in shapes) > _PIXELS


def _drawn(op: str) -> itertools.islice[Problem]:
    problems, source = Problems(ops()[op].problems(Freedom((), 64 << 20))), random.Random(1)
    return itertools.islice((problems.next(source).problem for _ in itertools.count()), _DRAWN)


@pytest.mark.parametrize("op", [name for name in op_names() if name not in _SMALL])
def test_some_problems_are_large(op: str) -> None:
    assert any(map(_is_large, _drawn(op)))


@pytest.mark.parametrize("op", ["pad", "pad_circular", "cont", "roll", "acc"])
@pytest.mark.parametrize("axis", range(4))
def test_an_index_of_16_bits_shows_along_every_axis(op: str, axis: int) -> None:
    assert any(problem.out_shape[axis] > 1 << 16 for problem in _drawn(op))


@pytest.mark.parametrize("op", ["timestep_embedding", "moe_routing", "dsv4_hc_pre", "dsv4_hc_post", "get_rows_back"])
def test_there_are_more_rows_than_16_bits_count(op: str) -> None:
    assert any(max(problem.out_shape[:-1]) > 1 << 16 for problem in _drawn(op))


@pytest.mark.parametrize("op", ["conv_2d", "conv_2d_dw", "im2col", "pool_2d", "group_norm"])
def test_images_are_wider_and_higher_than_a_tile(op: str) -> None:
    """Of an image the two innermost axes count, for what is there in no other one."""
    assert any(min(problem.shapes["x"][-2:]) > 64 for problem in _drawn(op))
