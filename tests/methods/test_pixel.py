"""The methods that learn from masks: every loss of theirs against its equation written with probabilities."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.config import (
    CILConfig,
    Config,
    FTConfig,
    ILTConfig,
    JointConfig,
    LwFConfig,
    LwFMCConfig,
    MiBConfig,
    PixelConfig,
    PLOPConfig,
    RECALLConfig,
    SDRConfig,
)
from fmwiss.data.batches import Batch
from fmwiss.errors import UserError
from fmwiss.methods import PLOP, RECALL, SDR, Method, build_method, check_methods
from fmwiss.methods.plop import BINS, histogram_medians, published_threshold
from fmwiss.models import Architecture, HelperDecoder, Segmenter

N_OLD, N_ALL, SIZE, STRIDE = 3, 5, 48, 2
STEPS = (("aeroplane", "bicycle"), ("sheep", "sofa"))
SECTIONS = [
    JointConfig, FTConfig, LwFConfig, LwFMCConfig, ILTConfig, MiBConfig, PLOPConfig, CILConfig, SDRConfig, RECALLConfig,
]  # fmt: skip


def make_method(section: type[PixelConfig], **options: Any) -> Any:
    torch.manual_seed(0)
    student = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, STEPS, None))
    old_model = Segmenter(replace(student.architecture, steps=STEPS[:1]))
    spread(student)
    spread(old_model)
    method: Method = build_method(section(**{"loss_stride": STRIDE, **options}), student, old_model, True)  # type: ignore[arg-type]
    method.start_epoch(0)
    return method


@torch.no_grad()
def spread(model: Segmenter) -> None:
    """Let the outputs of a new model differ from place to place, around 0 and by about 2."""
    images = torch.rand(4, 3, SIZE, SIZE)
    for step in model.classifier.steps:
        torch.nn.init.normal_(step.weight)
    logits = model.eval()(images)
    mean, deviation = logits.mean(dim=(0, 2, 3)), logits.std(dim=(0, 2, 3))
    first = 0
    for step in model.classifier.steps:
        own = slice(first, first + step.out_channels)
        scale = 2 / deviation[own]
        step.bias.copy_((step.bias - mean[own]) * scale)
        step.weight.mul_(scale[:, None, None, None])
        first += step.out_channels


@pytest.fixture
def batch() -> Batch:
    """Two photographs with background, both new classes, void and padding."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.tensor([0, 0, 0, 3, 4, 255])[torch.randint(6, (2, 6, 6), generator=generator)]
    mask = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    valid = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    valid[:, :, -8:] = False
    mask[~valid] = 255
    return Batch(("a", "b"), torch.rand(2, 3, SIZE, SIZE, generator=generator), valid, mask=mask)


