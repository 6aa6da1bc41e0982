"""The report in a browser: no error, no request, nothing wider than a phone, and what its script does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from browser import Chromium
from fmwiss.reporting.report import write_report


@pytest.fixture
def page(make_run: Any, tmp_path: Path) -> Path:
    write_report([make_run("a_run_with_a_rather_long_name_that_has_no_space_to_break_it_at")], tmp_path / "one.html")
    return tmp_path / "one.html"


@pytest.fixture
def comparison(make_run: Any, tmp_path: Path) -> Path:
    runs = [make_run(f"run-{number}-with-a-long-name", seconds=1 + number) for number in range(4)]
    write_report(runs, tmp_path / "several.html", worst_first=True)
    return tmp_path / "several.html"


OPEN_ALL = "document.querySelectorAll('details').forEach((part) => { part.open = true })"
WIDER = """[...document.querySelectorAll("main *")].filter((node) => {
    const scrolls = node.closest(".scroll, pre, .heat, .bars svg, .plot-area");
    return !scrolls && node.getBoundingClientRect().right > innerWidth + 0.5;
}).map((node) => node.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("kind", ["page", "comparison"])
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1440, False), (2560, True)])
def test_no_error_no_request_and_nothing_beyond_the_window(
    chromium: Chromium, request: pytest.FixtureRequest, kind: str, width: int, dark: bool
) -> None:
    path = request.getfixturevalue(kind)
    chromium.visit(path, width, dark=dark)
    chromium.evaluate(OPEN_ALL)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.evaluate(WIDER) == []
    assert chromium.problems == []
    assert {url for url in chromium.requests if not url.startswith("data:")} == {path.resolve().as_uri()}
    background = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == dark


def test_every_picture_is_drawn(chromium: Chromium, page: Path) -> None:
    chromium.visit(page, 1440)
    chromium.evaluate(OPEN_ALL)
    waiting = "Promise.all([...document.images].map((image) => image.decode())).then(() => document.images.length)"
    assert chromium.evaluate(waiting) == 24
    without = "[...document.querySelectorAll('.picture')].filter((p) => !p.querySelector('.whole') && "
    assert chromium.evaluate(without + "getComputedStyle(p).backgroundImage === 'none').length") == 0


def test_the_theme_can_be_set(chromium: Chromium, page: Path) -> None:
    chromium.visit(page, 800, dark=True)
    colours = []
    for _ in range(3):
        chromium.evaluate("document.getElementById('theme').click()")
        colours.append(chromium.evaluate("getComputedStyle(document.body).color"))
    assert colours[0] != colours[1] == colours[2]  # light, dark, the system's
    assert chromium.evaluate("document.documentElement.dataset.theme === undefined")


def test_a_gallery_can_be_put_in_order(chromium: Chromium, page: Path) -> None:
    chromium.visit(page, 1440)

    def order(value: str) -> list[str]:
        return list(
            chromium.evaluate(
                f"""(() => {{
                    const select = document.querySelector(".order");
                    select.value = {json.dumps(value)};
                    select.dispatchEvent(new Event("change"));
                    const titles = document.querySelectorAll("#" + select.dataset.target + " h5");
                    return [...titles].map((title) => title.textContent);
                }})()"""
            )
        )

    assert order("worst") == ["photo_1", "photo_2", "photo_0"]
    assert order("best") == ["photo_0", "photo_2", "photo_1"]
    assert order("place") == ["photo_0", "photo_1", "photo_2"]


def test_the_confusion_matrix_can_be_read_with_keys_and_pointer(chromium: Chromium, page: Path) -> None:
    chromium.visit(page, 1440)
    press = """(key) => {
        const cells = document.querySelector(".heat-cells");
        cells.focus();
        cells.dispatchEvent(new KeyboardEvent("keydown", { key }));
        return document.querySelector(".readout").textContent;
    }"""
    # aeroplane's row holds 11, 101, 1 and 1 pixels
    assert chromium.evaluate(f"({press})('ArrowDown')") == "9.65 % of aeroplane is predicted as background (11 pixels)"
    assert chromium.evaluate(f"({press})('ArrowRight')").startswith("88.60 % of aeroplane is predicted as aeroplane")
    assert chromium.evaluate(f"({press})('ArrowLeft')").startswith("9.65 %")
    point = """(() => {
        const cells = document.querySelector(".heat-cells"), box = cells.getBoundingClientRect();
        const at = { clientX: box.left + 0.9 * box.width, clientY: box.top + 0.1 * box.height };
        cells.dispatchEvent(new PointerEvent("pointermove", at));
        return document.querySelector(".readout").textContent;
    })()"""
    assert chromium.evaluate(point) == "0.00 % of background is predicted as sheep (0 pixels)"


def test_the_pointer_reads_the_curves(chromium: Chromium, page: Path) -> None:
    chromium.visit(page, 1440)
    read = """(() => {
        const plot = document.querySelectorAll(".plot-area")[1], box = plot.getBoundingClientRect();
        plot.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + 0.49 * box.width, clientY: box.top }));
        const text = plot.querySelector(".tip").innerText;
        plot.dispatchEvent(new PointerEvent("pointerleave"));
        return [text, plot.querySelectorAll(".tip").length];
    })()"""
    text, left = chromium.evaluate(read)
    assert text.split() == ["epoch", "1", "0.2"] and left == 0


def test_the_page_is_readable_without_scripts(chromium: Chromium, page: Path) -> None:
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.visit(page, 390)
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)
        assert chromium.evaluate("getComputedStyle(document.getElementById('theme')).display") == "none"
        assert chromium.evaluate("document.querySelectorAll('.card').length") == 8
        assert chromium.evaluate("document.querySelectorAll('#results td').length") > 10
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)
