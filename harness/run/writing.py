"""Asks a backend for its script, in a process of its own: a user's file may do anything, and the device may be lost.

Every backend is asked in the same way. The process imports the backend's class (no class of ours imports its API for
that), calls `Backend.script`, and writes the answer into a file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from opconform.harness.model.escape import plain
from opconform.harness.run import registry
from opconform.harness.run.backend import Backend
from opconform.harness.run.script import CannotWriteError, Script, ScriptRequest

SECONDS = 60.0  #: a backend that takes longer has no script

#: What a class may change of the class above it and still have that one's script, beside its `script_reads`.
_CHANGEABLE = {"name", "needs", "devices", "limits", "supports"}

#: What `import opconform` loads must be known before anything else is imported. The folder it runs in comes last, so
#: that a file random.py there does not hide the standard library's.
_START = (
    "import sys; sys.path.sort(key=lambda place: not place); import opconform; "
    "[getattr(opconform, name) for name in opconform.__all__]; "
    "interface = [name for name in sys.modules if name.startswith('opconform')]; "
    "from opconform.harness.run.writing import main; main(interface)"
)


def written(request: ScriptRequest) -> Script:
    """The script that the backend writes. Raises `CannotWriteError` with one line, whatever the backend does."""
    spec = plain(request.spec)
    with tempfile.TemporaryDirectory(prefix="opconform-") as folder:
        asked, answered, said = (Path(folder) / name for name in ("request.json", "answer.json", "said"))
        asked.write_text(json.dumps(request.to_json()), encoding="ascii")
        status = _run([sys.executable, "-c", _START, str(asked), str(answered)], said)
        if status is None:
            raise CannotWriteError(f"{spec} takes more than {SECONDS:g} s to write a script")
        if not answered.is_file():
            last = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise CannotWriteError(f"{spec} ended its process with {how} instead of writing a script: {plain(last[0])}")
        answer = json.loads(answered.read_text(encoding="ascii"))
    if "cannot" in answer:
        raise CannotWriteError(plain(answer["cannot"]))
    return Script.from_json(answer["script"])


def _run(command: list[str], said: Path) -> int | None:
    """The exit status; None where the time was up. What the process has started itself ends with it then."""
    with said.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        return process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


# ---- in that process -------------------------------------------------------------------------------------------------


def main(interface: Iterable[str]) -> None:
    """Answer the request in the file that argv names, into the other file that it names."""
    asked, answered = map(Path, sys.argv[1:])
    request = ScriptRequest.from_json(json.loads(asked.read_text(encoding="ascii")))
    answer = json.dumps(_answer(request, interface))
    answered.write_text(answer, encoding="ascii")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads that the file has started cannot hold the answer back


def _answer(request: ScriptRequest, interface: Iterable[str]) -> Mapping[str, Any]:
    before = set(sys.modules)
    try:
        found = registry.backend_class(request.spec)
    except BaseException as error:
        return {"cannot": f"{request.spec} cannot be imported: {_said(error)}"}
    modules = (set(sys.modules) - before) | set(interface)
    from opconform.harness.run import own_class  # only now: what it loads itself is not what the class needs

    try:
        made: Any = found.script(request) if _has_script(found) else None
        if made is None:
            made = own_class.script_of_class(found, request, modules)
    except CannotWriteError as reason:
        return {"cannot": str(reason)}
    except BaseException as error:
        return {"cannot": f"{found.__name__}.script raises {_said(error)}"}
    if not isinstance(made, Script):
        return {"cannot": f"{found.__name__}.script gives {type(made).__name__}, not a Script"}
    try:
        sent = json.loads(json.dumps(made.to_json()))
        Script.from_json(sent)
    except (TypeError, ValueError, AttributeError) as error:
        return {"cannot": f"{found.__name__}.script gives a Script that cannot be used: {error}"}
    return {"script": sent}


def _said(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _has_script(found: type[Backend]) -> bool:
    """Whether the `script` that the class has, its own or that of one above it, is right for it: nothing that computes
    was changed since."""
    owner = next(each for each in found.__mro__ if "script" in vars(each))
    above = found.__mro__[: found.__mro__.index(owner)]
    changed = {name for each in above for name in vars(each) if not name.startswith("__") or name == "__init__"}
    return changed <= {*_CHANGEABLE, *getattr(owner, "script_reads", ())}