class Slow:
    """What the equations are about, pixel by pixel in a flat list: labels, and both models' probabilities."""

    def __init__(self, method: Any, batch: Batch) -> None:
        assert batch.mask is not None
        size = SIZE // STRIDE
        with torch.no_grad():
            new, old = (
                F.interpolate(model(batch.image), size=(size, size), mode="bilinear").double()
                for model in (method.student, method.old_model if hasattr(method, "old_model") else method.student)
            )
        self.new, self.old = (maps.permute(0, 2, 3, 1).flatten(0, 2) for maps in (new, old))
        self.p, self.q = self.new.softmax(dim=1), self.old.softmax(dim=1)
        inside = slice(STRIDE // 2, None, STRIDE)
        self.labels = batch.mask[:, inside, inside].flatten()
        self.valid = batch.valid[:, inside, inside].flatten()

    def cross_entropy(self, labels: Tensor) -> float:
        counted = labels != 255
        return float(-self.p[counted].gather(1, labels[counted][:, None]).log().mean())

    def unbiased_cross_entropy(self) -> float:
        counted = self.labels != 255
        p, labels = self.p[counted], self.labels[counted]
        of_label = p.gather(1, labels[:, None])[:, 0]
        return float(-torch.where(labels == 0, p[:, :N_OLD].sum(dim=1), of_label).log().mean())

    def distillation(self) -> float:
        p = self.new[self.valid][:, :N_OLD].softmax(dim=1)
        return float(-(self.q[self.valid] * p.log()).mean())

    def unbiased_distillation(self) -> float:
        p = self.p[self.valid]
        matched = torch.cat([p[:, :1] + p[:, N_OLD:].sum(dim=1, keepdim=True), p[:, 1:N_OLD]], dim=1)
        return float(-(self.q[self.valid] * matched.log()).mean())


def losses_of(method: Any, batch: Batch) -> dict[str, float]:
    return {name: loss.item() for name, loss in method.training_step(batch, torch.Generator()).items()}


def approx(expected: dict[str, float]) -> Any:
    return pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("section", [FTConfig, JointConfig])
def test_ft_and_joint(section: type[PixelConfig], batch: Batch) -> None:
    method = make_method(section)
    slow = Slow(method, batch)
    assert losses_of(method, batch) == approx({"ce": slow.cross_entropy(slow.labels)})
    assert all(name.startswith("student.") for name in method.state_dict())  # no old model is kept
    assert method.joint == (section is JointConfig)


def test_lwf_and_ilt(batch: Batch) -> None:
    method = make_method(LwFConfig)
    slow = Slow(method, batch)
    expected = {"ce": slow.cross_entropy(slow.labels), "distillation": 100 * slow.distillation()}
    assert losses_of(method, batch) == approx(expected)
    method = make_method(ILTConfig, feature_distillation=7.0)
    with torch.no_grad():
        first, second = (model.encode(batch.image) for model in (method.student, method.old_model))
    assert losses_of(method, batch) == approx({**expected, "features": 7 * float(((first - second) ** 2).mean())})


def test_lwf_mc(batch: Batch) -> None:
    method = make_method(LwFMCConfig)
    slow = Slow(method, batch)
    counted = slow.labels != 255
    s = slow.new[counted].sigmoid()
    right = F.one_hot(slow.labels[counted], N_ALL).bool()
    bce = -torch.where(right, s, 1 - s).log().sum(dim=1).mean()
    s, target = slow.new[slow.valid][:, :N_OLD].sigmoid(), slow.old[slow.valid].sigmoid()
    distillation = -(target * s.log() + (1 - target) * (1 - s).log()).mean()
    assert losses_of(method, batch) == approx({"bce": float(bce), "distillation": 10 * N_OLD * float(distillation)})


def test_mib(batch: Batch) -> None:
    method = make_method(MiBConfig)
    slow = Slow(method, batch)
    expected = {
        "unbiased_ce": slow.unbiased_cross_entropy(),
        "unbiased_distillation": 10 * slow.unbiased_distillation(),
    }
    assert losses_of(method, batch) == approx(expected)


def test_new_classifiers_share_the_backgrounds_probability() -> None:
    """What MiB, PLOP and SDR start from: the old labels keep theirs."""
    model = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, STEPS[:1], None)).eval()
    image = torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        before = model(image).softmax(dim=1)
        model.add_step(STEPS[1], "background")
        after = model(image).softmax(dim=1)
    assert torch.allclose(after[:, 1:N_OLD], before[:, 1:], atol=1e-5)
    for label in (0, 3, 4):
        assert torch.allclose(after[:, label], before[:, 0] / 3, atol=1e-5)


def test_cil(batch: Batch) -> None:
    method = make_method(CILConfig, distillation=2.0)
    slow = Slow(method, batch)
    new_class = (slow.labels == 3) | (slow.labels == 4)
    there = ~new_class & slow.valid  # background and void
    q, p = slow.q[there], slow.p[there][:, :N_OLD]
    weight = 1 - (q * q.log2()).sum(dim=1)
    expected = {
        "new_ce": slow.cross_entropy(slow.labels.where(new_class, 255)),
        "distillation": 2 * float(-(weight[:, None] * q * p.log()).sum(dim=1).mean()),
    }
    assert losses_of(method, batch) == approx(expected)


# ---------------------------------------------------------------------------------------------------------------- PLOP


def surveyed(method: PLOP, batch: Batch) -> dict[str, Tensor]:
    found = method.eval().survey([batch, batch])
    method.use_survey(found)
    method.start_epoch(0)
    return found


