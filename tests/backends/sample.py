"""Sample backends: one that is right, and one for each way of being wrong, dying, hanging or refusing.

`Good` computes every op but the composite ones in float32; every other class departs from it in the one way its name
and docstring say.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.findings import Kind
from opconform.harness.model.layouts import LayoutClass
from opconform.harness.model.limits import Limit
from opconform.harness.model.numerics import Numerics
from opconform.harness.run.backend import Device, Named, Unavailable
from opconform.harness.run.sanitizer import LOG, Complaint, Sanitizer
from tests.kernels.base import F32
from tests.kernels.correct import Correct


def ne_of(case: Case) -> tuple[int, ...]:
    """The sizes of `b` (of the first input, where there is no `b`), innermost first."""
    return case.inputs["b" if "b" in case.inputs else next(iter(case.inputs))].ne


class Good(Correct):
    """Right for every case."""

    name = "good"

    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        return [Device("0", f"NumPy, {cls.__name__}", {"numpy": np.__version__})]


class TwoDevices(Good):
    """Device 0 is right; device 1 never adds anything."""

    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        return [Device("0", "the right one"), Device("1", "the wrong one")]

    def added(self, a: F32, b: F32) -> F32:
        return a + b if self.device == "0" else a


class TwinDevices(Good):
    """Lists two devices of one id."""

    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        return [Device("0", "the first"), Device("0", "the second")]


class HalfIdle(TwoDevices):
    """Device 0 is right; device 1 takes nothing."""

    def supports(self, case: Case) -> str | None:
        return super().supports(case) if self.device == "0" else "device 1 has no kernels"


class IgnoresNe3(Good):
    """acc: only the first slice of ne3 is added, as Vulkan did in January 2026."""

    def acc(self, case: Case, buffers: Buffers) -> None:
        b = buffers.array("b")
        b[1:], kept = 0, b[1:].copy()
        super().acc(case, buffers)
        b[1:] = kept


class WrongForOneValue(Good):
    """acc: wrong where b holds 12345.75, which no recipe draws."""

    def acc(self, case: Case, buffers: Buffers) -> None:
        super().acc(case, buffers)
        if (buffers.array("b") == 12345.75).any():
            buffers.array("out")[...] = 0


class AbortsOnNe3(Good):
    """Aborts for ne3 > 1, after a line on stderr."""

    def run(self, case: Case, buffers: Buffers) -> None:
        if ne_of(case)[3] > 1:
            print("GGML_ASSERT(src1->ne[3] == 1) failed", file=sys.stderr, flush=True)
            os.abort()
        super().run(case, buffers)


class AbortsAbove40(Good):
    """Aborts for ne0 > 40."""

    def run(self, case: Case, buffers: Buffers) -> None:
        if ne_of(case)[0] > 40:
            os.abort()
        super().run(case, buffers)


class ChecksItself(AbortsOnNe3):
    """Under a checker, which complains of each case with ne3 > 1 and of all stages."""

    @classmethod
    def sanitizer(cls) -> Sanitizer:
        return Sanitizer(
            "Checker",
            lambda log: ((), {}),
            lambda log, case: [Complaint(Kind.OUT_OF_BOUNDS, line) for line in log.splitlines()],
        )

    def run(self, case: Case, buffers: Buffers) -> None:
        if ne_of(case)[3] > 1:
            self.complain("a write beyond b")
        super().run(case, buffers)

    def stages(self, case: Case, buffers: Buffers) -> None:
        self.complain("a read before b")

    @staticmethod
    def complain(of: str) -> None:
        with open(os.environ[LOG], "a") as log:
            log.write(of + "\n")


class WrongThenAborts(IgnoresNe3):
    """Wrong for ne3 > 1 and aborts for ne2 > 1: two kinds of failure side by side."""

    def run(self, case: Case, buffers: Buffers) -> None:
        if ne_of(case)[2] > 1 and ne_of(case)[3] == 1:
            os.abort()
        super().run(case, buffers)


class SleepsOnOdd(Good):
    """Never ends for odd ne0 > 1."""

    def run(self, case: Case, buffers: Buffers) -> None:
        if ne_of(case)[0] % 2 and ne_of(case)[0] > 1:
            time.sleep(1e6)
        super().run(case, buffers)


class SleepsLongAbove4(SleepsOnOdd):
    """Never ends for odd ne0 > 4, and takes a while for 3."""

    def run(self, case: Case, buffers: Buffers) -> None:
        if ne_of(case)[0] == 3:
            time.sleep(0.8)
            Good.run(self, case, buffers)
        else:
            super().run(case, buffers)


class SlowStart(Good):
    """Takes a second before it runs anything, as a driver does that compiles."""

    waited = False

    def run(self, case: Case, buffers: Buffers) -> None:
        if not self.waited:
            time.sleep(1)
        self.waited = True
        super().run(case, buffers)


class SleepsAlways(Good):
    """Never ends."""

    def run(self, case: Case, buffers: Buffers) -> None:
        time.sleep(1e6)


class Segfaults(Good):
    def run(self, case: Case, buffers: Buffers) -> None:
        ctypes.string_at(0)


class Raises(Good):
    def run(self, case: Case, buffers: Buffers) -> None:
        raise RuntimeError("CL_OUT_OF_RESOURCES")


class PythonBug(Good):
    """A mistake of the backend's author: a TypeError two frames down."""

    def added(self, a: F32, b: F32) -> F32:
        return a + None  # type: ignore[operator,no-any-return]


