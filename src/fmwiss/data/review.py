"""What people decided about pseudo masks: JSON lines that ``fmwiss review`` writes and the next ``train`` uses.

Every line is a decision about one class of one photograph, or the threshold that a step's masks are to be cut at::

    {"image": "2008_000123", "class": "sheep", "decision": "reject"}
    {"step": 1, "key": "cosegmentation.plus.threshold", "value": 0.62}

Of several lines about the same thing the last one counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from fmwiss.config import CosegmentationConfig
from fmwiss.data.voc import canonical_class_name
from fmwiss.errors import UserError
from fmwiss.files import write_atomically

REVIEW = "review.jsonl"
"""Name of the file in a run's folder, and in that of a step which was begun with it."""

Decision = Literal["accept", "reject", "absent"]
"""The mask is good; it is bad, and the photograph is left out; the class is not there, and its tag is dropped."""
DECISIONS: tuple[Decision, ...] = get_args(Decision)

THRESHOLDS = ("cosegmentation.k", "cosegmentation.plus.threshold")
"""Keys that a review may set: where the masks of ``fmwiss`` and of ``fmwiss-plus`` are cut."""

_WHOLE = {"image", "class", "decision"}, {"step", "key", "value"}


@dataclass(frozen=True)
class Threshold:
    """Where masks are cut: one of :data:`THRESHOLDS` and its value."""

    key: str
    value: float

    @classmethod
    def of(cls, options: CosegmentationConfig) -> Threshold:
        """The one that a configuration has."""
        if options.name == "fmwiss-plus":
            return cls("cosegmentation.plus.threshold", options.plus.threshold)
        return cls("cosegmentation.k", options.k)

    def applied(self, options: CosegmentationConfig) -> CosegmentationConfig:
        """The configuration with this threshold.

        Raises:
            UserError: its masks are cut by another key, or the value is out of range.
        """
        wanted = Threshold.of(options).key
        if self.key != wanted:
            raise UserError(
                f"the review sets {self.key}, but cosegmentation.name is {options.name}, whose masks are cut by "
                f"{wanted}; review its masks, or remove that line"
            )
        right = 0 < self.value < 100 if self.key == THRESHOLDS[0] else 0 <= self.value < 1
        if not right:
            span = "between 0 and 100" if self.key == THRESHOLDS[0] else "from 0 to below 1"
            raise UserError(f"the review sets {self.key} = {self.value:g}, which must be {span}")
        if self.key == THRESHOLDS[0]:
            return options.model_copy(update={"k": self.value})
        return options.model_copy(update={"plus": options.plus.model_copy(update={"threshold": self.value})})


@dataclass(frozen=True)
class Applied:
    """A step's photographs after a review.

    Attributes:
        ids: those that are left, in their order.
        tags: the new classes that each of them is tagged with; never empty.
        left_out: photographs left out because a mask was rejected.
        dropped: tags dropped, of all the photographs given but those left out.
        emptied: photographs that no tag was left of, in their order.
    """

    ids: list[str]
    tags: dict[str, frozenset[str]]
    left_out: int
    dropped: int
    emptied: list[str]


