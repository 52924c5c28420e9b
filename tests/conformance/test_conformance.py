"""What `pytest --backend X` runs: every op on the device, with cases that Hypothesis draws."""

from opconform.harness.conformance import *  # noqa: F403
