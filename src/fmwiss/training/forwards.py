"""Other ways to compute what a method computes: compiled, with less memory, or with statistics of all processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from fmwiss.errors import UserError
from fmwiss.methods import Method

COMPILER = "inductor"

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def synchronise_batch_norm(method: Method) -> None:
    """Let batch norm that learns take its statistics over all processes; only CUDA can compute it.

    Parameters, buffers and their names stay, so that a model is saved as it would be otherwise.
    """
    for name, module in method.named_children():
        if name not in method.frozen:
            setattr(method, name, convert_sync_batchnorm(module))


@contextmanager
def forwards(method: Method, compiled: bool, checkpointed: bool) -> Iterator[None]:
    """Inside, a method's networks compute the same in another way.

    Args:
        method: whose student, frozen models and extra heads they are.
        compiled: by ``torch.compile``: encoders, decoders and extra heads.
        checkpointed: the blocks of the student's encoder keep their input alone, and are computed again in the backward
            pass; the statistics of batch norm follow each batch once. Not together with ``compiled``.

    Raises:
        UserError: the encoder has no blocks.
    """
    changed: dict[nn.Module, Callable[..., Any]] = {}
    if compiled:
        for module in _networks(method):
            changed[module] = torch.compile(module.forward, backend=COMPILER)
    if checkpointed:
        blocks = list(residual_blocks(method.student.encoder))
        if not blocks:
            raise UserError(
                f"training.activation_checkpointing: the encoder {method.student.architecture.encoder} has no blocks "
                "that could be computed again; leave it out"
            )
        for block in blocks:
            changed[block] = _checkpointed(block)
    for module, forward in changed.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def as_written() -> AbstractContextManager[None]:
    """Inside, nothing is compiled: an evaluation has photographs of many sizes, each of which would be."""
    return torch.compiler.set_stance("force_eager")


def residual_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules within lists of modules that hold several convolutions or linear layers."""
    for child in module.children():
        if isinstance(module, _CONTAINERS) and not isinstance(child, _CONTAINERS):
            if sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in child.modules()) > 1:
                yield child
        else:
            yield from residual_blocks(child)


def _networks(method: Method) -> Iterator[nn.Module]:
    segmenters = [method.student, *(getattr(method, name) for name in method.frozen)]
    for segmenter in segmenters:
        yield segmenter.encoder
        yield segmenter.decoder
    yield from method.extra_heads()


def _checkpointed(block: nn.Module) -> Callable[..., Any]:
    compute = block.forward

    @functools.wraps(compute)
    def forward(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return compute(*inputs, **options)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _statistics_kept(block)

        return checkpoint(compute, *inputs, use_reentrant=False, context_fn=contexts, **options)

    return forward


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside, batch norm normalises by the batch and leaves its running statistics alone."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]  # type: ignore[union-attr]
    for norm in norms:
        norm.momentum = 0.0  # of the batch's statistics in the running ones
    try:
        yield
    finally:
        for norm, (momentum, seen) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(seen)  # type: ignore[union-attr]
