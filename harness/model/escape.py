"""Text from elsewhere (device names, paths, cases, a worker's last words) made safe for where it lands.

Characters that cannot be seen are never passed on: a line break would end a comment, and what turns the direction of
writing makes code read as something that it is not.
"""

from __future__ import annotations

import re


def plain(text: object) -> str:
    """One line of visible characters: for comments of Python, and as a first step for everything else."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def lines(text: object) -> str:
    """Several lines of visible characters."""
    return "\n".join(plain(line) for line in str(text).splitlines())


def docstring(text: object) -> str:
    """One line inside a Python string of three quotes."""
    return plain(text).replace("\\", "\\\\").replace('"', '\\"')


def python(value: object) -> str:
    """A Python literal in ASCII."""
    return ascii(value)


def cpp_string(text: object) -> str:
    """A C++ string literal in ASCII; octal escapes, which end after three digits whatever follows."""
    return '"' + "".join(_cpp_byte(byte) for byte in str(text).encode(errors="replace")) + '"'


def _cpp_byte(byte: int) -> str:
    character = chr(byte)
    return character if character.isascii() and character.isprintable() and character not in '"\\?' else f"\\{byte:03o}"


def cpp_comment(text: object) -> str:
    """The rest of a C++ line comment, in quotes: a backslash at the very end would take in the next line."""
    return f'"{plain(text)}"'


def identifier(text: object) -> str:
    """A name for C++ and Python, made of ASCII letters, digits and underscores."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", str(text))
    return name if name[:1].isalpha() else f"x{name}"


def code(text: object) -> str:
    """A Markdown code span, in which nothing has a meaning: no HTML, no link, no mention, no issue number."""
    shown = plain(text)
    fence = "`" * (_longest_run(shown) + 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def cell(text: object) -> str:
    """A code span inside a Markdown table, where a bar would begin the next column."""
    return code(text).replace("|", "\\|")


def prose(text: object) -> str:
    """Words inside a line of Markdown and nothing but that: no HTML, no markup, no mention, no reference, no link."""
    escaped = plain(text).replace("&", "&amp;").replace("<", "&lt;")
    escaped = re.sub(r"([\\`*{}\[\]~|!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", escaped)
    return re.sub(r"(@|#|:(?=//)|www(?=\.))", r"\1<!-- -->", escaped)


def block(text: object, language: str = "") -> str:
    """A fenced Markdown block with a fence longer than any in the text."""
    shown = lines(text)
    fence = "`" * max(_longest_run(shown) + 1, 3)
    return f"{fence}{language}\n{shown}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


FILTERS = {
    "plain": plain,
    "lines": lines,
    "docstring": docstring,
    "python": python,
    "cpp_string": cpp_string,
    "cpp_comment": cpp_comment,
    "identifier": identifier,
    "code": code,
    "cell": cell,
    "prose": prose,
    "block": block,
}
