"""`opconform describe OP`: all that one must know to write a kernel for an op, and a backend to fill in."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import click

from opconform.arguments import complete_op, with_usage_errors
from opconform.harness.model.case import Param
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.op import Op
from opconform.harness.model.ops import chosen_ops
from opconform.shapes import Sample, drawn

_SHOWN = 8  #: values of a parameter


@click.command()
@click.argument("op", shell_complete=complete_op)
@click.option("--skeleton", is_flag=True, help="print only the backend to fill in, as a file of Python")
@with_usage_errors
def describe(op: str, skeleton: bool) -> None:
    """What an op computes: arguments and parameters, formula, bound; and a backend to fill in."""
    (found,) = chosen_ops([op])
    sample = drawn(found)
    click.echo("\n".join(_skeleton(found, sample) if skeleton else _description(found, sample)))


def _description(op: Op, sample: Sample) -> Iterator[str]:
    yield f"{op.name}  {op.summary}"
    yield ""
    yield "arguments   ne is innermost first, as ggml has it; a NumPy shape is the same backwards"
    for name, sizes in sample.sizes.items():
        ne = ",".join(size.text for size in sizes)
        about = ["output"] * (name in op.outputs) + ["may be left out"] * (name in op.composite.optional)
        if name == op.outputs[0] and _inplace(sample):
            about.append(f"in place of {', '.join(_inplace(sample))} in some cases")
        yield f"  {name:<10} {_types(op, name):<16} ne=[{ne}]   {'; '.join(about)}".rstrip()
    yield "  Any may have strides and an offset, which `Backend.limits` can narrow; inputs may repeat (stride 0)."
    if op.params:
        yield ""
        yield "parameters"
    for name, kind in op.params.items():
        yield f"  {name:<10} {kind.__name__:<6} {_values(sample.values_of(name))}"
    yield ""
    yield f"bound       {op.bound}   [{op.where_bound()}]"
    yield from _text("formula", inspect.getdoc(op.expect))
    yield from _text("conventions", inspect.getdoc(sys.modules[inspect.unwrap(op.expect).__module__]))
    yield ""
    yield f"skeleton    opconform describe {op.name} --skeleton > mine.py; opconform test --backend mine.py"
    yield ""
    yield from ("  " + line if line else "" for line in _skeleton(op, sample))


def _inplace(sample: Sample) -> list[str]:
    return list(dict.fromkeys(problem.inplace for problem in sample.problems if problem.inplace))


def _types(op: Op, name: str) -> str:
    return " ".join(op.argument_dtypes.get(name, op.dtypes))


def _types_in_brief(op: Op, name: str) -> str:
    """As `_types`; of quantised types how many there are, and what NumPy sees of them."""
    types = _types(op, name).split()
    plain = [dtype for dtype in types if DTYPES[dtype].block == 1]
    if len(plain) == len(types):
        return " ".join(types)
    quantised = f"{len(types) - len(plain)} quantised types (an element is the bytes of a block)"
    return f"{' '.join(plain)}, or one of {quantised}" if plain else f"one of {quantised}"


def _values(values: list[Param]) -> str:
    if all(type(value) is int for value in values) and len(values) > _SHOWN:
        return f"{values[0]} … {values[-1]}"
    more = f" … ({len(values) - _SHOWN} more were drawn)" if len(values) > _SHOWN else ""
    return ", ".join(f"{value}" if not isinstance(value, float) else f"{value:g}" for value in values[:_SHOWN]) + more


def _text(label: str, doc: str | None) -> Iterator[str]:
    """A docstring, under its label."""
    if doc:
        yield ""
        yield label
        for line in doc.splitlines():
            yield f"  {line}".rstrip()


def _skeleton(op: Op, sample: Sample) -> Iterator[str]:
    yield f'"""A backend for {op.name}: {op.summary}."""'
    yield ""
    yield "from opconform import Backend, Buffers, Case"
    yield ""
    yield ""
    yield "class Mine(Backend):"
    yield '    name = "mine"'
    yield ""
    yield "    def supports(self, case: Case) -> str | None:"
    yield f'        return None if case.op == "{op.name}" else f"no kernel for {{case.op}}"'
    yield ""
    yield "    def run(self, case: Case, buffers: Buffers) -> None:"
    yield "        # Strided NumPy views of the case's memory, outermost dimension first; writes go through."
    for name, sizes in sample.sizes.items():
        shape = ", ".join(size.text for size in reversed(sizes))
        given = "outputs" if name in op.outputs else "inputs"
        there = f' if "{name}" in case.{given} else None' if name in op.composite.optional else ""
        yield f'        {name} = buffers.array("{name}"){there}  # {_types_in_brief(op, name)}, shape ({shape})'
    for name in op.params:
        yield f'        {name} = case.params["{name}"]  # {_values(sample.values_of(name))}'
    yield f"        {op.outputs[0]}[...] = 0  # here: {op.summary}"
