"""The templates beside this file."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from opconform.harness.model.escape import FILTERS


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("opconform.reports.repro"),
        autoescape=lambda name: bool(name) and str(name).endswith((".svg.j2", ".html.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS)
    return environment


def render(template: str, **context: Any) -> str:
    """A template of this package with `context`; a name that it lacks is an error."""
    return _environment().get_template(template).render(**context)


def exists(template: str) -> bool:
    """Whether this package has such a template."""
    loader = _environment().loader
    return loader is not None and template in loader.list_templates()
