"""A bundle: everything that a maintainer needs to see a failure, in one folder. Written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from opconform.harness.explain.companions import companions_of
from opconform.harness.explain.facts import Facts
from opconform.harness.explain.failure import Failure
from opconform.harness.model.text import without_folders
from opconform.harness.model.version import VERSION
from opconform.harness.run.registry import without_folder
from opconform.harness.run.script import CannotWriteError, Script
from opconform.harness.run.target import Target
from opconform.reports.repro.issue import issue
from opconform.reports.repro.picture import picture
from opconform.reports.repro.place import bundle_path, digest
from opconform.reports.repro.scripts import asked, script

FORMAT = "opconform-bundle/1"


def write_bundle(failure: Failure, target: Target, out_dir: str | os.PathLike[str]) -> Path:
    """Write the bundle of a failure seen on `target` below `out_dir`; returns its folder.

    A bundle of the same case and target that is there is replaced. Raises OSError where it cannot be written.
    """
    folder = bundle_path(out_dir, failure)
    files = files_of(failure, target)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:40]}-", suffix=".part"))
    try:
        temporary.chmod(0o777 & ~_umask())
        for name, content in files.items():
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        _put(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _put(temporary: Path, folder: Path) -> None:
    """Move a finished folder into its place; a folder can only replace another in two steps."""
    try:
        os.rename(temporary, folder)
        return
    except OSError:
        if not folder.is_dir():
            raise
    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".", suffix=".old"))
    try:
        os.rename(folder, old / "old")
        try:
            os.rename(temporary, folder)
        except OSError:
            os.rename(old / "old", folder)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def files_of(failure: Failure, target: Target) -> dict[str, bytes]:
    """The files of a bundle by name. They go to strangers: none of them says in which folders its author works."""
    seen, failure = failure, _for_strangers(failure)
    facts = Facts(failure, target)
    text: dict[str, str] = {"case.json": json.dumps(failure.case.to_json(), indent=1) + "\n"}
    beside: Mapping[str, bytes] = {}
    made: Script | str
    try:
        if failure.case.before is not None:
            raise CannotWriteError("it runs one case, and this one is wrong only right after another: replay case.json")
        made = asked(facts)
        text["repro.py"], beside = script(facts, made), made.files
    except CannotWriteError as reason:
        made = str(reason) or "the backend gives no reason"
    except Exception as error:
        made = _broken(error)
    made = without_folders(made) if isinstance(made, str) else made
    companions = companions_of(facts)
    for each in companions:
        text.update(each.files)
    map_svg = picture(failure)
    if map_svg is not None:
        text["map.svg"] = map_svg
    text["issue.md"] = issue(facts, text, made, companions)
    about = {"format": FORMAT, "target": failure.target, "case": failure.case.id, "written_by": VERSION}
    build = {"versions": dict(failure.versions), "digest": digest(seen)}
    text["bundle.json"] = json.dumps({**about, **build, "files": sorted([*text, *beside])}, indent=1) + "\n"
    return {**{name: made.encode("utf-8", errors="replace") for name, made in text.items()}, **beside}


def _for_strangers(failure: Failure) -> Failure:
    """The failure with the names of files in the place of their paths."""
    return replace(
        failure,
        target=without_folder(failure.target),
        findings=tuple(replace(finding, detail=without_folders(finding.detail)) for finding in failure.findings),
        stderr=without_folders(failure.stderr),
        also=without_folders(failure.also),
        stage=without_folders(failure.stage),
    )


def _broken(error: Exception) -> str:
    """Why a file is not there: a fault of ours, which is shown. The rest of the bundle is of use all the same."""
    traceback.print_exc()
    return f"making it failed with {type(error).__name__}: {error}"
