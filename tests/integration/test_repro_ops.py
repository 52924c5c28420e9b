"""The script of every op for every API: alone in a process it passes, and fails once the device's result is spoilt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opconform.backends.ggml import cpp
from opconform.backends.kernels.table import KERNELS
from opconform.harness.draw.known import known_cases
from opconform.harness.draw.sample import cases_drawn
from opconform.harness.explain.facts import Facts
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Op
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.process import devices_of
from opconform.harness.run.registry import backend_class
from opconform.harness.run.runner import Runner
from opconform.harness.run.script import Script, ScriptRequest
from opconform.harness.run.target import Target
from opconform.reports.repro import scripts
from opconform.reports.repro.bundle import files_of
from tests.judge import Bench
from tests.lacking import lacking
from tests.repro_samples import described
from tests.unit.test_repro_text import compiles

APIS = ("torch:cpu", "opencl:0", "vulkan:0", "cuda-host:0", "ggml:CPU", "ggml:Vulkan0")
ALONE = ("cuda-host:0",)  #: a process holds the kernels of one script only
OWN_KERNELS = ("opencl:0", "vulkan:0", "cuda-host:0")  #: they have the ops that stand in a table of kernels
PROBLEMS = 2  #: drawn for each op; each gives several cases

#: Runs scripts with Opconform out of reach: as they are, and with the device's results spoilt, every element of them.
DRIVER = """
import contextlib, io, json, sys, traceback
sys.modules["opconform"] = None
import numpy as np

def spoilt(scope, after):
    for name in scope["WANT"]:
        it = scope["at"](after, name)
        bits = np.ndarray(it.shape, f"u{it.itemsize}", after, scope["TENSORS"][name][3], it.strides)
        bits ^= bits.dtype.type(1 << (8 * it.itemsize - 2))
    return after

for file in sys.argv[1:]:
    sys.argv, said, status = [file], io.StringIO(), []
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        scope = {"__name__": "script", "__file__": file}
        try:
            exec(compile(open(file, encoding="utf-8").read(), file, "exec"), scope)
            right, left = scope["run"], []
            scope["run"] = lambda memory: left.append(right(memory)) or left[0].copy()
            status.append(scope["main"]())
            scope["run"] = lambda memory: spoilt(scope, left[0])
            status.append(scope["main"]())
        except SystemExit as end:
            status.append(end.code)
        except BaseException:
            traceback.print_exc()
    print(json.dumps([file, status, said.getvalue()[-3000:]]), flush=True)
