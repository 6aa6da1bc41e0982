import json
from pathlib import Path

import pytest
import torch

from fmwiss.config import ProtocolConfig
from fmwiss.data.protocols import Protocol
from fmwiss.data.voc import VOC_CLASSES
from fmwiss.errors import UserError

TAGS = {
    "old": {"aeroplane"},
    "new": {"sheep"},
    "both": {"sheep", "aeroplane"},
    "later": {"sofa"},
    "old and later": {"aeroplane", "sofa"},
    "new and later": {"sheep", "sofa"},
    "other": {"cow"},
    "none": set(),
}


def three_steps(setting: str) -> Protocol:
    config = ProtocolConfig.model_validate({"steps": [["aeroplane", "boat"], ["sheep"], ["Sofa"]], "setting": setting})
    return Protocol.from_config(config)


@pytest.mark.parametrize("split", ["15-5", "10-10"])
@pytest.mark.parametrize("setting", ["disjoint", "overlap"])
@pytest.mark.parametrize("step", [0, 1])
def test_published_lists_id_by_id(shared_dir: Path, split: str, setting: str, step: int):
    folder = shared_dir / "protocols/voc"
    ids = (folder / "train_aug.txt").read_text().split()
    labels = json.loads((folder / "image_labels.json").read_text())
    tags = {image_id: {VOC_CLASSES[label - 1] for label in labels[image_id]} for image_id in ids}
    protocol = Protocol.from_config(ProtocolConfig.model_validate({"steps": split, "setting": setting}))
    published = (folder / f"{split}-{setting}-step{step}.txt").read_text().split()
    assert protocol.select(step, tags, ids) == published


def test_photographs_without_a_class_of_the_step():
    overlap, disjoint = three_steps("overlap"), three_steps("disjoint")
    for t in range(3):
        left = overlap.select_without(t, TAGS, TAGS)
        assert set(left).isdisjoint(overlap.select(t, TAGS, TAGS)) and len(left) == len(TAGS) - len(
            overlap.select(t, TAGS, TAGS)
        )
        shown = {name for step in disjoint.steps[t:] for name in step}
        assert disjoint.select_without(t, TAGS, TAGS) == [image_id for image_id in TAGS if not TAGS[image_id] & shown]
    assert overlap.select_without(1, TAGS, TAGS)[:1] == ["old"]


def test_overlap_takes_every_photograph_with_a_class_of_the_step():
    protocol = three_steps("overlap")
    assert protocol.select(0, TAGS, TAGS) == ["old", "both", "old and later"]
    assert protocol.select(1, TAGS, TAGS) == ["new", "both", "new and later"]
    assert protocol.select(2, TAGS, TAGS) == ["later", "old and later", "new and later"]


def test_disjoint_leaves_out_photographs_with_a_later_class():
    protocol = three_steps("disjoint")
    assert protocol.select(0, TAGS, TAGS) == ["old"]
    assert protocol.select(1, TAGS, TAGS) == ["new", "both"]
    assert protocol.select(2, TAGS, TAGS) == ["later", "old and later", "new and later"]


def test_order_of_ids_is_kept():
    assert three_steps("overlap").select(1, TAGS, ["new and later", "none", "both", "new"]) == [
        "new and later",
        "both",
        "new",
    ]


def test_old_new_and_seen():
    protocol = three_steps("overlap")
    assert [protocol.old(t) for t in range(3)] == [(), ("aeroplane", "boat"), ("aeroplane", "boat", "sheep")]
    assert [protocol.new(t) for t in range(3)] == [("aeroplane", "boat"), ("sheep",), ("sofa",)]
    assert protocol.seen(2) == ("aeroplane", "boat", "sheep", "sofa")
    for t in (-1, 3):
        with pytest.raises(UserError, match=f"no step {t}; the protocol has the steps 0 to 2"):
            protocol.new(t)


def test_named_splits():
    protocol = Protocol.from_config(ProtocolConfig(steps="15-5"))
    assert protocol.new(1) == ("potted plant", "sheep", "sofa", "train", "tv monitor")
    assert protocol.seen(1) == VOC_CLASSES
    assert Protocol.from_config(ProtocolConfig(steps="10-10")).new(1)[0] == "dining table"


