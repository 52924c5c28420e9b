"""What `pytest --backend X` runs: every op on the device, with cases that Hypothesis draws."""

from opconform.conformance import *  # noqa: F403
