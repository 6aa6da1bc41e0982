import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fmwiss.data.batches import collate
from fmwiss.data.datasets import IterationSampler, MaskDataset, TrueMasks, WeakDataset
from fmwiss.data.memory import CopyPaste, MemoryBank
from fmwiss.data.protocols import Protocol
from fmwiss.data.tags import TagIndex
from fmwiss.data.transforms import JointTransform
from fmwiss.data.voc import VOC_CLASSES, VOCSource
from fmwiss.errors import UserError

SPLIT = Protocol((("aeroplane", "bicycle", "bird", "boat"), ("sheep", "sofa")))
TRANSFORM = JointTransform(48, 48, (0.5, 2.0), 0.5)


class Everywhere:
    """Pseudo masks that need no file: each tagged class is all over the photograph; notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...], int]] = []

    def masks(self, image_id: str, classes: Sequence[str], epoch: int) -> Tensor:
        self.asked.append((image_id, tuple(classes), epoch))
        return torch.ones((len(classes), 1, 2), dtype=torch.uint8)


@pytest.fixture
def source(tiny_voc: Path) -> VOCSource:
    return VOCSource(tiny_voc)


@pytest.fixture
def tags(source: VOCSource, tmp_path: Path) -> TagIndex:
    return TagIndex.load_or_build(source, source.ids("train_aug"), "masks", tmp_path / "tags.json")


@pytest.fixture
def bank(source: VOCSource, tags: TagIndex) -> MemoryBank:
    ids = SPLIT.select(0, tags, tags)
    return MemoryBank.build(source, ids, SPLIT.label_table(0, VOC_CLASSES), SPLIT.new(0), 4, 0.01, seed=0)


def weak(source: VOCSource, tags: TagIndex, pseudo_masks: object = None, paste: CopyPaste | None = None) -> WeakDataset:
    ids = SPLIT.select(1, tags, tags)
    masks = pseudo_masks or Everywhere()
    return WeakDataset(source, ids, tags, SPLIT.new(1), TRANSFORM, 5, masks, paste)  # type: ignore[arg-type]


def copy_paste(bank: MemoryBank, probability: float) -> CopyPaste:
    labels = {name: label for label, name in enumerate(SPLIT.old(1), start=1)}
    return CopyPaste(bank, labels, probability, TRANSFORM.scale, TRANSFORM.resize, seed=5)


def test_masks_of_step_0_are_in_the_models_labels(source: VOCSource, tags: TagIndex):
    ids = SPLIT.select(0, tags, tags)
    table = SPLIT.label_table(0, VOC_CLASSES)
    dataset = MaskDataset(source, ids, table, TRANSFORM, seed=5)
    assert len(dataset) == len(ids) > 8
    seen = set()
    for index, image_id in enumerate(ids):
        sample = dataset[0, index]
        assert sample.id == image_id and sample.mask is not None and sample.mask.dtype == torch.uint8
        assert sample.pseudo is sample.tags is sample.pasted is None
        assert (sample.mask[~sample.valid] == 255).all()
        labels = set(sample.mask.unique().tolist())
        assert labels <= set(table[source.read_mask(image_id).long()].unique().tolist()) | {255}
        seen |= labels
    assert seen == {0, 1, 2, 3, 4, 255}


def test_pseudo_masks_follow_the_photograph(source: VOCSource, tags: TagIndex):
    # The same seed, id and epoch give both data sets the same crop, so the truth as pseudo mask must equal the mask.
    dataset = weak(source, tags, TrueMasks(source, source.class_names))
    truth = MaskDataset(source, dataset.ids, SPLIT.label_table(1, VOC_CLASSES), TRANSFORM, seed=5)
    n_pixels = 0
    for index in range(len(dataset)):
        sample, expected = dataset[2, index], truth[2, index]
        assert sample.pseudo is not None and sample.pseudo.dtype == torch.bool and sample.pseudo.shape == (2, 48, 48)
        assert expected.mask is not None and sample.pasted is None
        assert torch.equal(sample.image, expected.image) and torch.equal(sample.valid, expected.valid)
        assert torch.equal(sample.pseudo, expected.mask == torch.tensor([5, 6])[:, None, None])
        n_pixels += int(sample.pseudo.sum())
    assert n_pixels > 1000


def test_untagged_channels_are_false_and_only_tagged_classes_are_asked_for(source: VOCSource, tags: TagIndex):
    masks = Everywhere()
    dataset = weak(source, tags, masks)
    for index, image_id in enumerate(dataset.ids):
        sample = dataset[3, index]
        expected = ["sheep" in tags[image_id], "sofa" in tags[image_id]]
        assert sample.tags is not None and sample.tags.tolist() == expected
        assert sample.pseudo is not None and torch.equal(sample.pseudo, sample.valid & sample.tags[:, None, None])
        names = tuple(name for name, tagged in zip(("sheep", "sofa"), expected, strict=True) if tagged)
        assert masks.asked[index] == (image_id, names, 3)
    assert {names for _, names, _ in masks.asked} >= {("sheep",), ("sofa",)}


def test_without_a_source_there_are_no_pseudo_masks(source: VOCSource, tags: TagIndex, bank: MemoryBank):
    ids = SPLIT.select(1, tags, tags)
    paste = copy_paste(bank, 0.6)
    plain = WeakDataset(source, ids, tags, SPLIT.new(1), TRANSFORM, 5, None, None)
    pasting = WeakDataset(source, ids, tags, SPLIT.new(1), TRANSFORM, 5, None, paste)
    for index in range(len(ids)):
        sample, expected = plain[1, index], weak(source, tags)[1, index]
        assert sample.pseudo is None and sample.pasted is None
        assert all(torch.equal(getattr(sample, n), getattr(expected, n)) for n in ("image", "valid", "tags"))
        assert torch.equal(pasting[1, index].image, weak(source, tags, paste=paste)[1, index].image)


def test_saliency_maps_follow_the_photograph(source: VOCSource, tags: TagIndex):
    class Truth:
        def map(self, image_id: str) -> torch.Tensor:
            mask = source.read_mask(image_id)
            return ((mask == 17) | (mask == 18)).to(torch.uint8) * 255  # sheep and sofa

    ids = SPLIT.select(1, tags, tags)
    plain = weak(source, tags, TrueMasks(source, source.class_names))
    dataset = WeakDataset(source, ids, tags, SPLIT.new(1), TRANSFORM, 5, None, None, Truth())
    for index in range(len(ids)):
        sample, expected = dataset[2, index], plain[2, index]
        assert sample.pseudo is None and expected.saliency is None and expected.pseudo is not None
        assert sample.saliency is not None and sample.saliency.equal(expected.pseudo.any(dim=0).to(torch.uint8) * 255)


def test_the_weak_step_runs_with_its_mask_files_deleted(tiny_voc: Path, tmp_path: Path, bank: MemoryBank):
    source = VOCSource(shutil.copytree(tiny_voc, tmp_path / "voc"))
    cache, ids = tmp_path / "index.json", source.ids("train_aug")
    before = weak(source, TagIndex.load_or_build(source, ids, "masks", cache), paste=copy_paste(bank, 0.5))
    samples = [before[0, index] for index in range(len(before))]
    shutil.rmtree(tmp_path / "voc/SegmentationClassAug")
    after = weak(source, TagIndex.load_or_build(source, ids, "masks", cache), paste=copy_paste(bank, 0.5))
    assert after.ids == before.ids
    for index, sample in enumerate(samples):
        again = after[0, index]
        for name in ("image", "valid", "pseudo", "tags", "pasted"):
            assert torch.equal(getattr(again, name), getattr(sample, name))


def test_the_weak_data_set_keeps_nothing_of_other_classes_tags(source: VOCSource, tags: TagIndex):
    assert any("boat" in tags[image_id] for image_id in SPLIT.select(1, tags, tags))
    stored = pickle.dumps(weak(source, tags))
    assert b"sheep" in stored and b"boat" not in stored


def test_pasting_changes_the_pasted_pixels_only(source: VOCSource, tags: TagIndex, bank: MemoryBank):
    plain, pasting = weak(source, tags), weak(source, tags, paste=copy_paste(bank, 0.6))
    labels, beyond, n_pasted = set(), 0, 0
    for epoch in range(6):
        for index in range(len(plain)):
            before, after = plain[epoch, index], pasting[epoch, index]
            assert after.pasted is not None and after.pasted.dtype == torch.uint8
            assert before.pseudo is not None and after.pseudo is not None
            region = after.pasted > 0
            assert torch.equal(after.image[:, ~region], before.image[:, ~region])
            assert not after.pseudo[:, region].any()
            assert torch.equal(after.pseudo[:, ~region], before.pseudo[:, ~region])
            assert torch.equal(after.valid, before.valid | region)
            if region.any():
                n_pasted += 1
                labels |= set(after.pasted[region].tolist())
                assert len(after.pasted.unique()) <= 2
                beyond += int((region & ~before.valid).sum())
                # Shapes of one class have one strong colour; the ground and the new classes have others.
                colour = after.image[:, region].median(dim=1).values
                expected = bank[SPLIT.old(1)[int(after.pasted.max()) - 1]][0]
                known = expected.image()[:, expected.region()].float().median(dim=1).values / 255
                assert (colour - known).abs().max() < 0.06
    assert labels == {1, 2, 3, 4} and beyond > 0
    assert 0.4 < n_pasted / (6 * len(plain)) < 0.8


def test_samples_are_the_same_in_any_process_and_order(source: VOCSource, tags: TagIndex, bank: MemoryBank):
    dataset = weak(source, tags, paste=copy_paste(bank, 0.5))
    first, other_epoch = dataset[0, 1], dataset[1, 1]
    assert not torch.equal(first.image, other_epoch.image)

    def batches(workers: int) -> list[Tensor]:
        sampler = IterationSampler(len(dataset), 2, seed=5, epochs=2)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate)  # type: ignore
        return [batch.image for batch in loader]

    alone, workers = batches(0), batches(2)
    assert len(alone) == 2 * (len(dataset) // 2) and all(torch.equal(a, b) for a, b in zip(alone, workers, strict=True))
    again = dataset[0, 1]
    assert torch.equal(again.image, first.image) and torch.equal(again.pasted, first.pasted)  # type: ignore[arg-type]


def test_sampler_covers_each_epoch_once_and_drops_the_rest():
    sampler = IterationSampler(11, 3, seed=0, epochs=4)
    batches = list(sampler)
    assert sampler.iterations_per_epoch == 3 and len(sampler) == len(batches) == 12
    orders = []
    for epoch in range(4):
        pairs = [pair for batch in batches[3 * epoch : 3 * epoch + 3] for pair in batch]
        assert [len(batch) for batch in batches] == [3] * 12
        assert {e for e, _ in pairs} == {epoch}
        order = [index for _, index in pairs]
        assert len(set(order)) == 9 and set(order) <= set(range(11))
        orders.append(tuple(order))
    assert len(set(orders)) == 4
    assert {index for order in orders for index in order} == set(range(11))


@pytest.mark.parametrize("done", [0, 1, 3, 4, 11, 12, 20])
def test_sampler_resumes_where_it_was(done: int):
    whole = list(IterationSampler(11, 3, seed=0, epochs=4))
    rest = IterationSampler(11, 3, seed=0, epochs=4, start_iteration=done)
    assert list(rest) == whole[done:]
    assert len(rest) == len(whole[done:])


def test_sampler_depends_on_its_seed():
    assert list(IterationSampler(11, 3, seed=0, epochs=1)) != list(IterationSampler(11, 3, seed=1, epochs=1))


def test_processes_share_each_batch():
    whole = list(IterationSampler(25, 8, seed=0, epochs=2))
    ranks = [list(IterationSampler(25, 8, seed=0, epochs=2, rank=rank, world_size=3)) for rank in range(3)]
    for iteration, batch in enumerate(whole):
        parts = [ranks[rank][iteration] for rank in range(3)]
        assert sorted(pair for part in parts for pair in part) == sorted(batch)
        assert [len(part) for part in parts] == [3, 3, 2]


def test_fewer_photographs_than_a_batch_are_one_batch():
    sampler = IterationSampler(5, 24, seed=0, epochs=2)
    assert sampler.iterations_per_epoch == 1
    assert [sorted(index for _, index in batch) for batch in sampler] == [[0, 1, 2, 3, 4]] * 2


def test_sampler_refuses_what_cannot_be():
    with pytest.raises(UserError, match="no photographs"):
        IterationSampler(0, 4, seed=0, epochs=1)
    with pytest.raises(UserError, match="batch of 2 photographs cannot be shared by 3 processes"):
        IterationSampler(10, 2, seed=0, epochs=1, world_size=3)


def test_real_photographs_give_samples(shared_dir: Path, tmp_path: Path):
    source = VOCSource(shared_dir / "voc-mini")
    ids = source.ids("dev")[:24]
    tags = TagIndex.load_or_build(source, ids, "masks", tmp_path / "tags.json")
    protocol = Protocol((VOC_CLASSES[:10], VOC_CLASSES[10:]))
    transform = JointTransform(192, 192, (0.5, 2.0), 0.5)
    step0 = protocol.select(0, tags, ids)
    table = protocol.label_table(0, source.class_names)
    masks = MaskDataset(source, step0, table, transform, seed=0)
    batch = collate([masks[0, index] for index in range(len(step0))])
    assert batch.mask is not None and batch.mask.shape == (len(step0), 192, 192)
    bank = MemoryBank.build(source, step0, table, protocol.new(0), 2, 0.01, seed=0)
    labels = {name: label for label, name in enumerate(protocol.old(1), start=1)}
    paste = CopyPaste(bank, labels, 1.0, (0.5, 2.0), 192, seed=0)
    step1 = protocol.select(1, tags, ids)
    truth = TrueMasks(source, source.class_names)
    dataset = WeakDataset(source, step1, tags, protocol.new(1), transform, 0, truth, paste)
    batch = collate([dataset[0, index] for index in range(len(step1))])
    assert batch.pseudo is not None and batch.pseudo.shape == (len(step1), 10, 192, 192) and batch.pseudo.any()
    assert batch.pasted is not None and batch.pasted.any()
    assert batch.image.min() >= 0 and batch.image.max() <= 1