def test_plops_thresholds_are_medians_of_the_old_models_entropy(batch: Batch) -> None:
    method = make_method(PLOPConfig, lowest_threshold=0.01)
    slow = Slow(method, batch)
    entropy = -(slow.q * slow.q.log()).sum(dim=1) / math.log(N_OLD)
    thresholds = surveyed(method, batch)["thresholds"]
    predicted = slow.q.argmax(dim=1)
    met = 0
    for label in range(N_OLD):
        values = entropy[(slow.labels == 0) & (predicted == label)]
        # of an even number of values any between the two in the middle is a median
        low, high = (
            max(0.01, float(values.quantile(0.5, interpolation=side))) if len(values) else 0.01
            for side in ("lower", "higher")
        )
        assert low - 2 / BINS <= float(thresholds[label]) <= high + 2 / BINS
        met += len(values) > 0
    assert met > 1 and method.thresholds.equal(thresholds)


def test_medians_of_histograms_by_hand() -> None:
    """Ten bins: one value in the third, three in the fourth; none; two in the last."""
    histograms = torch.zeros(3, 10, dtype=torch.long)
    histograms[0, 2], histograms[0, 3], histograms[2, 9] = 1, 3, 2
    assert histogram_medians(histograms).tolist() == pytest.approx([0.3 + 0.1 / 3, 0.0, 0.95])


def test_plops_pseudo_labels_by_hand() -> None:
    """Of the background the old model is sure in one pixel of two; void and new classes keep their labels."""
    method = make_method(PLOPConfig)
    method.thresholds.copy_(torch.tensor([0.5, 0.5, 0.01]))
    sure, unsure = [0.0, 9.0, 0.0], [0.0, 0.1, 0.0]
    old = torch.tensor([sure, unsure, sure, sure]).T.reshape(1, 3, 2, 2)
    labels, share = method.pseudo_labels(torch.tensor([[[0, 0], [4, 255]]]), old)
    assert labels.tolist() == [[[1, 255], [4, 255]]] and share.tolist() == [0.5]
    labels, share = method.pseudo_labels(torch.tensor([[[3, 3], [4, 255]]]), old)
    assert labels.tolist() == [[[3, 3], [4, 255]]] and share.tolist() == [1.0]
    strict = torch.tensor([[0.0, 0.0, 5.0]] * 4).T.reshape(1, 3, 2, 2)  # of a class whose threshold is low
    assert method.pseudo_labels(torch.zeros(1, 2, 2, dtype=torch.long), strict)[1].tolist() == [0.0]


def test_plops_lowest_threshold_is_the_published_codes() -> None:
    """There u is smaller by |Y_{t-1}| log |Y_t| and lies in the first bin of 100, whose middle is .005."""
    assert published_threshold(16, 21) == pytest.approx(0.2436, abs=1e-4)  # 15-5: .08 times log 21, 3.0445
    assert published_threshold(11, 21) == pytest.approx(0.1674, abs=1e-4)
    assert published_threshold(61, 81) == 1.0  # COCO-to-VOC: .305 times 4.394 is more than all
    method = make_method(PLOPConfig)
    found = method.eval().survey([])
    assert found["thresholds"].tolist() == pytest.approx([0.005 * 3 * math.log(5)] * 3)
    assert make_method(PLOPConfig, lowest_threshold=0.3).survey([])["thresholds"].tolist() == pytest.approx([0.3] * 3)


