"""issue.md of a wrong piece, beside its file: what a maintainer wants to read, ready to be sent."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from opconform.harness.model.graph import GraphNode, Place, WholeGraph, WrongPiece
from opconform.harness.model.sidecar import whole_file
from opconform.harness.model.version import VERSION
from opconform.harness.run.registry import without_folder
from opconform.harness.search.watched import Watched
from opconform.reports.repro.rendering import render
from opconform.reports.watching import whole_words


def write_piece_issue(found: Watched) -> Path | None:
    """Write the issue beside the piece that was kept; None where none was. Raises `OSError`."""
    if not found.piece or found.whole is None or found.whole.piece is None:
        return None
    path = Path(found.piece).parent / "issue.md"
    with whole_file(path) as file:
        file.write(piece_issue(found, found.whole, found.whole.piece))
    return path


def piece_issue(found: Watched, whole: WholeGraph, piece: WrongPiece) -> str:
    """The text."""
    over: dict[int, list[str]] = {}
    for index, name in piece.overlaps:
        over.setdefault(index, []).append(name)
    ends = dict.fromkeys([piece.ops[0], piece.ops[-1]])
    file, target = Path(found.piece).name, without_folder(found.target)
    device = shlex.quote(target)
    model, *options = shlex.split(found.again)
    return render(
        "piece.md.j2",
        found=found,
        piece=piece,
        title=f"{target} ({found.build}): {' … '.join(ends)} give other results in one go than one by one",
        whole=whole_words(whole),
        mends=[name for name, right in whole.switches.items() if right],
        leaves=[name for name, right in whole.switches.items() if not right],
        nodes=[_node(node, over.get(node.index, [])) for node in piece.nodes],
        name=file,
        replay=f"opconform replay {shlex.quote(file)} --backend {device}",
        watch=f"opconform watch {shlex.join([Path(model).name, *options])} --backend {device}",
        package=shlex.quote(f"opconform[{target.partition(':')[0]}]"),
        version=VERSION,
    )


def _node(node: GraphNode, over: list[str]) -> dict[str, Any]:
    return {
        "index": node.index,
        "what": node.what,
        "out": _place(node.out),
        "sources": [_place(source) for source in node.sources],
        "over": ", ".join(over),
    }


def _place(place: Place) -> str:
    """A tensor in a cell: its name, type, sizes, strides where they are not packed, and what it is a view of."""
    said = f"{place.name} {place.type} ne [{', '.join(map(str, place.ne))}]"
    if place.departs:
        said += f" nb [{', '.join(map(str, place.nb))}]"
    if place.view_of:
        said += f" in {place.view_of} at byte {place.offset}"
    return said
