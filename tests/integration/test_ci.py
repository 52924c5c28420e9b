"""What the workflows are made of: the published schema, `matrix`, `--changed-ops` and the nightly script."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from opconform.cli import main
from opconform.harness.search import session
from tests.samples import spec

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
SHORT = ("--max-examples", "20", "--seed", "1", "--no-isolation", "--history", "none", "--database", "none")


def opconform(*arguments: str, status: int = 0) -> Result:
    found = CliRunner().invoke(main, arguments)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    assert found.exit_code == status, found.output
    return found


@pytest.mark.parametrize(
    ("schema", "pattern"), [("github-workflows", "workflows/*.yml"), ("github-actions", "actions/*/action.yml")]
)
def test_the_workflows_fit_the_published_schema(schema: str, pattern: str) -> None:
    files = sorted(map(str, GITHUB.glob(pattern)))
    assert files
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflows_take_options_and_targets_that_exist() -> None:
    text = "\n".join(file.read_text() for file in GITHUB.rglob("*.yml"))
    for name in ("test", "matrix"):
        command = main.get_command(click.Context(main), name)
        assert command is not None
        known = {option for parameter in command.params for option in parameter.opts}
        called = re.findall(rf"opconform {name}((?:.|\\\n)*)", text)
        assert called
        assert {option for call in called for option in re.findall(r"(?<= )--[a-z-]+", call)} <= known
    builds = set(re.findall(r"(?:NEWEST|PINNED): (\S+)", text)) | set(re.findall(r"\.cache/ggml/([\w.]+)", text))
    assert builds <= set(re.findall(r'^  "(\S+) ', (ROOT / "tools/setup.sh").read_text(), re.MULTILINE))


def jobs(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(opconform("matrix", "--json", *arguments).stdout)["include"]
    return found


def test_the_matrix_has_a_job_for_each_device_and_shard() -> None:
    found = jobs("--backend", spec("TwoDevices") + "@old", "--shards", "2", "--ggml-lib", "/a b")
    assert [job["backend"] for job in found] == [f"{spec('TwoDevices')}:{device}@old" for device in (0, 0, 1, 1)]
    assert [job["shard"] for job in found] == ["1/2", "2/2"] * 2
    assert {job["options"] for job in found} == {"--ggml-lib '/a b'"}
    assert len({job["name"] for job in found}) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", job["name"]) for job in found)  # it names a file and an artifact


def test_without_a_backend_the_matrix_is_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "backend_names", lambda: [spec("Good"), spec("ListsNone")])
    assert [job["backend"] for job in jobs()] == [f"{spec('Good')}:0"]
    assert f"{spec('Good')}:0" in opconform("matrix").output
    monkeypatch.setattr(session, "backend_names", lambda: [spec("ListsNone")])
    assert "no backend is available here" in opconform("matrix", "--json", status=2).output
    opconform("matrix", "--shards", "0", status=2)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of somebody's kernels, with one commit."""
    monkeypatch.chdir(tmp_path)
    Path("acc.cu").write_text("")
    Path("README").write_text("")
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    Path(".gitignore").write_text("opconform-out/\n.hypothesis/\n")
    for command in (("init", "--quiet"), ("add", "."), (*who, "commit", "--quiet", "--message", "first")):
        subprocess.run(["git", *command], check=True)
    return tmp_path


def test_only_ops_whose_files_changed_are_tested(repository: Path) -> None:
    (repository / "acc.cu").write_text("changed")
    found = opconform("test", "--backend", spec("Good"), "--changed-ops", "HEAD", *SHORT)
    assert "1 files differ from HEAD; they concern acc" in found.output
    assert "1 of 1 pairs" in found.output
    (repository / "common.cuh").write_text("new")
    found = opconform("test", "--backend", spec("Good"), "--changed-ops", "HEAD", "--op", "acc,set", *SHORT)
    assert "they concern acc, set" in found.output


def test_where_no_change_concerns_an_op_nothing_runs_and_that_is_no_failure(repository: Path) -> None:
    (repository / "README").write_text("changed")
    found = opconform("test", "--backend", spec("Good"), "--changed-ops", "HEAD", *SHORT)
    assert "1 files differ from HEAD; they concern none that is tested here\nnothing to test" in found.output
    assert "--changed-ops: " in opconform("test", "--backend", spec("Good"), "--changed-ops", *SHORT, status=2).output


MINE = "from tests.backends.sample import {name}\n\nclass Mine({name}):\n    pass\n"


@pytest.mark.skipif(sys.platform != "linux", reason="a shell script for Linux")
def test_the_nightly_script_is_red_only_on_a_regression(tmp_path: Path) -> None:
    backend, out = tmp_path / "mine.py", tmp_path / "nightly"

    def night(name: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        backend.write_text(MINE.format(name=name))
        options = f"--backend {backend}:Mine --op acc --no-isolation --also-seconds 0 --repro-dir none --database none"
        settings = {"BUDGET": "0.05", "NIGHTLY_DIR": str(out), "NIGHTLY_ARGS": options, "KNOWN_FAILURES": "none"}
        start = tmp_path / "opconform"
        start.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from opconform.cli import main; main()' \"$@\"\n")
        start.chmod(0o755)
        environment = {**os.environ, **settings, "OPCONFORM": str(start), "PYTHONPATH": str(ROOT), **more}
        environment = {name: value for name, value in environment.items() if not name.startswith("OPCONFORM_")}
        return subprocess.run(
            [ROOT / "tools/nightly.sh", *arguments], env=environment, capture_output=True, text=True, cwd=tmp_path
        )

    first = night("Good")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "shard 2 of 2" in first.stdout
    assert "no regression; 1 new pair" in first.stdout
    broken = night("IgnoresNe3")
    assert broken.returncode == 1
    assert "1 regression; 1 new failure" in broken.stdout
    mended = night("Good")
    assert mended.returncode == 0
    assert "no regression; 1 fixed" in mended.stdout
    assert "fixed" in (out / "summary.md").read_text()
    assert (out / "report.html").is_file()
    assert opconform("runs", "--history", str(out / "history.sqlite")).output.count(" search ") == 6
    for wrong in ({"BUDGET": "soon"}, {"KNOWN_CASES": "no-such-folder"}, {"SHARDS": "0"}, {"EXTRA_GGML": "b7836"}):
        assert night("Good", **wrong).returncode == 2
    assert night("Good", "--nonsense").returncode == 2
    assert "BUDGET" in night("Good", "--help").stdout


def test_the_script_for_a_gpu_goes_as_far_as_it_can_without_one(tmp_path: Path) -> None:
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PYTHON": sys.executable, "PATH": f"{binaries}:{os.environ['PATH']}"}
    command = ["sh", str(ROOT / "tools" / "verify_gpu.sh"), "check"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^(\w+): exit (\d+)$", done.stdout, re.MULTILINE) == [("list", "0"), ("perf", "0")]
