"""Sensible settings of an extension: from the model, the amount of data and the machine, to an experiment."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from fmwiss.config import Config, DataConfig, leaves, load_config, merge_overrides, show_value
from fmwiss.data.extension import ExtensionSource
from fmwiss.data.source import Source
from fmwiss.errors import UserError
from fmwiss.extension.base import Base, has_adapter

ITERATIONS = 260
"""Iterations of the student at least, as in voc-mini's steps, which settle within them."""
ITERATIONS_ON_GPU = 1000
EPOCHS = (3, 100)
"""Fewest and most epochs over the photographs."""
METHODS = ("fmwiss", "finetuning")
"""What extends a model; the first by default."""

WARMUP_SHARE = 0.6
"""Epochs of the teacher alone, as a share of the others: five to eight on voc-mini."""
WARMUP_EPOCHS = (1, 60)
NEGATIVES = 3.0
"""Photographs without the new class for each one with, where one class is taught and tags are complete.

Of several classes each one's photographs show where the others are not; further ones took more than they gave.
"""
BATCH, BATCH_ON_GPU = 8, 16
LARGEST_CROP, LARGEST_CROP_ON_GPU = 256, 512
LARGEST_OWN_SIDE = 640
"""Shorter side in pixels from which on photographs of a model without a size of its own are made smaller."""
ADAPTED_RATE, ADAPTED_HEAD_RATE = 3e-5, 30.0
"""For another library's model: of what it has learnt, and of what begins anew as a multiple."""
CLASS_PRIOR = 0.02
DINO = "vit_base_patch16_224.dino"
SIZES_LOOKED_AT = 200


@dataclass
class Wishes:
    """What a user may ask for beside the data; None leaves it to the program."""

    config: Path | None = None
    epochs: int | None = None
    batch_size: int | None = None
    crop_size: int | None = None
    resize: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    tags_complete: bool = False
    negatives: float | None = None
    overrides: Sequence[str] = field(default_factory=list)


def settle(
    base: Base,
    new: Sequence[str],
    source: ExtensionSource,
    tags_origin: str,
    memory: float | None,
    wishes: Wishes,
    on_gpu: bool,
) -> tuple[Config, dict[str, str]]:
    """The experiment, and why its main settings are what they are, by key.

    A run's own settings go on, but for what depends on the photographs; another library's model gets those that did
    well with ours. ``--config`` replaces either, the main options and ``--set`` override everything.

    Args:
        base: what is extended.
        new: the new classes.
        source: the photographs.
        tags_origin: where they come from, for the record: a file, ``masks`` (the folder's own) or ``xml``.
        memory: instances per old class in the memory that is there; None: there is none.
        wishes: the user's.
        on_gpu: whether there is one.

    Raises:
        UserError: a value is out of range, or does not fit the model.
    """
    why: dict[str, str] = {}
    values = _beginning(base, wishes, why)
    data, steps = values["data"], values["training"]["steps"]
    foreign = has_adapter(base.model)
    given = wishes.config is not None
    _describe_model(values, base, new)
    data |= {
        "source": "voc" if tags_origin == "xml" else "folder", "train_split": "train", "val_split": source.compared,
        "tags": tags_origin, "fraction": 1.0, "also": [],
        "negatives": _negatives(source, data["negatives"] if given else NEGATIVES * (len(new) == 1), wishes, why),
        "workers": max(0, min(2, _cores() - 1)),
    }
    if foreign and not given and base.config is None:
        _fit_photographs(data, base, source, list(source.tags), on_gpu, why)
        steps |= {"optimizer": "adamw", "learning_rate": ADAPTED_RATE, "head_rate": ADAPTED_HEAD_RATE,
                  "weight_decay": 0.01, "freeze_batch_norm": True, "batch_size": BATCH_ON_GPU if on_gpu else BATCH}
        why["training.steps.learning_rate"] = "of the model; its new head and the teacher learn head_rate times as fast"
        values["segmenter"] |= {"class_prior": CLASS_PRIOR, "classifier_init": "background"}
        values["method"]["loss_stride"] = 4 if int(data["crop_size"]) % 4 == 0 else 1
        values["cosegmentation"]["self_supervised"]["model"] = DINO
    else:
        own = base.model.architecture.resize
        if own is not None or base.run is not None:
            data["resize"] = own
            why["data.resize"] = "the model's own"
    if wishes.crop_size is not None:
        data["crop_size"] = wishes.crop_size
        if int(values["method"].get("loss_stride", 1)) > 1 and wishes.crop_size % values["method"]["loss_stride"]:
            values["method"]["loss_stride"] = 1
    if wishes.resize is not None:
        data["resize"] = wishes.resize
    if wishes.learning_rate is not None:
        steps["learning_rate"] = wishes.learning_rate
    if wishes.seed is not None:
        values["training"]["seed"] = wishes.seed
    photographs = len(source.tags) + negatives(source, data["negatives"])
    steps["batch_size"] = min(wishes.batch_size or int(steps["batch_size"]), photographs)
    if values["method"]["name"] == "fmwiss":
        values["method"]["untagged_absent"] = wishes.tags_complete
        why["method.untagged_absent"] = (
            "--tags-complete: a class without a tag is not in the photograph" if wishes.tags_complete
            else "--tags-partial: a class without a tag may be in the photograph"
        )
    if memory is None:
        values["copy_paste"] |= {"bank_size": 0}
        why["copy_paste.bank_size"] = "there are no old photographs to paste from (--replay DIR)"
    elif int(values["copy_paste"]["bank_size"]) == 0 or not given:
        values["copy_paste"]["bank_size"] = int(memory)
    if not given:
        _set_length(values, photographs, on_gpu, why)
    if wishes.epochs is not None:
        steps["epochs"] = wishes.epochs
        why["training.steps.epochs"] = "--epochs"
    config = _checked(values, wishes.overrides)
    if not given and values["method"]["name"] == METHODS[0]:
        _set_warmup(values, config.training.steps.epochs, why)
        config = _checked(values, wishes.overrides)
    _check_settled(values, config)
    config = with_fitting_batch(config, source)
    why |= {key: "--set" for key, _ in leaves(merge_overrides(wishes.overrides))}
    own = base.model.architecture.resize
    if base.run is not None and config.data.resize != own:
        raise UserError(f"data.resize is {config.data.resize}, and the model's own working size is {own}; leave it out")
    return config, why


