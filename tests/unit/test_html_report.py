"""The HTML report: what it shows, what it escapes, and what it never loads."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shlex
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from opconform.cli import main
from opconform.harness.model.case import Case
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Device
from opconform.harness.run.target import Target
from opconform.harness.search.coverage import Covered
from opconform.harness.search.result import KnownBug, KnownFailure, Lie, Result, Tally
from opconform.harness.search.settings import Settings
from opconform.harness.search.speed import Measured, Subject
from opconform.reports.database import _STEPS
from opconform.reports.history import recorders
from opconform.reports.html.charts import strip, trend
from opconform.reports.html.data import report_of
from opconform.reports.html.page import html
from opconform.reports.run import Run, about_devices
from tests.histories import (
    ACC,
    FAILED,
    PAIR,
    PASSED,
    REFUSED,
    TIMED,
    VULKAN,
    failure_of,
    finished,
    ratio_of,
    record,
    result_of,
    run_of,
    timed,
)
from tests.repro_samples import HOSTILE, one_failure
from tests.samples import acc

SCRIPT = "<script>alert(1)</script>"
LISTED = KnownFailure("known_failures.toml, entry 1", "acc/kb001", "ne3 is lost", "", "2099-01-01", False, 3, "fails")

#: The attributes by which a page can make a browser load something.
LOADING = ("src", "srcset", "data", "poster", "background", "action", "formaction", "ping", "style")


class Page(HTMLParser):
    """A page taken apart: its elements with their attributes, the text, and what stands in a style element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.style = ""
        self._in_style = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.style += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def skeleton(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attrs)) for tag, attrs in self.elements]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


def keep(path: Path, *results: Result, device: Device = VULKAN.device, **settings: Any) -> Run:
    """A run that ended, with these results."""
    targets = {result.target: Target(result.target.rpartition(":")[0], device) for result in results}
    pairs = [(result.op, result.target) for result in results]
    chosen = Settings(**{"history": str(path), "report_dir": str(path.parent), **settings})
    run = Run(chosen, "search", about_devices(list(targets.values())), pairs)
    for observer in recorders(run):
        for result in results:
            observer.begins(ACC, targets[result.target])
            observer.result(ACC, targets[result.target], result)
        observer.close()
    return run


def page_of(path: Path, run_id: str | None = None) -> Page:
    return Page(html(report_of(path, run_id)))


def command(*arguments: str, status: int = 0) -> str:
    found = CliRunner().invoke(main, ["report", *arguments])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    assert found.exit_code == status, found.output
    return found.output


def foul(text: str) -> tuple[Result, Device]:
    """A result in which every string that may come from elsewhere is `text`."""
    stored = text.encode(errors="replace").decode()  # SQLite takes no lone surrogate; JSON does
    case = one_failure().case
    case = Case(stored, {text: text}, case.inputs, case.outputs, recipe=text)
    failure = replace(
        one_failure(),
        case=case,
        target=f"{stored}:{stored}",
        device=stored,
        versions=((text, text),),
        findings=(Finding(text, Kind.WRONG_VALUES, text), Finding(text, Kind.CRASH, text)),
        bound=text,
        bound_at=text,
        stderr=f"{text}\n{text}",
        hint=text,
        also=text,
        stage=text,
        provenance=(text, text),
        replay_options=(f"--ggml-lib {shlex.quote(text)}",),
    )
    result = Result(
        stored,
        f"{stored}:{stored}",
        stored,
        Tally(3, 1, Counter({text: 2}), seconds=1.0),
        failure,
        failed_known=(text,),
        known_bugs=(KnownBug(text, text, True), KnownBug(text, f"{text} ", False)),
        limits=(f"{text} limit",),
        left_out=(text,),
        known_failures=(replace(LISTED, entry=text, case=text, reason=text, link=text, fate=text),),
    )
    return result, Device(stored, stored, {stored: text})


