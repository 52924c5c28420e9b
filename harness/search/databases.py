"""Where failing cases wait for the next run: Hypothesis' own databases of examples, chosen by `--database`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from hypothesis.database import (
    DirectoryBasedExampleDatabase,
    ExampleDatabase,
    GitHubArtifactDatabase,
    MultiplexedDatabase,
    ReadOnlyDatabase,
)

from opconform.harness.draw.known import LARGEST, read_case
from opconform.harness.model.builds import Build
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.files import read_regular
from opconform.harness.model.text import printable
from opconform.harness.model.usage import UsageError

KEPT = timedelta(days=60)  #: how long Redis keeps a failing case after it was last seen to fail
_SECONDS = 5.0  #: how long Redis may take to answer
_LARGEST_TEXT = 1 << 30  #: bytes of a failing case, as a case file may have
_MOST_CASES = 1000  #: failing cases of one op on one target that a run tries again
_FORMS = "write a folder, none, redis://HOST[:PORT][/DB], or github:OWNER/REPOSITORY"


def local_folder() -> Path:
    """The folder that is the default: beside Hypothesis' own."""
    return Path(os.environ.get("HYPOTHESIS_STORAGE_DIRECTORY", ".hypothesis"), "opconform")


def database_of(text: str | None) -> ExampleDatabase | None:
    """The database that `--database` names; `local_folder` for None, and None for "none".

    `github:` reads the artifact that a workflow of that repository uploads as `hypothesis-example-db` (a private one's
    with the token in $GITHUB_TOKEN), and writes to `local_folder` only. Raises `UsageError`.
    """

    if text is None:
        return _Folder(local_folder())
    kind, colon, rest = text.partition(":")
    if text == "none":
        return None
    if kind in ("redis", "rediss", "unix") and rest.startswith("//"):
        return _redis(text)
    if kind == "github" and colon:
        return _github(text, rest)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", text) or not text.strip():
        raise UsageError(f"--database is {text!r}; {_FORMS}")
    path = Path(text)
    place = next((place for place in (path, *path.parents) if place.exists()), Path("."))
    if not place.is_dir() or not os.access(place, os.W_OK):
        fault = "cannot be written" if place.is_dir() else "is not a folder"
        raise UsageError(f"--database {text}: {place} {fault}; {_FORMS}")
    return _Folder(path)


class _Folder(DirectoryBasedExampleDatabase):
    """Hypothesis' folder, of which only regular files are read: a FIFO in it would hold the run for ever."""

    def fetch(self, key: bytes) -> Iterable[bytes]:
        folder = self._key_path(key)
        if not folder.is_dir():
            return
        for name in sorted(os.listdir(folder)):
            with contextlib.suppress(OSError):
                yield read_regular(folder / name, _LARGEST_TEXT)


def _redis(url: str) -> ExampleDatabase:
    try:
        import redis
        from hypothesis.extra.redis import RedisExampleDatabase
    except ImportError:
        raise UsageError(f"--database {url}: the Python package redis is not installed; pip install redis") from None
    try:
        client = redis.Redis.from_url(url, socket_connect_timeout=_SECONDS, socket_timeout=_SECONDS)
        client.ping()
    except (redis.RedisError, ValueError) as error:
        raise UsageError(f"--database {url}: {error}") from None
    return RedisExampleDatabase(client, expire_after=KEPT, key_prefix=b"opconform:")


def _github(text: str, repository: str) -> ExampleDatabase:
    name = re.fullmatch(r"([A-Za-z0-9-]+)/([A-Za-z0-9._-]+)", repository)
    if name is None:
        raise UsageError(f"--database is {text!r}; {_FORMS}")
    local = _Folder(local_folder())
    return MultiplexedDatabase(local, ReadOnlyDatabase(GitHubArtifactDatabase(name[1], name[2])))


class FailingCases:
    """The failing cases of one op on one target, on their way from run to run.

    A case is kept under the target and under the target's build: the next build is tried with the failures of the one
    before, and a case that a newer build has mended is still there when the older build is tested again. A database
    may come from a stranger, and may fail in the middle of a run: what cannot be used is dropped or passed over with
    one line, and the run goes on.
    """

    def __init__(self, database: ExampleDatabase | None, op: str, target: str, build: Build, most: int) -> None:
        self._database = database
        self._op = op
        self._most = most
        self._about = f"{op} on {target}"
        name = f"opconform/{op}/{target}"
        own = hashlib.sha1(str(build).encode(errors="backslashreplace"), usedforsecurity=False).hexdigest()
        self._keys = tuple(text.encode(errors="backslashreplace") for text in (name, f"{name}/{own}"))

    def __bool__(self) -> bool:
        return self._database is not None

    def cases(self) -> dict[bytes, Case]:
        """Every case that waits, by its stored text. One that is no case of this op is dropped; one that is larger than
        this run allows waits for another run."""
        found: dict[bytes, Case] = {}
        larger = 0
        for stored in self._stored():
            try:
                case = read_case(stored, LARGEST)
                if case.op != self._op:
                    raise CaseError(f"case.op is {case.op!r}")
            except ValueError as error:
                say(f"{self._about}: a failing case that was kept for this run is dropped: {error}")
                self.drop(stored)
                continue
            if case.nbytes <= self._most:
                found[stored] = case
            else:
                larger += 1
        if larger:
            say(f"{self._about}: {larger} failing cases of earlier runs are larger than --max-bytes allows")
        return found

    def keep(self, text: bytes) -> None:
        """Keep the case of this text for the next run."""
        for key in self._keys:
            self._do("save", key, text)

    def add(self, case: Case) -> None:
        """Keep a case for the next run."""
        self.keep(json.dumps(case.to_json(), sort_keys=True).encode())

    def drop(self, text: bytes) -> None:
        """Forget the case of this text; other builds keep it."""
        for key in self._keys:
            self._do("delete", key, text)

    def _stored(self) -> list[bytes]:
        return list(dict.fromkeys(text for key in self._keys for text in self._do("fetch", key) or ()))

    def _do(self, what: str, *arguments: bytes) -> Any:
        """Use the database; after its first error it is left alone, for each attempt may wait as long."""
        database = self._database
        if database is None or any(database is broken for broken in _broken):
            return None
        try:
            found = getattr(database, what)(*arguments)
            return None if found is None else list(islice(found, _MOST_CASES))
        except Exception as error:  # whatever a client library raises
            _broken.append(database)
            about = " ".join(str(error).split()) or type(error).__name__
            say(f"--database: {about}; from here on no failing case is fetched or kept")
            return None


#: Databases that have failed in this process.
_broken: list[ExampleDatabase] = []


def say(text: str) -> None:
    """One line to a person, beside the run's own output."""
    print(printable(text, 1000), file=sys.stderr)
