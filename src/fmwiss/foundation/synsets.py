"""Which of the 1,000 ImageNet classes a name stands for, by WordNet.

``imagenet_hypernyms.json`` holds the classes' synsets and all their ancestors; ``tools/write_imagenet_hypernyms.py``
writes it, and WordNet's licence is beside it. The names of VOC come from a short table written from the names alone,
before any mask was scored; every other name stands for the classes that have it among their own or their ancestors'
words.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

from timm.data import ImageNetInfo

from fmwiss.errors import UserError
from fmwiss.names import joined

# A synset stands for every ImageNet class at or below it. Where ImageNet has no such class, the nearest relative.
VOC_SYNSETS: Mapping[str, tuple[str, ...]] = {
    "aeroplane": ("n02690373", "n04552348"),  # airliner, warplane
    "bicycle": ("n02834778",),  # bicycle: tandem, mountain bike
    "bird": ("n01503061",),
    "boat": ("n04530566",),  # vessel: boats, and what a layman calls so: ships, yachts, catamarans
    "bottle": ("n02876657",),
    "bus": ("n02924116",),
    "car": ("n02958343",),
    "cat": ("n02121808",),  # domestic cat
    "chair": ("n03001627",),
    "cow": ("n02403003",),  # ox, the nearest relative
    "dining table": ("n03201208",),
    "dog": ("n02084071",),
    "horse": ("n02374451",),
    "motorbike": ("n03790512", "n03791053"),  # motorcycle: moped; motor scooter
    "person": ("n00007846", "n03419014"),  # three kinds of person, and garments, which are photographed on people
    "potted plant": ("n03991062",),  # flowerpot
    "sheep": ("n02411705", "n02415577"),  # sheep: ram; bighorn
    "sofa": ("n04256520",),  # sofa: studio couch
    "train": ("n04468005", "n03684823", "n02959942"),  # train, locomotive, railcar
    "tv monitor": ("n04404412", "n03782006", "n04152593"),  # television, monitor, screen
}

Table = dict[str, tuple[list[str], list[str]]]


@cache
def class_synsets() -> tuple[str, ...]:
    """The synset ids of the 1,000 ImageNet-1k classes, in the order of a classifier's outputs."""
    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def hypernym_table() -> Table:
    """Synset id -> (words, ids of the direct hypernyms), of the 1,000 classes and all their ancestors."""
    text = files(__package__).joinpath("imagenet_hypernyms.json").read_text(encoding="utf-8")
    return {synset: (words, hypernyms) for synset, (words, hypernyms) in json.loads(text).items()}


def table_digest() -> str:
    """SHA-256 of all that decides which classes a name stands for, overrides apart."""
    text = json.dumps([hypernym_table(), class_synsets(), VOC_SYNSETS])
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def ancestors(synset: str) -> frozenset[str]:
    """The synset and everything above it."""
    return frozenset((synset,)).union(*(ancestors(hypernym) for hypernym in hypernym_table()[synset][1]))


def words_of(synset: str) -> str:
    """WordNet's words of a synset: ``"studio couch, day bed"``."""
    return ", ".join(hypernym_table()[synset][0])


def find_synsets(name: str, overrides: Mapping[str, Sequence[str]] | None = None) -> tuple[str, ...]:
    """The ImageNet classes, as synset ids in the classifier's order, that a name stands for.

    Args:
        name: a class name; case, spaces, hyphens and underscores do not matter.
        overrides: name -> synset ids in place of what would be found.

    Raises:
        UserError: no class found, or an override's id not in the table or of no class.
    """
    wanted = joined(name)
    for table in (overrides or {}, VOC_SYNSETS):
        for key, synsets in table.items():
            if joined(key) == wanted:
                return _below(name, synsets)
    senses = senses_of(name)
    if not senses:
        vocabulary = {joined(word): word for words, _ in hypernym_table().values() for word in words}
        near = ", ".join(vocabulary[word] for word in difflib.get_close_matches(wanted, vocabulary, n=3))
        raise UserError(
            f"no ImageNet class stands for {name!r}; list synset ids for it under cosegmentation.vision_language.rows"
            + (f" (nearest known words: {near})" if near else "")
        )
    return _below(name, senses)


def senses_of(name: str) -> list[str]:
    """The synsets, of the 1,000 classes and their ancestors, that have a name among their words."""
    wanted = joined(name)
    return [synset for synset, (words, _) in hypernym_table().items() if wanted in map(joined, words)]


def _below(name: str, synsets: Sequence[str]) -> tuple[str, ...]:
    for synset in synsets:
        if synset not in hypernym_table():
            raise UserError(
                f"{synset!r}, given for {name!r}, is neither one of the 1,000 ImageNet classes nor above one; "
                "a synset id looks like n02084071"
            )
    wanted = set(synsets)
    found = tuple(synset for synset in class_synsets() if wanted & ancestors(synset))
    if not found:
        raise UserError(f"no synset is given for {name!r}; name at least one, such as n02084071")
    return found
