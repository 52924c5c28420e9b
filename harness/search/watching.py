"""A model watched on a device: its nodes judged one by one, its whole graph against them, and what becomes cases."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from opconform.harness.draw.known import case_path, checked, store, write_case
from opconform.harness.judge.judging import Verdict
from opconform.harness.judge.nodes import judge_node
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.findings import Kind
from opconform.harness.model.graph import Ended, SeenNode, WholeGraph
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.ops import ops
from opconform.harness.model.piece import Piece, write_piece
from opconform.harness.model.sidecar import whole_file
from opconform.harness.model.usage import UsageError
from opconform.harness.model.values import recipes_of
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.registry import backend_class
from opconform.harness.run.target import Target
from opconform.harness.run.watching import LateError, Watcher, WatchRequest
from opconform.harness.search.session import Session
from opconform.harness.search.watched import JudgedNode, State, Watched, WrongCase

MOST_CASES = 16  #: distinct wrong nodes that are replayed and kept


@dataclass
class _Found:
    """What a watching has found so far."""

    nodes: list[JudgedNode] = field(default_factory=list)
    wrong: dict[str, tuple[Case, JudgedNode, int]] = field(default_factory=dict)
    copies: int = 0


Progress = Callable[[str], None]


class Watching:
    """Watches models on one device of a session."""

    def __init__(self, session: Session, target: Target, say: Progress = lambda what: None) -> None:
        """`say` is told what is done next."""
        self._session, self._target, self._say = session, target, say
        self._runner = session.runner(target)
        self._numerics: dict[str, Numerics] = {}

    def watch(self, request: WatchRequest, again: str) -> Watched:
        """Watch one model. Raises `UsageError` and `Unavailable` where it cannot be run at all."""
        start = time.monotonic()
        self._say("loading the model")
        with backend_class(self._target.spec).watcher(request) as watcher:
            result = self._watched(watcher, request, again)
        return replace(result, seconds=time.monotonic() - start)

    def nodes(self, request: WatchRequest) -> tuple[JudgedNode, ...]:
        """Judge the nodes of one model, and nothing else of it. Raises `UsageError`, `Unavailable` and `LateError`."""
        found = _Found()
        with backend_class(self._target.spec).watcher(request) as watcher:
            watcher.by_node(lambda seen: self._judge(seen, found, request.seed))
        return tuple(found.nodes)

    def _watched(self, watcher: Watcher, request: WatchRequest, again: str) -> Watched:
        target, found, late = self._target, _Found(), []
        options = tuple(f"--{name.replace('_', '-')} {shlex.quote(value)}" for name, value in target.options.items())
        result = Watched(target.label, target.build.name, target.about, watcher.about, again, options=options)
        try:
            self._say("node by node")
            died = watcher.by_node(lambda seen: self._judge(seen, found, request.seed))
            result = replace(result, by_node=died)
        except LateError:
            late.append("judging every node")
        result = replace(result, nodes=tuple(found.nodes), copies=found.copies)
        try:
            self._say("the whole graph")
            whole = watcher.whole()
            result = replace(result, whole=whole)
            late += ["the smallest wrong piece"] if whole.late else []
            self._say("the wrong piece")
            piece = watcher.piece(whole)
            if piece is not None:
                result = replace(result, piece=str(self._stored_piece(piece)))
        except LateError:
            late.append("the smallest wrong piece" if result.whole else "the whole graph")
        try:
            self._say("several sequences")
            result = replace(result, together=watcher.sequences())
        except LateError:
            late.append("several sequences")
        self._say("wrong nodes as cases")
        cases = tuple(self._kept(*each) for each in list(found.wrong.values())[:MOST_CASES])
        return replace(result, cases=cases, late=tuple(dict.fromkeys(late)))

    def _stored_piece(self, piece: Piece) -> Path:
        return write_piece(piece, Path(self._session.settings.report_dir) / "pieces" / piece.id)

    # ---- nodes

    def _judge(self, seen: SeenNode, found: _Found, seed: int) -> None:
        node = seen.node
        found.copies += seen.copies
        if seen.wrong_copies:  # the node itself is judged on what has arrived, and right
            detail = "; ".join(seen.wrong_copies)
            found.nodes.append(JudgedNode(node, "wrong", kind=Kind.WRONG_VALUES, detail=detail, times=math.inf))
            return
        if seen.case is None:
            found.nodes.append(JudgedNode(node, "not judged", seen.reason))
            return
        try:
            case = fitting(seen.case)
        except CaseError as error:
            found.nodes.append(JudgedNode(node, "not judged", f"not a case of {seen.case.op}: {error}"))
            return
        numerics = self._numerics_of(case)
        outputs = {name: raw.reshape(case.outputs[name].shape) for name, raw in seen.outputs.items()}
        verdict, sampled = judge_node(case, ops()[case.op], seen.values, outputs, numerics, seed)
        state: State = "wrong" if verdict.failed else "right"
        lower = "" if numerics == self._runner.numerics else numerics.lower
        judged = JudgedNode(node, state, case=case.id, sampled=sampled, lower=lower)
        if verdict.failed:
            first = verdict.findings[0]
            judged = replace(judged, kind=first.kind, detail=first.detail, times=_times(verdict))
            known = found.wrong.get(case.id)
            found.wrong[case.id] = (known[0], known[1], known[2] + 1) if known else (case, judged, 1)
        found.nodes.append(judged)

    def _numerics_of(self, case: Case) -> Numerics:
        if case.id not in self._numerics:
            self._numerics[case.id] = self._runner.numerics_of(case)
        return self._numerics[case.id]

    def _kept(self, case: Case, judged: JudgedNode, count: int) -> WrongCase:
        """A wrong node as a case file: without its values where it fails with drawn ones too."""
        op, settings = ops()[case.op], self._session.settings
        if case.nbytes > settings.max_bytes:
            path = store(case, settings.report_dir)
            return WrongCase(case.id, judged, count, str(path), f"not run: it takes {case.nbytes} bytes")
        try:
            result = self._session.replay(op, self._target, [(case.id, case)])
        except Unavailable as error:  # the device is lost; what was seen in the graph stands
            return WrongCase(case.id, judged, count, str(store(case, settings.report_dir)), f"not run: {error}")
        if result.failure is None:
            unsupported = next(iter(result.tally.unsupported), None)
            path = store(case, settings.report_dir)
            return WrongCase(case.id, judged, count, str(path), unsupported or "passes")
        hint = result.failure.hint
        for recipe in recipes_of(op, case.dtype):
            drawn = replace(case, recipe=recipe, data=None)
            runner = self._session.runner(self._target)  # another one than at first, where the device was lost
            if runner.verdicts(op, [drawn], beyond=("bug",))[0].failed:
                return WrongCase(drawn.id, judged, count, str(store(drawn, settings.report_dir)), "fails", recipe, hint)
        return WrongCase(case.id, judged, count, str(case_path(settings.report_dir, case.id)), "fails", hint=hint)


@dataclass(frozen=True)
class Captured:
    """What `capture` has written: the files of the cases, and that of the library's own lines. left_out: why nodes are
    no cases, with how many there are of each op."""

    cases: tuple[Path, ...]
    lines: Path | None
    pieces: tuple[Path, ...]
    left_out: Mapping[str, Counter[str]]
    ended: Ended | None = None


class Capturing:
    """Writes the distinct nodes of a model as case files."""

    def __init__(self, folder: Path, values: bool = True) -> None:
        """values: whether the exact bytes of the inputs go along; a recipe's stand for them otherwise."""
        self._folder, self._values = folder, values
        self._paths: dict[str, Path] = {}
        self._lines: dict[str, str] = {}
        self._left_out: dict[str, Counter[str]] = {}

    def see(self, seen: SeenNode) -> None:
        """Write a node, if there was none like it."""
        if seen.line:
            self._lines.setdefault(seen.line.rpartition(" ")[0], seen.line)
        try:
            case = None if seen.case is None else fitting(seen.case)
        except CaseError as error:
            self._leave_out(seen, str(error))
            return
        if case is None:
            self._leave_out(seen, seen.reason)
        elif case.id not in self._paths:
            self._paths[case.id] = path = self._folder / f"{case.id}.json"
            write_case(case if self._values else drawn(case), path)

    def _leave_out(self, seen: SeenNode, reason: str) -> None:
        self._left_out.setdefault(reason, Counter())[seen.node.what] += 1

    def done(self, ended: Ended | None, pieces: tuple[Path, ...] = ()) -> Captured:
        """Write what is left to write."""
        lines = None
        if self._lines:
            self._folder.mkdir(parents=True, exist_ok=True)
            lines = self._folder / "test-file.txt"
            with whole_file(lines) as file:
                file.writelines(f"{line}\n" for line in self._lines.values())
        return Captured(tuple(self._paths.values()), lines, pieces, self._left_out, ended)


