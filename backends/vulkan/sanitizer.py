"""Vulkan under the Khronos validation layer, with GPU-assisted and synchronization validation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from opconform.harness.model.case import Case
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.sanitizer import Complaint, Excuse, Sanitizer

LAYER = "VK_LAYER_KHRONOS_validation"
REMEDY = "apt-get install vulkan-validationlayers"
_LONGEST = 300  #: characters of a message that are kept
_MANIFESTS = ("/usr/share", "/usr/local/share", "/etc", str(Path.home() / ".local/share"))
_ENABLES = ("SYNCHRONIZATION_VALIDATION", "GPU_ASSISTED", "GPU_ASSISTED_RESERVE_BINDING_SLOT")

#: What the layer's message is about, by the identifier that heads it.
_KINDS = (
    (re.compile(r"SYNC-HAZARD"), "DATA RACE"),
    (re.compile(r"access out of bounds|out of bounds"), "OUT OF BOUNDS"),
    (re.compile(r"uninitialized"), "UNINITIALISED READ"),
)

#: What the layer says of itself, or of how Kompute uses the API, and not of a kernel.
EXCUSES = (
    Excuse(
        r"^(UNASSIGNED-(GPU-Assisted|khronos-validation|BestPractices)|WARNING-)|Internal Warning|Setup Error",
        "the layer speaks of its own set-up",
        "https://github.com/KhronosGroup/Vulkan-ValidationLayers/blob/main/docs/gpu_av.md",
    ),
)


def validation_layer() -> Sanitizer:
    """The checker. Raises `Unavailable` where the layer is not installed."""
    folders = (Path(root) / "vulkan/explicit_layer.d" for root in _MANIFESTS)
    found = (file for folder in folders for file in folder.glob("*.json") if LAYER in file.read_text(errors="replace"))
    manifest = next(found, None)
    if manifest is None:
        raise Unavailable(f"{LAYER}, which checks Vulkan, is not installed", REMEDY)
    return Sanitizer(
        "the validation layer",
        partial(_start, str(manifest.parent)),
        complaints,
        EXCUSES,
        cannot="a barrier missing inside a shader, a race between invocations, shared memory out of bounds, an access "
        "that stays inside the storage buffer, which holds all arguments (their guards find that)",
    )


def _start(layers: str, log: str) -> tuple[tuple[str, ...], Mapping[str, str]]:
    settings = {
        "debug_action": "VK_DBG_LAYER_ACTION_LOG_MSG",
        "log_filename": log,
        "report_flags": "error,warn",
        "duplicate_message_limit": "0",
        "enables": ",".join(f"VK_VALIDATION_FEATURE_ENABLE_{name}_EXT" for name in _ENABLES),
    }
    file = Path(f"{log}.settings.txt")
    file.write_text("".join(f"khronos_validation.{name} = {value}\n" for name, value in settings.items()))
    return (), {"VK_INSTANCE_LAYERS": LAYER, "VK_LAYER_PATH": layers, "VK_LAYER_SETTINGS_PATH": str(file)}


def complaints(log: str, case: Case) -> list[Complaint]:
    """What the layer's log says: a message is one line that its identifier heads, and lines that are set in."""
    found = []
    for message in re.findall(r"^\S.*$", log, re.MULTILINE):
        head = re.match(r"([\w-]+)\((\w+)", message)
        if head is None:
            continue
        kind = next((kind for pattern, kind in _KINDS if pattern.search(message)), "API MISUSE")
        source = re.search(r"Shader validation error occurred in file (\S+) at line (\d+)", message)
        told = message.rsplit("| MessageID", 1)[-1].partition("|")[2] or message
        told = re.split(r"Command buffer|Unable to find SPIR-V|Shader validation error|The Vulkan spec states", told)[0]
        told = re.sub(r"\b(VkBuffer|VkCommandBuffer|VkPipeline|VkDescriptorSet) 0x[0-9a-f]+\[\]", r"\1", told)
        says = f"{head[1]}: {' '.join(told.split())[:_LONGEST]}"
        found.append(Complaint(kind, says, f"or shortly after {_file(source[1], case)}:{source[2]}" if source else ""))
    return found


def _file(name: str, case: Case) -> str:
    """A file as `#line` names it; what stands before the first include has no name but that of what glslc was given."""
    return f"{case.op}.comp" if name.startswith(("<", "-")) else name
