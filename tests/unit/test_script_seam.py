"""The seam between a bundle and a backend: what is asked and answered, and that no backend can spoil a bundle."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opconform.harness.explain import companions as companions_module
from opconform.harness.explain.companions import Companions, companions_of
from opconform.harness.explain.facts import Facts
from opconform.harness.model.ops import ops
from opconform.harness.run import writing
from opconform.harness.run.registry import backend_names
from opconform.harness.run.script import CannotWriteError, Placed, Script, ScriptRequest
from opconform.harness.run.writing import written
from opconform.reports.repro import place
from tests.repro_samples import one_failure, target
from tests.samples import acc, spec


def request_for(backend: str, **changes: Any) -> ScriptRequest:
    where = target(backend, "0")
    return replace(Facts(one_failure(where), where).request, **changes)


def backend_file(tmp_path: Path, body: str, top: str = "", base: str = "Backend") -> str:
    """A file with a backend class that has `body`."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import os, time\n"
        "from opconform import Backend, CannotWriteError, Script\n"
        f"{top}\n"
        f"class Mine({base}):\n"
        "    def run(self, case, buffers):\n"
        "        pass\n\n"
        f"{body}\n"
    )
    return f"{file}:Mine"


def test_a_request_reads_back_from_json() -> None:
    case = acc(2, 3)
    first = Placed.at("", case, 0)
    twin = Placed.at("_twin", case.packed(), first.plan.size)
    asked = ScriptRequest("mine.py:Mine", "0", "a GPU", (first, twin), {"a": "b"}, {"driver": "1"}, 50, raised=True)
    again = ScriptRequest.from_json(json.loads(json.dumps(asked.to_json())))
    assert again == asked
    assert max(end for _, end in again.windows.values()) == again.size


def test_a_script_reads_back_from_json() -> None:
    script = Script("def run(memory): ...", imports=("import os",), files={"a/b.bin": b"\x00\xff"}, may_refuse=True)
    assert Script.from_json(script.to_json()) == script


@pytest.mark.parametrize("changes", [
    {"run": 3},
    {"imports": "import os"},
    {"imports": [1]},
    {"may_refuse": "yes"},
    {"files": {"../up": ""}},
    {"files": {"/root": ""}},
    {"files": {"issue.md": ""}},
    {"files": {"a": "no base64"}},
    {"more": ""},
    {"run": "#" * (5 << 20)},
])  # fmt: skip
def test_what_is_no_script_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"it has|its |base64"):
        Script.from_json({**Script("def run(memory): ...").to_json(), **changes})


def test_a_class_without_a_script_runs_itself_on_copies_of_its_files() -> None:
    made = written(request_for(spec("IgnoresNe3")))
    assert "CLASS = 'IgnoresNe3'" in made.constants
    assert {"modules/sample.py", "modules/opconform/harness/run/backend.py"} <= made.files.keys()


def test_a_backend_may_write_its_own_script(tmp_path: Path) -> None:
    body = """
    @classmethod
    def script(cls, request):
        return Script(f"def run(memory):\\n    return memory  # {request.op} {request.size}\\n", needs="numpy only.")
"""
    asked = request_for(backend_file(tmp_path, body))
    assert written(asked) == Script(f"def run(memory):\n    return memory  # acc {asked.size}\n", needs="numpy only.")


PARENT = """
class Parent(Backend):
    script_reads = ("kernels",)
    kernels = "a"

    @classmethod
    def script(cls, request):
        return Script(f"def run(memory): return {cls.kernels!r}")
"""


def test_a_script_is_inherited_until_what_computes_is_changed(tmp_path: Path) -> None:
    file = tmp_path / "family.py"
    file.write_text(
        f"from opconform import Backend, Script\n{PARENT}\n"
        "class Kernels(Parent):\n    kernels = 'b'\n    name = 'other'\n\n"
        "class Other(Parent):\n    def run(self, case, buffers):\n        pass\n"
    )
    assert written(request_for(f"{file}:Kernels")).run == "def run(memory): return 'b'"
    assert "CLASS = 'Other'" in written(request_for(f"{file}:Other")).constants


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise KeyError('acc')", "Mine.script raises KeyError: 'acc'"),
        ("raise CannotWriteError('only on Sundays')", "only on Sundays"),
        ("return 42", "Mine.script gives int, not a Script"),
        ("return Script(7)", "Mine.script gives a Script that cannot be used: its run is no str: 7"),
        ("return Script('', files={'a': 'text'})", "Mine.script gives a Script that cannot be used: "),
        ("os._exit(3)", "ended its process with status 3 instead of writing a script: it said nothing"),
        ("os.abort()", "ended its process with signal 6 instead of writing a script"),
        ("import sys; sys.exit('no')", "Mine.script raises SystemExit: no"),
    ],
)
def test_a_script_that_goes_wrong_is_one_line(body: str, says: str, tmp_path: Path) -> None:
    mine = backend_file(tmp_path, f"    @classmethod\n    def script(cls, request):\n        {body}\n")
    with pytest.raises(CannotWriteError) as found:
        written(request_for(mine))
    assert says in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("hangs", ["time.sleep(600)", "os.system('sleep 600')"])
def test_a_script_that_hangs_is_given_up(hangs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SECONDS", 1.0)
    mine = backend_file(tmp_path, f"    @classmethod\n    def script(cls, request):\n        {hangs}\n")
    with pytest.raises(CannotWriteError, match="takes more than 1 s to write a script"):
        written(request_for(mine))


def test_a_thread_that_a_file_starts_does_not_hold_the_script_back(tmp_path: Path) -> None:
    top = "import threading; threading.Thread(target=time.sleep, args=(600,)).start()"
    assert written(request_for(backend_file(tmp_path, "", top))).may_refuse


class _Point:
    def __init__(self, function: Callable[[Facts], Any]) -> None:
        self._function = function

    def load(self) -> Callable[[Facts], Any]:
        return self._function


def test_a_package_adds_files_and_one_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(facts: Facts) -> None:
        raise KeyError("acc")

    points = {
        "good": _Point(lambda facts: Companions({"a.txt": facts.case.id}, says="See `a.txt`.")),
        "silent": _Point(lambda facts: None),
        "same": _Point(lambda facts: Companions({"a.txt": ""})),
        "takes": _Point(lambda facts: Companions({"issue.md": ""})),
        "fails": _Point(fails),
    }
    monkeypatch.setattr(companions_module, "registered", lambda group: points)
    where = target()
    good, *bad = companions_of(Facts(one_failure(where), where))
    assert good.files == {"a.txt": one_failure(where).case.id}
    assert [name for name in ("same", "takes", "fails") if any(f"`{name}`" in each.says for each in bad)] == [
        "same",
        "takes",
        "fails",
    ]
    assert "KeyError: 'acc'" in bad[-1].says


def test_reports_name_no_backend_and_no_op() -> None:
    folder = Path(place.__file__).parents[1]
    sources = {file: file.read_text(encoding="utf-8") for kind in ("py", "j2") for file in folder.rglob(f"*.{kind}")}
    assert len(sources) > 20
    backends = re.compile(rf"({'|'.join(backend_names())})", re.IGNORECASE)
    quoted = re.compile(rf"""["'`]({"|".join(ops())})["'`.]""")
    found = [
        f"{file.relative_to(folder)}: {line.strip()}"
        for file, text in sources.items()
        for line in text.splitlines()
        if backends.search(line) or quoted.search(line)
    ]
    assert not found