def drawn(case: Case) -> Case:
    """A case with drawn values in place of its own."""
    return replace(case, recipe=recipes_of(ops()[case.op], case.dtype)[0], data=None)


def capture(target: Target, request: WatchRequest, folder: Path, values: bool = True) -> Captured:
    """Write every distinct node of a model on a device. Raises `UsageError` and `Unavailable`."""
    capturing = Capturing(folder, values)
    with backend_class(target.spec).watcher(request) as watcher:
        ended = watcher.by_node(capturing.see)
    return capturing.done(ended)


def fitting(case: Case) -> Case:
    """A node's case as its op takes it: as it is; else with an output of its own, where the node works in place and the
    op does not; else with the output in the shape of an input, where it is packed and has as many elements (ggml_cont
    may give other sizes). Raises `CaseError`, that on the case as it is, where the op takes none of them."""
    try:
        return checked(case)
    except CaseError as error:
        complaint = error
    name, out = next(iter(case.outputs.items()))
    apart = {name: out.packed() if out.is_contiguous and case.inplace else out}
    tries = [replace(case, inplace=None, outputs=apart)]
    if out.is_contiguous:
        shapes = dict.fromkeys(layout.shape for layout in case.inputs.values() if layout.size == out.size)
        packed = [Layout.contiguous(out.dtype, shape, out.offset) for shape in shapes]
        tries += [replace(case, inplace=None, outputs={name: layout}) for layout in packed]
    for attempt in tries:
        with contextlib.suppress(CaseError):
            return checked(attempt)
    raise complaint


def _times(verdict: Verdict) -> float:
    comparison = verdict.comparison
    if comparison is None:
        return float("inf")
    with np.errstate(all="ignore"):
        times = comparison.error[comparison.wrong] / comparison.bound[comparison.wrong]
    return float(np.max(np.where(np.isnan(times), np.inf, times), initial=0.0))


def replayed_piece(piece: Piece, target: Target, seconds: float) -> WholeGraph:
    """A piece on a device: in one go against its nodes one by one. Raises `UsageError` and `Unavailable`."""
    if piece.backend != target.spec:
        raise UsageError(f"the piece is made of nodes of {piece.backend}; {target.label} has none of them")
    request = WatchRequest(target.device.id, target.options, seconds=seconds)
    return backend_class(target.spec).replay_piece(piece, request)
