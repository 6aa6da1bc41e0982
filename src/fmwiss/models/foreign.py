"""Reading models of other libraries: a folder or a hub's id to a :class:`~fmwiss.models.adapted.AdaptedSegmenter`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fmwiss.data.voc import VOID
from fmwiss.errors import UserError
from fmwiss.foundation.weights import first_line, require_hub
from fmwiss.models.adapted import (
    AdaptedArchitecture,
    AdaptedSegmenter,
    Family,
    build_smp,
    take_apart,
    transformers_class,
)
from fmwiss.models.segmenter import first_difference
from fmwiss.names import joined

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = "model.safetensors"
CLASSES = "classes.txt"

BACKGROUND_NAMES = ("background", "bg")
"""What a label for everything else may be called, however it is spelt."""

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_DPN = ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)
_HALF_ENCODERS = ("inceptionresnetv2", "inceptionv4", "xception", "timm-tf_efficientnet_lite")
"""Encoders of ``segmentation_models_pytorch`` whose weights were trained on images in [-1, 1]."""

_UNNAMED = re.compile(r"LABEL_\d+")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Preprocessing:
    """What a model wants to be done to images in [0, 1]; ``resize`` is the working size, None: their own."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None


def is_foreign(folder: Path) -> bool:
    """Whether a folder looks like another library's model; what ``save_pretrained`` of ours wrote is none."""
    return (folder / CONFIG).is_file() and not (folder / "model.json").is_file()


def fetch(name: str) -> Path:
    """The folder of a model on the Hugging Face hub: its description and its safetensors, downloaded once.

    Raises:
        UserError: ``name`` is no hub id, the hub cannot be reached, or has no such model.
    """
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"there is no model {name}; give a folder, or a hub's id such as nvidia/segformer-b0-finetuned")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        require_hub(name, name, "")
    except UserError as error:
        raise UserError(f"there is no folder {name}, and the hub, which may have it, cannot be reached") from error
    try:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", CLASSES])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise UserError(f"the model {name} is neither a folder nor to be had from the hub ({reason})") from error


def open_foreign(
    folder: Path,
    labels: Sequence[str] | None = None,
    background: str | None = None,
    trained_with: Literal["softmax", "sigmoid"] | None = None,
) -> AdaptedSegmenter:
    """The model of a ``save_pretrained`` folder of ``segmentation_models_pytorch`` or transformers, evaluating.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``; transformers' also ``preprocessor_config.json``.
        labels: names of the model's outputs in order; None: the lines of ``classes.txt`` beside it, or its
            ``id2label``.
        background: the name among them of the label for everything else, or ``none``; None: the one called background.
        trained_with: None: what the configuration says, else ``sigmoid`` for a single output and ``softmax`` for more.

    Raises:
        UserError: something is missing, unreadable, unnamed or does not fit.
    """
    settings = _read_json(folder / CONFIG)
    if "_model_class" in settings:
        family: Family = "smp"
        outputs = _count(settings.get("classes", 1), folder / CONFIG, "classes")
        if settings.get("in_channels", 3) != 3:
            channels = settings["in_channels"]
            raise UserError(f"{folder / CONFIG}: the model wants {channels} channels; it must be RGB's 3")
        if trained_with is None and settings.get("activation") in ("sigmoid", "logsigmoid"):
            trained_with = "sigmoid"
    elif "model_type" in settings:
        family = "transformers"
        kind = transformers_class(settings)
        settings = kind.config_class.from_dict(settings).to_dict()
        settings = json.loads(json.dumps(settings, default=str))  # as it will be read again
        outputs = len(settings["id2label"])
    else:
        raise UserError(
            f"{folder / CONFIG}: is neither segmentation_models_pytorch's (_model_class) nor transformers' (model_type)"
        )
    scores: Literal["softmax", "sigmoid"] = trained_with or ("sigmoid" if outputs == 1 else "softmax")
    if scores == "softmax" and outputs == 1:
        raise UserError(f"{folder}: a model with one output has no softmax; give --trained-with sigmoid")
    names = _names(folder, settings, outputs, labels)
    order, classes, has_background = _in_order(names, background)
    if not classes:
        raise UserError(f"{folder}: has no class beside the background; give its labels with --labels")
    if len(classes) >= VOID - 1:
        raise UserError(f"{folder}: has {len(classes)} classes; masks of 8 bits can hold {VOID - 2} and a new one")
    preprocessing = _preprocessing(folder, family, settings)
    architecture = AdaptedArchitecture(
        encoder=_title(family, settings),
        output_stride=16,
        decoder_channels=256,
        atrous_rates=(6, 12, 18),
        dropout=0.0,
        steps=(classes,),
        resize=preprocessing.resize,
        family=family,
        settings=settings,
        order=order,
        background=has_background,
        trained_with=scores,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    model = AdaptedSegmenter(architecture)
    _load(model, folder)
    return model.eval()


# ------------------------------------------------------------------------------------------------------------- weights


def _load(model: AdaptedSegmenter, folder: Path) -> None:
    """Fill an adapted model with the weights of the folder."""
    if not (folder / WEIGHTS).is_file() and not (folder / f"{WEIGHTS}.index.json").is_file():
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
        advice = f" ({pickled[0]} is pickled and is not read; save the model again with safetensors)" if pickled else ""
        raise UserError(f"{folder}: has no {WEIGHTS}{advice}")
    if model.architecture.family == "smp":
        whole = build_smp(model.architecture.settings)
        try:
            state = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder / WEIGHTS}: cannot be read ({first_line(error)})") from error
        state = {name: value for name, value in state.items() if not name.startswith("classification_head.")}
        _fill(whole, state, folder)
        parts: Any = whole
        encoder, decoder, head = parts.encoder, parts.decoder, parts.segmentation_head[0]
    else:
        parts = take_apart(_transformers_model(folder, model.architecture.settings))
        encoder, decoder, head = parts.encoder, parts.decoder, parts.head
    model.encoder.load_state_dict(encoder.state_dict())
    model.decoder.load_state_dict(decoder.state_dict())
    model.classifier.old.load_state_dict(head.state_dict())


