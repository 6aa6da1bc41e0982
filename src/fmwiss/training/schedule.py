"""Learning rate over a step."""

from __future__ import annotations


def poly_factor(iteration: int, warmup: int, total: int, power: float) -> float:
    """Factor of the learning rate at an iteration, counted from 0.

    1 during the ``warmup`` iterations (only the teacher learns then), after them ``(1 - i / n) ** power`` over the
    remaining ``n = total - warmup`` (the "poly" policy of DeepLab).
    """
    if iteration < warmup:
        return 1.0
    return (1.0 - (iteration - warmup) / (total - warmup)) ** power
