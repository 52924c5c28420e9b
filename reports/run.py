"""One run, as the reports name it: who it is, what it set out to do, and when."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

from opconform.harness.search.settings import Settings

if TYPE_CHECKING:
    from opconform.harness.run.target import Target


def now() -> str:
    """The time in UTC to the microsecond; such texts sort by time."""
    return datetime.now(timezone.utc).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def new_run_id() -> str:
    """A name that no other run has; names sort by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


@dataclass
class Run:
    """A run. Several processes (the workers of xdist) may share one; shards are runs of their own.

    command: "search", "replay" where cases were named, or "perf" where they were timed. pairs: the op and target of
    everything that it sets out to run, so that a reader can tell what a run that was killed never reached; they may be
    added until it begins.
    """

    settings: Settings
    command: Literal["search", "replay", "perf"]
    devices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    id: str = field(default_factory=new_run_id)
    started: str = field(default_factory=now)


def about_devices(targets: list[Target]) -> dict[str, dict[str, Any]]:
    """What a history keeps of each device, by target."""
    return {
        target.label: {"description": target.device.description, "versions": dict(target.device.versions)}
        for target in targets
    }
