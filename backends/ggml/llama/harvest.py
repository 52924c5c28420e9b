"""Ask libllama for the tensors of each architecture: `python -m opconform.backends.ggml.llama.harvest`.

`llama_model_init_from_user` (llama.cpp of 2026) makes a model from hyperparameters alone and calls back for each of its
tensors. It wants the metadata to list as many tensors as it will make, and says how many those are where it does not;
tensors that a model may lack it makes only where their names are listed. An attempt may end the process, so each has
one of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from opconform.backends.ggml.llama import gguf
from opconform.backends.ggml.llama.architectures import ARCHITECTURES
from opconform.backends.ggml.llama.binding import Llama, folder_of
from opconform.backends.ggml.llama.params import ModelParams
from opconform.harness.run.backend import Unavailable

SHAPES = Path(__file__).parent / "shapes.json"
_ATTEMPTS = 4
_MODULE = "opconform.backends.ggml.llama.harvest"
_COUNT = re.compile(r"expected (\d+), got (\d+)")

Shapes = list[tuple[str, list[int]]]


def tensors_of(folder: Path, name: str) -> Shapes:
    """Names and sizes (innermost first) of the tensors of an architecture, as the libllama in `folder` makes them.

    Raises `Unavailable` where it cannot say.
    """
    count = 0
    for _ in range(_ATTEMPTS):
        command = [sys.executable, "-m", _MODULE, "--ggml-lib", str(folder), "--one", name, "--count", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=300)
        if done.returncode == 0:
            return [(tensor, sizes) for tensor, sizes in json.loads(done.stdout)]
        wanted = [number for pair in _COUNT.findall(done.stderr) for number in map(int, pair) if number != count]
        if not wanted:
            break
        count = wanted[0]
    said = [line for line in done.stderr.strip().splitlines() if line.strip()]
    errors = [line for line in said if "error" in line.lower() or "assert" in line.lower()]
    last = (errors[:1] or said[-1:] or [f"exit status {done.returncode}"])[0]
    raise Unavailable(f"libllama in {folder} makes no model of {name}: {last}", "take another build")


def _harvest(folder: Path, name: str, count: int) -> Shapes:
    """The same in this process, from metadata that lists `count` tensors."""
    llama = Llama(folder)
    if not llama.c.has("llama_model_init_from_user"):
        raise Unavailable(f"{llama.file.name} has no llama_model_init_from_user", "take a build of mid-2026 or later")
    found: dict[str, list[int]] = {}

    @llama.c.ffi.callback("set_tensor_data")
    def note(tensor: Any, _: Any) -> None:
        sizes = list(tensor.ne)
        while len(sizes) > 1 and sizes[-1] == 1:
            sizes.pop()
        found[llama.c.text(tensor.name)] = sizes

    architecture = ARCHITECTURES[name]
    listed = [*architecture.optional, *(f"dummy.{number}" for number in range(count - len(architecture.optional)))]
    with tempfile.TemporaryDirectory() as folder_name:
        path = Path(folder_name) / "metadata.gguf"
        gguf.write(path, architecture.keys, [gguf.Tensor(tensor, "f32", (1,), b"\0" * 4) for tensor in listed])
        metadata = llama.c.gguf_init_from_file(str(path).encode(), (True, llama.c.null))
    params = ModelParams(llama)
    params.place(llama.c.ffi.new("void *[1]"), 0)
    if not llama.c.llama_model_init_from_user(metadata, note, llama.c.null, params.value):
        raise Unavailable("llama_model_init_from_user failed", llama.complaint)
    return list(found.items())


def main() -> None:
    """Write shapes.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ggml-lib", default="")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = folder_of({"ggml_lib": options.ggml_lib})
    if options.one:
        print(json.dumps(_harvest(folder, options.one, options.count)))
        return
    table = {}
    for name in ARCHITECTURES:
        table[name] = tensors_of(folder, name)
        print(f"{name}: {len(table[name])} tensors", file=sys.stderr)
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(shapes)}" for name, shapes in table.items())
    SHAPES.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
