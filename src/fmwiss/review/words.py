"""What the vision-language model sees for a word: heat maps on some photographs, to try names before training."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from fmwiss.config import VisionLanguageConfig
from fmwiss.cosegmentation import scale_scores
from fmwiss.data.source import Source
from fmwiss.errors import UserError
from fmwiss.foundation import VisionLanguageModel, build_vision_language, describe_classes
from fmwiss.names import joined
from fmwiss.pseudo_masks import as_bytes, working_size

LONGEST_WORD = 80
ROWS_SHOWN = 8


@dataclass(frozen=True)
class Seen:
    """One photograph under a word.

    Attributes:
        image_id: the photograph.
        tagged: whether it carries the class's tag.
        highest: largest score in it, as the model gives it (a cosine for ``clip``).
        heat: uint8 ``(h, w)``, the scores scaled from the photograph's smallest (0) to its largest (255), as
            co-segmentation cuts them.
    """

    image_id: str
    tagged: bool
    highest: float
    heat: Tensor


@dataclass(frozen=True)
class Found:
    """What was found for a word.

    Attributes:
        word: as typed.
        rows: what stands for it in the model and what that means, see :func:`describe_classes`.
        stands: what ``cosegmentation.vision_language.rows`` may list so that it stands for a class.
        pictures: tagged photographs first.
    """

    word: str
    rows: list[tuple[str, str]]
    stands: list[str]
    pictures: list[Seen]

    @property
    def separation(self) -> float | None:
        """How often a tagged photograph's highest score is above another one's, of all pairs; None without pairs."""
        tagged = torch.tensor([seen.highest for seen in self.pictures if seen.tagged])
        others = torch.tensor([seen.highest for seen in self.pictures if not seen.tagged])
        if not len(tagged) or not len(others):
            return None
        above = (tagged[:, None] > others).double() + 0.5 * (tagged[:, None] == others).double()
        return float(above.mean())

    def summary(self) -> dict[str, Any]:
        """All but the pictures, JSON-able."""
        return {
            "word": self.word,
            "rows": [{"row": row, "means": means} for row, means in self.rows[:ROWS_SHOWN]],
            "row_count": len(self.rows),
            "stands": self.stands,
            "separation": self.separation,
            "pairs": sum(seen.tagged for seen in self.pictures) * sum(not seen.tagged for seen in self.pictures),
        }


class Words:
    """The model, loaded when the first word is asked for, and what it computed of photographs, kept for the next word.

    Args:
        config: section ``cosegmentation.vision_language``.
        source: the photographs.
        weights: folder with weights by timm name.
        device: where the model runs.
        model: one that is loaded already.
    """

    handful = 6
    """Photographs with the tag, and as many without."""
    _remembered = 240

    def __init__(
        self,
        config: VisionLanguageConfig,
        source: Source,
        weights: Path | None,
        device: torch.device,
        model: VisionLanguageModel | None = None,
    ) -> None:
        self.config = config
        self.source = source
        self.weights = weights
        self.device = device
        self._model = model
        self._encoded: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def look(self, word: str, tagged: Sequence[str], others: Sequence[str]) -> Found:
        """What the model sees for a word; of photographs seen before, only the word is new.

        Args:
            word: any name.
            tagged: photographs that carry a class's tag.
            others: some that do not.

        Raises:
            UserError: there is no word, or nothing stands for it in the model.
        """
        word = " ".join(word.split())
        if not word or len(word) > LONGEST_WORD:
            raise UserError(f"a word has 1 to {LONGEST_WORD} characters")
        ((_, rows),) = describe_classes([word], self.config)
        with self._lock:
            pictures = [self._seen(word, image_id, image_id in tagged) for image_id in (*tagged, *others)]
        return Found(word, rows, self._stands(word, rows), pictures)

    def _seen(self, word: str, image_id: str, tagged: bool) -> Seen:
        scores = self._vision_language().scores_from(self._encode(image_id), [word]).float()
        heat = as_bytes(scale_scores(scores, (scores.shape[-2], scores.shape[-1])))[0, 0]
        return Seen(image_id, tagged, float(scores.max()), heat)

    def _encode(self, image_id: str) -> tuple[Tensor, ...]:
        if image_id not in self._encoded:
            model = self._vision_language()
            image = self.source.read_image(image_id)
            size = working_size(image.shape[-2], image.shape[-1], self.config.input_size, model.stride)
            seen = resize(image, list(size), antialias=True)[None].to(self.device).float() / 255
            self._encoded[image_id] = model.encode(seen)
            if len(self._encoded) > self._remembered:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(image_id)
        return self._encoded[image_id]

    def _vision_language(self) -> VisionLanguageModel:
        if self._model is None:
            self._model = build_vision_language(self.config, self.weights, self.device)
        return self._model

    def _stands(self, word: str, rows: Sequence[tuple[str, str]]) -> list[str]:
        if self.config.name == "clip":
            return [word]
        from fmwiss.foundation.synsets import VOC_SYNSETS, senses_of

        known = {joined(name): synsets for name, synsets in VOC_SYNSETS.items()}
        return list(known.get(joined(word)) or senses_of(word) or [row for row, _ in rows])