def _fill(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{folder / WEIGHTS}: is a checkpoint of another architecture than {CONFIG} describes "
            f"({first_difference(model.state_dict(), state)})"
        ) from error


def _transformers_model(folder: Path, settings: dict[str, Any]) -> Any:
    """Read by transformers itself, which renames the keys of checkpoints of its earlier versions."""
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model, found = transformers_class(settings).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # of many kinds: safetensors', transformers' own, OSError
        raise UserError(f"{folder}: transformers cannot read the model ({first_line(error)})") from error
    finally:
        transformers.logging.set_verbosity(level)
    for kind, words in (("missing_keys", "it lacks"), ("mismatched_keys", "of another shape is")):
        if found.get(kind):
            first = sorted(key if isinstance(key, str) else str(key[0]) for key in found[kind])[0]
            raise UserError(
                f"{folder / WEIGHTS}: is a checkpoint of another architecture than {CONFIG} describes ({words} {first})"
            )
    return model


# --------------------------------------------------------------------------------------------------------------- names


def _names(folder: Path, settings: dict[str, Any], outputs: int, labels: Sequence[str] | None) -> list[str]:
    """A name for every output, no two spelt alike."""
    origin = "--labels"
    if labels is None and (folder / CLASSES).is_file():
        origin = str(folder / CLASSES)
        try:
            lines = (folder / CLASSES).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{folder / CLASSES}: cannot be read as text; it must name one label a line") from error
        labels = [line.strip() for line in lines if line.strip()]
    if labels is None and "id2label" in settings:
        origin = str(folder / CONFIG)
        table = settings["id2label"]
        try:
            labels = [str(table[str(i)]).strip() for i in range(outputs)]
        except (KeyError, TypeError) as error:
            last = outputs - 1
            raise UserError(f"{origin}: id2label does not name the outputs 0 to {last}; give --labels") from error
    if labels is None or all(_UNNAMED.fullmatch(name) for name in labels):
        raise UserError(
            f"{folder}: nothing there names the model's {outputs} outputs; give --labels \"background,car,...\", or a "
            f"{CLASSES} beside {CONFIG}, in the order of the outputs"
        )
    given = [name.strip() for name in labels]
    if len(given) != outputs:
        raise UserError(f"{origin}: names {len(given)} labels, and the model has {outputs} outputs; name each once")
    if not all(given):
        raise UserError(f"{origin}: the name of output {given.index('')} is empty; give every label a name")
    names: list[str] = []
    for name in given:  # of ADE20K's 150 names some stand for two classes
        unique, number = name, 2
        while joined(unique) in map(joined, names):
            unique, number = f"{name} ({number})", number + 1
        names.append(unique)
    return names


