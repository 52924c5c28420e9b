"""Text from elsewhere (names of devices and builds, reasons, a worker's last words, files) on its way to a person.

It is kept as it came, and made printable where it leaves: every printer passes each of its lines through `printable`.
"""

from __future__ import annotations

import codecs
import re
from typing import Any

#: What begins a command of a CI system that reads logs: `::error::` of GitHub at the start of a line (blanks before it
#: do not count); `##[group]` of GitHub, `##vso[` of Azure and `##teamcity[` anywhere. Lines are wrapped and folded, so
#: that any place may become the start of a line. `std::vector` is none: inside a name only GitHub's own words count.
_COMMANDS = (
    "add-mask|add-matcher|add-path|debug|echo|endgroup|error|group|internal-set-repo-path|notice|remove-matcher|"
    "save-state|set-env|set-output|stop-commands|warning"
)
_ACTED_ON = re.compile(rf"(?<![\w>)\]]):(?=:[a-z])|:(?=:(?:{_COMMANDS})\b)|#(?=#\w*\[)", re.IGNORECASE)


def printable(text: object, most: int | None = None) -> str:
    """One line that a terminal, a log and a CI system show and do not act on, cut after `most` characters.

    Line breaks, control characters, lone surrogates, and what cannot be seen or turns the direction of writing are
    escaped as Python writes them; so is the first character of what would be a command to a CI system.
    """
    found = str(text)
    cut = most is not None and len(found) > most
    if cut:
        found = found[:most]
    if not found.isprintable():
        found = "".join(character if character.isprintable() else _escaped(character) for character in found)
    if "::" in found or "##" in found:
        found = _ACTED_ON.sub(lambda match: _escaped(match[0]), found)
    return f"{found}…" if cut else found


def without_folders(text: str) -> str:
    """Text that goes to strangers: of a file that it names by its whole path, as a traceback does, the name alone."""
    quoted = re.sub(r'(?<=")(?:/[^"/\n]+)+/(?=[^"/\n]+")', "", text)
    return re.sub(r"(?<![\w./~<>-])(?:/[\w.+@~%-]+)+/(?=[\w.+@~%-])", "", quoted)


def printable_lines(text: object) -> str:
    """Several lines, each of them printable."""
    return "\n".join(printable(line) for line in re.split(r"\r\n|\r|\n", str(text)))


def _escaped(character: str) -> str:
    escaped = character.encode("unicode-escape").decode("ascii")
    return escaped if escaped != character else f"\\x{ord(character):02x}"


#: What stands for our own symbols where an encoding lacks them.
_PLAIN = {
    "–": "-",
    "—": "-",
    "−": "-",
    "·": ".",
    "…": "...",
    "×": "x",
    "÷": "/",
    "±": "+-",
    "→": "->",
    "←": "<-",
    "≤": "<=",
    "≥": ">=",
    "∈": "in",
    "∞": "inf",
    "√": "sqrt",
    "‖": "||",
    "²": "^2",
    "ᵀ": "^T",
    "⁺": "^+",
    "Σ": "sum",
    "Δ": "delta",
    "Γ": "Gamma",
    "γ": "gamma",
    "β": "beta",
    "δ": "delta",
    "ε": "eps",
    "ρ": "rho",
    "η": "eta",
    "θ": "theta",
    "μ": "mu",
    "ν": "nu",
    "χ": "chi",
    "ψ": "psi",
    "ω": "omega",
    "\u0302": "^",
    "─": "-",
    "━": "-",
    "│": "|",
    "✅": "+",
    "❌": "X",
    "❓": "?",
}


def _without_symbols(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character) or _escaped(character) for character in lost), error.end


codecs.register_error("opconform", _without_symbols)


def speak_any_encoding(*streams: Any) -> None:
    """Let text streams write what their encoding lacks (latin-1, ASCII) in other words instead of raising."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="opconform")
