"""Which review a step learns with, and that a step goes on with the one that it was begun with."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fmwiss.config import Config, PlusConfig
from fmwiss.data.protocols import Protocol
from fmwiss.data.review import REVIEW, Decision, Review, Threshold
from fmwiss.data.tags import TagIndex
from fmwiss.data.voc import VOCSource
from fmwiss.errors import UserError
from fmwiss.training.reviews import StepReviews
from fmwiss.training.run import _Run, train

PLUS = "cosegmentation.plus.threshold"


class World:
    """A run's folder, its photographs and their tags."""

    def __init__(self, run: Path, data: Path, experiment: dict[str, Any]) -> None:
        self.run = run
        self.config = Config.model_validate({**experiment, "cosegmentation": {"name": "fmwiss-plus"}})
        self.source = VOCSource(data)
        self.protocol = Protocol.from_config(self.config.protocol, self.source.class_names)
        ids = self.source.ids("train_aug")
        self.tags = TagIndex.load_or_build(self.source, ids, "masks", run / "tags.json")
        self.ids = self.protocol.select(1, self.tags, ids)

    def reviews(self, given: Path | None = None) -> StepReviews:
        return StepReviews(self.run, given, self.config, self.protocol, self.source)

    def write(self, name: str, decisions: dict[int, Decision], threshold: float | None = None) -> Path:
        """A review of the photographs with these numbers, every new tag of them."""
        review = Review({(self.ids[i], name): said for i, said in decisions.items() for name in self.new(i)})
        if threshold is not None:
            review.thresholds[1] = Threshold(PLUS, threshold)
        review.write(self.run / name)
        return self.run / name

    def new(self, number: int) -> frozenset[str]:
        return self.tags[self.ids[number]] & {"sheep", "sofa"}

    def learnt(self, reviews: StepReviews, begun: bool = False) -> tuple[list[str], TagIndex, float, list[str]]:
        told: list[str] = []
        reviews.check({1: begun})
        reviews.begin(1, begun)
        ids, tags = reviews.apply(1, self.ids, self.tags, lambda text, file: told.append(text))
        return ids, tags, reviews.cosegmentation().plus.threshold, told


@pytest.fixture
def world(tmp_path: Path, tiny_voc: Path, experiment: dict[str, Any]) -> World:
    return World(tmp_path, tiny_voc, experiment)


def test_without_a_review_everything_stays_as_it_is(world: World) -> None:
    ids, tags, threshold, told = world.learnt(world.reviews())
    assert ids == world.ids and tags is world.tags and threshold == PlusConfig().threshold and told == []
    assert not (world.run / "step1" / REVIEW).exists()
    assert world.reviews().summary(1) == {}


def test_a_step_not_begun_takes_the_runs_own_review_or_the_one_given(world: World) -> None:
    world.write(REVIEW, {0: "reject", 1: "absent", 2: "accept"}, 0.25)
    reviews = world.reviews()
    ids, tags, threshold, told = world.learnt(reviews)
    assert ids == world.ids[2:] and list(tags) == ids and threshold == 0.25
    assert tags[ids[0]] == world.tags[ids[0]]  # those of other steps are left as well
    assert len(told) == 1 and "leaves out 1 photograph, drops" in told[0] and f"sets {PLUS} = 0.25" in told[0]
    assert reviews.summary(1)["review"] == {
        "left_out": 1, "dropped_tags": len(world.new(1)), "emptied": 1, PLUS: 0.25
    }  # fmt: skip
    other = world.write("other.jsonl", {3: "reject"})
    ids, _, threshold, _ = world.learnt(world.reviews(other))
    assert ids == [*world.ids[:3], *world.ids[4:]] and threshold == PlusConfig().threshold


def test_a_step_goes_on_with_the_review_that_it_was_begun_with(world: World) -> None:
    world.write(REVIEW, {0: "reject"}, 0.25)
    world.learnt(world.reviews())
    world.write(REVIEW, {1: "reject"})  # somebody has decided otherwise since
    ids, _, threshold, told = world.learnt(world.reviews(), begun=True)
    assert ids == world.ids[1:] and threshold == 0.25 and "says since does not count" in told[0]
    (world.run / REVIEW).unlink()
    assert world.learnt(world.reviews(), begun=True)[0] == world.ids[1:]
    same = world.write("same.jsonl", {0: "reject", 2: "accept"}, 0.25)
    assert world.learnt(world.reviews(same), begun=True)[0] == world.ids[1:]


def test_a_step_begun_without_a_review_stays_without(world: World) -> None:
    world.learnt(world.reviews())
    world.write(REVIEW, {1: "reject"})
    assert world.learnt(world.reviews(), begun=True)[0] == world.ids


def test_another_review_for_a_step_under_way_is_refused(world: World) -> None:
    given = world.write("given.jsonl", {0: "reject"})
    with pytest.raises(UserError, match="step 1 was begun without a review; go on without --review"):
        world.reviews(given).check({1: True})
    world.learnt(world.reviews(given))
    for changed in (world.write("one.jsonl", {0: "absent"}), world.write("two.jsonl", {0: "reject"}, 0.3)):
        with pytest.raises(UserError, match=r"step 1 was begun with another review than .*(one|two)\.jsonl"):
            world.reviews(changed).check({1: True})
    world.reviews(given).check({1: True})
    world.reviews(changed).check({1: False})  # a step whose first checkpoint was not reached begins anew


