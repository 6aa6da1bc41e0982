"""Reviews of pseudo masks: the file, and what it does to a step's photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fmwiss.config import CosegmentationConfig, PlusConfig
from fmwiss.data.review import Review, Threshold
from fmwiss.errors import UserError


def line(**values: Any) -> str:
    return json.dumps(values)


def said(image: str, name: str, decision: str) -> str:
    return line(image=image, **{"class": name}, decision=decision)


def written(folder: Path, *lines: str) -> Path:
    path = folder / "review.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_last_line_about_a_mask_counts_and_the_file_is_read_back(tmp_path: Path) -> None:
    lines = [
        said("a", "sheep", "reject"),
        said("b", "sofa", "accept"),
        line(step=1, key="cosegmentation.k", value=70),
        "",
        said("a", "sheep", "absent"),
        line(step=1, key="cosegmentation.plus.threshold", value=0.25),
        said("ü\u2028x", "sheep", "accept"),
    ]
    review = Review.read(written(tmp_path, *lines))
    assert review.decisions == {
        ("b", "sofa"): "accept", ("a", "sheep"): "absent", ("ü\u2028x", "sheep"): "accept"
    }  # fmt: skip
    assert review.thresholds == {1: Threshold("cosegmentation.plus.threshold", 0.25)}
    review.write(tmp_path / "again.jsonl")
    again = Review.read(tmp_path / "again.jsonl")
    assert again == review and list(again.decisions) == list(review.decisions)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_decision_can_be_taken_back() -> None:
    review = Review()
    assert review.decide("a", "sheep", "reject") is None
    assert review.decide("a", "sheep", "accept") == "reject"
    assert review.decide("a", "sheep", None) == "accept"
    assert review.decisions == {}


def test_rejected_photographs_are_left_out_and_wrong_tags_dropped() -> None:
    tags = {
        "good": {"sheep"}, "accepted": {"sheep", "sofa"}, "rejected": {"sofa", "sheep"}, "half": {"sheep", "sofa"},
        "none": {"sofa"}, "both": {"sheep", "sofa"},
    }  # fmt: skip
    review = Review(
        {
            ("accepted", "sheep"): "accept",
            ("rejected", "sheep"): "reject",
            ("half", "sheep"): "absent",
            ("none", "sofa"): "absent",
            ("none", "sheep"): "reject",  # of a tag that it does not have
            ("both", "sheep"): "absent",
            ("both", "sofa"): "absent",
        }
    )
    applied = review.apply(list(tags), tags)
    assert applied.ids == ["good", "accepted", "half"]
    assert applied.tags == {"good": {"sheep"}, "accepted": {"sheep", "sofa"}, "half": {"sofa"}}
    assert (applied.left_out, applied.dropped, applied.emptied) == (1, 4, ["none", "both"])
    assert review.of_step(1, {"sofa"}).apply(list(tags), tags).ids == ["good", "accepted", "rejected", "half", "both"]


def test_only_what_training_can_tell_apart_is_another_review() -> None:
    review = Review({("a", "sheep"): "accept", ("b", "sheep"): "reject"})
    assert review.same_effect(Review({("b", "sheep"): "reject"}))
    assert not review.same_effect(Review({("b", "sheep"): "absent"}))
    assert not review.same_effect(Review(dict(review.decisions), {1: Threshold("cosegmentation.k", 60.0)}))


def test_a_threshold_is_put_where_the_masks_are_cut() -> None:
    paper, plus = CosegmentationConfig(), CosegmentationConfig(name="fmwiss-plus")
    assert Threshold.of(paper) == Threshold("cosegmentation.k", 70.0)
    assert Threshold.of(plus) == Threshold("cosegmentation.plus.threshold", PlusConfig().threshold)
    assert Threshold("cosegmentation.k", 42.5).applied(paper) == paper.model_copy(update={"k": 42.5})
    assert Threshold("cosegmentation.plus.threshold", 0.0).applied(plus).plus.threshold == 0.0
    for options, threshold, sentence in (
        (plus, Threshold("cosegmentation.k", 42.5), "cut by cosegmentation.plus.threshold"),
        (paper, Threshold("cosegmentation.k", 100.0), "must be between 0 and 100"),
        (plus, Threshold("cosegmentation.plus.threshold", 1.0), "must be from 0 to below 1"),
    ):
        with pytest.raises(UserError, match=sentence):
            threshold.applied(options)


WRONG = {
    "text": ("image,class", "line 2: is no JSON"),
    "half a line": ('{"image": "a", "cl', "line 2: is no JSON"),
    "a list": ("[1, 2]", "line 2: must have the keys"),
    "a number": ("7", "line 2: must have the keys"),
    "a key too few": (line(image="a", decision="accept"), "line 2: must have the keys"),
    "a key too many": (line(image="a", **{"class": "b"}, decision="accept", by="me"), "line 2: must have the keys"),
    "another decision": (said("a", "sheep", "maybe"), 'decision is "maybe" but must be one of accept, reject, absent'),
    "no decision": (line(image="a", **{"class": "b"}, decision=None), "decision is null"),
    "a list of decisions": (line(image="a", **{"class": "b"}, decision=["accept"]), "decision is"),
    "a number for a photograph": (line(image=7, **{"class": "b"}, decision="accept"), "must be strings"),
    "step 0": (line(step=0, key="cosegmentation.k", value=50), "step is 0 but must be an integer from 1"),
    "a step in words": (line(step="1", key="cosegmentation.k", value=50), 'step is "1"'),
    "another key": (line(step=1, key="method.alpha", value=0.5), 'key is "method.alpha" but must be one of'),
    "a list of keys": (line(step=1, key=["cosegmentation.k"], value=0.5), "key is"),
    "no number": (line(step=1, key="cosegmentation.k", value="half"), 'value is "half" but must be a number'),
    "no number at all": ('{"step": 1, "key": "cosegmentation.k", "value": NaN}', "value is NaN"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_malformed_line_is_told_with_its_number(name: str, tmp_path: Path) -> None:
    text, sentence = WRONG[name]
    path = written(tmp_path, said("a", "sheep", "accept"), text)
    with pytest.raises(UserError) as caught:
        Review.read(path)
    assert sentence in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no review"):
        Review.read(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        Review.read(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(said("x", "y", "accept").replace("x", "ä").encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        Review.read(tmp_path / "latin.jsonl")


@pytest.mark.parametrize(
    ("image", "name", "sentence"),
    [
        ("c", "sheep", "photograph c, which train does not list"),
        ("a", "shepe", "the nearest known name is 'sheep'"),
        ("a", "TV-Monitor", "must be spelt tv monitor"),
    ],
)
def test_unknown_photographs_and_classes_are_told(image: str, name: str, sentence: str) -> None:
    review = Review({("a", "sheep"): "reject", (image, name): "accept"})
    with pytest.raises(UserError, match=sentence):
        review.check(Path("review.jsonl"), ["a", "b"], "train", ["sheep", "tv monitor"])
