"""The HTML report of a real run in headless Chromium: nothing runs, nothing is loaded, and everybody can read it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from opconform.cli import main
from tests.lacking import lacking

MISSING = (
    "the report is tested in a browser, which needs Chromium and its driver (Debian: apt-get install chromium "
    "chromium-driver) and Selenium (pip install selenium)"
)
HOSTILE = "<script>alert(1)</script>"
SPEEDS = Path(__file__).parent.parent / "backends" / "speeds.py"

#: A backend with one device that is right and one that drops ne3 and is called what no device should be called.
BACKEND = f"""
from opconform.harness.run.backend import Device
from tests.backends.sample import Good, IgnoresNe3

class Mine(IgnoresNe3):
    @classmethod
    def devices(cls, options):
        return [Device("good", "NumPy", {{}}), Device({HOSTILE!r}, {HOSTILE!r}, {{{HOSTILE!r}: {HOSTILE!r}}})]

    def acc(self, case, buffers):
        (Good if self.device == "good" else IgnoresNe3).acc(self, case, buffers)

    def supports(self, case):
        return f"no {{self.device}}" if case.op == "cumsum" and case.params["reverse"] else None
"""

Driver = Any  #: selenium.webdriver.Chrome, whose package may be missing


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with a failure, and of times with a case that is slower."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("mine.py").write_text(BACKEND)
        chosen = ("--op", "acc,cumsum", "--max-examples", "40", "--no-isolation", "--also-seconds", "0")
        for seed in ("1", "2"):
            found = CliRunner().invoke(main, ["test", "--backend", "mine.py:Mine", *chosen, "--seed", seed])
            assert found.exit_code == 1, found.output
        speeds = ("--backend", f"{SPEEDS}:Slower", "--vs", f"{SPEEDS}:Even", "--op", "cumsum", "--seconds", "0.002")
        found = CliRunner().invoke(main, ["perf", *speeds, "--no-isolation"])
        assert found.exit_code == 1, found.output
        found = CliRunner().invoke(main, ["report"])
        assert found.exit_code == 0, found.output
    return folder / "opconform-out" / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Driver]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        chromium = None
    if chromium is None or chromedriver is None:
        lacking("chromium" if chromium is None else "chromium-driver", MISSING)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.add_argument("--headless=new")
    options.add_argument("--no-proxy-server")
    options.add_argument("--disable-dev-shm-usage")  # in a container it is small
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium does not start as root with it
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "localhost,127.0.0.1")  # a proxy is not asked for the driver on this machine
        driver = webdriver.Chrome(options=options, service=Service(chromedriver))
        yield driver
        driver.quit()


@pytest.fixture
def shown(browser: Driver, report: Path) -> Driver:
    """The browser with the report at desktop width, in light."""
    look(browser, 1280, "light")
    browser.get(report.as_uri())
    return browser


def look(browser: Driver, width: int, theme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def asks(browser: Driver) -> bool:
    """Whether a script has opened a dialog."""
    from selenium.common.exceptions import NoAlertPresentException

    try:
        browser.switch_to.alert.dismiss()
    except NoAlertPresentException:
        return False
    return True


def requests(browser: Driver) -> set[str]:
    """What has been asked for since the last look, without the images that stand in the page."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message for message in messages if message["method"] == "Network.requestWillBeSent"]
    urls = {message["params"]["request"]["url"] for message in sent}
    return {url for url in urls if not url.startswith("data:")}


def pixel(browser: Driver, x: int, y: int) -> tuple[int, ...]:
    """Red, green and blue of a point of the screen, from a PNG of one pixel (whose filter changes nothing)."""
    clip = {"x": x, "y": y, "width": 1, "height": 1, "scale": 1}
    png = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": clip})["data"])
    assert struct.unpack(">II", png[16:24]) == (1, 1)
    data, place = b"", 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        if png[place + 4 : place + 8] == b"IDAT":
            data += png[place + 8 : place + 8 + length]
        place += 12 + length
    return tuple(zlib.decompress(data)[1:4])


