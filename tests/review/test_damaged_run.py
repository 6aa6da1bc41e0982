"""A step whose model was replaced by another's is told where its classes are looked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fmwiss.errors import UserError
from fmwiss.review import disagreement
from fmwiss.review.session import _Figures


def test_a_model_without_the_classes_of_its_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disagreement, "stage_term", lambda _: torch.zeros(1))
    figures = object.__new__(_Figures)  # which needs a whole run otherwise
    figures.masks = SimpleNamespace(stages=lambda *_: {"refined": torch.zeros(1, 4, 4)})  # type: ignore[assignment]
    figures.source = SimpleNamespace(read_image=lambda _: torch.zeros(3, 4, 4))  # type: ignore[assignment]
    figures.models = {disagreement.NEW: Path("run/step1")}
    model = SimpleNamespace(class_names=("background", "cat"), predict=lambda _: torch.zeros(4, 4))
    with pytest.raises(UserError, match=r"^run/step1: the model there does not know sheep; train the step again$"):
        figures._terms("a", ["sheep"], {disagreement.NEW: model})
