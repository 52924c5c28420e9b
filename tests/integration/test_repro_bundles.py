"""Bundles of real failures: their scripts run alone, fail while a fault is there, and pass once it is gone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from opconform.backends.cuda import CudaHostBackend
from opconform.backends.kernels.own_buffers import SHARED
from opconform.backends.kernels.source import found_in
from opconform.backends.opencl import OpenCLBackend
from opconform.backends.vulkan import VulkanBackend
from opconform.cli import main
from opconform.harness.explain.facts import Facts
from opconform.harness.run import writing
from opconform.harness.run.backend import Backend, Device, Unavailable
from opconform.harness.run.target import Target
from opconform.reports.repro.scripts import asked, script
from tests.lacking import needs_torch
from tests.repro_samples import one_failure
from tests.samples import acc, spec

SEARCH = ("--max-examples", "300", "--seed", "1", "--also-seconds", "0", "--history", "none")

PACKAGES = (
    "`npm pack @node-llama-cpp/linux-x64-vulkan@3.15.1` (b7836, broken) or @3.16.2 (b8121, fixed), unpacked, has the "
    "folder package/bins/linux-x64-vulkan; `make setup` puts both below .cache/ggml"
)

#: Runs a script with Opconform out of reach, as it is for whoever gets the bundle.
ALONE = """
import runpy, sys
if not sys.argv[1].endswith("modules"):
    sys.modules["opconform"] = None
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder of its own; no library is taken from the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPCONFORM_GGML_LIB", raising=False)


def missing(message: str) -> None:
    """Something that this machine lacks: a failure where CI runs it, else a skip."""
    pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)


def ggml(variable: str) -> str:
    folder = os.environ.get(variable)
    if not folder:
        missing(f"{variable} is not set: {PACKAGES}")
    return str(folder)


def needs(backend: type[Backend]) -> None:
    try:
        backend.devices({})
    except Unavailable as reason:
        missing(str(reason))


def opconform(*arguments: str) -> Result:
    found = CliRunner().invoke(main, arguments)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found


def bundle_of(backend: str, op: str, *options: str) -> Path:
    """The bundle that a short search writes."""
    found = opconform("test", "--backend", backend, "--op", op, *SEARCH, *options)
    assert found.exit_code == 1, found.output
    assert "could not be" not in found.output, found.output
    (folder,) = Path("opconform-out/repro").iterdir()
    assert f"    python {folder / 'repro.py'}\n" in found.output
    return folder.absolute()


