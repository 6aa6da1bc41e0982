"""benchmarks/flops.py against real training steps, and its sums against numbers worked by hand."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fmwiss.config import Config, load_config
from fmwiss.data.batches import Batch
from fmwiss.foundation.tiny import CLIP, CLIP_TAG, RESNET, VIT
from fmwiss.methods import build_method
from fmwiss.models import Segmenter

ROOT = Path(__file__).parents[1]
SMALL = {
    "data": {"crop_size": 64},
    "segmenter": {"encoder": RESNET, "decoder_channels": 16, "atrous_rates": [1, 2, 3], "dropout": 0.0},
    "cosegmentation": {
        "vision_language": {"model": CLIP, "tag": CLIP_TAG, "input_size": 96},
        "self_supervised": {"model": VIT, "checkpoint": None, "input_size": 80},
    },
    "training": {"step0": {"batch_size": 4}, "steps": {"batch_size": 4}},
}


@pytest.fixture(scope="module")
def flops() -> ModuleType:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("flops", ROOT / "benchmarks/flops.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["flops"] = module
    spec.loader.exec_module(module)
    return module


def experiment(name: str, **method: object) -> Config:
    takes_masks = name in ("fmwiss", "fmwiss-plus", "finetuning")
    small = SMALL if takes_masks else {key: value for key, value in SMALL.items() if key != "cosegmentation"}
    return load_config(ROOT / f"configs/voc/10-10-overlap/{name}.yaml", [small, {"method": method} if method else {}])


def test_live_tensors_are_those_that_somebody_holds(flops: ModuleType) -> None:
    with flops.LiveTensors() as live, torch.device("meta"):
        one = torch.empty(1000)
        view, two = one[:10], one + 1
        assert live.now == live.peak == 8000
        del one
        assert live.now == 8000  # the view holds it
        two.add_(1)
        del view
        assert (live.now, live.peak) == (4000, 8000)


def test_what_backward_needs_is_alive_until_it_has_run(flops: ModuleType) -> None:
    layers = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Sigmoid(), nn.Linear(100, 1, bias=False)).to("meta")
    images = torch.empty(10, 100, device="meta")
    live, weights = flops.LiveTensors(), 100 * 100 + 100
    for parameter in layers.parameters():
        live.hold(parameter)
    with live:
        loss = layers(images).sum()
        held = live.now
        loss.backward()
    # the first layer's output is held by nobody: the sigmoid's derivative is of its result
    assert held == 4 * (weights + 10 * 100 + 1)
    assert live.now == 4 * (2 * weights + 1)


def test_bf16_is_what_autocast_would_cast(flops: ModuleType) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).to("meta")
    with flops.Autocast():
        out = layers(torch.empty(2, 3, 8, 8, device="meta"))
        loss = out.float().square().mean()
    assert out.dtype == torch.bfloat16
    loss.backward()
    assert {parameter.grad.dtype for parameter in layers.parameters()} == {torch.float32}


def real_batch(n: int, side: int, n_new: int) -> Batch:
    draws = torch.Generator().manual_seed(0)
    tags = torch.nn.functional.one_hot(torch.arange(n) % n_new, n_new).bool()
    return Batch(
        ids=("",) * n,
        image=torch.rand(n, 3, side, side, generator=draws).to(memory_format=torch.channels_last),
        valid=torch.ones(n, side, side, dtype=torch.bool),
        pseudo=(torch.rand(n, n_new, side, side, generator=draws) > 0.5) & tags[:, :, None, None],
        tags=tags,
        pasted=torch.zeros(n, side, side, dtype=torch.long),
    )


@pytest.mark.parametrize(("name", "options"), [("fmwiss", {"lambda_dcl": 0}), ("wilson", {})])
def test_an_iteration_is_that_of_the_real_training(
    flops: ModuleType, name: str, options: dict[str, object]
) -> None:
    """The same FLOPs, and tensors held alike, as on the CPU with contents."""
    config = experiment(name, **options)
    measured = flops.Meter().step(config)
    protocol = flops.Meter()._protocol(config)
    plain = config.segmenter.model_copy(update={"pretrained": False})
    old, student = (Segmenter.from_config(plain, protocol.new(0), None, None) for _ in range(2))
    student.add_step(protocol.new(1), "plain")
    method = build_method(config.method, student, old)
    batch, last = real_batch(4, 64, 10), measured.phases[-1]
    real = flops.iteration(method, config.training.steps, batch, config.training.steps.epochs, False)
    assert last.measured["fp32"].flops == real.flops > 0
    assert last.measured["fp32"].bytes == pytest.approx(real.bytes, rel=0.1)
    assert last.measured["bf16"].bytes <= last.measured["fp32"].bytes  # of so small a crop parameters are the most
    assert last.measured["bf16"].flops == real.flops
    assert measured.phases[0].epochs == 5 and measured.phases[0].measured["fp32"].flops < real.flops


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs/voc/10-10-overlap").glob("*.yaml")))
def test_every_method_can_be_measured_without_contents(flops: ModuleType, name: str) -> None:
    step = flops.Meter(memory=False).step(experiment(name))
    assert all(phase.measured["fp32"].flops > 0 for phase in step.phases) and step.phases[-1].name == "epochs"


def test_the_contrastive_loss_adds_its_products(flops: ModuleType) -> None:
    with_it, without = (
        flops.Meter(memory=False).step(experiment("fmwiss", lambda_dcl=value)).phases[-1].measured["fp32"].flops
        for value in (0.1, 0)
    )
    # 16 places of 64 pixels at stride 16 times 4 photographs, 16 channels; forward, and backward to both factors
    assert with_it - without == 3 * 2 * 64 * 64 * 16


def test_sums(flops: ModuleType) -> None:
    phase = flops.Phase("x", 3, 50, 24, {"fp32": flops.Measured(7)})
    assert phase.flops == 3 * 2 * 7  # two whole batches of 24 an epoch
    assert replace(phase, photographs=10).flops == 3 * 1 * 7
    step = flops.Step((phase,), (flops.Work("y", 5, 100),))
    assert step.flops == 42 + 500
    assumed = flops.Assumptions("x", 100.0, 0.5, 8, 0.9)
    assert assumed.hours(50 * 3600) == 1 and assumed.hours(50 * 3600 * 7.2, 8) == pytest.approx(1)


def test_a_page_gets_its_table(flops: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\n\n<!-- end of x -->\nb\n")
    for text in ("| 1 |", "| 2 |"):
        flops.show("x", text, page)
    assert page.read_text() == "a\n<!-- x -->\n\n| 2 |\n\n<!-- end of x -->\nb\n"
    with pytest.raises(SystemExit, match="no place"):
        flops.show("y", "| 1 |", page)


def test_a_photograph_of_pseudo_masking(flops: ModuleType) -> None:
    config = experiment("fmwiss")
    models = flops.Meter()._clip(config), flops.Meter()._vit(config)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        models[0].encode(torch.empty(1, 3, 64, 96, device="meta"))  # 375 x 500 at 96 pixels, the stride being 32
        models[1].mean_attention(torch.empty(1, 3, 64, 80, device="meta"))
    assert flops.Meter().pseudo_masks(config) == counter.get_total_flops() > 0


def test_numbers_of_photographs_are_the_published_ones(flops: ModuleType, shared_dir: Path) -> None:
    for (steps, setting), counts in flops.PHOTOGRAPHS.items():
        if steps != "coco-to-voc":
            for t, count in enumerate(counts):
                listed = (shared_dir / f"protocols/voc/{steps}-{setting}-step{t}.txt").read_text().split()
                assert len(listed) == count
