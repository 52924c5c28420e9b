"""`opconform watch` and `capture`: a model judged while it runs, and its nodes as case files."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from opconform import __version__
from opconform.arguments import shared
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.registry import backend_class
from opconform.harness.run.target import Target
from opconform.harness.run.watching import WatchRequest
from opconform.harness.search.observer import Observers
from opconform.harness.search.result import Result, Tally, model_result
from opconform.harness.search.session import Session, targets_of
from opconform.harness.search.settings import positive
from opconform.harness.search.watched import Watched
from opconform.harness.search.watching import Watching
from opconform.harness.search.watching import capture as capture_nodes
from opconform.options import settings_from
from opconform.reports.history import recorders
from opconform.reports.repro.observer import bundle_writers
from opconform.reports.repro.piece import write_piece_issue
from opconform.reports.run import Run, about_devices
from opconform.reports.watching import again_with, capture_screen, screen, watch_matrix

ALL = "all"


#: The options that say which model runs, and what it decodes: name, type, default, help.
_MODEL = (
    ("--arch", str, "", "a tiny model with random weights: one, several with commas between, or all"),
    ("--type", str, "f32", "of the tiny model's weights"),
    ("--tokens", int, 70, "of the prompt"),
    ("--sequences", int, 3, "that are decoded together"),
    ("--steps", int, 2, "of one token each, after the prompt"),
    ("--gpu-layers", int, None, "how many layers are on the device (default: all)"),
)


def _model_options(command: Any) -> Any:
    for name, kind, default, text in reversed(_MODEL):
        metavar = "N" if kind is int else "NAME"
        command = click.option(name, type=kind, default=default, metavar=metavar, show_default=True, help=text)(command)
    return command


@click.command()
@click.argument("model", required=False, default="")
@_model_options
@click.option("--minutes", type=float, metavar="M", help="share so long among the models; report what there is")
@click.option("--output", type=click.Choice(("console", "json")), default="console", help="what goes to stdout")
@shared("--backend", "--ggml-lib", "--seed", "--max-bytes", "--report-dir", "--repro-dir", "--history")
def watch(values: dict[str, Any], model: str, arch: str, minutes: float | None, output: str, **chosen: Any) -> None:
    """Judge a running model, node by node and as a whole, and name what is wrong.

    MODEL is a GGUF file; --arch makes a small one. Exit status: 0 all right, 1 something is wrong, 2 usage.
    """
    _one_model(model, arch, values)
    seed = values["seed"] or 0
    settings = settings_from({**values, "seed": seed, "also_seconds": 0})
    targets, _ = targets_of(values["backend"], settings)
    end = None if minutes is None else time.monotonic() + 60 * positive("--minutes", minutes)
    request = _request(model, chosen, seed)
    todo = [(target, name) for target in targets for name in _architectures(arch, target) or [""]]
    several = len(todo) > 1
    found: list[Found] = []
    stopped = False
    pairs = [(_title(replace(request, architecture=name)), target.label) for target, name in todo]
    history = Observers(recorders(Run(settings, "search", about_devices(targets), pairs)))
    with contextlib.closing(history), Session(settings, bundle_writers(settings)) as session:
        try:
            for number, (target, name) in enumerate(todo):
                until = None if end is None else _share(end, len(todo) - number)
                device = target.device.id
                asked = replace(request, architecture=name, device=device, options=target.options, until=until)
                result = _watched(session, target, asked, minutes, several)
                found.append((name or model, target.label, result))
                if not isinstance(result, Watched) or result.nodes or result.whole:
                    history.watched(_recorded(result, asked, target))  # else the time was up: it did not finish
                if isinstance(result, Watched) and not (several and result.right):
                    click.echo(screen(result, again_with(result)) + "\n", err=output == "json")
        except KeyboardInterrupt:
            stopped = True
    if several and found:
        click.echo(watch_matrix(found), err=output == "json")
    if output == "json":
        plain = [
            {"model": label, "target": target, **({"error": it} if isinstance(it, str) else {"found": it.to_json()})}
            for label, target, it in found
        ]
        click.echo(json.dumps({"opconform": __version__, "watched": plain}, indent=1))
    if stopped:
        click.echo(f"stopped by Ctrl-C after {len(found)} of {len(todo)} models", err=True)
        sys.exit(128 + signal.SIGINT)
    _finish(found)


def _share(end: float, left: int) -> float:
    """When a model's time is up, where so many are left to share the time until `end`."""
    now = time.monotonic()
    return now + max(end - now, 0.0) / left


