"""A device to test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from opconform.harness.model.builds import Build
from opconform.harness.model.text import printable
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
        return printable(
            f"{self.device.description} ({self.build})" if self.build.versions else self.device.description
        )

    @property
    def build(self) -> Build:
        """What tells this device from the same one with another driver, library or build."""
        return Build.of(self.device.versions)
