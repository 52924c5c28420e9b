"""How many faults in the kernels are found: by the search, and in two other ways.

    python benchmarks/mutants.py [--backend opencl|cuda-host] [--op OP]… [--sample N --seed S] [-n PROCESSES]
                                 [--json FILE] [--minutes M] [--list] [--table]

Faults (`faults.py`) are put into the kernels one at a time. Each mutant is judged in four ways: by the cases that the
search draws at the profiles quick and default (known cases are off, and nothing is kept from run to run), and in two
other ways (`peers.py`). A mutant that does not compile is not counted. Its process is its own: a crash and a hang are
kills, as they are in a run.

The search draws the same cases whatever the kernel does, until one fails. So they are recorded once with the right
kernel, which must pass them all, and run again with each mutant.

What has been judged stands in FILE, a line for each mutant, and is not judged again: a run can be stopped, and split.
Mutants that no test can tell from the right kernel stand in equivalents.toml, each with the reason.
"""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import itertools
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TextIO

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.faults import Mutant, mutants_of
from benchmarks.peers import Peer, five, upstream
from opconform.backends.kernels.table import KERNELS
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case
from opconform.harness.model.op import Op
from opconform.harness.model.ops import ops
from opconform.harness.run.process import Local, devices_of
from opconform.harness.run.registry import backend_class
from opconform.harness.run.relations import related
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.observer import Observer
from opconform.harness.search.search import Search
from opconform.harness.search.settings import PROFILES, Settings

HERE = Path(__file__).parent
EQUIVALENTS = HERE / "equivalents.toml"
BACKENDS = {"opencl": ("OpenCL", "OpenCL"), "cuda-host": ("CudaHost", "Unwatched")}
WAYS = ("quick", "default", "upstream", "five")
_SEARCHES = ("quick", "default")
_LEAST_SECONDS = 10.0  #: of a processor, that a case may take, or more where the right kernel is slow
_WAIT = 12.0  #: times as long a process may be silent, on a machine that has other things to do


# ---- what to run -----------------------------------------------------------------------------------------------------


class _Cases(Observer):
    """Collects the cases of a search."""

    def __init__(self) -> None:
        self.found: list[Case] = []

    def verdicts(self, op: Op, target: Target, verdicts: Sequence[Verdict]) -> None:
        self.found += [verdict.case for verdict in verdicts if verdict.unsupported is None]


@dataclass(frozen=True)
class Bench:
    """What the mutants of an op are tried on. seconds: what a case may take."""

    op: str
    backend: str
    target: Target
    searched: Mapping[str, Sequence[Case]]
    seconds: float

    @cached_property
    def shared(self) -> int:
        """How many cases both profiles begin with: what fails there fails in both."""
        pairs = zip(self.searched["quick"], self.searched["default"])
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0].key == pair[1].key, pairs))

    @classmethod
    def of(cls, op: str, backend: str, profiles: Mapping[str, int] = PROFILES) -> Bench:
        """Record what the search draws. Raises `RuntimeError` where the right kernel fails."""
        spec = f"{HERE / 'mutated.py'}:{BACKENDS[backend][0]}"
        target = Target(spec, devices_of(spec, {})[0], {})
        searched, slowest = {}, 0.0
        for profile in _SEARCHES:
            cases = _Cases()
            settings = Settings(examples=profiles[profile])
            with Runner(target, max_bytes=settings.max_bytes) as runner:
                result = Search(ops()[op], runner, settings, observer=cases).run()
                slowest = max(slowest, runner.slowest)
            if result.failure is not None:
                raise RuntimeError(f"the right kernel fails: {result.failure.case}")
            searched[profile] = cases.found
        return cls(op, backend, target, searched, max(_LEAST_SECONDS, 20 * slowest))

    def judge(self, ways: Sequence[str], say: Say) -> None:
        """Run the cases of some ways in this process, on the backend whose kernels MUTANT_FOLDER has; tell of each
        case, and of the first of a way that fails."""
        watched = ways[0] in _SEARCHES
        target = replace(self.target, spec=f"{HERE / 'mutated.py'}:{BACKENDS[self.backend][0 if watched else 1]}")
        with Runner(target, isolated=False, time_limit=self.seconds) as runner:
            assert isinstance(runner._worker, Local)
            backend: Any = runner._worker._backend
            backend.build(self.op)
            for way in ways:
                passed = Counted(say)
                what, detail = self._of(way, runner, backend, passed)
                say(what, detail)
                if (way, what) == ("quick", "killed") and passed.count < self.shared:
                    break

    def _of(self, way: str, runner: Runner, backend: Any, passed: Counted) -> tuple[str, str]:
        """What becomes of the mutant in one way: killed, and by what, or survived."""
        if way not in _SEARCHES:
            for number, peer in enumerate(peers(way, self.op)):
                self._limit()
                complaint = peer.complaint(backend)
                if complaint:
                    return "killed", f"case {number}: {complaint[:120]}"
                passed()
            return "survived", ""
        for number, case in enumerate(self.searched[way]):
            self._limit()
            verdict = judged(runner, ops()[self.op], case)
            if verdict.failed:
                return "killed", f"{verdict.kind} in case {number}: {verdict.findings[0].detail[:120]}"
            passed()
        return "survived", ""

    def _limit(self) -> None:
        """Have this process killed when the case that comes takes too long."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        most = int(used.ru_utime + used.ru_stime + self.seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))

    @property
    def kind(self) -> Any:
        """The class of the backend whose kernels may have a fault."""
        return backend_class(self.target.spec)


def judged(runner: Runner, op: Op, case: Case) -> Verdict:
    """The verdict on a case as the search comes to it, relations between runs included."""
    (verdict,) = runner.verdicts(op, [case])
    return related(runner, op, verdict, ()) if verdict.passed else verdict


@cache
def peers(way: str, op: str) -> list[Peer]:
    """The cases of one of the two other ways."""
    return upstream(op) if way == "upstream" else five(op)


# ---- a process that compiles, and one for each mutant ----------------------------------------------------------------


class Say:
    """Sends what happens, a line each, from a mutant's process to the one that waits for it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, what: str, detail: str) -> None:
        os.write(self._descriptor, f"{json.dumps([what, detail])}\n".encode())