def test_label_table_by_hand():
    protocol = Protocol((("sheep", "aeroplane"), ("sofa",)))
    # VOC's ids: aeroplane 1, sheep 17, sofa 18.
    mask = torch.tensor([[0, 1, 17], [18, 15, 255]])
    assert protocol.label_table(0, VOC_CLASSES)[mask].tolist() == [[0, 2, 1], [0, 0, 255]]
    assert protocol.label_table(1, VOC_CLASSES)[mask].tolist() == [[0, 2, 1], [3, 0, 255]]
    table = protocol.label_table(0, VOC_CLASSES)
    assert table.dtype == torch.uint8 and table.shape == (256,)
    assert protocol.label_table(1, ("sofa", "aeroplane", "sheep"))[:5].tolist() == [0, 3, 2, 1, 0]


def test_label_table_of_15_5_keeps_vocs_ids():
    protocol = Protocol.from_config(ProtocolConfig(steps="15-5"))
    assert protocol.label_table(1, VOC_CLASSES)[:21].tolist() == list(range(21))
    assert protocol.label_table(0, VOC_CLASSES)[:21].tolist() == [*range(16), 0, 0, 0, 0, 0]


def test_a_data_set_without_the_class_is_refused():
    with pytest.raises(UserError, match="no class 'sheep', which step 1"):
        three_steps("overlap").label_table(1, ("aeroplane", "boat"))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("15-6", "'15-6' is no named split; give one of 15-5, 10-10"),
        ([], "protocol.steps is empty"),
        ([["cow"], []], "step 1 of protocol.steps has no class"),
        ([["cow"], ["sheep", "cow"]], "'cow' is named twice"),
        ([["tvmonitor"], ["tv monitor"]], "'tv monitor' is named twice"),
        ([["cows"]], r"unknown class 'cows'; the nearest known name is 'cow' \(in protocol.steps\)"),
        ([["background"]], "unknown class 'background'"),
    ],
)
def test_wrong_protocols(steps: str | list[list[str]], message: str):
    with pytest.raises(UserError, match=message):
        Protocol.from_config(ProtocolConfig(steps=steps))


def test_a_named_split_needs_twenty_classes():
    with pytest.raises(UserError, match="splits 20 classes, and the data set has 3"):
        Protocol.from_config(ProtocolConfig(steps="15-5"), ("cat", "dog", "owl"))


@pytest.mark.parametrize("setting", ["overlap", "disjoint"])
def test_a_step_that_learns_from_masks_sees_those_of_its_own_classes(setting: str) -> None:
    """Old and future classes are background, void stays, and the labels are the model's."""
    protocol = Protocol((("dog", "cat"), ("sheep",), ("sofa", "boat")), setting)  # type: ignore[arg-type]
    place = {name: VOC_CLASSES.index(name) + 1 for name in VOC_CLASSES}
    for t, expected in enumerate(({"dog": 1, "cat": 2}, {"sheep": 3}, {"sofa": 4, "boat": 5})):
        table = protocol.step_table(t, VOC_CLASSES)
        assert table.dtype == torch.uint8 and int(table[255]) == 255 and int(table[0]) == 0
        assert {name: int(table[label]) for name, label in place.items() if table[label]} == expected
    assert protocol.step_table(0, VOC_CLASSES).equal(protocol.label_table(0, VOC_CLASSES))


def test_a_joint_training_sees_the_photographs_of_all_steps() -> None:
    tags = {"a": {"dog"}, "b": {"sheep"}, "c": {"dog", "sofa"}, "d": {"person"}, "e": {"sofa"}}
    for setting, until_1, until_2 in (("overlap", "abc", "abce"), ("disjoint", "ab", "abce")):
        protocol = Protocol((("dog",), ("sheep",), ("sofa",)), setting)  # type: ignore[arg-type]
        assert protocol.select_seen(1, tags, tags) == list(until_1)
        assert protocol.select_seen(2, tags, tags) == list(until_2)
