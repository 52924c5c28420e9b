"""Plain text for a terminal: what came of watching a model, and the matrix of architectures and devices."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from opconform.harness.model.graph import Difference, Ended, GraphNode, Together, WholeGraph, WrongPiece
from opconform.harness.model.text import printable
from opconform.harness.search.watched import JudgedNode, Watched, WrongCase
from opconform.harness.search.watching import Captured
from opconform.reports.console import text_of
from opconform.reports.screen import wrapped

_LABEL = 15
_NAMES = 6  #: nodes that are named in one line
_GRAPH = 24  #: computing nodes of a piece that are shown one by one
_STRIP = 88  #: marks in a row of the strip
_MARKS = {"right": "·", "wrong": "X", "not judged": "?"}
_SEVERITY = ("wrong", "not judged", "right")


def screen(found: Watched, again: Sequence[str] = ()) -> str:
    """One screen: the verdict in three lines, the nodes by layer, the wrong piece, what was not judged, and how to see
    it again."""
    lines = [f"{found.verdict}  {found.model} on {found.target}, build {found.build}", ""]
    lines += _line("whole graph", whole_words(found.whole) if found.whole else "no verdict: the time was up")
    lines += _line("node by node", nodes_words(found))
    lines += _line("sequences", sequences_words(found.together))
    piece = found.whole.piece if found.whole else None
    if found.whole and (piece is not None or found.whole.switches or found.by_node):
        lines += ["", *_piece(piece, found.whole, found.by_node)]
    if found.piece:
        lines += _line("", f"kept without the model in {found.piece}")
        lines += _line("", "the text to send to its maintainers: issue.md, beside it")
    for case in found.cases:
        lines += ["", *_case(case)]
    lines += ["", *strip(found.nodes)]
    lines += [line for reason in not_judged(found.nodes) for line in _line("not judged", reason)]
    lines += [line for text in declared(found.nodes) for line in _line("declared", text)]
    for late in found.late:
        lines += _line("no time for", late)
    lines += _line("device", found.about)
    if again:
        lines += ["", "  again with", *(f"    {command}" for command in again)]  # whole lines, to be pasted
    return "\n".join(printable(line.rstrip()) for line in lines)


def _line(label: str, text: str) -> list[str]:
    return wrapped(label, text, _LABEL)


def whole_words(whole: WholeGraph, what: str = "logits") -> str:
    """The verdict on the whole graph, in a line."""
    if whole.by_node is not None:
        return f"{whole.by_node.kind}  also node by node, so that nothing can be compared: {whole.by_node}"
    said = f"{what} off by {_off(whole.worst)}" if whole.worst else ""
    if whole.right:
        return f"right  as node by node ({said}, {_times(whole.times, whole.times)})"
    words = []
    if whole.worst and whole.worst.wrong:
        count = _times(whole.wrong_times - len(whole.ended), whole.times)
        words.append(f"WRONG  {said}, at {whole.worst.where}, {count}")
    if whole.ended:
        died = whole.ended[0]
        words.append(f"{died.kind}  {_times(len(whole.ended), whole.times)}, {died}")
    return "; ".join(words)


def _times(count: int, of: int) -> str:
    return f"{count} time{'' if count == 1 else 's'} of {of}"


def _off(difference: Difference) -> str:
    off = "more than any number" if math.isinf(difference.off) else f"{difference.off:.3g}"
    return f"{off} on a scale of {difference.scale:.2g}, where rounding explains {difference.threshold:.2g}"


def nodes_words(found: Watched) -> str:
    """How many nodes were judged, and which are wrong, in a line."""
    states = Counter(node.state for node in found.nodes)
    count = f"{found.judged} judged"
    sampled = sum(node.sampled for node in found.nodes)
    count += f" ({sampled} of them on a sample)" if sampled else ""
    wrong = ", all right" if found.judged else ""
    rest = f", {states['not judged']} not judged" if states["not judged"] else ""
    names = [f"{case.node.node}" for case in found.cases]
    names += [f"{node.node}, {node.detail}" for node in found.wrong if not node.case]
    if states["wrong"]:
        named = f" ({'; '.join(names[:_NAMES])}{' …' if len(names) > _NAMES else ''})" if names else ""
        wrong = f", {states['wrong']} WRONG{named}"
    died = f"; then {found.by_node.kind} {found.by_node}" if found.by_node else ""
    copies = f"; {found.copies} copies between devices followed" if found.copies else ""
    return f"{count}{wrong}{rest}{copies}{died}"


def sequences_words(together: Sequence[Together]) -> str:
    """What came of several sequences, and of a prompt in parts, in a line."""
    said = []
    for each in together:
        what = f"{each.sequences} {each.way}" if each.sequences > 1 else each.way
        if each.error:
            said.append(f"{what}: not tried, {each.error}")
        elif each.ended:
            said.append(f"{what}: {each.ended.kind} {each.ended}")
        elif each.right:
            said.append(f"{what}: as alone" if each.sequences > 1 else f"{what}: as in one")
        else:
            said.append(f"{what}: WRONG, {'; '.join(_mixed(*wrong) for wrong in each.wrong)}")
    return "; ".join(said) or "not tried"


def _mixed(sequence: int, difference: Difference, whose: int | None) -> str:
    has = f", and has the logits of sequence {whose}" if whose is not None else ""
    return f"sequence {sequence} is off by {_off(difference)}, at {difference.where}{has}"


def _piece(piece: WrongPiece | None, whole: WholeGraph, by_node: Ended | None) -> list[str]:
    lines = []
    if piece is not None:
        lines += _line(*piece_words(piece))
        for number, because in enumerate(piece.because):
            lines += _line("" if number else "because", because)
        if piece.ended:
            lines += _line("", f"{piece.ended.kind}  {piece.ended}")
        lines += graph(piece)
    elif by_node is not None and by_node.last is not None:
        one = f"node {by_node.last}" if by_node.first == by_node.last else f"nodes {by_node.first}..{by_node.last}"
        lines += _line("smallest piece", f"{one} of decode {by_node.decode}: {by_node.node}")
        lines += _line("because", f"it was in flight, node by node, when {by_node.detail}")
    elif whole.asked:
        lines += _line("smallest piece", "none: it is right where the backend is asked about every node, and goes on")
    elif not whole.late:
        lines += _line("smallest piece", "none was found that is wrong every time")
    for name, right in whole.switches.items():
        lines += _line("with a switch", f"{name}=1 {'makes it right' if right else 'leaves it wrong'}")
    return lines


def piece_words(piece: WrongPiece) -> tuple[str, str]:
    """What a wrong piece is called, and its nodes, in a line."""
    if not piece.late:
        return "smallest piece", f"{piece.where}: {' '.join(piece.ops)}"
    ops = " ".join(piece.ops) if len(piece.ops) <= _GRAPH else f"{len(piece.ops)} ops"
    return "wrong piece", f"{piece.where}: {ops}; the time was up, so a part of it may do"


def graph(piece: WrongPiece) -> list[str]:
    """The nodes of a piece, one a line, with what they read; what an output lies over is marked."""
    lines: list[str] = []
    for node in piece.nodes if len(piece.ops) <= _GRAPH else ():
        if not node.computes:
            continue
        reads = ", ".join(source.name for source in node.sources)
        over = ", ".join(name for index, name in piece.overlaps if index == node.index)
        mark = f"  <- lies over {over}" if over else ""
        lines += _line("", f"{node}  reads {reads}{mark}")
    return lines


def _case(found: WrongCase) -> list[str]:
    judged = found.node
    lines = _line(str(judged.kind), case_words(found))
    if judged.lower:
        lines += _line("", f"judged with {judged.lower}, as the backend declares for it")
    return [*lines, *_line("", f"{_alone(found)}; {found.path}")]


def case_words(found: WrongCase) -> str:
    """What is wrong with a node, in a line."""
    judged = found.node
    many = f" ({found.nodes} such nodes)" if found.nodes > 1 else ""
    times = "" if not math.isfinite(judged.times) else f", up to {judged.times:.3g} times the bound"
    cause = f"; likely cause: {found.hint}" if found.hint else ""
    return f"{judged.node}{_departures(judged.node)}{many}: {judged.detail}{times}{cause}"


def _alone(found: WrongCase) -> str:
    alone = {
        "fails": "alone it fails too",
        "passes": "alone it passes: it is wrong in the graph only",
    }.get(found.alone, f"alone it was not run: {found.alone}")
    return alone + (f", with drawn values as well (recipe {found.recipe})" if found.recipe else "")


def _departures(node: GraphNode) -> str:
    said = [f"src{i} {source.departs}" for i, source in enumerate(node.sources) if source.departs]
    return f", {'; '.join(said)}" if said else ""


@dataclass(frozen=True)
class Strip:
    """The nodes of decodes that are alike, by layer, each with the worst that became of it; None is the layer of those
    that are of none. decodes: in words."""

    decodes: str
    layers: Mapping[int | None, Sequence[JudgedNode]]

    @property
    def states(self) -> set[str]:
        return {judged.state for marks in self.layers.values() for judged in marks}


def strips(nodes: Sequence[JudgedNode]) -> list[Strip]:
    """The nodes by layer. Decodes with the same nodes share a strip."""
    groups: dict[tuple[str, ...], list[list[JudgedNode]]] = {}
    for decode in dict.fromkeys(judged.node.decode for judged in nodes):
        mine = [judged for judged in nodes if judged.node.decode == decode]
        groups.setdefault(tuple(judged.node.name for judged in mine), []).append(mine)
    found = []
    for decodes in groups.values():
        layers: dict[int | None, list[JudgedNode]] = {}
        for column in zip(*decodes):
            layers.setdefault(column[0].node.layer, []).append(_worst(column))
        found.append(Strip(_decodes([mine[0].node.decode for mine in decodes]), layers))
    return found


def strip(nodes: Sequence[JudgedNode]) -> list[str]:
    """The nodes by layer, one mark each: right, wrong, not judged."""
    lines = []
    for each in strips(nodes):
        legend = ", ".join(f"{mark} {state}" for state, mark in _MARKS.items() if state in each.states)
        lines += _line("nodes by layer", f"{each.decodes} ({legend})")
        for layer, marks in each.layers.items():
            label = "–" if layer is None else str(layer)
            text = "".join(_MARKS[judged.state] for judged in marks)
            for start in range(0, len(text), _STRIP):
                lines.append(f"  {'' if start else label:>{_LABEL}} {text[start : start + _STRIP]}")
    return lines


def _worst(column: Iterable[JudgedNode]) -> JudgedNode:
    return min(column, key=lambda judged: _SEVERITY.index(judged.state))


def _decodes(numbers: Sequence[int]) -> str:
    words = ["the prompt"] if 0 in numbers else []
    steps = [str(number) for number in numbers if number]
    if steps:
        words.append(f"step{'s' if len(steps) > 1 else ''} {', '.join(steps)}")
    return " and ".join(words)


def not_judged(nodes: Iterable[JudgedNode]) -> list[str]:
    """Each reason for which nodes were not judged, with how many of which ops: the commonest first."""
    found: dict[str, Counter[str]] = {}
    for judged in nodes:
        if judged.state == "not judged":
            found.setdefault(_of_any(judged.reason, judged.node.what), Counter())[judged.node.what] += 1
    by_count = sorted(found.items(), key=lambda item: -item[1].total())
    return [f"{', '.join(f'{what} x{n}' for what, n in ops.most_common())}: {reason}" for reason, ops in by_count]


def _of_any(reason: str, what: str) -> str:
    """A reason without the name of the op, so that those of many ops are one."""
    return re.sub(rf"\b{re.escape(what)}\b", "it", reason)


def declared(nodes: Iterable[JudgedNode]) -> list[str]:
    """What a backend declares below float32's precision, with the ops it was granted."""
    found: dict[str, Counter[str]] = {}
    for judged in nodes:
        if judged.lower and judged.state == "right":
            found.setdefault(judged.lower, Counter())[judged.node.what] += 1
    return [f"{', '.join(f'{what} x{n}' for what, n in ops.items())}: {lower}" for lower, ops in found.items()]


