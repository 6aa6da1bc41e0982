"""Checkpoints of a step under way: whole or absent at every moment."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import Precision
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fmwiss.errors import UserError
from fmwiss.files import write_atomically
from fmwiss.methods import Method


def save_checkpoint(
    folder: Path,
    iteration: int,
    method: Method,
    optimizer: torch.optim.Optimizer,
    seconds: float = 0.0,
    precision: Precision | None = None,
) -> None:
    """Write the state after ``iteration`` iterations and ``seconds`` to ``folder/<iteration>/``; drop older ones.

    The precision's state is that of the loss scaler of ``16-mixed``; others have none.

    The folder appears under its name by one rename, when all of it is on the disk. Random states need no place in it:
    every draw is keyed by seed and iteration.
    """
    final = folder / f"{iteration:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    tensors = {f"method.{name}": value.contiguous() for name, value in method.learnt_state().items()}
    tensors |= {f"optimizer.{name}": value.contiguous() for name, value in _optimizer_state(optimizer).items()}
    try:
        write_atomically(temporary / "state.safetensors", lambda path: save_file(tensors, path))
        scaler = precision.state_dict() if precision is not None else {}
        kept = {"iteration": iteration, "seconds": round(seconds, 1), **({"scaler": scaler} if scaler else {})}
        progress = json.dumps(kept)
        write_atomically(temporary / "progress.json", lambda path: path.write_text(progress))
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for path in folder.iterdir():
        if path != final:
            shutil.rmtree(path)


def load_checkpoint(
    folder: Path, method: Method, optimizer: torch.optim.Optimizer, precision: Precision | None = None
) -> tuple[int, float]:
    """Restore the newest whole checkpoint, if there is one; returns the iterations done and the seconds they took."""
    found = sorted(path for path in folder.glob("[0-9]*") if path.is_dir())
    if not found:
        return 0, 0.0
    newest = found[-1]
    try:
        tensors = load_file(newest / "state.safetensors")
        progress = json.loads((newest / "progress.json").read_text())
        iteration, seconds = int(progress["iteration"]), float(progress.get("seconds", 0.0))
        method.load_learnt_state(_under(tensors, "method."))
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{newest}: this checkpoint does not fit the configuration or is damaged ({reason}); delete the folder to "
            "start the step anew."
        ) from error
    if precision is not None and "scaler" in progress:
        precision.load_state_dict(progress["scaler"])
    parameters = _parameters(optimizer)
    for key, value in _under(tensors, "optimizer.").items():
        index, name = key.split(".")
        parameter = parameters[int(index)]
        state: dict[str, Any] = optimizer.state[parameter]
        if value.ndim:  # moments lie in memory as their parameter does
            state[name] = torch.empty_like(parameter).copy_(value)
        else:  # AdamW's step number, which a fused update wants beside the parameter
            state[name] = value.to(parameter.device) if optimizer.defaults.get("fused") else value
    return iteration, seconds


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers of every parameter, as ``<parameter's number>.<name>``."""
    return {
        f"{index}.{name}": value
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
