"""What has been judged, as tables: how many mutants each way kills, and which survive."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.faults import Mutant
from benchmarks.mutation.judging import WAYS
from benchmarks.mutation.listing import all_mutants, equivalents


def read(file: Path | None) -> list[dict[str, Any]]:
    """What has been judged."""
    if file is None or not file.exists():
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def key_of(record: Mapping[str, Any]) -> tuple[str, str]:
    """What tells a judged mutant from all others."""
    names = ("op", "file", "line", "becomes", "fault", "nth", "number")
    return record["backend"], Mutant(**{name: record[name] for name in names}).key


def counted(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The judged mutants that count: they are still made, compile, and are not equivalent."""
    listed = equivalents()
    made: dict[tuple[str, str], Mutant] = {}
    for backend, op in {(record["backend"], record["op"]) for record in records}:
        made |= {(backend, mutant.key): mutant for mutant in all_mutants(op, backend)}
    compiled = [it for it in records if key_of(it) in made and not it["default"].startswith("refused")]
    return [record for record in compiled if not any(each.covers(record["backend"], record) for each in listed)]


def table(records: Sequence[Mapping[str, Any]], by: str, weights: Mapping[tuple[str, str], float]) -> Table:
    """How many of the mutants that count each way kills, by op or by class of faults. What a sample has too many or too
    few of, for it has as many of every class, counts with its weight."""
    found = Table(by, "mutants", *WAYS, box=SIMPLE_HEAD)
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[f"{record['backend']} {record['op']}" if by == "op" else record[by]].append(record)
    for name, its in [*groups.items(), ("all", list(records))]:
        shares = []
        for way in WAYS:
            weight = [(weights[it["op"], it["fault"]], bool(it[way])) for it in its if way in it]
            killed, whole = sum(each for each, dead in weight if dead), sum(each for each, _ in weight)
            shares.append(f"{killed / whole:.1%}" if whole else "")
        found.add_row(name, str(len(its)), *shares)
    return found


def weights_of(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """How many mutants that count each of those that were judged stands for, by op and class of faults."""
    listed, judged_ = equivalents(), Counter((record["op"], record["fault"]) for record in records)
    there: Counter[tuple[str, str]] = Counter()
    for backend, op in {(record["backend"], record["op"]) for record in records}:
        for mutant in all_mutants(op, backend):
            there[op, mutant.fault] += not any(each.covers(backend, asdict(mutant)) for each in listed)
    return {each: max(there[each], count) / count for each, count in judged_.items()}


def show(records: Sequence[Mapping[str, Any]], all_of_them: int) -> None:
    """The tables, and the survivors of the default search."""
    console, weights = Console(width=160), weights_of(records)
    console.print(table(records, "op", weights), table(records, "fault", weights))
    for record in records:
        if not record["default"]:
            where = f"{record['op']} {record['file']}:{record['number'] + 1}" if record["file"] else record["op"]
            click.echo(f"survived: {where} [{record['fault']}]\n    {record['line']}\n    {record['becomes']}")
    click.echo(f"{all_of_them} judged, {len(records)} count, {sum(not it['default'] for it in records)} survive")
