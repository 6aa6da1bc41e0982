"""Models of other libraries as segmenters: the same predictions before they grow, after, and when they come back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.config import FMWISSConfig, WILSONConfig
from fmwiss.data.batches import Batch
from fmwiss.errors import UserError
from fmwiss.methods import FMWISS, build_method
from fmwiss.models import Segmenter
from fmwiss.models.adapted import AdaptedSegmenter
from fmwiss.models.foreign import open_foreign
from foreign_models import CITY, save_mobilenet, save_segformer, save_smp

KINDS: dict[str, Callable[[Path], Any]] = {
    "unet": lambda folder: save_smp(folder, "Unet"),
    "fpn": lambda folder: save_smp(folder, "FPN"),
    "deeplab": lambda folder: save_smp(folder, "DeepLabV3Plus"),
    "segformer": save_segformer,
    "mobilenet": save_mobilenet,
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param in ("segformer", "mobilenet"):
        pytest.importorskip("transformers")
    return str(request.param)


@pytest.fixture
def original(kind: str, tmp_path: Path) -> Any:
    return KINDS[kind](tmp_path)


@pytest.fixture
def adapted(original: Any, tmp_path: Path) -> AdaptedSegmenter:
    return open_foreign(tmp_path)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def scores_of(original: Any, adapted: AdaptedSegmenter, images: Tensor) -> Tensor:
    """The original's raw scores, of its own preprocessing."""
    given = original((images - adapted.mean) / adapted.std)
    scores: Tensor = given if isinstance(given, Tensor) else given.logits
    return scores


def test_probabilities_are_the_originals(original: Any, adapted: AdaptedSegmenter, images: Tensor) -> None:
    wanted = scores_of(original, adapted, images)
    first = 0 if adapted.has_background else 1
    assert len(adapted.class_names) == wanted.shape[1] + first
    with torch.no_grad():
        logits = adapted(images)
    assert (logits[:, first:].sigmoid() - wanted.softmax(1)).abs().max() < 1e-5
    full = F.interpolate(wanted, (50, 70), mode="bilinear", align_corners=False).argmax(1) + first
    assert torch.equal(adapted.predict_logits(images, (50, 70)).argmax(1), full)


@pytest.mark.parametrize("prior", [None, 0.02])
def test_growing_and_a_step_of_distillation_change_no_prediction(
    original: Any, adapted: AdaptedSegmenter, images: Tensor, prior: float | None, tmp_path: Path
) -> None:
    """The step: binary cross-entropy of the old labels with what the original says, the old targets of eq. 8 and 11.

    Its own library's probabilities are the targets; the same step with others moves it.
    """
    first = 0 if adapted.has_background else 1
    scores = scores_of(original, adapted, images)
    before = scores.softmax(1)
    adapted.save(tmp_path / "step0")

    def distilled(targets: Tensor) -> tuple[Tensor, Tensor]:
        """The old labels' probabilities of a grown model, and those after a step."""
        student = Segmenter.load(tmp_path / "step0")
        student.add_step(("forklift", "pallet jack"), "background", prior)
        student.eval()
        optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=1.0)
        grown = student(images)
        F.binary_cross_entropy_with_logits(grown[:, first : first + targets.shape[1]], targets).backward()
        optimizer.step()
        with torch.no_grad():
            return grown.detach().sigmoid(), student(images).sigmoid()

    grown, after = distilled(before)
    two = before.topk(2, dim=1).values
    clear = two[:, 0] - two[:, 1] > 2e-5  # a model without training has ties
    for probabilities in (grown, after):
        assert torch.equal(probabilities[:, first:].argmax(1)[clear], before.argmax(1)[clear])
        assert (probabilities[:, first : first + before.shape[1]] - before).abs().max() < 1e-5
    others = torch.zeros_like(before)
    others[:, 0] = 1
    assert (distilled(others)[1] - grown).abs().max() > 1e-3


def test_it_comes_back_as_it_was(adapted: AdaptedSegmenter, images: Tensor, tmp_path: Path) -> None:
    adapted.add_step(("forklift",), "background")
    adapted.add_step(("crane", "gate"), "plain", 0.1)
    adapted.save(tmp_path / "step2")
    again = Segmenter.load(tmp_path / "step2")
    assert isinstance(again, AdaptedSegmenter) and again.architecture == adapted.architecture
    assert again.class_names[-3:] == ("forklift", "crane", "gate") and not again.training
    with torch.no_grad():
        assert torch.equal(again(images), adapted.eval()(images))
    photograph = (images[0] * 255).to(torch.uint8)
    assert again.predict(photograph).shape == photograph.shape[1:]


