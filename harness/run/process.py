"""The client of a worker process, and the same without a process.

A worker may die, hang or send anything: each of that becomes a `Died` for the case in hand, and the next case gets a
fresh worker.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from opconform.harness.model.case import Case
from opconform.harness.model.findings import Kind
from opconform.harness.model.limits import Limit
from opconform.harness.model.numerics import Numerics
from opconform.harness.run import begun, messages, sanitizer
from opconform.harness.run.backend import Backend, Device, Named, Unavailable
from opconform.harness.run.messages import (
    Answer,
    Clock,
    Refusal,
    Samples,
    Shown,
    StageError,
    TimingError,
)
from opconform.harness.run.registry import backend_class
from opconform.harness.run.sanitizer import LOG, OPTION
from opconform.harness.run.timing import What
from opconform.harness.run.wire import EndedError, NonsenseError, OutOfTimeError, exit_words
from opconform.harness.run.worker import (
    answer,
    arithmetic,
    clocking,
    listing,
    naming,
    opening,
    sampling,
    shown_stages,
    supporting,
)

T = TypeVar("T")

START_SECONDS = 120.0  #: how long a backend may take to list and open its devices
_EXIT_SECONDS = 5.0  #: how long a worker that hung up may take to end
_STDERR_BYTES = 6000  #: how much of a dead worker's last words a report keeps


@dataclass(frozen=True)
class Died:
    """A worker's end: killed by a signal, exited, out of time, or ended by us for what it sent. `log` is what the
    sanitizer wrote until then."""

    kind: Kind
    detail: str
    stderr: str
    log: str = ""


class Worker:
    """A worker process for one backend. Starting it does not wait; the first use does."""

    def __init__(self, spec: str, options: Mapping[str, str]) -> None:
        before, environment, self._log = _under_sanitizer(spec, options)
        self._arena = np.empty(0, np.uint8)
        waiting = None if self._log else begun.taken()
        self._wire, self._memory_fd = waiting or begun.started(before, environment)
        self._wire.send((spec, dict(options)), START_SECONDS)
        self._devices: list[Device] | None = None
        self._mark = 0  #: how much it had printed before the last cases

    def devices(self, seconds: float | None = None) -> list[Device]:
        """The backend's devices. Raises `Unavailable`, also when the time is up."""
        if self._devices is None:
            kind, content = self._reply("list its devices", seconds)
            self._devices = self._read("list its devices", messages.devices_in, kind, "devices", content)
        return self._devices

    def open(self, device: str, seconds: float | None = None) -> tuple[Limit, ...]:
        """Open a device; returns its limits. Raises `Unavailable`, also when the time is up."""
        self.devices(seconds)
        self._wire.send(("open", device), START_SECONDS)
        kind, content = self._reply(f"open {device}", seconds)
        return self._read(f"open {device}", messages.limits_in, kind, "limits", content)

    def supports(self, cases: Sequence[Case]) -> list[str | None]:
        """The backend's own word on each case. Raises `Unavailable`."""
        what = "say what it supports"
        self._wire.send(("supports", list(cases)), START_SECONDS)
        kind, content = self._reply(what, None)
        return self._read(what, lambda plain: messages.reasons_in(plain, len(cases)), kind, "reasons", content)

    def names(self) -> tuple[Named, ...] | None:
        """The ops that the backend's library names. Raises `Unavailable`."""
        what = "name its ops"
        self._wire.send(("names",), START_SECONDS)
        kind, content = self._reply(what, None)
        return self._read(what, messages.names_in, kind, "names", content)

    def numerics(self, cases: Sequence[Case]) -> list[Numerics | None]:
        """The backend's own word on the arithmetic of each case. Raises `Unavailable`."""
        what = "say how it computes"
        self._wire.send(("numerics", list(cases)), START_SECONDS)
        kind, content = self._reply(what, None)
        return self._read(what, lambda plain: messages.numerics_in(plain, len(cases)), kind, "numerics", content)

    def _reply(self, what: str, seconds: float | None) -> tuple[str, Any]:
        """The next message. Raises `Unavailable`, or `UsageError` where the worker says so."""
        try:
            kind, content, _ = self._message(START_SECONDS if seconds is None else seconds)
            absence = messages.absence_in(kind, content)
        except NonsenseError as nonsense:
            raise self._gone(what, self._stopped(nonsense)) from None
        except _DiedError as end:
            raise self._gone(what, end.died) from None
        if absence is not None:
            raise absence
        return kind, content

    def _read(self, what: str, read: Callable[[Any], T], kind: str, wanted: str, content: Any) -> T:
        """The content of a message of the kind `wanted`. Raises `Unavailable`."""
        try:
            return _content(read, kind, wanted, content)
        except NonsenseError as nonsense:
            raise self._gone(what, self._stopped(nonsense)) from None

    def _gone(self, what: str, died: Died) -> Unavailable:
        last = died.stderr.strip().splitlines()[-1:] or [""]
        return Unavailable(f"could not {what}: {died.detail}", last[0] or "its worker said nothing")

    def arena(self, size: int) -> np.ndarray:
        """Memory of at least `size` bytes that the worker sees too."""
        if self._arena.size < size:
            grown = 1 << (size - 1).bit_length()
            with contextlib.suppress(PermissionError):  # the worker has made it longer than this itself
                os.ftruncate(self._memory_fd, grown)
            self._arena = np.frombuffer(mmap.mmap(self._memory_fd, grown), np.uint8)
        return self._arena

    def run(self, cases: Sequence[tuple[Case, int]], seconds: float) -> Iterator[Answer | Died]:
        """Send cases; returns one answer per case, in order, and waits for each as it is taken. The last one is `Died`
        where the worker ends before its time."""
        mark = self._mark = self._wire.output.total
        logged = sanitizer.size_of(self._log) if self._log else 0
        self._wire.send(("run", self._arena.size, cases), seconds)
        return self._answers(len(cases), seconds, mark, logged)

    def _answers(self, count: int, seconds: float, mark: int, logged: int) -> Iterator[Answer | Died]:
        for number in range(count):
            try:
                kind, content, _ = self._message(seconds, mark)
                if kind != "answer":
                    raise NonsenseError(f"a message of {kind!r:.40} came instead of an answer")
                found = messages.answer_in(content, number)
            except NonsenseError as nonsense:
                yield replace(self._stopped(nonsense, mark), log=self._logged_since(logged))
                return
            except _DiedError as end:
                yield replace(end.died, log=self._logged_since(logged))
                return
            logged = max(logged, found.logged)
            yield found

    def said(self) -> str:
        """What it has printed since it was last given cases."""
        self._wire.output.catch_up()
        return self._wire.output.since(self._mark, _STDERR_BYTES)

    def _logged_since(self, start: int) -> str:
        """What the sanitizer has written from byte `start` on."""
        return sanitizer.written(self._log, start)[0] if self._log else ""

    def stages(self, case: Case, seconds: float) -> Shown | StageError:
        """The intermediates of the case that stands at the start of the arena."""
        self._wire.send(("stages", self._arena.size, case, 0), seconds)
        try:
            kind, content, arrays = self._message(seconds, arrays=True)
            if kind not in ("stages", "no stages"):
                raise NonsenseError(f"a message of {kind!r:.40} came instead of the stages")
            return messages.stages_in(kind, content, arrays)
        except NonsenseError as nonsense:
            return StageError(self._stopped(nonsense).detail)
        except _DiedError as end:
            return StageError(end.died.detail)

    def clock(self, case: Case, moved: int, seconds: float) -> Clock | Refusal:
        """Load the case that stands at the start of the arena, to be timed. Raises `TimingError`."""
        self._wire.send(("clock", self._arena.size, case, 0, moved), seconds)
        return self._timed(messages.clock_in, seconds)

    def sample(self, what: What, budget: float, seconds: float) -> Samples:
        """Times of the case that was loaded last. Raises `TimingError`."""
        self._wire.send(("sample", what, budget), seconds)
        return self._timed(messages.samples_in, seconds + budget)

    def _timed(self, read: Callable[[str, Any], T], seconds: float) -> T:
        try:
            kind, content, _ = self._message(seconds)
            return read(kind, content)
        except NonsenseError as nonsense:
            raise TimingError(self._stopped(nonsense).detail) from None
        except _DiedError as end:
            raise TimingError(end.died.detail) from None

    def _message(self, seconds: float, mark: int = 0, arrays: bool = False) -> tuple[str, Any, bytes]:
        """The next message, with its arrays where it may have `arrays`. Raises `_DiedError` or `NonsenseError`."""
        try:
            text, sent = self._wire.receive(seconds, arrays)
        except OutOfTimeError:
            self._wire.kill()
            raise _DiedError(Died(Kind.TIMEOUT, f"no answer within {seconds:g} s", self._said(mark))) from None
        except EndedError:
            code = self._wire.exit_code(_EXIT_SECONDS)
            self._wire.kill()  # what it has started goes with it
            how = "it hung up and did not end" if code is None else exit_words(code)
            raise _DiedError(Died(Kind.CRASH, how, self._said(mark))) from None
        kind, content = messages.unpacked(text)
        return kind, content, sent

    def _stopped(self, nonsense: NonsenseError, mark: int = 0) -> Died:
        """The end of a worker that has sent what is no message: nothing that it sends from here on can be trusted."""
        self._wire.kill()
        return Died(Kind.ERROR, f"its worker does not keep to the protocol: {nonsense}", self._said(mark))

    def _said(self, mark: int) -> str:
        self._wire.output.settle()
        return self._wire.output.since(mark, _STDERR_BYTES)

    @property
    def pid(self) -> int:
        return self._wire.pid

    def is_alive(self) -> bool:
        return self._wire.is_alive()

    def close(self) -> None:
        """End the process, and all that it has started. Twice does no harm."""
        self._wire.close()
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1
        if self._log:
            Path(self._log).unlink(missing_ok=True)


