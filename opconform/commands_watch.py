"""`opconform watch`: a model judged while it runs."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from opconform.arguments import shared
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.registry import backend_class
from opconform.harness.run.target import Target
from opconform.harness.run.watching import WatchRequest
from opconform.harness.search.session import Session, targets_of
from opconform.harness.search.settings import positive
from opconform.harness.search.watching import Watched, Watching
from opconform.options import settings_from
from opconform.reports.watching import again_with, screen, watch_matrix

ALL = "all"


@click.command()
@click.argument("model", required=False, default="")
@click.option("--arch", metavar="NAME", default="", help="a tiny model with random weights, or all of them, one by one")
@click.option("--type", "type_", metavar="TYPE", default="f32", show_default=True, help="of the tiny model's weights")
@click.option("--tokens", type=int, metavar="N", default=70, show_default=True, help="of the prompt")
@click.option("--sequences", type=int, metavar="N", default=3, show_default=True, help="that are decoded together")
@click.option(
    "--steps", type=int, metavar="N", default=2, show_default=True, help="of one token each, after the prompt"
)
@click.option("--gpu-layers", type=int, metavar="N", help="how many layers are on the device (default: all)")
@click.option("--minutes", type=float, metavar="M", help="stop searching after so long, and report what there is")
@shared("--backend", "--ggml-lib", "--seed", "--max-bytes", "--report-dir")
def watch(values: dict[str, Any], model: str, arch: str, minutes: float | None, **chosen: Any) -> None:
    """Judge a running model, node by node and as a whole, and name what is wrong.

    MODEL is a GGUF file; --arch makes a small one. Exit status: 0 all right, 1 something is wrong, 2 usage.
    """
    if bool(model) == bool(arch):
        raise UsageError("opconform watch takes a model file, or --arch NAME")
    if not values["backend"]:
        raise UsageError("opconform watch needs --backend: the device to run the model on, such as ggml:CPU")
    seed = values["seed"] or 0
    settings = settings_from({**values, "seed": seed, "also_seconds": 0})
    targets, _ = targets_of(values["backend"], settings)
    request = _request(model, chosen, seed)
    until = None if minutes is None else time.monotonic() + 60 * positive("--minutes", minutes)
    found: list[tuple[str, str, Watched | str]] = []
    with Session(settings) as session:
        for target in targets:
            for name in _architectures(arch, target) or [""]:
                asked = replace(
                    request, architecture=name, device=target.device.id, options=target.options, until=until
                )
                label = name or model
                try:
                    result = Watching(session, target, _progress(label, target)).watch(asked, _again(asked, minutes))
                except (UsageError, Unavailable) as error:
                    if len(targets) == 1 and arch != ALL:
                        raise
                    found.append((label, target.label, str(error)))
                    continue
                found.append((label, target.label, result))
                if arch != ALL or not result.right:
                    click.echo(screen(result, again_with(result, _options_of(target))) + "\n")
    if len(found) > 1:
        click.echo(watch_matrix(found))
    _finish(found)


def _request(model: str, chosen: dict[str, Any], seed: int) -> WatchRequest:
    return WatchRequest(
        device="",
        model=model,
        type=chosen["type_"],
        tokens=int(positive("--tokens", chosen["tokens"])),
        sequences=int(positive("--sequences", chosen["sequences"])),
        steps=_natural("--steps", chosen["steps"]),
        gpu_layers=None if chosen["gpu_layers"] is None else _natural("--gpu-layers", chosen["gpu_layers"]),
        seed=seed,
    )


def _natural(name: str, value: int) -> int:
    if value < 0:
        raise UsageError(f"{name} is {value}; it must be 0 or above")
    return value


def _architectures(arch: str, target: Target) -> list[str]:
    """The architectures that `arch` names: one, or all that the target's backend makes models of."""
    if arch != ALL:
        return [arch] if arch else []
    known = backend_class(target.spec).architectures()
    if not known:
        raise UsageError(f"the backend {target.spec} runs no models")
    return list(known)


def _progress(label: str, target: Target) -> Any:
    def say(what: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[K{label} on {target.label}: {what} …", nl=False, err=True)

    return say


def _again(request: WatchRequest, minutes: float | None) -> str:
    """What shows the same again: the arguments, without those of the device."""
    words = ["--arch", request.architecture] if request.architecture else [shlex.quote(request.model)]
    usual = WatchRequest("")
    for name in ("type", "tokens", "sequences", "steps", "gpu_layers", "seed"):
        if getattr(request, name) != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(request, name))]
    return " ".join([*words, *(["--minutes", f"{minutes:g}"] if minutes is not None else [])])


def _options_of(target: Target) -> list[str]:
    return [f"--{name.replace('_', '-')} {shlex.quote(value)}" for name, value in target.options.items()]


def _finish(found: Sequence[tuple[str, str, Watched | str]]) -> None:
    ran = [result for _, _, result in found if isinstance(result, Watched)]
    if not ran:
        click.echo("nothing was run: that is a failure, not a pass", err=True)
        sys.exit(1)
    if not all(result.right for result in ran):
        sys.exit(1)