def bundle_of_case(backend: str, *options: str) -> Path:
    """The bundle of a small case, which nothing has to search for."""
    Path("mine.json").write_text(json.dumps(acc(1, 1, 1, 2).to_json()))
    written = opconform("repro", "mine.json", "--backend", backend, "--also-seconds", "0", *options)
    assert written.exit_code == 0, written.output
    (folder,) = Path("opconform-out/repro").iterdir()
    return folder.absolute()


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """repro.py on its own: copied out of its bundle, with its modules where it has some."""
    place = Path("elsewhere").absolute()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    shutil.copy(folder / "repro.py", place)
    kind = "modules" if (folder / "modules").is_dir() else "alone"
    if kind == "modules":
        shutil.copytree(folder / "modules", place / "modules")
    command = [sys.executable, "-c", ALONE, kind, str(place / "repro.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=place, timeout=120, env={**os.environ, **environment}
    )


def planted(source: str, **files: str) -> str:
    """A backend class in a file of its own, with kernels beside it: what `--backend` takes."""
    for name, text in files.items():
        file = Path(name.replace("__", "."))
        file.write_text(text)
    Path("planted.py").write_text(source)
    return "planted.py:Planted"


def broken(file: Path, right: str, wrong: str) -> str:
    """A kernel's source with one place made wrong."""
    text = file.read_text()
    assert text.count(right) == 1
    return text.replace(right, wrong)


def test_the_acc_bug_shows_in_the_broken_build_and_not_in_the_fixed_one() -> None:
    bad, good = ggml("OPCONFORM_GGML_LIB_BROKEN"), ggml("OPCONFORM_GGML_LIB_FIXED")
    folder = bundle_of("ggml:Vulkan0", "acc", "--ggml-lib", bad)
    names = {"case.json", "repro.py", "test_case.cpp", "test_case.txt", "issue.md", "map.svg", "bundle.json"}
    assert {file.name for file in folder.iterdir()} == names
    for arguments, environment, status in (
        ((), {}, 1),  # it remembers the library
        ((bad,), {}, 1),
        ((good,), {}, 0),
        ((), {"OPCONFORM_GGML_LIB": good}, 0),
        ((bad,), {"OPCONFORM_GGML_LIB": good}, 1),
        ((str(folder),), {}, 2),
        ((good, "Vulkan9"), {}, 2),
    ):
        done = run(folder, *arguments, **environment)
        assert done.returncode == status, (arguments, done.stdout, done.stderr)
    assert "at i0=0, i1=0, i2=0, i3=1: got -2, want 1" in run(folder, bad).stdout
    issue = (folder / "issue.md").read_text()
    assert issue.startswith("# ACC on Vulkan0 (b7836): wrong values with ne3 > 1\n")
    assert "(i0=0, i1=0, i2=0, i3=1), the element farthest off: expected **1**, got **-2**" in issue
    cpp = (folder / "test_case.cpp").read_text()
    assert "ggml_acc(ctx, a, b, 4, 4, 4, 0);" in cpp
    line = (folder / "test_case.txt").read_text().split()
    assert line[1:12] == ["0", "1", "1", "1", "2", "16", "4", "4", "4", "0", "0"]


def test_an_abort_of_ggml_is_caught_and_needs_no_debugger() -> None:
    good = ggml("OPCONFORM_GGML_LIB_FIXED")
    folder = bundle_of("ggml:CPU", "cumsum", "--ggml-lib", good, "--strict-supports")
    done = run(folder)
    assert done.returncode == 1
    assert "the process ended with status -6" in done.stdout
    assert not (folder / "map.svg").exists()
    issue = (folder / "issue.md").read_text()
    assert "supports_op says yes, the kernel aborts" in issue
    assert "opconform replay case.json --backend ggml:CPU --strict-supports\n" in issue


def test_a_case_that_a_device_says_yes_to_and_aborts_at_has_a_bundle_and_leaves_the_run_green() -> None:
    good = ggml("OPCONFORM_GGML_LIB_FIXED")
    done = opconform("test", "--op", "cumsum", "--backend", "ggml:CPU", "--ggml-lib", good, "--max-examples", "110")
    assert done.exit_code == 0
    assert "says yes, aborts: 1 op on ggml:CPU: cumsum-" in done.output
    (folder,) = Path("opconform-out/repro").absolute().iterdir()
    assert "the process ended with status -6" in run(folder).stdout
    issue = (folder / "issue.md").read_text()
    assert "supports_op says yes, the kernel aborts" in issue
    assert "--backend ggml:CPU --strict-supports" in issue


def test_strided_views_reach_ggml_as_they_are() -> None:
    bad, good = ggml("OPCONFORM_GGML_LIB_BROKEN"), ggml("OPCONFORM_GGML_LIB_FIXED")
    written = opconform(
        "repro", "acc/vulkan-strided-b", "--backend", "ggml:Vulkan0", "--ggml-lib", bad, "--also-seconds", "0",
        "--out", "here",
    )  # fmt: skip
    assert written.exit_code == 0
    (folder,) = Path("here").absolute().iterdir()
    assert [run(folder, library).returncode for library in (bad, good)] == [1, 0]


@pytest.mark.parametrize(
    ("op", "good", "bad"),
    [
        ("acc", "i3 * p.b_nb[3];", "i3 * p.b_nb[2];"),
        ("gated_delta_net", "(age * p.sequences", "((p.snapshots - 1 - age) * p.sequences"),
        ("gated_delta_net_chunk", "* p.chunk + column * BLOCK + j;", "* p.chunk + row * BLOCK + j;"),
    ],
    ids=["acc", "gated_delta_net", "gated_delta_net_chunk"],
)
def test_a_bug_in_an_opencl_kernel(op: str, good: str, bad: str) -> None:
    needs(OpenCLBackend)
    right = OpenCLBackend.kernels / f"{op}.cl"
    source = """
from pathlib import Path
from opconform.backends.opencl import OpenCLBackend

class Planted(OpenCLBackend):
    kernels = Path(__file__).parent
"""
    folder = bundle_of(planted(source, **{f"{op}__cl": broken(right, good, bad)}), op)
    assert bad in (folder / "repro.py").read_text()
    assert [run(folder).returncode, run(folder, str(right)).returncode] == [1, 0]


@pytest.mark.parametrize(
    ("op", "good", "bad"),
    [
        ("acc", "i[3] * b_nb[3];", "i[3] * b_nb[2];"),
        ("gated_delta_net", "(age * sequences", "((snapshots - 1 - age) * sequences"),
        ("gated_delta_net_chunk", "* chunk_size + column * BLOCK + j);", "* chunk_size + row * BLOCK + j);"),
    ],
    ids=["acc", "gated_delta_net", "gated_delta_net_chunk"],
)
def test_a_bug_in_a_vulkan_shader(op: str, good: str, bad: str) -> None:
    needs(VulkanBackend)
    right = VulkanBackend.kernels / f"{op}.comp"
    source = """
from pathlib import Path
from opconform.backends.vulkan import VulkanBackend

class Planted(VulkanBackend):
    kernels = Path(__file__).parent
"""
    folder = bundle_of(planted(source, **{f"{op}__comp": broken(right, good, bad)}), op)
    assert bad in (folder / "repro.py").read_text()
    assert [run(folder).returncode, run(folder, str(right)).returncode] == [1, 0]


@pytest.mark.parametrize(
    ("file", "good", "bad", "says"),
    [
        ("acc.cl", "i3 * p.b_nb[3];", "i3 * p.b_nb[2];", ""),
        ("gated_delta_net_chunk.cl", "* p.chunk + column * BLOCK + j;", "* p.chunk + row * BLOCK + j;", ""),
        ("cumsum.cu", "        __syncthreads();  // all have read the carry", "//", "data race: thread"),
    ],
    ids=["acc", "gated_delta_net_chunk", "cumsum"],
)
def test_a_bug_in_a_cuda_kernel(file: str, good: str, bad: str, says: str) -> None:
    needs(CudaHostBackend)
    op, right = Path(file).stem, found_in((CudaHostBackend.kernels, SHARED), file)
    source = """
from pathlib import Path
from opconform.backends.cuda import CudaHostBackend

class Planted(CudaHostBackend):
    kernels = Path(__file__).parent
"""
    folder = bundle_of(planted(source, **{file.replace(".", "__"): broken(right, good, bad)}), op)
    assert bad in (folder / "repro.py").read_text()
    wrong, mended = run(folder), run(folder, str(right))
    assert [wrong.returncode, mended.returncode] == [1, 0], wrong.stderr + mended.stderr
    assert says in wrong.stderr


def test_the_script_for_cuda_says_that_it_takes_a_gpu() -> None:
    where = Target("cuda", Device("0", "a GPU"), {})
    facts = Facts(one_failure(where), where)
    Path("repro.py").write_text(script(facts, asked(facts)))
    Path("cupy.py").write_text(NO_DRIVER)
    done = subprocess.run([sys.executable, "repro.py"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "cannot be tried: CUDA finds no device: no driver" in done.stderr


NO_DRIVER = """
class cuda:
    class runtime:
        CUDARuntimeError = RuntimeError

        def getDeviceCount():
            raise RuntimeError("no driver")
"""

TORCH = """
import torch
from opconform.backends.torch import TorchBackend

SIGN = 1

def along(case, x):
    return x.ndim - 1 - int(case.params["axis"])

def cumsum(case, tensors):
    x = tensors["x"]
    x = x.as_strided(x.shape, torch.empty(x.shape).stride(), x.storage_offset())  # as if packed
    axis = along(case, x)
    if case.params["exclusive"]:
        x = torch.cat((torch.zeros_like(x.narrow(axis, 0, 1)), x.narrow(axis, 0, x.shape[axis] - 1)), axis)
    return SIGN * torch.cumsum(x, axis)

class Planted(TorchBackend):
    ops = {**TorchBackend.ops, "cumsum": cumsum}

    def supports(self, case):
        return "no" if case.params["reverse"] or 0 in case.inputs["x"].shape else None
"""


def test_a_stride_bug_in_a_torch_function() -> None:
    needs_torch()
    folder = bundle_of(planted(TORCH), "cumsum")
    assert not (folder / "modules").exists()
    assert run(folder).returncode == 1
    text = (folder / "repro.py").read_text()
    assert "def along(case, x):" in text
    (line,) = [line for line in text.splitlines() if line.endswith("# as if packed")]
    (folder / "repro.py").write_text(text.replace(f"{line}\n", ""))
    assert run(folder).returncode == 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("AbortsOnNe3", "the process ended with status -6"),
        ("Segfaults", "the process ended with status -11"),
        ("ExitsQuietly", "the process ended with status 3"),
        ("Raises", "RuntimeError: CL_OUT_OF_RESOURCES"),
        ("IgnoresNe3", "1 of 2 elements are wrong"),
    ],
)
def test_the_way_that_a_backend_of_ones_own_fails(name: str, says: str) -> None:
    folder = bundle_of_case(spec(name))
    done = run(folder)
    assert done.returncode == 1
    assert says in done.stdout + done.stderr
    own = folder / "modules" / "sample.py"
    own.write_text(f"{own.read_text()}\n\nclass {name}(Good):\n    pass\n")
    assert run(folder).returncode == 0


OWN = """
import ctypes
import os
import time
from opconform import Backend, CannotWriteError, Script

class Planted(Backend):
    def supports(self, case):
        return None if case.op == "acc" else "no"

    def run(self, case, buffers):
        buffers.arrays["out"][...] = 1

    @classmethod
    def script(cls, request):
        {body}
"""
WRITES = r"""return Script(
            "def run(memory):\n    at(memory, 'out')[...] = VALUE\n    return memory\n",
            needs="numpy; it was seen on " + request.about,
            usage="    MINE=1 python repro.py",
            imports=("import os", "from pathlib import Path"),
            constants="VALUE = float(Path(__file__).with_name('value.txt').read_text() or os.environ['MINE'])",
            files={"value.txt": b"1"},
            command="MINE=1 python repro.py",
            runs_with="nothing \u202e<b>",
        )"""


def test_a_backend_of_ones_own_writes_its_own_script() -> None:
    folder = bundle_of(planted(OWN.format(body=WRITES)), "acc")
    assert {"repro.py", "value.txt", "issue.md"} <= {file.name for file in folder.iterdir()}
    assert not (folder / "modules").exists()
    text = (folder / "repro.py").read_text()
    assert text.count("import os\n") == 1
    assert "\n    MINE=1 python repro.py\n" in text
    issue = (folder / "issue.md").read_text()
    assert "MINE=1 python repro.py" in issue
    assert "\u202e" not in issue + text
    done = subprocess.run([sys.executable, "repro.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "elements are wrong" in done.stdout


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise KeyError('acc')", "Planted.script raises KeyError: 'acc'."),
        ("raise CannotWriteError('it takes a licence')", "There is no `repro.py` for this case: it takes a licence."),
        ("return {'run': 'def run(memory): return memory'}", "Planted.script gives dict, not a Script."),
        ("return Script('def run(memory) return memory')", "gives for a script is no Python: "),
        ("return Script('run = 3')", "gives for a script has no function run."),
        ("return Script('', files={'../../mine': b''})", "gives a Script that cannot be used: it has a file "),
        ("return Script('', files={'issue.md': b''})", "gives a Script that cannot be used: it has a file issue.md, "),
        ("ctypes.string_at(0)", "ended its process with signal 11 instead of writing a script"),
        ("time.sleep(600)", "takes more than 3 s to write a script."),
    ],
    ids=["raises", "says no", "no Script", "no Python", "no run", "leaves the bundle", "overwrites", "dies", "hangs"],
)
def test_a_script_that_goes_wrong_leaves_the_rest(body: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SECONDS", 3.0)
    planted(OWN.format(body=body))
    Path("mine.json").write_text(json.dumps(acc(1, 1, 1, 2).to_json()))
    arguments = ("mine.json", "--backend", "planted.py:Planted", "--also-seconds", "0")
    replayed = opconform("replay", *arguments, "--history", "none")
    assert replayed.exit_code == 1
    assert "WRONG VALUES  acc on planted.py:Planted:0" in replayed.output
    written = opconform("repro", *arguments)
    assert written.exit_code == 0, written.output
    assert "Traceback" not in written.output
    (folder,) = Path("opconform-out/repro").iterdir()
    names = {file.name for file in folder.iterdir()}
    assert {"case.json", "issue.md", "map.svg", "bundle.json", "test_case.cpp"} <= names
    assert "repro.py" not in names
    (line,) = [line for line in (folder / "issue.md").read_text().splitlines() if "There is no `repro.py`" in line]
    assert says in line


def test_a_hang_ends_after_its_time() -> None:
    folder = bundle_of_case(spec("SleepsAlways"), "--time-limit", "1")
    done = run(folder, REPRO_SECONDS="2")
    assert done.returncode == 1
    assert "it did not end within 2 seconds" in done.stdout


def test_a_backend_that_is_wrong_now_and_then() -> None:
    done = run(bundle_of(spec("Flaky"), "acc"))
    assert done.returncode == 1
    assert "different results of 50 runs" in done.stdout


@pytest.mark.parametrize(
    ("name", "check"),
    [("Jitters", "deterministic"), ("SumsByBatch", "batch_invariant"), ("SumsByLayout", "layout_invariant")],
)
def test_what_a_check_on_request_compares(name: str, check: str) -> None:
    folder = bundle_of(spec(name), "cumsum", "--check", check)
    assert (
        f"opconform replay case.json --backend sample.py:{name}:0 --check {check}" in (folder / "issue.md").read_text()
    )
    replay = ("replay", str(folder / "case.json"), "--backend", spec(name), "--history", "none", "--also-seconds", "0")
    if check != "deterministic":  # which two runs alone need not show
        assert [opconform(*replay, "--check", check).exit_code, opconform(*replay).exit_code] == [1, 0]
    assert run(folder).returncode == 1
    own = folder / "modules" / "sample.py"
    own.write_text(f"{own.read_text()}\n\nclass {name}(Good):\n    pass\n")
    assert run(folder).returncode == 0


def test_a_case_in_a_bundle_replays() -> None:
    folder = bundle_of_case(spec("IgnoresNe3"))
    case = str(folder / "case.json")
    assert opconform("replay", case, "--backend", spec("IgnoresNe3"), "--history", "none").exit_code == 1
    assert opconform("replay", case, "--backend", spec("Good"), "--history", "none").exit_code == 0


def test_the_command_writes_nothing_for_a_case_that_passes() -> None:
    found = opconform("repro", "acc/kb001", "--backend", spec("Good"))
    assert found.exit_code == 1
    assert f"acc/kb001 passes on {spec('Good')}:0" in found.output
    assert not Path("opconform-out/repro").exists()


def test_the_command_needs_a_backend() -> None:
    found = opconform("repro", "acc/kb001")
    assert found.exit_code == 2
    assert "opconform repro needs --backend" in found.output


def test_bundles_can_be_turned_off_and_put_elsewhere() -> None:
    arguments = ("test", "--backend", spec("IgnoresNe3"), "--op", "acc", *SEARCH, "--repro-dir")
    found = opconform(*arguments, "none")
    assert found.exit_code == 1
    assert not Path("opconform-out/repro").exists()
    assert "repro.py" not in found.output
    found = opconform(*arguments, "my bundles")
    (folder,) = Path("my bundles").iterdir()
    assert f"    python '{folder}/repro.py'\n" in found.output


def test_a_folder_that_cannot_be_written_does_not_hide_the_failure() -> None:
    Path("taken").touch()
    found = opconform("test", "--backend", spec("IgnoresNe3"), "--op", "acc", *SEARCH, "--repro-dir", "taken")
    assert found.exit_code == 1
    assert "could not be written: " in found.output
    assert "WRONG VALUES  acc on " in found.output


def test_a_pytest_run_writes_bundles_too() -> None:
    Path("test_mine.py").write_text("from opconform.conformance import *\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--backend", spec("IgnoresNe3")]
    done = subprocess.run([*command, "--op", "acc", *SEARCH], capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    (folder,) = Path("opconform-out/repro").iterdir()
    assert f"python {folder / 'repro.py'}" in done.stdout
    assert json.loads((folder / "bundle.json").read_text())["target"] == "sample.py:IgnoresNe3:0"
