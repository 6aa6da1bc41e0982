"""NormalizedCut: the cut against a general eigenvalue solver, and which side is the foreground."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.config import SelfSupervisedConfig
from fmwiss.foundation import SaliencyModel, build_saliency
from fmwiss.foundation.saliency import NormalizedCut


class Colours:
    """A self-supervised model whose features are the patches' colours."""

    patch_size = 4

    def patch_features(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.patch_size) - 0.5


def picture(rows: slice, columns: slice) -> Tensor:
    """A red rectangle on blue, with noise, 8 x 10 patches."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 32, 40, generator=generator) * 0.3
    image[:, 2] += 0.7
    image[:, :, rows, columns] = torch.rand(1, 3, 32, 40, generator=generator)[:, :, rows, columns] * 0.3
    image[:, 0, rows, columns] += 0.7
    return image


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(8, 24), slice(8, 28)),
        (slice(0, 12), slice(0, 16)),  # one corner
        (slice(0, 12), slice(0, 40)),  # two corners, the smaller side
        (slice(4, 28), slice(4, 36)),  # most of the picture, but no corner
    ],
)
def test_the_object_is_the_foreground(rows: slice, columns: slice) -> None:
    maps = NormalizedCut(Colours()).saliency(picture(rows, columns))  # type: ignore[arg-type]
    expected = torch.zeros(1, 8, 10)
    expected[0, rows.start // 4 : rows.stop // 4, columns.start // 4 : columns.stop // 4] = 1
    assert maps.equal(expected)


def test_the_cut_is_that_of_the_generalised_problem() -> None:
    generator = torch.Generator().manual_seed(3)
    image = F.interpolate(torch.rand(1, 3, 4, 5, generator=generator), size=(24, 28), mode="bilinear")
    features = (F.avg_pool2d(image, 4) - 0.5)[0].flatten(1).double().numpy()
    unit = features / np.linalg.norm(features, axis=0)
    weight = np.where(unit.T @ unit > 0.2, 1.0, 1e-5)
    degree = np.diag(weight.sum(axis=1))
    values, vectors = np.linalg.eig(np.linalg.inv(degree) @ (degree - weight))
    second = vectors[:, np.argsort(values.real)[1]].real
    side = torch.from_numpy(second > second.mean()).view(1, 6, 7)
    maps = NormalizedCut(Colours()).saliency(image).bool()  # type: ignore[arg-type]
    assert maps.equal(side) or maps.equal(~side)
    assert 0 < maps.float().mean() < 1


def test_a_photograph_of_one_patch_and_of_one_colour() -> None:
    cut = NormalizedCut(Colours())  # type: ignore[arg-type]
    assert cut.saliency(torch.rand(1, 3, 4, 4)).shape == (1, 1, 1)
    assert torch.isfinite(cut.saliency(torch.full((2, 3, 12, 12), 0.2))).all()


def test_over_a_real_architecture() -> None:
    model = build_saliency(SelfSupervisedConfig(model="test_vit", pretrained=False))
    assert isinstance(model, SaliencyModel)
    maps = model.saliency(torch.rand(2, 3, 64, 96))
    assert maps.shape == (2, 64 // model.stride, 96 // model.stride)
    assert set(maps.unique().tolist()) <= {0.0, 1.0}
