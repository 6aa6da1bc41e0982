"""Model: masks at the photographs' own sizes, whatever is given, in tiles or whole."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from PIL import Image

import fmwiss
from fmwiss.errors import UserError
from fmwiss.inference import Model, Prediction
from fmwiss.inference import model as module
from fmwiss.inference.model import check_tile
from fmwiss.inference.tiles import windows
from fmwiss.models import Segmenter

Lively: TypeAlias = Callable[..., Segmenter]
Scene: TypeAlias = Callable[..., Any]


def test_importing_fmwiss_loads_nothing_heavy() -> None:
    code = (
        "import sys, fmwiss, json; before = sorted({'torch', 'numpy', 'PIL', 'timm'} & set(sys.modules))\n"
        "print(json.dumps([before, 'load' in dir(fmwiss), hasattr(fmwiss, 'lod'), sorted(fmwiss.__all__)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], True, False, ["Model", "Prediction", "UserError", "__version__", "load"]]


@pytest.mark.parametrize(
    ("name", "unneeded"),
    [
        ("fmwiss.inference.model", {"open_clip", "transformers", "torchmetrics", "lightning_fabric", "matplotlib"}),
        ("fmwiss.reporting.report", {"open_clip", "torchvision", "timm", "torchmetrics", "lightning_fabric"}),
    ],
)
def test_a_short_command_does_not_wait_for_libraries_that_it_does_not_need(name: str, unneeded: set[str]) -> None:
    code = f"import sys, {name}; print(*sorted({unneeded} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_several_photographs_of_any_size_and_kind(model: Model, tmp_path: Path, scene: Scene) -> None:
    first, second = scene(70, 45), scene(33, 100, seed=1)
    Image.fromarray(first).save(tmp_path / "first.png")
    kinds: list[Any] = [
        first,
        str(tmp_path / "first.png"),
        second,
        torch.from_numpy(first).permute(2, 0, 1),
        Image.fromarray(second),
    ]
    masks = model.predict(kinds)
    assert [mask.shape for mask in masks] == [(70, 45), (70, 45), (33, 100), (70, 45), (33, 100)]
    assert all(mask.dtype == np.uint8 for mask in masks)
    for index in (1, 3):
        assert (masks[0] == masks[index]).all()
    assert (masks[2] == masks[4]).all()
    assert len(np.unique(masks[2])) > 1  # or nothing below would be tested
    for given, mask in zip(kinds, masks, strict=True):
        assert (model.predict(given) == mask).mean() > 0.999  # batches may round differently
    assert model.predict([]) == []


@pytest.mark.parametrize("resize", [None, 48])
@pytest.mark.parametrize("size", [(64, 64), (70, 45), (150, 211), (1, 1), (200, 9)])
def test_it_is_what_the_segmenter_predicts(
    resize: int | None, size: tuple[int, int], scene: Scene, lively: Lively
) -> None:
    model = Model(lively(resize=resize))
    image = scene(*size)
    expected = model.segmenter.predict(torch.from_numpy(image).permute(2, 0, 1)).numpy()
    assert (model.predict(image) == expected).all()
    for tile in ("auto", None, 2048):
        assert (model.predict(image, tile=tile) == expected).all()


def test_probabilities_are_the_sigmoids_of_the_logits(small_model: Model, scene: Scene) -> None:
    image = scene(60, 90)
    found = small_model.predict(image, probabilities=True)
    assert isinstance(found, Prediction)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    logits = small_model.segmenter.predict_logits(small_model.segmenter.to_working_size(tensor), (60, 90))[0]
    np.testing.assert_allclose(found.probabilities, logits.sigmoid().numpy(), atol=1e-6)
    assert (found.mask == found.probabilities.argmax(axis=0)).all()
    assert found.probabilities.dtype == np.float32 and found.probabilities.shape == (4, 60, 90)
    assert all(isinstance(one, Prediction) for one in small_model.predict([image, image], probabilities=True))


@pytest.mark.parametrize("resize", [None, 100])
def test_tiles_are_blended_as_by_hand(resize: int | None, scene: Scene, lively: Lively) -> None:
    model = Model(lively(resize=resize))
    image = scene(200, 330)
    parts = model.predict(image, tile=96, overlap=64, batch_size=3, probabilities=True)
    whole = model.predict(image, tile=None, probabilities=True)
    work = model.segmenter.to_working_size(torch.from_numpy(image).permute(2, 0, 1))
    height, width = work.shape[-2:]
    total = torch.zeros(4, -(-height // 16), -(-width // 16))
    weights = torch.zeros(total.shape[1:])
    for (top, bottom), (left, right) in itertools.product(windows(height, 96, 64), windows(width, 96, 64)):
        with torch.inference_mode():
            logits = model.segmenter(work[:, :, top:bottom, left:right])[0]
        for row, column in itertools.product(range(logits.shape[1]), range(logits.shape[2])):
            down = min(1, (row + 0.5) / 4) if top else 1
            up = min(1, (logits.shape[1] - row - 0.5) / 4) if bottom < height else 1
            rightwards = min(1, (column + 0.5) / 4) if left else 1
            leftwards = min(1, (logits.shape[2] - column - 0.5) / 4) if right < width else 1
            weight = min(down, up) * min(rightwards, leftwards)
            place = (top // 16 + row, left // 16 + column)
            total[:, place[0], place[1]] += weight * logits[:, row, column]
            weights[place] += weight
    full = torch.nn.functional.interpolate((total / weights)[None], size=(200, 330), mode="bilinear")[0]
    np.testing.assert_allclose(parts.probabilities, full.sigmoid().numpy(), atol=1e-5)
    assert (parts.mask == full.argmax(dim=0).numpy()).mean() > 0.999
    assert np.abs(whole.probabilities - parts.probabilities).mean() > 0.001  # it was cut indeed
    assert (model.predict(image, tile=96, overlap=64) == parts.mask).mean() > 0.999


def test_automatic_tiles_begin_beyond_a_number_of_pixels(
    model: Model, monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    seen: list[tuple[int, ...]] = []
    model.segmenter.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    monkeypatch.setattr(module, "LARGEST_WHOLE", 100 * 100)
    monkeypatch.setattr(module, "AUTOMATIC_TILE", 64)
    model.predict(scene(100, 100))
    assert seen == [(1, 3, 100, 100)]
    seen.clear()
    model.predict(scene(101, 192), batch_size=2)
    assert max(shape[0] for shape in seen) == 2 and max(max(shape[2:]) for shape in seen) == 64
    seen.clear()
    model.predict(scene(101, 100), tile=None)
    assert seen == [(1, 3, 101, 100)]
    model.segmenter._forward_pre_hooks.clear()


@pytest.mark.parametrize("tile", [None, 64])
def test_few_logits_are_held_at_once(
    small_model: Model, monkeypatch: pytest.MonkeyPatch, tile: int | None, scene: Scene
) -> None:
    image = scene(150, 211)
    expected = small_model.predict(image, tile=tile, probabilities=True)
    monkeypatch.setattr(module, "_VALUES", 4 * 211 * 7)
    largest = 0

    def watched(*args: Any) -> Any:
        nonlocal largest
        for first, rows in original(*args):
            largest = max(largest, rows.numel())
            yield first, rows

    original = module.resized_rows
    monkeypatch.setattr(module, "resized_rows", watched)
    found = small_model.predict(image, tile=tile, probabilities=True)
    assert 0 < largest <= 4 * 211 * 7
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
    assert (found.mask == expected.mask).mean() > 0.999


def test_resize_changes_the_size_that_the_model_sees(small_model: Model, scene: Scene, lively: Lively) -> None:
    image = scene(96, 120)
    assert (small_model.predict(image, resize=48) == small_model.predict(image)).all()
    own = Model(small_model.segmenter).predict(image, resize=None)
    plain = lively(resize=None)
    plain.load_state_dict(small_model.segmenter.state_dict())
    assert (own == Model(plain).predict(image)).all()
    assert (own != small_model.predict(image)).any()


def test_mixed_precision_gives_nearly_the_same(model: Model, scene: Scene) -> None:
    image = scene(80, 90)
    half = Model(model.segmenter, precision="bf16-mixed").predict(image, probabilities=True)
    full = model.predict(image, probabilities=True)
    assert half.probabilities.dtype == np.float32
    assert 0 < np.abs(half.probabilities - full.probabilities).max() < 0.2


def test_names_and_colours(model: Model) -> None:
    assert model.class_names == ("background", "cat", "potted plant", "sheep")
    assert dict(model.palette) == {
        "background": (0, 0, 0), "cat": (64, 0, 0), "potted plant": (0, 64, 0), "sheep": (128, 64, 0),
    }
    assert "sheep" in repr(model) and "cpu" in repr(model)


def test_an_overlay_shows_the_photograph_with_a_legend(model: Model) -> None:
    image, mask = np.full((40, 50, 3), 200, np.uint8), np.zeros((40, 50), np.uint8)
    mask[5:20, 5:20] = 3
    for kind in (image, Image.fromarray(image), torch.from_numpy(image).permute(2, 0, 1).float() / 255):
        for labels in (mask, torch.from_numpy(mask)):
            picture = model.overlay(kind, labels)
            assert picture.mode == "RGB" and picture.width >= 50 and picture.height > 40
            assert picture.getpixel((30, 30)) == (200, 200, 200)
            red, _, blue = picture.getpixel((10, 10))
            assert red > blue  # sheep is (128, 64, 0)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (np.zeros((3, 3), np.uint8), "the mask is of shape (3, 3) and the photograph of (40, 50)"),
        (np.full((40, 50), 4, np.uint8), "whole labels from 0 to 3"),
        (np.zeros((40, 50), np.float32), "whole labels from 0 to 3"),
        (None, "a mask is an array or a tensor, as predict gives it, not of type NoneType"),
        ([np.zeros((40, 50), np.uint8)], "not of type list"),
    ],
)
def test_an_overlay_refuses_what_is_no_mask_of_the_photograph(model: Model, mask: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        model.overlay(np.zeros((40, 50, 3), np.uint8), mask)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tile": 100}, "tile 100: must be auto, none or a multiple of 32 from 64"),
        ({"tile": 32}, "a multiple of 32 from 64"),
        ({"tile": "whole"}, "tile whole"),
        ({"tile": True}, "tile True"),
        ({"tile": 64, "overlap": 64}, "overlap 64: must be a multiple of 32 from 0 and below the tile's 64"),
        ({"overlap": 10}, "overlap 10"),
        ({"resize": 0}, "resize 0"),
        ({"resize": "big"}, "resize big"),
        ({"batch_size": 0}, "batch_size 0: must be at least 1"),
    ],
)
def test_options_out_of_range_are_told(model: Model, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        model.predict(np.zeros((8, 8, 3), np.uint8), **options)
    assert sentence in str(caught.value)


def test_none_is_taken_as_a_word_too(small_model: Model, scene: Scene) -> None:
    image = scene(96, 120)
    for words, values in (({"resize": "none"}, {"resize": None}), ({"tile": "none"}, {"tile": None})):
        assert (small_model.predict(image, **words) == small_model.predict(image, **values)).all()
    with pytest.raises(UserError, match=r"^--tile 33: must be auto, none or a multiple of 32 from 64$"):
        check_tile(33, "--tile")


def test_an_overlay_takes_a_prediction(small_model: Model, scene: Scene) -> None:
    image = scene(60, 50)
    prediction = small_model.predict(image, probabilities=True)
    assert small_model.overlay(image, prediction) == small_model.overlay(image, prediction.mask)


def test_load_takes_a_run_a_step_and_a_device(run: Path, scene: Scene, lively: Lively) -> None:
    image = scene(50, 60)
    expected = Model(lively(resize=48)).predict(image)
    for path in (run, str(run), run / "step1"):
        model = fmwiss.load(path, device="cpu")
        assert (model.predict(image) == expected).all() and not model.segmenter.training
    assert (fmwiss.load(run, step=1).predict(image) == expected).all()
    assert fmwiss.load(run, precision="bf16-mixed").precision == "bf16-mixed"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"step": 0}, "step 0 is not finished"),
        ({"device": "gpu"}, "device gpu: there is no such device here"),
        ({"device": "meta"}, "device meta: there is no such device here"),
        ({"device": "privateuseone"}, "device privateuseone: there is no such device here"),
        ({"precision": "8-true"}, "precision 8-true: must be one of 32-true"),
        ({"revision": "main"}, "a folder has no revision"),
    ],
)
def test_load_tells_what_is_wrong(run: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        fmwiss.load(run, **options)
    assert sentence in str(caught.value)
