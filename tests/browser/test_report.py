"""The report as a browser shows it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from example_result import ALL
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from gos_adapt.report import facts
from gos_adapt.report.html import write_report

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

MARKS = """
return [...document.querySelectorAll('.plotly-graph-div')].map(
    plot => plot.querySelectorAll('.bars path, .scatterlayer .points path').length)
"""

RIGHT_EDGES = """
return [...document.querySelectorAll('.plotly-graph-div .main-svg')].map(svg => svg.getBoundingClientRect().right)
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def open_report(browser: Chrome, folder: Path, name: str, width: int, medium: str = "screen") -> None:
    path = folder / "report.html"
    write_report(ALL[name](), path)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium})
    browser.get(path.as_uri())


@pytest.mark.parametrize("name", ALL)
def test_every_picture_is_drawn_and_nothing_overflows_a_phone(browser: Chrome, tmp_path: Path, name: str) -> None:
    open_report(browser, tmp_path, name, width=390)
    assert browser.get_log("browser") == []
    marks = browser.execute_script(MARKS)
    assert len(marks) == 2 + len([pareto for pareto in facts.paretos(ALL[name]()) if pareto.points])
    assert min(marks) > 0
    assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert max(browser.execute_script(RIGHT_EDGES)) <= 390


def test_every_replaced_operator_is_drawn_beside_its_original(browser: Chrome, tmp_path: Path) -> None:
    open_report(browser, tmp_path, "example", width=1200)
    nodes = browser.execute_script(
        "return [...document.querySelectorAll('svg.operator')].map(svg => svg.querySelectorAll('.node rect').length)"
    )
    assert nodes == [6, 8, 12, 2]
    assert browser.execute_script("return document.querySelectorAll('math').length") == 4


def test_hostile_names_run_no_script(browser: Chrome, tmp_path: Path) -> None:
    open_report(browser, tmp_path, "hostile", width=1200)
    assert browser.title != "owned"
    assert browser.execute_script("return document.images.length") == 0


def test_the_report_prints(browser: Chrome, tmp_path: Path) -> None:
    open_report(browser, tmp_path, "example", width=700, medium="print")
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.execute_script("return [...document.querySelectorAll('details')].every(details => details.open)")
    assert min(browser.execute_script(MARKS)) > 0
    document = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"]
    assert document.startswith("JVBERi")  # %PDF-, in base 64
    assert browser.get_log("browser") == []
