"""What the engine's tests share: the sample backends by name, small cases, and a look at this process's children."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from opconform.cases.acc import OP as ACC
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout, contiguous_strides
from opconform.harness.model.op import Op
from opconform.harness.run.backend import Device
from opconform.harness.run.runner import Ready, Runner
from opconform.harness.run.target import Target
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings

SAMPLE = Path(__file__).parent / "backends" / "sample.py"


def spec(name: str) -> str:
    """What `--backend` takes for a sample backend."""
    return f"{SAMPLE}:{name}"


def target(name: str, device: str = "0", options: Mapping[str, str] | None = None) -> Target:
    return Target(spec(name), Device(device, f"NumPy, {name}", {"numpy": "2"}), options or {})


def acc(*ne: int, a: tuple[int, ...] | None = None, inplace: bool = False, seed: int = 0) -> Case:
    """ACC of b, of sizes `ne` (innermost first; 1 where left out), into the first elements of a packed `a`."""
    shape = (*ne, 1, 1, 1, 1)[3::-1]
    into = Layout.contiguous("f32", shape if a is None else (*a, 1, 1, 1, 1)[3::-1])
    nb3, nb2, nb1, _ = contiguous_strides(into.shape, 4)
    params = {"nb1": nb1, "nb2": nb2, "nb3": nb3, "offset": 0}
    inputs = {"a": into, "b": Layout.contiguous("f32", shape)}
    case = Case("acc", params, inputs, {"out": into}, seed=seed, inplace="a" if inplace else None)
    ACC.check(case)
    return case


def children(pid: int | None = None) -> set[int]:
    """The processes that `pid` (this one) started and that are still there, zombies included."""
    parent, found = str(pid or os.getpid()), set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if stat.read_text().rpartition(")")[2].split()[1] == parent:
                found.add(int(stat.parent.name))
        except OSError:
            continue
    return found


def descriptors() -> int:
    """How many file descriptors are open in this process."""
    return len(os.listdir("/proc/self/fd"))


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def cases_drawn(seed: int, examples: int = 300) -> list[str]:
    """The keys of all cases that a search for ACC runs on a right backend."""
    found: list[str] = []

    class Recorder(Runner):
        def verdicts(self, op: Op, cases: Iterable[Case | Ready], **how: Any) -> list[Verdict]:
            cases = list(cases)
            found.extend(each.case.key if isinstance(each, Ready) else each.key for each in cases)
            return super().verdicts(op, cases, **how)

    with Recorder(target("Good"), isolated=False) as runner:
        Search(ACC, runner, Settings(seed=seed, examples=examples)).run()
    return found
