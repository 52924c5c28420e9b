"""The Vulkan devices of this machine, asked of the loader itself.

Kompute tells a device's name and little else, and its manager crashes the process where there is no driver at all;
so the list comes from libvulkan, through the four calls that enumerate devices.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, byref, c_char, c_char_p, c_uint8, c_uint32, c_void_p, cast
from dataclasses import dataclass

from opconform.harness.run.backend import Unavailable

_REMEDY = "apt-get install mesa-vulkan-drivers libvulkan1"
_API_1_1 = 1 << 22 | 1 << 12  #: VK_API_VERSION_1_1, what Kompute asks for


@dataclass(frozen=True)
class Physical:
    """A physical device: its name, Vulkan version and driver, the most bytes a shader's buffer may have, and
    how many nanoseconds a step of its clock lasts."""

    name: str
    api: str
    driver: str
    max_buffer: int
    tick: float = 1.0


class _ApplicationInfo(ctypes.Structure):
    _fields_ = [
        ("sType", c_uint32), ("pNext", c_void_p), ("pApplicationName", c_char_p), ("applicationVersion", c_uint32),
        ("pEngineName", c_char_p), ("engineVersion", c_uint32), ("apiVersion", c_uint32),
    ]  # fmt: skip


class _InstanceCreateInfo(ctypes.Structure):
    _fields_ = [
        ("sType", c_uint32), ("pNext", c_void_p), ("flags", c_uint32), ("pApplicationInfo", POINTER(_ApplicationInfo)),
        ("enabledLayerCount", c_uint32), ("ppEnabledLayerNames", c_void_p),
        ("enabledExtensionCount", c_uint32), ("ppEnabledExtensionNames", c_void_p),
    ]  # fmt: skip


class _DriverProperties(ctypes.Structure):
    _fields_ = [
        ("sType", c_uint32), ("pNext", c_void_p), ("driverID", c_uint32),
        ("driverName", c_char * 256), ("driverInfo", c_char * 256), ("conformanceVersion", c_uint8 * 4),
    ]  # fmt: skip


class _DeviceProperties(ctypes.Structure):
    """VkPhysicalDeviceProperties2 up to the first limits; `rest` is room for all that follows."""

    _fields_ = [
        ("sType", c_uint32), ("pNext", c_void_p), ("apiVersion", c_uint32), ("driverVersion", c_uint32),
        ("vendorID", c_uint32), ("deviceID", c_uint32), ("deviceType", c_uint32), ("deviceName", c_char * 256),
        ("pipelineCacheUUID", c_uint8 * 16), ("padding", c_uint32), ("limits", c_uint32 * 8), ("rest", c_uint8 * 1024),
    ]  # fmt: skip


class _LayerProperties(ctypes.Structure):
    _fields_ = [
        ("layerName", c_char * 256), ("specVersion", c_uint32), ("implementationVersion", c_uint32),
        ("description", c_char * 256),
    ]  # fmt: skip


def layers() -> list[str]:
    """The instance layers that the loader finds."""
    vulkan = _loader()
    count = c_uint32()
    vulkan.vkEnumerateInstanceLayerProperties(byref(count), None)
    found = (_LayerProperties * count.value)()
    vulkan.vkEnumerateInstanceLayerProperties(byref(count), found)
    return [layer.layerName.decode(errors="replace") for layer in found[: count.value]]


_MAX_STORAGE_BUFFER_RANGE = 7  #: its place among VkPhysicalDeviceLimits
_TIMESTAMP_PERIOD = 424  #: where it stands there, in bytes


def physical_devices() -> list[Physical]:
    """Every device, in the order Kompute counts them. Raises `Unavailable` where there is none."""
    vulkan = _loader()
    application = _ApplicationInfo(sType=0, apiVersion=_API_1_1)
    create = _InstanceCreateInfo(sType=1, pApplicationInfo=ctypes.pointer(application))
    instance = c_void_p()
    result = vulkan.vkCreateInstance(byref(create), None, byref(instance))
    if result != 0:
        raise Unavailable(f"no Vulkan driver answers (vkCreateInstance returned {result})", _REMEDY)
    try:
        count = c_uint32()
        vulkan.vkEnumeratePhysicalDevices(instance, byref(count), None)
        handles = (c_void_p * count.value)()
        vulkan.vkEnumeratePhysicalDevices(instance, byref(count), handles)
        found = [_properties(vulkan, handle) for handle in handles[: count.value]]
    finally:
        vulkan.vkDestroyInstance(instance, None)
    if not found:
        raise Unavailable("Vulkan lists no device", _REMEDY)
    return found


def _loader() -> ctypes.CDLL:
    name = {"win32": "vulkan-1.dll", "darwin": "libvulkan.1.dylib"}.get(sys.platform, "libvulkan.so.1")
    try:
        vulkan = ctypes.CDLL(name)
    except OSError:
        raise Unavailable(f"there is no Vulkan loader ({name})", _REMEDY) from None
    if not hasattr(vulkan, "vkGetPhysicalDeviceProperties2"):
        raise Unavailable(f"the Vulkan loader ({name}) is older than Vulkan 1.1", _REMEDY)
    vulkan.vkDestroyInstance.argtypes = [c_void_p, c_void_p]
    vulkan.vkDestroyInstance.restype = None
    vulkan.vkEnumeratePhysicalDevices.argtypes = [c_void_p, c_void_p, c_void_p]
    vulkan.vkEnumerateInstanceLayerProperties.argtypes = [c_void_p, c_void_p]
    vulkan.vkGetPhysicalDeviceProperties2.argtypes = [c_void_p, c_void_p]
    vulkan.vkGetPhysicalDeviceProperties2.restype = None
    return vulkan


def _properties(vulkan: ctypes.CDLL, handle: int | None) -> Physical:
    driver = _DriverProperties(sType=1000196000)
    device = _DeviceProperties(sType=1000059001, pNext=cast(byref(driver), c_void_p))
    vulkan.vkGetPhysicalDeviceProperties2(handle, byref(device))
    named = f"{driver.driverName.decode(errors='replace')} {driver.driverInfo.decode(errors='replace')}".strip()
    return Physical(
        name=device.deviceName.decode(errors="replace"),
        api=_version(device.apiVersion),
        driver=named or f"{device.driverVersion:#x}",
        max_buffer=device.limits[_MAX_STORAGE_BUFFER_RANGE],
        tick=ctypes.c_float.from_buffer(device, _DeviceProperties.limits.offset + _TIMESTAMP_PERIOD).value or 1.0,
    )


def _version(number: int) -> str:
    return f"{number >> 22 & 0x7F}.{number >> 12 & 0x3FF}.{number & 0xFFF}"
