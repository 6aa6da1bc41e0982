"""Randomness that depends on what is drawn for, never on which process draws or in which order."""

from __future__ import annotations

import hashlib
import json

import torch


def keyed_generator(seed: int, *keys: str | int) -> torch.Generator:
    """Random generator on the CPU whose stream is a function of ``seed`` and ``keys`` alone.

    Draws for one image, class and epoch are the same with any number of loader processes, after a restart and in
    whatever order images come.

    Args:
        seed: the run's seed.
        keys: what the draw is for, for instance ``("crop", image_id, epoch)``; ``1`` and ``"1"`` are different keys.
    """
    digest = hashlib.blake2b(json.dumps([seed, *keys]).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