def foul_times(text: str, device: Device) -> list[Measured]:
    """Times in which every string that may come from elsewhere is `text`."""
    stored = text.encode(errors="replace").decode()
    target = Target(stored, device)
    subject = Subject(stored, ACC, replace(acc(3), op=stored))
    slow = replace(ratio_of(1.5, subject, target), other=target)
    return [replace(TIMED, subject=subject, target=target, clock=text), slow, replace(slow, versus=None, error=text)]


@pytest.mark.parametrize(
    "text", [SCRIPT, *HOSTILE, "javascript:alert(1)", '" onerror="alert(1)', "' autofocus onfocus='"]
)
def test_text_from_elsewhere_is_text_and_never_markup(text: str, tmp_path: Path) -> None:
    pages = []
    for name, word in (("foul", text), ("fair", "word")):
        place = tmp_path / name
        result, device = foul(word)
        keep(place / "history.sqlite", result, device=device, report_dir=str(place / "r"))
        timed(place / "history.sqlite", *foul_times(word, device))
        pages.append(html(report_of(place / "history.sqlite")))
    assert Page(pages[0]).skeleton == Page(pages[1]).skeleton
    assert all(character.isprintable() or character == "\n" for character in pages[0])


def test_a_device_that_is_named_like_a_script_is_shown_by_its_name(path: Path) -> None:
    result, device = foul(SCRIPT)
    keep(path, result, device=device)
    page = page_of(path)
    assert page.text.count(SCRIPT) > 20
    assert not page.all("script")


def test_an_expected_failure_links_to_the_web_only(path: Path) -> None:
    links = ("https://example.org/?a=1&b=<2>", "javascript:alert(1)", "data:text/html,x", " https://example.org")
    listed = tuple(replace(LISTED, link=link) for link in links)
    keep(path, replace(result_of([PASSED]), known_failures=listed))
    assert [href for a in page_of(path).all("a") if not (href := a["href"] or "").startswith("#")] == [links[0]]


def test_nothing_is_loaded_and_nothing_runs(path: Path) -> None:
    keep(path, result_with(one_failure(VULKAN, stderr="it said")))
    page = page_of(path)
    for tag, attrs in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form", "audio", "video", "source", "use")
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in LOADING or (tag, name) == ("link", "href"):
                assert str(value).startswith("data:"), (tag, name)
    assert page.all("img")
    assert not re.search(r"url\(|@import|expression|//", page.style)
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def result_with(failure: Any, target: str = "ggml:Vulkan0", **more: Any) -> Result:
    return Result("acc", target, failure.device, Tally(8, 2, seconds=1.0), failure, **more)


def test_a_failure_is_shown_with_all_that_is_known_of_it(path: Path) -> None:
    failure = one_failure(VULKAN, hint="ne3 is lost", also="others pass", stage="Akk: bad")
    failure = replace(failure, stderr="\x1b[31mit said\x1b[0m", provenance=("out[0] holds a[1]", "and 3 more"))
    failure = replace(failure, unfinished="the time was up")
    keep(path, result_with(failure, failed_known=("acc/kb001",)))
    page = page_of(path)
    wrong = failure.wrong
    assert wrong is not None
    for text in (
        *("WRONG VALUES acc on ggml:Vulkan0", str(failure.case), failure.findings[0].detail, "llvmpipe"),
        *("hint ne3 is lost", "also others pass", "stage Akk: bad", "moved out[0] holds a[1] and 3 more"),
        "shrunk not to the end: the time was up",
        *(f"bound {failure.bound} [{failure.bound_at}]", f"error {wrong.worst.error:.3g}", "build b7836", "nmse"),
        *("1 known case fails", "acc/kb001", "It said it said", "i1 down, i0 across (X wrong, · right):"),
    ):
        assert text in page.text, text
    (image,) = page.all("img")
    svg = base64.b64decode(str(image["src"]).partition("base64,")[2]).decode()
    assert svg.startswith("<svg")
    assert f"{wrong.count} of {wrong.total} elements wrong" in svg


