import importlib.util
import json
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest
import timm.data

from fmwiss.data.voc import VOC_CLASSES
from fmwiss.errors import UserError
from fmwiss.foundation import synsets
from fmwiss.foundation.synsets import VOC_SYNSETS, ancestors, class_synsets, find_synsets, hypernym_table, words_of

ROOT = Path(__file__).parents[2]
WORDNET = Path("/usr/share/wordnet/data.noun")


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools" / "write_imagenet_hypernyms.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_classes_are_in_the_order_of_a_classifier() -> None:
    assert len(class_synsets()) == 1000
    assert list(class_synsets()) == sorted(class_synsets())  # ImageNet-1k numbers its classes in this order
    assert words_of(class_synsets()[0]).startswith("tench")
    assert words_of(class_synsets()[999]).startswith("toilet tissue")


def test_the_words_agree_with_another_list_of_the_classes() -> None:
    described = timm.data.ImageNetInfo("imagenet-1k").label_descriptions()
    same = sum(words_of(ours) == theirs for ours, theirs in zip(class_synsets(), described, strict=True))
    assert same >= 990  # a handful differ in spelling


def test_every_chain_ends_at_entity() -> None:
    for synset in class_synsets():
        assert "n00001740" in ancestors(synset)


@pytest.mark.parametrize(
    ("name", "count"), [("dog", 118), ("bird", 59), ("bottle", 7), ("boat", 6), ("chair", 4), ("bus", 3), ("zebra", 1)]
)
def test_a_name_stands_for_the_classes_below_it(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synsets, "VOC_SYNSETS", {})
    found = find_synsets(name)
    assert len(found) == count
    for synset in class_synsets():
        words = {word.lower() for ancestor in ancestors(synset) for word in hypernym_table()[ancestor][0]}
        assert (synset in found) == (name in words)


def test_all_names_of_voc_have_classes_by_hand() -> None:
    assert set(VOC_SYNSETS) == set(VOC_CLASSES)
    for name in VOC_CLASSES:
        assert 1 <= len(find_synsets(name)) <= 118


def test_the_nearest_relative_stands_in() -> None:
    assert [words_of(synset) for synset in find_synsets("cow")] == ["ox"]


@pytest.mark.parametrize("spelling", ["tvmonitor", "TV_monitor", "tv-monitor"])
def test_spelling_does_not_matter(spelling: str) -> None:
    assert find_synsets(spelling) == find_synsets("tv monitor")


def test_overrides_replace_what_is_found() -> None:
    assert find_synsets("cow", {"cow": ["n02391049"]}) == ("n02391049",)
    assert find_synsets("dining table", {"diningtable": ["n02084071"]}) == find_synsets("dog")
    assert find_synsets("dog", {"cow": ["n02391049"]}) == find_synsets("dog")
    assert find_synsets("gizmo", {"gizmo": ["n02391049", "n02391049"]}) == ("n02391049",)


def test_unknown_names_and_ids_are_errors() -> None:
    with pytest.raises(UserError, match=r"no ImageNet class stands for 'keyboord'.*nearest known words: keyboard"):
        find_synsets("keyboord")
    with pytest.raises(UserError, match=r"'n99999999', given for 'cow'"):
        find_synsets("cow", {"cow": ["n99999999"]})
    with pytest.raises(UserError, match="no synset is given for 'cow'"):
        find_synsets("cow", {"cow": []})


def test_wordnets_licence_is_beside_the_table() -> None:
    text = files("fmwiss.foundation").joinpath("imagenet_hypernyms.LICENSE").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text


def test_the_tool_reads_wordnets_format(tool: ModuleType, tmp_path: Path) -> None:
    data = tmp_path / "data.noun"
    data.write_text(
        "  1 This software and database is being provided to you  \n"
        "  2    indented  \n"
        "00000001 03 n 01 thing 0 001 ~ 00000002 n 0000 | the root  \n"
        "00000002 05 n 02 domestic_dog 0 Canis_familiaris 1 002 @ 00000001 n 0000 ~ 00000003 n 0000 | barks | loud\n"
        "00000003 05 n 01 Fido 0 001 @i 00000002 n 0000 | one dog\n"
        "00000004 05 n 01 cat 0 001 @ 00000001 n 0000 | no dog\n"
    )
    nouns = tool.read_nouns(data)
    assert nouns["n00000002"] == (["domestic dog", "Canis familiaris"], ["n00000001"])
    assert list(tool.with_ancestors(nouns, ["n00000003"])) == ["n00000001", "n00000002", "n00000003"]
    assert tool.read_licence(data) == "This software and database is being provided to you\nindented\n"


@pytest.mark.skipif(not WORDNET.is_file(), reason="WordNet is not installed (Debian: apt-get install wordnet-base)")
def test_the_table_is_what_the_tool_writes(tool: ModuleType) -> None:
    fresh = tool.with_ancestors(tool.read_nouns(WORDNET), list(class_synsets()))
    assert json.loads(json.dumps(fresh)) == json.loads(json.dumps(hypernym_table()))
