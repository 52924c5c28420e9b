"""GLSL to SPIR-V, with a cache on disk.

An entry is keyed by all that its bytes depend on: the source with all that it includes, the compiler's version, and the
options. What is not whole SPIR-V all the same is compiled anew.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from opconform.backends.cache import cache_folder, keep, key_of
from opconform.backends.kernels.source import source_of
from opconform.harness.run.backend import Unavailable

#: What Kompute asks of Vulkan. SPIR-V for 1.1 runs on every later version.
_TARGET = "vulkan1.1"
_MAGIC = (0x07230203).to_bytes(4, "little")
_FUNCTION_END = (1 << 16 | 56).to_bytes(4, "little")  # OpFunctionEnd: one word, the last of every shader


@dataclass(frozen=True)
class Compiler:
    """A GLSL compiler: the command that compiles standard input to the file named after it, and its version."""

    command: tuple[str, ...]
    version: str


def find_compiler() -> str:
    """The path of glslc, or else of glslangValidator. Raises `Unavailable` where PATH has neither."""
    path = shutil.which("glslc") or shutil.which("glslangValidator")
    if path is None:
        raise Unavailable("there is no GLSL compiler (glslc or glslangValidator) on PATH", "apt-get install glslc")
    return path


@cache
def compiler_at(path: str) -> Compiler:
    """The compiler at `path`; its version is asked once per process. Shaders keep their lines (-g), for the validation
    layer to name."""
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    if Path(path).stem == "glslc":
        return Compiler((path, "-g", "-fshader-stage=compute", f"--target-env={_TARGET}", "-", "-o"), version)
    return Compiler((path, "-V", "-g", "--target-env", _TARGET, "--stdin", "-S", "comp", "-o"), version)


def spirv(file: Path, source: str = "") -> bytes:
    """A shader as SPIR-V, from the cache where it is there and whole. `source` is all that the file holds and includes,
    where not all of that stands beside it.

    Raises `Unavailable` without a compiler and `RuntimeError` with the compiler's words where it refuses the source.
    """
    compiler = compiler_at(find_compiler())
    text = (source or source_of(file)).encode()
    entry = _entry(file.stem, text, compiler)
    with suppress(OSError):
        kept = entry.read_bytes()
        if is_whole(kept):
            return kept
    fresh = _compile(file, text, compiler)
    keep(entry, fresh)
    return fresh


def _entry(name: str, text: bytes, compiler: Compiler) -> Path:
    """The cache file of a shader with this source, made by this compiler."""
    options = "\0".join(compiler.command[1:])
    key = key_of(text, compiler.version.encode(), options.encode())
    return cache_folder("spirv") / f"{name}-{key}.spv"


def is_whole(code: bytes) -> bool:
    """Whether `code` is SPIR-V from its magic number to its last instruction."""
    return len(code) % 4 == 0 and code.startswith(_MAGIC) and code.endswith(_FUNCTION_END)


def _compile(file: Path, text: bytes, compiler: Compiler) -> bytes:
    with tempfile.TemporaryDirectory(prefix="opconform-") as folder:
        made = Path(folder) / "shader.spv"
        done = subprocess.run([*compiler.command, str(made)], input=text, capture_output=True)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).decode(errors="replace").strip()
            raise RuntimeError(f"{file} does not compile:\n{said}")
        code = made.read_bytes()
    if not is_whole(code):
        raise RuntimeError(f"{compiler.command[0]} made something other than SPIR-V of {file}")
    return code
