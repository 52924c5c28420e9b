"""`opconform replay` of a piece: nodes of a graph with the memory that they share, as `opconform watch` keeps them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from opconform.commands_look import naming_lost
from opconform.harness.model.piece import Piece, PieceError, read_piece
from opconform.harness.model.usage import UsageError
from opconform.harness.run.target import Target
from opconform.harness.search.session import targets_of
from opconform.harness.search.watching import replayed_piece
from opconform.options import settings_from
from opconform.reports.watching import piece_screen


def piece_in(path: str, values: Mapping[str, Any]) -> Piece | None:
    """The piece in a file; None where the text names no file, or one that holds no piece. Raises `UsageError`."""
    if not os.path.isfile(path):  # False for what no file can be called, too
        return None
    try:
        return read_piece(Path(path), settings_from(values).max_bytes)
    except PieceError as error:
        raise UsageError(f"{path}: {error}") from None
    except OSError:
        return None  # whoever reads it as a case says what is wrong


def replay_piece(piece: Piece, values: Mapping[str, Any]) -> int:
    """Compute a piece on the devices named, in one go against node by node; the exit status."""
    settings = settings_from(values)
    if not values.get("backend"):
        raise UsageError("a piece is replayed on a device: name it with --backend")
    targets, _ = targets_of(values["backend"], settings)
    wrong = 0
    lost: list[Target] = []
    for target in targets:
        with naming_lost(target, lost):
            found = replayed_piece(piece, target, settings.time_limit)
            click.echo(piece_screen(piece.id, target.label, found))
            wrong += not found.right
    return 1 if wrong or lost else 0
