import pytest
import torch
from torch import nn

from fmwiss.foundation.images import Normalize, fit, frozen, nearest_multiple


def test_normalize_by_hand() -> None:
    images = torch.tensor([0.2, 0.5, 1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    result = Normalize((0.2, 0.4, 0.5), (1.0, 0.1, 0.25))(images)
    torch.testing.assert_close(result, torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1).expand(2, 3, 4, 5))


@pytest.mark.parametrize(
    ("size", "multiple", "nearest"), [(1, 14, 14), (20, 14, 14), (22, 14, 28), (448, 14, 448), (100, 14, 98)]
)
def test_nearest_multiple(size: int, multiple: int, nearest: int) -> None:
    assert nearest_multiple(size, multiple) == nearest


def test_images_that_fit_are_untouched() -> None:
    images = torch.rand(1, 3, 28, 42)
    assert fit(images, 14) is images


def test_others_are_scaled_to_the_edge() -> None:
    ramp = torch.linspace(0, 1, 100).expand(1, 3, 30, 100)
    fitted = fit(ramp, 14)
    assert fitted.shape == (1, 3, 28, 98)
    torch.testing.assert_close(fitted[0, 0, 0], torch.linspace(0, 1, 98), atol=0.01, rtol=0)


def test_frozen_models_do_not_learn() -> None:
    module = frozen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "cpu")
    assert not any(module_.training for module_ in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
