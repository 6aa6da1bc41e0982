"""A run killed with SIGKILL at many moments ends with the weights of a run that was not, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forks")

# Step 0 has 3 iterations an epoch and checkpoints after 2, 3, 4 and 6 of them; every attempt starts from the last.
STEP_0 = [
    {"at": "iteration", "step": 0, "number": 0},
    {"at": "iteration", "step": 0, "number": 1},
    {"at": "half", "name": "state.safetensors"},
    {"at": "before", "name": "progress.json"},
    {"at": "before", "name": "00000002"},
    {"at": "after", "name": "00000002"},
    {"at": "removal", "name": "00000002"},
    {"at": "iteration", "step": 0, "number": 5},
    {"at": "outside", "step": 0, "number": 6},
    {"at": "half", "name": "memory_bank"},
    {"at": "after", "name": "memory_bank.safetensors"},
    {"at": "before", "name": "photographs.safetensors"},
    {"at": "before", "name": "gallery"},
    {"at": "after", "name": "gallery"},
    {"at": "before", "name": "evaluation.json"},
    {"at": "half", "name": "model.safetensors"},
    {"at": "after", "name": "model.safetensors"},
    {"at": "removal", "name": "state"},
]
# Step 1 has 2 iterations an epoch; the first epoch is the warm-up.
STEP_1 = [
    {"at": "iteration", "step": 1, "number": 1},
    {"at": "half", "name": "state.safetensors"},
    {"at": "before", "name": "00000002"},
    {"at": "iteration", "step": 1, "number": 3},
    {"at": "outside", "step": 1, "number": 4},
    {"at": "iteration", "step": 1, "number": 5},
    {"at": "after", "name": "gallery"},
    {"at": "before", "name": "model.json"},
    {"at": "before", "name": "report.html"},
]


@pytest.fixture(scope="module")
def runs(shared_experiment: dict[str, Any], tiny_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    (folder / "config.yaml").write_text(yaml.safe_dump(shared_experiment))
    plan = {
        "config": str(folder / "config.yaml"),
        "data": str(tiny_voc),
        "runs": [
            {"out": str(folder / "straight"), "moments": [None]},
            {"out": str(folder / "killed"), "moments": [*STEP_0, *STEP_1, None]},
        ],
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, str(Path(__file__).with_name("killed_runs.py")), str(folder / "plan.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    straight, killed = json.loads(done.stdout)
    assert straight == [0], done.stderr
    assert killed == [-9] * len(STEP_0 + STEP_1) + [0], done.stderr
    return folder


@pytest.mark.parametrize("step", [0, 1])
def test_the_weights_are_the_same_bit_for_bit(runs: Path, step: int) -> None:
    straight, killed = (load_file(runs / name / f"step{step}" / "model.safetensors") for name in ("straight", "killed"))
    assert straight.keys() == killed.keys()
    assert [name for name in straight if not torch.equal(straight[name], killed[name])] == []


def test_the_step_learnt_something(runs: Path) -> None:
    first, second = (load_file(runs / "straight" / f"step{step}" / "model.safetensors") for step in (0, 1))
    assert second["classifier.steps.1.weight"].shape[0] == 2
    assert [name for name in first if name.endswith("weight") and torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("step", [0, 1])
def test_the_memory_log_figures_and_gallery_are_the_same(runs: Path, step: int) -> None:
    banks = [load_file(runs / name / f"step{step}" / "memory_bank.safetensors") for name in ("straight", "killed")]
    assert banks[0].keys() == banks[1].keys() and banks[0]
    assert all(torch.equal(banks[0][name], banks[1][name]) for name in banks[0])
    galleries = [
        {path.name: path.read_bytes() for path in (runs / name / f"step{step}/gallery").iterdir()}
        for name in ("straight", "killed")
    ]
    assert galleries[0] == galleries[1] and "gallery.json" in galleries[0]
    for file in ("confusion.json", "photographs.safetensors"):
        first, second = ((runs / name / f"step{step}" / file).read_bytes() for name in ("straight", "killed"))
        assert first == second
    for file, varying in (("metrics.jsonl", "seconds_per_iteration"), ("evaluation.json", "minutes")):
        texts = [(runs / name / f"step{step}" / file).read_text() for name in ("straight", "killed")]
        values = [
            [json.loads(t) for t in text.splitlines()] if file[0] == "m" else [json.loads(text)] for text in texts
        ]
        for record in (*values[0], *values[1]):
            record.pop(varying, None)
            record.pop("peak_memory_gib", None)
        assert values[0] == values[1]


def test_nothing_is_left_over(runs: Path) -> None:
    names = [sorted(p.name for p in (runs / name / "step1").iterdir()) for name in ("straight", "killed")]
    assert (
        names[0]
        == names[1]
        == [
            "confusion.json",
            "environment.json",
            "evaluation.json",
            "gallery",
            "memory_bank.safetensors",
            "metrics.jsonl",
            "model.json",
            "model.safetensors",
            "photographs.safetensors",
            "tensorboard",
        ]
    )
    assert [path.name for path in (runs / "killed").rglob("*.tmp")] == []
    assert not (runs / "killed" / "step0" / "state").exists()
    assert sorted(path.name for path in (runs / "killed").iterdir()) == sorted(
        path.name for path in (runs / "straight").iterdir()
    )
    assert "learnt in step 1" in (runs / "killed" / "report.html").read_text()


# ------------------------------------------------------------------------------------------------------- other methods

OTHERS: dict[str, dict[str, Any]] = {
    "wilson": {"name": "wilson", "localizer_epochs": 1},
    "cam": {"name": "cam", "scales": [1.0], "locator": {"epochs": 2, "batch_size": 2}},
    "plop": {"name": "plop"},
    "sdr": {"name": "sdr"},
}
MOMENTS = [{"at": "iteration", "step": 1, "number": number} for number in (1, 3)]
"""Of the locator, too, where a method has one."""


@pytest.mark.parametrize("name", OTHERS)
def test_a_killed_run_of_another_method_ends_with_the_same_weights(
    name: str, shared_experiment: dict[str, Any], tiny_voc: Path, tmp_path: Path
) -> None:
    """Its extra modules are in the checkpoint, and what it carries or has found out before it learns is kept."""
    experiment = {**shared_experiment, "method": OTHERS[name]}
    experiment["training"] = {**experiment["training"], "checkpoint_every": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(experiment))
    plan = {
        "config": str(tmp_path / "config.yaml"),
        "data": str(tiny_voc),
        "runs": [
            {"out": str(tmp_path / "straight"), "moments": [None]},
            {"out": str(tmp_path / "killed"), "moments": [*MOMENTS, None]},
        ],
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, str(Path(__file__).with_name("killed_runs.py")), str(tmp_path / "plan.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[0], [-9] * len(MOMENTS) + [0]], done.stderr
    straight, killed = (load_file(tmp_path / run / "step1/model.safetensors") for run in ("straight", "killed"))
    assert [n for n in straight if not torch.equal(straight[n], killed[n])] == []
