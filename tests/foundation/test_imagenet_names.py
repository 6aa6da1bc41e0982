from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F

from fmwiss.config import VisionLanguageConfig
from fmwiss.data.voc import VOC_CLASSES, VOCSource
from fmwiss.errors import UserError
from fmwiss.foundation import VisionLanguageModel, build_vision_language
from fmwiss.foundation.imagenet_names import ImageNetNames
from fmwiss.foundation.images import frozen
from fmwiss.foundation.synsets import class_synsets, find_synsets


def make(
    name: str = "test_efficientnet", overrides: dict[str, list[str]] | None = None, rivals: float = 0.0
) -> ImageNetNames:
    torch.manual_seed(0)
    return frozen(ImageNetNames(timm.create_model(name), name, overrides, rivals), "cpu")


# ResNet: a map, pooling, classifier. MobileNetV3 and ConvNeXt: layers between pooling and classifier.
@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "mobilenetv3_small_050", "test_convnext"])
def test_a_map_of_one_place_is_what_the_classifier_sees(name: str) -> None:
    model = make(name)
    images = torch.rand(2, 3, model.stride, model.stride)
    features = model.dense_features(images)
    assert features.shape[-2:] == (1, 1)
    normalized = model.normalize(images)
    with torch.inference_mode():
        pooled = model.classifier.forward_head(model.classifier.forward_features(normalized), pre_logits=True)
    torch.testing.assert_close(features[:, :, 0, 0], F.normalize(pooled.flatten(1), dim=1))


@pytest.mark.parametrize(("height", "width", "grid"), [(64, 96, (2, 3)), (65, 90, (2, 3)), (1, 1, (1, 1))])
def test_any_size_gives_a_grid_of_unit_vectors(height: int, width: int, grid: tuple[int, int]) -> None:
    features = make().dense_features(torch.rand(2, 3, height, width))
    assert features.shape[-2:] == grid
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, *grid))


def test_rows_are_the_classifiers_own() -> None:
    model = make()
    names = ["cow", "dog", "zebra"]
    rows, owner = model.text_embeddings(names)
    expected = [class_synsets().index(synset) for name in names for synset in find_synsets(name)]
    torch.testing.assert_close(rows, F.normalize(model.classifier.classifier.weight[expected], dim=1))
    assert owner.tolist() == [0] + [1] * 118 + [2]
    assert owner.dtype == torch.long


def test_scores_are_activations_along_the_best_row_of_a_class() -> None:
    model = make(overrides={"first": [class_synsets()[3]], "second": [class_synsets()[900], class_synsets()[7]]})
    images = torch.rand(2, 3, 64, 64)
    weight = F.normalize(model.classifier.classifier.weight, dim=1)
    with torch.inference_mode():
        features = model.classifier.forward_features(model.normalize(images))
    each = torch.einsum("bdhw,kd->bkhw", features, weight).clamp(min=0)
    assert each[:, [3, 7, 900]].max() > 0
    scores = model.scores(images, ["first", "second"])
    torch.testing.assert_close(scores[:, 0], each[:, 3])
    torch.testing.assert_close(scores[:, 1], torch.maximum(each[:, 900], each[:, 7]))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext"])
def test_rivals_weigh_a_score_with_the_classifiers_own_probability_at_the_place(name: str) -> None:
    overrides = {"first": [class_synsets()[3]], "second": [class_synsets()[900], class_synsets()[7]]}
    plain, model = make(name, overrides), make(name, overrides, rivals=0.5)
    stride = model.stride
    images = torch.rand(2, 3, 2 * stride, 3 * stride)
    scores, weighted = plain.scores(images, ["first", "second"]), model.scores(images, ["first", "second"])
    with torch.inference_mode():
        maps = model.classifier.forward_features(model.normalize(images))
        for y in range(2):
            for x in range(3):
                outputs = model.classifier.forward_head(maps[:, :, y : y + 1, x : x + 1])
                chances = outputs.double().exp() / outputs.double().exp().sum(1, keepdim=True)
                weights = torch.stack([chances[:, 3], chances[:, 900] + chances[:, 7]], dim=1).sqrt()
                torch.testing.assert_close(weighted[:, :, y, x], scores[:, :, y, x] * weights.float())
    assert weighted.max() > 0


def test_identity_changes_with_weights_overrides_and_rivals() -> None:
    assert make(rivals=0.5).identity != make().identity
    assert make().identity["scores"] == "activation"  # as it was before there were rivals
    model, other = make(), make(overrides={"cow": ["n02391049"]})
    assert isinstance(model, VisionLanguageModel)
    assert model.identity == make().identity
    assert model.identity["weights"] == other.identity["weights"]
    assert model.identity != other.identity


def test_unfit_models_are_errors() -> None:
    with pytest.raises(UserError, match="1,000 outputs, ImageNet's; test_efficientnet has 10"):
        ImageNetNames(timm.create_model("test_efficientnet", num_classes=10), "test_efficientnet")
    with pytest.raises(UserError, match="1,000 outputs, ImageNet's; test_vit has 0"):
        ImageNetNames(timm.create_model("test_vit", num_classes=0), "test_vit")
    with pytest.raises(UserError, match="test_vit gives no map"):
        ImageNetNames(timm.create_model("test_vit"), "test_vit")


def test_real_weights_know_what_real_photographs_show(shared_dir: Path) -> None:
    """On photographs of one class, that class mostly has the highest score of all twenty."""
    config = VisionLanguageConfig(name="imagenet-names", model="tf_efficientnet_lite0")
    model = build_vision_language(config, shared_dir / "weights")
    assert model.stride == 32
    source = VOCSource(shared_dir / "voc-mini")
    right = total = 0
    for image_id in source.ids("dev")[:40]:
        labels = set(source.read_mask(image_id).unique().tolist()) - {0, 255}
        if len(labels) == 1:
            image = F.interpolate(source.read_image(image_id)[None] / 255, (224, 224), mode="bilinear", antialias=True)
            best = model.scores(image, VOC_CLASSES).amax((2, 3)).argmax(1).item()
            right += best + 1 in labels
            total += 1
    assert total >= 15
    assert right / total > 0.5  # chance is 5 %
