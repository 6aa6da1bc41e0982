import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import RandomResizedCrop

from fmwiss.data.randomness import keyed_generator
from fmwiss.data.transforms import JointTransform, draw_rectangle, working_size

VOID = 255


def ramp(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A picture whose red is the column and whose green is the row, and a mask that holds (column, row) too."""
    rows = torch.arange(height, dtype=torch.uint8)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.uint8)[None, :].expand(height, width)
    image = torch.stack([columns, rows, torch.zeros_like(rows)])
    return image, image[:2].clone()


def crop(transform: JointTransform, image: Tensor, draw: int = 0, **masks: Tensor) -> tuple[Tensor, dict, Tensor]:
    return transform(image, masks, dict.fromkeys(masks, VOID), keyed_generator(0, "test", draw))


def test_without_scaling_a_crop_is_a_window_of_the_photograph():
    image, mask = ramp(90, 120)
    image[2] = torch.randint(256, (90, 120), generator=keyed_generator(1), dtype=torch.uint8)
    seen_flips, first_rows, first_columns = set(), set(), set()
    for draw in range(400):
        out, masks, valid = crop(JointTransform(64, None, (1.0, 1.0), 0.5), image, draw, mask=mask)
        columns, rows = masks["mask"].long()
        assert valid.all()
        assert torch.equal((out * 255).round(), image[:, rows, columns].float())
        seen_flips.add(bool(columns[0, 0] > columns[0, 1]))
        first_rows.add(int(rows.min()))
        first_columns.add(int(columns.min()))
    assert seen_flips == {True, False}
    # Every place in the photograph is drawn, up to its last row and column.
    assert first_rows == set(range(90 - 64 + 1))
    assert {0, 120 - 64} <= first_columns <= set(range(120 - 64 + 1))


@pytest.mark.parametrize(("height", "width"), [(90, 120), (131, 77), (200, 250)])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_image_and_masks_stay_aligned_at_every_scale(height: int, width: int, flip: float):
    image, mask = ramp(height, width)
    coarse_rows = torch.arange(10, dtype=torch.uint8)[:, None].expand(10, 16)
    coarse_columns = torch.arange(16, dtype=torch.uint8)[None, :].expand(10, 16)
    coarse = torch.stack([coarse_columns, coarse_rows])
    signed, factors = [], []
    for draw in range(40):
        transform = JointTransform(64, 80, (0.5, 2.0), flip)
        out, masks, valid = crop(transform, image, draw, mask=mask, coarse=coarse)
        assert out.shape == (3, 64, 64) and masks["mask"].shape == (2, 64, 64) and masks["coarse"].shape == (2, 64, 64)
        # Away from the photograph's border a resized ramp is a ramp: the image tells where each pixel comes from.
        places = out[:2] * 255
        extent = torch.tensor([width, height])[:, None, None]
        inner = valid & (places > 4).all(0) & (places < extent - 5).all(0)
        error = (masks["mask"] - places)[:, inner]
        assert error.abs().max() < 1.6
        signed.append(error)
        cells = torch.tensor([16, 10])[:, None, None]
        expected = (places + 0.5) / extent * cells
        gap = torch.where(
            masks["coarse"] < expected - 1, expected - 1 - masks["coarse"], (masks["coarse"] - expected).clamp(min=0)
        )
        assert (gap * extent / cells)[:, inner].max() < 1.6  # photograph's pixels between a pixel and its cell
        steps = places[1, 1:] - places[1, :-1]
        factors.append(1 / steps[inner[1:] & inner[:-1]].mean().item())
    # Nearest neighbour errs to both sides alike; half a pixel of shift would show here.
    assert torch.cat(signed, dim=1).mean(dim=1).abs().max() < 0.12
    working = 80 / min(height, width)
    assert 0.48 < min(factors) / working < 0.65 and 1.7 < max(factors) / working < 2.05


def test_a_photograph_smaller_than_the_crop_is_padded():
    image, mask = ramp(20, 30)
    places = set()
    for draw in range(120):
        out, masks, valid = crop(JointTransform(64, 40, (1.0, 1.0), 0.0), image, draw, mask=mask, plane=mask[0].bool())
        assert valid.sum() == 40 * 60
        assert (out[:, ~valid] == 0.5).all()
        assert (masks["mask"][:, ~valid] == VOID).all() and (masks["mask"][:, valid] < 30).all()
        assert masks["plane"].dtype == torch.bool and masks["plane"].shape == (64, 64)
        # All of it is there: every row and column of the photograph, twice.
        assert masks["mask"][1][valid].bincount().tolist() == [2 * 60] * 20
        assert masks["mask"][0][valid].bincount().tolist() == [2 * 40] * 30
        places.add(tuple(valid.nonzero()[0].tolist()))
    # It lies anywhere in the crop, from edge to edge, in steps of one of its own pixels.
    assert {row for row, _ in places} == set(range(0, 25, 2)) and {column for _, column in places} == {0, 2, 4}


def test_one_axis_can_be_padded_and_the_other_cropped():
    image, mask = ramp(20, 200)
    out, masks, valid = crop(JointTransform(32, None, (1.0, 1.0), 0.0), image, mask=mask)
    assert valid.sum() == 20 * 32 and valid.any(dim=0).all() and valid.any(dim=1).sum() == 20
    columns, rows = masks["mask"][:, valid].long()
    assert torch.equal((out[:, valid] * 255).round(), image[:, rows, columns].float())


def test_resize_is_the_shorter_side():
    image, mask = ramp(75, 100)
    _, masks, _ = crop(JointTransform(150, 150, (1.0, 1.0), 0.0), image, mask=mask)
    assert torch.equal(masks["mask"][1][:, 0], torch.arange(150, dtype=torch.uint8) // 2)


def test_the_generator_is_the_only_source_of_randomness():
    image, mask = ramp(90, 120)
    transform = JointTransform(64, 80, (0.5, 2.0), 0.5)
    torch.manual_seed(1)
    first, first_masks, first_valid = crop(transform, image, 7, mask=mask)
    torch.manual_seed(2)
    again, again_masks, again_valid = crop(transform, image, 7, mask=mask)
    assert torch.equal(first, again) and torch.equal(first_valid, again_valid)
    assert torch.equal(first_masks["mask"], again_masks["mask"])
    other, _, _ = crop(transform, image, 8, mask=mask)
    assert not torch.equal(first, other)


def test_extremes_do_not_fail():
    image, mask = ramp(1, 250)
    for scale in ((0.01, 0.01), (30.0, 30.0)):
        out, masks, valid = crop(JointTransform(16, None, scale, 0.5), image, mask=mask, cell=torch.ones(1, 1))
        assert out.shape == (3, 16, 16) and valid.any()
        assert (masks["cell"][valid] == 1).all() and torch.isfinite(out).all()


def test_working_size():
    assert working_size(375, 500, None) == (375, 500)
    assert working_size(375, 500, 192) == (192, 256)
    assert working_size(500, 333, 192) == (288, 192)
    assert working_size(10, 10, 7) == (7, 7)


# ------------------------------------------------------------------------------------------------------ resized crops


@pytest.mark.parametrize(("height", "width"), [(90, 120), (131, 77), (200, 250), (40, 200)])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_resized_crop_is_a_stretched_rectangle_of_the_photograph(height: int, width: int, flip: float):
    image, mask = ramp(height, width)
    for draw in range(40):
        transform = JointTransform(64, 7, (0.5, 2.0), flip, "resized")
        out, masks, valid = crop(transform, image, draw, mask=mask, coarse=torch.arange(100).view(10, 10))
        assert valid.all() and out.shape == (3, 64, 64)
        columns, rows = masks["mask"].long()
        # every pixel shows the same rectangle: rows depend on the row alone, columns on the column
        assert (rows == rows[:, :1]).all() and (columns == columns[:1]).all()
        inner = out[:2] * 255
        inside = (inner > 4).all(0) & (inner < torch.tensor([width, height])[:, None, None] - 5).all(0)
        assert (masks["mask"] - inner)[:, inside].abs().max() < 2.1
        seen = (rows.max() - rows.min() + 1).item(), (columns.max() - columns.min() + 1).item()
        if height < 2 * width < 4 * height:  # else no such rectangle fits, and the middle is taken
            assert seen[0] * seen[1] >= 0.45 * height * width
        assert 0.7 <= seen[1] / seen[0] <= 1.42
        assert (columns[0, 0] > columns[0, -1]) == (flip == 1.0)
        for cells, places, extent in ((masks["coarse"] // 10, rows, height), (masks["coarse"] % 10, columns, width)):
            assert (cells * extent <= (places + 1) * 10).all() and ((cells + 1) * extent >= places * 10).all()


@pytest.mark.parametrize(("height", "width"), [(90, 120), (375, 500), (500, 200), (120, 500), (64, 64), (3, 1)])
def test_what_does_not_fit_is_the_middle_as_in_torchvision(height: int, width: int):
    theirs = RandomResizedCrop(8, (1.5, 2.0)).make_params([torch.zeros(3, height, width)])
    ours = draw_rectangle(height, width, (1.5, 2.0), keyed_generator(0))
    assert ours == (theirs["top"], theirs["left"], theirs["height"], theirs["width"])


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 2.0)])
def test_rectangles_are_drawn_as_in_torchvision(scale: tuple[float, float]):
    height, width, n = 60, 80, 4000
    generator = keyed_generator(1)
    ours = torch.tensor([draw_rectangle(height, width, scale, generator) for _ in range(n)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transform, image = RandomResizedCrop(8, scale), torch.zeros(3, height, width)
        drawn = [transform.make_params([image]) for _ in range(n)]
    theirs = torch.tensor([[one[key] for key in ("top", "left", "height", "width")] for one in drawn])
    assert (ours >= 0).all() and (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    assert {0, height - int(ours[:, 2].min())} & set(ours[:, 0].tolist())
    for power in (1, 2):
        a, b = (x.double().pow(power).mean(0) for x in (ours, theirs))
        assert torch.allclose(a, b, rtol=0.06), (power, a, b)
