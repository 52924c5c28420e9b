"""What the checkers' logs say, and what becomes of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from opconform.backends.cuda import sanitizer as cuda
from opconform.backends.opencl import sanitizer as opencl
from opconform.backends.vulkan import sanitizer as vulkan
from opconform.harness.model.case import Case
from opconform.harness.model.findings import Kind
from opconform.harness.model.layouts import Layout
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Backend, Unavailable
from opconform.harness.run.sanitizer import Complaint, Excuse, Sanitizer, size_of, written
from opconform.options import settings_from

LAYOUT = Layout.contiguous("f32", (1, 1, 1, 4))
CASE = Case("cumsum", {"axis": 0, "exclusive": False, "reverse": False}, {"x": LAYOUT}, {"out": LAYOUT})

OCLGRIND = """
Invalid write of size 4 at global memory address 0x2000000000200
\tKernel: cumsum
\tEntity: Global(127,0,0) Local(63,0,0) Group(1,0,0)
\t  store float 1.000000e+00, float addrspace(1)* %arrayidx15, align 4
\tAt line 8 (column 26) of cumsum.cl:
\t  another line

Read-write data race at local memory address 0x1000000000000
\tKernel: cumsum

\tFirst entity:  Global(63,0,0) Local(63,0,0) Group(0,0,0)
\t  %5 = load float, float addrspace(3)* %arrayidx6, align 4
\tAt line 7 (column 12) of cumsum.cl:
\t  another line

\tSecond entity: Global(0,0,0) Local(0,0,0) Group(0,0,0)
\t  store float %2, float addrspace(3)* %arrayidx4, align 4
\tAt line 6 (column 11) of cumsum.cl:
\t  another line

Uninitialized value written to global memory address 0x2000000000000
\tKernel: cumsum
\tEntity: Global(0,0,0) Local(0,0,0) Group(0,0,0)
\t  store float %t.0, float addrspace(1)* %arrayidx19, align 4
\tAt line 9 (column 10) of cumsum.cl:
\t  another line

Oclgrind: 12 errors
"""


def test_oclgrinds_messages_have_a_kind_a_kernel_and_lines(tmp_path: Path) -> None:
    """The line that it quotes is the file's own: Oclgrind counts the lines of included files too."""
    lines = [
        "",
        "",
        "",
        "",
        "",
        "tile[l] = x[i];",
        "  out[i] = tile[(l + 1) % 64];",
        "if (i == n - 1) out[n] = 1.0f;",
        "out[i] = t;",
    ]
    (tmp_path / "cumsum.cl").write_text("\n".join(lines))
    assert opencl.complaints((tmp_path,), OCLGRIND, CASE) == [
        Complaint(
            Kind.OUT_OF_BOUNDS,
            "Invalid write of size 4 at global memory, kernel cumsum: if (i == n - 1) out[n] = 1.0f;",
            "cumsum.cl:8",
        ),
        Complaint(
            Kind.DATA_RACE,
            "Read-write data race at local memory, kernel cumsum: out[i] = tile[(l + 1) % 64];",
            "cumsum.cl:7 and cumsum.cl:6",
        ),
        Complaint(
            Kind.UNINITIALISED_READ,
            "Uninitialized value written to global memory, kernel cumsum: out[i] = t;",
            "cumsum.cl:9",
        ),
    ]


LAYER = "".join(
    (
        "VUID-vkCmdDispatch-None-02706(ERROR / SPEC): msgNum: -1660035578 - Validation Error: ",
        "[ VUID-vkCmdDispatch-None-02706 ] Object 0: handle = 0x55a0, type = VK_OBJECT_TYPE_QUEUE; ",
        "| MessageID = 0x9d0dde06 | Descriptor index 0 access out of bounds. Descriptor size is 65536 and highest ",
        "byte accessed was 400001027 Command buffer (0x55a0). Compute Dispatch Index 0. Shader validation error ",
        "occurred in file <stdin> at line 46.Unable to find suitable #line directive in SPIR-V OpSource. ",
        "The Vulkan spec states: …\n",
        "    Objects: 1\n        [0] 0x55a015e73dc8, type: 4, name: NULL\n",
        "SYNC-HAZARD-WRITE-AFTER-WRITE(ERROR / SPEC): msgNum: 1544472022 - Validation Error: ",
        "[ SYNC-HAZARD-WRITE-AFTER-WRITE ] Object 0: handle = 0x60000000006, type = VK_OBJECT_TYPE_BUFFER; ",
        "| MessageID = 0x5c0ec5d6 | vkCmdDispatch: Hazard WRITE_AFTER_WRITE for VkBuffer 0x60000000006[] ",
        "in VkCommandBuffer 0x55b5[].\n    Objects: 1\n",
        "VUID-VkBufferCreateInfo-size-00912(ERROR / SPEC): msgNum: 1 - Validation Error: ",
        "[ VUID-VkBufferCreateInfo-size-00912 ] Object 0: handle = 0x5, type = VK_OBJECT_TYPE_DEVICE; ",
        "| MessageID = 0x1 | size is 0\n",
    )
)


