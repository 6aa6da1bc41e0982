"""Segmentation models of other libraries as what methods and trainer know: a :class:`Segmenter`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.errors import UserError
from fmwiss.models.scores import class_logits
from fmwiss.models.segmenter import Architecture, Segmenter

TEACHER_STRIDE = 16
"""Input pixels per feature pixel that what learns beside the model gets to see at most, where the encoder allows it."""

HF_MODELS = {"segformer": "SegformerForSemanticSegmentation", "mobilenet_v2": "MobileNetV2ForSemanticSegmentation"}
"""Hugging Face model types that are known, and the class that segments."""

_PROBE_SIDE = 64

Family = Literal["smp", "transformers"]


@dataclass(frozen=True)
class AdaptedArchitecture(Architecture):
    """All that is needed to build an adapted model again, without the folder that it came from.

    ``encoder`` is a name for people; ``decoder_channels`` and ``atrous_rates`` are those of what learns beside the
    model (FMWISS's teacher). The first of ``steps`` are the classes that the model came with.
    """

    family: Family
    settings: dict[str, Any]
    """The other library's own configuration."""
    order: tuple[int, ...]
    """The model's output for every label, background first where the model has one."""
    background: bool
    """Whether one of the model's outputs is the background."""
    trained_with: Literal["softmax", "sigmoid"]
    mean: tuple[float, float, float]
    """Of the normalisation, for images in [0, 1]."""
    std: tuple[float, float, float]


class AdaptedClassifier(nn.Module):
    """The model's own head, and beside it one of the same kind for every step since.

    Args:
        old: the model's last convolution.
        order: its outputs in the order of labels.
        background: whether the first of these is the background.
        trained_with: ``softmax`` or ``sigmoid``.
        outputs: classes of every step after the first.
    """

    def __init__(
        self, old: nn.Conv2d, order: Sequence[int], background: bool, trained_with: str, outputs: Sequence[int]
    ) -> None:
        super().__init__()
        self.old = old
        self.order = list(order)
        self.background = background
        self.trained_with = trained_with
        self.steps = nn.ModuleList(self._like_old(n) for n in outputs)

    @property
    def n_old(self) -> int:
        """Labels that the model came with."""
        return len(self.order)

    def add_step(self, n_classes: int, init: Literal["background", "plain"], prior: float | None = None) -> None:
        """Append a head for ``n_classes`` new classes; nothing that was there changes.

        ``background``: its rows are the background's, or of a softmax model without one the mean of the old rows, so
        that a new class begins where the old ones leave room and is nowhere the largest: with a softmax it starts at
        the background's probability times ``prior``, or a share of ``1 / (n_classes + 1)`` of it. ``plain``: the
        layer's own random initialisation, and the bias that gives the ``prior``. Sigmoid models without a background
        have no row to begin with and get a plain one.
        """
        new = self._like_old(n_classes)
        share = -math.log(n_classes + 1) if prior is None else math.log(prior)
        assert new.bias is not None
        with torch.no_grad():
            if init == "background" and (self.background or self.trained_with == "softmax"):
                rows = self.order[:1] if self.background else self.order
                new.weight.copy_(self.old.weight[rows].mean(dim=0, keepdim=True).expand_as(new.weight))
                bias = 0.0 if self.old.bias is None else float(self.old.bias[rows].mean())
                new.bias.fill_(bias + (share if self.background else 0.0))
            elif prior is not None or init == "background":
                rare = 0.02 if prior is None else prior
                new.bias.fill_(math.log(rare / (1 - rare)))
        self.steps.append(new.to(self.old.weight.device))

    def forward(self, decoded: Tensor) -> Tensor:
        """Decoder features to raw scores, ``(B, n_old + new, h, w)``."""
        return torch.cat([self.old(decoded)[:, self.order], *(step(decoded) for step in self.steps)], dim=1)

    def logits(self, scores: Tensor) -> Tensor:
        """Raw scores to logits of all labels, background first (:func:`class_logits`)."""
        return class_logits(scores, self.n_old, self.trained_with, self.background)

    def _like_old(self, outputs: int) -> nn.Conv2d:
        old = self.old
        return nn.Conv2d(old.in_channels, outputs, old.kernel_size, padding=old.padding)  # type: ignore[arg-type]


class AdaptedSegmenter(Segmenter):
    """A model of ``segmentation_models_pytorch`` or Hugging Face that grows by new classes.

    Its own head stays; new classes get a head on the decoder's features. A model that was trained with a softmax gives
    logits whose sigmoids are its probabilities (:mod:`fmwiss.models.scores`). A model without a background keeps
    label 0 for it and never predicts it.

    Args:
        architecture: what to build.

    Raises:
        UserError: the library that it comes from is missing, or cannot build it.
    """

    architecture: AdaptedArchitecture
    classifier: AdaptedClassifier  # type: ignore[assignment]

    def __init__(self, architecture: AdaptedArchitecture) -> None:
        nn.Module.__init__(self)  # nothing of timm's is built
        self.architecture = architecture
        parts = _smp_parts(architecture) if architecture.family == "smp" else _transformers_parts(architecture)
        self.encoder, self.decoder = parts.encoder, parts.decoder
        self.upsampling = parts.upsampling
        self.divisor = parts.divisor
        self.classifier = AdaptedClassifier(
            parts.head,
            architecture.order,
            architecture.background,
            architecture.trained_with,
            [len(classes) for classes in architecture.steps[1:]],
        )
        self.register_buffer("mean", torch.tensor(architecture.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(architecture.std).view(1, 3, 1, 1))
        self._seen_beside: list[int] = []
        self._channels_beside = 0
        self.eval()
        self._probe()

    def _probe(self) -> None:
        """Find the stages that what learns beside the model sees: the last, and a finer one where it is coarse."""
        with torch.no_grad():
            stages = self.encode_stages(torch.zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE))
        fine_enough = _PROBE_SIDE // TEACHER_STRIDE
        last = len(stages) - 1
        self._seen_beside = [last]
        if stages[last].shape[-1] < fine_enough:
            finer = [i for i, stage in enumerate(stages) if stage.shape[-1] == fine_enough]
            self._seen_beside = [*finer[-1:], last]
        self._channels_beside = sum(stages[i].shape[1] for i in self._seen_beside)

    @property
    def has_background(self) -> bool:
        return self.architecture.background or self.architecture.trained_with == "sigmoid"

    @property
    def encoder_channels(self) -> int:
        return self._channels_beside

    def learnt_before(self) -> list[nn.Module]:
        return [self.encoder, self.decoder, self.classifier.old]

    def heads(self) -> list[nn.Module]:
        return [self.classifier.steps]

    def add_step(
        self, classes: tuple[str, ...], init: Literal["background", "plain"], prior: float | None = None
    ) -> None:
        """Grow by ``classes``; see :meth:`AdaptedClassifier.add_step`."""
        self.classifier.add_step(len(classes), init, prior)
        self.architecture = replace(self.architecture, steps=(*self.architecture.steps, classes))

    def encode_stages(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` images in [0, 1] to the encoder's features, as its decoder wants them.

        Sides that the model cannot halve often enough are scaled to the nearest that it can.
        """
        size = [max(1, round(side / self.divisor)) * self.divisor for side in images.shape[-2:]]
        if size != list(images.shape[-2:]):
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        normalised = (images - self.mean) / self.std
        if self.architecture.family == "smp":
            return list(self.encoder(normalised))
        return list(self.encoder(normalised, output_hidden_states=True, return_dict=True).hidden_states)

    def features_beside(self, stages: Sequence[Tensor]) -> Tensor:
        """What a teacher sees, ``(B, encoder_channels, h, w)``: the last stage, joined to a finer one if it is coarse.
        """
        chosen = [stages[i] for i in self._seen_beside]
        size = chosen[0].shape[-2:]
        resized = [F.interpolate(f, size=size, mode="bilinear", align_corners=False) for f in chosen[1:]]
        return torch.cat([chosen[0], *resized], dim=1) if resized else chosen[0]

    def encode(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` images in [0, 1] to :meth:`features_beside`."""
        return self.features_beside(self.encode_stages(images))

    def decode(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Not to be had: the decoder wants all stages; see :meth:`decode_stages`."""
        raise UserError(
            f"{self.architecture.encoder}: this method learns from one map of features alone, and the model's decoder "
            "wants several; choose method.name fmwiss or finetuning."
        )

    def decode_stages(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        scores, decoded = self._scores(stages)
        return self.classifier.logits(scores), decoded

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` RGB images in [0, 1] to logits ``(B, labels, h, w)`` at the model's own output size."""
        return self.decode_stages(self.encode_stages(images))[0]

    @torch.inference_mode()
    def predict_logits(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """As :meth:`Segmenter.predict_logits`; scores are resized before they become logits, as the model's own
        library does, so that it predicts what it predicted there."""
        scores = self._scores(self.encode_stages(images))[0]
        return self.classifier.logits(F.interpolate(scores.float(), size=size, mode="bilinear", align_corners=False))

    def _scores(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        decoded = self.decoder(list(stages) if self._takes_all_stages else stages[-1])
        return self.upsampling(self.classifier(decoded)), decoded

    @property
    def _takes_all_stages(self) -> bool:
        return self.architecture.family == "smp" or self.architecture.settings["model_type"] == "segformer"


# ------------------------------------------------------------------------------------------------- the two libraries


@dataclass(frozen=True)
class _Parts:
    """A model taken apart."""

    encoder: nn.Module
    decoder: nn.Module
    head: nn.Conv2d
    upsampling: nn.Module
    divisor: int
    """Sides of images must be multiples of it."""


def _smp_parts(architecture: AdaptedArchitecture) -> _Parts:
    model = build_smp(architecture.settings)
    head = model.segmentation_head
    divisor = int(model.encoder.output_stride) if model.requires_divisible_input_shape else 1
    return _Parts(model.encoder, model.decoder, head[0], head[1], divisor)


def build_smp(settings: dict[str, Any]) -> Any:
    """A ``segmentation_models_pytorch`` model with random weights from its ``config.json``.

    Raises:
        UserError: the configuration is not one that this version of the library builds, or is of a kind without
            encoder, decoder and a head that is a convolution.
    """
    import segmentation_models_pytorch as smp

    name = str(settings["_model_class"])
    kinds = {kind.__name__: kind for kind in smp.MODEL_ARCHITECTURES_MAPPING.values() if kind.__name__ != "DPT"}
    if name not in kinds:
        raise UserError(f"segmentation_models_pytorch's {name} is not among what can be extended: {', '.join(kinds)}")
    options = {key: value for key, value in settings.items() if not key.startswith("_")}
    options |= {"encoder_weights": None, "aux_params": None}
    try:
        return kinds[name](**options)
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"segmentation_models_pytorch cannot build the {name} of the model's config.json ({reason})") \
            from error


def _transformers_parts(architecture: AdaptedArchitecture) -> _Parts:
    model = build_transformers(architecture.settings)
    return take_apart(model)


def build_transformers(settings: dict[str, Any]) -> Any:
    """A Hugging Face model with random weights from its ``config.json``; errors as in :func:`build_smp`."""
    kind = transformers_class(settings)
    try:
        return kind(kind.config_class.from_dict(settings))
    except Exception as error:  # transformers checks configurations with exceptions of its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"transformers cannot build the model of this config.json ({reason})") from error


def transformers_class(settings: dict[str, Any]) -> Any:
    """The class of transformers that a ``config.json`` is of.

    Raises:
        UserError: transformers is not installed, or the model is of another kind.
    """
    name = HF_MODELS.get(str(settings.get("model_type")))
    if name is None:
        raise UserError(
            f"a Hugging Face model of type {settings.get('model_type')!r} cannot be extended; those that can are "
            f"{', '.join(HF_MODELS)}"
        )
    try:
        import transformers
    except ImportError as error:
        raise UserError("Hugging Face models need the package transformers: pip install 'fmwiss[hf]'") from error
    return getattr(transformers, name)


def take_apart(model: Any) -> _Parts:
    """Encoder, decoder and head of a Hugging Face model; the decoder then ends before the head."""
    if model.config.model_type == "segformer":
        head, model.decode_head.classifier = model.decode_head.classifier, nn.Identity()
        return _Parts(model.segformer, model.decode_head, head, nn.Identity(), 1)
    head, model.segmentation_head.classifier = model.segmentation_head.classifier.convolution, nn.Identity()
    return _Parts(model.mobilenet_v2, model.segmentation_head, head, nn.Identity(), 1)