def test_it_opens_without_an_error_and_asks_for_nothing_else(shown: Driver, report: Path, tmp_path: Path) -> None:
    requests(shown)
    shown.refresh()
    assert shown.get_log("browser") == []
    assert requests(shown) == {report.as_uri()}
    assert shown.execute_script("return [...document.images].every(image => image.naturalWidth > 0)")
    assert shown.execute_script("return document.images.length") == 1
    # and the test would have seen one
    careless = tmp_path / "careless.html"
    careless.write_text('<img src="http://host.invalid/x.png">')
    shown.get(careless.as_uri())
    assert requests(shown) == {careless.as_uri(), "http://host.invalid/x.png"}
    assert shown.get_log("browser")


def test_a_device_named_like_a_script_does_no_harm(shown: Driver, report: Path, tmp_path: Path) -> None:
    assert not asks(shown)
    assert shown.execute_script("return document.scripts.length") == 0
    (name,) = [
        heading.text
        for heading in shown.find_elements("css selector", "table.matrix thead th")
        if "script" in heading.text
    ]
    target = f"mine.py:Mine:{HOSTILE} ({HOSTILE} {HOSTILE})"
    assert name == f"{target}\n{HOSTILE}"
    titles = [heading.text for heading in shown.find_elements("css selector", "article h3")]
    assert titles == [f"WRONG VALUES acc on {target}"]
    # and the policy holds where a page forgot to escape, which the test would have seen
    page = report.read_text(encoding="utf-8")
    forgot = tmp_path / "forgot.html"
    forgot.write_text(page.replace("<main>", f"<main>{HOSTILE}"), encoding="utf-8")
    shown.get(forgot.as_uri())
    assert not asks(shown)
    assert "Content Security Policy" in shown.get_log("browser")[0]["message"]
    forgot.write_text(f"<!doctype html>{HOSTILE}", encoding="utf-8")
    shown.get(forgot.as_uri())
    assert asks(shown)


def test_it_is_dark_where_the_reader_wants_it(shown: Driver) -> None:
    light = pixel(shown, 2, 2)
    look(shown, 1280, "dark")
    dark = pixel(shown, 2, 2)
    assert min(light) > 200
    assert max(dark) < 60


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_never_scrolls_sideways(shown: Driver, width: int, theme: str) -> None:
    look(shown, width, theme)
    shown.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert shown.execute_script("return document.documentElement.scrollWidth") <= width
    wide = "return [...document.querySelectorAll('.scroll')].some(part => part.scrollWidth > part.clientWidth)"
    assert width > 700 or shown.execute_script(wide)


def test_the_keyboard_reaches_and_opens_everything(shown: Driver) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(key: str) -> Driver:
        ActionChains(shown).send_keys(key).perform()
        return shown.switch_to.active_element

    skip = press(Keys.TAB)
    assert skip.get_attribute("class") == "skip"
    assert skip.rect["y"] >= 0
    assert press(Keys.ENTER).get_attribute("id") == "matrix"
    assert any(press(Keys.TAB).text == "FAILED" for _ in range(4))
    assert shown.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press(Keys.ENTER)
    assert shown.current_url.endswith("#failure-1")
    article = shown.find_element("css selector", "article:target")
    top = shown.execute_script("return arguments[0].getBoundingClientRect().top", article)
    assert 0 <= top < 400
    summaries = article.find_elements("css selector", "summary")
    reached = [press(Keys.TAB) for _ in range(len(summaries) + 4)]
    assert summaries[0] in reached
    for summary in summaries:
        shown.execute_script("arguments[0].focus()", summary)
        states = []
        for key in (Keys.ENTER, Keys.SPACE):
            states.append(shown.execute_script("return arguments[0].parentElement.open", summary))
            press(key)
        assert states == [states[0], not states[0]]
        assert shown.execute_script("return arguments[0].parentElement.open", summary) == states[0]
