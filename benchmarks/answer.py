"""How long it takes from the shell to an answer: the first verdict, the screen of a failure, and the end.

    python benchmarks/answer.py --ggml-lib DIR [--device Vulkan0] [--op acc] [--runs 5]

The folder of each run is new and empty, so that nothing is known of an earlier one; history, database and bundle are
written. With a build whose op is right there is no screen, and the end is that of the whole search.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from opconform.harness.judge.intervals import median

_FIRST = "first verdict"
_SCREEN = "screen"
_END = "end"


def answer_of(folder: Path, device: str, op: str) -> dict[str, float]:
    """Seconds since the start of the process, by what has happened by then."""
    backend = ["--backend", f"ggml:{device}", "--ggml-lib", str(folder)]
    program = [sys.executable, "-u", "-c", "from opconform.cli import main; main()", "test", "--op", op, *backend]
    seen: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as empty:
        log = Path(empty, "opconform-out")
        start = time.perf_counter()
        with subprocess.Popen(program, cwd=empty, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            printed = b""
            while process.poll() is None:
                printed += process.stdout.read() or b""
                now = time.perf_counter() - start
                if _FIRST not in seen and any(b'"case"' in file.read_bytes() for file in log.glob("**/*.jsonl")):
                    seen[_FIRST] = now
                if _SCREEN not in seen and b"\n  case " in printed:
                    seen[_SCREEN] = now
                time.sleep(0.005)
        seen[_END] = time.perf_counter() - start
    return seen


@click.command()
@click.option("--ggml-lib", type=click.Path(exists=True, path_type=Path), required=True, metavar="DIR")
@click.option("--device", default="Vulkan0", show_default=True)
@click.option("--op", default="acc", show_default=True)
@click.option("--runs", default=5, show_default=True)
def main(ggml_lib: Path, device: str, op: str, runs: int) -> None:
    """Print the medians of the runs, and their ranges."""
    found = [answer_of(ggml_lib.resolve(), device, op) for _ in range(runs)]
    for what in (_FIRST, _SCREEN, _END):
        each = [seen[what] for seen in found if what in seen]
        if each:
            print(f"{what:14} {median(each):5.2f} s  ({min(each):.2f} to {max(each):.2f}, {len(each)} of {runs} runs)")


if __name__ == "__main__":
    main()
