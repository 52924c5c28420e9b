"""Vulkan: plain compute shaders of this project, dispatched with Kompute."""

from opconform.backends.vulkan.backend import VulkanBackend

__all__ = ["VulkanBackend"]
