"""Published results that this project began with, as ratios on the devices here.

    python benchmarks/published.py [--ggml-lib DIR] [--device CPU]… [--table a]… [--seconds S] [--tokens N]

(a) the chunk of Kimi-Linear's delta net, Akk and Aqk whole, in blocks placed with ACC or SET, and with the triangular
solve in the loop over block rows; (b) latent attention for one decoded token: bytes and operations for each token in
the cache; (c) a bounded buffer of scores, as ik_llama.cpp's -amb has it; (d) with absorption and without, from decode
to prefill. Planned memory and counts are exact. Times are ratios of graphs that were timed in turn in one run.

A graph whose result is an op's is judged by the reference first, at a small size; a wrong one ends the program.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from opconform.harness.draw.known import known_cases
from opconform.harness.judge.intervals import Interval, median_interval
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.ops import ops
from opconform.harness.model.work import Work
from opconform.harness.run.messages import Refusal
from opconform.harness.run.runner import Runner, Timer
from opconform.harness.run.target import Target
from opconform.harness.search.session import targets_of
from opconform.harness.search.settings import Settings

GRAPHS = Path(__file__).with_name("published_graphs.py")
ROUNDS = 8  #: turns of all graphs of a table
MODEL_TOKENS = 512  #: llama.cpp's micro-batch, for which memory is planned
LARGEST = 1 << 40

#: Kimi-Linear-48B on one RTX 3090, llama.cpp pull requests of January and February 2026: tokens a second of prefill,
#: and MB of compute buffer (of the whole model, of which the delta net is the largest part).
KIMI = {"whole": (725, 2397), "blocks": (840, 1433), "blocks, solved in the loop": (860, 1513)}


@dataclass(frozen=True)
class Graph:
    """One graph to be compared: what it is called, the backend's class in `published_graphs.py`, and its case."""

    name: str
    backend: str
    case: Case

    @property
    def work(self) -> Work:
        return Work.of(ops()[self.case.op], self.case)


class Bench:
    """The devices of one libggml, for every class of `published_graphs.py`."""

    def __init__(self, options: Mapping[str, str], seconds: float) -> None:
        self._settings = Settings(options=options, max_bytes=LARGEST, time_limit=600.0)
        self._seconds = seconds
        self._devices: list[Target] = []

    def devices(self) -> list[Target]:
        """Every device of the library."""
        if not self._devices:
            self._devices, _ = targets_of([f"{GRAPHS}:Published"], self._settings)
        return self._devices

    @contextmanager
    def runner(self, graph: Graph, device: str) -> Iterator[Runner]:
        """A worker for a graph."""
        (found,) = [each for each in self.devices() if each.device.id == device]
        target = replace(found, spec=f"{GRAPHS}:{graph.backend}")
        with Runner(target, time_limit=600.0, max_bytes=LARGEST) as runner:
            yield runner

    def judged(self, graph: Graph, device: str) -> None:
        """End the program where the graph's result is not the op's."""
        with self.runner(graph, device) as runner:
            (verdict,) = runner.verdicts(ops()[graph.case.op], [graph.case])
        if not verdict.passed:
            why = verdict.unsupported or "; ".join(str(finding.detail) for finding in verdict.findings)
            sys.exit(f"{graph.name} on {device} is wrong, or does not run: {why}")

    def memory(self, graph: Graph, device: str) -> Mapping[str, int]:
        """Bytes of its intermediate results; none where the device has no room to plan them."""
        with self.runner(graph, device) as runner:
            timer = runner.timer(ops()[graph.case.op], graph.case, 0)
        return {} if isinstance(timer, Refusal) else timer.about.memory

    def times(self, graphs: Sequence[Graph], device: str) -> dict[str, tuple[Interval, Interval]]:
        """Of each graph that runs, by its name: seconds, and how many times as long as the first one it takes. All take
        turns, so that what disturbs one disturbs the others too."""
        with ExitStack() as stack:
            timers: dict[str, Timer] = {}
            for graph in graphs:
                runner = stack.enter_context(self.runner(graph, device))
                timer = runner.timer(ops()[graph.case.op], graph.case, 0)
                if isinstance(timer, Refusal):
                    print(f"  {graph.name}: {timer.says}")
                    continue
                timer.sample("warm", 0.0)
                timers[graph.name] = timer
            rounds: dict[str, list[float]] = {name: [] for name in timers}
            for _ in range(ROUNDS):
                for name, timer in timers.items():
                    rounds[name].append(min(timer.sample("warm", self._seconds / ROUNDS).seconds))
        first = next(iter(rounds.values()), [])
        return {
            name: (median_interval(found), median_interval([a / b for a, b in zip(found, first)]))
            for name, found in rounds.items()
        }


