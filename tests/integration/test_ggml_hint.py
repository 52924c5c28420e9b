"""The founding story: what the diagnosis says of the build whose Vulkan ACC dropped ne3."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from opconform.backends.ggml.library import REMEDY
from opconform.harness.model.ops import ops
from opconform.harness.run.process import devices_of
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings

VARIABLE = "OPCONFORM_GGML_LIB_BROKEN"


@pytest.fixture(scope="module")
def broken() -> Iterator[Runner]:
    """The Vulkan device of llama.cpp build b7836 (January 2026)."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        message = f"{VARIABLE} is not set; {REMEDY} (of build b7836, which tools/setup.sh downloads)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    options = {"ggml_lib": folder}
    devices = {device.id: device for device in devices_of("ggml", options)}
    assert "Vulkan0" in devices, f"this libggml lists {', '.join(devices)}"
    with Runner(Target("ggml", devices["Vulkan0"], options)) as runner:
        yield runner


@pytest.mark.parametrize("seed", [1, 2])
def test_the_hint_says_that_ne3_is_dropped(broken: Runner, seed: int) -> None:
    failure = Search(ops()["acc"], broken, Settings(seed=seed)).run().failure
    assert failure is not None
    assert failure.case.inputs["b"].ne == (1, 1, 1, 2)
    assert failure.hint == "the outermost dimension (ne3) of b is not handled: only i3 = 0 is processed"
    place = "(i0=0,i1=0,i2=0,i3=1)"
    assert failure.provenance == (f"out{place} holds a{place} (flat 1), should hold a{place} + b{place}",)
