"""Jinja templates: for the scripts of backends, and for the files of reports.

A backend's template lies beside its code. It sets `needs` and, unless the default is right, `usage`, and has the blocks
`constants`, `definitions`, `run` and `source`, each of which may be missing but `run`.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from opconform.harness.model.escape import FILTERS
from opconform.harness.run.script import Script

_WIDTH = 112
_TEXTS = ("needs", "usage")
_BLOCKS = ("constants", "definitions", "run", "source")


def packed(raw: bytes) -> str:
    """Lines of base64 of zlib data."""
    text = base64.b64encode(zlib.compress(raw)).decode()
    return "\n".join(text[first : first + _WIDTH] for first in range(0, len(text), _WIDTH))


def literal(source: str) -> str:
    """A Python literal of a source file: as it is written, where that is safe."""
    visible = all(line.isprintable() for line in source.replace("\t", " ").split("\n"))
    if visible and '"""' not in source and not source.endswith(("\\", '"')):
        return f'r"""\n{source}"""'
    return ascii(source)


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=lambda name: bool(name) and str(name).endswith((".svg.j2", ".html.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS, packed=packed, literal=literal)
    return environment


def _template(file: Path) -> Template:
    return _environment(file.parent).get_template(file.name)


def render(file: Path, **context: Any) -> str:
    """A template with `context`. A name that the context lacks is an error."""
    return _template(file).render(**context)


def script_of(
    file: Path,
    context: Mapping[str, Any],
    *,
    imports: Sequence[str] = (),
    packages: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    **more: Any,
) -> Script:
    """The script that a template gives: its texts and blocks, and beside them what else a `Script` has."""
    template, given = _template(file), dict(context)
    module = template.make_module(given)
    for name in _TEXTS:
        if hasattr(module, name):
            more[name] = str(getattr(module, name)).strip("\n")
    for name in _BLOCKS:
        if name in template.blocks:
            more[name] = "".join(template.blocks[name](template.new_context(given)))
    return Script(imports=tuple(imports), packages=tuple(packages), files=files or {}, **more)