#: What came of a model on a target, by the names of both; a text says why it could not be run.
Found = tuple[str, str, Watched | str]


def _watched(
    session: Session, target: Target, request: WatchRequest, minutes: float | None, several: bool
) -> Watched | str:
    """What came of one model. Raises `UsageError` and `Unavailable` where it is the only one."""
    label = request.architecture or request.model
    try:
        result = Watching(session, target, _progress(label, target)).watch(request, _again(request, minutes))
    except (UsageError, Unavailable) as error:
        if not several:
            raise
        return str(error)
    try:
        write_piece_issue(result)
    except OSError as error:  # what was found must still be shown
        click.echo(f"the issue of the piece could not be written: {error}", err=True)
    return result


def _title(request: WatchRequest) -> str:
    """What a model is called in a history, among the ops."""
    if not request.architecture:
        return f"watch {Path(request.model).name}"
    return f"watch {request.architecture}" + (f" {request.type}" if request.type != WatchRequest("").type else "")


def _recorded(found: Watched | str, request: WatchRequest, target: Target) -> Result:
    if isinstance(found, Watched):
        return model_result(found, _title(request))
    tally = Tally(unsupported=Counter({found: 1}))
    return Result(_title(request), target.label, target.about, tally, build=target.build.name)


@click.command()
@click.argument("model", required=False, default="")
@_model_options
@click.option("-o", "--out", metavar="DIR", required=True, help="where the files go")
@click.option("--wrong-only", is_flag=True, help="judge the model first, and write what is wrong")
@click.option("--no-values", is_flag=True, help="leave out the bytes of the inputs; drawn ones stand for them")
@shared("--backend", "--ggml-lib", "--seed", "--max-bytes")
def capture(
    values: dict[str, Any], model: str, arch: str, out: str, wrong_only: bool, no_values: bool, **chosen: Any
) -> None:
    """Write the distinct nodes of a running model as case files, and as lines for test-backend-ops --test-file."""
    _one_model(model, arch, values)
    seed = values["seed"] or 0
    settings = settings_from({**values, "seed": seed, "also_seconds": 0, "report_dir": out})
    targets, _ = targets_of(values["backend"], settings)
    if len(targets) > 1 or arch == ALL or "," in arch:
        raise UsageError("opconform capture takes one model and one device")
    (target,) = targets
    request = replace(_request(model, chosen, seed), architecture=arch, device=target.device.id, options=target.options)
    if wrong_only:
        with Session(settings) as session:
            found = Watching(session, target, _progress(arch or model, target)).watch(request, "")
        files = [case.path for case in found.cases] + ([found.piece] if found.piece else [])
        click.echo("\n".join(files) or "nothing is wrong: no file was written")
        return
    captured = capture_nodes(target, request, Path(out), not no_values)
    click.echo(capture_screen(captured, out))
    sys.exit(0 if captured.cases and captured.ended is None else 1)


def _one_model(model: str, arch: str, values: dict[str, Any]) -> None:
    if bool(model) == bool(arch):
        raise UsageError("it takes a model file, or --arch NAME")
    if not values["backend"]:
        raise UsageError("it needs --backend: the device to run the model on, such as ggml:CPU")


def _request(model: str, chosen: dict[str, Any], seed: int) -> WatchRequest:
    return WatchRequest(
        device="",
        model=model,
        type=chosen["type"],
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
    """The architectures that `arch` names: some, or all that the target's backend makes models of."""
    if arch != ALL:
        return [name.strip() for name in arch.split(",") if name.strip()]
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


def _finish(found: Sequence[Found]) -> None:
    ran = [result for _, _, result in found if isinstance(result, Watched)]
    if not ran:
        click.echo("nothing was run: that is a failure, not a pass", err=True)
        sys.exit(1)
    if not all(result.right for result in ran):
        sys.exit(1)
