"""Teacher: shapes, and that what it says does not depend on dropout."""

from __future__ import annotations

import torch

from fmwiss.models import Teacher


def test_shapes_and_no_dropout() -> None:
    torch.manual_seed(0)
    teacher = Teacher(in_channels=6, n_labels=5, channels=8, atrous_rates=(1, 2, 3)).train()
    features = torch.randn(2, 6, 4, 5)
    logits, attended = teacher(features)
    assert logits.shape == (2, 5, 4, 5)
    assert attended.shape == (2, 8, 4, 5)
    torch.testing.assert_close(logits, teacher.classifier(attended))
    # in training batch norm uses the batch's statistics: without dropout a second pass says the same
    assert teacher(features)[0].equal(logits)
