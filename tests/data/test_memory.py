import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from fmwiss.data.memory import CopyPaste, MemoryBank
from fmwiss.data.protocols import Protocol
from fmwiss.data.voc import VOC_CLASSES, VOCSource
from fmwiss.errors import UserError

NAMES = ("boat", "bird", "aeroplane", "bicycle")
TABLE = Protocol((NAMES,)).label_table(0, VOC_CLASSES)


@pytest.fixture
def source(tiny_voc: Path) -> VOCSource:
    return VOCSource(tiny_voc)


def build(source: VOCSource, bank_size: int = 100, min_area: float = 0.0, seed: int = 0) -> MemoryBank:
    return MemoryBank.build(source, source.ids("train_aug"), TABLE, NAMES, bank_size, min_area, seed)


def boxes(source: VOCSource, name: str) -> list[tuple[float, Tensor, Tensor, int]]:
    """Obvious second implementation: of every photograph, share, crop, region and shorter side of a class."""
    found = []
    for image_id in source.ids("train_aug"):
        image, region = source.read_image(image_id), source.read_mask(image_id) == VOC_CLASSES.index(name) + 1
        places = [(row, column) for row, column in region.nonzero().tolist()]
        if places:
            top, bottom = min(r for r, _ in places), max(r for r, _ in places)
            left, right = min(c for _, c in places), max(c for _, c in places)
            window = (slice(top, bottom + 1), slice(left, right + 1))
            share = len(places) / region.numel()
            found.append((share, image[:, window[0], window[1]], region[window], min(region.shape)))
    return found


def same(bank: MemoryBank, other: MemoryBank) -> bool:
    return bank.classes == other.classes and all(
        len(bank[name]) == len(other[name])
        and all(
            torch.equal(a.region(), b.region())
            and torch.equal(a.image(), b.image())
            and (a.shorter_side, a.longer_side) == (b.shorter_side, b.longer_side)
            for a, b in zip(bank[name], other[name], strict=True)
        )
        for name in bank.classes
    )


def test_an_instance_is_the_whole_region_of_a_class_in_one_photograph(source: VOCSource):
    bank = build(source)
    assert bank.classes == NAMES
    for name in NAMES:
        expected = boxes(source, name)
        assert bank.count(name) == len(bank[name]) == len(expected)
        for instance in bank[name]:
            assert instance.region().shape == instance.image().shape[1:] == (instance.height, instance.width)
            match = [box for box in expected if torch.equal(box[2], instance.region())]
            assert len(match) == 1
            _, crop, _, shorter_side = match[0]
            assert instance.shorter_side == shorter_side
            difference = (crop.float() - instance.image().float()).abs()[:, instance.region()]
            assert difference.mean() < 8  # of 255: JPEG at the edges of small, strongly coloured shapes


