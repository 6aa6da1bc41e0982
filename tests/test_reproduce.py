"""What docs/reproduce.md says can be done: its commands exist, and plan what the page says that they make."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from coco_miniature import ARCHIVES, serve, write_archives
from fmwiss.cli import app, run
from fmwiss.config import load_config
from fmwiss.foundation.registry import ENTRIES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """Of the page's indented blocks, in order; lines that end in a backslash go on."""
    blocks = re.sub(r" *\\\n *", " ", PAGE)
    return [shlex.split(line) for line in re.findall(r"(?m)^    (.+)$", blocks)]


def of(name: str) -> list[list[str]]:
    return [words for words in commands() if words[:2] == ["fmwiss", name]]


BENCHES = of("bench")
ABLATIONS = [
    (suite, name)
    for name, both in re.findall(r"^\| Table \d+ \| `--only \"([^\"]+)\"` \| (the same)?", PAGE, re.MULTILINE)
    for suite in ("voc-ablations", *(["voc-ablations-disjoint"] if both else []))
]


@pytest.fixture(scope="module")
def places(tiny_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the page calls DATA, DATA/voc, WEIGHTS and REPLAY."""
    folder = tmp_path_factory.mktemp("reproduce")
    write_archives(folder / "archives")
    with serve(folder / "archives") as server:
        for name in ARCHIVES:
            assert run(["data", name, "--out", str(folder / "data"), "--mirror", server.url, "--unverified"]) == 0
    for name in ("weights", "replay"):
        (folder / name).mkdir()
    return {
        "DATA/voc": str(tiny_voc), "DATA": str(folder / "data"), "WEIGHTS": str(folder / "weights"),
        "REPLAY": str(folder / "replay"),
    }


def planned(words: list[str], places: dict[str, str], out: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that ``--dry-run`` prints."""
    words = [places.get(word, word) for word in words]
    words[words.index("--out") + 1] = str(out)
    capsys.readouterr()
    assert run([*words[1:], "--dry-run"]) == 0, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()


def test_the_page_names_every_table_and_figure() -> None:
    for number in range(1, 14):
        assert re.search(rf"\bTable {number}\b", PAGE), number
    for number in range(5, 10):
        assert re.search(rf"\bFigures? (\d, )*(\d and )?{number}\b", PAGE), number
    assert len(BENCHES) >= 9 and len(ABLATIONS) == 2 * 9 + 1


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_is_one_that_there_is(words: list[str]) -> None:
    program, *rest = words
    if program == "python":
        assert (ROOT / rest[0]).is_file()
        text = (ROOT / rest[0]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in text for word in rest if word.startswith("--"))
        return
    assert program == "fmwiss"
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    command.make_context(command.name, rest)


@pytest.mark.parametrize("words", BENCHES, ids=" ".join)
def test_a_suite_can_be_planned(
    words: list[str], places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *jobs, summary = planned(words, places, tmp_path / "out", capsys)
    assert jobs and all(line.startswith("to do") for line in jobs if not line.startswith("left out"))
    chosen = [name for option, name in itertools.pairwise(words) if option == "--only"]
    for name in chosen:
        assert any(f" {name} / " in line for line in jobs), name
    assert any("left out" in line for line in jobs) == ("pixel" in words and "--replay" not in words and "voc" in words)
    assert re.match(r"[1-9]\d* of \d+ runs", summary)


@pytest.mark.parametrize(("suite", "name"), ABLATIONS, ids=" ".join)
def test_an_ablation_can_be_planned(
    suite: str, name: str, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fmwiss", "bench", suite, "--data", "DATA/voc", "--out", "OUT", "--only", name]
    jobs = planned(words, places, tmp_path / "out", capsys)[:-1]
    assert sum(f" {name} / " in line for line in jobs if "base model" not in line) >= 3


def test_experiments_and_weights_are_there() -> None:
    for words in of("train"):
        load_config(ROOT / words[2], [])
    known = {entry.name for entry in ENTRIES}
    wanted = [words[3] for words in of("weights")]
    assert wanted and set(wanted) <= known


def test_the_folders_that_figures_are_drawn_from_are_those_of_table_2(
    places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (words,) = (words for words in BENCHES if "10-10 overlap" in words)
    for line in planned(words, places, tmp_path / "out", capsys)[:-1]:
        (tmp_path / "runs/voc" / line.rpartition("(")[2].rstrip(")")).mkdir(parents=True)
    for words in of("report"):
        for pattern in (word for word in words if word.startswith("runs/")):
            assert len(list(tmp_path.glob(pattern))) == 1, pattern
