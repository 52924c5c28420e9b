"""Bytes that go with a JSON file: compressed, in the file itself as base64, or, where they are many, beside it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from opconform.harness.model.case import CaseError
from opconform.harness.model.files import read_regular

INLINE = 1 << 16  #: compressed bytes that stand in the JSON itself


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """A text file to write, which appears under its name whole or not at all."""
    with _whole(path, "w", encoding="utf-8", errors="replace") as file:
        yield file


@contextlib.contextmanager
def _whole(path: Path, mode: str, **how: str) -> Iterator[IO[Any]]:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, mode, **how) as file:  # type: ignore[call-overload]
            yield file
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def put(raw: bytes, folder: Path, stem: str, inline: int = INLINE) -> str | dict[str, str]:
    """What stands in the JSON for `raw`: base64 text, or the name of the file in `folder` that holds it, with a
    digest."""
    packed = zlib.compress(raw)
    if len(packed) <= inline:
        return base64.b64encode(packed).decode()
    name = f"{stem}.bin"
    with _whole(folder / name, "wb") as file:
        file.write(packed)
    return {"file": name, "sha256": hashlib.sha256(packed).hexdigest()}


def names_file(about: Any) -> bool:
    """Whether what stands in a JSON file says that its bytes are beside it."""
    return isinstance(about, dict) and about.keys() == {"file", "sha256"}


def get(about: Any, folder: Path, wanted: int, what: str) -> bytes:
    """The `wanted` bytes that `about` stands for, in a JSON file in `folder`. Raises `CaseError`, one line that begins
    with `what`, and `OSError`."""
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(_packed(about, folder, wanted, what), wanted + 1)
    except zlib.error as error:
        raise CaseError(f"{what} is no zlib data: {error}") from None
    if len(found) != wanted:
        raise CaseError(f"{what} does not hold the {wanted} bytes that it should")
    return found


def _packed(about: Any, folder: Path, wanted: int, what: str) -> bytes:
    if isinstance(about, str):
        try:
            return base64.b64decode(about, validate=True)
        except (binascii.Error, ValueError) as error:
            raise CaseError(f"{what} is no base64: {error}") from None
    if not names_file(about) or not all(isinstance(text, str) for text in about.values()):
        raise CaseError(f"{what} must be base64 text, or name a file and its sha256")
    name = about["file"]
    if name != os.path.basename(name) or name in ("", ".", "..") or "\\" in name:
        raise CaseError(f"{what}.file is {name!r}; it must be the name of a file beside this one")
    raw = read_regular(folder / name, wanted + (wanted >> 4) + 1024)  # zlib makes no file larger than that
    if hashlib.sha256(raw).hexdigest() != about["sha256"]:
        raise CaseError(f"{name} is not the file that was written with this one")
    return raw