def test_what_is_not_known_has_no_line(path: Path) -> None:
    finished(path, [PASSED, FAILED])
    page = page_of(path)
    assert "WRONG VALUES acc on ggml:Vulkan0" in page.text
    for text in ("hint", "moved", "shrunk", "also ", "stage", "It said", "worst", "nmse", "bundle"):
        assert text not in page.text, text
    assert not page.all("img")


def commands_in(text: str) -> list[list[str]]:
    articles = re.findall(r"<article.*?</article>", text, re.DOTALL)
    return [re.findall(r"<li><code>(.*?)</code>", article) for article in articles]


def test_every_failure_has_its_commands(path: Path) -> None:
    case_id = one_failure().case.id
    bundle = path.parent / "bundles" / case_id
    bundle.mkdir(parents=True)
    (bundle / "bundle.json").write_text('{"target": "ggml:Vulkan0"}')
    (bundle / "repro.py").touch()
    crash = replace(failure_of(FAILED), target="ggml:CPU", replay_options=("--ggml-lib '/a b'",))
    results = [result_with(one_failure(VULKAN)), result_with(crash, "ggml:CPU")]
    keep(path, *results, report_dir="there", repro_dir=str(path.parent / "bundles"), strict=True)
    first, second = commands_in(html(report_of(path)))
    assert first[0] == f"opconform replay there/cases/{case_id}.json --backend ggml:Vulkan0 --strict-supports"
    assert first[1].startswith("pytest --pyargs opconform.conformance --case there/cases/")
    assert first[2:] == [f"python {bundle}/repro.py"]
    assert second[0].endswith("--backend ggml:CPU --ggml-lib &#39;/a b&#39; --strict-supports")
    assert len(second) == 2


def test_a_killed_run_shows_what_it_had_found_and_how_to_find_it_again(path: Path) -> None:
    record(run_of(path, shard=(2, 3), strict=True), [PASSED, FAILED], close=False)
    text = html(report_of(path))
    assert commands_in(text) == [
        ["opconform test --op acc --backend ggml:Vulkan0 --seed 7 --shard 2/3 --strict-supports"]
    ]
    page = Page(text)
    assert "WRONG VALUES: 1 of 2 elements differ" in page.text
    assert "without shard 1, 2, 3 of 3" in page.text
    assert "1 pair is not finished" in page.text


def cells_of(page: str) -> list[str]:
    table = page[page.index('<table class="matrix">') : page.index("</table>")]
    return [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in re.findall(r"<td>(.*?)</td>", table, re.DOTALL)]


def test_each_cell_says_its_state_in_words(path: Path) -> None:
    bugs = (KnownBug("acc/a", "old bug", True), KnownBug("acc/b", "mended", False))
    run = keep(
        path,
        result_of([PASSED, REFUSED], known_bugs=bugs),
        replace(result_of([REFUSED]), target="ggml:CPU"),
        result_with(one_failure(VULKAN), "ggml:CUDA0", failed_known=("acc/x", "acc/y")),
        replace(result_of([PASSED]), target="ggml:CUDA1", known_failures=(LISTED,), tally=Tally(4, known=3)),
        replace(result_of([PASSED]), op="set"),
    )
    text = html(report_of(path))
    missing = "not tested"
    assert cells_of(text) == [
        "passed 1 1 unsupported known bug FIXED",
        "unsupported",
        "FAILED 10 WRONG VALUES 2 known cases fail",
        "known failure 7",
        *("passed 1", missing, missing, missing),
    ]
    words = Page(text).text
    assert "1 of 5 pairs of op and device fails. 1 pair fails as expected. 1 known failure or bug is FIXED." in words
    assert "19 cases run: 14 passed, 2 failed, 3 failed as expected; 2 unsupported." in words
    assert 'takes no "b" of 5' in words
    assert "known_failures.toml, entry 1; covers 3 cases here; expires 2099-01-01" in words
    assert run.id in words


