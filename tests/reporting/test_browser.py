"""The report in a browser: no error, no request, nothing wider than a phone, and what its script does."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from fmwiss.reporting.report import write_report

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 300.0
"""Seconds to wait for an answer: the machine may be busy."""


def find_chromium() -> str | None:
    """The program, if there is one."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Chromium:
    """One browser with one page, over the DevTools protocol; see https://chromedevtools.github.io/devtools-protocol.

    ``problems`` gathers console errors and uncaught exceptions, ``requests`` the addresses that were asked for.
    """

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, from_us = os.pipe()
        to_us, from_browser = os.pipe()
        words = [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-extensions",
            "--disable-background-networking",
            "--no-first-run",
            "--force-color-profile=srgb",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
        ]

        # the protocol wants descriptors 3 and 4; a shell puts them there
        redirect = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self.process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", *words],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.writing, self.reading = from_us, to_us
        self.rest = b""
        self.number = 0
        self.session: str | None = None
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.writing)
        os.close(self.reading)
        self.process.terminate()
        self.process.wait(PATIENCE)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser, and give what it answers."""
        self.number += 1
        question = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            question["sessionId"] = self.session
        os.write(self.writing, json.dumps(question).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]  # type: ignore[no-any-return]

    def visit(self, page: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a page in a window of this size."""
        self.problems, self.requests, self.loaded = [], [], False
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self.loaded:
            self._message()
        self.evaluate("document.fonts.ready.then(() => 0)")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def _message(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.reading], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            chunk = os.read(self.reading, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser has ended")
            self.rest += chunk
        text, _, self.rest = self.rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, values: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self.loaded = True
        elif event == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(str(values["exceptionDetails"].get("exception", values["exceptionDetails"])))
        elif event == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.problems.append(str(values["args"]))
        elif event == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.problems.append(values["entry"]["text"])


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        pytest.skip(f"there is no Chromium here ({', '.join(PROGRAMS)}) to look at the page with")
    with Chromium(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


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
