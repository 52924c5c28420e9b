"""`--database`: each form gives Hypothesis' own database, and anything else is a usage error."""

from __future__ import annotations

import sys
from pathlib import Path

import fakeredis
import pytest
from hypothesis.database import DirectoryBasedExampleDatabase, MultiplexedDatabase

from opconform.harness.model.usage import UsageError
from opconform.harness.search.databases import database_of, local_folder


@pytest.fixture(autouse=True)
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(tmp_path / "storage"))
    return tmp_path / "storage"


def test_the_default_is_a_folder_beside_hypothesis_own(storage: Path) -> None:
    found = database_of(None)
    assert isinstance(found, DirectoryBasedExampleDatabase)
    assert found.path == local_folder() == storage / "opconform"
    assert database_of("none") is None


def test_a_folder_keeps_what_is_saved(tmp_path: Path) -> None:
    found = database_of(str(tmp_path / "shared"))
    assert found is not None
    found.save(b"key", b"value")
    again = database_of(str(tmp_path / "shared"))
    assert again is not None
    assert list(again.fetch(b"key")) == [b"value"]


def test_redis_keeps_what_is_saved_for_the_whole_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    server = fakeredis.FakeServer()
    monkeypatch.setattr("redis.Redis.from_url", lambda url, **_: fakeredis.FakeStrictRedis(server=server))
    one, other = database_of("redis://ci:6379/0"), database_of("redis://ci:6379/0")
    assert one is not None
    assert other is not None
    one.save(b"key", b"value")
    assert list(other.fetch(b"key")) == [b"value"]
    other.delete(b"key", b"value")
    assert list(one.fetch(b"key")) == []


def test_github_artifacts_are_read_and_only_the_local_folder_is_written(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypothesis.database.GitHubArtifactDatabase.fetch", lambda self, key: [b"last night"])
    found = database_of("github:owner/repo")
    assert isinstance(found, MultiplexedDatabase)
    found.save(b"key", b"value")
    assert set(found.fetch(b"key")) == {b"value", b"last night"}
    assert list(DirectoryBasedExampleDatabase(storage / "opconform").fetch(b"key")) == [b"value"]
    found.delete(b"key", b"last night")


@pytest.mark.parametrize("text", ["github:owner", "github:a/b/c", "github:/", "http://host", "memcached://host", " "])
def test_anything_else_is_a_usage_error_that_lists_the_forms(text: str) -> None:
    with pytest.raises(UsageError, match=r"--database is .*; write a folder, none, redis://"):
        database_of(text)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--database .*file.* is not a folder"):
        database_of(str(tmp_path / "file"))


def test_redis_that_does_not_answer_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"--database redis://127\.0\.0\.1:1: .*refused"):
        database_of("redis://127.0.0.1:1")


def test_redis_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(UsageError, match="pip install redis"):
        database_of("redis://host")
