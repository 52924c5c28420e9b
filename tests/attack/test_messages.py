"""What a worker sends that is JSON and yet no answer is told in one line, whatever stands in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from opconform.harness.run import messages
from opconform.harness.run.messages import StageError, TimingError
from opconform.harness.run.wire import NonsenseError

HUGE = 10**400
BRACED = {"{x}": "{0!r:"}


@pytest.mark.parametrize(
    ("read", "content"),
    [
        (messages.names_in, [BRACED]),
        (messages.names_in, [["a", "b", [], BRACED]]),
        (partial(messages.clock_in, "clock"), BRACED),
        (partial(messages.clock_in, "clock"), ["host", [BRACED]]),
        (partial(messages.clock_in, "clock"), ["host", {"planned": HUGE}]),
        (partial(messages.clock_in, "{x}"), []),
        (partial(messages.samples_in, "samples"), BRACED),
        (partial(messages.samples_in, "samples"), [[HUGE], 0]),
        (partial(messages.samples_in, "samples"), [[1.0], HUGE]),
        (partial(messages.stages_in, "stages", arrays=b""), [["a", [0, HUGE]]]),
        (partial(messages.stages_in, "stages", arrays=b""), [["a", [0, 1 << 40, 1 << 40]]]),
        (partial(messages.stages_in, "stages", arrays=b""), [BRACED]),
    ],
)
def test_what_is_no_answer_is_nonsense_and_nothing_worse(read: Callable[[Any], object], content: object) -> None:
    with pytest.raises(NonsenseError) as found:
        read(content)
    assert len(str(found.value)) < 300


@pytest.mark.parametrize("says", ["", "\n", " \n\n"])
def test_a_reason_that_says_nothing_is_said_to_say_nothing(says: str) -> None:
    with pytest.raises(TimingError, match=r"^it said nothing$"):
        messages.samples_in("no samples", says)
    assert StageError(says).last_line == "it said nothing"
