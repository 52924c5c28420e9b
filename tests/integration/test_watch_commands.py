"""`opconform watch`, `capture` and the replay of a piece, on real builds of libllama with tiny models."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from opconform.backends.ggml.library import REMEDY, VARIABLE
from opconform.backends.ggml.llama.architectures import ARCHITECTURES
from opconform.harness.draw.known import case_from_file
from opconform.harness.model.findings import Kind
from opconform.harness.model.graph import SeenNode
from opconform.harness.run.registry import backend_class
from opconform.harness.run.watching import WatchRequest
from opconform.harness.search.session import Session, targets_of
from opconform.harness.search.settings import Settings
from opconform.harness.search.watching import Watched, Watching
from tests.lacking import needs_torch

#: Ops with two outputs in one tensor.
PACKED = ("GATED_DELTA_NET", "RWKV_WKV6", "RWKV_WKV7")
PIECE = Path(__file__).parent / "pieces" / "moe-routing.json"


def folder_in(variable: str) -> str:
    """The folder that an environment variable names. Without it the test fails where CI runs it, else is skipped."""
    folder = os.environ.get(variable)
    if not folder:
        message = f"{variable} is not set; {REMEDY}"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return folder


def opconform(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    command = [sys.executable, "-c", "from opconform.cli import main; main()"]
    found = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=cwd, timeout=500)
    return found.returncode, found.stdout, found.stderr


def seconds_of_children() -> float:
    """What the processes that have ended took of a processor: wall time says little on a busy machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def watched(folder: str, request: WatchRequest, out: Path) -> Watched:
    settings = Settings(options={"ggml_lib": folder}, report_dir=str(out), also_seconds=0)
    (target,), _ = targets_of([f"ggml:{request.device}"], settings)
    with Session(settings) as session:
        return Watching(session, target).watch(
            WatchRequest(**{**vars(request), "options": dict(target.options)}), "--arch x"
        )


def test_a_right_model_ends_with_0_and_says_what_was_not_judged(tmp_path: Path) -> None:
    lib = folder_in(f"{VARIABLE}_FIXED")
    arguments = ["--arch", "kimi-linear", "--tokens", "20", "--steps", "1", "--sequences", "2"]
    status, out, err = opconform("watch", *arguments, "--backend", "ggml:CPU", "--ggml-lib", lib, cwd=tmp_path)
    assert status == 0, out + err
    lines = out.splitlines()
    assert lines[0].startswith("RIGHT  kimi-linear, ")
    assert "whole graph     right" in out
    assert "2 together: as alone; a prompt in two parts: as in one" in out
    assert "WRONG" not in out
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exactly_the_node_whose_output_is_spoiled_is_named(name: str, tmp_path: Path) -> None:
    lib = folder_in(VARIABLE)
    request = WatchRequest("CPU", architecture=name, tokens=9, steps=0, sequences=1)
    plain = watched(lib, request, tmp_path)
    assert plain.right
    right = [judged.node for judged in plain.nodes if judged.state == "right"]
    candidates = [node for node in right if node.out.type == "f32" and 0 not in node.out.ne]
    assert candidates
    packed = [node for node in candidates if node.what in PACKED]
    node = packed[0] if packed else candidates[zlib.crc32(name.encode()) % len(candidates)]
    found = watched(lib, replace(request, spoil=(0, node.index, -1, 1.001)), tmp_path)
    assert [(it.node.index, it.kind) for it in found.wrong] == [(node.index, Kind.WRONG_VALUES)]
    (case,) = found.cases
    assert case.alone == "passes"  # the kernel is right; the hook is not part of the case
    assert case_from_file(Path(case.path)).id == case.case


