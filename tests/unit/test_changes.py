"""`--changed-ops`: which ops a changed file concerns, here and in another repository."""

from __future__ import annotations

import subprocess
from pathlib import Path, PurePosixPath

import pytest

import opconform
from opconform.harness.model.ops import op_names
from opconform.harness.model.usage import UsageError
from opconform.harness.search.changes import changed_files, ops_concerned

HERE = Path(opconform.__file__).resolve().parent.parent
OPS = op_names()


def concerned(*files: str, root: Path = HERE, spec: str = "vulkan") -> list[str]:
    return ops_concerned(map(PurePosixPath, files), root, spec, OPS)


@pytest.mark.parametrize("file", ["cases/acc.py", "cases/known/acc.json", "backends/vulkan/acc.comp"])
def test_a_file_named_after_an_op_concerns_that_op(file: str) -> None:
    assert concerned(file) == ["acc"]


def test_the_longest_name_of_an_op_is_meant() -> None:
    assert concerned("backends/vulkan/gated_delta_net_chunk.comp") == ["gated_delta_net_chunk"]


def test_a_backend_s_own_files_concern_that_backend_alone() -> None:
    assert concerned("backends/opencl/acc.cl") == []
    assert concerned("backends/opencl/acc.cl", spec="opencl") == ["acc"]
    assert concerned("backends/vulkan/backend.py") == OPS
    assert concerned("backends/vulkan/backend.py", spec="torch") == []
    assert (
        concerned("backends/cuda/acc.cu", spec="cuda-host") == concerned("backends/cuda/acc.cu", spec="cuda") == ["acc"]
    )


@pytest.mark.parametrize("file", ["harness/search.py", "cases/shapes.py", "backends/cache.py", "pyproject.toml"])
def test_what_is_shared_concerns_every_op(file: str) -> None:
    assert concerned(file) == OPS


@pytest.mark.parametrize(
    "file", ["README.md", "tests/unit/test_acc.py", "reports/console.py", "tools/setup.sh", ".github/workflows/ci.yml"]
)
def test_what_changes_no_verdict_concerns_none(file: str) -> None:
    assert concerned(file) == []


def test_in_another_repository_the_name_decides(tmp_path: Path) -> None:
    def there(*files: str) -> list[str]:
        return concerned(*files, root=tmp_path, spec="mine.py:Mine")

    assert there("kernels/acc_f32.cu", "src/ops-cumsum.metal") == ["acc", "cumsum"]
    assert there("ggml/src/ggml-vulkan/vulkan-shaders/solve_tri.comp") == ["solve_tri"]
    assert there("kernels/settings.py") == OPS  # no op's name, and source: anything may lean on it
    assert there("docs/acc.md", "tests/test_acc.py", "logo.png") == []


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with a commit on a branch of its own, an edit, a new file, and a commit that main got meanwhile."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("NAME", "A"), ("EMAIL", "a@example.org")):
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    git("init", "--quiet", "--initial-branch=main")
    commit("acc.cu", "set.cu", "sum rows.cu")
    git("checkout", "--quiet", "-b", "mine")
    commit("acc.cu")
    git("checkout", "--quiet", "main")
    commit("set.cu")
    git("checkout", "--quiet", "mine")
    Path("sum rows.cu").write_text("edited")
    Path("cumsum.cu").write_text("new")
    return tmp_path


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True)


def commit(*files: str) -> None:
    for file in files:
        with open(file, "a") as stream:
            stream.write("line\n")
    git("add", *files)
    git("commit", "--quiet", "--message", "change")


def test_commits_edits_and_new_files_count_and_what_the_base_got_since_does_not(repository: Path) -> None:
    for base in ("main", "main...", "main…"):
        root, files = changed_files(base)
        assert root.resolve() == repository.resolve()
        assert sorted(map(str, files)) == ["acc.cu", "cumsum.cu", "sum rows.cu"]


def test_from_a_folder_below_the_root_the_whole_repository_is_looked_at(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "deep").mkdir()
    monkeypatch.chdir(repository / "deep")
    _, files = changed_files("main")
    assert "acc.cu" in map(str, files)
    assert "cumsum.cu" in map(str, files)


def test_a_base_that_is_not_there_is_a_usage_error(repository: Path) -> None:
    for base in ("nowhere", "--output=x"):
        with pytest.raises(UsageError, match=r"--changed-ops: .*; name a commit that is here"):
            changed_files(base)
