"""Two processes (DDP on gloo): the steps train, and the figures are those that one process finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fmwiss.config import load_config
from fmwiss.data.protocols import Protocol
from fmwiss.data.voc import VOCSource
from fmwiss.evaluation import evaluate, evaluate_run
from fmwiss.evaluation.photographs import PhotographCounts
from fmwiss.models import load_segmenter
from fmwiss.reporting.records import Gallery


@pytest.fixture(scope="module")
def run(shared_experiment: dict[str, Any], tiny_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not torch.distributed.is_available():
        pytest.skip("torch has no distributed package here")
    folder = tmp_path_factory.mktemp("processes")
    experiment = shared_experiment
    experiment["training"]["validate_every"] = 1
    experiment["training"]["steps"]["batch_size"] = 4
    (folder / "config.yaml").write_text(yaml.safe_dump(experiment))
    script = str(Path(__file__).with_name("two_processes.py"))
    command = [sys.executable, script, str(folder / "config.yaml"), str(tiny_voc), str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.parametrize("step", [0, 1])
def test_the_evaluation_is_that_of_the_saved_model_in_one_process(run: Path, tiny_voc: Path, step: int) -> None:
    one = evaluate_run(run, tiny_voc, step=step)
    both = json.loads((run / "confusion.json").read_text())[str(step)]
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
