"""Which decisions a step learns with: those that it was begun with, whatever has been decided since."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fmwiss.config import Config, CosegmentationConfig
from fmwiss.data.protocols import Protocol
from fmwiss.data.review import REVIEW, Applied, Review
from fmwiss.data.source import Source
from fmwiss.data.tags import TagIndex
from fmwiss.errors import UserError
from fmwiss.methods import takes_pseudo_masks


class StepReviews:
    """The reviews of a run's steps.

    A step that is not begun takes the review that is given, else the run's own; a copy of what counts for it is put
    into its folder. From its first checkpoint on the step goes on with that copy alone.

    Args:
        run: the run's folder.
        given: a file; None for the run's own, if it has one.
        config: the experiment.
        protocol: its classes.
        source: the photographs.
    """

    def __init__(
        self, run: Path, given: Path | None, config: Config, protocol: Protocol, source: Source
    ) -> None:
        self.run = run
        self.given = given
        self.config = config
        self.protocol = protocol
        self.source = source
        self._now: Review | None = None
        self._applied: dict[int, Applied] = {}

    @property
    def path(self) -> Path | None:
        """The file that steps take which are not begun."""
        own = self.run / REVIEW
        return self.given or (own if own.is_file() else None)

    def check(self, begun: Mapping[int, bool]) -> None:
        """Find what is wrong with the review before anything is trained.

        Args:
            begun: the steps after 0 that are not finished, and whether they are begun.

        Raises:
            UserError: a file is damaged, is about other data, sets the threshold of other masks, or is not the one
                that a step was begun with.
        """
        if self.path is not None:
            review, split = Review.read(self.path), self.config.data.train_split
            review.check(self.path, self.source.ids(split), split, self.source.class_names)
        for t, is_begun in begun.items():
            chosen = self._of_step(t)
            kept = self._kept(t) if is_begun else None
            if is_begun and self.given is not None and not (chosen or Review()).same_effect(kept or Review()):
                how = "without a review" if kept is None else f"with another review than {self.given}"
                raise UserError(
                    f"{self.run}: step {t} was begun {how}; go on without --review, or give another --out"
                )
            self._with_threshold(kept if is_begun else chosen, t)

    def begin(self, t: int, is_begun: bool) -> None:
        """Put what counts for a step into its folder, unless it is begun; one process does that."""
        if is_begun:
            return
        chosen, copy = self._of_step(t), self.run / f"step{t}" / REVIEW
        if chosen is None:
            copy.unlink(missing_ok=True)
        else:
            chosen.write(copy)

    def apply(
        self, t: int, ids: list[str], tags: TagIndex, say: Callable[..., None] | None
    ) -> tuple[list[str], TagIndex]:
        """A step's photographs and their tags after its review; unchanged where it has none.

        Args:
            t: the step, for which :meth:`begin` has been called.
            ids: its photographs.
            tags: all that they are tagged with.
            say: prints a line about what was changed; None does not.
        """
        self._now = self._kept(t)
        if self._now is None:
            return ids, tags
        new = frozenset(self.protocol.new(t))
        applied = self._applied[t] = self._now.apply(ids, {image_id: tags[image_id] & new for image_id in ids})
        if say is not None:
            say(self._told(t, applied), file=sys.stderr)
        if not applied.ids:
            raise UserError(f"{self.run / f'step{t}' / REVIEW}: leaves none of the {len(ids)} photographs of step {t}")
        return applied.ids, TagIndex({i: (tags[i] - new) | applied.tags[i] for i in applied.ids})

    def emptied(self, t: int) -> list[str]:
        """Photographs that the step's review, once applied, has taken the last new class from."""
        return self._applied[t].emptied if t in self._applied else []

    def cosegmentation(self) -> CosegmentationConfig:
        """Section ``cosegmentation``, with the threshold that the present step's review sets."""
        threshold = next(iter(self._now.thresholds.values()), None) if self._now is not None else None
        options = self.config.cosegmentation
        return options if threshold is None or options.source == "true-masks" else threshold.applied(options)

    def summary(self, t: int) -> dict[str, Any]:
        """What a step's ``evaluation.json`` says about its review; nothing where it has none."""
        if t not in self._applied or self._now is None:
            return {}
        applied = self._applied[t]
        thresholds = {at.key: at.value for at in self._now.thresholds.values()}
        counts = {"left_out": applied.left_out, "dropped_tags": applied.dropped, "emptied": len(applied.emptied)}
        return {"review": {**counts, **thresholds}}

    def _told(self, t: int, applied: Applied) -> str:
        parts = [f"leaves out {_count(applied.left_out, 'photograph')}", f"drops {_count(applied.dropped, 'tag')}"]
        if applied.emptied:
            parts.append(f"so takes the last tag from {_count(len(applied.emptied), 'photograph')}")
        assert self._now is not None
        parts += [f"sets {at.key} = {at.value:g}" for at in self._now.thresholds.values()]
        text = f"step {t}: the review {', '.join(parts)}; {_count(len(applied.ids), 'photograph')} are learnt from"
        if applied.emptied and self.config.data.negatives:
            text += f", and {len(applied.emptied)} as negatives"
        text += "."
        latest = self._of_step(t)
        if latest is not None and not latest.same_effect(self._now):
            text += f" The step was begun with it; what {self.path} says since does not count for it."
        return text

    def _of_step(self, t: int) -> Review | None:
        path = self.path
        return None if path is None else Review.read(path).of_step(t, self.protocol.new(t))

    def _kept(self, t: int) -> Review | None:
        copy = self.run / f"step{t}" / REVIEW
        return Review.read(copy) if copy.is_file() else None

    def _with_threshold(self, review: Review | None, t: int) -> None:
        options = self.config.cosegmentation
        counts = takes_pseudo_masks(self.config.method) and options.source != "true-masks"
        if review is not None and counts and t in review.thresholds:
            review.thresholds[t].applied(options)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