class _DiedError(Exception):
    """The worker has ended while its message was waited for."""

    def __init__(self, died: Died) -> None:
        super().__init__(died.detail)
        self.died = died


def _under_sanitizer(spec: str, options: Mapping[str, str]) -> tuple[Sequence[str], Mapping[str, str], str]:
    """The words before a worker's command, its environment, and the path of the checker's log; nothing where it runs
    under none. Raises `Unavailable`."""
    if OPTION not in options:
        return (), {}, ""
    checker = backend_class(spec).sanitizer()
    handle, log = tempfile.mkstemp(prefix="opconform-", suffix=".log")
    os.close(handle)
    before, environment = checker.start(log)
    return before, {**environment, LOG: log}, log


class Local:
    """The same in this very process, for debugging: no protection from aborts, segfaults or hangs."""

    def __init__(self, spec: str, options: Mapping[str, str]) -> None:
        self._spec = spec
        self._options = options
        self._type: type[Backend] | None = None
        self._backend: Backend | None = None
        self._arena = np.empty(0, np.uint8)

    def devices(self, seconds: float | None = None) -> list[Device]:
        def ask() -> bytes:
            self._type, message = listing(self._spec, self._options)
            return message

        return self._asked("list its devices", ask, messages.devices_in, "devices")

    def open(self, device: str, seconds: float | None = None) -> tuple[Limit, ...]:
        if self._type is None:
            self.devices()

        def ask() -> bytes:
            assert self._type is not None
            self._backend, message = opening(self._type, device, self._options)
            return message

        return self._asked(f"open {device}", ask, messages.limits_in, "limits")

    def _asked(self, what: str, ask: Callable[[], bytes], read: Callable[[Any], T], wanted: str) -> T:
        """What the backend says, read as a worker's message is. Raises `Unavailable`, or `UsageError`."""
        try:
            kind, content, _ = messages.taken_apart(ask())
            absence = messages.absence_in(kind, content)
            if absence is None:
                return _content(read, kind, wanted, content)
        except SystemExit as exit_:
            raise Unavailable(f"could not {what}: {_exit_words(exit_)}", _MEND) from None
        except NonsenseError as nonsense:
            raise Unavailable(f"could not {what}: {nonsense}", _MEND) from None
        raise absence

    @property
    def _open(self) -> Backend:
        assert self._backend is not None
        return self._backend

    def arena(self, size: int) -> np.ndarray:
        if self._arena.size < size:
            self._arena = np.empty(size, np.uint8)
        return self._arena

    def run(self, cases: Sequence[tuple[Case, int]], seconds: float) -> Iterator[Answer | Died]:
        for case, offset in cases:
            try:
                message = messages.of_answer(answer(self._open, case, self._arena[offset:]), 0)
                yield messages.answer_in(messages.taken_apart(message)[1], 0)
            except SystemExit as exit_:
                yield Answer(error=_exit_words(exit_))
            except NonsenseError as nonsense:
                yield Answer(error=str(nonsense))

    def supports(self, cases: Sequence[Case]) -> list[str | None]:
        what, count = "say what it supports", len(cases)
        ask = partial(supporting, self._open, cases)
        return self._asked(what, ask, partial(messages.reasons_in, count=count), "reasons")

    def names(self) -> tuple[Named, ...] | None:
        return self._asked("name its ops", partial(naming, self._open), messages.names_in, "names")

    def numerics(self, cases: Sequence[Case]) -> list[Numerics | None]:
        what, count = "say how it computes", len(cases)
        ask = partial(arithmetic, self._open, cases)
        return self._asked(what, ask, partial(messages.numerics_in, count=count), "numerics")

    def stages(self, case: Case, seconds: float) -> Shown | StageError:
        try:
            shown = messages.of_stages(shown_stages(self._open, case, self._arena))
            return messages.stages_in(*messages.taken_apart(shown))
        except SystemExit as exit_:
            return StageError(_exit_words(exit_))
        except NonsenseError as nonsense:
            return StageError(str(nonsense))

    def clock(self, case: Case, moved: int, seconds: float) -> Clock | Refusal:
        def ask() -> bytes:
            self._stopwatch, message = clocking(self._open, case, self._arena, moved)
            return message

        return _timed(ask, messages.clock_in)

    def sample(self, what: What, budget: float, seconds: float) -> Samples:
        return _timed(lambda: sampling(self._stopwatch, what, budget), messages.samples_in)

    def said(self) -> str:
        """Nothing: what a backend prints in this process, the user has seen."""
        return ""

    def close(self) -> None:
        pass


_MEND = "mend the backend, or leave out --no-isolation"


def _exit_words(exit_: SystemExit) -> str:
    return f"SystemExit: {exit_.code}: a backend must not end the process it runs in"


def _content(read: Callable[[Any], T], kind: str, wanted: str, content: Any) -> T:
    """The content of a message of the kind `wanted`. Raises `NonsenseError`."""
    if kind != wanted:
        raise NonsenseError(f"a message of {kind!r:.40} came instead of one of {wanted!r}")
    return read(content)


def _timed(ask: Callable[[], bytes], read: Callable[[str, Any], T]) -> T:
    """What a backend in this process says of times. Raises `TimingError`."""
    try:
        kind, content, _ = messages.taken_apart(ask())
        return read(kind, content)
    except SystemExit as exit_:
        raise TimingError(_exit_words(exit_)) from None
    except NonsenseError as nonsense:
        raise TimingError(str(nonsense)) from None


def devices_of(spec: str, options: Mapping[str, str], isolated: bool = True) -> list[Device]:
    """The devices of a backend, listed in a process of its own. Raises `Unavailable`."""
    if not isolated:
        return Local(spec, options).devices()
    worker = Worker(spec, options)
    try:
        return worker.devices()
    finally:
        worker.close()
