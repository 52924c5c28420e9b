"""Times as text: tables for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from opconform.harness.model.text import printable
from opconform.harness.search.speed import Measured
from opconform.reports.console import text_of


def times_table(measured: Sequence[Measured]) -> str:
    """The times of one device: the median and its interval, warm and cold; rates and shares are of the warm time."""
    timed = [each for each in measured if each.warm is not None]
    if not timed:
        return ""
    table = Table("case", box=SIMPLE_HEAD, pad_edge=False)
    has_memory = any(each.memory for each in timed)
    titles = ["µs", "95 %", "cold µs", "GB/s", "GFLOP/s", "of copy", "cold", "of product"]
    for title in [*titles, *(["planned", "allocated"] if has_memory else [])]:
        table.add_column(title, justify="right", no_wrap=True)
    for each in timed:
        assert each.warm is not None
        work, seconds = each.subject.work, each.warm.middle
        cells = [
            each.subject.name,
            number(seconds * 1e6),
            f"{number(each.warm.low * 1e6)}–{number(each.warm.high * 1e6)}",
            "–" if each.cold is None else number(each.cold.middle * 1e6),
            number(work.moved / seconds / 1e9) if seconds else "–",
            number(work.flops / seconds / 1e9) if work.flops and seconds else "–",
            percent(each.share_of_copy()),
            percent(each.share_of_copy(cold=True)),
            percent(each.share_of_product()),
        ]
        if has_memory:
            cells += [megabytes(each.memory.get(name)) for name in ("planned", "allocated")]
        table.add_row(*map(Text, cells))
    return text_of(table, 200)


def ratios_table(measured: Sequence[Measured]) -> str:
    """How many times as long each case takes as on the other build."""
    found = [each for each in measured if each.versus is not None]
    if not found:
        return ""
    table = Table("case", box=SIMPLE_HEAD, pad_edge=False)
    for title in ("times as long", "interval", "confidence", "sittings", ""):
        table.add_column(title, justify="right", no_wrap=True)
    for each in found:
        assert each.versus is not None
        interval = each.versus.interval
        cells = [
            each.subject.name,
            f"{interval.middle:.3f}",
            f"{interval.low:.3f}–{interval.high:.3f}",
            _confidence(interval.confidence),
            str(interval.count),
            "SLOWER" if each.slower else "",
        ]
        table.add_row(*map(Text, cells))
    return text_of(table, 200)


def notes_of(measured: Sequence[Measured]) -> list[str]:
    """Lines under a table: what was not timed, and why; by what clock."""
    lines = [f"{each.subject.name}: FAILED: {each.error}" for each in measured if each.error is not None]
    refused = Counter(each.unsupported for each in measured if each.unsupported is not None)
    lines += [f"{count} not timed: {reason}" for reason, count in refused.items()]
    clocks = dict.fromkeys(each.clock for each in measured if each.clock)
    if clocks:
        lines.append(f"clock: {', '.join(clocks)}")
    rates = {each.product for each in measured if each.product}
    lines += [f"product of float32 matrices on it: {number(rate / 1e9)} GFLOP/s" for rate in rates]
    return [printable(line) for line in lines]


def number(value: float) -> str:
    """Three digits, and no exponent unless it is out of the way."""
    if value >= 1e9:
        return f"{value:.3g}"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def percent(share: float | None) -> str:
    """A share in words."""
    if share is not None and share >= 1e6:
        return f"{100 * share:.3g}%"
    return "–" if share is None else f"{share:.0%}"


def _confidence(value: float) -> str:
    """As many nines as it has, never rounded up to certainty."""
    shown = f"{100 * value:.1f}"
    return f"{shown} %" if shown != "100.0" else "> 99.9 %"


def megabytes(size: int | None) -> str:
    """A size in words."""
    return "–" if size is None else f"{size / 1e6:,.2f} MB"


def summary_of(measured: Sequence[Measured]) -> Mapping[str, int]:
    """How many cases were timed, how many are slower, failed, and are not supported."""
    return {
        "timed": sum(each.warm is not None for each in measured),
        "slower": sum(each.slower for each in measured),
        "failed": sum(each.error is not None for each in measured),
        "unsupported": sum(each.unsupported is not None for each in measured),
    }
