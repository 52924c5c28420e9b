"""The pytest plugin: options, one conformance test per op and device, the report header and the matrix.

It is loaded into every pytest run of the environment it is installed in, so nothing heavy is imported before a
conformance test is collected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from opconform.harness.options import OPTIONS, settings_from
from opconform.harness.registry import UsageError, chosen_ops, ops

if TYPE_CHECKING:
    from opconform.harness.case import Case
    from opconform.harness.op import Op
    from opconform.harness.runner import Target
    from opconform.harness.search import Result
    from opconform.harness.session import Missing, Session
    from opconform.harness.settings import Settings

FIXTURE = "opconform_pair"
_PROPERTY = "opconform_result"
_SEED = "OPCONFORM_SEED"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("opconform", "opconform: backend conformance")
    for option in OPTIONS:
        action = "store_true" if option.flag else "append" if option.many else "store"
        extra: dict[str, Any] = {} if option.flag else {"type": option.type, "metavar": option.metavar or None}
        if option.choices:
            extra = {"choices": option.choices}
        group.addoption(option.name, action=action, default=None, dest=f"opconform_{option.key}", help=option.help, **extra)


@dataclass
class Plan:
    """What this pytest run is to test. Made once, when the first conformance test is collected."""

    settings: Settings
    ops: list[Op]
    targets: list[Target]
    missing: list[Missing]
    cases: list[tuple[str, Case]]
    session: Session

    @classmethod
    def of(cls, config: pytest.Config) -> Plan:
        from opconform.harness.known import find_case
        from opconform.harness.session import Session, targets_of

        values = {option.key: config.getoption(f"opconform_{option.key}") for option in OPTIONS}
        worker_seed = getattr(config, "workerinput", {}).get(_SEED)
        if values["seed"] is None:
            values["seed"] = worker_seed
        try:
            settings = settings_from(values)
            chosen = chosen_ops(values["op"] or ())
            cases = [find_case(name, settings.report_dir, settings.max_bytes) for name in values["case"] or ()]
            targets, missing = targets_of(values["backend"] or (), settings)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
        if cases:
            chosen = [op for op in chosen if any(case.op == op.name for _, case in cases)]
        return cls(settings, chosen, targets, missing, cases, Session(settings))


class Pair:
    """One op on one device, as a test sees it."""

    def __init__(self, op: Op, target: Target, plan: Plan, record: Any) -> None:
        self._op, self._target, self._plan, self._record = op, target, plan, record

    def run(self) -> None:
        """Search, or replay the cases named; fail with the screen of the failure, skip where nothing is supported."""
        __tracebackhide__ = True
        from opconform.harness.backend import Unavailable
        from opconform.harness.session import commands
        from opconform.reports.console import screen

        plan = self._plan
        try:
            if plan.cases:
                here = [(name, case) for name, case in plan.cases if case.op == self._op.name]
                result = plan.session.replay(self._op, self._target, here)
            else:
                result = plan.session.search(self._op, self._target)
        except Unavailable as error:
            pytest.fail(f"{self._target.label} cannot run: {error}", pytrace=False)
        self._record(result)
        if result.failure is not None:
            pytest.fail("\n" + screen(result.failure, commands(result.failure, plan.settings)), pytrace=False)
        if not result.tally.executed:
            pytest.skip(f"unsupported: {'; '.join(result.tally.unsupported)}")


class Conformance:
    """The plugin's state in one pytest process: the plan, and the results as reports bring them in."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._plan: Plan | None = None
        self.results: list[Result] = []
        self.collected = False
        self.seed = 0

    @property
    def plan(self) -> Plan:
        if self._plan is None:
            self._plan = Plan.of(self._config)
        return self._plan

    @property
    def asked(self) -> bool:
        """Whether a backend or a case was asked for by name: then nothing but conformance tests runs."""
        return bool(self._config.getoption("opconform_backend") or self._config.getoption("opconform_case"))

    def close(self) -> None:
        if self._plan is not None:
            self._plan.session.__exit__()


_STATE = pytest.StashKey[Conformance]()


def pytest_configure(config: pytest.Config) -> None:
    import random

    state = config.stash[_STATE] = Conformance(config)
    given = config.getoption("opconform_seed")
    state.seed = random.SystemRandom().randrange(1 << 31) if given is None else given
    state.seed = getattr(config, "workerinput", {}).get(_SEED, state.seed)
    config.option.opconform_seed = state.seed


def pytest_configure_node(node: Any) -> None:
    """Give every xdist worker the seed of the whole run."""
    node.workerinput[_SEED] = node.config.stash[_STATE].seed


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if FIXTURE not in metafunc.fixturenames:
        return
    state = metafunc.config.stash[_STATE]
    plan = state.plan
    pairs = [(op.name, target.label) for target in plan.targets for op in plan.ops]
    marks = [pytest.param(pair, id="-".join(pair)) for pair in pairs]
    for absent in plan.missing:
        reason = f"{absent.spec} is not available: {absent.reason}; {absent.remedy}"
        marks.append(pytest.param(None, id=absent.spec, marks=pytest.mark.skip(reason=reason)))
    metafunc.parametrize(FIXTURE, marks, indirect=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where a backend or case is asked for by name, run the conformance tests alone."""
    state = config.stash[_STATE]
    ours = [item for item in items if FIXTURE in getattr(item, "fixturenames", ())]
    state.collected = bool(ours)
    if state.asked and len(ours) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(ours)])
        items[:] = ours


@pytest.fixture
def opconform_pair(request: pytest.FixtureRequest, record_property: Any) -> Pair:
    """One op on one device: `run()` tests it."""
    from opconform.reports.record import result_to_json

    plan = request.config.stash[_STATE].plan
    op_name, label = request.param
    target = next(target for target in plan.targets if target.label == label)

    def record(result: Result) -> None:
        record_property(_PROPERTY, json.dumps(result_to_json(result)))

    return Pair(ops()[op_name], target, plan, record)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> Iterator[None]:
    yield


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"opconform: seed {config.stash[_STATE].seed}"]


def pytest_unconfigure(config: pytest.Config) -> None:
    state = config.stash.get(_STATE, None)
    if state is not None:
        state.close()