def test_captured_nodes_replay_on_another_backend(tmp_path: Path) -> None:
    lib = folder_in(f"{VARIABLE}_FIXED")
    arguments = ["--arch", "kimi-linear", "-o", "captured", "--backend", "ggml:CPU", "--ggml-lib", lib, "--steps", "0"]
    status, out, err = opconform("capture", *arguments, cwd=tmp_path)
    assert status == 0, out + err
    files = sorted((tmp_path / "captured").glob("*.json"))
    ops = Counter(file.name.partition("-")[0] for file in files)
    assert {"solve_tri", "cumsum", "ssm_conv", "l2_norm", "cont"} <= ops.keys()
    lines = (tmp_path / "captured" / "test-file.txt").read_text().splitlines()
    numbers = lines[0].split()
    assert int(numbers[6]) == 16
    assert len(numbers) == 7 + 16 + 1 + 9 * int(numbers[23]) + 1
    solve = next(file for file in files if file.name.startswith("solve_tri"))
    tail = ["--ggml-lib", lib, "--history", "none"]
    status, out, err = opconform("replay", str(solve), "--backend", "ggml:CPU", *tail, cwd=tmp_path)
    assert status == 0, out + err
    needs_torch()
    status, out, err = opconform("replay", str(solve), "--backend", "torch", *tail, cwd=tmp_path)
    assert status == 0, out + err


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"GGUF", "cut off"), (b"no model at all", "not a GGUF file"), (None, "no model file")],
)
def test_a_file_that_is_no_model_is_one_line_of_usage(content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "m.gguf").write_bytes(content)
    arguments = ["m.gguf", "--backend", "ggml:CPU", "--ggml-lib", folder_in(VARIABLE)]
    status, _, err = opconform("watch", *arguments, cwd=tmp_path)
    assert status == 2
    assert says in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--arch", "no-such", "--backend", "ggml:CPU"], "no architecture 'no-such'; there are llama"),
        (["--arch", "llama", "m.gguf", "--backend", "ggml:CPU"], "a model file, or --arch"),
        (["--arch", "llama"], "needs --backend"),
        (["--arch", "llama", "--backend", "ggml:CPU", "--tokens", "0"], "--tokens is 0"),
        (
            ["--arch", "llama", "--backend", "ggml:CPU", "--tokens", "255"],
            "more than the 256 tokens that the model was",
        ),
    ],
)
def test_what_cannot_be_watched_is_one_line_of_usage(arguments: list[str], says: str, tmp_path: Path) -> None:
    status, _, err = opconform("watch", *arguments, "--ggml-lib", folder_in(VARIABLE), cwd=tmp_path)
    assert status == 2
    assert says in err


@pytest.mark.parametrize(("variable", "expected"), [(f"{VARIABLE}_FIXED", 1), (VARIABLE, 0)])
def test_a_wrong_piece_replays_without_its_model(variable: str, expected: int, tmp_path: Path) -> None:
    """The routing of a mixture of experts on Vulkan: wrong on llama.cpp b8121, mended by its pull request 19768."""
    arguments = ["--backend", "ggml:Vulkan0", "--ggml-lib", folder_in(variable)]
    start = seconds_of_children()
    status, out, err = opconform("replay", str(PIECE), *arguments, cwd=tmp_path)
    assert status == expected, out + err
    assert ("FAILED" in out) == bool(expected)
    assert seconds_of_children() - start < 5


def test_a_piece_of_nodes_that_a_build_lacks_is_one_line(tmp_path: Path) -> None:
    plain = json.loads(PIECE.read_text())
    for tensor in plain["tensors"]:
        if tensor.get("op") == "SUM_ROWS":
            tensor["op"] = "NO_SUCH_OP"
    changed = tmp_path / "piece.json"
    changed.write_text(json.dumps(plain))
    arguments = ["--backend", "ggml:CPU", "--ggml-lib", folder_in(VARIABLE)]
    status, _, err = opconform("replay", str(changed), *arguments, cwd=tmp_path)
    assert status == 2
    assert "this build has no op NO_SUCH_OP" in err


def test_a_crash_that_does_not_come_back_is_told_and_the_run_goes_on_behind_it(tmp_path: Path) -> None:
    request = WatchRequest("CPU", {"ggml_lib": folder_in(VARIABLE)}, architecture="llama", tokens=5, steps=1)
    with backend_class("ggml").watcher(request) as watcher:
        seen: list[tuple[int, int]] = []

        def kill_once(node: SeenNode) -> None:
            if not seen:
                os.kill(watcher._bench.model().worker.pid, signal.SIGSEGV)  # type: ignore[attr-defined]
            seen.append((node.node.decode, node.node.index))

        ended = watcher.by_node(kill_once)
        assert ended
        assert ended.kind == Kind.CRASH
        assert ended.times == "1 time of 2"
        assert seen == sorted(set(seen))
        again: list[tuple[int, int]] = []
        assert watcher.by_node(lambda node: again.append((node.node.decode, node.node.index))) is None
        assert again == seen