def test_the_layer_names_an_included_file() -> None:
    (bounds, *_) = vulkan.complaints(LAYER.replace("<stdin> at line 46", "memory.glsl at line 62"), CASE)
    assert bounds.where == "or shortly after memory.glsl:62"


def test_the_layers_messages_have_a_kind_and_a_line() -> None:
    bounds, hazard, misuse = vulkan.complaints(LAYER, CASE)
    assert (bounds.kind, bounds.where) == ("OUT OF BOUNDS", "or shortly after cumsum.comp:46")
    assert bounds.says.endswith(
        "access out of bounds. Descriptor size is 65536 and highest byte accessed was 400001027"
    )
    assert hazard == Complaint(
        Kind.DATA_RACE,
        "SYNC-HAZARD-WRITE-AFTER-WRITE: vkCmdDispatch: Hazard WRITE_AFTER_WRITE for VkBuffer in VkCommandBuffer.",
    )
    assert misuse == Complaint(Kind.API_MISUSE, "VUID-VkBufferCreateInfo-size-00912: size is 0")


NEWER_LAYER = """\
Validation Warning: [ WARNING-GPU-Assisted-Validation ] | MessageID = 0x24b5c69f
vkCreateDevice(): Internal Warning: Forcing shaderInt64 to VK_TRUE
Objects: 1
    [0] VkInstance 0x3c70a450

Validation Error: [ VUID-vkCmdDispatch-storageBuffers-06936 ] | MessageID = 0xace7baff
vkCmdDispatch(): (set = 0, binding = 0, index 0)  access out of bounds. The descriptor buffer (VkBuffer 0x80000000008) \
size is 1536 bytes, 1536 bytes were bound, and the highest out of bounds access was at [3601027] bytes
Stage = Compute.  Global invocation ID (x, y, z) = (0, 0, 0)
Command buffer (0x392a4180)
	Compute Dispatch Index 0
SPIR-V Instruction Index = 458
Shader validation error occurred at <stdin>:50

        sum += uintBitsToFloat(words[from / 4]) + uintBitsToFloat(words[to / 4 + 900000]);
The Vulkan spec states: If any stage of the VkPipeline object bound to the pipeline bind point …
Objects: 2
    [0] VkQueue 0x377141b0
    [1] VkCommandBuffer 0x392a4180

Validation Error: [ SYNC-HAZARD-WRITE-AFTER-WRITE ] | MessageID = 0x5c0ec5d6
vkCmdDispatch(): WRITE_AFTER_WRITE hazard detected. vkCmdDispatch writes to VkBuffer 0x80000000008, which was \
previously written by vkCmdCopyBuffer.
Buffer copy region 0: {
  size = 256
}

Objects: 1
    [0] VkCommandBuffer 0x3c80f410
"""


def test_the_messages_of_newer_layers_are_read_too() -> None:
    about_itself, bounds, hazard = vulkan.complaints(NEWER_LAYER, CASE)
    assert about_itself.says.startswith("WARNING-GPU-Assisted-Validation: vkCreateDevice(): Internal Warning: Forcing")
    assert bounds == Complaint(
        Kind.OUT_OF_BOUNDS,
        "VUID-vkCmdDispatch-storageBuffers-06936: vkCmdDispatch(): (set = 0, binding = 0, index 0) access out of "
        "bounds. The descriptor buffer (VkBuffer) size is 1536 bytes, 1536 bytes were bound, and the highest out of "
        "bounds access was at [3601027] bytes",
        "or shortly after cumsum.comp:50",
    )
    assert hazard.kind == "DATA RACE"
    assert hazard.says.startswith(
        "SYNC-HAZARD-WRITE-AFTER-WRITE: vkCmdDispatch(): WRITE_AFTER_WRITE hazard detected. vkCmdDispatch writes to "
        "VkBuffer, which was previously written by vkCmdCopyBuffer."
    )
    sanitizer = Sanitizer("the layer", lambda log: ((), {}), vulkan.complaints, vulkan.EXCUSES)
    assert [finding.kind for finding in sanitizer.findings(NEWER_LAYER, CASE)] == ["OUT OF BOUNDS", "DATA RACE"]


