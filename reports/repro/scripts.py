"""repro.py: a script that runs alone. What all APIs share is made here; the backend writes what calls its API."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Mapping

import numpy as np

from opconform.harness.explain.facts import TWIN, Facts
from opconform.harness.judge.checks import ON_REQUEST
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.escape import docstring
from opconform.harness.model.version import VERSION
from opconform.harness.run.script import CannotWriteError, Script
from opconform.harness.run.writing import written
from opconform.reports.repro import arrays, references
from opconform.reports.repro.rendering import render


def asked(facts: Facts) -> Script:
    """What the backend writes. Raises `CannotWriteError`."""
    check = facts.failure.findings[0].check
    if check == "sanitizer":
        raise CannotWriteError("only a checker sees this fault; the case replays under it with --sanitize")
    if check in {relation.name for relation in facts.op.composite.metamorphic}:
        raise CannotWriteError(
            f"the fault shows only between several runs ({check}), which Opconform's replay compares"
        )
    if any(layout.type.block > 1 for layout in facts.case.outputs.values()):
        raise CannotWriteError("its output is in blocks, which NumPy alone does not decode")
    return written(facts.request)


def script(facts: Facts, part: Script) -> str:
    """repro.py with the part that the backend has written. Raises `CannotWriteError` for a part that is no Python."""
    numbers, packing = _numbers(facts)
    modules = {"sys", "traceback", *packing, *(("os", "subprocess") if facts.is_deadly else ())}
    lines = {*(f"import {name}" for name in modules), *part.imports}
    future = {line for line in lines if line.startswith("from __future__")}
    plain = sorted(line for line in lines if line.startswith("import "))
    outputs = facts.case.outputs
    text = render(
        "base.py.j2",
        facts=facts,
        part=part,
        opening=_opening(facts),
        needs=_safe(part.needs),
        usage=_safe(part.usage),
        version=VERSION,
        future="\n".join(sorted(future)),
        imports="\n".join([*plain, *(line for line in part.imports if line not in {*plain, *future})]),
        constants=part.constants.rstrip("\n"),
        definitions=part.definitions.rstrip("\n"),
        run=part.run.rstrip("\n"),
        source=part.source.rstrip("\n"),
        outputs=[name + suffix for suffix, _, _ in facts.parts for name in outputs],
        several=len(outputs) > 1,
        some_bf16=any(layout.dtype == "bf16" for layout in outputs.values()),
        poison="0xFF" if all(layout.type.is_float for layout in facts.case.layouts.values()) else "0xA5",
        twin=facts.twin and ON_REQUEST[facts.failure.findings[0].check].reason,
        twin_suffix=TWIN,
        twin_parts=_twin_parts(facts),
        some=_some(facts),
        smallest_normal=repr(DTYPES[facts.case.dtype].smallest_normal),
        residual=references.residual(facts).rstrip("\n"),
        numbers=numbers.strip(),
        numbers_last=bool(packing),
        bound_note=docstring(facts.op.bound),
    )
    return _checked(re.sub(r"\n{4,}", "\n\n\n", text), facts)


def _safe(text: str) -> str:
    """Lines inside a Python string of three quotes."""
    return "\n".join(map(docstring, text.strip("\n").split("\n")))


def _checked(text: str, facts: Facts) -> str:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise CannotWriteError(f"what {facts.target.spec} gives for a script is no Python: {error}") from None
    if not any(isinstance(statement, ast.FunctionDef) and statement.name == "run" for statement in tree.body):
        raise CannotWriteError(f"what {facts.target.spec} gives for a script has no function run")
    return text


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


def _twin_parts(facts: Facts) -> str:
    """The part of an output that its twin must have, as an index in NumPy."""
    if facts.compared is None:
        return ""
    parts = {name: _index(facts.compared.parts.get(name, ())) for name in facts.case.outputs}
    if len(parts) == 1:
        return next(iter(parts.values()))
    return f"{{{', '.join(f'{name!r}: np.s_[{part}]' for name, part in parts.items())}}}[name]"


def _index(parts: tuple[slice, ...]) -> str:
    """Slices as they are written between brackets; "..." where they leave nothing out."""
    words = [":".join("" if end is None else str(end) for end in (part.start, part.stop)) for part in parts]
    words = [word + (f":{part.step}" if part.step is not None else "") for word, part in zip(words, parts)]
    while words and words[-1] == ":":
        words.pop()
    return ", ".join(words) or "..."


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
    if references.residual(facts):
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
