"""What may be wrong with a case: the kinds in one table, and one finding."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """What sort of fault a kind is."""

    RESULT = "a result that no correct backend returns"
    RELATION = "two results that must agree and do not"
    MEMORY = "what the API leaves undefined, seen by a checker"
    END = "no result: the process ended, or refused"


class Kind(str, Enum):
    """What heads the report of a failure. The value is the text that screens, histories and files hold.

    short: the kind in a title. meaning: the sentence "The kernel …" goes on with it. severity: its sort.
    """

    short: str
    meaning: str
    severity: Severity

    def __new__(cls, value: str, short: str, meaning: str, severity: Severity) -> Kind:
        kind = str.__new__(cls, value)
        kind._value_ = value
        kind.short, kind.meaning, kind.severity = short, meaning, severity
        return kind

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, spec: str) -> str:
        return format(str(self.value), spec)

    @classmethod
    def of(cls, text: str) -> Kind:
        """The kind that a file or a message calls `text`. Raises `ValueError`."""
        kind = cls._value2member_map_.get(text)
        if not isinstance(kind, Kind):
            raise ValueError(f"{text!r} is no kind of failure; there are {', '.join(cls)}")
        return kind

    WRONG_VALUES = "WRONG VALUES", "wrong values", "returns wrong values", Severity.RESULT
    NAN_INF = (
        "NAN/INF",
        "NaN or infinity",
        "returns NaN or infinity where the result is a finite number",
        Severity.RESULT,
    )
    NOT_WRITTEN = "NOT WRITTEN", "elements not written", "leaves elements of the output as they were", Severity.RESULT
    WROTE_OUTSIDE = (
        "WROTE OUTSIDE",
        "writes outside the output",
        "writes to memory that no element of the output owns",
        Severity.RESULT,
    )
    INPUT_MODIFIED = "INPUT MODIFIED", "input modified", "writes into the memory of an input", Severity.RESULT
    SLICES_MIXED = (
        "SLICES MIXED",
        "batch slices mixed",
        "lets the values of one batch slice into another",
        Severity.RESULT,
    )
    NOT_DETERMINISTIC = (
        "NOT DETERMINISTIC",
        "wrong now and then",
        "returns wrong values in some runs and right ones in others",
        Severity.RELATION,
    )
    STATE_KEPT = (
        "STATE KEPT",
        "state is kept between runs",
        "gives another result right after another case than alone",
        Severity.RELATION,
    )
    DEPENDS_ON_BATCH = (
        "DEPENDS ON BATCH",
        "the result depends on the batch",
        "gives other bits alone than in a batch",
        Severity.RELATION,
    )
    DEPENDS_ON_LAYOUT = (
        "DEPENDS ON LAYOUT",
        "the result depends on strides",
        "gives other bits packed than strided",
        Severity.RELATION,
    )
    SEQUENCES_MIXED = (
        "SEQUENCES MIXED",
        "sequences mixed",
        "gives a sequence another result in company than alone",
        Severity.RELATION,
    )
    HEADS_MIXED = "HEADS MIXED", "heads mixed", "gives a head another result among other heads", Severity.RELATION
    STATE_LOST = (
        "STATE LOST",
        "the state is lost",
        "gives tokens in two runs, with the state carried, another result than in one",
        Severity.RELATION,
    )
    CHUNKS_DIFFER = (
        "CHUNKS DIFFER",
        "the result depends on the chunk size",
        "gives another result with another chunk size",
        Severity.RELATION,
    )
    FORMS_DIFFER = (
        "FORMS DIFFER",
        "forms of one function differ",
        "gives another result in another form of the same function",
        Severity.RELATION,
    )
    OUT_OF_BOUNDS = (
        "OUT OF BOUNDS",
        "reads or writes out of bounds",
        "reads or writes memory that it does not own",
        Severity.MEMORY,
    )
    DATA_RACE = "DATA RACE", "a data race", "has a data race", Severity.MEMORY
    UNINITIALISED_READ = (
        "UNINITIALISED READ",
        "reads what was never written",
        "reads memory that nothing has written",
        Severity.MEMORY,
    )
    API_MISUSE = (
        "API MISUSE",
        "misuse of the API",
        "is used or uses its API in a way that is not defined",
        Severity.MEMORY,
    )
    CRASH = "CRASH", "the process dies", "ends the process", Severity.END
    TIMEOUT = "TIMEOUT", "never ends", "does not end", Severity.END
    ERROR = "ERROR", "raises an error", "raises an error", Severity.END
    SUPPORTS_OP_LIES = (
        "SUPPORTS_OP LIES",
        "supports_op says yes, the kernel aborts",
        "is taken by supports_op, and then aborts",
        Severity.END,
    )


@dataclass(frozen=True)
class Finding:
    """What a check found: the kind that heads the report, and one line of detail."""

    check: str
    kind: Kind
    detail: str
