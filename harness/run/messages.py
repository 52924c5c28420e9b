"""What a worker says, as plain data.

A worker runs code that may do anything, so nothing that it sends is unpickled or believed: a message is JSON with a
length before it, and every field is checked when it is read. What does not fit is a `NonsenseError`, one line that says
what is wrong.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, TypeVar

import numpy as np

from opconform.harness.model.dtypes import F64
from opconform.harness.model.findings import Kind
from opconform.harness.model.layouts import LayoutClass
from opconform.harness.model.limits import Limit
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.text import printable
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Device, Named, Unavailable
from opconform.harness.run.wire import HEAD, NonsenseError

T = TypeVar("T")

_LONGEST = 20_000  #: characters of one text
_LARGEST_STAGE = 1 << 48  #: elements, where NumPy makes an array; what holds none may still have such sizes


@dataclass(frozen=True)
class Answer:
    """What became of one case: run, not supported for a reason, or ended by a Python exception, which is of a `kind`.
    `numerics` are the case's own, where they are not the device's. `log` is what the sanitizer wrote while it ran, and
    `logged` how many bytes it has written in all."""

    unsupported: str | None = None
    error: str | None = None
    kind: Kind = Kind.ERROR
    seconds: float = 0.0
    numerics: Numerics | None = None
    log: str = ""
    logged: int = 0


@dataclass(frozen=True)
class StageError:
    """Why the intermediates of a case cannot be had: a traceback, or how the worker ended."""

    says: str

    @property
    def last_line(self) -> str:
        return last_line_of(self.says)


@dataclass(frozen=True)
class Refusal:
    """Why a case is not timed."""

    says: str


@dataclass(frozen=True)
class Clock:
    """A case stands ready to be timed: by what clock, and bytes of its intermediate results (`Backend.memory`)."""

    clock: str
    memory: Mapping[str, int]


@dataclass(frozen=True)
class Samples:
    """Seconds of single computations. `flops` are those of the matrix product, where it was what was timed."""

    seconds: tuple[float, ...]
    flops: int = 0


class TimingError(Exception):
    """A case could not be timed; the text says how it ended."""


#: The intermediates of a case by stage; None where the backend shows none.
Shown = Mapping[str, F64] | None


def last_line_of(text: str) -> str:
    """The last line of a traceback, or of what a backend says in its place, which says most. It may say nothing."""
    return (text.strip().splitlines() or ["it said nothing"])[-1]


_KINDS: Mapping[str, Kind] = {kind.value: kind for kind in Kind}


def packed(kind: str, content: Any, arrays: bytes = b"") -> bytes:
    """A message, with its head."""
    text = json.dumps([kind, content]).encode()
    return HEAD.pack(len(text), len(arrays)) + text + arrays


def unpacked(text: bytes) -> tuple[str, Any]:
    """The kind and the content of a message. Raises `NonsenseError`."""
    try:
        kind, content = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise NonsenseError(f"{text[:60]!r} is no message") from None
    if not isinstance(kind, str):
        raise NonsenseError(f"{kind!r} is no kind of message")
    return kind, content


def taken_apart(message: bytes) -> tuple[str, Any, bytes]:
    """The kind, the content and the arrays of a message with its head, which has come by no wire. Raises
    `NonsenseError`."""
    size, _ = HEAD.unpack_from(message)
    end = HEAD.size + size
    return *unpacked(message[HEAD.size : end]), message[end:]


# ---- the worker's side ----------------------------------------------------------------------------------------------


def of_devices(devices: Sequence[Device]) -> bytes:
    """The devices that a backend lists."""
    return packed("devices", [{**asdict(device), "versions": dict(device.versions)} for device in devices])


def of_limits(limits: Sequence[Limit]) -> bytes:
    """The limits of an open device."""
    plain = []
    for limit in limits:
        if not isinstance(limit, Limit) or not isinstance(limit.allowed, (LayoutClass, tuple)):
            raise TypeError(f"limits returned {limit!r:.120}; it returns Limits, which allow a LayoutClass or a tuple")
        allowed = (
            {"class": int(limit.allowed)} if isinstance(limit.allowed, LayoutClass) else {"values": [*limit.allowed]}
        )
        plain.append({**{field.name: getattr(limit, field.name) for field in fields(Limit)}, "allowed": allowed})
    return packed("limits", plain)


def of_absence(reason: Unavailable | UsageError) -> bytes:
    """Why there is no backend or no device."""
    if isinstance(reason, Unavailable):
        return packed("unavailable", [reason.reason, reason.remedy, reason.hardware])
    return packed("usage", str(reason))


def of_answer(answer: Answer, number: int) -> bytes:
    """What became of the case of this `number` in its request. It is cut where it is longer than any reader wants."""
    numerics = None if answer.numerics is None else _plain_numerics(answer.numerics)
    plain = {name: getattr(answer, name) for name in _names(Answer)}
    for name in ("unsupported", "error", "log"):
        if plain[name] is not None:
            plain[name] = _cut(plain[name])
    return packed("answer", [number, {**plain, "numerics": numerics}])


@cache
def _plain_numerics(numerics: Numerics) -> dict[str, Any]:
    return asdict(numerics)


def of_reasons(reasons: Sequence[str | None]) -> bytes:
    """What `Backend.supports` says of several cases."""
    return packed("reasons", [None if reason is None else _cut(reason) for reason in reasons])


def of_names(names: Sequence[Named] | None) -> bytes:
    """The ops that a backend's library names."""
    if names is None:
        return packed("names", None)
    return packed("names", [[each.name, each.kind, list(each.ops), each.why] for each in names])


