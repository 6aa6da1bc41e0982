"""Two processes (DDP on gloo): what they train, find and write together is what one process does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file

import two_processes
from fmwiss.cli import run as command
from fmwiss.config import load_config
from fmwiss.data.protocols import Protocol
from fmwiss.data.voc import VOCSource
from fmwiss.evaluation import evaluate, evaluate_run
from fmwiss.evaluation.photographs import PhotographCounts
from fmwiss.models import load_segmenter
from fmwiss.reporting.records import Gallery
from test_pseudo_masks import Setup
from two_processes import GRADIENTS, gradients

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and hasattr(os, "fork")), reason="no processes that are forks and connected"
)

@pytest.fixture(scope="module")
def folder(
    shared_experiment: dict[str, Any], tiny_voc: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run in ``run``, trained by what takes itself for two nodes of one process each, without an interruption.

    The same one in ``lost``, trained by two processes that the command starts itself, of which the second is killed;
    then the first; at last by processes that say that torchrun has started them. In ``checks`` what the nodes found
    beside that, and how the attempts ended in ``ends.json``.
    """
    folder = tmp_path_factory.mktemp("processes")
    training = shared_experiment["training"]
    steps = {**training["steps"], "batch_size": 4}
    foundation = {
        "source": "true-masks",  # of train; pseudo-masks makes them of these
        "vision_language": {"name": "imagenet-names", "model": "test_efficientnet", "tag": None, "input_size": 96},
        "self_supervised": {"model": "test_vit", "input_size": 96},
    }
    values = {
        **shared_experiment,
        "training": {**training, "validate_every": 1, "steps": steps},
        "cosegmentation": foundation,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    (folder / "checks").mkdir()
    (folder / "weights").mkdir()
    torch.manual_seed(0)
    for name in ("test_efficientnet", "test_vit"):
        save_file(timm.create_model(name).state_dict(), folder / "weights" / f"{name}.safetensors")

    def attempt(name: str, *words: object, processes: list[dict[str, object]], **options: Any) -> dict[str, Any]:
        kind = "train" if name in ("run", "lost") else name
        command = [kind, folder / "config.yaml", "--data", tiny_voc, "--out", folder / name, *words]
        return {
            "words": [str(word) for word in command],
            "out": str(folder / name),
            "processes": [{key: str(value) for key, value in one.items()} for one in processes],
            **options,
        }

    first, last = ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()} for _ in range(2))
    of_two = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    nodes: list[dict[str, object]] = [{**first, "NODE_RANK": rank} for rank in range(2)]
    by_torchrun: list[dict[str, object]] = [{**last, **of_two, "RANK": rank, "LOCAL_RANK": rank} for rank in range(2)]
    checks = {"checks": str(folder / "checks"), "data": str(tiny_voc)}
    second_lost, first_lost = {"rank": 1, "step": 0, "number": 3}, {"rank": 0, "step": 1, "number": 2}
    plan = [
        attempt("run", "--num-nodes", 2, processes=nodes, **checks),
        attempt("lost", "--devices", 2, processes=[{}], kill=second_lost),
        attempt("lost", "--devices", 2, processes=[{}], kill=first_lost),
        attempt("lost", processes=by_torchrun),
        attempt("pseudo-masks", "--devices", 2, *masks_of(folder), "--cache", folder / "both", processes=[{}]),
    ]
    (folder / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, two_processes.__file__, str(folder / "plan.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "ends.json").write_text(done.stdout)
    ends = json.loads(done.stdout)
    for number, codes in ((0, [0, 0]), (3, [0, 0]), (4, [0])):
        assert ends[number]["codes"] == codes, ends[number]["said"]
    return folder


def masks_of(folder: Path) -> list[object]:
    """Options of ``fmwiss pseudo-masks``."""
    return ["--weights", folder / "weights", "--evaluate", "--json", "--pictures", 3]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return folder / "run"


@pytest.mark.parametrize("step", [0, 1])
def test_the_evaluation_is_that_of_the_saved_model_in_one_process(run: Path, tiny_voc: Path, step: int) -> None:
    one = evaluate_run(run, tiny_voc, step=step)
    both = json.loads((run / f"step{step}/confusion.json").read_text())["pixels"]
    assert both == [list(row) for row in one.confusion]
    figures = json.loads((run / f"step{step}" / "evaluation.json").read_text())
    assert figures["images"] == 8
    assert figures["iou"] == one.iou


@pytest.mark.parametrize("step", [0, 1])
def test_the_gallery_is_that_of_one_process(run: Path, tiny_voc: Path, step: int) -> None:
    """Each process has seen half of the photographs; the first one's gallery and counts hold all of them."""
    source = VOCSource(tiny_voc)
    identity = {"split": "val", "image": "whole"}
    counts = PhotographCounts.load(run / f"step{step}/photographs.safetensors", identity)
    assert counts is not None and list(counts.entries) == source.ids("val")
    gallery = Gallery.model_validate_json((run / f"step{step}/gallery/gallery.json").read_text())
    table = Protocol.from_config(load_config(run / "config.yaml").protocol).label_table(step, source.class_names)
    ids = source.ids("val")
    evaluated = PhotographCounts(identity)
    protocol = Protocol.from_config(load_config(run / "config.yaml").protocol)
    evaluate(load_segmenter(run, step), source, ids, protocol, observe=evaluated)
    for one in gallery.validation:
        assert one.miou_after == evaluated.figures(one.id, table, gallery.class_names).miou
    assert [one.id for one in gallery.validation] == [i for i in ids if i in {one.id for one in gallery.validation}]
    assert len(gallery.validation) == 8 and (run / "report.html").is_file()


def test_both_processes_validate_the_same_photographs_together(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "step1" / "metrics.jsonl").read_text().splitlines()]
    validations = [line["validation"] for line in lines if "validation" in line]
    assert len(validations) == 2  # after the warm-up and after the first epoch of two
    assert all(figures["images"] == 8 for figures in validations)


def test_the_student_stands_still_in_the_warm_up_and_learns_after_it(run: Path) -> None:
    first, second = (load_file(run / f"step{step}" / "model.safetensors") for step in (0, 1))
    moved = [name for name in first if not torch.equal(first[name], second[name])]
    assert set(first) - set(moved) == {"mean", "std"}
    lines = [json.loads(line) for line in (run / "step1" / "metrics.jsonl").read_text().splitlines()]
    losses = [set(line["losses"]) for line in lines if "losses" in line]
    assert "all_bce" not in losses[0]
    assert "all_bce" in losses[-1]


# ------------------------------------------------------------------------------------------------ what they do together


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_gradient_is_that_of_one_process_for_the_same_photographs(folder: Path, name: str) -> None:
    """Batch norm on frozen statistics; seven photographs, so that shares and parts are of different sizes."""
    both = load_file(folder / "checks" / f"{name}.safetensors")
    one = gradients(Fabric(accelerator="cpu", devices=1), name, 1)
    assert both.keys() == one.keys() and (len(one) > 20 or name == "cam locator")
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    assert largest > 1e-4
    for parameter, gradient in one.items():
        assert float((both[parameter] - gradient).abs().max()) <= 1e-5 * largest, parameter


def test_a_store_that_two_have_filled_has_the_bytes_of_one(folder: Path, tiny_voc: Path, tmp_path: Path) -> None:
    one = Setup(tiny_voc, tmp_path)
    assert json.loads((folder / "checks/written.json").read_text()) == [one.fill()] * 2
    both = folder / "checks/store" / one.store.folder.name
    files = {path.name: path.read_bytes() for path in one.store.folder.iterdir()}
    assert files == {path.name: path.read_bytes() for path in both.iterdir()} and len(files) > 16


def test_pseudo_masks_of_two_are_those_of_one(
    folder: Path, tiny_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Store, masks, pictures and figures of the command."""
    words = ["pseudo-masks", folder / "config.yaml", "--data", tiny_voc, "--out", tmp_path / "out",
             *masks_of(folder), "--cache", tmp_path / "one"]  # fmt: skip
    assert command([str(word) for word in words]) == 0
    said = json.loads((folder / "ends.json").read_text())[4]["said"]
    figures = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert figures == [json.loads(capsys.readouterr().out)] and figures[0]["images"] > 3
    for both, one in ((folder / "both", tmp_path / "one"), (folder / "pseudo-masks", tmp_path / "out")):
        files = {path.relative_to(one): path.read_bytes() for path in one.rglob("*") if path.is_file()}
        assert files == {path.relative_to(both): path.read_bytes() for path in both.rglob("*") if path.is_file()}
        assert len(files) > 5


# ---------------------------------------------------------------------------------------------------- when one is lost


@pytest.mark.parametrize(
    ("attempt", "code", "sentence"),
    [
        (1, 1, "process 1 of the run was killed by SIGKILL, so the others were ended"),
        (2, -9, "process 0 of the run was killed, so the others were ended"),
    ],
)
def test_a_killed_process_ends_the_job_with_a_sentence(folder: Path, attempt: int, code: int, sentence: str) -> None:
    end = json.loads((folder / "ends.json").read_text())[attempt]
    said = [line for line in end["said"].splitlines() if line.startswith("fmwiss: ")]
    assert end["codes"] == [code] and "Traceback" not in end["said"], end["said"]
    assert said == [f"fmwiss: {sentence}; the same command goes on where it was."]


@pytest.mark.parametrize("step", [0, 1])
def test_the_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(folder: Path, step: int) -> None:
    straight, resumed = (load_file(folder / name / f"step{step}/model.safetensors") for name in ("run", "lost"))
    assert straight.keys() == resumed.keys()
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []


def test_an_error_of_both_is_told_once(folder: Path, tiny_voc: Path, tmp_path: Path) -> None:
    """Two processes as users start them."""
    words = ["train", folder / "config.yaml", "--data", tiny_voc, "--out", folder / "run", "--devices", 2,
             "--set", "training.seed=7"]  # fmt: skip
    program = tmp_path / "program.py"
    program.write_text("from fmwiss.cli import main; main()")
    command = [sys.executable, str(program), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 2 and done.stderr.count("fmwiss: ") == 1, done.stderr
    assert "was started with training.seed = 0 but 7 is asked for now" in done.stderr
