"""The pytest plugin: options, one conformance test per op and device, the report header and the matrix.

It is loaded into every pytest run of the environment it is installed in, so nothing heavy is imported before a
conformance test is collected or a backend is asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeGuard

import pytest

from opconform.budget import Budget
from opconform.harness.model.text import printable, speak_any_encoding
from opconform.harness.model.usage import UsageError
from opconform.harness.run.interrupts import heeded
from opconform.options import OPTIONS, SHARD_NEEDS_SEED, settings_from
from opconform.reports.run import new_run_id

if TYPE_CHECKING:
    from opconform.campaign import Campaign
    from opconform.harness.model.op import Op
    from opconform.harness.run.target import Target
    from opconform.harness.search.result import Result
    from opconform.harness.search.session import Session
    from opconform.harness.search.settings import Settings

FIXTURE = "opconform_pair"
_RESULT = pytest.StashKey[str]()
_STATE = pytest.StashKey["State"]()
_RUN = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("opconform", "opconform: backend conformance")
    for option in OPTIONS:
        extra: dict[str, Any] = {"action": "store_true"}
        if not option.flag:
            extra = {"action": "append" if option.many else "store", "type": option.type}
            extra |= {"choices": option.choices} if option.choices else {"metavar": option.metavar}
        group.addoption(option.name, default=None, dest=f"opconform_{option.key}", help=option.help, **extra)


@dataclass
class Plan:
    """What this pytest process is to test, and the session that it runs in. `done` has what came of each op and target:
    a result, or why it could not run."""

    campaign: Campaign
    session: Session
    done: dict[tuple[str, str], Result | str] = field(default_factory=dict)
    budget: Budget | None = None

    @classmethod
    def of(cls, config: pytest.Config) -> Plan:
        """The plan that the options make. Raises `pytest.UsageError` (exit status 4) for one that cannot be."""
        from opconform.campaign import Campaign

        try:
            campaign = Campaign.of(_values_of(config), config.stash[_RUN])
            return cls(campaign, campaign.open())
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None


def _values_of(config: pytest.Config) -> dict[str, Any]:
    return {option.key: config.getoption(f"opconform_{option.key}") for option in OPTIONS}


def _settings_of(config: pytest.Config) -> Settings:
    """The settings that the options make. Raises `pytest.UsageError`."""
    try:
        return settings_from(_values_of(config))
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None


class State:
    """The plugin's state in one pytest process."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._plan: Plan | None = None
        self.results: list[Result] = []

    @property
    def plan(self) -> Plan:
        """Made at its first use: listing devices starts every backend once."""
        if self._plan is None:
            stack = contextlib.ExitStack()
            stack.enter_context(heeded())
            self._config.add_cleanup(stack.close)
            self._plan = Plan.of(self._config)
        return self._plan

    @property
    def asked(self) -> bool:
        """Whether a backend, op or case is asked for by name: then nothing but conformance tests runs."""
        return any(self._config.getoption(f"opconform_{key}") for key in ("backend", "op", "case"))

    @property
    def faults(self) -> list[str]:
        """What else is wrong with the run; found out once the results are in."""
        return self._plan.campaign.faults(self.results) if self._plan is not None else []

    @property
    def executed(self) -> int:
        return sum(result.tally.executed for result in self.results)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the result that came with a report, from this process or from a worker of xdist."""
        if report.when == "teardown" and hasattr(report, "opconform_result"):
            from opconform.harness.search.result import Result

            self.results.append(Result.from_json(json.loads(report.opconform_result)))

    def close(self) -> None:
        if self._plan is not None:
            self._plan.session.__exit__()


class Pair:
    """One op on one device, as a test sees it; `result` is there once it has run."""

    def __init__(self, op: Op, target: Target, plan: Plan) -> None:
        self._op, self._target, self._plan = op, target, plan
        self.result: Result | None = None

    def run(self) -> None:
        """Search, or replay the cases named; fail with the screen of the failure, skip where nothing is supported.

        A pair that has failed stays failed: a plugin that runs failing tests again must not turn a race into a pass.
        """
        __tracebackhide__ = True
        from opconform.reports.commands import commands
        from opconform.reports.screen import screen

        plan, pair = self._plan, (self._op.name, self._target.label)
        found = plan.done.get(pair)
        if not _is_red(found):
            found = plan.done[pair] = self._outcome()
        if isinstance(found, str):
            pytest.fail(found, pytrace=False)
        self.result = found
        failure = found.failure
        if failure is not None:
            pytest.fail(screen(failure, commands(failure, plan.campaign.settings)), pytrace=False)
        if found.known:
            listed = found.known_failures
            pytest.xfail(printable("; ".join(f"{known.reason} ({known.entry}; {known.link})" for known in listed)))
        if not found.tally.executed:
            reasons = printable("; ".join(found.tally.reasons))
            pytest.skip(f"unsupported: {reasons}" if reasons else "no case says anything of a kernel")

    def _outcome(self) -> Result | str:
        """What comes of the pair, or why it cannot run."""
        from opconform.harness.run.backend import Unavailable

        plan = self._plan
        if plan.budget is None:  # by now it is known what is to run
            processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
            pairs = -(-len(plan.campaign.run.pairs) // processes)
            plan.budget = Budget(pairs, plan.session.settings, plan.campaign.seconds)
        with plan.budget.pair() as share:
            plan.session.settings = replace(plan.session.settings, **share)
            try:
                return plan.campaign.result(plan.session, self._op, self._target)
            except Unavailable as error:
                return f"{self._target.label} cannot run: {error}"


def _is_red(found: Result | str | None) -> TypeGuard[Result | str]:
    return isinstance(found, str) or (found is not None and found.failure is not None)


def pytest_configure(config: pytest.Config) -> None:
    speak_any_encoding(sys.stdout, sys.stderr)
    state = config.stash[_STATE] = State(config)
    config.pluginmanager.register(state, "opconform-state")
    from_controller = getattr(config, "workerinput", {})
    config.stash[_RUN] = from_controller.get("opconform_run") or new_run_id()
    given = any(config.getoption(f"opconform_{option.key}") is not None for option in OPTIONS)
    if config.option.opconform_seed is None:
        if config.option.opconform_shard and not from_controller:
            raise pytest.UsageError(SHARD_NEEDS_SEED)
        drawn = random.SystemRandom().randrange(1 << 31)
        config.option.opconform_seed = from_controller.get("opconform_seed", drawn)
    if given and not hasattr(config, "workerinput"):  # a usage error must end the run before anything is collected
        _ = state.plan if state.asked else _settings_of(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist the seed and the run: it gets the command line, and not what was set since."""
    node.workerinput["opconform_seed"] = node.config.option.opconform_seed
    node.workerinput["opconform_run"] = node.config.stash[_RUN]