def test_what_is_free_is_listed_and_a_large_share_is_a_warning(path: Path) -> None:
    because = "float32 overflows there"
    keep(
        path,
        replace(result_of([PASSED]), tally=Tally(4, free=60, elements=1000), free=because),
        replace(result_of([PASSED]), target="ggml:CPU", tally=Tally(4, free=50, elements=1000), free=because),
        replace(result_of([PASSED]), target="torch:cpu", tally=Tally(4, free=0, elements=1000), free=because),
    )
    text = html(report_of(path))
    assert [cell for cell in cells_of(text) if "free" in cell] == ["passed 4 6.0% free"]
    section = text[text.index('<h2 id="free"') : text.index('<h2 id="trend"')]
    warned, _, few = section.partition("<details>")
    assert [share for share in ("6.0%", "5.0%", because) if share in warned] == ["6.0%", because]
    assert "5.0%" in few
    assert "torch:cpu" not in section


def test_what_a_device_aborts_at_is_a_line_under_the_matrix_and_a_row_with_its_commands(path: Path) -> None:
    lie = Lie(acc(1, 1, 1, 2), "the kernel asserts <b>rows</b>", "signal SIGABRT", ("--ggml-lib /a",))
    keep(path, replace(result_of([PASSED]), lies=(lie,)), replace(result_of([PASSED]), target="ggml:CPU"))
    text = html(report_of(path))
    assert [cell for cell in cells_of(text) if "aborts" in cell] == ["passed 1 says yes, aborts"]
    assert f"says yes, aborts: 1 op on ggml:Vulkan0 (b7836): {lie.case.id}; e.g. the kernel asserts &lt;b&gt;" in text
    section = text[text.index('<h2 id="aborts"') : text.index('<h2 id="unsupported"')]
    tail = f"{lie.case.id} --strict-supports --backend ggml:Vulkan0 --ggml-lib /a"
    assert [what for what in ("replay", "repro") if f"opconform {what} {tail}" in section] == ["replay", "repro"]
    assert "SIGABRT" in section


def test_shards_add_up_what_is_free_and_a_run_without_any_has_no_list(path: Path) -> None:
    for index, free in enumerate((0, 120), start=1):
        result = replace(result_of([PASSED]), tally=Tally(4, free=free, elements=1000))
        keep(path, result, seed=3, shard=(index, 2))
    assert "6.0% free" in html(report_of(path))
    keep(path, replace(result_of([PASSED]), tally=Tally(4, elements=1000)))
    assert 'id="free"' not in html(report_of(path))


def test_links_lead_somewhere_and_ids_are_there_once(path: Path) -> None:
    results = [result_with(replace(one_failure(), target=f"ggml:{i}"), f"ggml:{i}") for i in range(4)]
    keep(path, *results, replace(result_of([REFUSED]), known_bugs=(KnownBug("acc/a", "bug", True),)))
    timed(path, TIMED, replace(TIMED, target=Target("cuda", VULKAN.device)))
    page = page_of(path)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = [str(attrs[name]) for _, attrs in page.elements for name in ("aria-labelledby",) if name in attrs]
    links = [str(attrs["href"])[1:] for tag, attrs in page.elements if tag == "a"]
    assert set(named + links) <= set(ids)
    assert [f"failure-{number}" in links for number in (1, 2, 3, 4)] == [True] * 4
    opened = ["open" in details for details in page.all("details")]
    assert opened.count(True) == 3


def test_headings_go_down_by_one_and_tables_have_scopes(path: Path) -> None:
    keep(path, result_with(one_failure(VULKAN)))
    timed(path, TIMED, ratio_of(1.5))
    page = page_of(path)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in page.all("img"))
    assert page.elements[[tag for tag, _ in page.elements].index("body") + 1][1]["class"] == "skip"