# ---- cases -----------------------------------------------------------------------------------------------------------


def with_shapes(case: Case, inputs: Mapping[str, tuple[int, ...]], outputs: Mapping[str, tuple[int, ...]]) -> Case:
    """A case with other shapes, all of them packed."""
    return replace(
        case,
        inputs={name: Layout.contiguous(case.inputs[name].dtype, shape) for name, shape in inputs.items()},
        outputs={name: Layout.contiguous(case.outputs[name].dtype, shape) for name, shape in outputs.items()},
        shares={},
    )


def chunk_case(tokens: int, form: str, place: str = "set", heads: int = 32, size: int = 128) -> Case:
    """Kimi-Linear's prefill of one sequence in chunks of 64, a gate for each key channel."""
    known = known_cases()["gated_delta_net_chunk/kimi-chunk"].case
    params = {**known.params, "form": form, "place": place, "chunk": 64, "state_layout": "vk"}
    row, one, state = (1, tokens, heads, size), (1, tokens, heads, 1), (1, heads, size, size)
    inputs = {"q": row, "k": row, "v": row, "g": row, "beta": one, "state": state}
    return replace(with_shapes(known, inputs, {"out": row, "state_out": state}), params=params)


def attention_case(
    rows: int, queries: int = 1, heads: int = 128, cache: str = "f16", turned: Sequence[str] = ()
) -> Case:
    """DeepSeek's latent attention of one sequence, causal, its cache full of `rows` rows. The weights in `turned` are
    stored with their axes exchanged, as the graph multiplies them."""
    known = known_cases()["mla_absorbed/deepseek-v3-decode-two-part"].case
    params = {**known.params, "form": "two_part", "kv_len": rows, "causal": queries > 1}
    shapes = {
        "q_nope": (1, heads, queries, 128),
        "q_pe": (1, heads, queries, 64),
        "c_kv": (1, 1, rows, 512),
        "k_pe": (1, 1, rows, 64),
        "w_uk": (1, heads, 128, 512),
        "w_uv": (1, heads, 512, 128),
    }
    case = replace(with_shapes(known, shapes, {"out": (1, queries, heads, 128)}), params=params)
    cached = {name: Layout.contiguous(cache, shapes[name]) for name in ("c_kv", "k_pe")}
    stored = {name: exchanged(case.inputs[name]) for name in turned}
    return replace(case, inputs={**case.inputs, **cached, **stored})


def exchanged(layout: Layout) -> Layout:
    """The same shape with the two innermost axes exchanged in memory."""
    size = layout.type.itemsize
    return replace(layout, strides=(*layout.strides[:-2], size, size * layout.shape[-2]))


#: The weights that each way stores turned.
ABSORBED, UNABSORBED = ("w_uk", "w_uv"), ("w_uv",)


# ---- (a) -------------------------------------------------------------------------------------------------------------


def chunks_of(tokens: int, heads: int = 32, size: int = 128) -> list[Graph]:
    """The four graphs."""
    return [
        Graph("whole", "Published", chunk_case(tokens, "whole", heads=heads, size=size)),
        Graph("blocks, ACC", "Published", chunk_case(tokens, "blockwise", "acc", heads, size)),
        Graph("blocks, SET", "Published", chunk_case(tokens, "blockwise", "set", heads, size)),
        Graph("blocks, solved in the loop", "SolvedInTheLoop", chunk_case(tokens, "blockwise", "set", heads, size)),
    ]


def table_a(bench: Bench, devices: Sequence[str], tokens: int) -> None:
    """The chunk of Kimi-Linear."""
    print("(a) Kimi-Linear's chunk of 64 tokens, 32 heads of 128, a gate for each channel")
    print("    published (RTX 3090): " + "; ".join(f"{name} {rate} t/s, {mb} MB" for name, (rate, mb) in KIMI.items()))
    planned = {graph.name: bench.memory(graph, "CPU").get("planned", 0) for graph in chunks_of(MODEL_TOKENS)}
    _rows(
        ("graph", f"planned for {MODEL_TOKENS} tokens", "of whole", "published"),
        [
            (name, f"{size / 1e6:,.1f} MB", f"{size / planned['whole']:.3f}", _published(name))
            for name, size in planned.items()
        ],
    )
    for device in devices:
        for graph in chunks_of(70, heads=2, size=16):
            bench.judged(graph, device)
        found = bench.times(chunks_of(tokens), device)
        print(f"    {device}, {tokens} tokens")
        rate = {"blocks, ACC": 840, "blocks, SET": 840, "blocks, solved in the loop": 860}
        _rows(
            ("graph", "ms", "times as fast as whole", "interval", "published"),
            [
                (name, _ms(time), f"{1 / ratio.middle:.2f}", _inverse(ratio), f"{rate.get(name, 725) / 725:.2f}")
                for name, (time, ratio) in found.items()
            ],
        )