def pytest_report_header(config: pytest.Config) -> list[str]:
    state = config.stash[_STATE]
    seed = config.option.opconform_seed
    lines = [f"opconform: seed {seed} (--seed {seed} draws the same cases again)"]
    if state.asked and not config.option.collectonly:
        lines += [f"opconform: {target.label}  {target.about}" for target in state.plan.campaign.targets]
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if FIXTURE not in metafunc.fixturenames:
        return
    campaign = metafunc.config.stash[_STATE].plan.campaign
    pairs = [(op.name, target.label) for op, target in campaign.pairs]
    params = [pytest.param(pair, id="-".join(pair)) for pair in pairs]
    params += [pytest.param(absent, id=absent.spec) for absent in campaign.missing]
    metafunc.parametrize(FIXTURE, params, indirect=True)


@pytest.fixture
def opconform_pair(request: pytest.FixtureRequest) -> Generator[Pair]:
    """One op on one device: `run()` tests it. A backend that cannot run here is a skip; under CI it is a failure,
    unless OPCONFORM_WITHOUT names it."""
    plan = request.config.stash[_STATE].plan
    if not isinstance(request.param, tuple):
        absent = request.param
        left_out = absent.hardware or absent.spec in os.environ.get("OPCONFORM_WITHOUT", "").split()
        demanded = os.environ.get("CI", "").lower() in ("1", "true") and not left_out
        end = pytest.fail if demanded else pytest.skip
        end(f"{absent.spec} is not available: {absent.why}")
    op_name, label = request.param
    op, target = next(pair for pair in plan.campaign.pairs if (pair[0].name, pair[1].label) == (op_name, label))
    pair = Pair(op, target, plan)
    yield pair
    if pair.result is not None:
        request.node.stash[_RESULT] = json.dumps(pair.result.to_json())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where a backend, op or case is asked for by name, run the conformance tests alone."""
    if not config.stash[_STATE].asked:
        return
    ours = {item for item in items if FIXTURE in getattr(item, "fixturenames", ())}
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    items[:] = [item for item in items if item in ours]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note what the run sets out to test, so that the history tells what a run that was cut short left out."""
    params = [item.callspec.params.get(FIXTURE) for item in session.items if hasattr(item, "callspec")]
    pairs = [param for param in params if isinstance(param, tuple)]
    if pairs:
        session.config.stash[_STATE].plan.campaign.run.pairs[:] = pairs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the result to the report of the teardown, so that it travels from an xdist worker too."""
    report = yield
    if _RESULT in item.stash:
        report.opconform_result = item.stash[_RESULT]  # type: ignore[attr-defined]
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    state = config.stash[_STATE]
    if state.asked and not state.executed and not config.option.collectonly:
        hint = "" if state.results else "; --pyargs opconform.conformance collects the tests from any folder"
        terminalreporter.write_line(f"opconform: no case was executed: that is a failure, not a pass{hint}", red=True)
    if not state.results:
        return
    from opconform.harness.search.known_failures import fixed
    from opconform.reports.console import counts, covered, matrix
    from opconform.reports.history import history_path
    from opconform.reports.repro.place import repro_dir

    terminalreporter.write_sep("=", "opconform")
    results = sorted(state.results, key=lambda result: (result.op, result.target))  # xdist brings them in any order
    terminalreporter.write_line(matrix(results, repro_dir(_settings_of(config))))
    if terminalreporter.verbosity > 0 and (shares := covered(results)):
        terminalreporter.write_line(shares)
    terminalreporter.write_line(counts(results))
    for line in fixed(results):
        terminalreporter.write_line(line, green=True)
    for fault in state.faults:
        terminalreporter.write_line(fault, red=True)
    history = history_path(_settings_of(config))
    if history is not None and history.exists():
        terminalreporter.write_line(f"run {config.stash[_RUN]}, recorded in {history}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Nothing executed is red: a run that was asked for a backend must have run a case on it. So is an expected failure
    that has expired or that no device matches."""
    state = session.config.stash[_STATE]
    only_looking = session.config.option.collectonly or hasattr(session.config, "workerinput")
    nothing = state.asked and not state.executed
    if exitstatus in (0, 5) and not only_looking and (nothing or state.faults):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    state = config.stash.get(_STATE, None)
    if state is not None:
        state.close()
