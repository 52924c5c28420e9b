"""Some cases of an op, drawn at once: for questions that need no search."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, given, seed, settings

from opconform.harness.draw.strategies import batches
from opconform.harness.draw.variants import variants
from opconform.harness.model.case import Case
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Op, Problem


def sample(op: Op, freedom: Freedom, count: int) -> list[Case]:
    """Up to `count` cases within `freedom`; the same for the same arguments."""
    found: list[Case] = []

    @seed(0)
    @settings(
        max_examples=count,
        phases=(Phase.generate,),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(batches(op, freedom))
    def draw(drawn: tuple[Problem, int]) -> None:
        problem, variant_seed = drawn
        if len(found) < count:
            found.extend(variant.case(op, problem) for variant in variants(op, problem, variant_seed, freedom)[:4])

    draw()
    return found[:count]
