"""The options that `pytest` and `opconform` share, in one table, and the settings they make."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opconform.harness.model.usage import UsageError
from opconform.harness.search.settings import (
    OUT,
    PROFILES,
    Settings,
    bytes_of,
    chosen_checks,
    positive,
    shard_of,
    share_of,
)

NIGHTLY_KNOWN = 1 << 30  #: the nightly profile runs known cases up to this size: the shapes of whole models

#: A simulator takes a thousand times as long; so a sanitized case is small, and each op gets a minute on each device.
SANITIZED_BYTES, SANITIZED_SECONDS, SANITIZED_LIMIT = "16K", 60.0, 300.0

SHARD_NEEDS_SEED = "--shard needs --seed: the shards of one run must all draw from the same seed"


@dataclass(frozen=True)
class Option:
    """A command-line option. `many`: may be given several times; `flag`: takes no value."""

    name: str
    help: str
    metavar: str = ""
    type: type = str
    many: bool = False
    flag: bool = False
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.name.lstrip("-").replace("-", "_")


OPTIONS: tuple[Option, ...] = (
    Option("--backend", "a backend, or one device of it: vulkan, ggml:Vulkan0, path/to/file.py:Class", "X", many=True),
    Option("--op", "only these ops, with commas or repeated", "OP", many=True),
    Option("--max-examples", "cases per op and device (default: the profile's)", "N", int),
    Option("--minutes", "share this much time among all ops and devices", "M", float),
    Option("--seed", "seed of the search (default: drawn, and printed)", "N", int),
    Option("--profile", "how many cases: quick 150, default 1000, nightly 20000", choices=tuple(PROFILES)),
    Option(
        "--case",
        "only this case: a file, a folder of such files, or the id of a known case or stored failure",
        "CASE",
        many=True,
    ),
    Option("--known-cases", "run the case files of this folder too, as known cases", "DIR", many=True),
    Option("--times", "run a case that is replayed up to N times, until it fails (default 1)", "N", int),
    Option("--check", "also this check: deterministic, batch_invariant, layout_invariant", "NAME", many=True),
    Option("--max-bytes", "memory a case may take (default 64M; 16K with --sanitize; known cases nightly 1G)", "SIZE"),
    Option(
        "--time-limit",
        "seconds a case may take, 4 times as many at a second try (default 30; 300 with --sanitize)",
        "S",
        float,
    ),
    Option("--no-isolation", "run the backend in this process, for debugging", flag=True),
    Option("--strict-supports", "try what a kernel only asserts and what is a known bug", flag=True),
    Option("--sanitize", "run each backend under its API's checker: Oclgrind, Vulkan's validation layer", flag=True),
    Option("--ggml-lib", "a directory with libggml (default: $OPCONFORM_GGML_LIB)", "DIR"),
    Option("--report-dir", f"where runs write: failing cases, bundles, histories (default: {OUT})", "DIR"),
    Option("--repro-dir", "where the bundle of each failure goes, or none (default: repro in --report-dir)", "DIR"),
    Option("--also-seconds", "time to try a failing case on the other backends (default 20; 0: do not)", "S", float),
    Option("--database", "where failing cases wait for the next run: folder, none, redis://…, github:OWNER/NAME", "DB"),
    Option("--shard", "this run is part i of n that share the work; all take the same --seed", "i/n"),
    Option("--known-failures", "expected failures, or none (default: known_failures.toml where there is one)", "FILE"),
    Option("--history", "the SQLite file results go to, or none (default: history.sqlite in --report-dir)", "PATH"),
)


def settings_from(values: Mapping[str, Any]) -> Settings:
    """The settings that option values (by `Option.key`) make. Raises `UsageError` for one that cannot be."""
    from opconform.harness.judge.checks import ON_REQUEST

    examples = values.get("max_examples")
    if examples is None:
        examples = PROFILES[values.get("profile") or "default"]
    seed = values.get("seed")
    if seed is not None and seed < 0:
        raise UsageError(f"--seed is {seed}; it must be 0 or above")
    shard = shard_of(values.get("shard") or "1/1")
    if values.get("shard") and seed is None:
        raise UsageError(SHARD_NEEDS_SEED)
    if values.get("shard") and values.get("case"):
        raise UsageError("--shard divides a search; with --case there is none")
    also_seconds = 20.0 if values.get("also_seconds") is None else values["also_seconds"]
    if also_seconds != 0:
        positive("--also-seconds", also_seconds)
    sanitize, asked = bool(values.get("sanitize")), values.get("max_bytes")
    time_limit = values.get("time_limit")
    if time_limit is None:
        time_limit = SANITIZED_LIMIT if sanitize else 30.0
    max_bytes = bytes_of(asked or (SANITIZED_BYTES if sanitize else "64M"))
    if sanitize and values.get("no_isolation"):
        raise UsageError("--sanitize starts the backend in a process under its checker; --no-isolation has none")
    options = {"ggml_lib": values["ggml_lib"]} if values.get("ggml_lib") else {}
    return Settings(
        examples=share_of(int(positive("--max-examples", examples)), shard),
        seed=random.SystemRandom().randrange(1 << 31) if seed is None else seed,
        max_bytes=max_bytes,
        known_max_bytes=NIGHTLY_KNOWN if values.get("profile") == "nightly" and not (asked or sanitize) else None,
        time_limit=positive("--time-limit", time_limit),
        isolated=not values.get("no_isolation"),
        strict=bool(values.get("strict_supports")),
        checks=chosen_checks(values.get("check") or (), ON_REQUEST),
        report_dir=values.get("report_dir") or OUT,
        options=options,
        profile="" if values.get("max_examples") is not None else values.get("profile") or "default",
        shard=shard,
        history=values.get("history") or None,
        repro_dir=values.get("repro_dir") or None,
        also_seconds=also_seconds,
        known_failures=values.get("known_failures") or None,
        database=values.get("database") or os.environ.get("OPCONFORM_DATABASE") or None,
        sanitize=sanitize,
        times=int(positive("--times", 1 if values.get("times") is None else values["times"])),
        seconds=SANITIZED_SECONDS if sanitize else None,
    )
