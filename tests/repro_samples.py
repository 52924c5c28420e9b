"""What the tests of bundles share: failures without a device, and text that means harm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from opconform.harness.explain.facts import Facts
from opconform.harness.explain.failure import Failure, describe
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.ops import ops
from opconform.harness.model.values import data_of, inputs_of
from opconform.harness.run.backend import Device
from opconform.harness.run.runner import Runner
from opconform.harness.run.script import Script
from opconform.harness.run.target import Target
from opconform.reports.repro.bundle import files_of
from opconform.reports.repro.scripts import script
from tests.judge import OPS
from tests.samples import acc
from tests.samples import target as sample

HOSTILE = (
    'the "RTX" */ ??/ \\',
    "</script><svg onload=alert(1)>",
    "two\nlines // \\\nand\r\nmore",
    "`rm -rf ~`; $(touch pwned) ' && touch pwned #",
    '"""\nimport os  # \\',
    "\u202egnippilf\u2066",
    "@everyone #1 **bold** [link](javascript:alert(1)) <b>GH-1</b> https://example.org",
    "a | b | c",
    "\x00\x1b[31mred",
    "{{ 7 * 7 }} {% raw %}",
    "\ud800 and \u00e9\u6f22",
)
FLUSHING = Numerics(flushes_denormals=True, any_rounding=True, division_ulps=2.5)


def target(backend: str = "ggml", device: str = "Vulkan0", text: str = "a GPU", numerics: Numerics = EXACT) -> Target:
    return Target(backend, Device(device, text, {"build": "b7836", "driver": text}, numerics), {"ggml_lib": "/no/such"})


@cache
def seen() -> Failure:
    """ACC of a backend that drops ne3."""
    runner = Runner(sample("IgnoresNe3"), isolated=False)
    verdict = runner.verdicts(OPS["acc"], [acc(2, 3, 1, 2, a=(4, 3, 1, 2))])[0]
    return describe(OPS["acc"], runner, verdict)


def one_failure(where: Target | None = None, **changes: Any) -> Failure:
    """That failure as if it had been seen on `where`."""
    where = where or target()
    device = {"device": where.device.description, "versions": tuple(where.device.versions.items())}
    return replace(seen(), **{"target": where.label, "numerics": where.device.numerics, **device, **changes})


def module_of(failure: Failure, where: Target) -> dict[str, Any]:
    """The names of a script, as if it were imported; it has no `run`."""
    facts = Facts(failure, where)
    scope: dict[str, Any] = {"__name__": "script"}
    exec(compile(script(facts, Script("def run(memory):\n    raise NotImplementedError\n")), "repro.py", "exec"), scope)
    return scope


def described(
    case: Case, where: Target, kind: str = "WRONG VALUES", values: Mapping[str, Raw] | None = None
) -> Failure:
    """A failure of which nothing but the case, and the values that its inputs have, is known."""
    return Failure(
        case.with_data(data_of(dict(values or inputs_of(case, ops()[case.op])))),
        where.label,
        "a GPU",
        (),
        (Finding("value", Kind.of(kind), "wrong"),),
        None,
        "fails",
        "",
        "",
        "",
        numerics=where.device.numerics,
    )


@cache
def hostile_bundle(text: str, backend: str = "ggml") -> dict[str, str]:
    where = target(backend, "Vulkan0", text)
    where.options["ggml_lib"] = f"/tmp/{text.replace(chr(0), '')}"  # type: ignore[index]
    failure = one_failure(where, hint=text, also=text, provenance=(text,), stderr=f"{text}\n```\n{text}")
    failure = replace(failure, findings=(Finding("value", Kind.WRONG_VALUES, text),))
    return {name: content.decode() for name, content in files_of(failure, where).items()}
