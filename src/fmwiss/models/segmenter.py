"""The segmentation model: timm encoder, DeepLabV3 decoder, incremental classifier."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, PositiveInt, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder
from torch import Tensor, nn
from torch.nn import functional as F

import fmwiss
from fmwiss.config import SegmenterConfig
from fmwiss.data.transforms import working_size
from fmwiss.errors import UserError
from fmwiss.files import write_atomically
from fmwiss.foundation.weights import UnknownOption, first_line, load_timm
from fmwiss.models import wide_resnet  # noqa: F401  # makes its models known to timm
from fmwiss.models.classifier import IncrementalClassifier
from fmwiss.run_folders import finished_step, last_step


def _each_once(steps: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    names = [name for step in steps for name in step]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise ValueError(f"the class {twice!r} is learnt twice")
    return steps


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a segmenter again; stored beside its weights as ``model.json``."""

    encoder: str
    output_stride: PositiveInt
    decoder_channels: PositiveInt
    atrous_rates: tuple[PositiveInt, ...]
    dropout: Annotated[float, Field(ge=0, le=1)]
    steps: Annotated[tuple[tuple[str, ...], ...], Field(min_length=1), AfterValidator(_each_once)]
    """Class names by step, each once, without the background."""
    resize: PositiveInt | None
    """Working size: shorter side in pixels that photographs are scaled to; None keeps their own size."""