_INSTEAD = {
    "protocol.steps": "give --classes instead",
    "protocol.setting": "leave it out",
    "data.source": "give --images and --tags instead",
    "data.tags": "give --tags instead",
    "data.train_split": "give --split instead",
    "data.val_split": "give --val instead",
    "data.also": "give --val instead",
    "data.negatives": "give --negatives instead",
    "method.untagged_absent": "give --tags-complete or --tags-partial instead",
}
"""What the model, the photographs and the options settle, so that ``--set`` cannot."""
_OF_NEW_CLASSES = ("segmenter.classifier_init", "segmenter.class_prior")
"""All else in the section is the model's own."""


def _check_settled(values: Mapping[str, Any], config: Config) -> None:
    """Raise UserError where ``--set`` has changed what is none of its."""
    now = dict(leaves(config.model_dump(mode="json")))
    for key, value in leaves(values):
        instead = _INSTEAD.get(key)
        if key.startswith("segmenter.") and key not in _OF_NEW_CLASSES:
            instead = "leave it out, for the model is extended as it is"
        if instead is not None and now.get(key) != value:
            asked, settled = show_value(now.get(key)), show_value(value)
            raise UserError(f"--set {key}={asked}: extend settles it as {settled}; {instead}")


def learnt_from(source: ExtensionSource, options: DataConfig) -> tuple[int, int]:
    """How many photographs a step learns from that show a new class, and how many that show none."""
    shown = max(1, round(options.fraction * len(source.tags)))
    return shown, min(round(options.negatives * shown), len(source.without))


def with_fitting_batch(config: Config, source: ExtensionSource) -> Config:
    """The experiment with a batch of no more photographs than there are, however it was asked for."""
    steps = config.training.steps
    size = min(steps.batch_size, sum(learnt_from(source, config.data)))
    training = config.training.model_copy(update={"steps": steps.model_copy(update={"batch_size": size})})
    return config.model_copy(update={"training": training})


def negatives(source: ExtensionSource, share: float) -> int:
    """How many photographs without a new class ``data.negatives`` stands for."""
    return min(round(share * len(source.tags)), len(source.without))


def _negatives(source: ExtensionSource, share: float, wishes: Wishes, why: dict[str, str]) -> float:
    """``data.negatives``, 0 where tags are partial."""
    key = "data.negatives"
    if wishes.negatives is not None and not math.isfinite(wishes.negatives):
        raise UserError(f"--negatives {wishes.negatives}: must be a number, such as 99 for all that there are")
    if not wishes.tags_complete:
        if wishes.negatives:
            raise UserError(
                f"--negatives {wishes.negatives:g}: needs --tags-complete, as only then a photograph without a tag is "
                "known not to show the class"
            )
        why[key] = "--tags-complete would add photographs without a new class"
        return 0.0
    share = share if wishes.negatives is None else wishes.negatives
    why[key] = f"{negatives(source, share)} of {len(source.without)} photographs without a new class"
    return share


def atrous_rates(config: Config) -> tuple[int, int, int]:
    """Dilations of the teacher's ASPP: (6, 12, 18) in proportion to the size of its feature map."""
    side = config.data.crop_size / 16
    first, second, third = (max(1, round(rate * side / 32)) for rate in (6, 12, 18))
    return first, second, third


