"""Photographs per second of pseudo-masking against the bare forward passes of the two frozen models.

The bare passes are one plain forward pass of each model over the very batches that pseudo-masking forms, which are in
memory already; pseudo-masking decodes and scales photographs, computes scores, takes the attention out of the last
block, and writes its files. Both are measured in the same run and in turn. Prints the medians and the overhead.

    python benchmarks/pseudo_masks.py --data VOC --weights WEIGHTS [--photographs 64]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmwiss.config import load_config
from fmwiss.data.protocols import Protocol
from fmwiss.data.tags import TagIndex
from fmwiss.data.voc import VOCSource
from fmwiss.foundation import build_self_supervised, build_vision_language
from fmwiss.pseudo_masks import PseudoMaskStore, fill_store, store_identity


class Recorder:
    """A frozen model that keeps the batches it is shown."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.batches: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def scores(self, images: Tensor, class_names: Sequence[str]) -> Tensor:
        self.batches.append(images)
        return self.model.scores(images, class_names)

    def mean_attention(self, images: Tensor) -> Tensor:
        self.batches.append(images)
        return self.model.mean_attention(images)


def merged(parts: Sequence[Tensor], sizes: Sequence[int]) -> Iterator[Tensor]:
    """Consecutive parts joined to batches of the given sizes."""
    remaining = iter(parts)
    for size in sizes:
        batch: list[Tensor] = []
        while sum(map(len, batch)) < size:
            batch.append(next(remaining))
        yield torch.cat(batch).contiguous(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/voc-mini/15-5-overlap/fmwiss.yaml"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--split", default="train_aug")
    parser.add_argument("--photographs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    experiment = load_config(arguments.config, [])
    config, device = experiment.cosegmentation, torch.device(arguments.device)
    source, classes = VOCSource(arguments.data), Protocol.from_config(experiment.protocol).new(1)
    vision_language = build_vision_language(config.vision_language, arguments.weights, device)
    self_supervised = build_self_supervised(config.self_supervised, arguments.weights, device)
    identity = store_identity(config, vision_language, self_supervised)

    with tempfile.TemporaryDirectory() as folder:
        all_ids = source.ids(arguments.split)
        tags = TagIndex.load_or_build(source, all_ids, experiment.data.tags, Path(folder) / "tags.json")
        ids = [image_id for image_id in all_ids if tags[image_id] & set(classes)][: arguments.photographs]

        def fill(name: str, vision: Any, attention: Any) -> None:
            store = PseudoMaskStore(Path(folder) / name, identity)
            fill_store(store, source, ids, tags, classes, vision, attention, config.batch_size, device)

        def synchronized_seconds(work: Any, *parameters: Any) -> float:
            start = time.perf_counter()
            work(*parameters)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter() - start

        vision, attention = Recorder(vision_language), Recorder(self_supervised)
        fill("warm-up", vision, attention)

        # Pseudo-masking shows the first model photographs with equal tags together; a bare pass takes a whole batch.
        vision_batches = list(merged(vision.batches, [len(images) for images in attention.batches]))

        def bare() -> None:
            for images in vision_batches:
                vision_language.dense_features(images)
            for images in attention.batches:
                self_supervised.patch_features(images)

        rounds = [
            (synchronized_seconds(bare), synchronized_seconds(fill, str(number), vision_language, self_supervised))
            for number in range(arguments.rounds)
        ]

    bare_seconds, full_seconds = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"{len(ids)} photographs, {torch.get_num_threads()} threads, median of {arguments.rounds} rounds on {device}")
    print(f"bare passes    {len(ids) / bare_seconds:7.2f} photographs/s")
    print(f"pseudo-masking {len(ids) / full_seconds:7.2f} photographs/s")
    print(f"overhead       {full_seconds / bare_seconds:7.3f}")


if __name__ == "__main__":
    main()
