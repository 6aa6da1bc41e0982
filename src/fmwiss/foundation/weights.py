"""Where pretrained weights come from: a local folder by name first, then the package, the hub otherwise.

A folder holds safetensors in timm's key names, ``<timm name>.safetensors``; nothing there is read with pickle.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fmwiss.errors import UserError
from fmwiss.foundation import tiny
from fmwiss.foundation.registry import ENTRIES

Shapes = dict[str, tuple[int, ...]]

WEIGHTS_VARIABLE = "FMWISS_WEIGHTS"
"""Environment variable that names the folder of local weights where no folder is given."""


class UnknownOption(UserError):
    """A timm model does not have an option that is asked for."""


def weights_folder(weights: Path | None) -> Path | None:
    """The folder given, else the one that ``FMWISS_WEIGHTS`` names, else None.

    Raises:
        UserError: the folder does not exist.
    """
    origin = "the folder of weights"
    if weights is None and os.environ.get(WEIGHTS_VARIABLE):
        weights, origin = Path(os.environ[WEIGHTS_VARIABLE]), f"the folder in {WEIGHTS_VARIABLE}"
    if weights is not None and not weights.is_dir():
        raise UserError(f"{origin}, {weights}, is not a folder; name one that holds <timm name>.safetensors files")
    return weights


def find_weights(name: str, folder: Path | None) -> Path | None:
    """The file ``<name>.safetensors`` in the folder (or in ``FMWISS_WEIGHTS``), else in the package, or None.

    A timm name with a tag (``vit_small_patch16_224.dino``) also finds the file without it.
    """
    folders = [place for place in (weights_folder(folder), tiny.FOLDER) if place is not None]
    stems = dict.fromkeys((name, name.split(".")[0]))
    candidates = (place / f"{stem}.safetensors" for place in folders for stem in stems)
    return next((path for path in candidates if path.is_file()), None)


def load_timm(name: str, weights: Path | None = None, *, pretrained: bool = True, **kwargs: Any) -> nn.Module:
    """Create a timm model, with weights from the local folder or, where it has none, from timm's hub.

    Args:
        name: timm model name, with or without a tag.
        weights: folder with ``<name>.safetensors``; None: the folder in ``FMWISS_WEIGHTS``, if set.
        pretrained: False gives random weights and reads nothing.
        kwargs: passed to :func:`timm.create_model` (``features_only``, ``output_stride``, ``num_classes``...).

    Raises:
        UserError: unknown name or option, a file of another architecture or unreadable, no weights to be had.
    """
    check_timm_name(name)
    if not pretrained:
        return _create(name, pretrained=False, **kwargs)
    file = find_weights(name, weights)
    if file is not None:
        check_architecture(name, read_shapes(file), file, needs_classifier=_has_classifier(kwargs))
        return _create_from({"file": str(file)}, file, name, **kwargs)
    advice = f"put {name}.safetensors (timm's key names) into {weights_folder(weights) or 'the --weights folder'}"
    known = next((entry.name for entry in ENTRIES if entry.model == name and entry.kind != "ibot"), None)
    if known is not None:
        advice += f", as 'fmwiss weights get {known}' does"
    hub: Any = timm.get_pretrained_cfg(name)
    require_hub(hub.hf_hub_id, name, advice)
    try:
        return _create(name, pretrained=True, **kwargs)
    except (OSError, RuntimeError) as error:
        raise UserError(f"weights of {name} are not local and not to be had ({first_line(error)}); {advice}") from error


def load_timm_state(name: str, state: dict[str, Tensor], origin: Path, **kwargs: Any) -> nn.Module:
    """Create a timm model with weights at hand, in timm's key names; arguments and errors as in :func:`load_timm`.

    Args:
        state: the weights; timm resamples position embeddings to its own image size.
        origin: where they come from, for messages.
    """
    check_timm_name(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    check_architecture(name, shapes, origin, needs_classifier=_has_classifier(kwargs))
    model = _create_from({"state_dict": state}, origin, name, **kwargs)
    model.pretrained_cfg.pop("state_dict")  # type: ignore[operator,union-attr]  # or it would stay in memory
    return model


def check_timm_name(name: str) -> None:
    """Raise :class:`UserError` with the nearest names where timm knows no model of this name."""
    if timm.is_model(name):
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError as error:
            stem, _, tag = name.partition(".")
            tags = ", ".join(full.partition(".")[2] for full in timm.list_pretrained(f"{stem}.*")) or "none"
            raise UserError(f"timm's {stem} has no weights with the tag {tag!r}; its tags: {tags}") from error
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    raise UserError(f"timm has no model {name!r}; nearest names: {', '.join(near) or 'none, see timm.list_models()'}")


def require_hub(repository: str | None, name: str, advice: str) -> None:
    """Fail at once, in place of the hub client's long retries, where it can be reached by no means.

    A file already in the hub's cache passes, and so does anything behind a proxy, which resolves names by itself.
    """
    if not repository or hub_host_found():
        return
    names = [f"{stem}.{kind}" for stem in ("model", "pytorch_model") for kind in ("safetensors", "bin")]
    names += [f"open_clip_{file}" for file in names]
    if not any(isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str) for file in names):
        host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname
        raise UserError(f"weights of {name} are not local and {host} cannot be reached; {advice}")


def hub_host_found() -> bool:
    """Whether the hub's name can be resolved, or a proxy does that: a quick answer where there is no network."""
    host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname
    if not host or getproxies():
        return True
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def state_digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, by name: equal weights give equal digests wherever they came from."""
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _create(name: str, **kwargs: Any) -> nn.Module:
    # timm warns of the classifier that a feature extractor leaves out; what is missing has been checked before.
    logger = logging.getLogger("timm.models._builder")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return timm.create_model(name, **kwargs)
    except TypeError as error:
        raise UnknownOption(f"the timm model {name} cannot be built as asked: {first_line(error)}") from error
    finally:
        logger.setLevel(level)


def _create_from(source: dict[str, Any], origin: Path, name: str, **kwargs: Any) -> nn.Module:
    try:
        return _create(name, pretrained=True, pretrained_cfg_overlay=source, **kwargs)
    except RuntimeError as error:
        raise UserError(f"{origin} does not fit the timm model {name}: {first_line(error)}") from error


def _has_classifier(kwargs: dict[str, Any]) -> bool:
    return not kwargs.get("features_only") and kwargs.get("num_classes") != 0


def check_architecture(name: str, shapes: Shapes, origin: Path, needs_classifier: bool) -> None:
    """Compare the names and shapes of weights with a timm model's.

    timm itself loads partial models (``features_only``, another number of classes) without looking at what is
    missing, so that a ResNet-50 file would pass silently for a ResNet-101.

    Raises:
        UserError: they are another model's; the message names the first difference.
    """
    with torch.device("meta"):
        reference: Any = timm.create_model(name, pretrained=False)
    expected = {key: tuple(tensor.shape) for key, tensor in reference.state_dict().items()}
    heads = reference.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))

    def layers(keys: Shapes) -> Shapes:
        # Buffers such as index tables come and go between timm versions; weights, biases and statistics do not.
        return {key: shape for key, shape in keys.items() if key.endswith((".weight", ".bias", "_mean", "_var"))}

    def fault(kind: str, key: str) -> UserError:
        return UserError(f"{origin} holds another architecture than the timm model {name}: {kind} {key}")

    wanted = {key: shape for key, shape in layers(expected).items() if needs_classifier or not key.startswith(heads)}
    for key, shape in wanted.items():
        if key not in shapes:
            raise fault("it lacks", key)
        if shapes[key] != shape and "pos" not in key:  # timm resamples position embeddings to the input size
            raise fault(f"the shape is {shapes[key]} in place of {shape} at", key)
    for key in layers(shapes):
        if key not in expected and not key.startswith(heads):
            raise fault("the model does not have", key)


def read_shapes(file: Path) -> Shapes:
    """Names and shapes of the tensors in a safetensors file; only its header is read.

    Raises:
        UserError: the file is no safetensors file, or truncated.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a readable safetensors file ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """An exception's message without its full stop, for use inside a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