"""


@contextmanager
def opened(api: str) -> Iterator[Runner]:
    """A device by its label."""
    spec, _, name = api.partition(":")
    folder = os.environ.get("OPCONFORM_GGML_LIB", "")
    options = {"ggml_lib": folder} if spec == "ggml" and folder else {}
    try:
        device = next(device for device in devices_of(spec, options) if device.id == name)
    except (Unavailable, StopIteration) as reason:
        lacking(spec, f"{api}: {reason}")
    with Runner(Target(spec, device, options)) as runner:
        yield runner


def passing(runner: Runner, op: Op) -> list[Verdict]:
    """Cases that the device gets right: few, the ones with most to get wrong first: shared memory, several types, all
    of the optional arguments."""
    cases = cases_drawn(op, Freedom(runner.limits(op), 1 << 12), PROBLEMS, 5)
    whole = [case for case in cases if all(layout.size for layout in case.layouts.values())]
    # No script writes blocks, and torch's brings no decoder of them.
    plain = [case for case in whole if all(layout.type.block == 1 for layout in case.outputs.values())]
    if runner.target.spec == "torch":
        plain = [case for case in plain if all(layout.type.block == 1 for layout in case.inputs.values())]
    found = [verdict for verdict in runner.verdicts(op, plain) if verdict.unsupported is None]
    assert not found or any(verdict.passed for verdict in found), f"{runner.target.device.id} fails {op.name}"
    return sorted((verdict for verdict in found if verdict.passed and _demands(verdict)), key=_plainness)


def _demands(verdict: Verdict) -> bool:
    """Whether a spoilt result is noticed: nothing is demanded of the logarithm of a negative number, and little of GELU
    far below 0, where 1 + tanh loses all digits."""
    expected = Bench(verdict.case).expected(verdict.numerics)
    return bool(((expected.bound < 1) & ~np.isnan(expected.value)).any())


def _plainness(verdict: Verdict) -> tuple[int, ...]:
    case = verdict.case
    types = {layout.dtype for layout in case.layouts.values()}
    return (
        -bool(case.shares),
        -len(types),
        -len(case.inputs),
        -sum(not it.is_contiguous for it in case.layouts.values()),
    )


def written_here(request: ScriptRequest) -> Script:
    """What the backend writes, without the half second of a process for each script."""
    made = backend_class(request.spec).script(request)
    assert made is not None
    return Script.from_json(json.loads(json.dumps(made.to_json())))


@pytest.mark.parametrize("api", APIS)
def test_the_script_of_every_op_runs_alone(api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "written", written_here)
    files: dict[str, str] = {}
    with opened(api) as runner:
        names = sorted(KERNELS.keys() & ops().keys() if api in OWN_KERNELS else ops())
        for name in names[::3] if api == "ggml:Vulkan0" else names:  # its scripts are the CPU's, but for the device
            found = passing(runner, ops()[name])
            if not found and api not in OWN_KERNELS:
                continue  # torch and a build of ggml have some ops only
            assert found, f"{api} has no case of {name}"
            picked = (found[0],) if api in ALONE else (found[0], found[len(found) // 2])
            for number, verdict in enumerate(picked):
                failure = replace(described(verdict.case, runner.target), numerics=verdict.numerics)
                made = files_of(failure, runner.target)
                file = tmp_path / f"{name}-{number}.py"
                assert "repro.py" in made, f"{verdict.case}: {made['issue.md'].decode()}"
                file.write_bytes(made["repro.py"])
                files[str(file)] = f"{verdict.case}"
    assert len(files) > (20 if api in OWN_KERNELS or api == "ggml:Vulkan0" else 60)
    environment = {name: value for name, value in os.environ.items() if name != "OPCONFORM_GGML_LIB"}
    ran = []
    for together in [[file] for file in files] if api in ALONE else [list(files)]:
        command = [sys.executable, "-c", DRIVER, *together]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, env=environment)
        ran += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        assert ran[-1:], done.stderr
        assert ran[-1][0] == together[-1], done.stderr
    wrong = [(files[file], status, said) for file, status, said in ran if status != [0, 1]]
    assert [file for file, _, _ in ran] == list(files)
    assert not wrong, "\n".join(f"{case} {status} {said[-160:]!r}" for case, status, said in wrong)


@pytest.mark.parametrize("form", ["one node", "l2norm", "chunk"])
def test_a_graph_of_one_node_has_a_cpp_test_case(form: str) -> None:
    with opened("ggml:CPU") as runner:
        op = ops()["gated_delta_net_chunk" if form == "chunk" else "gated_delta_net"]
        where = runner.target
        case = next(
            verdict.case for verdict in passing(runner, op) if verdict.case.params["l2norm"] == (form == "l2norm")
        )
    facts = Facts(described(case, where), where)
    if form != "one node":
        with pytest.raises(cpp.NoTestError, match="it has the outputs out, state_out, of which"):
            cpp.test_case(facts)
        return
    text = cpp.test_case(facts)
    assert "= ggml_gated_delta_net(ctx, q, k, v, g, beta, " in text
    issue = files_of(described(case, where), where)["issue.md"].decode()
    assert "paste `test_case.cpp`" in issue


@pytest.mark.parametrize("name", ["rms_norm_mul_rope/qwen3-queries", "rope_set_rows/vulkan-rows-step"])
def test_a_piece_has_a_cpp_test_case_of_its_result_alone(name: str, tmp_path: Path) -> None:
    known = known_cases(name.partition("/")[0])
    case = known[name].case
    with opened("ggml:CPU") as runner:
        where = runner.target
    text = cpp.test_case(Facts(described(case, where), where))
    assert "bool run_whole_graph() override { return true; }" in text
    assert f'return "{case.op.upper()}";' in text
    assert "ggml_build_forward_expand(gf, " in text  # a view or a copy would stand between nodes that are fused
    compiles(text, tmp_path)


def test_a_piece_whose_result_is_kept_has_none_and_says_why() -> None:
    case = known_cases("rms_norm_mul_rope")["rms_norm_mul_rope/weighed-read-again"].case
    with opened("ggml:CPU") as runner:
        where = runner.target
    with pytest.raises(cpp.NoTestError, match="it has the outputs out, mid"):
        cpp.test_case(Facts(described(case, where), where))


def test_a_graph_that_cannot_be_built_ends_the_script_as_it_ended_the_backend(tmp_path: Path) -> None:
    """ggml_gated_delta_net asserts that the rows of q are contiguous."""
    with opened("ggml:CPU") as runner:
        where, (first, *_) = runner.target, passing(runner, ops()["gated_delta_net"])
    q = Layout.contiguous("f32", first.case.inputs["q"].shape)
    strided = replace(q, strides=tuple(2 * stride for stride in q.strides))
    case = replace(first.case, inputs={**first.case.inputs, "q": strided}, shares={})
    wrong = described(case, where)
    files = files_of(wrong, where)
    assert "its graph cannot be built here: " in files["issue.md"].decode()
    assert "repro.py" not in files
    crash = replace(wrong, findings=(Finding("process", Kind.CRASH, "the process ended with signal SIGABRT"),))
    (tmp_path / "repro.py").write_bytes(files_of(crash, where)["repro.py"])
    done = subprocess.run([sys.executable, "repro.py"], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert "the process ended with status -6" in done.stdout