def test_small_regions_stay_out(source: VOCSource):
    shares = sorted(share for share, *_ in boxes(source, "bird"))
    limit = shares[len(shares) // 2]
    bank = build(source, min_area=limit)
    assert bank.count("bird") == sum(share >= limit for share in shares) < len(shares)


def test_archives_hold_at_most_b_and_which_depends_on_the_seed(source: VOCSource):
    banks = [build(source, bank_size=2, seed=seed) for seed in (0, 0, 1, 2)]
    assert all(bank.count(name) == 2 for bank in banks for name in NAMES)
    assert same(banks[0], banks[1])
    assert not (same(banks[0], banks[2]) and same(banks[0], banks[3]))


def test_building_stops_when_every_class_has_enough(source: VOCSource):
    visited: list[int] = []

    def progress(iterable, description, total):  # type: ignore[no-untyped-def]
        assert total == 16
        for item in iterable:
            visited.append(item)
            yield item

    MemoryBank.build(source, source.ids("train_aug"), TABLE, NAMES, 1, 0.0, 0, progress)
    assert 0 < len(visited) < 16
    assert MemoryBank.build(source, source.ids("train_aug"), TABLE, NAMES, 0, 0.0, 0).classes == ()


def test_a_class_without_instances_has_an_empty_archive(source: VOCSource):
    bank = MemoryBank.build(source, source.ids("train_aug"), TABLE, (*NAMES, "cow"), 2, 0.0, 0)
    assert "cow" not in bank.classes and bank["cow"] == () and bank.count("cow") == 0


def test_what_is_saved_is_loaded(source: VOCSource, tmp_path: Path):
    bank, path = build(source, bank_size=3), tmp_path / "step0" / "memory_bank.safetensors"
    bank.save(path)
    assert MemoryBank.load(path).made_with == bank.made_with == {"bank_size": 3, "min_area": 0.0}
    loaded = MemoryBank.load(path)
    assert same(bank, loaded)
    loaded.add("sheep", torch.zeros(3, 8, 8, dtype=torch.uint8), torch.ones(8, 8, dtype=torch.bool), 0.01)
    loaded.save(path)
    assert MemoryBank.load(path).classes == (*NAMES, "sheep")
    assert [file.name for file in path.parent.iterdir()] == ["memory_bank.safetensors"]
    # Compact: a bit a pixel and a JPEG, far below the pixels themselves.
    raw = sum(4 * instance.height * instance.width for name in bank.classes for instance in bank[name])
    assert path.stat().st_size < 0.6 * raw


def test_an_empty_bank_can_be_saved(tmp_path: Path):
    MemoryBank().save(tmp_path / "bank.safetensors")
    assert MemoryBank.load(tmp_path / "bank.safetensors").classes == ()


def test_missing_and_spoilt_files_are_told(source: VOCSource, tmp_path: Path):
    path = tmp_path / "bank.safetensors"
    with pytest.raises(UserError, match=r"memory bank .*bank.safetensors is missing or unreadable"):
        MemoryBank.load(path)
    build(source, bank_size=1).save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="unreadable"):
        MemoryBank.load(path)


def test_add_takes_masks_from_anywhere():
    bank = MemoryBank()
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    region = torch.zeros(20, 30, dtype=torch.bool)
    assert not bank.add("sofa", image, region, 0.0)
    region[5:7, 10:13] = True  # 6 of 600 pixels: exactly 1 %
    assert not bank.add("sofa", image, region, 0.0101)
    assert bank.add("sofa", image, region, 0.01)
    (instance,) = bank["sofa"]
    assert (instance.height, instance.width, instance.shorter_side) == (2, 3, 20)
    assert instance.region().all()


