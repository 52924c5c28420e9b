"""Which ops a change concerns: the files that differ from a git commit, and the ops that their names tell of.

The rules, for each changed file:
* one that is no source (text, pictures), and whatever lies in a folder of tests, documents or tools: nothing;
* one whose name has an op's name in it (`acc.cu`, `acc_f32.comp`, `cases/acc.py`, `cases/known/acc.json`): that op;
* any other source is shared: every op.
In Opconform's own repository a file below `backends/FOLDER` concerns only the backends of that folder, and what
`reports` does changes no verdict.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from opconform.harness.model.usage import UsageError
from opconform.harness.run.registry import folder_of

DEFAULT_BASE = "origin/main"

_SOURCES = re.compile(
    r".*\.(c|cc|cpp|cxx|h|hh|hpp|inl|cu|cuh|hip|cl|clh|comp|glsl|metal|mm?|wgsl|slang|py|pyx|rs|zig|go|jl|json)",
    re.IGNORECASE,
)
_BUILD_FILES = {"pyproject.toml", "setup.py", "CMakeLists.txt", "Cargo.toml", "meson.build"}
_ELSEWHERE = {"test", "tests", "testing", "doc", "docs", "example", "examples", "bench", "benchmarks", "tools", "ci"}


def changed_files(base: str) -> tuple[Path, list[PurePosixPath]]:
    """The root of this git repository, and the files below it that differ from where it left `base`: in commits, in the
    working tree, and new ones. Raises `UsageError`."""
    base = base.rstrip(".…")
    root = Path(_git("rev-parse", "--show-toplevel").strip())
    fork = _git("merge-base", "--end-of-options", base, "HEAD").strip()
    names = _git("-C", str(root), "diff", "--name-only", "--no-renames", "-z", fork)
    names += _git("-C", str(root), "ls-files", "--others", "--exclude-standard", "-z")
    return root, [PurePosixPath(name) for name in dict.fromkeys(names.split("\0")) if name]


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, errors="surrogateescape", check=False
        )
    except FileNotFoundError:
        raise UsageError("--changed-ops needs git") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"git {arguments[0]} failed"])[-1]
        raise UsageError(f"--changed-ops: {said}; name a commit that is here (a clone of full depth has them all)")
    return done.stdout


def ops_concerned(files: Iterable[PurePosixPath], root: Path, spec: str, ops: Sequence[str]) -> list[str]:
    """The `ops` that changes in `files` (below `root`) concern on the backend `spec`."""
    ours = root.resolve() == Path(__file__).resolve().parents[2]
    folder = folder_of(spec)
    found: set[str] = set()
    for file in files:
        if ours and file.parts[0] == "backends" and len(file.parts) > 2 and file.parts[1] != folder:
            continue
        if ours and file.parts[0] == "reports":
            continue
        found.update(_ops_of(file, ops))
    return [op for op in ops if op in found]


def _ops_of(file: PurePosixPath, ops: Sequence[str]) -> list[str]:
    if file.name in _BUILD_FILES:
        return list(ops)
    if not _SOURCES.fullmatch(file.name) or any(part.startswith(".") for part in file.parts):
        return []
    if any(part.lower() in _ELSEWHERE for part in file.parts[:-1]) or re.match(r"test_|conftest\.py$", file.name):
        return []
    words = "_" + re.sub(r"[^a-z0-9]+", "_", file.name.rpartition(".")[0].lower()) + "_"
    named = [op for op in ops if f"_{op}_" in words]
    longest = [op for op in named if not any(op != other and op in other for other in named)]
    return longest or ([] if file.suffix == ".json" else list(ops))
