"""`opconform new-case OP`: a known case, checked, as an entry of `cases/known/`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from opconform.arguments import complete_case, complete_op, with_usage_errors
from opconform.harness.draw.known import checked, find_case, known_cases
from opconform.harness.judge.vacuous import weaknesses
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.files import read_regular
from opconform.harness.model.layouts import Layout
from opconform.harness.model.op import Op
from opconform.harness.model.ops import chosen_ops
from opconform.harness.model.plain import parsed
from opconform.harness.model.usage import UsageError
from opconform.harness.model.values import inputs_of
from opconform.harness.search.settings import OUT
from opconform.harness.search.smaller import moved_view
from opconform.shapes import Sample, drawn, fitting, shapes_of

_FILE_BYTES = 64 << 20  #: a file of known cases is far smaller


@click.command("new-case")
@click.argument("op", shell_complete=complete_op)
@click.option("--id", "name", required=True, metavar="OP/NAME", help="the name: acc/kimi-decode")
@click.option("--about", required=True, metavar="TEXT", help="what it is: a shape of which model, the trigger of what")
@click.option("--source", required=True, metavar="LINK", help="where that can be read")
@click.option("--like", metavar="CASE", help="begin with this case, not the simplest", shell_complete=complete_case)
@click.option("--ne", multiple=True, metavar="ARG=N0,N1…", help="an argument's sizes, innermost first; others follow")
@click.option("--nb", multiple=True, metavar="ARG=B0,B1…", help="an argument's strides in bytes (default: packed)")
@click.option("--offset", multiple=True, metavar="ARG=BYTES", help="where an argument begins in its memory")
@click.option("--param", multiple=True, metavar="NAME=VALUE", help="a parameter")
@click.option("--recipe", metavar="NAME", help="how values are made: small_int, index, normal, wide, …")
@click.option("--seed", type=int, metavar="N", help="of the values")
@click.option("--into", type=Path, metavar="FILE", help="append to this file of cases (default: print the entry)")
@with_usage_errors
def new_case(op: str, name: str, about: str, source: str, like: str | None, into: Path | None, **chosen: Any) -> None:
    """Write a known case: a shape or a trigger worth a name, checked.

    Sizes that are not given follow from those that are (opconform describe OP), and are else those of the simplest case
    or of --like.
    """
    (its,) = chosen_ops([op])
    if re.fullmatch(rf"{re.escape(its.name)}/[a-z0-9][a-z0-9._-]*", name) is None:
        raise UsageError(f"--id is {name!r}; it must be {its.name}/ and a name of small letters, digits, dots, dashes")
    if name in known_cases():
        raise UsageError(f"--id {name} is taken: {known_cases()[name].about}")
    if not source.startswith(("https://", "http://")):
        raise UsageError(f"--source is {source!r}; it must begin with https://")
    try:
        case = checked(_case(its, like, chosen))
    except CaseError as error:
        raise UsageError(str(error)) from None
    nothing = next(weaknesses(its, case, inputs_of(case, its)), "")
    if nothing:
        raise UsageError(f"{case} says nothing of a kernel: {nothing}; change --recipe, --seed or the sizes")
    plain = case.to_json()
    plain.pop("id", None)
    entry = {"id": name, "about": about, "source": source, "case": plain}
    if into is None:
        click.echo(json.dumps(entry, indent=1))
        return
    count = _append(into, entry)
    click.echo(f"{name}: {case}\n{into} has {count} case{'s' if count != 1 else ''}")


def _append(path: Path, entry: Mapping[str, Any]) -> int:
    """Add an entry to a file, one line each; returns how many it has. Raises `UsageError`."""
    try:
        entries = parsed(read_regular(path, _FILE_BYTES)) if path.exists() else []
        if not isinstance(entries, list):
            raise ValueError("it is no list of cases")
        if any(isinstance(other, dict) and other.get("id") == entry["id"] for other in entries):
            raise ValueError(f"it has {entry['id']} already")
        entries.append(entry)
        lines = ",\n".join(f" {json.dumps(each, ensure_ascii=False)}" for each in entries)
        path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--into {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--into {path}: {error}") from None
    return len(entries)


def _case(op: Op, like: str | None, chosen: Mapping[str, Any]) -> Case:
    sample = drawn(op)
    base = _simplest(op, sample) if like is None else find_case(like, OUT, 1 << 40)[1]
    if base.op != op.name:
        raise UsageError(f"--like {like} is of {base.op}, not of {op.name}")
    sizes = {name: _numbers("--ne", name, text) for name, text in _pairs("--ne", chosen["ne"], base.layouts)}
    for name, ne in sizes.items():
        sizes[name] = (*ne, *[1] * (len(base.layouts[name].ne) - len(ne)))
    whole = fitting(sample, sizes, {name: layout.ne for name, layout in base.layouts.items()}) if sizes else {}
    layouts = {
        name: Layout.contiguous(layout.dtype, whole[name][::-1]) if name in whole else layout
        for name, layout in base.layouts.items()
    }
    for name, text in _pairs("--nb", chosen["nb"], layouts):
        layouts[name] = replace(layouts[name], strides=_numbers("--nb", name, text)[::-1])
    for name, text in _pairs("--offset", chosen["offset"], layouts):
        layouts[name] = replace(layouts[name], offset=_numbers("--offset", name, text)[0])
    params = dict(base.params)
    for name in base.inputs if sizes else ():  # byte strides of a view follow the sizes of what it is a view of
        if params == base.params:
            params = dict(moved_view(base.params, base.inputs[name], layouts[name]))
    for name, text in _pairs("--param", chosen["param"], op.params):
        params[name] = _value(name, op.params[name], text)
    case = replace(
        base,
        params=params,
        inputs={name: layouts[name] for name in base.inputs},
        outputs={name: layouts[name] for name in base.outputs},
        recipe=chosen["recipe"] or base.recipe,
        seed=base.seed if chosen["seed"] is None else chosen["seed"],
        shares={} if sizes else base.shares,
        data=None,
    )
    return Case.from_json(case.to_json(), 1 << 40)


def _simplest(op: Op, sample: Sample) -> Case:
    problem = sample.problems[0]
    shapes = shapes_of(op, problem)
    layouts = {name: Layout.contiguous(problem.dtype_of(name), ne[::-1]) for name, ne in shapes.items()}
    inputs = {name: layouts[name] for name in problem.shapes}
    outputs = {name: layouts[name] for name in op.outputs if name in layouts}
    return Case(op.name, problem.params, inputs, outputs, inplace=problem.inplace)


def _pairs(option: str, values: Sequence[str], known: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or name not in known:
            raise UsageError(f"{option} {value}: write NAME=…, with a name of {', '.join(known) or 'none'}")
        found.append((name, text))
    return found


def _numbers(option: str, name: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d{1,15}", part, re.ASCII) for part in parts) or len(parts) > 4:
        raise UsageError(f"{option} {name}={text}: write up to four numbers with commas, innermost first")
    return tuple(map(int, parts))


def _value(name: str, kind: type, text: str) -> Param:
    if kind is bool:
        if text.lower() not in ("true", "false", "0", "1"):
            raise UsageError(f"--param {name}={text}: it is true or false")
        return text.lower() in ("true", "1")
    try:
        value: Param = kind(text)
    except ValueError:
        raise UsageError(f"--param {name}={text}: it is {kind.__name__}") from None
    return value