def of_numerics(found: Sequence[Numerics | None]) -> bytes:
    """What `Backend.numerics` says of several cases."""
    return packed("numerics", [None if each is None else _plain_numerics(each.checked()) for each in found])


def of_stages(shown: Shown | StageError) -> bytes:
    """The intermediates of a case."""
    if isinstance(shown, StageError):
        return packed("no stages", _cut(shown.says))
    if shown is None:
        return packed("stages", None)
    arrays = {name: np.ascontiguousarray(values, np.float64) for name, values in shown.items()}
    return packed(
        "stages",
        [[name, list(values.shape)] for name, values in arrays.items()],
        b"".join(values.tobytes() for values in arrays.values()),
    )


def of_refusal(refusal: Refusal) -> bytes:
    """Why a case is not timed."""
    return packed("refusal", _cut(refusal.says))


def of_clock(clock: Clock) -> bytes:
    """A case is ready to be timed."""
    return packed("clock", [clock.clock, dict(clock.memory)])


def of_samples(samples: Samples) -> bytes:
    """Times."""
    return packed("samples", [list(samples.seconds), samples.flops])


def of_no_samples(says: str) -> bytes:
    """What stood in the way of timing."""
    return packed("no samples", _cut(says))


def _cut(text: str) -> str:
    """The end of a long text: the last line of a traceback says most."""
    return text if len(text) <= _LONGEST else "…" + text[-_LONGEST:]


# ---- the harness's side ---------------------------------------------------------------------------------------------


@cache
def _names(kind: type) -> frozenset[str]:
    """The fields of a dataclass."""
    return frozenset(field.name for field in fields(kind))


def _demand(holds: bool, says: str, *values: object) -> None:
    """Raises `NonsenseError` where it does not hold; the text is made only then, for every case has a message."""
    if not holds:
        raise NonsenseError(says.format(*values))


def text_of(value: Any, what: str) -> str:
    """A text without lone surrogates, which nothing can print. Raises `NonsenseError`."""
    _demand(isinstance(value, str), "{} is {!r:.80}, not a text", what, value)
    return str(value[: 2 * _LONGEST].encode("utf-8", "backslashreplace").decode())


def _number(value: Any, what: str) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max
    _demand(good, "{} is {!r:.80}, not a number from 0 on", what, value)
    return float(value)


def _record(value: Any, what: str, kind: type) -> dict[str, Any]:
    _demand(isinstance(value, dict) and value.keys() == _names(kind), "{} is {!r:.80}", what, value)
    found: dict[str, Any] = value
    return found


def _list(value: Any, what: str, each: Callable[[Any, str], T]) -> list[T]:
    _demand(isinstance(value, list), "{} are {!r:.80}, not a list", what, value)
    return [each(item, what) for item in value]