class LosesItsNumerics(Good):
    def numerics(self, case: Case) -> Numerics | None:
        return {}[case.op]  # type: ignore[no-any-return]


class ExitsQuietly(Good):
    def run(self, case: Case, buffers: Buffers) -> None:
        os._exit(3)


class HangsAtExit(Good):
    """Exits, and its driver never lets the process go."""

    def run(self, case: Case, buffers: Buffers) -> None:
        atexit.register(time.sleep, 1e6)
        sys.exit(4)


class OpensBadly(Good):
    """Lists its device and cannot open it."""

    def __init__(self, device: str, options: Mapping[str, str]) -> None:
        raise Unavailable("the driver is too old (1.1)", "install driver 1.2 or newer")


class OpensTheSecond(TwoDevices):
    """Its device 0 does not open; device 1, which never adds anything, does."""

    def __init__(self, device: str, options: Mapping[str, str]) -> None:
        if device == "0":
            raise Unavailable("device 0 is in use", "stop the other program")
        super().__init__(device, options)

    def names(self) -> tuple[Named, ...]:
        return (Named("ACC", "op", ("acc",)),)


class ListsNone(Good):
    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        raise Unavailable("no such device on this machine", "plug one in")


class HasNoMachine(Good):
    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        raise Unavailable("it takes a machine of its own", "buy one", hardware=True)


class CrashesWhenListing(Good):
    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        print("libsample: cannot map the device", file=sys.stderr, flush=True)
        os.abort()


class HangsWhenListing(Good):
    @classmethod
    def devices(cls, options: Mapping[str, str]) -> list[Device]:
        time.sleep(1e6)
        return []


class DiesWhenOpenedAgain(AbortsOnNe3):
    """A driver that a crash leaves unusable: once a case has crashed, the device does not open any more."""

    def __init__(self, device: str, options: Mapping[str, str]) -> None:
        super().__init__(device, options)
        if os.path.exists("crashed"):
            raise Unavailable("the device is lost", "reset it")

    def run(self, case: Case, buffers: Buffers) -> None:
        if ne_of(case)[3] > 1:
            open("crashed", "w").close()
        super().run(case, buffers)


class Flaky(Good):
    """acc: wrong in every third run."""

    runs = 0

    def added(self, a: F32, b: F32) -> F32:
        self.runs += 1
        return a + b if self.runs % 3 else a


class WrongInRun40(Good):
    """acc: wrong in its 40th run, and in no other."""

    runs = 0

    def added(self, a: F32, b: F32) -> F32:
        self.runs += 1
        return a if self.runs == 40 else a + b


class WrongOnce(Good):
    """acc: wrong until a file says that it has been; then right for ever, as a race may be."""

    def added(self, a: F32, b: F32) -> F32:
        if os.path.exists("been-wrong"):
            return a + b
        open("been-wrong", "w").close()
        return a - b


class Jitters(Good):
    """cumsum: within the bound, and other bits at every run, as sums with atomics are."""

    runs = 0

    def inclusive(self, case: Case, x: F32) -> F32:
        self.runs += 1
        return super().inclusive(case, x) if self.runs % 3 else _by_halves(x)


class SumsByBatch(Good):
    """cumsum: within the bound; the order of the additions depends on how many batches there are."""

    def inclusive(self, case: Case, x: F32) -> F32:
        return _by_halves(x) if case.inputs["x"].ne[3] > 1 else super().inclusive(case, x)


