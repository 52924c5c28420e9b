"""Vulkan under the Khronos validation layer, with GPU-assisted and synchronization validation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from opconform.harness.model.case import Case
from opconform.harness.model.findings import Kind
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.sanitizer import Complaint, Excuse, Sanitizer

LAYER = "VK_LAYER_KHRONOS_validation"
REMEDY = "apt-get install vulkan-validationlayers"
_LONGEST = 300  #: characters of a message that are kept
_MANIFESTS = ("/usr/share", "/usr/local/share", "/etc", str(Path.home() / ".local/share"))
_ENABLES = ("SYNCHRONIZATION_VALIDATION", "GPU_ASSISTED", "GPU_ASSISTED_RESERVE_BINDING_SLOT")

#: The line that begins a message. Up to Vulkan 1.3 the layer writes "ID(ERROR / SPEC): … - Validation Error: [ ID ] … |
#: MessageID = 0x1 | text"; from 1.4 on it writes "Validation Error: [ ID ] | MessageID = 0x1" and puts the text below.
_HEAD = re.compile(r"^(?:\S.* - )?Validation [\w ]+: \[ ([\w-]+) \]", re.MULTILINE)
#: What follows the text of a message, and is not told.
_REST = re.compile(
    r"Command buffer|Unable to find SPIR-V|Shader validation error|The Vulkan spec states|Stage = |Objects: \d"
)
_PLACE = re.compile(
    r"Shader validation error occurred[^|]*?(?:in file (\S+) at line (\d+)|at (\S+):(\d+)|at line (\d+))"
)
_HANDLE = re.compile(r"\b(VkBuffer|VkCommandBuffer|VkPipeline|VkDescriptorSet) 0x[0-9a-f]+(?:\[\])?")

#: What the layer's message is about, by the identifier that heads it.
_KINDS = (
    (re.compile(r"SYNC-HAZARD"), Kind.DATA_RACE),
    (re.compile(r"access out of bounds|out of bounds"), Kind.OUT_OF_BOUNDS),
    (re.compile(r"uninitialized"), Kind.UNINITIALISED_READ),
)

#: What the layer says of itself, or of how Kompute uses the API, and not of a kernel.
EXCUSES = (
    Excuse(
        r"^(UNASSIGNED-(GPU-Assisted|khronos-validation|BestPractices)|WARNING-|VALIDATION-SETTINGS)"
        r"|Internal Warning|Setup Error",
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
        # Newer layers call the same settings differently, and see what a shader accesses only where they are asked to.
        "enable_message_limit": "false",
        "validate_sync": "true",
        "syncval_shader_accesses_heuristic": "true",
        "gpuav_enable": "true",
    }
    file = Path(f"{log}.settings.txt")
    file.write_text("".join(f"khronos_validation.{name} = {value}\n" for name, value in settings.items()))
    # The environment turns the layer on: not every build of Kompute does.
    return (), {"VK_INSTANCE_LAYERS": LAYER, "VK_LAYER_PATH": layers, "VK_LAYER_SETTINGS_PATH": str(file)}


def complaints(log: str, case: Case) -> list[Complaint]:
    """What the layer's log says."""
    found = []
    heads = list(_HEAD.finditer(log))
    for head, end in zip(heads, [*(following.start() for following in heads[1:]), len(log)]):
        message = log[head.start() : end]
        kind = next((kind for pattern, kind in _KINDS if pattern.search(message)), Kind.API_MISUSE)
        place = _place(message, case)
        told = _REST.split(re.split(r"\| MessageID = \w+\s*\|?", message, maxsplit=1)[-1])[0]
        told = " ".join(_HANDLE.sub(r"\1", told).split())
        says = f"{head[1]}: {told[:_LONGEST]}"
        found.append(Complaint(kind, says, f"or shortly after {place}" if place else ""))
    return found


def _place(message: str, case: Case) -> str:
    """The file and line that a message names, "" where it names none. The file is what `#line` calls it; what stands
    before the first include has no name but that of what glslc was given."""
    found = _PLACE.search(message)
    if found is None:
        return ""
    file, line = found[1] or found[3], found[2] or found[4]
    return f"{f'{case.op}.comp' if file.startswith(('<', '-')) else file}:{line}"