def _published(name: str) -> str:
    kind = name if name in KIMI else "blocks"
    return f"{KIMI[kind][1] / KIMI['whole'][1]:.3f}"


# ---- (b) -------------------------------------------------------------------------------------------------------------


def one_more_row(case: Case) -> Work:
    """What each token in the cache costs one decoded token: the difference that one more row makes."""
    rows = int(case.params["kv_len"])
    more = attention_case(rows + 1, 1, case.inputs["q_nope"].shape[1], case.inputs["c_kv"].dtype)
    op = ops()[case.op]
    few, many = Work.of(op, case), Work.of(op, more)
    return Work(many.moved - few.moved, many.flops - few.flops)


def counts_b(heads: int = 128) -> list[tuple[str, int, int]]:
    """Bytes in the cache and operations for each token in it, of the three ways.

    The absorbed way is the op's own count. Decompressed, a head has a key of 192 and a value of 128 in the cache, and a
    product and a sum for each. Without absorption they are first computed from the 512 of the latent row.
    """
    absorbed = one_more_row(attention_case(512, heads=heads))
    plain = 2 * heads * (128 + 64 + 128)
    return [
        ("decompressed", heads * (128 + 64 + 128) * 2, plain),
        ("compressed, not absorbed", absorbed.moved, 2 * 512 * heads * (128 + 128) + plain),
        ("compressed, absorbed, two parts", absorbed.moved, absorbed.flops),
    ]


def table_b(bench: Bench, devices: Sequence[str], rows: int) -> None:
    """Latent attention for one decoded token."""
    print("(b) DeepSeek's latent attention, one decoded token, 128 heads, f16 cache: for each token in the cache")
    published = ("81.92 KB, 0.08 M", "1.15 KB, 33.64 M", "1.15 KB, 0.28 M")
    _rows(
        ("way", "KB", "MFLOP", "published"),
        [
            (name, f"{size / 1e3:.2f}", f"{flops / 1e6:.2f}", said)
            for (name, size, flops), said in zip(counts_b(), published)
        ],
    )
    absorbed, plain = (attention_case(rows, turned=turned) for turned in (ABSORBED, UNABSORBED))
    concatenated = replace(absorbed, params={**absorbed.params, "form": "concat"})
    graphs = [
        Graph("decompressed", "Decompressed", plain),
        Graph("compressed, not absorbed", "Decompress", plain),
        Graph("compressed, absorbed, two parts", "Stored", absorbed),
        Graph("compressed, absorbed, concatenated", "Stored", concatenated),
    ]
    for device in devices:
        for graph in graphs[1:]:
            turned = UNABSORBED if graph.backend == "Decompress" else ABSORBED
            small = replace(attention_case(24, heads=2, turned=turned), params={**graph.case.params, "kv_len": 24})
            bench.judged(replace(graph, case=small), device)
        print(f"    {device}, {rows} tokens in the cache")
        _rows(
            ("way", "ms", "times as long as the first", "interval"),
            [
                (name, _ms(time), f"{ratio.middle:.2f}", _range(ratio))
                for name, (time, ratio) in bench.times(graphs, device).items()
            ],
        )


# ---- (c) -------------------------------------------------------------------------------------------------------------

SLICES = {128: "Published", 32: "Sliced32", 8: "Sliced8", 2: "Sliced2"}


def table_c(bench: Bench, devices: Sequence[str], queries: int, rows: int) -> None:
    """A bounded buffer of scores."""
    print(f"(c) the same for {MODEL_TOKENS} queries on {8 * MODEL_TOKENS} rows, scores of so many heads at a time")
    case = attention_case(8 * MODEL_TOKENS, MODEL_TOKENS)
    planned = {
        count: bench.memory(Graph(f"{count}", backend, case), "CPU").get("planned", 0)
        for count, backend in SLICES.items()
    }
    _rows(
        ("heads at a time", "planned", "of all", "scores alone"),
        [
            (
                str(count),
                f"{size / 1e6:,.0f} MB",
                f"{size / planned[128]:.3f}",
                f"{4 * count * MODEL_TOKENS * 8 * MODEL_TOKENS / 1e6:,.0f} MB",
            )
            for count, size in planned.items()
        ],
    )
    for device in devices:
        small = attention_case(40, 8, heads=36)
        for count, backend in SLICES.items():
            bench.judged(Graph(f"{count} heads at a time", backend, small), device)
        print(f"    {device}, {queries} queries on {rows} rows; the result is the op's in every form")
        found = bench.times(
            [Graph(f"{count}", backend, attention_case(rows, queries)) for count, backend in SLICES.items()], device
        )
        _rows(
            ("heads at a time", "ms", "times as long as all", "interval"),
            [(name, _ms(time), f"{ratio.middle:.2f}", _range(ratio)) for name, (time, ratio) in found.items()],
        )


