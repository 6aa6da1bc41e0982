"""The lists of voc-mini that come with its experiments."""

from __future__ import annotations

from pathlib import Path

LISTS = Path(__file__).parents[2] / "configs" / "voc-mini" / "lists"


def ids(name: str, folder: Path = LISTS) -> list[str]:
    return (folder / f"{name}.txt").read_text().split()


def test_dev_is_every_fifth_of_train_aug_and_val_is_apart() -> None:
    train, val = ids("train_aug"), ids("val")
    assert (len(train), len(set(train)), len(val), len(set(val))) == (1130, 1130, 257, 257)
    assert ids("dev") == train[4::5] and not set(train) & set(val)
    assert set(ids("train_aug_minus_dev")) == set(train) - set(train[4::5])


def test_they_are_those_of_the_photographs(shared_dir: Path) -> None:
    folder = shared_dir / "voc-mini" / "ImageSets" / "Segmentation"
    for file in LISTS.glob("*.txt"):
        assert file.read_text() == (folder / file.name).read_text()
