"""The templates beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opconform.harness.run import templates

_FOLDER = Path(__file__).parent / "templates"


def render(template: str, **context: Any) -> str:
    """A template of this package with `context`; a name that it lacks is an error."""
    return templates.render(_FOLDER / template, **context)
