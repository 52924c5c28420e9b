"""What the backends keep on disk between runs: compiled kernels.

An entry's name holds a key of all that its bytes depend on, so that nothing is ever out of date. It is written to a
temporary file and moved into place, so that no reader meets half of one. A cache that cannot be written costs time and
nothing else.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Where entries of a `kind` are kept: under OPCONFORM_CACHE, or else the place where this system keeps caches."""
    chosen = os.environ.get("OPCONFORM_CACHE")
    if chosen:
        return Path(chosen) / kind
    if sys.platform == "win32":
        home = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        home = Path.home() / "Library" / "Caches"
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "opconform" / kind


def key_of(*parts: bytes) -> str:
    """A short name for all that the bytes of an entry depend on."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def keep(entry: Path, content: bytes) -> None:
    """Write an entry, whole or not at all; a place that cannot be written is let be."""
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=entry.parent, prefix=entry.stem, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, entry)
        except OSError:
            os.unlink(temporary)