def _numerics(value: Any) -> Numerics:
    plain = _record(value, "the arithmetic", Numerics)
    try:
        return Numerics(**plain).checked()
    except ValueError as error:
        raise NonsenseError(str(error)) from None


def devices_in(content: Any) -> list[Device]:
    """The devices of a message. Raises `NonsenseError`, also for two of one id."""

    def device(value: Any, what: str) -> Device:
        plain = _record(value, "a device", Device)
        _demand(isinstance(plain["versions"], dict), "the versions are {!r:.80}, not a mapping", plain["versions"])
        return Device(
            id=text_of(plain["id"], "the id of a device"),
            description=text_of(plain["description"], "the description of a device"),
            versions={
                text_of(name, "a version's name"): text_of(version, f"the version of {name}")
                for name, version in plain["versions"].items()
            },
            numerics=_numerics(plain["numerics"]),
        )

    found = _list(content, "its devices", device)
    fault = _fault_of_ids([one.id for one in found])
    _demand(not fault, "{}", fault)
    return found


def _fault_of_ids(ids: Sequence[str]) -> str:
    """Why these cannot be the ids of the devices of one backend; "" where they can.

    An id is part of a name that stands in every line on its device, and that `--backend` takes.
    """
    for one in ids:
        if not one:
            return "a device has an empty id"
        if printable(f":{one}") != f":{one}":  # a colon stands before it
            return f"a device has the id {printable(ascii(one), 80)}, which cannot be printed as it is"
        if ids.count(one) > 1:
            return f"two devices have the id {one!r}"
    return ""


def limits_in(content: Any) -> tuple[Limit, ...]:
    """The limits of a message. Raises `NonsenseError`."""

    def limit(value: Any, what: str) -> Limit:
        plain = _record(value, "a limit", Limit)
        allowed, pinned = plain["allowed"], plain["pinned"]
        _demand(
            isinstance(allowed, dict) and set(allowed) in ({"class"}, {"values"}), "a limit allows {!r:.80}", allowed
        )
        if "class" in allowed:
            _demand(allowed["class"] in list(LayoutClass), "{!r:.80} is no class of layouts", allowed["class"])
            allows: LayoutClass | tuple[Any, ...] = LayoutClass(allowed["class"])
        else:
            scalars = isinstance(allowed["values"], list) and all(
                item is None or isinstance(item, (bool, int, float, str)) for item in allowed["values"]
            )
            _demand(scalars, "a limit allows {!r:.80}", allowed["values"])
            allows = tuple(allowed["values"])
        _demand(plain["kind"] in ("api", "kernel", "bug"), "{!r:.80} is no kind of limit", plain["kind"])
        texts = {name: text_of(plain[name], f"a limit's {name}") for name in ("op", "subject", "reason", "source")}
        return Limit(
            **texts,
            allowed=allows,
            kind=plain["kind"],
            device=text_of(plain["device"], "a limit's device"),
            pinned=None if pinned is None else text_of(pinned, "a limit's pinned case"),
        )

    return tuple(_list(content, "its limits", limit))


def absence_in(kind: str, content: Any) -> Unavailable | UsageError | None:
    """Why there is no backend or device, if that is what a message says. Raises `NonsenseError`."""
    if kind == "unavailable":
        _demand(isinstance(content, list) and len(content) == 3, "it is not available for {!r:.80}", content)
        reason, remedy, hardware = content
        return Unavailable(text_of(reason, "the reason"), text_of(remedy, "the remedy"), hardware is True)
    return UsageError(text_of(content, "a usage error")) if kind == "usage" else None


def answer_in(content: Any, number: int) -> Answer:
    """What a message says of the case of this `number`. Raises `NonsenseError`, also where it is about another one."""
    _demand(isinstance(content, list) and len(content) == 2, "an answer is {!r:.80}", content)
    _demand(content[0] == number, "the answer to case {!r:.20} came instead of that to case {}", content[0], number)
    plain = _record(content[1], "an answer", Answer)
    kind = plain["kind"]
    _demand(isinstance(kind, str) and kind in _KINDS, "{!r:.80} is no kind of failure", kind)
    unsupported, error, numerics = plain["unsupported"], plain["error"], plain["numerics"]
    return Answer(
        unsupported=None if unsupported is None else text_of(unsupported, "the reason for not supporting a case"),
        error=None if error is None else text_of(error, "an error"),
        kind=_KINDS[kind],
        seconds=_number(plain["seconds"], "the time of a case"),
        numerics=None if numerics is None else _numerics(numerics),
        log=text_of(plain["log"], "a checker's log"),
        logged=int(_number(plain["logged"], "the length of a checker's log")),
    )


