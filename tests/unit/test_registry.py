"""What `--backend` takes: spec, device and alias."""

from __future__ import annotations

from pathlib import Path

import pytest

from opconform.harness.model.usage import UsageError
from opconform.harness.run.registry import parts_of, split_target


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("ggml", ("ggml", "", "")),
        ("ggml:Vulkan0", ("ggml", "Vulkan0", "")),
        ("ggml@pinned", ("ggml", "", "pinned")),
        ("ggml:Vulkan0@b7836.1", ("ggml", "Vulkan0", "b7836.1")),
        ("ggml:Vulkan*@*", ("ggml", "Vulkan*", "*")),
        ("a@b/mine.py:Mine", ("a@b/mine.py:Mine", "", "")),
        ("a@b/mine.py:Mine:0@old", ("a@b/mine.py:Mine", "0", "old")),
    ],
)
def test_a_target_has_a_spec_a_device_and_an_alias(target: str, parts: tuple[str, str, str]) -> None:
    assert parts_of(target) == parts


def test_a_device_that_is_not_named_is_none(tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    assert split_target("torch@old") == ("torch", None, "old")
    assert split_target(f"{tmp_path}/mine.py:Mine:1") == (f"{tmp_path}/mine.py:Mine", "1", "")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("vulcan:0", "no backend 'vulcan'; there are "),
        ("none/mine.py", "no file none/mine.py, named by --backend none/mine.py"),
        ("none/mine.py:Mine", "no file none/mine.py, named by --backend none/mine.py:Mine"),
        ("torch@", "--backend torch@: '' is no alias; it takes letters"),
        ("torch:cpu@a b", "'a b' is no alias"),
        ("torch@-x", "'-x' is no alias"),
    ],
)
def test_what_does_not_exist_is_a_usage_error(target: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        split_target(target)
