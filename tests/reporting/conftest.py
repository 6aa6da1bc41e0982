"""Runs as training leaves them, without training: every number in them is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fmwiss.config import Config, dump_config
from fmwiss.reporting.records import (
    AugmentedSample,
    ClassFigures,
    Confusion,
    Environment,
    Figures,
    Gallery,
    Pasted,
    ProbabilityMap,
    TrainingPhotograph,
    ValidationPhotograph,
)

BASE, NEW = ("aeroplane", "potted plant"), ("sheep",)


class RunMaker:
    """Writes runs of two steps into a folder; what a test wants otherwise it changes in the files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        name: str = "run",
        ious: Sequence[Sequence[float | None]] = ((90.0, 40.25, 60.0), (85.0, 35.5, 62.0, 30.125)),
        source: str = "foundation",
        seconds: float = 0.5,
        losses: float = 0.4,
        steps: int = 2,
    ) -> Path:
        """A run.

        Args:
            name: of its folder.
            ious: of background and every class, for both steps.
            source: ``cosegmentation.source``.
            seconds: per iteration; by it a training is told from another.
            losses: of the first iteration logged.
            steps: how many are finished.
        """
        run = self.folder / name
        run.mkdir(parents=True)
        config = {
            "protocol": {"steps": [list(BASE), list(NEW)]},
            "cosegmentation": {"source": source},
            "segmenter": {"encoder": "test_efficientnet"},
        }
        (run / "config.yaml").write_text(dump_config(Config.model_validate(config)))
        for number in range(steps):
            self._step(run / f"step{number}", number, ious[number], source, seconds, losses)
        return run

    def _step(
        self, folder: Path, number: int, ious: Sequence[float | None], source: str, seconds: float, losses: float
    ) -> None:
        classes = [list(BASE), list(NEW)][: number + 1]
        names = ["background", *(name for step in classes for name in step)]
        folder.mkdir()
        write_json(folder / "model.json", {"library": "fmwiss 0", "steps": classes})
        old, new = _mean(ious[1:3]), _mean(ious[3:]) if number else None
        figures = Figures(
            step=number,
            images=10,
            miou=Figures.Means(old=old, new=new, all=_mean(ious)),
            pixel_accuracy=88.5 - number,
            iou=dict(zip(names, ious, strict=True)),
            split="val",
            training_images=20 - number,
            pasted_instances={"aeroplane": 5, "potted plant": 3} if number else {},
            minutes={"preparation": 0.1, "training": 1.5, "finishing": 0.2, "all": 1.8},
            peak_memory_gib=1.25,
            diagnostic=number > 0 and source == "true-masks",
        )
        write_json(folder / "evaluation.json", figures.model_dump())
        size = len(names)
        pixels = [[100 * (row == column) + 10 * (column == 0) + row for column in range(size)] for row in range(size)]
        write_json(folder / "confusion.json", Confusion(names=names, pixels=pixels).model_dump())
        environment = Environment(
            fmwiss="0.1.0",
            commit="0123456789abcdef+",
            versions={"python": "3.11.1", "torch": "2.6.0"},
            machine=Environment.Machine(
                system="Linux x86_64", processor="Abacus 3000", cores=2, memory_gib=7.8, devices=["cpu"]
            ),
            threads=1,
            processes=1,
            precision="32-true",
            finished="2026-01-02T03:04+00:00",
        )
        write_json(folder / "environment.json", environment.model_dump())
        terms = {"base_bce": losses} if number == 0 else {"new_bce": losses, "all_bce": losses / 2}
        records: list[dict[str, Any]] = [{"iteration": 0, "images": 20, "iterations": 40, "per_epoch": 20}]
        for iteration in (10, 20, 30, 40):
            values = {term: value / iteration * 10 for term, value in terms.items()}
            records.append(
                {
                    "iteration": iteration,
                    "epoch": iteration / 20,
                    "learning_rate": 1e-4 * (1 - iteration / 80),
                    "seconds_per_iteration": seconds,
                    "losses": values,
                }
            )
        validation = {**figures.model_dump(), "miou": {"old": 33.0, "new": 11.0 if number else None, "all": 22.0}}
        records.insert(3, {"iteration": 20, "epoch": 1, "validation": validation})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        self._gallery(folder / "gallery", number, names)

    def _gallery(self, folder: Path, number: int, names: list[str]) -> None:
        folder.mkdir()
        photographs = []
        for place, (before, after) in enumerate([(50.0, 60.0), (80.0, 20.5), (40.0, 40.0)]):
            stem = f"validation-{place:03d}"
            photograph, layer = picture(folder, f"{stem}.jpg", place), picture(folder, f"{stem}-truth.png")
            why = ("gained", "lost", "drawn") if number else ("highest", "lowest", "drawn")
            photographs.append(
                ValidationPhotograph(
                    id=f"photo_{place}",
                    chosen=[why[place]],
                    photograph=photograph,
                    width=40,
                    height=30,
                    truth=layer,
                    before=picture(folder, f"{stem}-before.png") if number else None,
                    after=picture(folder, f"{stem}-after.png"),
                    miou_before=before if number else None,
                    miou_after=after,
                    iou={
                        "background": ClassFigures(before=90.0, after=91.0, in_truth=True),
                        "aeroplane": ClassFigures(before=before if number else None, after=after, in_truth=True),
                        "potted plant": ClassFigures(before=None, after=0.0, in_truth=False),
                    },
                )
            )
        sample = AugmentedSample(
            epoch=2,
            picture=picture(folder, "training-000-sample.jpg", 7),
            masks={"sheep": picture(folder, "training-000-sample-3.png")} if number else {},
            truth=None if number else picture(folder, "training-000-sample-truth.png"),
            pasted=Pasted(name="aeroplane", layer=picture(folder, "training-000-pasted.png")) if number else None,
        )
        training = TrainingPhotograph(
            id="learnt_0",
            tags=["aeroplane", "sheep"],
            photograph=picture(folder, "training-000.jpg", 9),
            width=40,
            height=30,
            truth=None if number else picture(folder, "training-000-truth.png"),
            stages={s: {"sheep": picture(folder, f"training-000-{s}.png")} for s in ("init", "seeds", "refined")}
            if number
            else {},
            maps={
                n: ProbabilityMap(picture=picture(folder, f"training-000-map{j}.png"), largest=0.25 * j)
                for j, n in enumerate(("background", "sheep"), start=2)
            }
            if number
            else {},
            sample=sample,
        )
        gallery = Gallery(
            class_names=names,
            new_classes=list(NEW if number else BASE),
            split="val",
            compared=10,
            validation=photographs,
            training=[training],
        )
        write_json(folder / "gallery.json", gallery.as_json())


