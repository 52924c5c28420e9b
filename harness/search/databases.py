"""Where failing cases wait for the next run: Hypothesis' own databases of examples, chosen by `--database`."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from opconform.harness.model.usage import UsageError

if TYPE_CHECKING:  # Hypothesis takes a quarter of a second to import: only a search pays for it
    from hypothesis.database import ExampleDatabase

KEPT = timedelta(days=60)  #: how long Redis keeps a failing case after it was last seen to fail
_SECONDS = 5.0  #: how long Redis may take to answer
_FORMS = "write a folder, none, redis://HOST[:PORT][/DB], or github:OWNER/REPOSITORY"


def local_folder() -> Path:
    """The folder that is the default: beside Hypothesis' own."""
    return Path(os.environ.get("HYPOTHESIS_STORAGE_DIRECTORY", ".hypothesis"), "opconform")


def database_of(text: str | None) -> ExampleDatabase | None:
    """The database that `--database` names; `local_folder` for None, and None for "none".

    `github:` reads the artifact that a workflow of that repository uploads as `hypothesis-example-db` (a private one's
    with the token in $GITHUB_TOKEN), and writes to `local_folder` only. Raises `UsageError`.
    """
    from hypothesis.database import DirectoryBasedExampleDatabase

    if text is None:
        return DirectoryBasedExampleDatabase(local_folder())
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
    return DirectoryBasedExampleDatabase(path)


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
    from hypothesis.database import (
        DirectoryBasedExampleDatabase,
        GitHubArtifactDatabase,
        MultiplexedDatabase,
        ReadOnlyDatabase,
    )

    local = DirectoryBasedExampleDatabase(local_folder())
    return MultiplexedDatabase(local, ReadOnlyDatabase(GitHubArtifactDatabase(name[1], name[2])))