@dataclass
class Review:
    """The decisions of a file, the last one first forgotten where it is repeated.

    Attributes:
        decisions: by photograph and class.
        thresholds: by step.
    """

    decisions: dict[tuple[str, str], Decision] = field(default_factory=dict)
    thresholds: dict[int, Threshold] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Review:
        """Read a file.

        Raises:
            UserError: it is missing or unreadable, or a line is not one of the two kinds.
        """
        try:
            # not splitlines: a name may hold what that takes for the end of a line
            lines = path.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError as error:
            raise UserError(f"there is no review {path}; 'fmwiss review' writes one") from error
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise UserError(f"the review {path} cannot be read: {reason}") from error
        review = cls()
        for number, line in enumerate(lines, start=1):
            if line.strip():
                review._take(line, f"{path}, line {number}")
        return review

    def _take(self, line: str, where: str) -> None:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: is no JSON; a line looks like {_EXAMPLE}") from error
        if not isinstance(values, dict) or set(values) not in _WHOLE:
            raise UserError(f"{where}: must have the keys image, class and decision, or step, key and value")
        if "image" in values:
            if values["decision"] not in DECISIONS:
                raise UserError(f"{where}: decision is {_shown(values['decision'])} but must be one of "
                                f"{', '.join(DECISIONS)}")
            if not (isinstance(values["image"], str) and isinstance(values["class"], str)):
                raise UserError(f"{where}: image and class must be strings, as in {_EXAMPLE}")
            self.decide(values["image"], values["class"], values["decision"])
            return
        step, key, value = values["step"], values["key"], values["value"]
        if isinstance(step, bool) or not isinstance(step, int) or step < 1:
            raise UserError(f"{where}: step is {_shown(step)} but must be an integer from 1")
        if key not in THRESHOLDS:
            raise UserError(f"{where}: key is {_shown(key)} but must be one of {', '.join(THRESHOLDS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{where}: value is {_shown(value)} but must be a number")
        self.thresholds[step] = Threshold(key, float(value))

    def write(self, path: Path) -> None:
        """Write the file anew, whole or not at all; the newest decision stands last."""
        lines = [{"image": image, "class": name, "decision": said} for (image, name), said in self.decisions.items()]
        chosen = [{"step": t, "key": at.key, "value": at.value} for t, at in sorted(self.thresholds.items())]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [*lines, *chosen])
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def decide(self, image_id: str, name: str, decision: Decision | None) -> Decision | None:
        """Note a decision, or with None forget it; returns the one before."""
        before = self.decisions.pop((image_id, name), None)
        if decision is not None:
            self.decisions[image_id, name] = decision
        return before

    def check(self, origin: Path, ids: Collection[str], split: str, class_names: Sequence[str]) -> None:
        """Refuse decisions about photographs and classes that there are none of.

        Args:
            origin: the file, for the sentence.
            ids: the photographs of the split.
            split: its name.
            class_names: the data set's.

        Raises:
            UserError: there are.
        """
        known = set(ids)
        for image_id, name in self.decisions:
            if image_id not in known:
                raise UserError(f"{origin}: is about a photograph {image_id}, which {split} does not list; give the "
                                "review of this data, or remove that line")
            if name not in class_names:
                try:
                    spelt = canonical_class_name(name, class_names)
                except UserError as error:
                    raise UserError(f"{error} (in {origin})") from error
                raise UserError(f"{origin}: class is {name} but must be spelt {spelt}")

    def of_step(self, step: int, new_classes: Collection[str]) -> Review:
        """What counts for a step: decisions about the classes that it learns, and its threshold."""
        decisions = {key: decision for key, decision in self.decisions.items() if key[1] in new_classes}
        return Review(decisions, {t: at for t, at in self.thresholds.items() if t == step})

    def same_effect(self, other: Review) -> bool:
        """Whether training does not tell the two apart."""
        return self._effect() == other._effect()

    def _effect(self) -> tuple[dict[tuple[str, str], Decision], dict[int, Threshold]]:
        return {key: said for key, said in self.decisions.items() if said != "accept"}, self.thresholds

    def apply(self, ids: Sequence[str], tags: Mapping[str, AbstractSet[str]]) -> Applied:
        """Leave out what was rejected, and drop tags of classes that are not there.

        Args:
            ids: a step's photographs.
            tags: the step's new classes that each is tagged with.
        """
        left: dict[str, frozenset[str]] = {}
        emptied: list[str] = []
        left_out = dropped = 0
        for image_id in ids:
            said = {name: self.decisions.get((image_id, name)) for name in tags[image_id]}
            if "reject" in said.values():
                left_out += 1
                continue
            names = frozenset(name for name, decision in said.items() if decision != "absent")
            dropped += len(said) - len(names)
            if names:
                left[image_id] = names
            else:
                emptied.append(image_id)
        return Applied(list(left), left, left_out, dropped, emptied)


_EXAMPLE = json.dumps({"image": "2008_000123", "class": "sheep", "decision": "reject"})


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
