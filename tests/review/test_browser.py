"""The review in a browser, from the command to the training that heeds it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import Chromium
from fmwiss.data.review import Review
from fmwiss.review.session import Session

pytest.importorskip("fastapi", reason="the extra fmwiss[review] is not installed")

PROGRAM = [sys.executable, "-c", "from fmwiss.cli import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *map(str, words)], capture_output=True, text=True, check=False, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def reviewed(world: Any, tags_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a review before training, and the folder of the run to be."""
    run = tmp_path_factory.mktemp("browser") / "run"
    words = ["review", world.experiment, "--out", run, "--port", "0", "--data", world.data, "--cache", world.cache]
    process = subprocess.Popen([*PROGRAM, *map(str, words)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:"), "the command did not begin to serve"
    yield address, run
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0


@pytest.fixture
def page(chromium: Chromium, reviewed: tuple[str, Path]) -> Chromium:
    load(chromium, reviewed[0], 1440)
    return chromium


def load(browser: Chromium, address: str, width: int, dark: bool = False) -> None:
    browser.visit(address, width, dark=dark)
    browser.wait("document.querySelectorAll('.mask').length > 0")
    browser.wait("[...document.querySelectorAll('.mask')].slice(0, 4).every((card) => card.dataset.share)")


def cards(browser: Chromium) -> list[int]:
    return list(browser.evaluate("[...document.querySelectorAll('.mask')].map((card) => Number(card.dataset.number))"))


WIDER = """[...document.querySelectorAll("main *")].filter((node) =>
    !node.closest(".strip") && node.getBoundingClientRect().right > innerWidth + 0.5
).map((node) => node.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1440, False), (1440, True)])
def test_no_error_no_request_elsewhere_and_nothing_beyond_the_window(
    chromium: Chromium, reviewed: tuple[str, Path], width: int, dark: bool
) -> None:
    address, _ = reviewed
    load(chromium, address, width, dark)
    chromium.evaluate("document.getElementById('word').focus()")  # which looks at the class's own name
    chromium.wait("document.querySelectorAll('.word-row figure').length > 2")
    chromium.wait("[...document.images].every((image) => image.complete)")
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.evaluate(WIDER) == []
    assert chromium.problems == []
    assert all(url.startswith((address, "data:")) for url in chromium.requests)
    background = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == dark
    broken = "[...document.images].filter((image) => image.src && image.complete && !image.naturalWidth).length"
    assert chromium.evaluate(broken) == 0


def test_the_slider_cuts_the_masks_anew_without_the_server(page: Chromium, world: Any, session: Session) -> None:
    number = cards(page)[0]
    item = session.items[number]

    def share(threshold: float) -> float:
        page.evaluate(
            f"""(() => {{
                const slider = document.getElementById("cut");
                slider.value = {threshold};
                slider.dispatchEvent(new Event("input"));
            }})()"""
        )
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return float(page.evaluate("Number(document.querySelector('.mask').dataset.share)"))

    def true_share(threshold: float) -> float:
        from fmwiss.data.review import Threshold
        from fmwiss.pseudo_masks import StoredPlusMasks

        config = Threshold("cosegmentation.plus.threshold", threshold).applied(session.masks.config)
        return float(StoredPlusMasks(session.masks.store, config).masks(item.image_id, [item.name], 0).double().mean())

    asked = len(page.requests)
    for threshold in (0.1, 0.33, 0.8):
        assert share(threshold) == pytest.approx(true_share(threshold), abs=1e-9)
    assert len(page.requests) == asked
    assert share(0.1) > share(0.8)
    painted = """(() => {
        const canvas = document.querySelector(".mask canvas");
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let covered = 0;
        for (let i = 3; i < data.length; i += 4) if (data[i]) covered += 1;
        return 4 * covered / data.length;
    })()"""
    assert page.evaluate(painted) == pytest.approx(true_share(0.8), abs=1e-6)
    page.press("]")
    assert page.evaluate("document.getElementById('cut-value').textContent") == "0.81"


def test_keys_move_enlarge_and_explain(page: Chromium) -> None:
    current = "Number(document.querySelector('.mask.current').dataset.number)"
    order = cards(page)
    assert page.evaluate(current) == order[0]
    page.press("ArrowRight")
    assert page.wait(f"{current} === {order[1]}")
    page.press(" ")
    page.wait("document.getElementById('large').open && document.querySelector('#large canvas').width > 300")
    assert page.evaluate("document.getElementById('large-id').textContent").startswith("train_")
    page.press(" ")
    assert not page.evaluate("document.getElementById('large').open")
    page.press("?")
    assert page.evaluate("document.getElementById('help').open")
    page.evaluate("document.getElementById('help').close()")


def test_an_unknown_word_is_told_and_a_known_one_is_kept(page: Chromium) -> None:
    def type_word(word: str) -> None:
        page.evaluate(
            f"""(() => {{
                const word = document.getElementById("word");
                word.value = {json.dumps(word)};
                word.dispatchEvent(new Event("input"));
            }})()"""
        )

    type_word("sheep")
    page.wait("document.querySelector('.word-row')?.dataset.word === 'sheep'")
    type_word("lamb")
    page.wait("document.querySelector('.word-row')?.dataset.word === 'lamb'")
    page.evaluate("document.getElementById('word-form').requestSubmit()")
    page.wait("!document.getElementById('word-hint').hidden")
    assert 'rows={"cat": ["lamb"]}' in page.evaluate("document.getElementById('word-hint').textContent")
    page.evaluate("document.getElementById('word').maxLength = 999")
    type_word("x" * 90)
    page.wait("!document.getElementById('word-alert').hidden")
    assert "1 to 80 characters" in page.evaluate("document.getElementById('word-alert').textContent")


def test_two_rejected_photographs_are_left_out_of_the_training(
    page: Chromium, reviewed: tuple[str, Path], world: Any, session: Session
) -> None:
    """Load, change the threshold, reject two, undo a third, train, and see them left out."""
    _, run = reviewed
    done = "document.getElementById('done').textContent"
    images = {number: session.items[number].image_id for number in cards(page)}
    order = list(images)
    page.evaluate("document.getElementById('cut').focus()")
    page.evaluate("document.activeElement.blur()")
    page.press("[")
    page.evaluate("document.getElementById('keep').click()")
    page.wait("document.getElementById('cut-note').textContent.startsWith('Kept')")
    rejected: list[str] = []
    for number in order:
        if images[number] in rejected:
            page.press("ArrowRight")
        elif len(rejected) < 2:
            page.press("r")
            rejected.append(images[number])
            page.wait(f"{done} === '{len(rejected)}'")
        else:
            break
    page.press("n")
    page.wait(f"{done} === '3'")
    page.press("u")
    page.wait(f"{done} === '2'")
    assert page.problems == []

    review = Review.read(run / "review.jsonl")
    assert {image for image, _ in review.decisions} == set(rejected) and set(review.decisions.values()) == {"reject"}
    assert review.thresholds[1].value == 0.44

    trained = command(
        "train", world.experiment, "--data", world.data, "--out", run, "--cache", world.cache, "--devices", "1"
    )
    assert trained.returncode == 0, trained.stderr
    told = "the review leaves out 2 photographs, drops 0 tags, sets cosegmentation.plus.threshold = 0.44"
    assert told in trained.stderr
    figures: dict[str, Any] = json.loads((run / "step1/evaluation.json").read_text())
    assert figures["training_images"] == len(session.photographs) - 2
    assert figures["review"]["left_out"] == 2 and figures["review"]["cosegmentation.plus.threshold"] == 0.44
    gallery = json.loads((run / "step1/gallery/gallery.json").read_text())
    shown = {photograph["id"] for photograph in gallery["training"]}
    assert shown and not shown & set(rejected)
