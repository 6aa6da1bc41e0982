"""``imagenet-names``: an ImageNet classifier in the place of a vision-language model.

A stand-in for machines where no CLIP weights are to be had. A class's rows are the classifier's own weight vectors of
the ImageNet classes that the name stands for (see :mod:`fmwiss.foundation.synsets`); the dense features are what those
vectors meet: the classifier's features at every place, before they are pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.errors import UserError
from fmwiss.foundation.images import Normalize, fit
from fmwiss.foundation.scores import class_scores
from fmwiss.foundation.synsets import class_synsets, find_synsets, table_digest
from fmwiss.foundation.weights import state_digest


class ImageNetNames(nn.Module):
    """A :class:`~fmwiss.foundation.VisionLanguageModel` over any convolutional timm classifier of ImageNet-1k.

    Args:
        classifier: timm model with 1,000 outputs whose ``forward_features`` gives a map.
        name: its timm name.
        overrides: class name -> synset ids in place of what is found by default.
        rivals: power with which the classifier's own probability of a class counts in its scores.

    Raises:
        UserError: the model has another number of outputs, or no map of features.
    """

    classifier: Any

    def __init__(
        self,
        classifier: nn.Module,
        name: str,
        overrides: Mapping[str, Sequence[str]] | None = None,
        rivals: float = 0.0,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.name = name
        self.overrides = {key: list(synsets) for key, synsets in (overrides or {}).items()}
        self.rivals = rivals
        self.normalize = Normalize(*(self.classifier.pretrained_cfg[key] for key in ("mean", "std")))
        self.stride = _stride(self.classifier, name)
        self._found: dict[str, list[int]] = {}

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {
            "name": "imagenet-names",
            "model": self.name,
            "weights": state_digest(self.classifier),
            "rows": self.overrides,
            "synsets": table_digest(),
            "scores": "activation" if self.rivals == 0 else f"activation * probability ** {self.rivals}",
        }

    @torch.inference_mode()
    def dense_features(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] -> ``(B, D, H / stride, W / stride)``, L2-normalised over D."""
        return F.normalize(self._features(images), dim=1)

    @torch.inference_mode()
    def text_embeddings(self, class_names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The classifier's weight rows ``(R, D)``, L2-normalised, and the index ``(R,)`` of the name of each.

        Raises:
            UserError: no ImageNet class stands for a name.
        """
        outputs = [self._outputs(name) for name in class_names]
        weight = self.classifier.get_classifier().weight.flatten(1)
        rows = weight[[output for found in outputs for output in found]]
        owner = [index for index, found in enumerate(outputs) for _ in found]
        return F.normalize(rows, dim=1), torch.tensor(owner, device=weight.device)

    @torch.inference_mode()
    def scores(self, images: Tensor, class_names: Sequence[str]) -> Tensor:
        """``(B, C, h, w)``, not negative: how far the features reach along the best of a class's rows.

        This is eq. 3 with the features' length kept, as in class activation maps: other than CLIP's, a classifier's
        features are long where it recognises something, which the normalisation of eq. 1 would throw away.

        With ``rivals`` > 0 this is multiplied with a power of the probability that the classifier gives at the place to
        the ImageNet classes that the name stands for: all the others compete, of which most are background here.
        """
        return self.scores_from(self.encode(images), class_names)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """The features that the final layer sees at every place, ``(B, D, h, w)``."""
        return (self._features(images),)

    @torch.inference_mode()
    def scores_from(self, encoded: tuple[Tensor, ...], class_names: Sequence[str]) -> Tensor:
        """:meth:`scores` from what :meth:`encode` gave."""
        (features,) = encoded
        rows, owner = self.text_embeddings(class_names)
        scores = class_scores(features, rows, owner, len(class_names)).clamp(min=0)
        if self.rivals == 0:
            return scores
        return scores * self.probabilities(features, class_names) ** self.rivals

    @torch.inference_mode()
    def probabilities(self, features: Tensor, class_names: Sequence[str]) -> Tensor:
        """The softmax over the classifier's 1,000 outputs at every place, summed over those that a name stands for.

        Args:
            features: ``(B, D, h, w)``, what the final layer sees at every place.
            class_names: C names.

        Returns:
            ``(B, C, h, w)`` in [0, 1].
        """
        layer = self.classifier.get_classifier()
        outputs = torch.einsum("bdhw,rd->brhw", features, layer.weight.flatten(1))
        if layer.bias is not None:
            outputs = outputs + layer.bias[:, None, None]
        each = outputs.float().softmax(1)
        return torch.stack([each[:, self._outputs(name)].sum(1) for name in class_names], dim=1)

    def _features(self, images: Tensor) -> Tensor:
        features = self.classifier.forward_features(self.normalize(fit(images, self.stride)))
        return _head_features(self.classifier, features)

    def _outputs(self, name: str) -> list[int]:
        """The classifier's outputs that a name stands for; looked up once."""
        if name not in self._found:
            self._found[name] = [class_synsets().index(synset) for synset in find_synsets(name, self.overrides)]
        return self._found[name]


def _head_features(classifier: Any, features: Tensor) -> Tensor:
    """What the final layer would see at every place, ``(B, C, h, w)`` -> ``(B, D, h, w)``.

    Some classifiers (MobileNetV3, ConvNeXt) have more layers between pooling and final layer. Every place is handed to
    the head as an image of one pixel, on which pooling does nothing.
    """
    batch, channels, height, width = features.shape
    pixels = features.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
    vectors = classifier.forward_head(pixels, pre_logits=True)
    return vectors.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _stride(classifier: Any, name: str) -> int:
    """Check with one image that the model serves, and find its stride."""
    layer = classifier.get_classifier()
    outputs = len(layer.weight) if isinstance(layer, (nn.Linear, nn.Conv2d)) else 0
    if outputs != len(class_synsets()):
        raise UserError(f"imagenet-names needs a classifier with 1,000 outputs, ImageNet's; {name} has {outputs}")
    size = classifier.pretrained_cfg["input_size"][-1]
    with torch.inference_mode():
        features = classifier.eval().forward_features(torch.zeros(1, 3, size, size))
    if features.ndim != 4 or features.shape[1] != classifier.num_features:
        raise UserError(f"imagenet-names needs a convolutional classifier; {name} gives no map of features")
    return size // features.shape[-1]
