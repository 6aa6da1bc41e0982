"""``fmwiss demo``: every command in small, on pictures that it generates, without downloads."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import timm
import torch
import yaml
from safetensors.torch import save_file

from fmwiss.data.shapes import SHAPE_CLASSES, write_shapes
from fmwiss.errors import UserError

ENCODER = "test_efficientnet"  # timm's tiny models for tests
TRANSFORMER = "test_vit"
MARK = ".fmwiss-demo"

EXPERIMENT = {
    "protocol": {"steps": [list(SHAPE_CLASSES[:4]), list(SHAPE_CLASSES[4:])], "setting": "overlap"},
    "data": {"crop_size": 96, "resize": 96, "workers": 1},
    "segmenter": {"encoder": ENCODER, "pretrained": False, "decoder_channels": 64, "atrous_rates": [1, 2, 3]},
    "cosegmentation": {
        "vision_language": {"name": "imagenet-names", "model": ENCODER, "tag": None, "input_size": 160},
        "self_supervised": {"model": TRANSFORMER, "input_size": 160},
    },
    "copy_paste": {"bank_size": 5},
    "method": {"name": "fmwiss", "warmup_epochs": 1},
    "training": {
        "step0": {"epochs": 10, "batch_size": 8, "learning_rate": 0.02},
        "steps": {"epochs": 4, "batch_size": 8, "learning_rate": 0.005},
    },
}


def run_demo(out: Path) -> None:
    """Generate pictures and random weights in ``out``, then train, evaluate, predict and make pseudo masks there.

    A demo that lies in ``out`` already is replaced.

    Raises:
        UserError: ``out`` holds something else, or a command failed.
    """
    from fmwiss.cli import run

    _clear(out)
    data, weights, experiment, model = out / "data", out / "weights", out / "experiment.yaml", out / "run"
    print(
        f"Generating pictures of coloured shapes and random weights in {out}. The foundation models of this demo are "
        "tiny and untrained, so what it shows is that the commands work; its figures and masks mean nothing."
    )
    write_shapes(data, n_train=64, n_val=16)
    _write_random_weights(weights)
    experiment.write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False), encoding="utf-8")
    photographs = sorted((data / "JPEGImages").glob("val_*.jpg"))[:4]
    store = ["--weights", weights, "--cache", out / "cache"]
    commands: list[list[object]] = [
        ["train", experiment, "--data", data, *store, "--out", model],
        ["evaluate", model, "--data", data],
        ["report", model, "--worst-first"],
        ["predict", model, *photographs, "--out", out / "predictions"],
        ["pseudo-masks", experiment, "--data", data, *store, "--out", out / "pseudo", "--evaluate"],
    ]
    for command in commands:
        words = [str(word) for word in command]
        print(f"\n$ fmwiss {shlex.join(words)}", flush=True)
        if run(words) != 0:
            raise UserError("the demo stopped at the command above")
    print(
        f"\nLook at {model / 'report.html'}, {out / 'predictions'} and {out / 'pseudo' / 'pictures'}; the foundation "
        "models were random."
    )


def _clear(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give another folder with --out")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise UserError(f"{out} holds other files than a demo's; give a new folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def _write_random_weights(folder: Path) -> None:
    """What ``--weights`` is to hold, from timm's random initialisation."""
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in (ENCODER, TRANSFORMER):
            save_file(timm.create_model(name, pretrained=False).state_dict(), folder / f"{name}.safetensors")