def _in_order(names: Sequence[str], background: str | None) -> tuple[tuple[int, ...], tuple[str, ...], bool]:
    """The output of every label, the classes' names, and whether there is a background, which then comes first."""
    spelt = [joined(name) for name in names]
    if background is None:
        place = next((spelt.index(name) for name in BACKGROUND_NAMES if name in spelt), None)
    elif joined(background) == "none":
        place = None
    elif joined(background) in spelt:
        place = spelt.index(joined(background))
    else:
        raise UserError(f"--background {background}: is none of the model's labels, {_shortened(names)}; or give none")
    classes = [i for i in range(len(names)) if i != place]
    taken = [names[i] for i in classes if spelt[i] in BACKGROUND_NAMES[:1]]
    if taken:
        raise UserError(f"--background {background}: a class is named {taken[0]} beside it; rename it by --labels")
    order = classes if place is None else [place, *classes]
    return tuple(order), tuple(names[i] for i in classes), place is not None


def _shortened(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


# ------------------------------------------------------------------------------------------------------- preprocessing


def _preprocessing(folder: Path, family: Family, settings: dict[str, Any]) -> Preprocessing:
    """What ``preprocessor_config.json`` says, else what models of the kind are trained with."""
    path = folder / PREPROCESSOR
    if not path.is_file():
        if family == "smp":
            return Preprocessing(*_smp_normalisation(settings), resize=None)
        segformer = settings["model_type"] == "segformer"
        return Preprocessing(*(_IMAGENET if segformer else _HALF), resize=512 if segformer else 513)
    values = _read_json(path)
    default = _IMAGENET if family == "smp" or settings.get("model_type") == "segformer" else _HALF
    try:
        mean: tuple[float, ...] = (0.0, 0.0, 0.0)
        std: tuple[float, ...] = (1.0, 1.0, 1.0)
        if values.get("do_normalize", True):
            mean = tuple(map(float, values.get("image_mean", default[0])))
            std = tuple(map(float, values.get("image_std", default[1])))
        factor = 255 * float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 255.0
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or factor <= 0:
            raise ValueError("image_mean and image_std must be three numbers, the latter positive")
        resize = _working_size(values.get("size")) if values.get("do_resize", True) else None
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is not an image processor's configuration ({first_line(error)})") from error
    # (x * factor - mean) / std, with x in [0, 1]
    return Preprocessing(tuple(m / factor for m in mean), tuple(s / factor for s in std), resize)  # type: ignore[arg-type]


def _working_size(size: Any) -> int | None:
    """Shorter side that a processor scales photographs to."""
    if size is None:
        return None
    if isinstance(size, int):
        return size
    side = size["shortest_edge"] if "shortest_edge" in size else min(int(size["height"]), int(size["width"]))
    if int(side) <= 0:
        raise ValueError("size must be positive")
    return int(side)


def _smp_normalisation(settings: dict[str, Any]) -> tuple[Any, Any]:
    """That of the encoder's pretrained weights, which its users are told to use."""
    encoder = str(settings.get("encoder_name", "resnet34"))
    if encoder.startswith("tu-"):
        import timm

        name = encoder.removeprefix("tu-")
        config: Any = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name) else None
        return (tuple(config.mean), tuple(config.std)) if config is not None else _IMAGENET
    if encoder.startswith(_HALF_ENCODERS) or settings.get("encoder_weights") == "advprop":
        return _HALF
    if encoder.startswith("dpn"):
        return _DPN
    return _IMAGENET


# --------------------------------------------------------------------------------------------------------------- files


def _title(family: Family, settings: dict[str, Any]) -> str:
    """A name of the model for people."""
    if family == "smp":
        return f"{settings['_model_class']} {settings.get('encoder_name', 'resnet34')} (smp)"
    return f"{settings['model_type']} (transformers)"


def _count(value: Any, path: Path, key: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{path}: {key} is {value!r}; it must be the number of the model's outputs")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; give a folder that save_pretrained wrote") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({first_line(error)})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold a JSON object, as save_pretrained writes it")
    return values