def test_times_are_shown_beside_tests_and_without_any(path: Path) -> None:
    run = timed(path, TIMED, ratio_of(1.5))
    alone = page_of(path)
    finished(path, [PASSED])
    both = page_of(path)
    for page in (alone, both):
        assert "1 of 1 case timed is slower than on the other build." in page.text
        assert "acc/one SLOWER" in page.text
        assert f"llvmpipe, {run.started[:10]}" in page.text
        assert "clock: graphs; against ggml:Vulkan0 (b6673)" in page.text
        labels = [svg.get("aria-label") for svg in page.all("svg")]
        assert "times as long: 1.50 (1.50–1.50)" in labels
        assert "of the speed of the device's own copy: 50%" in labels
        targets = {a["href"] for a in page.all("a")}
        assert "#times" in targets
        assert targets <= {f"#{attrs['id']}" for _, attrs in page.elements if "id" in attrs}
    assert ("#matrix" in {a["href"] for a in both.all("a")}, "Matrix" in alone.text) == (True, False)
    assert "Times" not in page_of(path, last_run(path)).text


def last_run(path: Path) -> str:
    """The id of the last run."""
    with closing(sqlite3.connect(path)) as db:
        return str(db.execute("SELECT run_id FROM runs ORDER BY started DESC").fetchone()[0])


def test_an_older_run_is_dated_and_a_run_can_be_chosen(path: Path) -> None:
    first = keep(path, result_of([PASSED, PASSED]), replace(result_of([PASSED]), op="set"))
    keep(path, result_of([PASSED, FAILED]))
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE runs SET started = '2020-01-02T03:04:05Z' WHERE run_id = ?", [first.id])
        db.commit()
    assert cells_of(html(report_of(path))) == ["FAILED 2 WRONG VALUES", "passed 1 from 2020-01-02"]
    assert cells_of(html(report_of(path, first.id))) == ["passed 2", "passed 1"]
    assert "2020-01-02 03:04" in page_of(path).text
    bars = trend(report_of(path).past).bars
    assert [dict(bar.counts) for bar in bars] == [{"passed": 2}, {"failed": 1}]
    assert strip(report_of(path).past, PAIR).says == "the last 2 runs: 1 passed, 1 failed"
    up, down = (bar.blocks[0] for bar in bars)
    assert up.y + up.height == down.y  # one stands on the line, the other hangs below it


def test_shards_are_one_run_and_each_shows_its_failure(path: Path) -> None:
    for shard, verdict in ((1, FAILED), (2, replace(FAILED, case=replace(FAILED.case, seed=9)))):
        keep(path, result_of([PASSED, verdict]), seed=7, shard=(shard, 2))
    report = report_of(path)
    assert len(report.failures) == 2
    assert len(report.past) == 1
    assert cells_of(html(report)) == ["FAILED 4 WRONG VALUES WRONG VALUES"]


def older(path: Path) -> None:
    """A history as version 1 wrote it: a run with one failure."""
    with closing(sqlite3.connect(path)) as db:
        for statement in (*_STEPS[1], "PRAGMA user_version = 1"):
            db.execute(statement)
        devices = '{"ggml:Vulkan0": {"description": "llvmpipe", "versions": {}}}'
        run = ("r1", "2026-01-01T00:00:00Z", "2026", "search", 1, "", 9, 1, 1, "0.1", devices, json.dumps([PAIR[:2]]))
        db.execute(f"INSERT INTO runs VALUES ({', '.join('?' * 12)})", run)
        case = FAILED.case
        values = ("r1", *PAIR[:2], "llvmpipe", 3, 1, 2, '{"no": 2}', "CRASH", case.id, json.dumps(case.to_json()), "[]")
        db.execute(f"INSERT INTO results VALUES ({', '.join('?' * 15)})", (*values, '[["acc/b", false]]', 1.0, 4.0))
        db.commit()


