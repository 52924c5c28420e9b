"""What watching a model costs: the plain decode, observed, with every byte read, and judged.

    python benchmarks/watching.py --ggml-lib DIR [--device CPU] [--arch NAME]…

Each way decodes the same prompt of 70 tokens; the best of several runs counts. `read / plain` is the cost of observing
every node and reading all of its sources and its output. A llama of 49 million weights stands beside the tiny models,
in which a decode is short and each message counts. The exit status is 1 where reading costs more than 3 times the plain
decode on the CPU, or judging the large model takes more than 20 s.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from opconform.backends.ggml.llama import tiny
from opconform.backends.ggml.llama.architectures import ARCHITECTURES, CONTEXT
from opconform.backends.ggml.llama.bench import Bench, Setup
from opconform.backends.ggml.llama.scripts import Script, script
from opconform.backends.ggml.llama.session import Watch
from opconform.harness.run.watching import WatchRequest
from opconform.harness.search.session import Session, targets_of
from opconform.harness.search.settings import Settings
from opconform.harness.search.watching import Watching

TOKENS = 70
LARGE = "llama-49M"
MOST_READ = 3.0  #: times the plain decode, on the CPU
MOST_SECONDS = 20.0  #: to judge the large model node by node
_RUNS = 5


def large(folder: Path) -> Path:
    """A llama of 49 million weights in float32."""
    width, inner, layers, vocabulary = 512, 1536, 12, 8192
    shapes = [("token_embd.weight", [width, vocabulary]), ("output_norm.weight", [width])]
    shapes.append(("output.weight", [width, vocabulary]))
    for layer in range(layers):
        own = {"attn_norm": [width], "ffn_norm": [width], "ffn_gate": [width, inner], "ffn_up": [width, inner]}
        own |= {f"attn_{name}": [width, width] for name in ("q", "k", "v", "output")} | {"ffn_down": [inner, width]}
        shapes += [(f"blk.{layer}.{name}.weight", sizes) for name, sizes in own.items()]
    sizes = {"vocab_size": vocabulary, "embedding_length": width, "block_count": layers, "feed_forward_length": inner}
    sizes |= {"attention.head_count": 8, "attention.head_count_kv": 8, "context_length": CONTEXT}
    metadata = {**ARCHITECTURES["llama"].keys, **{f"llama.{key}": value for key, value in sizes.items()}}
    path = folder / "large.gguf"
    tiny.write_model(path, metadata, shapes, "f32", 0)
    return path


def best(run: Callable[[], object]) -> float:
    """The least seconds of a few runs, the first of which does not count."""
    seconds = []
    for _ in range(_RUNS + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def decodes(bench: Bench, batches: Script) -> Iterator[float]:
    """Seconds of a decode: plain, observed, with all bytes read."""
    watches: list[Watch | None] = [None, Watch(), Watch(values="all")]
    for watch in watches:
        yield best(lambda watch=watch: bench.run(batches, watch, lambda decode, node: None))  # type: ignore[misc]


def judged(folder: str, device: str, path: Path, out: str) -> tuple[int, float]:
    """How many nodes were judged, and the seconds of running the model node by node and judging them."""
    settings = Settings(options={"ggml_lib": folder}, report_dir=out, also_seconds=0)
    (target,), _ = targets_of([f"ggml:{device}"], settings)
    request = WatchRequest(device, dict(target.options), str(path), tokens=TOKENS, steps=0, sequences=1)
    with Session(settings) as session:
        start = time.perf_counter()
        found = Watching(session, target).nodes(request)
        return sum(node.state != "not judged" for node in found), time.perf_counter() - start


@click.command()
@click.option("--ggml-lib", required=True, metavar="DIR")
@click.option("--device", default="CPU", show_default=True)
@click.option("--arch", "names", multiple=True, type=click.Choice(list(ARCHITECTURES)), help="default: all")
def main(ggml_lib: str, device: str, names: tuple[str, ...]) -> None:
    """Print the table."""
    table = Table("model", "plain ms", "observed ms", "read ms", "read / plain", "judged", "s")
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: tiny.tiny_model(name) for name in names or ARCHITECTURES}
        paths[LARGE] = large(Path(folder))
        for name, path in paths.items():
            with Bench(Setup(Path(ggml_lib), path, (device,))) as bench:
                batches = script(bench.model().vocabulary, TOKENS)
                plain, observed, read = decodes(bench, batches)
            count, seconds = judged(ggml_lib, device, path, folder)
            row = [f"{1000 * it:.1f}" for it in (plain, observed, read)]
            table.add_row(name, *row, f"{read / plain:.2f}", str(count), f"{seconds:.1f}")
            kept &= (device != "CPU" or read < MOST_READ * plain) and (name != LARGE or seconds < MOST_SECONDS)
    Console().print(table)
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
