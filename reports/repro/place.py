"""Where bundles stand."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opconform.harness.model.files import read_regular
from opconform.harness.model.plain import parsed
from opconform.harness.run.registry import without_folder

if TYPE_CHECKING:
    from opconform.harness.explain.failure import Failure
    from opconform.harness.search.settings import Settings

_LARGEST = 1 << 20  #: bytes of a bundle.json


def repro_dir(settings: Settings) -> Path | None:
    """Where a run's bundles go; None where it writes none."""
    if settings.repro_dir == "none":
        return None
    return Path(settings.repro_dir or os.path.join(settings.report_dir, "repro"))


def bundle_path(out_dir: str | os.PathLike[str], failure: Failure) -> Path:
    """The folder of a failure's bundle: the case's id; where that holds the bundle of another target, or of another
    build of this one, with the target's name; and where that is taken too, with something that is its own."""
    plain = Path(out_dir) / failure.case.id
    target = re.sub(r"[^A-Za-z0-9.]+", "-", without_folder(failure.target)).strip("-.")[-60:]
    named = Path(f"{plain}-{target}")
    return next((place for place in (plain, named) if _is_free(place, failure)), Path(f"{named}-{digest(failure)}"))


def digest(failure: Failure) -> str:
    """What tells a bundle's target and build from others, also from a file of the same name in another folder."""
    text = repr((failure.target, failure.versions)).encode(errors="backslashreplace")
    return hashlib.sha1(text, usedforsecurity=False).hexdigest()[:8]


def bundle_of(failure: Failure, settings: Settings) -> Path | None:
    """The folder of a failure's bundle, if it was written."""
    folder = repro_dir(settings)
    found = None if folder is None else bundle_path(folder, failure)
    return found if found is not None and _about(found) is not None else None


def _is_free(folder: Path, failure: Failure) -> bool:
    """Whether a folder holds no bundle, or that of this very target and build; older bundles have no digest, and those
    of 0.1 do not say the build."""
    about = _about(folder)
    if about is None or "digest" in about:
        return about is None or about["digest"] == digest(failure)
    versions = dict(failure.versions)
    return about.get("target") == failure.target and about.get("versions", versions) == versions


def _about(folder: Path) -> dict[str, Any] | None:
    """What stands in a folder's bundle.json; None where there is no bundle."""
    try:
        found = parsed(read_regular(folder / "bundle.json", _LARGEST))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
