"""evaluate: the confusion against predictions counted pixel by pixel, exact over batches and processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from fmwiss.config import Config, dump_config
from fmwiss.data.protocols import Protocol
from fmwiss.data.voc import VOC_CLASSES, VOCSource
from fmwiss.errors import UserError
from fmwiss.evaluation import evaluate, evaluate_run
from fmwiss.evaluation.evaluate import MOST_WAITING, _equal_shapes, center_crop
from fmwiss.models import Architecture, Segmenter

STEPS = (("aeroplane", "sofa"), ("sheep",), ("boat",))


def make_model(steps: tuple[tuple[str, ...], ...], resize: int | None = None) -> Segmenter:
    """A random model whose batch norms and classifier are scaled so that it predicts every class somewhere."""
    torch.manual_seed(0)
    model = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.5, steps, resize))
    images = F.interpolate(torch.rand(8, 3, 6, 6), size=(96, 96), mode="bicubic").clamp(0, 1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # statistics of the one pass that follows
    with torch.no_grad():
        model.train()(images)
        scores = model.eval()(images)
        std, mean = torch.std_mean(scores, dim=(0, 2, 3))
        first = 0
        for step in model.classifier.steps:
            part = slice(first, first := first + step.out_channels)
            step.bias.sub_(mean[part]).div_(std[part])
            step.weight.div_(std[part, None, None, None])
    return model


@pytest.fixture(scope="module")
def source(tiny_voc: Path) -> VOCSource:
    return VOCSource(tiny_voc)


def count(truth: np.ndarray, predicted: np.ndarray, table: dict[int, int], n_labels: int) -> np.ndarray:
    confusion = np.zeros((n_labels, n_labels), dtype=int)
    for t, p in zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if t != 255:
            confusion[table.get(t, 0), p] += 1
    return confusion


def label_table(steps: tuple[tuple[str, ...], ...]) -> dict[int, int]:
    names = [name for step in steps for name in step]
    return {VOC_CLASSES.index(name) + 1: label for label, name in enumerate(names, start=1)}


@pytest.mark.parametrize("n_steps", [1, 2, 3])
@pytest.mark.parametrize("resize", [None, 48])
def test_whole_photographs_against_a_loop_over_pixels(source: VOCSource, n_steps: int, resize: int | None) -> None:
    model, ids = make_model(STEPS[:n_steps], resize), source.ids("val")
    model.eval()
    n_labels = len(model.class_names)
    expected = np.zeros((n_labels, n_labels), dtype=int)
    for image_id in ids:
        truth = np.asarray(Image.open(source.mask_path(image_id)))
        predicted = model.predict(source.read_image(image_id)).numpy()
        expected += count(truth, predicted, label_table(STEPS[:n_steps]), n_labels)
    figures = evaluate(model, source, ids, Protocol(STEPS), batch_size=3)
    # with several threads a batch of three is rounded otherwise than one photograph, which may tip a near tie
    assert np.abs(np.asarray(figures.confusion) - expected).sum() <= 1e-3 * expected.sum()
    assert expected.sum(axis=0).all()
    assert (figures.step, figures.images) == (n_steps - 1, 8)
    assert list(figures.iou) == list(model.class_names)
    # void is left out, classes that are not learnt (yet) are background
    masks = [np.asarray(Image.open(source.mask_path(image_id))) for image_id in ids]
    assert expected.sum() == sum((mask != 255).sum() for mask in masks)
    unlearnt = sum(np.isin(mask, [1 + VOC_CLASSES.index(name) for name in ("bird", "bicycle")]).sum() for mask in masks)
    assert expected[0].sum() >= sum((mask == 0).sum() for mask in masks) + unlearnt > unlearnt > 0


@pytest.mark.parametrize("image", ["whole", "center-crop"])
def test_batches_change_nothing(source: VOCSource, image: str) -> None:
    model, protocol = make_model(STEPS), Protocol(STEPS)
    results = [
        evaluate(model, source, source.ids("val"), protocol, image=image, crop_size=64, batch_size=size)  # type: ignore[arg-type]
        for size in (1, 2, 8)
    ]
    assert results[0] == results[1] == results[2]
    assert all(map(any, zip(*results[0].confusion, strict=True)))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # the share of the third process is empty
def test_shares_of_processes_add_up(source: VOCSource) -> None:
    model, protocol, ids = make_model(STEPS), Protocol(STEPS), source.ids("val")
    whole = evaluate(model, source, ids, protocol)
    shares = [evaluate(model, source, ids, protocol, rank=rank, world_size=3) for rank in range(3)]
    summed = sum(torch.tensor(share.confusion) for share in shares)
    assert summed.tolist() == [list(row) for row in whole.confusion]  # type: ignore[union-attr]
    nothing = evaluate(model, source, ids[:2], protocol, rank=2, world_size=3)
    assert not any(map(any, nothing.confusion))


def test_the_models_mode_is_restored_and_its_weights_are_left_alone(source: VOCSource) -> None:
    model = make_model(STEPS).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, source, source.ids("val")[:1], Protocol(STEPS))
    assert model.training
    assert model.decoder.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    model.eval()
    evaluate(model, source, source.ids("val")[:1], Protocol(STEPS))
    assert not model.training


# ---------------------------------------------------------------------------------------------------------- centre crop


def test_center_crop_of_a_landscape() -> None:
    """60 x 100 to a shorter side of 30: 30 x 50, of which columns 10 to 40."""
    photograph = torch.arange(100, dtype=torch.uint8).expand(3, 60, 100)
    mask = torch.arange(100, dtype=torch.uint8).expand(60, 100)
    crop, labels = center_crop(photograph, mask, 30)
    assert crop.shape == (3, 30, 30)
    assert labels.shape == (30, 30)
    assert labels.dtype == torch.uint8
    # output column j is the centre of input columns 2 (10 + j) and 2 (10 + j) + 1
    expected = 2 * (10 + torch.arange(30)) + 0.5
    torch.testing.assert_close(crop[0, 0] * 255, expected, atol=1e-3, rtol=0)
    assert (labels[0] - expected).abs().max() <= 0.5


def test_center_crop_of_a_portrait_keeps_photograph_and_mask_aligned() -> None:
    edge = 41
    mask = torch.zeros(97, 53, dtype=torch.uint8)
    mask[edge:] = 7
    photograph = (mask > 0).to(torch.uint8).mul(255).expand(3, 97, 53)
    crop, labels = center_crop(photograph, mask, 32)
    assert crop.shape[-2:] == labels.shape == (32, 32)
    assert set(labels.unique().tolist()) == {0, 7}
    assert ((crop[0] > 0.5) == (labels == 7)).float().mean() > 0.96  # all rows but the one on the edge


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (64, 67), (500, 375), (333, 500), (9, 200)])
def test_center_crop_is_always_a_full_square(size: tuple[int, int]) -> None:
    crop, labels = center_crop(torch.zeros(3, *size, dtype=torch.uint8), torch.full(size, 255, dtype=torch.uint8), 64)
    assert crop.shape == (3, 64, 64)
    assert (labels == 255).all()


def test_center_crop_evaluation_counts_the_crops_pixels(source: VOCSource) -> None:
    model, ids = make_model(STEPS).eval(), source.ids("val")
    figures = evaluate(model, source, ids, Protocol(STEPS), image="center-crop", crop_size=48)
    n_labels = len(model.class_names)
    expected = np.zeros((n_labels, n_labels), dtype=int)
    for image_id in ids:
        crop, truth = center_crop(source.read_image(image_id), source.read_mask(image_id), 48)
        predicted = model.predict_logits(crop[None], (48, 48))[0].argmax(dim=0)
        expected += count(truth.numpy(), predicted.numpy(), label_table(STEPS), n_labels)
    assert figures.confusion == tuple(map(tuple, expected.tolist()))


# ------------------------------------------------------------------------------------------------- batches of one shape


def sample(height: int, width: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((1, 3, height, width), float(number)), torch.full((height, width), number)


def test_batches_have_one_shape_and_lose_nothing() -> None:
    samples = [sample(2 + n % 2, 3, n) for n in range(11)]
    batches = list(_equal_shapes(samples, 3))
    assert sorted(int(mask[0, 0]) for _, masks in batches for mask in masks) == list(range(11))
    for photographs, masks in batches:
        assert 1 <= len(photographs) == len(masks) <= 3
        assert len({photograph.shape for photograph in photographs}) == 1
        assert [int(p[0, 0, 0, 0]) for p in photographs] == [int(mask[0, 0]) for mask in masks]
    assert [len(masks) for _, masks in batches] == [3, 3, 3, 2]


def test_photographs_of_ever_new_shapes_do_not_pile_up() -> None:
    taken = 0

    def samples() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield sample(1, 1 + number, number)

    given = 0
    for photographs, _ in _equal_shapes(samples(), 2):
        given += len(photographs)
        assert taken - given <= 2 * MOST_WAITING
    assert given == 100


# ------------------------------------------------------------------------------------------------------- a run's folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    steps = [list(step) for step in STEPS]
    config = Config.model_validate({"protocol": {"steps": steps}, "evaluation": {"crop_size": 40}})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    make_model(STEPS[:1]).save(tmp_path / "step0")
    make_model(STEPS[:2]).save(tmp_path / "step1")
    return tmp_path


def test_evaluate_run_takes_the_last_step_and_the_validation_split(
    run: Path, tiny_voc: Path, source: VOCSource
) -> None:
    expected = evaluate(make_model(STEPS[:2]), source, source.ids("val"), Protocol(STEPS))
    assert evaluate_run(run, tiny_voc) == expected
    first = evaluate_run(run, tiny_voc, split="train_aug", step=0)
    assert (first.step, first.images, first.new) == (0, 16, None)
    crop = evaluate_run(run, tiny_voc, image="center-crop")
    assert crop.confusion != expected.confusion


def test_evaluate_run_says_what_is_missing(run: Path, tiny_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(UserError, match="step 2"):
        evaluate_run(run, tiny_voc, step=2)
    with pytest.raises(UserError, match="nosuch"):
        evaluate_run(run, tiny_voc, split="nosuch")
    with pytest.raises(UserError):
        evaluate_run(run / "nowhere", tiny_voc)
    copied = tmp_path_factory.mktemp("broken") / "voc"
    shutil.copytree(tiny_voc, copied)
    (copied / "SegmentationClassAug" / "val_000003.png").unlink()
    with pytest.raises(UserError, match="val_000003"):
        evaluate_run(run, copied)
    (run / "config.yaml").unlink()
    with pytest.raises(UserError):
        evaluate_run(run, tiny_voc)
