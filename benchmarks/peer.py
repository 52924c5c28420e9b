"""ggml's test-backend-ops beside Opconform: the same ops on the same build and device, in one run, start-up included.

    python benchmarks/peer.py --peer PATH/test-backend-ops --ggml-lib DIR [--device CPU]… [--op acc]… [--runs 3]
                              [--old PYTHON] [--all [--most SECONDS]]

The time is that of the whole process, and what counts are cases that were computed and judged. They take turns, and
the ratio is the median of the turns. With the interpreter of another checkout, `--old`, its Opconform takes turns too.
`--all` goes through every op that both know; of one for which the peer has fewer than five cases nothing is said.
benchmarks/README.md says how the peer's program is built.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import click

from opconform.harness.judge.intervals import median
from opconform.harness.model.ops import op_names

#: Opconform's op and the peer's. Those that are compared unless --op says otherwise.
OPS = {
    "acc": "ACC",
    "cumsum": "CUMSUM",
    "solve_tri": "SOLVE_TRI",
    "gated_delta_net": "GATED_DELTA_NET",
    "l2_norm": "L2_NORM",
    "sum_rows": "SUM_ROWS",
    "ssm_conv": "SSM_CONV",
    "pad": "PAD",
}
_ALL = {**{op: op.upper() for op in op_names()}, **OPS}
_LEAST = 5  #: cases of an op that the peer must have for `--all`
_JUDGED = re.compile(r"(\d+)/(\d+) tests passed")
_ONE = re.compile(r"(?:OK|FAIL)(?:\x1b\[0m)?\s*$")  #: at the end of the line of each case, coloured or not


@dataclass(frozen=True)
class Run:
    """One process: how many cases it judged, and the seconds from start to end."""

    cases: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.cases / self.seconds


def run_of_peer(program: Path, folder: Path, op: str, device: str, most: float) -> Run:
    """The peer on one op, for `most` seconds at most. It loads the backends that lie in its working directory."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "GGML_VK_VISIBLE_DEVICES": "0"}
    line_by_line = ("stdbuf", "-oL")  # or what it has printed is lost where it is cut short
    command = [*line_by_line, str(program.resolve()), "test", "-o", op, "-b", device]
    start = time.perf_counter()
    with TemporaryFile("w+") as said:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, cwd=folder, env=environment, stdout=said, stderr=said, timeout=most)
        seconds = time.perf_counter() - start
        said.seek(0)
        return Run(cases_of_peer(said.read()), seconds)


def ratio_of(turns: Sequence[tuple[Run, ...]], which: int) -> str:
    """The median ratio of one program's rate to the peer's, which stands first in each turn, and its range."""
    each = [turn[which].rate / turn[0].rate for turn in turns]
    return f"{median(each):7.1f} {min(each):6.1f}–{max(each):<6.1f}"


def cases_of_peer(text: str) -> int:
    """How many cases its output says it has judged, on all devices that it ran; of one cut short those that ended."""
    totals = [int(total) for _, total in _JUDGED.findall(text)]
    return sum(totals) if totals else sum(bool(_ONE.search(line)) for line in text.splitlines() if "(" in line)


def run_of_ours(python: str, folder: Path, op: str, device: str, examples: int) -> Run:
    """Opconform on one op, with the interpreter `python`, which may be that of another commit."""
    program = [python, "-c", "from opconform.cli import main; main()"]
    chosen = ["--op", op, "--backend", f"ggml:{device}", "--ggml-lib", str(folder), "--max-examples", str(examples)]
    options = ["--seed", "1", "--history", "none", "--database", "none", "--output", "json"]
    command = [*program, "test", *chosen, *options]
    start = time.perf_counter()
    found = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    try:
        results = json.loads(found.stdout)["results"]
    except ValueError:
        sys.exit(f"{' '.join(command)} gave no JSON:\n{found.stderr[-2000:]}")
    return Run(sum(each["tally"]["passed"] + each["tally"]["failed"] for each in results), seconds)


@click.command()
@click.option("--peer", type=click.Path(exists=True, path_type=Path), required=True, help="test-backend-ops")
@click.option("--ggml-lib", type=click.Path(exists=True, path_type=Path), required=True, help="the libggml of both")
@click.option("--device", "devices", multiple=True, default=("CPU", "Vulkan0"), show_default=True)
@click.option("--op", "chosen", multiple=True, type=click.Choice(list(_ALL)), help="only these ops")
@click.option("--all", "every", is_flag=True, help="every op that both know")
@click.option("--most", default=60.0, show_default=True, metavar="SECONDS", help="of the peer for an op")
@click.option("--runs", default=3, show_default=True, help="turns of each")
@click.option("--examples", default=1000, show_default=True, help="cases that Opconform draws: its default profile")
@click.option("--python", default=sys.executable, help="the interpreter of the Opconform that is measured")
@click.option("--old", metavar="PYTHON", help="the interpreter of another Opconform, which is measured beside it")
def main(
    peer: Path,
    ggml_lib: Path,
    devices: tuple[str, ...],
    chosen: tuple[str, ...],
    every: bool,
    most: float,
    runs: int,
    examples: int,
    python: str,
    old: str | None,
) -> None:
    """Print cases a second of each, and the ratios with their ranges."""
    head = f"{'device':9} {'op':16} {'peer':>8} {'ours':>8} {'ratio':>7} {'range':>13} {'peer s':>7} {'ours s':>7}"
    print(head + (f" {'old':>7} {'range':>13}" if old else ""))
    ratios = []
    for device in devices:
        for op in chosen or (_ALL if every else OPS):
            turns = []
            for _ in range(runs):
                theirs = run_of_peer(peer, ggml_lib.resolve(), _ALL[op], device, most)
                if every and theirs.cases < _LEAST:
                    break
                ours = [run_of_ours(each, ggml_lib, op, device, examples) for each in (python, old) if each]
                if theirs.cases:
                    turns.append((theirs, *ours))
            if not turns:
                if not every:
                    print(f"{device:9} {op:16} the peer has judged no case")
                continue
            ratios.append(median([ours.rate / theirs.rate for theirs, ours, *_ in turns]))
            rates = [median([run.rate for run in side]) for side in zip(*turns)]
            seconds = [median([run.seconds for run in side]) for side in zip(*turns)]
            line = f"{device:9} {op:16} {rates[0]:8.0f} {rates[1]:8.0f} {ratio_of(turns, 1)}"
            line += f" {seconds[0]:7.2f} {seconds[1]:7.2f}"
            print(line + (f" {ratio_of(turns, 2)}" if old else ""), flush=True)
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"geometric mean {mean:.1f}, the least {min(ratios):.1f}")


if __name__ == "__main__":
    main()
