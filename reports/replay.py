"""The options of a replay, as text that may be pasted into a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from opconform.harness.explain.failure import STRICT
from opconform.harness.run.registry import backend_names

_FLAGS = ("--sanitize", STRICT)  #: options of a failure that take no value


def safe_options(texts: Iterable[str]) -> list[str]:
    """The options of a replay, written anew: a history keeps them as text, and may come from a stranger.

    Only options that a replay takes are let through, each with one value and quoted; any other text is left out.
    """
    found = []
    for text in texts:
        try:
            name, *values = shlex.split(text)
        except ValueError:  # no word at all, or a quotation mark that is never closed
            continue
        if (name in _FLAGS and not values) or (_takes_value(name) and len(values) == 1):
            found.append(" ".join([name, *map(shlex.quote, values)]))
    return found


def _takes_value(name: str) -> bool:
    """Whether an option is --max-bytes, or one that is a backend's own: it begins with the backend's name."""
    own = (f"--{backend}-" for backend in backend_names())
    return name == "--max-bytes" or (re.fullmatch(r"--[a-z0-9-]+", name) is not None and name.startswith(tuple(own)))