def make_batch(side: int = 64) -> Batch:
    pseudo = torch.zeros(2, 1, side, side, dtype=torch.bool)
    pseudo[:, :, : side // 2] = True
    return Batch(
        ids=("a", "b"), image=torch.rand(2, 3, side, side), valid=torch.ones(2, side, side, dtype=torch.bool),
        pseudo=pseudo, tags=torch.ones(2, 1, dtype=torch.bool),
    )


def test_fmwiss_teaches_it_a_single_class(adapted: AdaptedSegmenter, tmp_path: Path) -> None:
    adapted.save(tmp_path / "step0")
    student, old = Segmenter.load(tmp_path / "step0"), Segmenter.load(tmp_path / "step0")
    student.add_step(("forklift",), "background", 0.02)
    method = FMWISS(student, old, FMWISSConfig(warmup_epochs=1, loss_stride=4), freeze_batch_norm=True)
    generator = torch.Generator().manual_seed(0)
    method.start_epoch(0)
    warm = method.training_step(make_batch(), generator)
    torch.stack(list(warm.values())).sum().backward()
    assert all(p.grad is None for p in student.parameters())
    assert float(warm["new_dcl"]) > 0  # negatives of the one class are the other pixels of the batch
    method.start_epoch(1)
    losses = method.training_step(make_batch(), generator)
    assert all(torch.isfinite(loss) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert student.classifier.steps[0].weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.encoder.parameters())
    groups = method.parameter_groups(1e-3, 10)
    held = [id(p) for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(held) == sorted({id(p) for p in method.parameters()} - {id(p) for p in old.parameters()})


def test_methods_of_one_map_of_features_say_no(tmp_path: Path) -> None:
    save_smp(tmp_path / "unet", "Unet")
    model = open_foreign(tmp_path / "unet")
    with pytest.raises(UserError, match=r"method.name"):
        model.decode(model.encode(torch.rand(1, 3, 64, 64)))
    model.save(tmp_path / "step0")
    old = Segmenter.load(tmp_path / "step0")
    model.add_step(("forklift",), "background")
    with pytest.raises(UserError, match=r"method.name"):
        method = build_method(WILSONConfig(), model, old)
        method.start_epoch(0)
        method.training_step(make_batch(), torch.Generator())


def test_new_rows_by_hand(tmp_path: Path) -> None:
    """Old rows 0, 1, 2 with weights 1, 2, 6 and biases 0.1, 0.2, 0.6."""
    save_smp(tmp_path / "m", "FPN")
    for background, rows, bias in ((None, 1.0, 0.1 + math.log(0.5)), ("none", 3.0, 0.3)):
        labels = ["background", "cat", "dog"] if background is None else ["wall", "cat", "dog"]
        model = open_foreign(tmp_path / "m", labels, background)
        old = model.classifier.old
        with torch.no_grad():
            for row, value in enumerate((1.0, 2.0, 6.0)):
                old.weight[row], old.bias[row] = value, value / 10  # type: ignore[index]
        model.add_step(("forklift",), "background")
        new: Any = model.classifier.steps[0]
        assert torch.allclose(new.weight, torch.full_like(new.weight, rows))
        assert new.bias.item() == pytest.approx(bias, abs=1e-6)
        assert old.bias[0].item() == pytest.approx(0.1)  # nothing old changes  # type: ignore[index]


def test_a_mean_of_rows_is_nowhere_the_largest(tmp_path: Path, images: Tensor) -> None:
    pytest.importorskip("transformers")
    save_segformer(tmp_path, CITY)
    model = open_foreign(tmp_path)
    model.add_step(("forklift",), "background")
    with torch.no_grad():
        logits = model.eval()(images)
    assert (logits[:, -1] < logits[:, :-1].amax(1)).all()


def test_labels_are_put_in_order(tmp_path: Path, images: Tensor) -> None:
    original = save_smp(tmp_path, "FPN", labels=("cat", "background", "dog"))
    model = open_foreign(tmp_path)
    assert model.class_names == ("background", "cat", "dog")
    wanted = scores_of(original, model, images).softmax(1)[:, [1, 0, 2]]
    with torch.no_grad():
        assert (model(images).sigmoid() - wanted).abs().max() < 1e-5


def test_a_binary_model_has_a_background_that_gives_way(tmp_path: Path, images: Tensor) -> None:
    original = save_smp(tmp_path, "FPN", classes=1, labels=("crack",))
    model = open_foreign(tmp_path)
    assert model.class_names == ("background", "crack") and model.has_background
    crack = scores_of(original, model, images).sigmoid()
    with torch.no_grad():
        assert (model(images).sigmoid() - torch.cat([1 - crack, crack], 1)).abs().max() < 1e-5
        model.add_step(("hole",), "background")
        grown = model.eval()(images)
    assert torch.allclose(grown[:, 0], -grown[:, 1:].amax(1))


def test_preprocessing_is_the_models_own(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    save_segformer(tmp_path, processor={
        "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"height": 80, "width": 96},
        "rescale_factor": 1 / 127.5,
    })
    model = open_foreign(tmp_path)
    # (x / 127.5 - mean) / std with x = 255 y is (y - mean / 2) / (std / 2)
    assert model.mean.flatten().tolist() == pytest.approx([0.05, 0.1, 0.15])
    assert model.std.flatten().tolist() == pytest.approx([0.2, 0.25, 0.3])
    assert model.architecture.resize == 80


def test_names_that_stand_twice_are_told_apart(tmp_path: Path) -> None:
    save_smp(tmp_path, "FPN", classes=4, labels=("background", "door", "Door", "wall "))
    assert open_foreign(tmp_path).class_names == ("background", "door", "Door (2)", "wall")


@pytest.mark.parametrize("damage", [None, "x", -1, [], {}, 10**6, 1.5], ids=str)
def test_a_damaged_description_is_told_in_one_sentence(damage: Any, tmp_path: Path) -> None:
    """Each value in turn; what is taken all the same must give a model."""
    save_smp(tmp_path / "unet", "Unet")
    folder = tmp_path / "model"
    open_foreign(tmp_path / "unet").save(folder)
    text = (folder / "model.json").read_text()

    def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        yield path
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, below in items:
            yield from places(below, (*path, key))

    refused = 0
    for *above, last in filter(None, places(json.loads(text))):
        description = inner = json.loads(text)
        for key in above:
            inner = inner[key]
        inner[last] = damage
        (folder / "model.json").write_text(json.dumps(description))
        try:
            assert isinstance(Segmenter.load(folder), Segmenter)
        except UserError as error:
            refused += 1
            assert str(error).count("\n") == 0 and str(folder) in str(error)
    assert refused > 20
