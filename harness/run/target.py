"""A device to test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from opconform.harness.run.backend import Device


@dataclass(frozen=True)
class Target:
    """A device to test: the backend's spec, the device, the options it is opened with, and the user's alias for it."""

    spec: str
    device: Device
    options: Mapping[str, str] = field(default_factory=dict)
    alias: str = ""

    @property
    def label(self) -> str:
        """What `--backend` takes: `ggml:Vulkan0`, or `ggml:Vulkan0@pinned`."""
        return f"{self.spec}:{self.device.id}{f'@{self.alias}' if self.alias else ''}"

    @property
    def about(self) -> str:
        """One line on the device: its name, driver and versions."""
        versions = ", ".join(f"{name} {value}" for name, value in self.device.versions.items())
        return f"{self.device.description} ({versions})" if versions else self.device.description
