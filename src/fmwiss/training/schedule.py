"""Learning rate over a step."""

from __future__ import annotations


def poly_factor(iteration: int, warmup: int, total: int, power: float, constant: int = 0) -> float:
    """Factor of the learning rate at an iteration, counted from 0.

    1 during the ``warmup`` iterations (only the teacher learns then), after them ``(1 - i / n) ** power`` over the
    remaining ``n = total - warmup`` (the "poly" policy of DeepLab). Of these the first ``constant`` keep 1, too; the
    next one has the factor that it would have without them (WILSON's code).
    """
    if iteration < warmup + constant:
        return 1.0
    return (1.0 - (iteration - warmup) / (total - warmup)) ** power
