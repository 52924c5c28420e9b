"""repro.py: a script that runs alone. What all APIs share is made here; each API adds what its template needs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opconform.harness.explain.facts import TWIN, Facts
from opconform.harness.judge.checks import ON_REQUEST
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.escape import docstring
from opconform.harness.model.version import VERSION
from opconform.reports.repro import arrays, references
from opconform.reports.repro.rendering import render


@dataclass(frozen=True)
class Part:
    """What one API adds to the script: its template, what that needs, modules to import, and files to lie beside it."""

    template: str
    context: Mapping[str, Any]
    imports: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


Generator = Callable[[Facts], Part]


def script(facts: Facts, part: Part) -> str:
    """repro.py."""
    numbers, needs = _numbers(facts)
    imports = {"sys", "traceback", *part.imports, *needs}
    if facts.is_deadly:
        imports |= {"os", "subprocess"}
    op, outputs = facts.op, facts.case.outputs
    text = render(
        part.template,
        **{
            "facts": facts,
            "version": VERSION,
            "opening": _opening(facts),
            "imports": sorted(imports),
            "tensors": facts.tensors,
            "outputs": [name + suffix for suffix, _, _ in facts.parts for name in outputs],
            "several": len(outputs) > 1,
            "some_bf16": any(layout.dtype == "bf16" for layout in outputs.values()),
            "poison": "0xFF" if all(layout.type.is_float for layout in facts.case.layouts.values()) else "0xA5",
            "deadly": facts.is_deadly,
            "repeats": facts.repeats,
            "twin": facts.twin and ON_REQUEST[facts.failure.findings[0].check].reason,
            "twin_suffix": TWIN,
            "may_refuse": False,
            "raises": facts.is_raised,
            "judge": "residual" if references.has_residual(facts) else "difference",
            "op": op.name,
            "params": facts.case.params,
            "some": _some(facts),
            "smallest_normal": repr(DTYPES[facts.case.dtype].smallest_normal),
            "residual": references.residual_context(facts),
            "numbers": numbers.strip(),
            "numbers_last": bool(needs),
            "bound_note": docstring(facts.op.bound),
            **part.context,
        },
    )
    return re.sub(r"\n{4,}", "\n\n\n", text)


def _opening(facts: Facts) -> str:
    """The first lines of the docstring: what is wrong, with which case."""
    failure = facts.failure
    said = [f"{facts.op.name.upper()} on {failure.target}: {failure.kind.lower()}.", "", f"    {facts.case}", ""]
    said += [f"{finding.detail[:1].upper()}{finding.detail[1:]}." for finding in failure.findings]
    wrapped = [
        part
        for line in said
        for part in textwrap.wrap(docstring(line), 116, break_long_words=False, subsequent_indent=_indent(line)) or [""]
    ]
    return "\n".join(wrapped)


def _indent(line: str) -> str:
    return " " * (len(line) - len(line.lstrip()))


def _some(facts: Facts) -> dict[str, bool]:
    """Which of the rarer rules of judging this case needs."""
    found = dict.fromkeys(("free", "exact_nan", "exact_inf", "exact_zero", "flushed"), False)
    for name, it in facts.demands.items():
        tiny = facts.case.outputs[name].type.smallest_normal
        flushes = facts.numerics.flushes_denormals
        with np.errstate(invalid="ignore"):
            found["free"] |= bool(it.free.any())
            found["exact_nan"] |= bool((np.isnan(it.value) & it.exact).any())
            found["exact_inf"] |= bool((np.isinf(it.value) & it.exact).any())
            found["exact_zero"] |= bool(((it.value == 0) & it.exact).any()) and not flushes
            found["flushed"] |= flushes and bool(((np.abs(it.value) < tiny) & (it.value != 0) & it.exact).any())
    return found


def _numbers(facts: Facts) -> tuple[str, set[str]]:
    """VALUES, WANT, BOUND and EXACT as source, and the modules that it needs."""
    if sum(raw.size for raw in facts.elements.values()) > arrays.PACKED:
        made = references.made(facts)
        if made is not None:
            return made, {"zlib"}
    plain = _arrays(facts)
    lines = []
    if any("unpacked(" in source for source in plain.values()):
        lines.append(_UNPACKED)
    lines += [f"{name} = {source}" for name, source in plain.items()]
    return "\n".join(lines) + "\n\n", {"base64", "zlib"} if lines[0] is _UNPACKED else set()


_UNPACKED = '''
def unpacked(dtype, shape, text):
    """An array from base64 of zlib data."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype).reshape(shape)

'''


def _arrays(facts: Facts) -> dict[str, str]:
    values = []
    codes = {tensor.name: tensor.dtype for tensor in facts.tensors}
    for name, raw in facts.elements.items():
        source = arrays.expression(np.ascontiguousarray(raw).view(codes[name]), codes[name])
        values.append(f'    "{name}": {_indented(source)},')
    demands = facts.demands
    found = {
        "VALUES": "{\n" + "\n".join(values) + "\n}",
        "WANT": _by_name({name: arrays.expression(it.value, "<f8") for name, it in demands.items()}),
    }
    if references.has_residual(facts):
        (it,) = demands.values()
        if it.free.any():
            found["FREE"] = _mask(it.free)
    else:
        found["BOUND"] = _by_name({name: _bound(it.bound) for name, it in demands.items()})
    some = _some(facts)
    if some["exact_inf"] or some["exact_zero"] or some["flushed"]:
        found["EXACT"] = _by_name({name: _mask(it.exact) for name, it in demands.items()})
    return found


def _by_name(sources: Mapping[str, str]) -> str:
    """A dictionary of literals."""
    return "{\n" + "".join(f'    "{name}": {_indented(source)},\n' for name, source in sources.items()) + "}"


def _bound(bound: np.ndarray) -> str:
    """A bound per element, or one for all."""
    same = bound.size and (bound == bound.flat[0]).all()
    return _scalar(bound.flat[0]) if same else arrays.expression(bound, "<f8")


def _mask(mask: np.ndarray) -> str:
    if mask.all() or not mask.any():
        return str(bool(mask.any()))
    return arrays.expression(mask.view(np.uint8), "u1") + ".astype(bool)"


def _scalar(value: float) -> str:
    return "np.inf" if np.isinf(value) else repr(float(value))


def _indented(source: str) -> str:
    """A literal of several lines inside another; what is packed may stand at the margin."""
    return source if arrays.is_packed(source) else source.replace("\n", "\n    ")