class Counted:
    """Tells of each case that passes, and counts them."""

    def __init__(self, say: Say) -> None:
        self._say, self.count = say, 0

    def __call__(self) -> None:
        self.count += 1
        self._say("passed", "")


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
    buffer: bytes = b""
    cases: int = 0  #: that have passed, of the way that runs
    ways: Sequence[str] = ()  #: those that this process judges

    def start(self) -> None:
        """Fork, and judge the ways that are left: the searches in one process, and then the others in another one,
        for what a fault does to its process must not be held against it there."""
        reading, writing = os.pipe()
        self.heard, self.buffer, self.cases = time.monotonic(), b"", 0
        self.ways = [way for way in self.left if (way in _SEARCHES) == (self.left[0] in _SEARCHES)]
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
            if time.monotonic() - self.heard <= _WAIT * self.bench.seconds:
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
                new = Running(bench, mutant, folder, cache, list(ways))
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


# ---- which mutants ---------------------------------------------------------------------------------------------------


def all_mutants(op: str, backend: str) -> list[Mutant]:
    """Every mutant of an op, in the order of its files."""
    kind: Any = backend_class(f"{HERE / 'mutated.py'}:{BACKENDS[backend][0]}")
    return mutants_of(op, kind.source(op), backend == "opencl")


def sample(mutants: Sequence[Mutant], count: int | None, seed: int) -> list[Mutant]:
    """So many mutants, of every class of faults in turn; all of them where no number is given."""
    if count is None or count >= len(mutants):
        return list(mutants)
    by_fault: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in random.Random(seed).sample(list(mutants), len(mutants)):
        by_fault[mutant.fault].append(mutant)
    chosen: list[Mutant] = []
    while len(chosen) < count:
        for left in by_fault.values():
            if left and len(chosen) < count:
                chosen.append(left.pop())
    return chosen


@dataclass(frozen=True)
class Equivalent:
    """Mutants that no test can tell from the right kernel. Every field but `why` is left out or a pattern (`*`, `?`) in
    which brackets stand for themselves."""

    why: str
    op: str = "*"
    backend: str = "*"
    file: str = "*"
    line: str = "*"
    becomes: str = "*"
    fault: str = "*"

    def covers(self, backend: str, mutant: Mapping[str, Any]) -> bool:
        """Whether a mutant is one of these."""
        ops_ = self.op.split()
        named = ((self.file, "file"), (self.line, "line"), (self.becomes, "becomes"), (self.fault, "fault"))
        return (
            any(fnmatch.fnmatchcase(mutant["op"], name) for name in ops_)
            and fnmatch.fnmatchcase(backend, self.backend)
            and all(fnmatch.fnmatchcase(mutant[name], pattern.replace("[", "[[]")) for pattern, name in named)
        )


