"""Masks that a locator made, on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fmwiss.errors import UserError
from fmwiss.training.located import LocatedMasks


def test_round_trip(tmp_path: Path) -> None:
    masks = LocatedMasks(tmp_path / "masks", ("sheep", "sofa", "train"))
    labels = torch.tensor([[0, 1, 1], [3, 0, 2]], dtype=torch.uint8)
    assert masks.missing(["a/b", "c"]) == ["a/b", "c"]
    masks.write("a/b", labels)
    assert masks.missing(["a/b", "c"]) == ["c"]
    assert masks.masks("a/b", ["train", "sheep"], epoch=3).tolist() == [
        [[False, False, False], [True, False, False]],
        [[False, True, True], [False, False, False]],
    ]
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["a%2Fb.safetensors"]


def test_damaged_missing_and_foreign_files_are_told(tmp_path: Path) -> None:
    masks = LocatedMasks(tmp_path, ("sheep",))
    with pytest.raises(UserError, match=r"a.safetensors is missing or damaged"):
        masks.masks("a", ["sheep"], 0)
    masks.write("a", torch.zeros(2, 2, dtype=torch.uint8))
    masks.path("a").write_bytes(masks.path("a").read_bytes()[:20])
    with pytest.raises(UserError, match=r"a.safetensors is missing or damaged"):
        masks.masks("a", ["sheep"], 0)
    LocatedMasks(tmp_path, ("sofa",)).write("a", torch.zeros(2, 2, dtype=torch.uint8))
    with pytest.raises(UserError, match="is about sofa, not sheep"):
        masks.masks("a", ["sheep"], 0)