class SumsByLayout(Good):
    """cumsum: within the bound; the order of the additions depends on the strides of x."""

    def inclusive(self, case: Case, x: F32) -> F32:
        return super().inclusive(case, x) if case.inputs["x"].kind is LayoutClass.PACKED else _by_halves(x)


def _by_halves(x: F32) -> F32:
    middle = x.shape[0] // 2
    if middle == 0:
        return np.array(x)
    first, last = _by_halves(x[:middle]), _by_halves(x[middle:])
    sums: F32 = np.concatenate([first, first[-1:] + last])
    return sums


class Noisy(Good):
    """Right, and talks too much on stdout and stderr."""

    def run(self, case: Case, buffers: Buffers) -> None:
        print("x" * 5000)
        print("warning: " + "y" * 5000, file=sys.stderr)
        os.write(1, b"straight to the descriptor\n")
        super().run(case, buffers)


class NoisyAborts(Noisy):
    """Says a megabyte before it aborts, and its last line says why."""

    def run(self, case: Case, buffers: Buffers) -> None:
        for _ in range(100):
            super().run(case, buffers)
        print("the last words", file=sys.stderr, flush=True)
        os.abort()


class Slow(Good):
    """Right, and takes 50 ms a case."""

    def run(self, case: Case, buffers: Buffers) -> None:
        time.sleep(0.05)
        super().run(case, buffers)


class SaysNo(Good):
    def supports(self, case: Case) -> str | None:
        return f"has no kernel for {case.op} yet"


class SaysNoToSome(Good):
    """acc: takes cases with several slices along ne3 only, which one in three has."""

    def supports(self, case: Case) -> str | None:
        return None if case.inputs["a"].shape[0] > 2 else "wants three slices"


class SaysNoForTwoReasons(Good):
    """acc: takes nothing, and says of some why."""

    def supports(self, case: Case) -> str | None:
        return "wants an even ne0" if case.inputs["a"].ne[0] % 2 else "has no kernel for acc yet"


class LimitedKernel(Good):
    """Says yes to every layout of b, and its kernel asserts that rows are contiguous."""

    def limits(self) -> tuple[Limit, ...]:
        reason, source = "the kernel asserts that the rows of b are contiguous", "ggml-cpu/ops.cpp:1234"
        return (Limit("acc", "b", LayoutClass.ROWS, reason, source, kind="kernel"),)

    def run(self, case: Case, buffers: Buffers) -> None:
        if case.op == "acc" and case.inputs["b"].kind > LayoutClass.ROWS:
            os.abort()
        super().run(case, buffers)


class LimitOfOneDevice(TwoDevices):
    """Its device 1 takes no in-place acc."""

    def limits(self) -> tuple[Limit, ...]:
        return (Limit("acc", "inplace", (False,), "device 1 cannot write over a", "the manual, page 9", device="1"),)


class FixedBug(Good):
    """Right, and still lists as a known bug that acc reads a padded b as if it were packed."""

    pinned = "acc/kb001-view"

    def limits(self) -> tuple[Limit, ...]:
        reason = "acc reads a padded b as if it were packed"
        return (Limit("acc", "b", LayoutClass.CONTIGUOUS, reason, "issue 19426", kind="bug", pinned=self.pinned),)


class KnownBug(FixedBug):
    """Has that bug."""

    def read(self, buffers: Buffers, name: str) -> np.ndarray:
        layout = buffers.case.layouts[name]
        if (buffers.case.op, name) != ("acc", "b"):
            return super().read(buffers, name)
        packed = replace(layout.packed(), offset=layout.offset)
        return packed.array(buffers.bytes_of(name), layout.type.native)


class NotABackend:
    """A class that `--backend` must refuse."""


class NarrowKnownBug(KnownBug):
    """Has the bug, and an interface that cannot even express its pinned case."""

    def limits(self) -> tuple[Limit, ...]:
        narrow = Limit("acc", "b", LayoutClass.CONTIGUOUS, "b must be contiguous", "the manual, page 7")
        return (narrow, *super().limits())


class Prints(IgnoresNe3):
    """acc: says what it does, with print."""

    def acc(self, case: Case, buffers: Buffers) -> None:
        print("adding", case.inputs["b"].ne)
        super().acc(case, buffers)
