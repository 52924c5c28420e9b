"""known_failures.toml: what is said of a faulty file, what an entry covers, and when an entry is stale."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from opconform.harness.model.findings import Kind
from opconform.harness.model.ops import ops
from opconform.harness.model.usage import UsageError
from opconform.harness.search.known_failures import Entry, OnDevice, load, stale
from tests.samples import acc

ACC = ops()["acc"]
FIELDS = {
    "backend": '"ggml:Vulkan*"',
    "op": '"acc"',
    "case": '"acc/kb001"',
    "reason": '"ne3 of b is ignored"',
    "link": '"https://example.org/1"',
    "expires": "2099-12-31",
}
DEVICE = OnDevice("ggml:Vulkan0", "llvmpipe", {"build": "b7836", "ggml": "0.9.5"})

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def file(**changed: str | None) -> Path:
        fields = {name: value for name, value in {**FIELDS, **changed}.items() if value is not None}
        path = tmp_path / "known.toml"
        path.write_text("[[failure]]\n" + "".join(f"{name} = {value}\n" for name, value in fields.items()))
        return path

    return file


@pytest.fixture
def entry(write: Write) -> Callable[..., Entry]:
    def make(**changed: str) -> Entry:
        (found,) = load(str(write(**changed)))
        return found

    return make


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"op": None, "link": None}, "'op' is missing\n{0}: 'link' is missing"),
        ({"hint": '"ne3"'}, "'hint' is not known; there are backend, op, case, reason,"),
        ({"op": '"accc"'}, "op is 'accc'; there are abs, acc, "),
        ({"backend": '"ggmll:CPU"'}, "backend is 'ggmll:CPU'; there are "),
        ({"kind": '"WRONG"'}, "kind is 'WRONG'; there are WRONG VALUES, "),
        ({"kind": '["CRASH", 3]'}, "kind is 3; there are "),
        ({"reason": '" "'}, "reason is ' '; it must be text"),
        ({"link": '"see there"'}, "link is 'see there'; it must begin with https://"),
        ({"expires": '"2027-01-01"'}, "expires is '2027-01-01'; it must be a date, such as"),
        ({"expires": "2027-01-01T10:00:00"}, "expires is datetime.datetime(2027, 1, 1, 10, 0); it must be a date"),
        ({"case": '"acc/none"'}, "case is 'acc/none'; no known case (opconform list --cases) and no file in"),
        ({"case": '"set/vulkan-permuted-view"'}, "case set/vulkan-permuted-view is of set, not of acc"),
        ({"where": '"b.ne3"'}, "where is 'b.ne3'; it must be a table"),
        ({"where": '{ "c.ne3" = ">1" }'}, "where: no 'c.ne3' in case acc/kb001; there are "),
        ({"where": '{ "b.ne3" = "<2" }'}, "case acc/kb001 lies outside where: b.ne3 = '<2', but its b.ne3 is "),
        ({"where": '{ "dtype" = ">1" }'}, "where: dtype = '>1' compares with 'f32'"),
    ],
)
def test_each_fault_is_one_line_that_names_file_and_entry(
    write: Write, changed: dict[str, str | None], said: str
) -> None:
    path = write(**changed)
    with pytest.raises(UsageError) as caught:
        load(str(path))
    place = f"{path}, entry 1"
    assert str(caught.value).startswith(f"{place}: {said.format(place)}")


def test_a_file_that_is_not_toml_or_not_a_list_of_entries_is_named(tmp_path: Path) -> None:
    path = tmp_path / "known.toml"
    for text, said in (
        ("[[failure", "not TOML: "),
        ("failure = 3", "failure must be an array of tables"),
        ("[fail]", ""),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=f"^{path}: {said}"):
            load(str(path))
    with pytest.raises(UsageError, match=r"--known-failures .*/missing\.toml: No such file"):
        load(str(tmp_path / "missing.toml"))


def test_the_file_in_this_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None) == ()
    write().rename("known_failures.toml")
    assert len(load(None)) == 1
    assert load("none") == ()


def test_a_case_may_be_a_file_beside_the_list(write: Write, tmp_path: Path) -> None:
    (tmp_path / "two.json").write_text(json.dumps(acc(1, 1, 1, 2).to_json()))
    (found,) = load(str(write(case='"two.json"')))
    assert found.case == acc(1, 1, 1, 2)


@pytest.mark.parametrize(
    ("backend", "target", "about"),
    [
        ("ggml", "ggml:Vulkan0", True),
        ("ggml", "ggml:CPU@pinned", True),
        ("ggml:Vulkan*", "ggml:Vulkan1@pinned", True),
        ("ggml:Vulkan*@pinned", "ggml:Vulkan0", False),
        ("ggml@pin*", "ggml:CPU@pinned", True),
        ("ggml:Vulkan0", "ggml:CPU", False),
        ("ggml", "vulkan:0", False),
    ],
)
def test_backend_device_and_alias_are_patterns_of_their_own(
    entry: Callable[..., Entry], backend: str, target: str, about: bool
) -> None:
    found = entry(backend=f'"{backend}"')
    assert found.is_about("acc", target) is about
    assert not found.is_about("set", target)


def test_device_and_build_patterns_look_at_description_and_versions(entry: Callable[..., Entry]) -> None:
    assert entry(device='"llvm*"', build='"b78*"').matches("acc", DEVICE)
    assert entry(build='"ggml 0.9.*"').matches("acc", DEVICE)
    assert not entry(build='"b8*"').matches("acc", DEVICE)
    assert not entry(device='"RTX*"').matches("acc", DEVICE)


def test_an_entry_covers_its_kind_of_failure_in_the_cases_it_describes(entry: Callable[..., Entry]) -> None:
    found = entry(where='{ "b.ne3" = ">1", dtype = ["f32", "f16"], inplace = "" }', kind='"WRONG VALUES"')
    assert found.covers(ACC, acc(1, 1, 1, 2), Kind.WRONG_VALUES)
    assert not found.covers(ACC, acc(1, 1, 2), Kind.WRONG_VALUES)
    assert not found.covers(ACC, acc(1, 1, 1, 2, inplace=True), Kind.WRONG_VALUES)
    assert not found.covers(ACC, acc(1, 1, 1, 2), Kind.NAN_INF)


def test_without_a_kind_no_end_of_a_process_is_covered(entry: Callable[..., Entry]) -> None:
    found = entry()
    assert all(
        found.covers(ACC, acc(3), kind) for kind in (Kind.WRONG_VALUES, Kind.SLICES_MIXED, Kind.NOT_DETERMINISTIC)
    )
    assert not any(
        found.covers(ACC, acc(3), kind) for kind in (Kind.CRASH, Kind.TIMEOUT, Kind.ERROR, Kind.SUPPORTS_OP_LIES)
    )
    assert entry(kind='"CRASH"').covers(ACC, acc(3), Kind.CRASH)


def test_what_a_checker_finds_can_be_expected_too(entry: Callable[..., Entry]) -> None:
    found = entry(kind='"DATA RACE"')
    assert found.covers(ACC, acc(3), Kind.DATA_RACE)
    assert not found.covers(ACC, acc(3), Kind.WRONG_VALUES)


def test_an_entry_counts_on_its_last_day_and_covers_nothing_after_it(entry: Callable[..., Entry]) -> None:
    found = entry(expires="2026-03-31")
    assert not found.expired(date(2026, 3, 31))
    assert found.expired(date(2026, 4, 1))
    assert not replace(found, expires=date(2000, 1, 1)).covers(ACC, acc(3), Kind.WRONG_VALUES)


def test_an_entry_is_stale_where_its_devices_were_tested_and_none_matches(entry: Callable[..., Entry]) -> None:
    elsewhere = OnDevice("vulkan:0", "llvmpipe", {})
    fixed = replace(DEVICE, versions={"build": "b8121"})
    old = entry(build='"b7836"')
    assert stale([old], {("acc", "ggml:Vulkan0"): DEVICE}) == []
    (said,) = stale([old], {("acc", "ggml:Vulkan0"): fixed})
    assert (
        said == f"{old.title} matches nothing: build 'b7836', but ggml:Vulkan0 is llvmpipe (b8121); remove or mend it"
    )
    assert (
        stale([old], {("acc", "ggml:Vulkan0"): DEVICE, ("acc", "ggml:Vulkan1"): replace(fixed, target="ggml:Vulkan1")})
        == []
    )
    assert stale([old], {("acc", "vulkan:0"): elsewhere, ("set", "ggml:Vulkan0"): fixed}) == []


def test_an_expired_entry_is_an_error_where_what_it_names_was_tested(entry: Callable[..., Entry]) -> None:
    old, today = entry(expires="2026-03-31"), date(2026, 4, 1)
    (said,) = stale([old], {("acc", "ggml:Vulkan0"): DEVICE}, today)
    assert said == f"{old.title} expired on 2026-03-31: ne3 of b is ignored; renew it or remove it"
    assert stale([old], {("acc", "vulkan:0"): OnDevice("vulkan:0", "", {})}, today) == []
