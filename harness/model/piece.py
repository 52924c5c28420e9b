"""A piece: consecutive nodes of a running graph with the memory that they share, as plain data, and its file.

A case holds one op. A piece holds what an op alone cannot show: which output lies over which input, and in what order
the nodes come. Its memory is that of the run, cut down to what the nodes touch: a tensor stands in a region, at a byte,
as it stood to the others. It needs no model.

The file is JSON and, where the bytes of its inputs are many, a compressed file beside it. Both are data, checked field
by field before anything is allocated; each fault is one `PieceError` line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from opconform.harness.model import sidecar
from opconform.harness.model.case import CaseError
from opconform.harness.model.files import read_regular
from opconform.harness.model.plain import decoded, parsed

FORMAT = "opconform-piece/1"
MOST_TENSORS = 4096
MOST_SOURCES = 10
_LARGEST_FILE = 1 << 24


class PieceError(CaseError):
    """A piece that cannot be."""


@dataclass(frozen=True)
class PieceTensor:
    """A tensor of a piece. `ne` and `nb` are innermost first; it takes the bytes from `start` on of a region.

    what: what it computes, as the library names it (an activation by its own name), and `op` the kind of node that it
    is; both are empty for an input. params: the library's parameters of it, in hex. sources: the places of what it
    reads among the piece's tensors, None for one that is left out. made_by: of an input, the kind of node outside the
    piece that made it, which a backend may look at; nothing for what no node made. view_of: the place of the tensor
    whose memory it is a part of, `offset` bytes on. uses: how many nodes behind the piece read it.
    """

    name: str
    type: str
    ne: tuple[int, int, int, int]
    nb: tuple[int, int, int, int]
    region: int
    start: int
    nbytes: int
    op: str = ""
    what: str = ""
    params: str = ""
    flags: int = 0
    sources: tuple[int | None, ...] = ()
    made_by: str = ""
    view_of: int | None = None
    offset: int = 0
    uses: int = 0


@dataclass(frozen=True)
class Piece:
    """Nodes in their order, each behind what it reads, and the bytes of the inputs, in the order of the tensors.

    backend: the spec of the backend that has such nodes. about: one line on where it comes from. regions: bytes of
    each. data: of each input, by its place.
    """

    backend: str
    about: str
    regions: tuple[int, ...]
    tensors: tuple[PieceTensor, ...]
    data: Mapping[int, bytes] = field(default_factory=dict, compare=False, repr=False)

    @property
    def id(self) -> str:
        """A short name: the first and the last of its ops, and ten hex digits."""
        plain = json.dumps([self.regions, [asdict(tensor) for tensor in self.tensors]], sort_keys=True)
        ops = [tensor.what.lower() for tensor in self.tensors if tensor.op]
        ends = dict.fromkeys([*ops[:1], *ops[-1:]])
        digits = hashlib.sha1(plain.encode(), usedforsecurity=False).hexdigest()[:10]
        return "-".join(["piece", *ends, digits])

    @property
    def nodes(self) -> list[int]:
        """The places of its nodes."""
        return [place for place, tensor in enumerate(self.tensors) if tensor.op]

    @property
    def outputs(self) -> list[int]:
        """The places of what is read behind it."""
        return [place for place in self.nodes if self.tensors[place].uses]

    def checked(self, max_bytes: int) -> Piece:
        """This piece, if it can be. Raises `PieceError`."""
        if not self.nodes or not self.outputs:
            raise PieceError("piece.tensors has no node that anything behind the piece reads")
        if len(self.tensors) > MOST_TENSORS:
            raise PieceError(f"piece.tensors are {len(self.tensors)}; at most {MOST_TENSORS} can be")
        if not self.regions or min(self.regions) < 1 or sum(self.regions) > max_bytes:
            raise PieceError(f"piece.regions take {sum(self.regions)} bytes; --max-bytes allows {max_bytes}")
        for place, tensor in enumerate(self.tensors):
            self._check(place, tensor)
        return self

    def _check(self, place: int, tensor: PieceTensor) -> None:
        where = f"piece.tensors[{place}]"
        if not 0 <= tensor.region < len(self.regions):
            raise PieceError(f"{where}.region is {tensor.region}; there are {len(self.regions)}")
        if not 0 <= tensor.start <= tensor.start + tensor.nbytes <= self.regions[tensor.region] or tensor.nbytes < 0:
            raise PieceError(f"{where} takes {tensor.nbytes} bytes from {tensor.start} on; its region has less")
        if min(tensor.ne) < 1 or min(tensor.nb) < 0 or tensor.offset < 0 or tensor.uses < 0:
            raise PieceError(f"{where} has sizes below 1, or strides, an offset or uses below 0")
        if sum((n - 1) * step for n, step in zip(tensor.ne[1:], tensor.nb[1:])) >= max(tensor.nbytes, 1):
            raise PieceError(f"{where}: its rows lie outside its {tensor.nbytes} bytes")
        if len(tensor.sources) > MOST_SOURCES or (tensor.sources and not tensor.op):
            raise PieceError(f"{where} has {len(tensor.sources)} sources; an input has none, a node at most 10")
        for source in (*tensor.sources, tensor.view_of):
            if source is not None and not 0 <= source < place:
                raise PieceError(f"{where} names the tensor {source}; it can name those before it")
        if len(tensor.params) > 128 or set(tensor.params) - set("0123456789abcdef") or len(tensor.params) % 8:
            raise PieceError(f"{where}.params are no words of 32 bits in hex")
        if not tensor.op and len(self.data.get(place, b"")) != tensor.nbytes:
            raise PieceError(f"{where} is an input of {tensor.nbytes} bytes; piece.data has others")


def piece_from(plain: Any, folder: Path, max_bytes: int) -> Piece:
    """The piece that JSON data describes; `folder` is where its file of bytes lies. Raises `PieceError`, `OSError`."""
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise PieceError(f"piece.format is {plain.get('format') if isinstance(plain, dict) else None!r}, not {FORMAT}")
    about = plain.get("data")
    try:
        bare = decoded(Piece, {key: value for key, value in plain.items() if key != "data"}, "piece")
    except (ValueError, TypeError) as error:
        raise PieceError(str(error)) from None
    inputs = [place for place, tensor in enumerate(bare.tensors) if not tensor.op]
    total = sum(max(bare.tensors[place].nbytes, 0) for place in inputs)
    if total > max_bytes:
        raise PieceError(f"piece.data takes {total} bytes; --max-bytes allows {max_bytes}")
    raw = sidecar.get(about, folder, total, "piece.data")
    data, at = {}, 0
    for place in inputs:
        data[place] = raw[at : at + bare.tensors[place].nbytes]
        at += bare.tensors[place].nbytes
    return Piece(bare.backend, bare.about, bare.regions, bare.tensors, data).checked(max_bytes)


def read_piece(path: Path, max_bytes: int) -> Piece | None:
    """The piece in a file; None where the file holds no piece. Raises `PieceError`, `OSError`."""
    try:
        plain = parsed(read_regular(path, _LARGEST_FILE))
    except ValueError:
        return None
    if not isinstance(plain, dict) or not str(plain.get("format", "")).startswith("opconform-piece/"):
        return None
    return piece_from(plain, path.parent, max_bytes)


def write_piece(piece: Piece, folder: Path) -> Path:
    """Write a piece into `folder`, each file whole or not at all; the path of the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = b"".join(piece.data[place] for place, tensor in enumerate(piece.tensors) if not tensor.op)
    plain = {
        "format": FORMAT,
        "backend": piece.backend,
        "about": piece.about,
        "regions": list(piece.regions),
        "tensors": [
            {key: value for key, value in asdict(it).items() if value not in ("", None, ())} for it in piece.tensors
        ],
        "data": sidecar.put(raw, folder, piece.id),
    }
    path = folder / f"{piece.id}.json"
    with sidecar.whole_file(path) as file:
        json.dump(plain, file, indent=1)
    return path
