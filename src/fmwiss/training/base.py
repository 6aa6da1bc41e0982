"""What step 0 depends on: which runs can share a base model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fmwiss.config import Config, first_difference, leaves
from fmwiss.data.protocols import Protocol

_KEYS = (
    "protocol.setting",
    *(f"data.{key}" for key in ("source", "train_split", "tags", "crop_size", "resize", "crop", "scale", "flip")),
    "segmenter.",
    "training.step0.",
    "training.seed",
    "training.gradient_clip",
    "training.sync_batch_norm",
)
"""Keys, or beginnings of keys, that step 0's model depends on, beside its classes."""

_ADDED = {
    "data.crop": "window",
    "training.step0.loss": "bce",
    "training.step0.accumulate": 1,
    "training.step0.nesterov": False,
    "training.step0.constant_epochs": 0,
    "training.sync_batch_norm": "auto",
}
"""Keys that earlier versions did not have, with the value at which a base is the one that those trained."""


def base_difference(theirs: Config, ours: Config, known: Sequence[str]) -> tuple[str, str, str] | None:
    """The first key in which two base models differ, and both values; None if one can stand for the other.

    The memory that lies beside the model is not part of it.

    Args:
        theirs: configuration of one run.
        ours: configuration of the other.
        known: the data set's class names.
    """
    difference = first_difference(theirs, ours, _counts)
    if difference is None and _classes(theirs, known) != _classes(ours, known):
        return "protocol.steps", str(theirs.protocol.steps), str(ours.protocol.steps)
    return difference


def base_settings(config: Config, known: Sequence[str]) -> dict[str, Any]:
    """What step 0's model depends on, by key, JSON-able; equal exactly where :func:`base_difference` finds none.

    A key that earlier versions did not have is left out at the value that they stood for: bases of those are found.
    """
    values = dict(leaves(config.model_dump(mode="json")))
    settings = {key: value for key, value in values.items() if _counts(key) and _ADDED.get(key, ...) != value}
    learnt, unseen = _classes(config, known)
    return {**settings, "protocol.steps": [list(learnt), sorted(unseen)]}


def _counts(key: str) -> bool:
    return key.startswith(_KEYS) and key != "segmenter.classifier_init"


def _classes(config: Config, known: Sequence[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """What decides on the photographs of step 0: its classes and, if disjoint, those that they may not show."""
    protocol = Protocol.from_config(config.protocol, known)
    later = frozenset().union(*protocol.steps[1:]) if config.protocol.setting == "disjoint" else frozenset()
    return protocol.new(0), later
