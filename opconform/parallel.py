"""`opconform test -n N`: the pairs of op and device shared among processes of the same run.

Each process makes the campaign anew from the same options and seed, writes into the same history, and takes the next
pair when it is done with one. What it says comes back as lines of JSON; the process that was started shows it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TextIO

from opconform.budget import Budget
from opconform.campaign import Campaign
from opconform.harness.draw.known import LARGEST
from opconform.harness.explain.failure import Failure
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.op import Op
from opconform.harness.model.usage import UsageError
from opconform.harness.run.target import Target
from opconform.harness.search.observer import Observer
from opconform.harness.search.result import Result, Tally

_EVERY = 1.0  #: seconds between two messages on how far a pair is
_START = "import sys; sys.path.sort(key=lambda place: not place); from opconform.parallel import work; work()"


def processes_of(text: str | None) -> int:
    """How many processes `-n` asks for: a number, or "auto" for one for each processor. Raises `UsageError`."""
    if text == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if text is None or (text.isdecimal() and text.isascii() and 1 <= int(text) <= 256):
        return int(text or 1)
    raise UsageError(f"-n is {text!r}; it must be a number from 1 on, or auto")


def results(
    campaign: Campaign, values: Mapping[str, Any], processes: int, budget: Budget, observer: Observer
) -> Iterator[Result | str]:
    """The results of a campaign's pairs in the order in which they are done; for a pair that has none, why. Raises
    `UsageError`."""
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(campaign.pairs)):
        todo.put(index)
    said: queue.SimpleQueue[tuple[int, str, Any]] = queue.SimpleQueue()
    setup = {
        "values": {**values, "seed": campaign.settings.seed},
        "run": campaign.run.id,
        "pairs": [(op.name, target.label) for op, target in campaign.pairs],
    }
    with contextlib.ExitStack() as stack:
        for _ in range(min(processes, len(campaign.pairs))):
            process = subprocess.Popen(
                [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(_end, process)
            threading.Thread(target=_attend, args=(process, setup, todo, said, budget), daemon=True).start()
        done = 0
        while done < len(campaign.pairs):
            index, what, content = said.get()
            op, target = campaign.pairs[index]
            if what == "begins":
                observer.begins(op, target)
            elif what == "progress":
                observer.progress(op, target, Tally.from_json(content))
            elif what == "shrinking":
                observer.shrinking(op, target, _verdict(content))
            elif what == "failure":
                observer.failure(op, target, Failure.from_json(content))
            elif what == "result":
                result = Result.from_json(content)
                observer.result(op, target, result)
                done += 1
                yield result
            elif what == "usage":
                raise UsageError(*content)
            else:
                done += 1
                observer.lost(op, target, content)
                yield content


def _verdict(plain: Mapping[str, Any]) -> Verdict:
    """A verdict of which only the case and the kind were told."""
    return Verdict(Case.from_json(plain["case"], LARGEST), (Finding("", Kind[plain["kind"]], ""),))


def _attend(
    process: subprocess.Popen[str],
    setup: Mapping[str, Any],
    todo: queue.SimpleQueue[int],
    said: queue.SimpleQueue[tuple[int, str, Any]],
    budget: Budget,
) -> None:
    """Give a process one pair after the other, until none is left. Where it ends before its time, its pair is lost."""
    assert process.stdin is not None
    assert process.stdout is not None
    index = -1
    try:
        _write(process.stdin, setup)
        while True:
            index = -1
            index = todo.get_nowait()
            with budget.pair() as share:
                _write(process.stdin, {"index": index, **share})
                for line in process.stdout:
                    what, content = json.loads(line)
                    said.put((index, what, content))
                    if what in ("result", "lost", "usage"):
                        break
                else:
                    break
    except queue.Empty:
        return
    except (OSError, ValueError):
        pass
    status = process.wait()
    _lose(said, setup, index if index >= 0 else todo.get(), f"its process ended with exit status {status}")
    with contextlib.suppress(queue.Empty):
        while True:  # the others go on; should they all have ended, every pair must have an answer
            _lose(said, setup, todo.get_nowait(), "a process that shares the work has ended")


def _lose(said: queue.SimpleQueue[tuple[int, str, Any]], setup: Mapping[str, Any], index: int, why: str) -> None:
    op, target = setup["pairs"][index]
    said.put((index, "lost", f"{op} on {target} cannot run: {why}"))


def _write(stream: Any, content: Any) -> None:
    stream.write(json.dumps(content) + "\n")
    stream.flush()


def _end(process: subprocess.Popen[str]) -> None:
    """Let a process close its session, and wait for it."""
    with contextlib.suppress(OSError):
        assert process.stdin is not None
        process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ---- in the processes -----------------------------------------------------------------------------------------------


class _Told(Observer):
    """Sends on what the starting process shows; how far a pair is, only now and then."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._sent = -_EVERY

    def begins(self, op: Op, target: Target) -> None:
        _write(self.stream, ("begins", None))

    def progress(self, op: Op, target: Target, tally: Tally) -> None:
        now = time.monotonic()
        if now - self._sent >= _EVERY:
            self._sent = now
            _write(self.stream, ("progress", tally.to_json()))

    def shrinking(self, op: Op, target: Target, verdict: Verdict) -> None:
        _write(
            self.stream,
            ("shrinking", {"case": replace(verdict.case, data=None).to_json(), "kind": verdict.findings[0].kind.name}),
        )

    def failure(self, op: Op, target: Target, failure: Failure) -> None:
        _write(self.stream, ("failure", failure.to_json()))

    def result(self, op: Op, target: Target, result: Result) -> None:
        _write(self.stream, ("result", result.to_json()))


def work() -> None:
    """Serve until there is no pair left. What is printed here goes to stderr: stdout is for messages."""
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _serve(messages)


def _serve(messages: TextIO) -> None:
    setup = json.loads(sys.stdin.readline())
    campaign = Campaign.of(setup["values"], setup["run"], early=True)
    pairs = {(op.name, target.label): (op, target) for op, target in campaign.pairs}
    campaign.pairs = [pairs[op, target] for op, target in setup["pairs"]]
    with campaign.open([_Told(messages)]) as session:
        for line in sys.stdin:
            order = json.loads(line)
            op, target = campaign.pairs[order.pop("index")]
            session.settings = replace(campaign.settings, **order)
            try:
                found = campaign.outcome(session, op, target)
            except UsageError as error:
                _write(messages, ("usage", error.args))
                return
            if isinstance(found, str):
                _write(messages, ("lost", found))
