"""A session: the ops and devices that were asked for, and what came of them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from threadpoolctl import threadpool_limits

from opconform.harness.draw.known import KnownCase, known_cases, store
from opconform.harness.explain.blame import Panel
from opconform.harness.explain.failure import Failure, describe
from opconform.harness.judge.checks import ON_REQUEST, TwinCheck
from opconform.harness.judge.judging import Verdict, now_and_then
from opconform.harness.judge.vacuous import NO_ELEMENT
from opconform.harness.model.case import Case
from opconform.harness.model.op import Op
from opconform.harness.model.text import printable
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.process import Worker, devices_of
from opconform.harness.run.registry import backend_names, parts_of, split_target, with_class
from opconform.harness.run.relations import related
from opconform.harness.run.runner import Runner
from opconform.harness.run.sanitizer import ALIAS, OPTION
from opconform.harness.run.target import Target
from opconform.harness.search.known_failures import Entry, OnDevice
from opconform.harness.search.observer import Observer, Observers
from opconform.harness.search.result import Result, Tally
from opconform.harness.search.settings import Settings


@dataclass(frozen=True)
class Missing:
    """A backend that cannot run here, and what would make it run. `hardware`: it takes a machine that CI may lack."""

    spec: str
    reason: str
    remedy: str
    hardware: bool = False

    @property
    def why(self) -> str:
        """Reason and remedy in one line."""
        return printable(f"{self.reason}; {self.remedy}")


Workers = dict[str, Worker]  #: workers that stand ready, by the backend's spec


def started(wanted: Sequence[str], settings: Settings) -> Workers:
    """The worker of the backend that `wanted` names, where it is one: it starts while the harness makes itself ready.
    Whoever has it ends it."""
    try:
        specs = {split_target(with_class(name))[0] for name in wanted}
    except UsageError:  # `targets_of` says so, in its turn
        return {}
    if len(specs) != 1 or settings.sanitize or not settings.isolated:
        return {}
    return {spec: Worker(spec, _options_of(spec, settings)) for spec in specs}


def end(workers: Workers) -> None:
    """End those that nobody has taken."""
    while workers:
        workers.popitem()[1].close()


def targets_of(
    wanted: Sequence[str], settings: Settings, workers: Mapping[str, Worker] | None = None
) -> tuple[list[Target], list[Missing]]:
    """The devices that `wanted` names; every registered backend's where it names none. `workers` list theirs, and
    still stand ready then.

    A backend without a device stands for all of its devices. Raises `UsageError` for a backend or device that does
    not exist, and for one asked for by name that cannot run.
    """
    found: dict[str, Target] = {}
    missing = []
    for name in wanted or backend_names():
        spec, device_id, alias = split_target(with_class(name))
        try:
            worker = (workers or {}).get(spec)
            options = _options_of(spec, settings)
            devices = worker.devices() if worker else devices_of(spec, options, settings.isolated)
        except Unavailable as error:
            if wanted:
                raise UsageError(f"--backend {name} cannot run: {error.reason}; {error.remedy}") from None
            missing.append(Missing(spec, error.reason, error.remedy, error.hardware))
            continue
        chosen = [device for device in devices if device_id in (None, device.id)]
        if not chosen:
            ids = ", ".join(f"{spec}:{device.id}" for device in devices)
            raise UsageError(f"--backend {name}: no such device; there are {ids}")
        for device in chosen:
            target = Target(spec, device, options, alias or (ALIAS if settings.sanitize else ""))
            found[target.label] = target
    return list(found.values()), missing


def named_by(name: str, targets: Iterable[Target]) -> list[Target]:
    """Those of `targets` that `name`, as `--backend` takes it, stands for."""
    spec, device_id, alias = parts_of(with_class(name))
    return [
        target
        for target in targets
        if target.spec == spec and device_id in ("", target.device.id) and alias in ("", target.alias)
    ]


def idle(asked: Iterable[str], targets: Sequence[Target], results: Sequence[Result]) -> list[str]:
    """The names in `asked` (as `--backend` takes them) for which no case ran, one line each. A name of which nothing
    was to be tested is left alone."""
    found = []
    for name in asked:
        labels = {target.label for target in named_by(name, targets)}
        ran = [result.tally.executed for result in results if result.target in labels]
        if ran and not any(ran):
            found.append(f"{name} was asked for by name and ran no case: that is a failure, not a pass")
    return found


def _options_of(spec: str, settings: Settings) -> dict[str, str]:
    """The options that are a backend's own: `ggml_lib` is ggml's, by its prefix. A backend from a file sees all."""
    own = {name: value for name, value in settings.options.items() if ".py:" in spec or name.startswith(f"{spec}_")}
    return {**own, OPTION: "yes"} if settings.sanitize else own


def on_device(target: Target) -> OnDevice:
    """A device, as the entries of known_failures.toml look at it."""
    return OnDevice(target.label, target.device.description, target.device.versions)


class Session:
    """Runs ops on devices, one worker per device at a time. A context manager: leaving it ends the workers.

    `listed` are the expected failures; they hold for searches, and not for cases that are replayed. `known` are known
    cases beside the packaged ones. `workers` stand ready for the first device of their backends. Raises `UsageError`
    for a database of examples that cannot be.
    """

    def __init__(
        self,
        settings: Settings,
        observers: Sequence[Observer] = (),
        listed: Sequence[Entry] = (),
        workers: Workers | None = None,
        known: Sequence[KnownCase] = (),
    ) -> None:
        self.settings = settings
        self._workers: Workers = {} if workers is None else workers
        self._listed = listed
        self._known = known
        self._observer = Observers(observers)
        from opconform.harness.search.databases import database_of  # Hypothesis takes a quarter of a second to import

        self._database = database_of(settings.database)
        self._runners: dict[str, Runner] = {}
        opened = self._runners.values if settings.isolated else tuple  # another kernel could end this very process
        self._panel = Panel(self._backends, settings.also_seconds, settings.max_bytes, opened)
        # The references multiply small matrices, many at once: more threads only spin.
        self._one_thread = threadpool_limits(1)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()
        end(self._workers)
        self._panel.close()
        self._one_thread.restore_original_limits()
        self._observer.close()

    def runner(self, target: Target) -> Runner:
        """The runner of a device, started at its first use. Raises `Unavailable`."""
        if target.label in self._runners and self._runners[target.label].lost:
            self._runners.pop(target.label).close()
        if target.label not in self._runners:
            settings = self.settings
            self._runners[target.label] = Runner(
                target,
                time_limit=settings.time_limit,
                isolated=settings.isolated,
                strict=settings.strict,
                max_bytes=settings.known_max_bytes or settings.max_bytes,
                worker=self._workers.pop(target.spec, None),
            )
        return self._runners[target.label]

    def _backends(self) -> dict[str, Mapping[str, str]]:
        """The options of every registered backend and of those in use, by spec; none runs under a checker."""
        specs = dict.fromkeys([*backend_names(), *(runner.target.spec for runner in self._runners.values())])
        return {spec: _options_of(spec, replace(self.settings, sanitize=False)) for spec in specs}

    def search(self, op: Op, target: Target) -> Result:
        """Search one op on one device, and store the failing case where there is one."""
        index, count = self.settings.shard
        known = [*known_cases(op.name).values(), *(each for each in self._known if each.case.op == op.name)]
        known = known[index - 1 :: count]
        from opconform.harness.search.search import Search  # Hypothesis takes a quarter of a second to import

        with self._pair(op, target):
            runner, about = self.runner(target), on_device(target)
            listed = [entry for entry in self._listed if entry.matches(op.name, about)]
            result = Search(op, runner, self.settings, known, self._database, self._observer, listed).run()
            return self._done(op, target, result)

    def replay(self, op: Op, target: Target, cases: Iterable[tuple[str, Case]]) -> Result:
        """Run just these cases of one op, each `Settings.times` times or until it fails; the first failure is described
        as it is, and not shrunk."""
        tally, failure, failed = Tally(), None, []
        with self._pair(op, target):
            runner, checks = self.runner(target), [ON_REQUEST[name] for name in self.settings.checks]
            for name, case in cases:
                verdict = self._replayed(op, runner, case, checks)
                self._observer.verdicts(op, target, [verdict])
                if verdict.vacuous != NO_ELEMENT:  # else it counts, for it is named: a mended failure reads as a pass
                    verdict = replace(verdict, vacuous="")
                tally.count(verdict)
                if verdict.failed:
                    failed.append(name)
                    failure = failure or describe(op, runner, verdict)
            return self._done(op, target, Result(op.name, target.label, target.about, tally, failure, tuple(failed)))

    @contextlib.contextmanager
    def _pair(self, op: Op, target: Target) -> Iterator[None]:
        """One op on one device runs in this context. Where that raises, its worker may be in the middle of anything:
        the next op opens the device afresh."""
        self._observer.begins(op, target)
        try:
            yield
        except Exception as error:
            runner = self._runners.pop(target.label, None)
            if runner is not None:
                runner.close()
            self._observer.lost(op, target, str(error))
            raise

    def _replayed(self, op: Op, runner: Runner, case: Case, checks: Sequence[TwinCheck]) -> Verdict:
        """The verdict on a case that is run until it fails, `Settings.times` times at most."""
        for run in range(self.settings.times):
            verdict = runner.verdicts(op, [case], beyond=("bug",))[0]
            if verdict.passed:
                verdict = related(runner, op, verdict, checks)
            verdict = verdict.saying(runner.said())
            if verdict.failed and run:
                return now_and_then(verdict, f"right in {run} runs, then wrong")
            if not verdict.passed:
                break
        return verdict

    def _done(self, op: Op, target: Target, result: Result) -> Result:
        result = replace(result, build=target.build.name, free=op.free)
        failure = result.failure
        for case in [*([failure.case] if failure else []), *(lie.case for lie in result.lies)]:
            try:
                store(case, self.settings.report_dir)
            except OSError as error:  # the failure itself must still be shown
                print(f"the failing case could not be stored: {error}", file=sys.stderr)
        if failure is not None:
            self._observer.failure(op, target, failure)
            try:
                result = replace(result, failure=replace(failure, also=self._also(op, target, failure)))
            except KeyboardInterrupt:  # the failure itself must still be recorded
                self._observer.result(op, target, result)
                raise
        self._observer.result(op, target, result)
        return result

    def _also(self, op: Op, target: Target, failure: Failure) -> str:
        """Whom a failure puts the blame on."""
        own = partial(self.runner, target)
        return self._panel.line(op, failure.case, failure.kind, failure.packed_twin, target, own)