def picture(folder: Path, name: str, shade: int = 0) -> str:
    """Write a small picture and return its name."""
    Image.new("RGB", (40, 30), (20 * shade, 90, 200)).save(folder / name)
    return name


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def change_json(path: Path, **values: Any) -> None:
    """Replace keys of a JSON file."""
    write_json(path, {**json.loads(path.read_text()), **values})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """Writes runs into a folder of the test's own."""
    return RunMaker(tmp_path / "runs")


# ------------------------------------------------------------------------------------------------------ reading a page

VOID_ELEMENTS = {"meta", "link", "img", "input", "br"}


class Node:
    """An element of a page."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Node | str] = []

    @property
    def classes(self) -> set[str]:
        return set((self.attributes.get("class") or "").split())

    @property
    def text(self) -> str:
        """All text in it, with single spaces."""
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return " ".join(" ".join(parts).split())

    def all(self, tag: str = "", cls: str = "", **attributes: str) -> list[Node]:
        """The elements in it that have this tag, class and attributes, in order."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                wanted = all(child.attributes.get(name) == value for name, value in attributes.items())
                if wanted and tag in ("", child.tag) and (not cls or cls in child.classes):
                    found.append(child)
                found += child.all(tag, cls, **attributes)
        return found

    def one(self, tag: str = "", cls: str = "", **attributes: str) -> Node:
        """The only such element."""
        (found,) = self.all(tag, cls, **attributes)
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of {tag} stands twice"
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID_ELEMENTS:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_page(text: str) -> Node:
    """The page as a tree; every element must be closed where it should."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [reader.root], f"<{reader.open[-1].tag}> is not closed"
    return reader.root


@pytest.fixture(name="read_page")
def _read_page() -> Callable[[str], Node]:
    """Reads a page's text into a tree of nodes."""
    return read_page


@pytest.fixture(name="change_json")
def _change_json() -> Callable[..., None]:
    """Replaces keys of a JSON file."""
    return change_json
