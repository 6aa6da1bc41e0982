"""Replayed photographs: the folder, the samples, and the batches that hold them beside a step's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fmwiss.data.batches import collate
from fmwiss.data.datasets import MaskDataset
from fmwiss.data.protocols import Protocol
from fmwiss.data.replay import InterleavedDataset, InterleavedSampler, ReplayDataset, ReplayFolder
from fmwiss.data.tags import TagIndex
from fmwiss.data.transforms import JointTransform
from fmwiss.data.voc import VOC_CLASSES, VOCSource
from fmwiss.errors import UserError

TRANSFORM = JointTransform(48, 48, (0.5, 2.0), 0.5)
SPLIT = Protocol((("boat", "tv monitor"), ("sheep", "sofa")))


class Halves:
    """Labels of a grid of two places: 1 on the left, 2 on the right."""

    def map(self, image_id: str) -> Tensor:
        return torch.tensor([[1, 2]], dtype=torch.uint8)


@pytest.fixture
def folder(tiny_voc: Path, tmp_path: Path) -> Path:
    """Two photographs of one class, one of another under another spelling, and a folder that is not wanted."""
    root = tmp_path / "replay"
    photographs = tiny_voc / "JPEGImages"
    for number, place in enumerate(("boat/a.jpg", "boat/b.JPG", "tvmonitor/a.jpg", "holidays/a.jpg")):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photographs / f"val_{number:06d}.jpg", root / place)
    (root / "boat/notes.txt").touch()
    (root / "list.txt").touch()
    return root


def test_a_folder_by_class(folder: Path, tiny_voc: Path) -> None:
    replay = ReplayFolder(folder, SPLIT.old(1))
    assert replay.ids == ["boat/a.jpg", "boat/b.JPG", "tv monitor/a.jpg"]
    assert replay.class_of["tv monitor/a.jpg"] == "tv monitor"
    assert replay.read_image("boat/a.jpg").equal(VOCSource(tiny_voc).read_image("val_000000"))


def test_what_is_wrong_with_a_folder_is_told(folder: Path) -> None:
    with pytest.raises(UserError, match=r"none: is no folder"):
        ReplayFolder(folder / "none", ["boat"])
    with pytest.raises(UserError, match=r"has no folder cat; every old class needs one"):
        ReplayFolder(folder, ["boat", "cat"])
    (folder / "cat").mkdir()
    with pytest.raises(UserError, match=r"cat: holds no photograph"):
        ReplayFolder(folder, ["boat", "cat"])
    (folder / "tv_monitor").mkdir()
    with pytest.raises(UserError, match=r"tv_monitor and tvmonitor are both of the class tv monitor"):
        ReplayFolder(folder, ["tv monitor"])


def dataset(folder: Path, tiny_voc: Path, tmp_path: Path) -> InterleavedDataset:
    source = VOCSource(tiny_voc)
    tags = TagIndex.load_or_build(source, source.ids("train_aug"), "masks", tmp_path / "tags.json")
    own = MaskDataset(source, SPLIT.select(1, tags, tags), SPLIT.step_table(1, VOC_CLASSES), TRANSFORM, seed=5)
    replay = ReplayDataset(ReplayFolder(folder, SPLIT.old(1)), Halves(), TRANSFORM, seed=5)
    return InterleavedDataset(own, replay, 0.5)


def test_samples_of_both_kinds(folder: Path, tiny_voc: Path, tmp_path: Path) -> None:
    both = dataset(folder, tiny_voc, tmp_path)
    n = len(both.step)
    assert len(both) == n + 3
    own, replayed = both[2, 0], both[2, n + 2]
    assert own.id == both.step.ids[0] and replayed.id == "tv monitor/a.jpg"
    assert own.mask is not None and set(own.mask.unique().tolist()) <= {0, 3, 4, 255}
    assert replayed.mask is not None and set(replayed.mask.unique().tolist()) <= {1, 2, 255}
    assert (replayed.mask[~replayed.valid] == 255).all() and (replayed.mask[replayed.valid] != 255).all()
    again = both[2, n + 2]
    assert replayed.image.equal(again.image) and not replayed.image.equal(both[3, n + 2].image)
    batch = collate([own, replayed])
    assert batch.replayed is not None and batch.replayed.tolist() == [False, True]


def test_every_batch_has_its_share_and_every_photograph_its_turn() -> None:
    sampler = InterleavedSampler(10, 4, 0.5, 6, seed=1, epochs=4)
    batches = list(sampler)
    assert (sampler.batch_size, sampler.replayed, sampler.iterations_per_epoch) == (3, 3, 3)
    assert len(batches) == len(sampler) == 12
    replayed = []
    for number, batch in enumerate(batches):
        assert [index < 10 for _, index in batch] == [True] * 3 + [False] * 3
        assert {epoch for epoch, index in batch if index < 10} == {number // 3}
        replayed += [key for key in batch if key[1] >= 10]
    for time in range(9):  # all four before any comes again
        assert sorted(replayed[4 * time : 4 * time + 4]) == [(time, 10 + place) for place in range(4)]
    assert [key[1] for key in replayed[:4]] != [key[1] for key in replayed[4:8]] or replayed[:4] != sorted(replayed[:4])


def test_an_interrupted_step_sees_the_batches_that_it_would_have_seen() -> None:
    options = {"seed": 1, "epochs": 3}
    whole = list(InterleavedSampler(10, 7, 0.4, 5, **options))  # type: ignore[arg-type]
    assert list(InterleavedSampler(10, 7, 0.4, 5, start_iteration=4, **options)) == whole[4:]  # type: ignore[arg-type]


def test_processes_share_the_batches() -> None:
    options = {"seed": 1, "epochs": 2}
    whole = list(InterleavedSampler(12, 5, 0.5, 8, **options))  # type: ignore[arg-type]
    shares = [
        list(InterleavedSampler(12, 5, 0.5, 8, rank=rank, world_size=2, **options))  # type: ignore[arg-type]
        for rank in range(2)
    ]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert sorted(batch) == sorted(first + second) and len(first) == len(second) == 4


def test_a_batch_that_is_too_small_is_refused() -> None:
    with pytest.raises(UserError, match=r"a batch of 2 cannot hold a replayed photograph and two others"):
        InterleavedSampler(10, 4, 0.5, 2, seed=1, epochs=1)