@pytest.mark.parametrize(
    ("normalisation", "decoder"), [("mean", True), ("length", False), ("none", True), ("none", False)]
)
def test_plop(normalisation: str, decoder: bool, batch: Batch) -> None:
    options = {"pod_windows": [1], "pod": 0.3, "pod_logits": 0.2, "lowest_threshold": 0.001}
    method = make_method(PLOPConfig, pod_normalisation=normalisation, pod_decoder=decoder, **options)
    surveyed(method, batch)
    slow = Slow(method, batch)
    entropy = -(slow.q * slow.q.log()).sum(dim=1) / math.log(N_OLD)
    predicted = slow.q.argmax(dim=1)
    background = slow.labels == 0
    kept = background & (entropy < method.thresholds[predicted])
    labels = slow.labels.where(~background, predicted.where(kept, 255))
    per_photograph = background.view(2, -1).sum(dim=1)
    share = (kept.view(2, -1).sum(dim=1) / per_photograph).repeat_interleave(len(labels) // 2)
    assert 0 < float(share.min()) < 1
    known = labels != 255
    terms = -slow.p[known].gather(1, labels[known][:, None])[:, 0].log() * share[known]
    with torch.no_grad():
        stages = [model.encode_stages(batch.image) for model in (method.student, method.old_model)]
        models = (method.student, method.old_model)
        logits, decoded = zip(*[model.decode(own[-1]) for model, own in zip(models, stages, strict=True)], strict=True)
    if decoder:
        stages = [[*own, last] for own, last in zip(stages, decoded, strict=True)]
    merged = logits[0][:, :N_OLD].clone()
    merged[:, 0] += logits[0][:, 3] + logits[0][:, 4]

    def pooled(maps: Tensor) -> Tensor:
        squared = maps.double() ** 2
        both = torch.cat([squared.mean(dim=3).flatten(1), squared.mean(dim=2).flatten(1)], dim=1)
        return both / both.norm(dim=1, keepdim=True) if normalisation == "length" else both

    def distance(first: Tensor, second: Tensor, features: bool = True) -> float:
        distances = (pooled(first) - pooled(second)).norm(dim=1)
        if features and normalisation == "mean":
            distances /= (second.double() ** 2).mean(dim=(1, 2, 3))
        return float(distances.mean())

    factor = math.sqrt(N_ALL / 2) / (len(stages[0]) + 1)
    expected = {
        "pseudo_ce": float(terms.sum() / (slow.labels != 255).sum()),
        "pod": 0.3 * factor * sum(distance(a, b) for a, b in zip(*stages, strict=True)),
        "pod_logits": 0.2 * factor * distance(merged, logits[1], features=False),
    }
    assert losses_of(method, batch) == approx(expected)


# ----------------------------------------------------------------------------------------------------------------- SDR


def test_sdr(batch: Batch) -> None:
    weights = {"distillation": 2.0, "prototype_matching": 3.0, "attraction": 4.0, "repulsion": 5.0, "sparsity": 6.0}
    method = make_method(SDRConfig, **weights)
    generator = torch.Generator().manual_seed(1)
    carried = {"prototypes": torch.randn(N_OLD, method.prototypes.shape[1], generator=generator)}
    carried["counts"] = torch.tensor([0.0, 5.0, 7.0], dtype=torch.float64)
    method.use_carried([carried], more_follow=False)
    slow = Slow(method, batch)
    assert batch.mask is not None
    with torch.no_grad():
        features = method.student.encode(batch.image).permute(0, 2, 3, 1).flatten(0, 2)
        predicted = method.old_model(batch.image).argmax(dim=1).flatten()
    mask = batch.mask[:, 8::16, 8::16].flatten()
    old = predicted.where((mask == 0) & (predicted > 0), 255)
    means = {label: features[old == label].mean(dim=0) for label in (1, 2) if (old == label).any()}
    matching = [float(((mean - carried["prototypes"][label]) ** 2).mean()) for label, mean in means.items()]
    new = {label: features[mask == label] for label in (3, 4) if (mask == label).any()}
    attraction = [float(((own - own.mean(dim=0)) ** 2).mean()) for own in new.values()]
    all_means = [*means.values(), *(own.mean(dim=0) for own in new.values())]
    pairs = [float(1 / (a - b).norm()) for i, a in enumerate(all_means) for b in all_means[:i]]
    assert matching and attraction and pairs
    sparse = []
    for label in set(mask.tolist()) - {255}:
        own = features[mask == label].relu()
        own = own / own.max()
        sparse += (own.exp().sum(dim=1) / own.sum(dim=1)).tolist()
    expected = {
        "unbiased_ce": slow.unbiased_cross_entropy(),
        "unbiased_distillation": 2 * slow.unbiased_distillation(),
        "prototype_matching": 3 * sum(matching) / len(matching),
        "attraction": 4 * sum(attraction) / len(attraction),  # the prototypes are these places' means so far
        "repulsion": 5 * sum(pairs) / len(pairs),
        "sparsity": 6 * sum(sparse) / len(sparse),
    }
    assert losses_of(method, batch) == approx(expected)


def test_sdrs_prototypes_are_running_means(batch: Batch) -> None:
    """Two batches one after the other against the mean over both; old classes keep what was carried."""
    method = make_method(SDRConfig)
    prototypes = torch.ones(N_OLD, method.prototypes.shape[1])
    method.use_carried([{"prototypes": prototypes, "counts": torch.ones(N_OLD, dtype=torch.float64)}], False)
    assert batch.mask is not None
    other = replace(batch, image=batch.image.flip(0))
    with torch.no_grad():
        found = [method.student.encode(one.image).permute(0, 2, 3, 1).flatten(0, 2) for one in (batch, other)]
    for one in (batch, other):
        method.training_step(one, torch.Generator())
    mask = batch.mask[:, 8::16, 8::16].flatten()
    for label in (3, 4):
        own = torch.cat([features[mask == label] for features in found])
        assert len(own) > 0 and float(method.counts[label]) == len(own)
        assert torch.allclose(method.prototypes[label], own.mean(dim=0), atol=1e-5)
    assert method.prototypes[:N_OLD].equal(prototypes)
    carried = method.carried()
    assert carried["prototypes"].shape[0] == N_ALL
    assert {"prototypes", "counts"} <= set(method.learnt_state())


def test_sdrs_prototypes_of_the_base_are_means_of_its_features(batch: Batch) -> None:
    base = make_method(SDRConfig).old_model.eval()
    assert batch.mask is not None
    learnt = replace(batch, mask=torch.where((batch.mask > 2) & (batch.mask < 5), batch.mask - 2, batch.mask))
    found = SDR.carried_from_base(base, [learnt, learnt])
    with torch.no_grad():
        features = base.encode(batch.image).permute(0, 2, 3, 1).flatten(0, 2)
    mask = batch.mask[:, 8::16, 8::16].flatten()
    for label in (1, 2):
        own = features[mask == label + 2]
        assert float(found["counts"][label]) == 2 * len(own) > 0
        assert torch.allclose(found["prototypes"][label], own.mean(dim=0), atol=1e-5)
    assert float(found["counts"][0]) == 0  # the background has none


# -------------------------------------------------------------------------------------------------------------- RECALL


def replayed(batch: Batch) -> Batch:
    """The second photograph is a replayed one, with labels of old classes."""
    assert batch.mask is not None
    mask = batch.mask.clone()
    mask[1][(mask[1] == 3) | (mask[1] == 4)] -= 2
    return replace(batch, mask=mask, replayed=torch.tensor([False, True]))


def test_recall_restores_old_classes_in_the_new_background_alone(batch: Batch) -> None:
    method, batch = make_method(RECALLConfig), replayed(batch)
    slow = Slow(method, batch)
    own = torch.arange(len(slow.labels)) < len(slow.labels) // 2
    labels = torch.where((slow.labels == 0) & own, slow.q.argmax(dim=1), slow.labels)
    assert (labels != slow.labels).any()
    assert losses_of(method, batch) == approx({"ce": slow.cross_entropy(labels)})
    assert not any(p.requires_grad for p in method.student.encoder.parameters())


def test_recalls_helper_learns_the_steps_own_photographs_and_classes(batch: Batch) -> None:
    method, batch = make_method(RECALLConfig), replayed(batch)
    base = RECALL.carried_from_base(method.old_model, [])
    method.use_carried([base], more_follow=True)
    method.start_epoch(0)
    method.helper.eval()  # one photograph has no batch statistics
    assert batch.mask is not None
    with torch.no_grad():
        features = method.student.encode(batch.image[:1])
        logits = F.interpolate(method.helper(features), size=(24, 24), mode="bilinear").double()
    p = logits.softmax(dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    labels = batch.mask[0, 1::2, 1::2].flatten()
    counted = labels != 255
    place = (labels[counted] - 2).clamp(min=0)  # 3 and 4 are the helper's 1 and 2
    expected = float(-p[counted].gather(1, place[:, None]).log().mean())
    assert losses_of(method, batch)["helper_ce"] == pytest.approx(expected, rel=1e-4)
    assert {name.partition(".")[0] for name in method.carried()} == {"decoder", "classifier"}


def test_recall_labels_replayed_photographs_with_the_helper_of_their_step() -> None:
    """Step 0's helper is the base model itself; that of a later step gives the labels of its classes."""
    method = make_method(RECALLConfig)
    base = RECALL.carried_from_base(method.old_model, [])
    image = torch.rand(1, 3, 50, 41)
    method.use_carried([base], more_follow=False)
    method.eval()
    with torch.no_grad():
        size = (25, 21)
        predicted = F.interpolate(method.old_model(image), size=size, mode="bilinear")[0].argmax(dim=0)
    labels = method.replay_labels(image, "bicycle")
    assert labels.dtype == torch.uint8 and labels.equal(predicted.to(torch.uint8))

    grown = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, (*STEPS, ("cat",)), None))
    later = build_method(RECALLConfig(), grown, Segmenter(replace(grown.architecture, steps=STEPS)))
    helper = HelperDecoder(grown, 2)
    torch.nn.init.zeros_(helper.classifier.weight)
    with torch.no_grad():
        helper.classifier.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))  # type: ignore[union-attr]
    assert isinstance(later, RECALL)
    later.use_carried([base, helper.state_dict()], more_follow=False)
    assert later.eval() and later.replay_labels(image, "sofa").unique().tolist() == [4]


