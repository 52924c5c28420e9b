"""Option values: what they mean, and that a wrong one is a usage error in one line."""

from __future__ import annotations

from typing import Any

import pytest

from opconform.harness.model.usage import UsageError
from opconform.harness.search.settings import (
    PROFILES,
    Settings,
    bytes_of,
    chosen_checks,
    positive,
    shard_of,
    share_of,
)
from opconform.options import OPTIONS, settings_from


def settings(**values: Any) -> Settings:
    return settings_from(values)


def test_without_options_the_defaults_hold_and_a_seed_is_drawn() -> None:
    found = settings()
    assert found.examples == PROFILES["default"]
    assert (found.max_bytes, found.time_limit, found.isolated, found.strict) == (64 << 20, 30.0, True, False)
    assert found.seed != settings().seed


def test_a_profile_sets_the_count_and_max_examples_overrides_it() -> None:
    assert settings(profile="quick").examples == PROFILES["quick"] == 150
    assert settings(profile="nightly", max_examples=7).examples == 7


def test_seed_0_is_a_seed() -> None:
    assert settings(seed=0).seed == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("64M", 64 << 20),
        ("64m", 64 << 20),
        ("2GiB", 2 << 30),
        ("3 KB", 3 << 10),
        (" 1048576 ", 1 << 20),
        ("5B", 5),
    ],
)
def test_a_size_takes_the_usual_units(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "0M", "-1", "1.5M", "M", "64T", "64 M M", "1e6", "0x10", "64Mi", "a" * 10**5, "9" * 5000]
)
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(UsageError) as error:
        bytes_of(text)
    assert "is not a size; write bytes or a number with K, M or G, such as 64M" in str(error.value)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_above_0_names_its_option(value: float) -> None:
    with pytest.raises(UsageError, match=r"--time-limit is .*; it must be above 0"):
        positive("--time-limit", value)


def test_checks_come_with_commas_or_repeated() -> None:
    known = ("one", "two", "three")
    assert chosen_checks(["one, two", "three", ""], known) == ("one", "two", "three")
    with pytest.raises(UsageError, match=r"^no check 'four' on request; there are one, two, three$"):
        chosen_checks(["one,four"], known)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_examples": 0}, "--max-examples is 0; it must be above 0"),
        ({"max_examples": -5}, "--max-examples is -5; it must be above 0"),
        ({"seed": -1}, "--seed is -1; it must be 0 or above"),
        ({"time_limit": 0.0}, "--time-limit is 0; it must be above 0"),
        ({"max_bytes": "lots"}, "'lots' is not a size"),
        ({"check": ["value"]}, "no check 'value' on request"),
    ],
)
def test_a_value_that_cannot_be_is_a_usage_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        settings_from(values)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "1/0", "-1/4", "a/b", "1/4/2", "1.0/4", "١/٤"])
def test_a_shard_that_cannot_be_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="it must be i/n with i from 1 to n, such as 2/4"):
        shard_of(text)


@pytest.mark.parametrize(("examples", "count"), [(1000, 1), (1000, 3), (1000, 7), (5, 5), (20000, 16)])
def test_the_shards_together_draw_what_one_run_draws(examples: int, count: int) -> None:
    shares = [share_of(examples, shard_of(f"{index}/{count}")) for index in range(1, count + 1)]
    assert sum(shares) == examples
    assert max(shares) - min(shares) <= 1


def test_every_option_has_help_and_its_own_key() -> None:
    keys = [option.key for option in OPTIONS]
    assert len(set(keys)) == len(keys)
    assert all(option.help and option.name.startswith("--") for option in OPTIONS)
    assert all(key.isidentifier() for key in keys)


def test_the_nightly_profile_runs_known_cases_of_whole_models() -> None:
    assert settings_from({"profile": "nightly"}).known_max_bytes == 1 << 30
    assert settings_from({"profile": "nightly", "max_bytes": "1M"}).known_max_bytes is None
    assert settings_from({"profile": "nightly", "sanitize": True}).known_max_bytes is None
    assert settings_from({}).known_max_bytes is None


def test_the_database_comes_from_the_option_or_else_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPCONFORM_DATABASE", "redis://ci")
    assert settings().database == "redis://ci"
    assert settings(database="none").database == "none"
    monkeypatch.delenv("OPCONFORM_DATABASE")
    assert settings().database is None