def test_a_review_that_was_removed_is_forgotten_by_a_step_not_begun(world: World) -> None:
    world.write(REVIEW, {0: "reject"})
    world.learnt(world.reviews())
    (world.run / REVIEW).unlink()
    assert world.learnt(world.reviews())[0] == world.ids
    assert not (world.run / "step1" / REVIEW).exists()


def test_what_is_wrong_is_found_before_anything_is_trained(world: World) -> None:
    (world.run / REVIEW).write_text("{\n")
    with pytest.raises(UserError, match="line 1: is no JSON"):
        world.reviews().check({1: False})
    (world.run / REVIEW).write_text(json.dumps({"image": "x", "class": "sheep", "decision": "reject"}))
    with pytest.raises(UserError, match="photograph x, which train_aug does not list"):
        world.reviews().check({1: False})
    Review({}, {1: Threshold("cosegmentation.k", 50.0)}).write(world.run / REVIEW)
    with pytest.raises(UserError, match=f"whose masks are cut by {PLUS}"):
        world.reviews().check({1: False})
    world.write(REVIEW, dict.fromkeys(range(len(world.ids)), "reject"))
    with pytest.raises(UserError, match="leaves none of the"):
        world.learnt(world.reviews())


@pytest.mark.parametrize("negatives", [0, 0.5])
def test_what_a_review_says_is_not_there_is_a_negative(
    negatives: float,
    tmp_path: Path,
    tiny_voc: Path,
    experiment: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The photograph stays, without the tag, where a step takes photographs in that lack its classes."""
    world = World(tmp_path / "scratch", tiny_voc, experiment)
    (tmp_path / "run").mkdir()
    Review({(world.ids[1], name): "absent" for name in world.new(1)}).write(tmp_path / "run" / REVIEW)
    told = copy.deepcopy(experiment)
    told["data"] |= {"negatives": negatives, "fraction": 1}
    seen: dict[str, frozenset[str]] = {}
    dataset = _Run._dataset

    def watched(self: _Run, t: int, method: Any, ids: list[str], tags: dict[str, frozenset[str]]) -> Any:
        if t == 1:
            seen.update({i: tags[i] for i in ids})
        return dataset(self, t, method, ids, tags)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "_dataset", watched)
        train(Config.model_validate(told), tiny_voc, None, tmp_path / "run", devices=1)
    said = capfd.readouterr().err
    assert "are learnt from" in said and (", and 1 as negatives." in said) is (negatives > 0)
    without = [image_id for image_id, names in seen.items() if not names]
    assert [i for i in seen if seen[i]] == [i for i in world.ids if i != world.ids[1]]
    if negatives == 0:
        assert without == []
    else:
        assert without[0] == world.ids[1] and len(set(without)) == len(without)
        assert len(without) == 1 + round(negatives * len(world.ids)) > 1


def test_a_reviewed_run_is_the_one_that_better_tags_would_have_given(
    tmp_path: Path, tiny_voc: Path, experiment: dict[str, Any]
) -> None:
    """Its weights are those of a run whose table of tags never had what the review leaves out and drops."""
    world = World(tmp_path / "scratch", tiny_voc, experiment)
    (tmp_path / "reviewed").mkdir()
    decided = Review({(world.ids[0], name): "reject" for name in world.new(0)})
    decided.decisions |= {(world.ids[1], name): "absent" for name in world.new(1)}
    decided.write(tmp_path / "reviewed" / REVIEW)
    config = Config.model_validate(experiment)
    train(config, tiny_voc, None, tmp_path / "reviewed", devices=1)
    figures = json.loads((tmp_path / "reviewed/step1/evaluation.json").read_text())
    assert figures["training_images"] == len(world.ids) - 2
    assert figures["review"] == {"left_out": 1, "dropped_tags": len(world.new(1)), "emptied": 1}
    assert Review.read(tmp_path / "reviewed/step1" / REVIEW) == decided

    names = {i: sorted(world.tags[i] - (world.new(n) if n < 2 else set())) for n, i in enumerate(world.ids)}
    rows = [f"{i},{';'.join(names.get(i, sorted(world.tags[i])))}" for i in world.source.ids("train_aug")]
    (tmp_path / "tags.csv").write_text("\n".join(["file,tags", *rows]))
    told = copy.deepcopy(experiment)
    told["data"]["tags"] = str(tmp_path / "tags.csv")
    train(Config.model_validate(told), tiny_voc, None, tmp_path / "by hand", devices=1)
    reviewed, by_hand = (load_file(tmp_path / run / "step1/model.safetensors") for run in ("reviewed", "by hand"))
    assert reviewed.keys() == by_hand.keys()
    assert all(tensor.equal(by_hand[name]) for name, tensor in reviewed.items())
