"""Backends that attack the harness: what they send, what they return, how they end. Each is named for what it does.

They are `Good` but for that. A worker has the descriptor of its memory in argv[1] and of its socket in argv[2].
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.findings import Kind
from opconform.harness.model.layouts import LayoutClass
from opconform.harness.model.limits import Limit
from opconform.harness.model.numerics import Numerics
from opconform.harness.run.backend import Device, KernelFault, Named, Unavailable
from opconform.harness.run.wire import HEAD
from tests.backends.sample import Good

#: What a terminal and a CI system would act on, in one text.
FOUL_WORDS = "\x1b]0;owned\x07 \u202e a\n::error::owned\n ##[group]owned \udcff"


def send(data: bytes) -> None:
    """Write to the harness past the worker's own code."""
    os.write(int(sys.argv[2]), data)


def framed(text: bytes, arrays: bytes = b"") -> bytes:
    return HEAD.pack(len(text), len(arrays)) + text + arrays


#: An answer as the worker's own code writes it.
ANSWER = {
    "unsupported": None,
    "error": None,
    "kind": "ERROR",
    "seconds": 0,
    "numerics": None,
    "log": "",
    "logged": 0,
}


_PASSES = json.dumps(["answer", [0, ANSWER]]).encode()


class Sends(Good):
    """Sends `message`, and never answers."""

    message = b""

    def run(self, case: Case, buffers: Buffers) -> None:
        send(self.message)
        time.sleep(1e6)


class SendsHalfAHead(Sends):
    message = b"\0\0\0"


class SendsHalfAMessage(Sends):
    message = HEAD.pack(100, 0) + b'["answer", {'


class SendsGarbage(Sends):
    message = bytes(range(250, 256)) * 40


class SendsFramedGarbage(Sends):
    message = framed(b"\xff\xfe no json")


class SendsDeepJson(Sends):
    message = framed(b"[" * 50_000 + b"]" * 50_000)


class SendsAPickle(Sends):
    """What would be run by a harness that unpickles."""

    class _Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, ("pwned",)

    def run(self, case: Case, buffers: Buffers) -> None:
        send(framed(pickle.dumps(self._Evil())))
        time.sleep(1e6)


class SendsAnotherMessage(Sends):
    message = framed(json.dumps(["limits", []]).encode())


class SendsAnAnswerOfNonsense(Sends):
    message = framed(json.dumps(["answer", {"seconds": -1}]).encode())


class SendsANumber(Sends):
    message = framed(b"7")


class SendsAnEmptyError(Sends):
    message = framed(json.dumps(["answer", [0, {**ANSWER, "error": ""}]]).encode())


class SendsATimeThatNoFloatHolds(Sends):
    message = framed(json.dumps(["answer", [0, {**ANSWER, "seconds": 10**400}]]).encode())


class SendsTwoAnswers(Good):
    """An answer too many: it would be taken for that of the next case."""

    def run(self, case: Case, buffers: Buffers) -> None:
        send(framed(_PASSES))
        super().run(case, buffers)


class AnnouncesArrays(Sends):
    """Two gigabytes of them, behind an answer, which has none."""

    message = HEAD.pack(len(_PASSES), 1 << 31) + _PASSES


class DripsAMessage(Good):
    """A byte now and then of a message that takes a minute."""

    def run(self, case: Case, buffers: Buffers) -> None:
        send(HEAD.pack(6000, 0))
        while True:
            time.sleep(0.01)
            send(b" ")


class ClosesItsSocket(Good):
    def run(self, case: Case, buffers: Buffers) -> None:
        os.close(int(sys.argv[2]))
        time.sleep(1e6)


class DiesOfARealTimeSignal(Good):
    def run(self, case: Case, buffers: Buffers) -> None:
        os.kill(os.getpid(), signal.SIGRTMIN + 5)


class CutsItsMemory(Good):
    def run(self, case: Case, buffers: Buffers) -> None:
        os.ftruncate(int(sys.argv[1]), 0)


class KeepsItsMemoryShort(Good):
    """Seals its memory, so that nobody can make it longer; where it may not, it goes on."""

    def run(self, case: Case, buffers: Buffers) -> None:
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(int(sys.argv[1]), fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        super().run(case, buffers)


class MakesItsMemoryLonger(Good):
    def run(self, case: Case, buffers: Buffers) -> None:
        os.ftruncate(int(sys.argv[1]), 64 << 20)
        super().run(case, buffers)


class LeavesAChildAndDies(Good):
    """Its child keeps the socket and all that it printed to open."""

    def run(self, case: Case, buffers: Buffers) -> None:
        if os.fork() == 0:
            time.sleep(1e6)
        os.kill(os.getpid(), signal.SIGSEGV)


class LeavesTenChildren(Good):
    def run(self, case: Case, buffers: Buffers) -> None:
        for _ in range(10):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)"])
        super().run(case, buffers)


