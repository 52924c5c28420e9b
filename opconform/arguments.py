"""The shared table of options (`options.py`) as click takes it, for every command alike."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
        from opconform.harness.run.backend import Unavailable

        try:
            return function(*positions, **values)
        except UsageError as error:
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
        option.name, option.key, type=kind, multiple=option.many, metavar=option.metavar or None, help=option.help
    )
