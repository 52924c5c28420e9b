"""Where bundles stand."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opconform.harness.explain.failure import Failure
    from opconform.harness.search.settings import Settings


def repro_dir(settings: Settings) -> Path | None:
    """Where a run's bundles go; None where it writes none."""
    if settings.repro_dir == "none":
        return None
    return Path(settings.repro_dir or os.path.join(settings.report_dir, "repro"))


def bundle_path(out_dir: str | os.PathLike[str], case_id: str, target: str) -> Path:
    """The folder of a bundle: the case's id; where that holds the bundle of another target, with this one's name."""
    plain = Path(out_dir) / case_id
    if _target_of(plain) in (None, target):
        return plain
    return Path(out_dir) / f"{case_id}-{re.sub(r'[^A-Za-z0-9.]+', '-', target).strip('-.')[-60:]}"


def bundle_of(failure: Failure, settings: Settings) -> Path | None:
    """The folder of a failure's bundle, if it was written."""
    folder = repro_dir(settings)
    found = None if folder is None else bundle_path(folder, failure.case.id, failure.target)
    return found if found is not None and _target_of(found) is not None else None


def _target_of(folder: Path) -> str | None:
    """The target whose bundle stands in a folder; None where there is none."""
    try:
        return str(json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["target"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
