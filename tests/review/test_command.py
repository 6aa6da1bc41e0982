"""``fmwiss review`` on the command line: what it says about wrong input; the right one is in test_browser.py."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fmwiss import cli
from fmwiss.config import dump_config, load_config
from fmwiss.models.segmenter import Architecture, Segmenter, load_segmenter
from fmwiss.review.session import find_target, open_session


class Case:
    """A world of its own for one wrong input."""

    def __init__(self, world: Any, folder: Path) -> None:
        self.world, self.folder, self.out = world, folder, folder / "out"
        self.experiment = world.experiment

    def words(self, target: object, *more: object) -> list[object]:
        return ["review", target, "--data", self.world.data, "--cache", self.world.cache, "--port", 0, *more]

    def before_training(self, *more: object) -> list[object]:
        return self.words(self.experiment, "--out", self.out, *more)

    def settings(self, *overrides: str) -> list[object]:
        return self.before_training(*(word for setting in overrides for word in ("--set", setting)))

    def run(self, *overrides: str) -> Path:
        """A run of the experiment that is no more than begun."""
        run = self.folder / "run"
        run.mkdir()
        (run / "config.yaml").write_text(dump_config(load_config(self.experiment, overrides)))
        return run

    def review(self, text: str) -> list[object]:
        self.out.mkdir()
        (self.out / "review.jsonl").write_text(text)
        return self.before_training()

    def changed(self, **sections: Any) -> list[object]:
        self.experiment = self.folder / "changed.yaml"
        self.experiment.write_text(yaml.safe_dump({**self.world.values, **sections}))
        return self.before_training()

    def train(self, text: str) -> list[object]:
        path = self.folder / "given.jsonl"
        path.write_text(text)
        return ["train", self.experiment, "--data", self.world.data, "--out", self.out, "--review", path]


def said(image: str, name: str) -> str:
    return f'{{"image": "{image}", "class": "{name}", "decision": "reject"}}\n'


def taken_port(case: Case) -> list[object]:
    case.taken = socket.create_server(("127.0.0.1", 0))  # type: ignore[attr-defined]
    return case.before_training("--port", case.taken.getsockname()[1])  # type: ignore[attr-defined]


def output_is_a_file(case: Case) -> list[object]:
    case.out.touch()
    return case.before_training()


def broken_model(case: Case) -> list[object]:
    run = case.run()
    (run / "step0").mkdir()
    (run / "step0" / "model.json").write_text("{")
    (run / "step0" / "model.safetensors").touch()
    return case.words(run)


WRONG: dict[str, tuple[Callable[[Case], list[object]], str]] = {
    "no data": (lambda c: ["review", c.experiment], "Missing option '--data'"),
    "data that is not there": (lambda c: c.before_training("--data", c.folder / "x"), "does not exist"),
    "no run": (lambda c: c.words(c.folder / "none"), "there is no run and no experiment file"),
    "a folder that is no run": (lambda c: c.words(c.world.data), "holds no config.yaml"),
    "an experiment without a folder": (lambda c: c.words(c.experiment), "--out is missing"),
    "a run and another folder": (lambda c: c.words(c.run(), "--out", c.out), "goes with an experiment file"),
    "a run with other settings": (lambda c: c.words(c.run(), "--set", "data.flip=1"), "has settings of its own"),
    "a file for a folder": (output_is_a_file, "is a file; give a folder"),
    "an unknown key": (lambda c: c.settings("cosegmentation.kk=1"), "nearest right key is cosegmentation.k"),
    "a port that is taken": (taken_port, "is taken by another program"),
    "a port too high": (lambda c: c.before_training("--port", 70000), "must be from 0 to 65535"),
    "a port in words": (lambda c: c.before_training("--port", "http"), "Invalid value for '--port'"),
    "a host of no machine": (lambda c: c.before_training("--host", "no.such.host.invalid"), "there is no such host"),
    "a host of another machine": (lambda c: c.before_training("--host", "192.0.2.7"), "no address of this machine"),
    "step 0": (lambda c: c.before_training("--step", 0), "learns from masks"),
    "a step beyond the protocol": (lambda c: c.before_training("--step", 2), "the protocol has steps 0 to 1"),
    "a protocol of one step": (lambda c: c.changed(protocol={"steps": [["cat"]]}), "no step that learns from tags"),
    "a method without pseudo masks": (lambda c: c.changed(method={"name": "wilson"}), "makes no pseudo masks"),
    "a run of such a method": (
        lambda c: (c.changed(method={"name": "cam"}), c.words(c.run()))[1], "makes no pseudo masks to review"
    ),
    "the true masks": (lambda c: c.settings("cosegmentation.source=true-masks"), "is true-masks"),
    "classes that nothing shows": (
        lambda c: c.changed(protocol={"steps": [["cat"], ["umbrella"]]}, data={"train_split": "val"}),
        "is tagged with a class of step 1 (umbrella)",
    ),
    "an unknown list": (lambda c: c.settings("data.train_split=all"), "there is no split 'all'"),
    "a damaged review": (lambda c: c.review('{"image": "a",'), "line 1: is no JSON"),
    "a review of other data": (lambda c: c.review(said("x", "cat")), "photograph x, which train_aug does not list"),
    "a review of unknown classes": (lambda c: c.review(said("train_000001", "kat")), "nearest known name is 'cat'"),
    "an unknown device": (lambda c: c.before_training("--device", "abacus"), "--device abacus"),
    "a broken model": (broken_model, "is not a model description"),
    # training with a review
    "training with no review": (
        lambda c: ["train", c.experiment, "--data", c.world.data, "--out", c.out, "--review", c.folder / "none"],
        "there is no review",
    ),
    "training with a damaged review": (lambda c: c.train("{\n"), "given.jsonl, line 1: is no JSON"),
    "training with a review of other data": (lambda c: c.train(said("x", "cat")), "which train_aug does not list"),
    "training with another threshold": (
        lambda c: c.train('{"step": 1, "key": "cosegmentation.k", "value": 50}\n'),
        "whose masks are cut by cosegmentation.plus.threshold",
    ),
    "training with a threshold too high": (
        lambda c: c.train('{"step": 1, "key": "cosegmentation.plus.threshold", "value": 2}\n'),
        "which must be from 0 to below 1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_gets_one_sentence_and_exit_code_2(
    name: str, world: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build, expected = WRONG[name]
    case = Case(world, tmp_path)
    words = build(case)
    capfd.readouterr()
    code = cli.run([str(word) for word in words])
    out, err = capfd.readouterr()
    assert code == 2, err
    assert out == "" and expected in err
    assert err.count("\n") == 1 and err.startswith("fmwiss: ") and err.endswith(".\n"), err


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_without_the_extra_one_sentence_says_what_to_install(
    package: str, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert cli.run([str(word) for word in Case(world, tmp_path).before_training()]) == 2
    assert capfd.readouterr().err == (
        "fmwiss: 'fmwiss review' needs fastapi and uvicorn; install them with: pip install 'fmwiss[review]'.\n"
    )


def test_the_models_of_a_run_have_a_say(world: Any, tags_index: Path, tmp_path: Path) -> None:
    """Untrained models in the places of those before and after the step."""
    run = Case(world, tmp_path).run()
    shutil.copy(tags_index / "tags.json", run)

    def model(*steps: tuple[str, ...]) -> None:
        torch.manual_seed(len(steps))
        architecture = Architecture(
            encoder="test_efficientnet", output_stride=16, decoder_channels=8, atrous_rates=(1, 1, 1), dropout=0.0,
            steps=steps, resize=48,
        )  # fmt: skip
        Segmenter(architecture).save(run / f"step{len(steps) - 1}")

    model(world.base)
    begun = open_session(find_target(run, None), world.place)
    assert begun.status == "open" and begun.step == 1 and begun.folder == run
    assert set(begun.items[0].terms) == {"stages", "old model"}
    assert set(open_session(find_target(run, None), world.place, with_models=False).items[0].terms) == {"stages"}
    model(world.base, world.new)
    finished = open_session(find_target(run, None), world.place)
    assert finished.status == "finished" and set(finished.items[0].terms) == {"stages", "old model", "new model"}
    for one, other in zip(begun.items, finished.items, strict=True):
        assert one.terms["old model"] == other.terms["old model"] and 0 <= other.terms["new model"] <= 1
        mask = begun.masks.masks(one.image_id, [one.name], 0)[0]
        seen = load_segmenter(run, 1).predict(begun.source.read_image(one.image_id))
        seen = torch.nn.functional.interpolate(seen[None, None].float(), size=mask.shape, mode="nearest-exact")[0, 0]
        right = seen == 1 + [*world.base, *world.new].index(one.name)
        assert other.terms["new model"] == pytest.approx(1 - float((right & mask).sum() / (right | mask).sum()))