def rectangle(height: int = 40, width: int = 60) -> MemoryBank:
    """One red rectangle with a notch in a photograph of 100 x 200, a blue one of another class."""
    bank = MemoryBank()
    for name, channel in (("boat", 0), ("bird", 2)):
        image = torch.zeros(3, 100, 200, dtype=torch.uint8)
        image[channel] = 255
        region = torch.zeros(100, 200, dtype=torch.bool)
        region[30 : 30 + height, 50 : 50 + width] = True
        region[30 : 30 + height // 2, 50 : 50 + width // 2] = False
        assert bank.add(name, image, region, 0.01)
    return bank


def paste(copy_paste: CopyPaste, size: int, count: int) -> list[tuple[Tensor, Tensor, int] | None]:
    image = torch.full((3, size, size), 0.5)
    results = [copy_paste(image, "id", epoch) for epoch in range(count)]
    assert (image == 0.5).all()
    return results


def test_pasted_instances_have_the_size_they_would_have_in_a_crop():
    copy_paste = CopyPaste(rectangle(), {"boat": 7, "bird": 3}, 1.0, (1.0, 1.0), 50, seed=0)
    tops, lefts, labels, notches = set(), set(), set(), set()
    for result in paste(copy_paste, 64, 300):
        assert result is not None
        image, region, label = result
        # 50 / 100 of 40 x 60, less the notch of 10 x 15, wholly inside.
        assert region.sum() == 20 * 30 - 10 * 15
        rows, columns = region.any(dim=1).nonzero().flatten(), region.any(dim=0).nonzero().flatten()
        top, left = int(rows[0]), int(columns[0])
        assert len(rows) == 20 and len(columns) == 30
        channel = {7: 0, 3: 2}[label]
        assert image[channel][region].min() > 0.98 and image[2 - channel][region].max() < 0.02
        assert (image[:, ~region] == 0.5).all()
        tops.add(top)
        lefts.add(left)
        labels.add(label)
        notches.add(bool(region[top, left]))
    assert labels == {3, 7}
    assert notches == {True, False}  # flipped and not
    assert (min(tops), max(tops)) == (0, 64 - 20) and (min(lefts), max(lefts)) == (0, 64 - 30)
    assert len(tops) > 35 and len(lefts) > 30


def test_random_scale_is_that_of_the_crops():
    copy_paste = CopyPaste(rectangle(), {"boat": 1}, 1.0, (0.5, 2.0), 50, seed=0)
    heights = [int(result[1].any(dim=1).sum()) for result in paste(copy_paste, 128, 100) if result]
    assert 10 <= min(heights) <= 12 and 38 <= max(heights) <= 40
    own_size = CopyPaste(rectangle(), {"boat": 1}, 1.0, (1.0, 1.0), None, seed=0)
    assert [int(result[1].any(dim=1).sum()) for result in paste(own_size, 128, 1) if result] == [40]


def test_in_resized_crops_the_scale_is_that_of_the_area():
    """A share a of 100 x 200 becomes 128 x 128, so that 40 rows become 40 x 128 / sqrt(20000 a)."""

    def heights(*scale: float) -> list[int]:
        copy_paste = CopyPaste(rectangle(), {"boat": 1}, 1.0, scale, 50, seed=0, crop="resized")
        return [int(result[1].any(dim=1).sum()) for result in paste(copy_paste, 128, 100) if result]

    assert set(heights(1.0, 1.0)) == {36} == set(heights(1.5, 2.0))
    assert set(heights(0.25, 0.25)) == {72}
    drawn = heights(0.25, 1.0)
    assert 36 <= min(drawn) <= 38 and 62 <= max(drawn) <= 72


def test_a_bank_of_an_earlier_version_is_read(tmp_path: Path):
    """It does not tell the longer side of its photographs."""
    rectangle().save(tmp_path / "bank.safetensors")
    with safe_open(tmp_path / "bank.safetensors", framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in list(file.keys())}
        metadata = file.metadata()
    rows = [row[:4] for row in json.loads(metadata["instances"])]
    save_file(arrays, tmp_path / "old.safetensors", {**metadata, "instances": json.dumps(rows)})
    old, bank = MemoryBank.load(tmp_path / "old.safetensors"), rectangle()
    assert old.classes == bank.classes and {len(row) for row in rows} == {4}
    assert [(i.shorter_side, i.longer_side) for i in (bank["boat"][0], old["boat"][0])] == [(100, 200), (100, 0)]


def test_an_instance_larger_than_the_crop_is_seen_in_part():
    copy_paste = CopyPaste(rectangle(), {"boat": 1}, 1.0, (1.0, 1.0), None, seed=0)
    results = paste(copy_paste, 16, 60)
    shares = [float(result[1].float().mean()) for result in results if result is not None]
    assert max(shares) == 1.0 and min(shares) < 1.0
    # Where the notch fills the whole crop there is nothing to see.
    assert any(result is None for result in results)
    assert all(result[1].any() for result in results if result is not None)


def test_probability_and_empty_archives():
    def share(probability: float, labels: dict[str, int], bank: MemoryBank) -> float:
        results = paste(CopyPaste(bank, labels, probability, (1.0, 1.0), 50, seed=0), 64, 150)
        return sum(result is not None for result in results) / len(results)

    assert share(0.0, {"boat": 1}, rectangle()) == 0.0
    assert 0.38 < share(0.5, {"boat": 1}, rectangle()) < 0.62
    assert share(1.0, {"boat": 1}, MemoryBank()) == 0.0
    # Classes without instances are passed over, not drawn and lost.
    assert share(1.0, {"cow": 1, "boat": 2, "dog": 3}, rectangle()) == 1.0


def test_pasting_is_keyed():
    first, again = (CopyPaste(rectangle(), {"boat": 1}, 1.0, (0.5, 2.0), 50, seed=0) for _ in range(2))
    other = CopyPaste(rectangle(), {"boat": 1}, 1.0, (0.5, 2.0), 50, seed=1)
    image = torch.zeros(3, 64, 64)

    def region(copy_paste: CopyPaste, image_id: str, epoch: int) -> list[bool]:
        result = copy_paste(image, image_id, epoch)
        assert result is not None
        return result[1].flatten().tolist()

    assert region(first, "a", 0) == region(again, "a", 0)
    assert region(first, "a", 0) not in (region(first, "a", 1), region(first, "b", 0), region(other, "a", 0))
