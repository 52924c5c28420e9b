"""Files that lie beside a bundle's own: for the people of one API, whatever backend has failed.

An installed package names a function under the entry point `opconform.companions`. It gets the `Facts` of a failure of
any backend, and returns `Companions`, or None where it has nothing to give. It runs in the process of the run, like an
op: so its module imports nothing heavy, and what may crash or hang (a library) it does in a process of its own.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opconform.harness.explain.facts import Facts
from opconform.harness.model.escape import code, prose
from opconform.harness.model.ops import registered
from opconform.harness.run.script import TAKEN


@dataclass(frozen=True)
class Companions:
    """What a package adds to a bundle.

    files: text by name. shown: those that the issue shows in full, each with its language in Markdown.
    says: Markdown for the issue's part "How to run it", which must be safe already (`harness/model/escape.py`).
    device: what those who get the issue call the device; "" leaves it at the name that `--backend` takes.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    shown: Mapping[str, str] = field(default_factory=dict)
    says: str = ""
    device: str = ""


def companions_of(facts: Facts) -> list[Companions]:
    """What the installed packages add to the bundle of a failure. One that fails says so in the issue."""
    found: list[Companions] = []
    for name, point in registered("opconform.companions").items():
        try:
            made = _checked(point.load()(facts), {*TAKEN, *(file for each in found for file in each.files)})
        except Exception as error:
            traceback.print_exc()
            why = prose(f"making them failed with {type(error).__name__}: {error}")
            found.append(Companions(says=f"The files that {code(name)} adds are missing: {why}."))
        else:
            if made is not None:
                found.append(made)
    return found


def _checked(made: Any, taken: set[str]) -> Companions | None:
    if made is None:
        return None
    if not isinstance(made, Companions):
        raise TypeError(f"it gave {type(made).__name__}, not Companions")
    for name in made.files:
        if name in taken or "/" in name or not name.isprintable() or name.startswith("."):
            raise ValueError(f"it gave a file {name!r}, a name that is taken or none for a file")
    return made
