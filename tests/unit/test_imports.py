"""What importing the front loads: it stands in every pytest run of its environment, and before every `--help`."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "hypothesis.strategies", "cffi", "pyopencl", "kp", "cupy", "opconform.backends", "opconform.cases")


def test_the_front_loads_no_backend_and_nothing_heavy() -> None:
    script = "import sys, opconform.cli, opconform.plugin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "opconform.plugin" in loaded
    assert [name for name in loaded if name.startswith(HEAVY)] == []
