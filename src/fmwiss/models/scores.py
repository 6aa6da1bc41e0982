"""From another library's class scores to logits of single classes, as the losses want them."""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = -30.0
"""Logit of a background that a model does not have: no other label's is lower where it is to be predicted."""


def softmax_logits(scores: Tensor) -> Tensor:
    """Logits whose sigmoid is the softmax of the scores, exactly: ``l_c = s_c - log sum_{k != c} exp(s_k)``.

    A naive ``log(p) - log(1 - p)`` loses the likeliest class, whose ``1 - p`` is rounded to 0; here the sum over the
    others is taken without it.

    Args:
        scores: ``(B, C, H, W)``, C of at least 2.

    Returns:
        ``(B, C, H, W)``, of at least single precision, in the same order at every place.
    """
    scores = _precise(scores)
    logarithms = scores.log_softmax(dim=1)
    likeliest = scores.argmax(dim=1, keepdim=True)
    others = scores.scatter(1, likeliest, -torch.inf).logsumexp(dim=1, keepdim=True)
    # every other class has a probability of at most one half, of which log1p(-p) keeps all digits; the likeliest one's
    # is not computed that way, and must not reach the gradient either
    unlikely = logarithms.exp().scatter(1, likeliest, 0.0)
    return (logarithms - torch.log1p(-unlikely)).scatter(1, likeliest, scores.gather(1, likeliest) - others)


def class_logits(scores: Tensor, n_old: int, trained_with: str, background: bool) -> Tensor:
    """Logits of background, old and new classes from raw scores.

    - ``softmax``: an old label's logit is :func:`softmax_logits` among the old labels, so that growing changes none of
      their probabilities; a new class's is ``s - log sum_old exp(s_k)``, its share if it joined them alone. Without a
      background among the scores, that label's logit is :data:`NEVER`.
    - ``sigmoid``: scores are logits. Without a background among them it is what no class is:
      ``-max_c s_c``, old and new.

    Args:
        scores: ``(B, n_old + new, H, W)``, old labels first, the background the first of them if there is one.
        n_old: labels of the model before it grew.
        trained_with: ``softmax`` or ``sigmoid``.
        background: whether the old labels have a background.

    Returns:
        ``(B, labels, H, W)``, background first, of at least single precision.
    """
    scores = _precise(scores)
    if trained_with == "sigmoid":
        if background:
            return scores
        return torch.cat([-scores.amax(dim=1, keepdim=True), scores], dim=1)
    old, new = scores[:, :n_old], scores[:, n_old:]
    parts = [softmax_logits(old)]
    if not background:
        parts.insert(0, torch.full_like(old[:, :1], NEVER))
    if new.shape[1]:
        parts.append(new - old.logsumexp(dim=1, keepdim=True))
    return torch.cat(parts, dim=1)


def _precise(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
