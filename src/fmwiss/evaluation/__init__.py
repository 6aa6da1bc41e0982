"""Confusion matrix to IoU of old, new and all classes."""

from fmwiss.evaluation.evaluate import evaluate, evaluate_run
from fmwiss.evaluation.metrics import Evaluation

__all__ = ["Evaluation", "evaluate", "evaluate_run"]
