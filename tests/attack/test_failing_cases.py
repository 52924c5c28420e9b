"""The database of failing cases: what a stranger has put there is dropped with one line, and its end ends no run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.database import InMemoryExampleDatabase

from opconform.harness.model.builds import Build
from opconform.harness.model.case import Case
from opconform.harness.model.ops import ops
from opconform.harness.run.runner import Runner
from opconform.harness.search import databases
from opconform.harness.search.databases import FailingCases, database_of
from opconform.harness.search.result import Result
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings
from tests.attack.strangers import quickly
from tests.attack.test_printers import safe
from tests.samples import acc, target

OLD, NEW = Build.of({"build": "b7836"}), Build.of({"build": "b8121"})
KEY = f"opconform/acc/{target('Good').label}".encode()


@pytest.fixture(autouse=True)
def working() -> Iterator[None]:
    databases._broken.clear()
    yield
    databases._broken.clear()


def kept(database: Any, op: str = "acc", build: Build = OLD, most: int = 1 << 20) -> FailingCases:
    return FailingCases(database, op, target("Good").label, build, most)


def search(database: Any) -> Result:
    with Runner(target("Good"), isolated=False) as runner:
        return Search(ops()["acc"], runner, Settings(examples=8), (), database).run()


def text_of(**changes: Any) -> bytes:
    return json.dumps({**acc(3).to_json(), **changes}).encode()


CUMSUM = Case(
    "cumsum",
    {"axis": 0, "exclusive": False, "reverse": False},
    {"x": acc(3).inputs["b"]},
    {"out": acc(3).inputs["b"]},
)

JUNK = {
    "an unknown recipe": text_of(recipe="salty"),
    "another op": json.dumps(CUMSUM.to_json()).encode(),
    "an op that is none": text_of(op="nope"),
    "no case": b"{}",
    "no JSON": b"\xff",
    "nothing": b"",
    "deep": b"[" * 100_000,
    "digits": text_of(seed=0).replace(b'"seed": 0', b'"seed": ' + b"9" * 5000),
    "a foul name": text_of(op="\x1b]0;x\x07\n::error::owned"),
}


@pytest.mark.parametrize("name", JUNK)
def test_what_is_no_case_of_the_op_is_dropped_with_one_line_and_the_run_goes_on(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    database = InMemoryExampleDatabase()
    database.save(KEY, JUNK[name])
    with quickly(20):
        result = search(database)
    assert result.tally.passed > 0
    assert list(database.fetch(KEY)) == []
    line = safe(capsys.readouterr().err).removesuffix("\n")
    assert line.startswith(f"acc on {target('Good').label}: a failing case that was kept for this run is dropped: ")
    assert len(line.split("\n")) == 1
    assert search(database).failure is None
    assert capsys.readouterr().err == ""


def test_a_case_that_is_larger_than_this_run_allows_waits(capsys: pytest.CaptureFixture[str]) -> None:
    database = InMemoryExampleDatabase()
    kept(database).add(acc(600))
    assert kept(database, most=1000).cases() == {}
    assert "1 failing cases of earlier runs are larger than --max-bytes" in capsys.readouterr().err
    assert list(kept(database).cases().values()) == [acc(600)]


def test_the_next_build_is_tried_and_the_older_one_does_not_forget() -> None:
    database = InMemoryExampleDatabase()
    kept(database, build=OLD).add(acc(3))
    (text,) = kept(database, build=NEW).cases()
    kept(database, build=NEW).drop(text)  # it passes there
    assert kept(database, build=NEW).cases() == {}
    assert list(kept(database, build=OLD).cases().values()) == [acc(3)]


def test_a_run_takes_so_many_cases_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "_MOST_CASES", 3)
    database = InMemoryExampleDatabase()
    for size in range(1, 9):
        kept(database).add(acc(size))
    assert len(kept(database).cases()) <= 6


@pytest.mark.parametrize("at", ["fetch", "save", "delete"])
def test_a_redis_that_dies_in_the_middle_is_said_once_and_the_run_goes_on(
    at: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = fakeredis.FakeServer()
    monkeypatch.setattr("redis.Redis.from_url", lambda url, **_: fakeredis.FakeStrictRedis(server=server))
    database = database_of("redis://ci")
    assert database is not None
    failing = kept(database)
    failing.add(acc(3))
    failing.keep(b"junk")
    (text,) = failing.cases()
    capsys.readouterr()
    server.connected = at == "never"
    action = {"fetch": failing.cases, "save": lambda: failing.keep(text), "delete": lambda: failing.drop(text)}[at]
    for _ in range(3):
        action()
    assert search(database).tally.passed > 0
    (line,) = safe(capsys.readouterr().err).splitlines()
    assert line.startswith("--database: ")
    assert line.endswith("; from here on no failing case is fetched or kept")


def test_a_redis_that_breaks_off_while_it_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    class Breaks(InMemoryExampleDatabase):
        def fetch(self, key: bytes) -> Iterator[bytes]:
            yield text_of()
            raise redis.TimeoutError("Timeout reading\nfrom \x1b socket")

    assert search(Breaks()).tally.passed > 0
    (line,) = safe(capsys.readouterr().err).splitlines()
    assert "Timeout reading from \\x1b socket" in line


def test_a_folder_that_holds_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    database = database_of(str(tmp_path))
    kept(database).add(acc(3))
    folders = {path.parent for path in tmp_path.rglob("*") if path.is_file()}
    for folder in folders:
        os.mkfifo(folder / "fifo")
        (folder / "loop").symlink_to("loop")
        (folder / "folder").mkdir()
    with quickly():
        assert list(kept(database).cases().values()) == [acc(3)]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60), st.integers(0, 400))
def test_any_bytes_in_the_database(raw: bytes, place: int) -> None:
    database = InMemoryExampleDatabase()
    text = bytearray(text_of())
    text[place : place + len(raw)] = raw
    for stored in (raw, bytes(text)):
        database.save(KEY, stored)
    for found in kept(database).cases().values():
        assert found.op == "acc"
    assert set(database.fetch(KEY)) == set(kept(database).cases())