def names_in(content: Any) -> tuple[Named, ...] | None:
    """The ops that a message names. Raises `NonsenseError`."""

    def named(value: Any, what: str) -> Named:
        _demand(isinstance(value, list) and len(value) == 4, "one of {} is {!r:.80}", what, value)
        name, kind, ops, why = value
        name, kind, why = (text_of(each, f"one of {what}") for each in (name, kind, why))
        return Named(name, kind, tuple(_list(ops, "the ops of a name", text_of)), why)

    return None if content is None else tuple(_list(content, "the names of its ops", named))


def numerics_in(content: Any, count: int) -> list[Numerics | None]:
    """What a message says of the arithmetic of so many cases. Raises `NonsenseError`."""
    found = _list(content, "the arithmetics", lambda value, what: None if value is None else _numerics(value))
    _demand(len(found) == count, "{} arithmetics came of {} cases", len(found), count)
    return found


def reasons_in(content: Any, count: int) -> list[str | None]:
    """What a message says of `count` cases: None where a case is supported. Raises `NonsenseError`."""
    found = _list(content, "the reasons", lambda value, what: None if value is None else text_of(value, what))
    _demand(len(found) == count, "there are {} reasons for {} cases", len(found), count)
    return found


def stages_in(kind: str, content: Any, arrays: bytes) -> Shown | StageError:
    """The intermediates of a message. Raises `NonsenseError`."""
    if kind == "no stages":
        return StageError(text_of(content, "the reason for showing no stages"))
    if content is None:
        return None
    found, start = {}, 0
    for name, shape in _list(content, "the stages", lambda value, what: _stage(value)):
        count = 1
        for size in shape:
            count *= size
        _demand(start + 8 * count <= len(arrays), "the stage {!r:.40} is larger than what was sent", name)
        found[name] = np.frombuffer(arrays, np.float64, count, start).reshape(shape)
        start += 8 * count
    return found


def _stage(value: Any) -> tuple[str, tuple[int, ...]]:
    _demand(isinstance(value, list) and len(value) == 2 and isinstance(value[1], list), "a stage is {!r:.80}", value)
    sizes = all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in value[1])
    sizes = sizes and math.prod(size or 1 for size in value[1]) < _LARGEST_STAGE
    _demand(sizes and len(value[1]) <= 32, "the shape of a stage is {!r:.80}", value[1])
    return text_of(value[0], "the name of a stage"), tuple(value[1])


def clock_in(kind: str, content: Any) -> Clock | Refusal:
    """How a case stands that is to be timed. Raises `TimingError`, or `NonsenseError`."""
    if kind == "refusal":
        return Refusal(text_of(content, "the reason for not supporting a case"))
    _check_timed(kind, content, "clock")
    _demand(isinstance(content, list) and len(content) == 2, "a clock is {!r:.80}", content)
    clock, memory = content
    _demand(isinstance(memory, dict), "the memory of a case is {!r:.80}", memory)
    counted = {text_of(name, "a kind of memory"): int(_number(size, "the memory")) for name, size in memory.items()}
    return Clock(text_of(clock, "a clock's name"), counted)


def samples_in(kind: str, content: Any) -> Samples:
    """The times of a message. Raises `TimingError`, or `NonsenseError`."""
    _check_timed(kind, content, "samples")
    _demand(isinstance(content, list) and len(content) == 2, "samples are {!r:.80}", content)
    return Samples(tuple(_list(content[0], "the samples", _number)), int(_number(content[1], "the operations")))


def _check_timed(kind: str, content: Any, wanted: str) -> None:
    if kind == "no samples":
        raise TimingError(last_line_of(text_of(content, "the reason for no times")))
    _demand(kind == wanted, "a message of {!r:.40} came instead of one of {!r}", kind, wanted)
