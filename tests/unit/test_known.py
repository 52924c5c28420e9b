"""Known cases and case files: each loads, and a file is whole or not there."""

from __future__ import annotations

import errno
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from opconform.harness.draw import known
from opconform.harness.draw.known import LARGEST, case_from_file, case_path, checked, find_case, known_cases, store
from opconform.harness.model import blocks
from opconform.harness.model.case import DEFAULT_MAX_BYTES, Case, CaseError
from opconform.harness.model.ops import ops
from opconform.harness.model.usage import UsageError
from opconform.harness.model.values import data_of, inputs_of
from tests.samples import acc

FILES = sorted(file.name for file in files("opconform.cases").joinpath("known").iterdir())
SMALL = [entry.id for entry in known_cases().values() if entry.case.nbytes <= 1 << 20]


def entries(name: str) -> list[dict[str, Any]]:
    text = files("opconform.cases").joinpath("known").joinpath(name).read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_known_case_is_a_case_of_the_op_that_its_id_names(name: str) -> None:
    for entry in entries(name):
        assert set(entry) == {"id", "about", "source", "case"}
        assert entry["about"]
        assert entry["source"]
        case = checked(Case.from_json(entry["case"], LARGEST))
        assert entry["id"].partition("/")[0] == case.op


def test_ids_are_unique_and_every_case_of_every_file_is_listed() -> None:
    ids = [entry["id"] for name in FILES for entry in entries(name)]
    assert len(set(ids)) == len(ids)
    assert list(known_cases()) == ids


def test_every_op_has_a_known_case() -> None:
    assert {entry.case.op for entry in known_cases().values()} == set(ops())


#: What they pin is an index of 32 bits, which no smaller case has.
AS_LARGE_AS_AN_INDEX = {"cumsum/kb053", "cumsum/kb053-rows"}


def test_what_a_usual_run_leaves_out_for_its_size_is_there_once_more_and_smaller() -> None:
    large = {name for name, entry in known_cases().items() if entry.case.nbytes > DEFAULT_MAX_BYTES}
    assert large > AS_LARGE_AS_AN_INDEX
    for name in large - AS_LARGE_AS_AN_INDEX:
        assert f"{name}-scaled" in known_cases(), name
        twin = known_cases()[f"{name}-scaled"].case
        assert twin.op == known_cases()[name].case.op
        assert twin.nbytes <= DEFAULT_MAX_BYTES, name


@pytest.mark.parametrize("name", SMALL)
def test_a_known_case_stores_and_replays_byte_for_byte(name: str, tmp_path: Path) -> None:
    case = known_cases()[name].case
    values = inputs_of(case, ops()[case.op])
    kept = case.with_data(data_of(values))
    path = store(kept, str(tmp_path))
    found, again = find_case(str(path), "elsewhere")
    assert (found, again, again.id) == (kept.id, kept, case.id)
    for argument, raw in inputs_of(again, ops()[case.op]).items():
        assert raw.tobytes() == values[argument].tobytes()
    before = path.read_bytes()
    assert store(again, str(tmp_path)).read_bytes() == before


def test_a_case_is_found_by_file_by_known_id_and_by_stored_id(tmp_path: Path) -> None:
    case = acc(3)
    path = store(case, str(tmp_path))
    assert path == case_path(str(tmp_path), case.id) == tmp_path / "cases" / f"{case.id}.json"
    assert find_case(str(path), "elsewhere") == (case.id, case)
    assert find_case(case.id, str(tmp_path)) == (case.id, case)
    assert find_case("acc/kb001", str(tmp_path)) == ("acc/kb001", known_cases()["acc/kb001"].case)
    with pytest.raises(UsageError, match=rf"^no case '{case.id}': no such file, no known case .*, none in elsewhere"):
        find_case(case.id, "elsewhere")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "\0", "a" * 5000, "a/" * 3000, "no/such/file", "cases/../x", "ACC/KB001", " acc/kb001"]
)
def test_a_name_that_is_no_case_says_where_it_looked(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file, no known case"):
        find_case(name, str(tmp_path))


def test_a_stored_id_cannot_leave_the_report_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text(json.dumps(acc(3).to_json()))
    with pytest.raises(UsageError, match="no case"):
        find_case("../secret", str(tmp_path))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON: Expecting value at line 1, column 1"),
        (b'{"format": ', "not JSON: Expecting value at line 1, column 12"),
        (b"\xff\xfe\xfd", ""),
        (b"\x80abc", ""),
        (b"[" * 200_000, "nested too deep"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b"[]", "case is a list; it must be a JSON object"),
    ],
)
def test_a_file_that_is_no_case_is_one_line_that_names_it(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(raw)
    with pytest.raises(UsageError) as error:
        case_from_file(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert len(text.splitlines()) == 1
    assert len(text) < 500


def test_a_folder_named_like_a_case_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UsageError, match=r"folder\.json: Is a directory"):
        find_case(str(tmp_path / "folder.json"), str(tmp_path))


def test_a_file_is_refused_by_size_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_FILE_BYTES", 10)
    path = tmp_path / "large.json"
    path.write_text(json.dumps(acc(3).to_json()))
    with pytest.raises(UsageError, match="larger than"):
        case_from_file(path)


def test_a_case_above_max_bytes_names_the_option(tmp_path: Path) -> None:
    path = store(acc(1000), str(tmp_path))
    with pytest.raises(UsageError, match="--max-bytes allows 1000"):
        find_case(str(path), str(tmp_path), 1000)


@pytest.mark.parametrize("failing", ["dump", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_no_file(
    failing: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store(acc(3), str(tmp_path))
    before = path.read_bytes()

    def fail(*arguments: Any, **_: Any) -> None:
        if failing == "dump":
            arguments[1].write('{"half')
        raise error

    monkeypatch.setattr(*((json, "dump", fail) if failing == "dump" else (os, "replace", fail)))
    for case in (acc(3), acc(4)):
        with pytest.raises(type(error)):
            store(case, str(tmp_path))
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == before


def test_a_packaged_case_that_is_none_names_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "known").mkdir()
    plain = {"id": "acc/bad", "about": "a", "source": "s", "case": {**acc(3).to_json(), "op": "nope"}}
    (tmp_path / "known" / "acc.json").write_text(json.dumps([plain]))
    monkeypatch.setattr(known, "files", lambda package: tmp_path)
    with pytest.raises(CaseError, match=r"^acc\.json: acc/bad: case\.op is 'nope'; there are abs, acc, "):
        known_cases.__wrapped__()


def test_without_gguf_the_known_cases_of_plain_types_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = known_cases()
    monkeypatch.setattr(blocks, "available", lambda: False)
    plain = known_cases.__wrapped__()
    left_out = everything.keys() - plain.keys()
    assert "mul_mat/uneven" in left_out
    assert all(any(it.type.block > 1 for it in everything[name].case.layouts.values()) for name in left_out)