# ---- (d) -------------------------------------------------------------------------------------------------------------


def flops_unabsorbed(case: Case) -> int:
    """Operations of the same attention where keys and values of all heads are computed from the cache first."""
    heads, queries = case.inputs["q_nope"].shape[1:3]
    rows = int(case.params["kv_len"])
    seen = sum(min(rows - queries + i + 1, rows) for i in range(queries)) if case.params["causal"] else queries * rows
    return 2 * heads * (rows * 512 * (128 + 128) + seen * (128 + 64 + 128))


def table_d(bench: Bench, devices: Sequence[str], rows: int, heads: int, most: int) -> None:
    """Where absorption stops paying."""
    print(f"(d) with absorption and without, {rows} rows in the cache, {heads} heads: queries at once")
    queries = [count for count in (1, 4, 16, 64, 128, 256) if count <= min(most, rows)]
    cases = {count: attention_case(rows, count, heads, turned=ABSORBED) for count in queries}
    for device in devices:
        lines = []
        for count, case in cases.items():
            plain = attention_case(rows, count, heads, turned=UNABSORBED)
            graphs = [Graph("absorbed", "Stored", case), Graph("not absorbed", "Decompress", plain)]
            found = bench.times(graphs, device)
            counted = f"{flops_unabsorbed(case) / graphs[0].work.flops:.2f}"
            timed = [_ms(time) for time, _ in found.values()]
            ratio = found["not absorbed"][1] if len(found) == 2 else None
            measured = ("–", "–") if ratio is None else (f"{ratio.middle:.2f}", _range(ratio))
            lines.append((str(count), counted, *(timed if len(timed) == 2 else ("–", "–")), *measured))
        print(f"    {device}")
        _rows(("queries", "counted", "absorbed ms", "not absorbed ms", "times as long without", "interval"), lines)
    crossing = next((count for count in range(1, rows + 1) if _pays_no_more(rows, heads, count)), None)
    print(f"    counted operations cross over at {crossing or 'no'} queries\n")


def _pays_no_more(rows: int, heads: int, queries: int) -> bool:
    case = attention_case(rows, queries, heads)
    return flops_unabsorbed(case) <= Work.of(ops()[case.op], case).flops


# ---- printing --------------------------------------------------------------------------------------------------------


def _rows(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[i]) for line in [titles, *lines]) for i in range(len(titles))]
    for line in [titles, *lines]:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
        print("    " + "  ".join(cells))
    print()


def _ms(time: Interval) -> str:
    return f"{time.middle * 1e3:,.2f}"


def _range(ratio: Interval) -> str:
    return f"{ratio.low:.2f}–{ratio.high:.2f}"


def _inverse(ratio: Interval) -> str:
    return f"{1 / ratio.high:.2f}–{1 / ratio.low:.2f}"


TABLES = ("a", "b", "c", "d")


@click.command()
@click.option("--ggml-lib", metavar="DIR", help="a directory with libggml (default: $OPCONFORM_GGML_LIB)")
@click.option("--device", "devices", multiple=True, help="only these devices of it (default: all)")
@click.option("--table", "tables", multiple=True, type=click.Choice(TABLES), help="only these tables")
@click.option("--seconds", default=4.0, show_default=True, help="time for each graph on each device")
@click.option("--tokens", default=64, show_default=True, help="tokens of the chunks that are timed")
@click.option("--rows", default=512, show_default=True, help="rows of the cache in (b), (c) and (d)")
@click.option("--queries", default=32, show_default=True, help="queries in (c), and the most in (d) divided by 8")
def main(
    ggml_lib: str | None,
    devices: tuple[str, ...],
    tables: tuple[str, ...],
    seconds: float,
    tokens: int,
    rows: int,
    queries: int,
) -> None:
    """Print the tables."""
    bench = Bench({"ggml_lib": ggml_lib} if ggml_lib else {}, seconds)
    there = bench.devices()
    print("; ".join(f"{target.device.id}: {target.about}" for target in there) + "\n")
    chosen = [target.device.id for target in there if not devices or target.device.id in devices]
    drawn: dict[str, Any] = {
        "a": lambda: table_a(bench, chosen, tokens),
        "b": lambda: table_b(bench, chosen, rows),
        "c": lambda: table_c(bench, chosen, queries, rows),
        "d": lambda: table_d(bench, chosen, rows, 32, 8 * queries),
    }
    for table in tables or TABLES:
        drawn[table]()


if __name__ == "__main__":
    main()