class Segmenter(nn.Module):
    """DeepLabV3 (Chen et al., 2017) on a timm encoder, with a classifier that grows by steps.

    Labels are 0 for the background, then the classes in the order learnt. Every label has a score of its own (a
    sigmoid, not a softmax); the prediction is the label with the largest.

    Args:
        architecture: what to build.
        pretrained: load the encoder's ImageNet weights.
        weights: folder that is searched for ``<timm name>.safetensors`` before the hub.
    """

    mean: Tensor
    std: Tensor
    encoder: Any
    """timm's feature extractor, which is not typed."""

    def __init__(self, architecture: Architecture, pretrained: bool = False, weights: Path | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        stride = architecture.output_stride
        try:
            self.encoder = load_timm(
                architecture.encoder, weights, pretrained=pretrained, features_only=True, output_stride=stride
            )
        except (AssertionError, UnknownOption) as error:  # timm's convolutional families and its transformers
            raise _no_such_stride(architecture) from error
        info = self.encoder.feature_info
        if info.reduction()[-1] != stride:
            raise _no_such_stride(architecture)
        self.decoder = DeepLabV3Decoder(
            info.channels()[-1],
            out_channels=architecture.decoder_channels,
            atrous_rates=architecture.atrous_rates,
            aspp_separable=False,
            aspp_dropout=architecture.dropout,
        )
        self.classifier = IncrementalClassifier(architecture.decoder_channels, _outputs(architecture.steps))
        data_config = self.encoder.pretrained_cfg
        self.register_buffer("mean", torch.tensor(data_config["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(data_config["std"]).view(1, 3, 1, 1))
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(
        cls, config: SegmenterConfig, classes: tuple[str, ...], resize: int | None, weights: Path | None
    ) -> Segmenter:
        """A new segmenter for the classes of step 0."""
        architecture = Architecture(
            encoder=config.encoder,
            output_stride=config.output_stride,
            decoder_channels=config.decoder_channels,
            atrous_rates=config.atrous_rates,
            dropout=config.dropout,
            steps=(classes,),
            resize=resize,
        )
        segmenter = cls(architecture, pretrained=config.pretrained, weights=weights)
        if config.class_prior is not None:
            segmenter.classifier.start_rare(config.class_prior)
        return segmenter

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of every label, ``background`` first."""
        return ("background", *(name for step in self.architecture.steps for name in step))

    @property
    def has_background(self) -> bool:
        """Whether pixels of no class have a label of their own; models of other libraries may lack it."""
        return True

    @property
    def encoder_channels(self) -> int:
        """Channels of the encoder's last features, or of what :meth:`features_beside` gives."""
        return int(self.encoder.feature_info.channels()[-1])

    def learnt_before(self) -> list[nn.Module]:
        """Modules with weights from another task, or another step, that learn at the encoder's rate."""
        return [self.encoder]

    def heads(self) -> list[nn.Module]:
        """Modules that learn at the heads' rate."""
        return [self.decoder, self.classifier]

    def add_step(
        self, classes: tuple[str, ...], init: Literal["background", "plain"], prior: float | None = None
    ) -> None:
        """Grow by ``classes``; see :meth:`IncrementalClassifier.add_step`."""
        self.classifier.add_step(len(classes), init, prior)
        self.architecture = replace(self.architecture, steps=(*self.architecture.steps, classes))

    def encode(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` images in [0, 1] to the encoder's last features ``(B, E, h, w)``."""
        return self.encode_stages(images)[-1]

    def encode_stages(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` images in [0, 1] to the features of every stage of the encoder; the last are those above."""
        return self.encoder((images - self.mean) / self.std)

    def decode(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's features to logits ``(B, labels, h, w)`` and decoder features ``(B, D, h, w)``."""
        decoded = self.decoder([features])
        return self.classifier(decoded), decoded

    def features_beside(self, stages: Sequence[Tensor]) -> Tensor:
        """Of all stages' features what a module beside the decoder, such as a teacher, learns from."""
        return stages[-1]

    def decode_stages(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What :meth:`decode` gives, from the features of all stages."""
        return self.decode(stages[-1])

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` RGB images in [0, 1] to logits ``(B, labels, h, w)`` at the output stride."""
        return self.decode(self.encode(images))[0]

    @torch.inference_mode()
    def predict_logits(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits ``(B, labels, *size)`` of ``(B, 3, H, W)`` images in [0, 1] that already have the working size."""
        return F.interpolate(self(images), size=size, mode="bilinear", align_corners=False)

    @torch.inference_mode()
    def predict(self, image: Tensor) -> Tensor:
        """Segment one photograph of any size.

        Args:
            image: ``(3, H, W)``, uint8 in [0, 255] or float in [0, 1], RGB.

        Returns:
            ``(H, W)`` uint8 map of labels.
        """
        h, w = image.shape[-2:]
        return self.predict_logits(self.to_working_size(image), (h, w))[0].argmax(dim=0).to(torch.uint8)

    def to_working_size(self, image: Tensor) -> Tensor:
        """One ``(3, H, W)`` photograph, uint8 or float, as a float batch of one at the working size, on the device."""
        batch = image.to(self.mean.device)[None]
        batch = batch.float().div_(255) if image.dtype == torch.uint8 else batch.float()
        size = working_size(image.shape[-2], image.shape[-1], self.architecture.resize)
        if size != tuple(image.shape[-2:]):
            batch = F.interpolate(batch, size=size, mode="bilinear", align_corners=False, antialias=True)
        return batch.contiguous(memory_format=torch.channels_last)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``, then ``model.json``: where the latter stands, the model is whole."""
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(folder / "model.safetensors", lambda path: save_file(state, path))
        description = {"library": f"fmwiss {fmwiss.__version__}", **asdict(self.architecture)}
        write_atomically(
            folder / "model.json", lambda path: path.write_text(json.dumps(description, indent=1) + "\n")
        )

    @classmethod
    def load(cls, folder: Path) -> Segmenter:
        """The segmenter that :meth:`save` wrote to ``folder``, in evaluation mode.

        Raises:
            UserError: there is no model, or its weights do not fit its description.
        """
        description_file, weights_file = folder / "model.json", folder / "model.safetensors"
        if not description_file.is_file():
            raise UserError(f"{folder}: holds no model.json; give the folder of a finished step.")
        try:
            description = json.loads(description_file.read_text())
            kind = _kind(description)
            architecture = _architecture(description, kind)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise UserError(
                f"{description_file}: is not a model description of fmwiss ({where}: {first['msg']})."
            ) from error
        except (ValueError, TypeError) as error:
            raise UserError(f"{description_file}: is not a model description of fmwiss ({error}).") from error
        model = _build(cls if kind is Architecture else _adapted_class(), architecture, description_file)
        try:
            weights_file.open("rb").close()  # safetensors says of what may not be read that it is missing
            state = load_file(weights_file)
        except PermissionError as error:
            raise UserError(f"{weights_file}: cannot be read: {error.strerror}.") from error
        except (OSError, SafetensorError) as error:
            raise UserError(f"{weights_file}: cannot be read ({error}); train the step again.") from error
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"{weights_file}: is a checkpoint of another architecture than {description_file.name} describes "
                f"({first_difference(model.state_dict(), state)})."
            ) from error
        return model.eval()


def load_segmenter(run: Path, step: int | None = None) -> Segmenter:
    """The model of a run's last finished step, or of the given one, in evaluation mode on the CPU.

    Raises:
        UserError: the run, or the step in it, does not exist.
    """
    return Segmenter.load(run / f"step{last_step(run) if step is None else finished_step(run, step)}")


def _no_such_stride(architecture: Architecture) -> UserError:
    return UserError(
        f"segmenter.encoder: {architecture.encoder} has no features at segmenter.output_stride = "
        f"{architecture.output_stride}; choose an encoder that timm can dilate, such as resnet101."
    )


def first_difference(expected: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """The first entry in which two states of a model differ, in words."""
    for name, tensor in expected.items():
        if name not in given:
            return f"it lacks {name}"
        if given[name].shape != tensor.shape:
            return f"{name} has shape {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
    return f"it has {next(name for name in given if name not in expected)} too"


def _outputs(steps: tuple[tuple[str, ...], ...]) -> list[int]:
    return [len(classes) + (t == 0) for t, classes in enumerate(steps)]


def _kind(description: Any) -> type[Architecture]:
    """What describes a model: of this library, or of another one."""
    if not isinstance(description, dict) or "family" not in description:
        return Architecture
    from fmwiss.models.adapted import AdaptedArchitecture  # which builds on this module

    return AdaptedArchitecture


def _adapted_class() -> type[Segmenter]:
    from fmwiss.models.adapted import AdaptedSegmenter

    return AdaptedSegmenter


def _build(kind: type[Segmenter], architecture: Any, origin: Path) -> Segmenter:
    """The model; what ``origin`` says of its settings is a library's to understand."""
    try:
        return kind(architecture)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{origin}: describes a model that cannot be built ({first_line(error)}).") from error


def _architecture(description: Any, kind: type[Architecture]) -> Architecture:
    return TypeAdapter(kind).validate_python(description)