def again_with(found: Watched) -> list[str]:
    """The commands that show it again."""
    tail = " ".join(["--backend", shlex.quote(found.target), *found.options])
    files = [found.piece] if found.piece and found.whole and not found.whole.right else []
    files += [case.path for case in found.cases if case.alone == "fails"]
    lines = [f"opconform replay {shlex.quote(os.path.normpath(path))} {tail}" for path in files[:_NAMES]]
    return [*lines, f"opconform watch {found.again} {tail}"]


def piece_screen(name: str, target: str, whole: WholeGraph) -> str:
    """What came of a piece that was computed without its model."""
    head = f"{'right' if whole.right else 'FAILED'}  {name} on {target}"
    return "\n".join(printable(line) for line in [head, *_line("in one go", whole_words(whole, "outputs"))])


def watch_matrix(found: Sequence[tuple[str, str, Watched | str]]) -> str:
    """Architectures down, devices across: what came of each; a text stands for one that could not be run."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    targets = list(dict.fromkeys(target for _, target, _ in found))
    table.add_column("model")
    for target in targets:
        table.add_column(Text(printable(target)))
    cells = {(name, target): each for name, target, each in found}
    notes: dict[str, int] = {}
    for name in dict.fromkeys(name for name, _, _ in found):
        table.add_row(Text(printable(name)), *(Text(_cell(cells.get((name, target)), notes)) for target in targets))
    lines = [text_of(table), *(f"[{number}] {printable(note)}" for note, number in notes.items())]
    nodes = [node for _, _, each in found if isinstance(each, Watched) for node in each.nodes]
    lines += [printable(line) for reason in not_judged(nodes) for line in _line("not judged", reason)]
    return "\n".join(lines)


def _cell(found: Watched | str | None, notes: dict[str, int]) -> str:
    if found is None:
        return "–"
    if isinstance(found, str):
        return f"not run [{notes.setdefault(found, len(notes) + 1)}]"
    said = [found.verdict.lower() if found.right else found.verdict, f"{found.judged} of {len(found.nodes)} judged"]
    if found.wrong:
        said.append(f"{len(found.wrong)} wrong nodes")
    if found.whole and not found.whole.right:
        said.append("wrong as a whole")
    return ", ".join(said)


def capture_screen(captured: Captured, folder: str) -> str:
    """What `capture` has written, and what it has not."""
    lines = [f"{len(captured.cases)} case files in {folder}; replay one with opconform replay FILE --backend …"]
    if captured.lines:
        lines.append(f"{captured.lines}: for test-backend-ops test --test-file, of the same build")
    left_out: dict[str, Counter[str]] = {}
    for reason, found in captured.left_out.items():
        for what, count in found.items():
            left_out.setdefault(_of_any(reason, what), Counter())[what] += count
    for reason, found in sorted(left_out.items(), key=lambda item: -item[1].total()):
        lines += _line("left out", f"{', '.join(f'{what} x{n}' for what, n in found.most_common())}: {reason}")
    if captured.ended:
        lines += _line(str(captured.ended.kind), f"{captured.ended}; what came before it was written")
    return "\n".join(map(printable, lines))