CUDA = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at 0x70 in /tmp/x/cumsum.cu:31:cumsum(float *)
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x7f0000 is out of bounds
=========
========= Error: Race reported between Write access at 0x60 in /tmp/x/cumsum.cu:20:cumsum(float *)
=========     and Read access at 0x80 in /tmp/x/cumsum.cu:22:cumsum(float *) [4 hazards]
========= Uninitialized __global__ memory read of size 4 bytes
=========     at 0x90 in /tmp/x/cumsum.cu:24:cumsum(float *)
========= ERROR SUMMARY: 3 errors
"""


def test_compute_sanitizers_messages_have_a_kind_and_lines() -> None:
    assert [(found.kind, found.where) for found in cuda.complaints(CUDA, CASE)] == [
        ("OUT OF BOUNDS", "cumsum.cu:31"),
        ("DATA RACE", "cumsum.cu:20 and cumsum.cu:22"),
        ("UNINITIALISED READ", "cumsum.cu:24"),
    ]


def checker(complaints: Sequence[Complaint], *excuses: Excuse) -> Sanitizer:
    return Sanitizer("Checker", lambda log: ((), {}), lambda log, case: list(complaints), excuses)


def test_the_same_complaint_is_one_finding() -> None:
    twice = [Complaint(Kind.DATA_RACE, "a race", "f.cl:3"), Complaint(Kind.DATA_RACE, "another", "f.cl:3")]
    (finding,) = checker(twice).findings("", CASE)
    assert (finding.kind, finding.detail) == ("DATA RACE", "Checker: a race, at f.cl:3 (2 times)")


def test_a_complaint_about_the_driver_is_excused_and_others_are_not() -> None:
    own, driver = Complaint(Kind.API_MISUSE, "the kernel's"), Complaint(Kind.API_MISUSE, "the driver's")
    excuse = Excuse("^the driver", "it is the driver", "https://example.com")
    assert [found.detail for found in checker([driver, own], excuse).findings("", CASE)] == ["Checker: the kernel's"]


def test_each_excuse_has_a_reason_and_a_link() -> None:
    assert all(excuse.reason and excuse.link.startswith("https://") for excuse in vulkan.EXCUSES)


@pytest.mark.parametrize("missing", [partial(opencl.oclgrind, ()), cuda.compute_sanitizer], ids=["oclgrind", "cuda"])
def test_a_checker_that_is_missing_says_how_to_get_it(missing: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(Unavailable, match=r"apt-get install oclgrind|comes with the CUDA toolkit"):
        missing()  # type: ignore[operator]


def test_an_unknown_tool_of_compute_sanitizer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike) -> None:
    program = os.path.join(tmp_path, "compute-sanitizer")
    with open(program, "w") as file:
        file.write("#!/bin/sh\n")
    os.chmod(program, 0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cuda.compute_sanitizer().start("x.log")[0][1:5] == ("--tool", "memcheck", "--log-file", "x.log")
    monkeypatch.setenv(cuda.TOOL, "guesscheck")
    with pytest.raises(Unavailable, match="must be one of memcheck, racecheck"):
        cuda.compute_sanitizer()


def test_a_backend_without_a_checker_says_so() -> None:
    class Mine(Backend):
        name = "mine"

    with pytest.raises(Unavailable, match="the backend mine has no checker"):
        Mine.sanitizer()


def test_a_log_is_read_from_where_it_was_and_never_more_than_a_mebibyte(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\nnow\n")
    assert written(str(log), 7) == ("now\n", 11)
    assert written(str(log), 11) == ("", 11)
    assert written(str(log), 10**30) == ("", 11)
    log.write_bytes(b"x" * (5 << 20) + b"the end")
    said, size = written(str(log), 7)
    assert size == size_of(str(log)) == (5 << 20) + 7
    assert len(said) == 1 << 20
    assert said.endswith("xthe end")


def test_a_log_that_is_gone_or_is_a_pipe_holds_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert written(str(tmp_path / "pipe"), 0) == ("", 0)
    assert written(str(tmp_path / "none"), 3) == ("", 0)
    assert size_of(str(tmp_path / "none")) == 0


def test_sanitized_cases_are_small_unless_asked_for() -> None:
    assert settings_from({"sanitize": True}).max_bytes == 16 << 10
    assert settings_from({"sanitize": True}).seconds == 60
    assert settings_from({}).seconds is None
    assert settings_from({"sanitize": True, "max_bytes": "1M"}).max_bytes == 1 << 20
    with pytest.raises(UsageError, match="--no-isolation has none"):
        settings_from({"sanitize": True, "no_isolation": True})