class PrintsWithoutEnd(Good):
    """Two hundred megabytes for a case."""

    def run(self, case: Case, buffers: Buffers) -> None:
        for _ in range(200):
            os.write(1, b"y" * (1 << 20))
        super().run(case, buffers)


class LeavesThePython(Good):
    def run(self, case: Case, buffers: Buffers) -> None:
        sys.exit(7)


class SupportsANumber(Good):
    def supports(self, case: Case) -> Any:
        return 3


class SupportsWithSurrogates(Good):
    def supports(self, case: Case) -> str | None:
        return "no \udcff kernel"


class RaisesWithSurrogates(Good):
    def run(self, case: Case, buffers: Buffers) -> None:
        raise RuntimeError("the driver says \udcff\ud800")


class SeesAFaultAndSaysNothing(Good):
    def run(self, case: Case, buffers: Buffers) -> None:
        raise KernelFault(Kind.DATA_RACE, "")


class HasNumericsOfNonsense(Good):
    def numerics(self, case: Case) -> Any:
        return Numerics(roundoff=float("nan"))


class HasNumericsThatNoFloatHolds(Good):
    def numerics(self, case: Case) -> Any:
        return Numerics(exp_ulps=10**400)


class HasNumericsOfAnotherType(Good):
    def numerics(self, case: Case) -> Any:
        return 2.0**-24


class HasLimitsOfNonsense(Good):
    def limits(self) -> Any:
        return (Limit("acc", "b", {"a": 1}, "r", "s"),)  # type: ignore[arg-type]


class HasNoLimits(Good):
    def limits(self) -> Any:
        return None


class HasLimitsOfAnUnknownKind(Good):
    def limits(self) -> Any:
        return (Limit("acc", "b", LayoutClass.ROWS, "r", "s", kind="whim"),)  # type: ignore[arg-type]


class LeavesAtTheList(Good):
    @classmethod
    def devices(cls, options: Mapping[str, str]) -> Any:
        sys.exit(3)


class ListsTexts(Good):
    @classmethod
    def devices(cls, options: Mapping[str, str]) -> Any:
        return ["0"]


class ListsOneDeviceTwice(Good):
    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        return [Device("0", "one"), Device("0", "the other")]


class ListsAVersionOfNonsense(Good):
    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        return [Device("0", "one", {"driver": 3})]  # type: ignore[dict-item]


class ListsNonsenseNumerics(Good):
    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        return [Device("0", "one", numerics=Numerics(division_ulps=-1.0))]


class ListsAFoulId(Good):
    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        return [Device(FOUL_WORDS, "one")]


class ListsAnIdThatIsACommand(Good):
    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        return [Device(":error::owned", "one")]


class IsFoullyAbsent(Good):
    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        raise Unavailable(FOUL_WORDS, FOUL_WORDS)


class OpensFoully(Good):
    def __init__(self, device: str, options: Mapping[str, str]) -> None:
        raise Unavailable(FOUL_WORDS, FOUL_WORDS)


class RefusesFoully(Good):
    def supports(self, case: Case) -> str | None:
        return FOUL_WORDS


class NamesFoully(Good):
    """Takes everything, and has foul words for its limits and for its ops."""

    def limits(self) -> tuple[Limit, ...]:
        return (Limit("*", "nothing", (1,), FOUL_WORDS, FOUL_WORDS),)

    def names(self) -> tuple[Named, ...]:
        return (Named(FOUL_WORDS, FOUL_WORDS, (), FOUL_WORDS),)


class LimitsAWord(Good):
    def limits(self) -> tuple[Limit, ...]:
        return (Limit("acc", "colour", ("red",), "r", "s", kind="kernel"),)


class LimitsAnArgumentByValues(Good):
    def limits(self) -> tuple[Limit, ...]:
        return (Limit("acc", "b", (1,), "r", "s", kind="kernel"),)


class LimitsTheLayoutOfNothing(Good):
    def limits(self) -> tuple[Limit, ...]:
        return (Limit("acc", "c", LayoutClass.ROWS, "r", "s"),)


class PinsNothing(Good):
    def limits(self) -> tuple[Limit, ...]:
        return (Limit("acc", "b", LayoutClass.ROWS, "r", "s", kind="bug", pinned="acc/none"),)


class LimitsTheAxisOfAnyOp(Good):
    def limits(self) -> tuple[Limit, ...]:
        return (Limit("*", "axis", (0,), "r", "s", kind="kernel"),)


class LimitsTheAxisToNone(Good):
    def limits(self) -> tuple[Limit, ...]:
        return (Limit("cumsum", "axis", (7,), "r", "s"),)
