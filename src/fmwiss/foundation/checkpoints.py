"""Checkpoints as their authors published them: read without running code, and rewritten in timm's key names."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fmwiss.errors import UserError
from fmwiss.foundation.weights import first_line


def read_state(path: Path, what: str = "checkpoint") -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a checkpoint that was saved with pickle, under the names in it.

    Of a checkpoint of a whole training the weights are taken that lie under ``teacher``, ``state_dict`` or ``model``.
    torch reads it with ``weights_only``, which runs no code.

    Args:
        path: the file.
        what: what it is called in messages.

    Raises:
        UserError: the file is unreadable or holds no weights.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the training's arguments lie beside the weights
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except (SafetensorError, OSError) as error:
        raise UserError(f"the {what} {path} cannot be read ({first_line(error)})") from error
    except Exception as error:  # of damaged bytes pickle, zip and torch make errors of every kind
        raise UserError(
            f"the {what} {path} cannot be read: it is damaged, no checkpoint, or holds more than tensors, which could "
            "only be read by running code from it"
        ) from error
    for key in ("teacher", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    state = content if isinstance(content, Mapping) else {}
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"the {what} {path} holds no weights under teacher, state_dict or model")
    return tensors
