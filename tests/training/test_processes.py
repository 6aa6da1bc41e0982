"""Two processes (DDP on gloo): what they train, find and write together is what one process does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning_fabric import Fabric
from safetensors.torch import load_file

import two_processes
from fmwiss.config import load_config
from fmwiss.data.protocols import Protocol
from fmwiss.data.voc import VOCSource
from fmwiss.evaluation import evaluate, evaluate_run
from fmwiss.evaluation.photographs import PhotographCounts
from fmwiss.models import load_segmenter
from fmwiss.reporting.records import Gallery
from test_pseudo_masks import Setup
from two_processes import GRADIENTS, gradients

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package here")

GO_ON = "the same command goes on where it was."


@dataclass(frozen=True)
class Job:
    """A run that is trained by two processes, however they are started.

    Args:
        folder: for plans, and the run in ``run``.
        data: the photographs.
    """

    folder: Path
    data: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def plan(self, name: str, *words: object, **options: Any) -> str:
        """The file of a plan for ``two_processes.py``."""
        config = self.folder / "config.yaml"
        train = ["train", config, "--data", self.data, "--out", self.run, *words]
        plan = {"train": [str(word) for word in train], "out": str(self.run), "data": str(self.data), **options}
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(plan, default=str))
        return str(path)

    def start(self, *words: object, **environment: object) -> subprocess.Popen[str]:
        """A process of ``python WORDS``."""
        variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
        line = [sys.executable, *map(str, words)]
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error, when the process, and all that it has started, have ended."""
    try:
        error = process.communicate(timeout=900)[1]
    finally:
        process.kill()
    return process.returncode, error


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def make_job(folder: Path, data: Path, experiment: dict[str, Any]) -> Job:
    training = experiment["training"]
    steps = {**training["steps"], "batch_size": 4}
    values = {**experiment, "training": {**training, "validate_every": 1, "steps": steps}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return Job(folder, data)


@pytest.fixture(scope="module")
def job(shared_experiment: dict[str, Any], tiny_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Trained by what takes itself for two nodes of one process each, without an interruption."""
    job = make_job(tmp_path_factory.mktemp("processes"), tiny_voc, shared_experiment)
    (job.folder / "checks").mkdir()
    plan = job.plan("nodes", "--devices", 1, "--num-nodes", 2, checks=job.folder / "checks")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NODES": 2}
    nodes = [job.start(two_processes.__file__, plan, **place, NODE_RANK=rank) for rank in (0, 1)]
    for node in nodes:
        code, error = finished(node)
        assert code == 0, error
    return job


@pytest.fixture(scope="module")
def run(job: Job) -> Path:
    return job.run


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
def test_the_gradient_is_that_of_one_process_for_the_same_photographs(job: Job, name: str) -> None:
    """Batch norm on frozen statistics; seven photographs, so that shares and parts are of different sizes."""
    both = load_file(job.folder / "checks" / f"{name}.safetensors")
    one = gradients(Fabric(accelerator="cpu", devices=1), name, 1)
    assert both.keys() == one.keys() and len(one) > 20
    for parameter, gradient in one.items():
        largest = float(gradient.abs().max())
        assert float((both[parameter] - gradient).abs().max()) <= 1e-5 * max(1.0, largest), parameter
    assert max(float(gradient.abs().max()) for gradient in one.values()) > 1e-2


def test_a_store_that_two_have_filled_is_that_of_one_byte_for_byte(job: Job, tmp_path: Path) -> None:
    one = Setup(job.data, tmp_path)
    assert json.loads((job.folder / "checks/written.json").read_text()) == [one.fill()] * 2
    both = job.folder / "checks/store" / one.store.folder.name
    files = {path.name: path.read_bytes() for path in one.store.folder.iterdir()}
    assert files == {path.name: path.read_bytes() for path in both.iterdir()} and len(files) > 16


# ------------------------------------------------------------------------------------------------- when one is lost


@dataclass(frozen=True)
class Ends:
    """How the attempts ended: exit code and standard error."""

    first: tuple[int, str]
    second: tuple[int, str]
    third: tuple[int, str]


@pytest.fixture(scope="module")
def lost(job: Job, shared_experiment: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Ends]:
    """The same run, in which the second process is killed, then the first one; at last started by torchrun."""
    again = make_job(tmp_path_factory.mktemp("lost"), job.data, shared_experiment)
    script = two_processes.__file__
    ends = []
    for number, kill in enumerate(({"rank": 1, "step": 0, "number": 3}, {"rank": 0, "step": 1, "number": 3})):
        plan = again.plan(f"killed{number}", "--devices", 2, kill=kill)
        ends.append(finished(again.start(script, plan)))
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", free_port())
    ends.append(finished(again.start(*launcher, script, again.plan("torchrun"))))
    return again, Ends(*ends)


def test_a_killed_process_ends_the_job_with_a_sentence(lost: tuple[Job, Ends]) -> None:
    code, error = lost[1].first
    sentence = f"fmwiss: process 1 of the run was killed by SIGKILL, so the others were ended; {GO_ON}"
    assert code == 1 and error.count("fmwiss: ") == 1 and sentence in error.splitlines() and "Traceback" not in error


def test_so_does_the_first_one(lost: tuple[Job, Ends]) -> None:
    code, error = lost[1].second
    sentence = f"fmwiss: process 0 of the run was killed, so the others were ended; {GO_ON}"
    assert code == -9 and error.count("fmwiss: ") == 1 and sentence in error.splitlines() and "Traceback" not in error


@pytest.mark.parametrize("step", [0, 1])
def test_the_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(
    lost: tuple[Job, Ends], run: Path, step: int
) -> None:
    again, ends = lost
    assert ends.third[0] == 0, ends.third[1]
    straight, resumed = (load_file(path / f"step{step}/model.safetensors") for path in (run, again.run))
    assert straight.keys() == resumed.keys()
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []


def test_an_error_of_both_is_told_once(job: Job) -> None:
    process = job.start("-c", "from fmwiss.cli import main; main()", "train", job.folder / "config.yaml", "--data",
                        job.data, "--out", job.run, "--devices", 2, "--set", "training.seed=7")  # fmt: skip
    code, error = finished(process)
    assert code == 2 and error.count("fmwiss: ") == 1 and "was started with training.seed = 0" in error, error
