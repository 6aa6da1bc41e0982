"""What is reviewed: which masks in which order, where they are cut, and what becomes of decisions."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fmwiss.data.protocols import Protocol
from fmwiss.data.review import Review, Threshold
from fmwiss.data.tags import TagIndex
from fmwiss.errors import UserError
from fmwiss.pseudo_masks import StoredPlusMasks, StoredPseudoMasks
from fmwiss.review import disagreement
from fmwiss.review.session import Session, alone

PAPER = ("cosegmentation.name=fmwiss", "cosegmentation.n_seeds=4")


def test_there_is_a_mask_for_every_tag_of_the_steps_photographs(session: Session, world: Any) -> None:
    ids = session.source.ids("train_aug")
    tags = TagIndex.load_or_build(session.source, ids, "masks", world.folder / "first" / "tags.json")
    expected = [(i, name) for i in ids for name in ("cat", "sheep", "sofa") if name in tags[i]]
    assert [(item.image_id, item.name) for item in session.items] == expected and len(expected) > 6
    assert [item.number for item in session.items] == list(range(len(expected)))
    protocol = Protocol((("aeroplane", "bicycle", "boat", "bus", "dog", "person"), ("cat", "sheep", "sofa")))
    assert session.photographs == protocol.select(1, tags, ids)
    assert session.counts()["cat"]["open"] == sum(name == "cat" for _, name in expected)


def test_masks_come_by_disagreement_of_the_stages_and_can_be_filtered(session: Session) -> None:
    slow = {}
    for item in session.items:
        stages = session.masks.stages(item.image_id, [item.name], 0)
        a, b = stages["init"][0].numpy(), stages["refined"][0].numpy()
        slow[item.number] = 1 - np.logical_and(a, b).sum() / np.logical_or(a, b).sum()
        assert item.terms == pytest.approx({"stages": slow[item.number]})
    worst = session.numbers(None, "all", "worst")
    assert worst == sorted(slow, key=lambda number: (-slow[number], number))
    assert [slow[n] for n in session.numbers(None, "all", "best")] == sorted(slow.values())
    assert session.numbers(None, "all", "list") == sorted(slow)
    cats = [item.number for item in session.items if item.name == "cat"]
    assert session.numbers("cat", "open", "list") == cats
    session.decide([session.items[cats[0]]], "reject")
    assert session.numbers("cat", "open", "list") == cats[1:]
    assert session.numbers("cat", "reject", "list") == cats[:1]


def test_terms_of_the_models_by_hand() -> None:
    init = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 0]]]).bool()
    refined = torch.tensor([[[0, 1, 1, 1]], [[0, 0, 0, 0]]]).bool()
    plus = {"init": init, "propagated": init, "refined": refined}
    assert disagreement.stage_term(plus) == [0.75, 0.0]  # two empty masks agree
    assert disagreement.stage_term({"init": init, "seeds": refined, "refined": init | refined}) == [0.75, 0.0]
    labels = torch.tensor([[0, 0, 5, 5, 0, 0, 2, 2]] * 2, dtype=torch.uint8)  # on a grid twice as fine
    assert disagreement.old_term(refined, labels) == pytest.approx([2 / 3, 0])
    assert disagreement.new_term(refined, labels, [5, 5]) == pytest.approx([2 / 3, 1.0])
    assert disagreement.mean({"stages": 0.5, "old model": 1.0}) == 0.75


def cut(session: Session, item: Any, threshold: float) -> np.ndarray:
    """The mask as the page cuts it."""
    height, width, values = session.levels(item)
    levels = np.frombuffer(values, np.uint8).reshape(height, width)
    if session.threshold()["kind"] == "percentile":
        return levels >= np.floor(2 * threshold) + 1
    return levels.astype(np.float32) / np.float32(255) > np.float32(threshold)


@pytest.mark.parametrize("exclusive", ["true", "false"])
def test_levels_cut_at_a_threshold_are_the_masks_that_training_sees(
    new_session: Callable[..., Session], exclusive: str
) -> None:
    session = new_session(f"cosegmentation.plus.exclusive={exclusive}")
    for value in (0.0, 0.2, 0.5, 0.62, 0.99):
        config = Threshold("cosegmentation.plus.threshold", value).applied(session.masks.config)
        masks = StoredPlusMasks(session.masks.store, config)
        for item in session.items:
            wanted = masks.masks(item.image_id, [item.name], 0)[0].numpy()
            assert (cut(session, item, value) == wanted).all()
    assert len({cut(session, session.items[0], value).sum() for value in (0.1, 0.5, 0.9)}) == 3


@pytest.mark.parametrize("binarize", ["percentile", "mass"])
@pytest.mark.parametrize("fusion", ["union", "intersection", "none"])
def test_levels_of_the_papers_masks_hold_for_every_k(
    new_session: Callable[..., Session], binarize: str, fusion: str
) -> None:
    session = new_session(*PAPER, f"cosegmentation.binarize={binarize}", f"cosegmentation.fusion={fusion}")
    assert session.threshold()["moves"] == (fusion != "none")
    places = wrong = 0
    sizes = set()
    for k in (0.5, 20.0, 50.0, 70.0, 80.5, 99.0):
        config = Threshold("cosegmentation.k", k).applied(session.masks.config)
        masks = StoredPseudoMasks(session.masks.store, config, session.seed)
        for item in session.items[:4]:
            wanted = masks.masks(item.image_id, [item.name], 0)[0].numpy()
            found = cut(session, item, k)
            places, wrong = places + wanted.size, wrong + int((found != wanted).sum())
            sizes.add(int(wanted.sum()))
    assert len(sizes) > 2
    # the percentile's place is computed in 32 bits: a value that lies on it may fall to either side
    assert wrong <= places / 5000


def test_decisions_are_written_at_once_and_can_be_undone(session: Session) -> None:
    first, second = session.items[:2]
    session.decide([first], "accept")
    session.decide([first, second], "reject")
    assert Review.read(session.path).decisions == {
        (first.image_id, first.name): "reject", (second.image_id, second.name): "reject"
    }  # fmt: skip
    session.keep_threshold(0.25)
    assert Review.read(session.path).thresholds == {1: Threshold("cosegmentation.plus.threshold", 0.25)}
    assert session.threshold()["kept"] == 0.25 and session.undoable == 2
    assert session.undo() == [first, second]
    assert Review.read(session.path).decisions == {(first.image_id, first.name): "accept"}
    assert session.undo() == [first] and session.undo() == []
    assert Review.read(session.path).decisions == {} and session.decision(first) is None
    session.keep_threshold(None)
    assert Review.read(session.path) == Review()
    with pytest.raises(UserError, match="must be from 0 to below 1"):
        session.keep_threshold(1.5)


def test_a_later_session_goes_on_with_what_is_decided(session: Session, new_session: Callable[..., Session]) -> None:
    session.decide([session.items[3]], "absent")
    again = new_session()
    assert again.numbers(None, "absent", "list") == [3]
    session.path.write_text(json.dumps({"image": "x", "class": "cat", "decision": "accept"}))
    with pytest.raises(UserError, match="photograph x, which train_aug does not list"):
        new_session()


def test_a_file_that_somebody_else_changed_is_not_overwritten(session: Session) -> None:
    session.decide([session.items[0]], "accept")
    session.path.write_text("mine\n")
    with pytest.raises(UserError, match="has been changed by another program"):
        session.decide([session.items[1]], "reject")
    assert session.path.read_text() == "mine\n"
    assert session.decision(session.items[1]) is None and session.undoable == 1


def test_a_decision_that_cannot_be_written_is_not_made(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Review, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Review, "write", full)
    with pytest.raises(OSError):
        session.decide([session.items[0]], "accept")
    assert session.decision(session.items[0]) is None and session.undoable == 0


def test_two_reviews_of_one_folder_are_refused(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(UserError, match="another fmwiss review is at work"), alone(tmp_path):
        pass


def test_thumbnails_are_jpegs_of_the_size_asked_for(session: Session) -> None:
    with Image.open(io.BytesIO(session.thumbnail(0, 300))) as picture:
        assert picture.format == "JPEG" and picture.size == session.size(0)[::-1]  # scenes are smaller
    assert session.thumbnail(0, 300) is session.thumbnail(0, 310)  # one picture for sizes alike


def test_figures_of_other_masks_are_made_anew_and_damaged_ones_too(
    session: Session, new_session: Callable[..., Session]
) -> None:
    figures = session.folder / "review-figures.json"
    kept = json.loads(figures.read_text())
    name = session.items[0].name
    kept["figures"][session.items[0].image_id][name]["stages"] = 0.123
    # what is kept for these very masks is believed
    figures.write_text(json.dumps(kept))
    assert session.items[0].disagreement != 0.123
    from fmwiss.review.session import _Figures

    def of(masks: Any) -> float:
        named = {item.image_id: [other.name for other in session.items_of(item.photograph)] for item in session.items}
        found = _Figures(figures, session.source, masks, session.seed, {}, torch.device("cpu")).of(named)
        return found[session.items[0].image_id][0]["stages"]

    assert of(session.masks) == 0.123
    config = Threshold("cosegmentation.plus.threshold", 0.25).applied(session.masks.config)
    assert of(StoredPlusMasks(session.masks.store, config)) != 0.123
    figures.write_text("{")
    assert of(session.masks) == pytest.approx(session.items[0].terms["stages"])


def test_a_photograph_is_as_large_as_its_source_says(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which turns it as its EXIF orientation says."""
    monkeypatch.setattr(type(session.source), "image_size", lambda source, image_id: (7, 5))
    session._sizes.clear()
    assert session.size(0) == (7, 5)
