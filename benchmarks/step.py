"""Time of one FMWISS training step against the bare passes that it cannot avoid.

The bare passes are the student's forward and backward, the old model's forward, and the teacher's forward and
backward, on the same batch, measured in the same run and in turn with the whole step (losses, targets, contrastive
sampling, backward, optimizer). Prints the medians and the overhead.

    python benchmarks/step.py [--config configs/voc-mini/15-5-overlap/fmwiss.yaml] [--rounds 20]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from fmwiss.config import load_config
from fmwiss.data.batches import Batch
from fmwiss.data.protocols import Protocol
from fmwiss.data.randomness import keyed_generator
from fmwiss.methods import FMWISS
from fmwiss.models import Segmenter
from fmwiss.training.loop import build_optimizer


def synthetic_batch(batch_size: int, side: int, n_new: int, device: torch.device) -> Batch:
    """Noise images, each with one tagged class whose pseudo mask is a random rectangle, a third of them pasted on."""
    draws = torch.Generator().manual_seed(0)
    corners = torch.rand(batch_size, 2, generator=draws) * side / 2
    grid = torch.arange(side)
    inside = (grid >= corners[..., None]) & (grid < corners[..., None] + side / 2)
    rectangles = inside[:, 0, :, None] & inside[:, 1, None, :]
    tags = torch.nn.functional.one_hot(torch.arange(batch_size) % n_new, n_new).bool()
    pasted = torch.zeros(batch_size, side, side, dtype=torch.long)
    pasted[::3, : side // 4, : side // 4] = 1
    batch = Batch(
        ids=tuple(str(i) for i in range(batch_size)),
        image=torch.rand(batch_size, 3, side, side, generator=draws).contiguous(memory_format=torch.channels_last),
        valid=torch.ones(batch_size, side, side, dtype=torch.bool),
        pseudo=(rectangles & (pasted == 0))[:, None] & tags[:, :, None, None],
        tags=tags,
        pasted=pasted,
    )
    return batch.to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/voc-mini/15-5-overlap/fmwiss.yaml")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    config = load_config(arguments.config)
    device = torch.device(arguments.device)
    protocol = Protocol.from_config(config.protocol)
    segmenter = config.segmenter.model_copy(update={"pretrained": False})
    old_model = Segmenter.from_config(segmenter, protocol.new(0), config.data.resize, None)
    student = Segmenter.from_config(segmenter, protocol.new(0), config.data.resize, None)
    student.add_step(protocol.new(1), "plain")
    method = FMWISS(student, old_model, config.method).to(device)
    method.start_epoch(method.warmup_epochs)
    options = config.training.steps
    groups = method.parameter_groups(options.learning_rate, options.head_rate)
    optimizer = build_optimizer(options, groups)
    batch = synthetic_batch(options.batch_size, config.data.crop_size, len(protocol.new(1)), device)
    features = student.encode(batch.image).detach()

    def step() -> None:
        losses = method.training_step(batch, keyed_generator(0, "benchmark"))
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    def student_pass() -> None:
        student(batch.image).sum().backward()

    def old_pass() -> None:
        with torch.inference_mode():
            method.old_model(batch.image)

    def teacher_pass() -> None:
        method.teacher(features)[0].sum().backward()

    passes: dict[str, Callable[[], None]] = {
        "whole step": step,
        "student forward and backward": student_pass,
        "old model forward": old_pass,
        "teacher forward and backward": teacher_pass,
    }
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for round_number in range(arguments.rounds + 2):
        for name, run in passes.items():
            method.zero_grad(set_to_none=True)
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_number >= 2:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    whole, *bare = medians.values()
    for name, value in medians.items():
        print(f"{name:32s} {1000 * value:8.1f} ms")
    print(f"{'overhead':32s} {whole / sum(bare):8.3f} (whole step / sum of the bare passes)")
    print(
        f"batch {options.batch_size} at {config.data.crop_size} pixels, loss_stride {config.method.loss_stride}, "
        f"{arguments.rounds} rounds, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