def equivalents() -> list[Equivalent]:
    """Those that are listed."""
    return [Equivalent(**entry) for entry in tomllib.loads(EQUIVALENTS.read_text("utf-8")).get("equivalent", [])]


# ---- the table -------------------------------------------------------------------------------------------------------


def read(file: Path | None) -> list[dict[str, Any]]:
    """What has been judged."""
    if file is None or not file.exists():
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def key_of(record: Mapping[str, Any]) -> tuple[str, str]:
    """What tells a judged mutant from all others."""
    names = ("op", "file", "line", "becomes", "fault", "nth", "number")
    return record["backend"], Mutant(**{name: record[name] for name in names}).key


def counted(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The mutants that count: they compile, and are not equivalent."""
    listed = equivalents()
    compiled = [record for record in records if not record["quick"].startswith("refused")]
    return [record for record in compiled if not any(each.covers(record["backend"], record) for each in listed)]


def table(records: Sequence[Mapping[str, Any]], by: str) -> Table:
    """How many of the mutants that count each way kills, by op or by class of faults."""
    found = Table(by, "mutants", *WAYS, box=SIMPLE_HEAD)
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[f"{record['backend']} {record['op']}" if by == "op" else record[by]].append(record)
    for name, its in [*groups.items(), ("all", list(records))]:
        if its:
            killed = [sum(bool(record[way]) for record in its) for way in WAYS]
            found.add_row(name, str(len(its)), *(f"{count / len(its):.1%}" for count in killed))
    return found


def show(records: Sequence[Mapping[str, Any]], all_of_them: int) -> None:
    """The tables, and the survivors of the default search."""
    console = Console(width=160)
    console.print(table(records, "op"), table(records, "fault"))
    for record in records:
        if not record["default"]:
            where = f"{record['op']} {record['file']}:{record['number'] + 1}" if record["file"] else record["op"]
            click.echo(f"survived: {where} [{record['fault']}]\n    {record['line']}\n    {record['becomes']}")
    click.echo(f"{all_of_them} judged, {len(records)} count")


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="opencl", show_default=True)
@click.option("--op", "chosen", multiple=True, type=click.Choice(list(KERNELS)), help="default: every op with kernels")
@click.option("--sample", "count", type=click.IntRange(1), metavar="N", help="only N mutants of each op")
@click.option("--seed", default=0, show_default=True, help="of the sample")
@click.option("-n", "processes", type=click.IntRange(1), default=1, show_default=True, help="mutants at a time")
@click.option("--json", "file", type=click.Path(path_type=Path), metavar="FILE", help="where the judged ones stand")
@click.option("--minutes", type=float, help="stop after this time")
@click.option("--list", "only_list", is_flag=True, help="list the mutants, and run nothing")
@click.option("--table", "only_table", is_flag=True, help="the tables of FILE, and run nothing")
def main(
    backend: str,
    chosen: tuple[str, ...],
    count: int | None,
    seed: int,
    processes: int,
    file: Path | None,
    minutes: float | None,
    only_list: bool,
    only_table: bool,
) -> None:
    """Judge mutants of the kernels, and print how many each way kills."""
    until = time.monotonic() + 60 * (minutes if minutes is not None else 60 * 24 * 365)
    records = read(file)
    if only_table:
        show(counted(records), len(records))
        return
    listed, done = equivalents(), {key_of(record) for record in records}
    for op in chosen or KERNELS:
        mutants = sample(all_mutants(op, backend), count, seed)
        if only_list:
            for mutant in mutants:
                why = next((each.why for each in listed if each.covers(backend, asdict(mutant))), "")
                place = f"{mutant.file}:{mutant.number + 1}" if mutant.file else "the host"
                click.echo(f"{op} {place} [{mutant.fault}]{f' equivalent: {why}' if why else ''}")
                click.echo(f"    {mutant.line}\n    {mutant.becomes}")
            continue
        mutants = [mutant for mutant in mutants if (backend, mutant.key) not in done]
        mutants = [mutant for mutant in mutants if not any(each.covers(backend, asdict(mutant)) for each in listed)]
        if not mutants or time.monotonic() > until:
            continue
        bench = Bench.of(op, backend)
        for number, record in enumerate(run(bench, mutants, processes, until), start=1):
            records.append(record)
            if file is not None:
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(f"{json.dumps(record)}\n")
            state = record["default"].split(":")[0] or "SURVIVED"
            click.echo(
                f"{op} {number} of {len(mutants)}: {state} [{record['fault']}] {record['becomes'][:90]}", err=True
            )
    if not only_list:
        show(counted(records), len(records))


if __name__ == "__main__":
    main()