def test_a_history_of_the_first_version_is_shown_and_taken_on(path: Path, tmp_path: Path) -> None:
    older(path)
    before = path.read_bytes()
    text = html(report_of(path))
    assert path.read_bytes() == before
    assert cells_of(text) == ["FAILED 4 CRASH 2 unsupported FIXED"]
    assert commands_in(text)[0][0] == f"opconform replay reports/cases/{FAILED.case.id}.json --backend ggml:Vulkan0"
    assert "recorded by an older version" in text
    merged = tmp_path / "merged.sqlite"
    assert CliRunner().invoke(main, ["merge", str(merged), str(path)]).exit_code == 0
    assert cells_of(html(report_of(merged))) == cells_of(text)
    finished(path, [PASSED])
    assert cells_of(html(report_of(path))) == ["passed 1"]


# The command


def test_the_command_writes_the_page_beside_the_history(path: Path) -> None:
    keep(path, result_with(one_failure(VULKAN)))
    out = path.parent / "report.html"
    assert command("--history", str(path)) == f"{out}  1 of 1 pairs of op and device fail\n"
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>\n<html lang=")
    assert out.stat().st_mode & 0o777 == path.stat().st_mode & 0o777
    elsewhere = path.parent / "deep" / "r.html"
    command("--history", str(path), "--out", str(elsewhere))
    assert sorted(file.name for file in elsewhere.parent.iterdir()) == ["r.html"]


def empty(path: Path) -> None:
    for observer in recorders(Run(Settings(history=str(path)), "search")):
        observer.begins(ACC, VULKAN)
        observer.close()


def broken(path: Path) -> None:
    finished(path, [FAILED])
    with closing(sqlite3.connect(path)) as db:
        db.execute("""UPDATE results SET result = '{"op": 1}'""")
        db.commit()


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (None, (), "no such file"),
        (Path.touch, (), "the file is empty"),
        (empty, (), "no run in it has tested anything"),
        (broken, (), "not a history: "),
        (lambda path: path.write_text("x" * 200), (), "not a history: file is not a database"),
        (lambda path: finished(path, [PASSED]), ("nope",), "no run 'nope' in "),
        (lambda path: finished(path, [PASSED]), ("--out", "/dev/null/x"), "/dev/null/x: "),
    ],
)
def test_nothing_to_show_is_one_line_and_exit_status_2(
    make: Any, arguments: Sequence[str], message: str, path: Path
) -> None:
    if make is not None:
        make(path)
    lines = command("--history", str(path), *arguments, status=2).splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("Error: ")
    assert not (path.parent / "report.html").exists()
    if "--out" not in arguments:
        with pytest.raises(UsageError):
            report_of(path, *arguments)


# Colours


def colours(style: str) -> list[dict[str, str]]:
    """The colours by name, in light and in dark."""
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2, "relative luminance")."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(colours: Mapping[str, str], one: str, other: str) -> float:
    low, high = sorted((luminance(colours[one]), luminance(colours[other])))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_light_and_dark(path: Path) -> None:
    finished(path, [PASSED])
    themes = colours(page_of(path).style)
    assert len(themes) == 2
    for theme in themes:
        pairs = [(text, ground) for text in ("text", "muted", "link") for ground in ("page", "card", "soft")]
        pairs += [(state, f"{state}-soft") for state in ("pass", "fail", "known", "fixed")]
        assert [pair for pair in pairs if contrast(theme, *pair) < 4.5] == []
        shapes = [(shape, "card") for shape in ("pass", "fail", "known", "idle", "focus")]
        assert [pair for pair in shapes if contrast(theme, *pair) < 3] == []


def test_a_verdict_that_stands_alone_needs_no_past(path: Path) -> None:
    replay = replace(run_of(path), command="replay")
    record(replay, [PASSED], result_of([PASSED]))
    assert "The history holds replays only." in page_of(path, replay.id).text


def test_the_share_of_trait_pairs_stands_beside_the_throughput(path: Path) -> None:
    keep(path, result_with(one_failure(VULKAN), coverage=Covered(97, 100)))
    assert "97 % of 100 trait pairs" in page_of(path).text
