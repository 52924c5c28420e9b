"""The generator for every other backend: its class runs in the script, on copies of the files that it imports.

Those are the class's own file, what that imports from beside it, and the few modules of Opconform that a backend is
written against (buffers, cases, layouts): plain NumPy, so that nothing else has to be installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from opconform.harness.explain.facts import Facts
from opconform.harness.run.script import CannotWriteError
from opconform.reports.repro import apis
from opconform.reports.repro.probe import START
from opconform.reports.repro.scripts import Generator, Part

_SECONDS = 30.0  #: a file that takes longer to import has no script
_LARGEST = 4 << 20

#: The registered backends with a script of their own.
GENERATORS: Mapping[str, Generator] = {
    "cuda": apis.cuda,
    "cuda-host": apis.cuda_host,
    "ggml": apis.ggml,
    "opencl": apis.opencl,
    "torch": apis.torch,
    "vulkan": apis.vulkan,
}


def part_of(facts: Facts) -> Part:
    """The part that runs the case as its backend does. Raises `CannotWriteError`."""
    _refuse_what_one_run_cannot_show(facts)
    generator = GENERATORS.get(facts.target.spec)
    if generator is not None:
        return generator(facts)
    found = _looked_at(facts.target.spec, facts.op.name)
    with_kernels = {"cuda": apis.cuda, "cuda-host": apis.cuda_host, "opencl": apis.opencl, "vulkan": apis.vulkan}
    if found["api"] in with_kernels:
        return with_kernels[found["api"]](facts, Path(found["kernels"]))
    if found["api"] == "torch":
        return apis.torch(facts, found["function"])
    return _own(facts, found)


def _refuse_what_one_run_cannot_show(facts: Facts) -> None:
    check = facts.failure.findings[0].check
    if check == "sanitizer":
        raise CannotWriteError("only a checker sees this fault; the case replays under it with --sanitize")
    if check in {relation.name for relation in facts.op.metamorphic}:
        raise CannotWriteError(
            f"the fault shows only between several runs ({check}), which Opconform's replay compares"
        )


def _looked_at(spec: str, op: str) -> dict[str, Any]:
    """What `probe.py` says of a backend class."""
    with tempfile.TemporaryDirectory(prefix="opconform-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-c", START, spec, op, str(result)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise CannotWriteError(f"importing {spec} takes more than {_SECONDS:g} s") from None
        if not result.is_file():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise CannotWriteError(f"{spec} cannot be imported: {last}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found


def _own(facts: Facts, found: Mapping[str, Any]) -> Part:
    files = {f"modules/{place}": Path(source).read_bytes() for place, source in found["files"].items()}
    if sum(map(len, files.values())) > _LARGEST:
        raise CannotWriteError(f"{facts.target.spec} imports more than {_LARGEST >> 20} MiB of files of its own")
    first, cases = 0, []
    for _, case, plan in facts.parts:
        cases.append((json.dumps(replace(case, data=None).to_json()), first))
        first += plan.size
    return Part(
        "python.py.j2",
        {
            "device": facts.target.device.id,
            "options": dict(facts.target.options),
            "class_name": found["class"],
            "class_module": found["module"],
            "class_path": found["file"],
            "class_file": found["file"] or found["module"],
            "cases_source": "[\n" + "".join(f"    ({text!a}, {place}),\n" for text, place in cases) + "]",
            "may_refuse": True,
        },
        ("functools", "importlib.util", "json"),
        files,
    )