def _beginning(base: Base, wishes: Wishes, why: dict[str, str]) -> dict[str, Any]:
    """The values that all else is put on."""
    if wishes.config is not None:
        why["base"] = f"{wishes.config}"
        config = load_config(wishes.config)
    elif base.config is not None:
        why["base"] = f"the settings of {base.given}"
        config = base.config
    else:
        why["base"] = "the library's own settings"
        config = Config()
        if not has_adapter(base.model):
            steps = {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 0.01, "freeze_batch_norm": True,
                     "batch_size": BATCH}
            config = Config.model_validate({"training": {"steps": steps}})
    values = config.model_dump(mode="json")
    if base.config is not None and base.config.training.step0.loss == "cross-entropy":
        raise UserError(
            f"{base.given} was trained with a softmax (training.step0.loss: cross-entropy), and runs are extended "
            "whose classes have sigmoids; give one that was trained with bce"
        )
    name = _method(values["method"]["name"] if wishes.config is not None else METHODS[0], wishes.overrides)
    if name not in METHODS:
        raise UserError(f"method.name is {name}, and a model is extended by {' or '.join(METHODS)}; give one of these")
    if name == "finetuning" and not base.model.has_background:
        raise UserError("method.name is finetuning, which needs a background, and the model has none; give fmwiss")
    if values["method"]["name"] != name:
        values["method"] = Config.model_validate({"method": {"name": name}}).method.model_dump(mode="json")
        values["training"]["steps"]["constant_epochs"] = 0  # the other method's
    return values


def _method(name: str, overrides: Sequence[str]) -> str:
    """The method's name, ``name`` unless ``--set`` gives another one."""
    method = merge_overrides(overrides).get("method")
    return str(method.get("name", name)) if isinstance(method, dict) else name


def _describe_model(values: dict[str, Any], base: Base, new: Sequence[str]) -> None:
    """What the experiment says of the model and its classes."""
    architecture = base.model.architecture
    values["protocol"] = {"steps": [*map(list, architecture.steps), list(new)], "setting": "overlap"}
    values["segmenter"] |= {"encoder": architecture.encoder, "pretrained": False}
    if not has_adapter(base.model):
        values["segmenter"] |= {
            "output_stride": architecture.output_stride,
            "decoder_channels": architecture.decoder_channels,
            "atrous_rates": list(architecture.atrous_rates),
            "dropout": architecture.dropout,
        }


def _fit_photographs(
    data: dict[str, Any], base: Base, source: Source, ids: Sequence[str], on_gpu: bool, why: dict[str, str]
) -> None:
    """Working size and crop for a model that brings no experiment."""
    some = ids[:: max(1, len(ids) // SIZES_LOOKED_AT)]
    shorter = int(statistics.median(min(source.image_size(image_id)) for image_id in some))
    own = base.model.architecture.resize
    if own is not None:
        data["resize"] = own
        why["data.resize"] = "the model's image processor says so"
    elif shorter > LARGEST_OWN_SIDE:
        data["resize"] = 512
        why["data.resize"] = f"the model tells no size, and photographs have {shorter} pixels (median, shorter side)"
    else:
        data["resize"] = None
        why["data.resize"] = f"the photographs' own, {shorter} pixels (median, shorter side)"
    side = data["resize"] or shorter
    largest = LARGEST_CROP_ON_GPU if on_gpu else LARGEST_CROP
    data["crop_size"] = max(64, min(largest, side) // 32 * 32)
    why["data.crop_size"] = f"at most {largest} {'on a GPU' if on_gpu else 'without a GPU'}, a multiple of 32"
    data["scale"] = [0.75, 1.5]


def _set_length(values: dict[str, Any], photographs: int, on_gpu: bool, why: dict[str, str]) -> None:
    """Epochs over so many photographs."""
    steps = values["training"]["steps"]
    per_epoch = max(1, photographs // int(steps["batch_size"]))
    wanted = ITERATIONS_ON_GPU if on_gpu else ITERATIONS
    epochs = max(EPOCHS[0], min(EPOCHS[1], math.ceil(wanted / per_epoch)))
    steps["epochs"] = epochs
    why["training.steps.epochs"] = f"{epochs * per_epoch} iterations over {photographs} photographs"


def _set_warmup(values: dict[str, Any], epochs: int, why: dict[str, str]) -> None:
    """The teacher's epochs before so many others, whoever chose these."""
    values["method"]["warmup_epochs"] = max(WARMUP_EPOCHS[0], min(WARMUP_EPOCHS[1], round(WARMUP_SHARE * epochs)))
    why["method.warmup_epochs"] = f"of the teacher alone, before the {epochs} others"


def _checked(values: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """The experiment with ``--set``'s overrides."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "extension.yaml"
        path.write_text(yaml.safe_dump(dict(values), allow_unicode=True), encoding="utf-8")
        return load_config(path, list(overrides))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_gpu() -> bool:
    """Whether Fabric will find one."""
    return torch.cuda.is_available()