def test_recall_asks_for_photographs_and_for_an_encoder_that_helpers_know() -> None:
    with pytest.raises(UserError, match=r"give --replay DIR, or method\.replay"):
        check_methods(Config.model_validate({"method": {"name": "recall"}}))
    recall = {"name": "recall", "replay": "x", "encoder": "trained"}
    check_methods(Config.model_validate({"method": recall}))
    steps = {"steps": [["cat"], ["dog"], ["cow"]]}
    with pytest.raises(UserError, match=r"method.encoder = trained would leave the helpers"):
        check_methods(Config.model_validate({"method": recall, "protocol": steps}))


# ----------------------------------------------------------------------------------------------------------------- all


def prepared(section: type[PixelConfig], batch: Batch) -> tuple[Any, Batch]:
    method = make_method(section)
    if section is RECALLConfig:
        return method, replayed(batch)
    if section is PLOPConfig:
        surveyed(method, batch)
    return method, batch


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.model_fields["name"].default)
def test_what_learns_gets_a_finite_gradient_and_the_loss_falls(section: type[PixelConfig], batch: Batch) -> None:
    method, batch = prepared(section, batch)

    def total() -> Tensor:
        return torch.stack(list(method.training_step(batch, torch.Generator()).values())).sum()

    before = total()
    before.backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    gradients = [parameter.grad for parameter in method.parameters() if parameter.grad is not None]
    steepness = sum(float(gradient.square().sum()) for gradient in gradients)
    # a step that a straight line would take down by a thousandth
    torch.optim.SGD(method.parameter_groups(1e-3 * before.item() / steepness, 1.0)).step()
    assert total() < before


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.model_fields["name"].default)
def test_a_batch_of_padding_alone_has_finite_losses(section: type[PixelConfig], batch: Batch) -> None:
    method, batch = prepared(section, batch)
    assert batch.mask is not None
    nothing = replace(batch, valid=torch.zeros_like(batch.valid), mask=torch.full_like(batch.mask, 255))
    losses = losses_of(method, nothing)
    assert all(math.isfinite(value) for value in losses.values())
    assert all(value == 0 for name, value in losses.items() if name.endswith(("ce", "distillation")))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.model_fields["name"].default)
def test_half_precision_gives_the_same_losses_nearly(section: type[PixelConfig], batch: Batch) -> None:
    method, batch = prepared(section, batch)
    plain = losses_of(method, batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = method.training_step(batch, torch.Generator())
    assert all(loss.dtype == torch.float32 for loss in mixed.values())
    for name in plain:
        if name.endswith("ce"):
            assert mixed[name].item() == pytest.approx(plain[name], rel=0.2, abs=0.1)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.model_fields["name"].default)
def test_a_batch_without_masks_is_refused(section: type[PixelConfig], batch: Batch) -> None:
    method, batch = prepared(section, batch)
    with pytest.raises(ValueError, match="masks"):
        method.training_step(replace(batch, mask=None), torch.Generator())


def test_joint_needs_batch_norm_that_learns() -> None:
    frozen = {"steps": {"freeze_batch_norm": True}}
    with pytest.raises(UserError, match=r"training.steps.freeze_batch_norm = True .* set it to false"):
        check_methods(Config.model_validate({"method": {"name": "joint"}, "training": frozen}))


def test_a_stride_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"method.loss_stride = 5 does not divide"):
        check_methods(Config.model_validate({"method": {"name": "mib", "loss_stride": 5}}))
