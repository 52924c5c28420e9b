"""`opconform demo`: a failure found, shrunk and explained, with nothing installed but Opconform itself."""

from __future__ import annotations

import inspect
import sys
import time

import click

from opconform import colours, demo_kernel
from opconform.arguments import with_usage_errors
from opconform.campaign import Campaign
from opconform.harness.search.result import Result
from opconform.harness.search.settings import OUT
from opconform.progress import Progress

_EXPLAINED = """
How to read it. The first line is the kind of the failure, the op and the device. `case` is the smallest case that
fails: of hundreds of elements two are left, and the second slice along i3 is what the failure needs. `got` stands
beside `want`. `hint` names the fault: it foretells every element that the kernel returns, also for larger cases.
`bound` is how far a right kernel may be off, and the line where that is derived. `again with` shows it once more."""


@click.command()
@with_usage_errors
def demo() -> None:
    """See a failure found, shrunk and explained, in half a minute: a kernel that is wrong ships with Opconform."""
    start = time.monotonic()
    file = inspect.getsourcefile(demo_kernel) or demo_kernel.__file__
    click.echo(f"{file} holds a kernel for ACC: out = a, then a view of out += b.")
    click.echo(
        "Opconform knows what ACC is, and nothing of the kernel. It draws cases until one fails, and shrinks it:"
    )
    failure = _run(f"{file}:Broken").failure
    if failure is None:
        click.echo("The kernel that is wrong passed: that is a fault of Opconform.", err=True)
        sys.exit(1)
    click.echo(_EXPLAINED)
    line = inspect.getsourcelines(demo_kernel.Broken.slices)[1] + 2
    click.echo(f"\nThe fault is in {file}:{line}: only the first slice is added. The class Mended adds all of them:\n")
    _run(f"{file}:Mended")
    click.echo(f"\n{time.monotonic() - start:.0f} s. Next, for a kernel of yours:\n")
    for command, about in (
        ("opconform describe acc --skeleton > mine.py", "a backend to fill in; opconform list shows the other ops"),
        ("opconform test --backend mine.py", "search for a case that it fails"),
        ("opconform list", "backends that are installed: real ggml builds, CUDA, Vulkan, OpenCL, torch"),
    ):
        click.echo(f"  {command:<46} {colours.styled(about, dim=True)}")


def _run(backend: str) -> Result:
    """Search ACC on a class of the demo's kernel, alone: no other backend is asked, only the case is kept."""
    values = {
        "backend": [backend],
        "op": ["acc"],
        "max_examples": 300,
        "seed": 1,
        "also_seconds": 0.0,
        "database": "none",
        "history": "none",
        "repro_dir": "none",
        "known_failures": "none",
        "report_dir": OUT,
    }
    campaign = Campaign.of(values)
    ((op, target),) = campaign.pairs
    with campaign.open([Progress(1, campaign.settings)], bundles=False) as session:
        return campaign.result(session, op, target)
