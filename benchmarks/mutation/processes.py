"""A process that compiles mutants, and one for each mutant that runs it: a crash and a hang are kills."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from benchmarks.faults import Mutant
from benchmarks.mutation.judging import SEARCHES, WAYS, Bench, Say

_SILENT = 30.0  #: seconds after which a process that is silent, and has done nothing either, is held to wait for ever


class Compiler:
    """Compiles mutants and never runs one, so that what a mutant's process needs is in the cache of the driver: to load
    a compiler takes longer than most mutants live."""

    def __init__(self, bench: Bench, cache: Path) -> None:
        self._bench, self._cache = bench, cache
        self._process = 0
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._process = os.fork()
        if self._process == 0:
            ours.close()
            _in_own_group()
            with contextlib.suppress(Exception):
                self._serve(theirs.makefile("rw"))
            os._exit(0)
        theirs.close()
        self._wire = ours.makefile("rw")

    def _serve(self, wire: TextIO) -> None:
        _own_caches(self._cache)
        for folder in wire:
            os.environ["MUTANT_FOLDER"] = folder.strip()
            refusal = ""
            try:
                kind = self._bench.kind
                kind(self._bench.target.device.id, {}).build(self._bench.op)
            except Exception as refused:
                refusal = " ".join(str(refused).split())[-300:] or type(refused).__name__
            wire.write(f"{json.dumps(refusal)}\n")
            wire.flush()

    def refusal(self, folder: Path) -> str:
        """Why the kernels in a folder do not compile; "" where they do."""
        self._wire.write(f"{folder}\n")
        self._wire.flush()
        line = self._wire.readline()
        if line:
            return str(json.loads(line))
        self.close()
        self._start()
        return "the compiler died"

    def close(self) -> None:
        """End the process."""
        _end(self._process)


def _in_own_group() -> None:
    """What a process does that is forked from this one: nothing it prints is shown, and it dies with all that it
    starts."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def _own_caches(folder: Path) -> None:
    """Keep what drivers and compilers cache out of the user's folders."""
    os.environ |= {"POCL_CACHE_DIR": str(folder / "pocl"), "PYOPENCL_NO_CACHE": "1"}
    os.environ |= {"OPCONFORM_CACHE": str(folder / "opconform"), "XDG_CACHE_HOME": str(folder / "xdg")}


def _end(process: int) -> int:
    """End a process and its group; returns how it has ended."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


@dataclass
class Running:
    """A mutant's process: which way it is judged in, and when it was last heard of."""

    bench: Bench
    mutant: Mutant
    folder: Path
    cache: Path
    left: list[str]  #: ways that are still to come, the one that runs ahead
    found: dict[str, str] = field(default_factory=dict)
    process: int = 0
    pipe: int = -1
    heard: float = 0.0
    ticks: int = 0  #: of a processor, that the process had used when this was last looked at
    buffer: bytes = b""
    cases: int = 0  #: that have passed, of the way that runs
    ways: Sequence[str] = ()  #: those that this process judges

    def start(self) -> None:
        """Fork, and judge the ways that are left: the searches in one process, and then the others in another one,
        for what a fault does to its process must not be held against it there."""
        reading, writing = os.pipe()
        self.heard, self.ticks, self.buffer, self.cases = time.monotonic(), 0, b"", 0
        self.ways = [way for way in self.left if (way in SEARCHES) == (self.left[0] in SEARCHES)]
        self.process = os.fork()
        if self.process == 0:
            os.close(reading)
            self._become(writing)
        os.close(writing)
        self.pipe = reading

    def _become(self, writing: int) -> None:
        """The mutant's process. It does not return."""
        status = 1
        try:
            _in_own_group()
            _own_caches(self.cache)
            os.environ["MUTANT_FOLDER"] = str(self.folder)
            os.environ["MUTANT_STALE"] = "" if self.mutant.file else self.mutant.becomes.removeprefix("stale ")
            self.bench.judge(self.ways, Say(writing))
            status = 0
        finally:
            os._exit(status)

    def hear(self) -> bool:
        """Read what has come; whether the process has ended or has been ended."""
        if not select.select([self.pipe], [], [], 0)[0]:
            if time.monotonic() - self.heard <= _SILENT:
                return False
            if self._does_something():
                self.heard = time.monotonic()
                return False
            self._ended("TIMEOUT")
            return True
        self.heard = time.monotonic()
        news = os.read(self.pipe, 1 << 16)
        if not news:
            self._ended("CRASH")
            return True
        *lines, self.buffer = (self.buffer + news).split(b"\n")
        for line in lines:
            what, detail = json.loads(line)
            if what == "passed":
                self.cases += 1
            else:
                self._found(detail if what == "killed" else "")
        return False

    def _does_something(self) -> bool:
        """Whether the process has used a processor since this was last asked: on a machine that has other things to do
        it may be silent for long. One that computes for ever is killed by its own limit."""
        _, _, after_name = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")
        state, *_ = fields = after_name.split()
        ticks, self.ticks = self.ticks, int(fields[11]) + int(fields[12])  # in user and in system mode
        return state == "R" or self.ticks != ticks

    def _found(self, killer: str) -> None:
        """Note what became of the mutant in the way that runs."""
        way = self.left.pop(0)
        self.found[way] = killer
        if way == "quick" and killer and self.cases < self.bench.shared and self.left[:1] == ["default"]:
            self.found[self.left.pop(0)] = killer
        self.cases = 0

    def _ended(self, end: str) -> None:
        """Take leave of the process; `end` is what became of it unless it had come to its end."""
        status = _end(self.process)
        os.close(self.pipe)
        if self.left and self.left[0] in self.ways:
            out_of_time = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
            self._found(f"{'TIMEOUT' if out_of_time else end} in case {self.cases}")

    def record(self) -> dict[str, Any]:
        """The line of the file."""
        return {"backend": self.bench.backend, **asdict(self.mutant), **self.found}


def run(
    bench: Bench, mutants: Sequence[Mutant], processes: int, until: float, ways: Sequence[str] = WAYS
) -> Iterator[dict[str, Any]]:
    """Judge mutants, so many at a time, and yield what became of each. Ends early when the time is up."""
    waiting = list(reversed(mutants))
    source = bench.kind.source(bench.op)
    running: list[Running] = []
    cache = Path(tempfile.mkdtemp(prefix="mutants-"))
    compiler = Compiler(bench, cache)
    try:
        while waiting or running:
            while waiting and len(running) < processes and time.monotonic() < until:
                mutant = waiting.pop()
                folder = Path(tempfile.mkdtemp(dir=cache))
                if mutant.file:
                    (folder / mutant.file).write_text(mutant.text(source.files[mutant.file]), encoding="utf-8")
                refusal = compiler.refusal(folder)
                new = Running(bench, mutant, folder, cache, [way for way in ways if bench.has(way)])
                if refusal:
                    yield new.record() | dict.fromkeys(ways, f"refused: {refusal}")
                    continue
                running.append(new)
                new.start()
            if not running:
                return
            select.select([each.pipe for each in running], [], [], 1.0)
            for each in [each for each in running if each.hear()]:
                if each.left:
                    each.start()
                    continue
                running.remove(each)
                yield each.record()
    finally:
        compiler.close()
        for each in running:
            _end(each.process)
        shutil.rmtree(cache, ignore_errors=True)
