"""How the launches of `backends/kernels` are spread over blocks and threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from opconform.backends.kernels import delta_net, mla
from opconform.backends.kernels.launch import Launch
from opconform.backends.kernels.table import Kernel
from opconform.harness.model.case import Case

THREADS = 256  #: of a block, where a kernel takes one item per thread; no block has more

_FEWEST = 4  #: threads of a block: some have nothing to do in a short row, which shows what a kernel makes of them

Sizes = tuple[int, int, int]  #: along x, y and z


@dataclass(frozen=True)
class Grid:
    """One run of a kernel: its name, the blocks and the threads of a block along x, y and z, and the arguments and
    intermediate results whose buffers follow the struct.

    Blocks are counted along x alone, which takes 2^31 - 1 of them; y and z take 65535.
    """

    kernel: str
    blocks: Sizes
    threads: Sizes
    buffers: tuple[str, ...]


def grids(kernel: Kernel, case: Case) -> list[Grid]:
    """The launches of a case, in order."""
    return [_grid(case, launch) for launch in kernel.launches(case)]


def _grid(case: Case, launch: Launch) -> Grid:
    """One block at least: without items the kernel must do nothing."""
    if launch.kernel in _OWN:
        blocks, threads = _OWN[launch.kernel](case)
    elif launch.row is not None:
        blocks, threads = launch.items, (_threads(launch.row), 1, 1)
    else:
        blocks, threads = -(-launch.items // THREADS), (THREADS, 1, 1)
    return Grid(launch.kernel, (max(blocks, 1), 1, 1), threads, launch.buffers)


def _threads(length: int, most: int = THREADS) -> int:
    """Threads of a block that shares `length` elements among them: a power of two.

    A block below a warp costs a GPU what a warp does, and cuda-host, which has a fibre for each thread, far less.
    """
    return min(max(1 << max(length - 1, 0).bit_length(), _FEWEST), most)


def _tokens(case: Case) -> tuple[int, Sizes]:
    """A block for as many columns of a state as it has threads."""
    n = delta_net.Sizes(case)
    threads = _threads(n.values)
    return n.sequences * n.heads * -(-n.values // threads), (threads, 1, 1)


def _blocks(case: Case) -> tuple[int, Sizes]:
    """A block for each block of A and Aqk, a thread for each of its elements."""
    n = delta_net.Sizes(case)
    return n.sequences * n.heads * n.chunks * n.blocks, (delta_net.BLOCK, delta_net.BLOCK, 1)


def _flash(case: Case) -> tuple[int, Sizes]:
    """A block for each query, that looks at most at 64 keys at a time."""
    n = mla.Sizes(case)
    return n.all_queries, (_threads(n.kv_len, most=64), 1, 1)


#: The kernels of this folder that are spread in their own way.
_OWN: Mapping[str, Callable[[Case], tuple[int, Sizes]]] = {
    "gated_delta_net_tokens": _tokens,
    "gated_delta_net_chunk_blocks": _blocks,
    "mla_absorbed_flash": _flash,
}
