"""The shared table of options (`options.py`) as click takes it, for every command alike."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from opconform.harness.model.usage import UsageError
from opconform.options import OPTIONS, Option

F = TypeVar("F", bound=Callable[..., Any])


def with_usage_errors(function: F) -> F:
    """A command in which what the user cannot have is one line and exit status 2, and a device that does not open one
    line and exit status 1."""

    @functools.wraps(function)
    def command(*positions: Any, **values: Any) -> Any:
        from opconform.harness.model.case import CaseError
        from opconform.harness.run.backend import Unavailable

        try:
            return function(*positions, **values)
        except (UsageError, CaseError) as error:
            raise click.UsageError(str(error)) from None
        except Unavailable as error:
            raise click.ClickException(str(error)) from None

    decorated: Any = command
    return decorated  # type: ignore[no-any-return]


def shared(*names: str) -> Callable[[F], F]:
    """Add options of the shared table to a command; the command receives them as one dict, `values`."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            own = {key: values.pop(key) for key in list(values) if key not in keys}
            return with_usage_errors(function)(values=values, **own)

        decorated: Any = command
        for option in reversed([option for option in OPTIONS if option.name in names]):
            decorated = _click_option(option)(decorated)
        return decorated  # type: ignore[no-any-return]

    keys = {option.key for option in OPTIONS if option.name in names}
    return decorate


def _click_option(option: Option) -> Callable[[Any], Any]:
    if option.flag:
        return click.option(option.name, option.key, is_flag=True, help=option.help)
    kind: Any = click.Choice(option.choices) if option.choices else option.type
    return click.option(
        option.name,
        option.key,
        type=kind,
        multiple=option.many,
        metavar=option.metavar or None,
        help=option.help,
        shell_complete=_COMPLETIONS.get(option.key),
    )


# ---- what a shell may complete --------------------------------------------------------------------------------------


def complete_case(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Known cases, failing cases that runs here have stored, and case files."""
    from opconform.harness.draw.known import known_cases
    from opconform.harness.search.settings import OUT

    stored = [path.stem for path in Path(OUT, "cases").glob("*.json")]
    return _begins(begun, [*known_cases(), *stored, *_files(begun, ".json")])


def _complete_backend(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    from opconform.harness.run.registry import backend_names

    return _begins(begun, [*backend_names(), *_files(begun, ".py")])


def complete_op(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Ops; several with commas, of which the last one is completed."""
    from opconform.harness.model.ops import op_names

    before = begun[: begun.rfind(",") + 1]
    return _begins(begun, [before + name for name in op_names()])


def _complete_check(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    from opconform.harness.judge.checks import ON_REQUEST

    return _begins(begun, ON_REQUEST)


def _begins(begun: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(begun)]


def _files(begun: str, ending: str) -> list[str]:
    """The files with this ending whose path begins so, written as it was begun."""
    folder, _, name = begun.rpartition("/")
    before = f"{folder}/" if "/" in begun else ""
    with contextlib.suppress(OSError):
        found = sorted(os.scandir(before or "."), key=lambda entry: entry.name)
        return [before + entry.name for entry in found if entry.name.startswith(name) and entry.name.endswith(ending)]
    return []


_COMPLETIONS = {"backend": _complete_backend, "op": complete_op, "case": complete_case, "check": _complete_check}
