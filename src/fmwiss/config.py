"""The experiment file as typed models.

One YAML file describes one experiment. A file may name another as its ``base`` (a path relative to itself); its own
keys then override the base's, mapping by mapping. On the command line ``--set path.to.key=value`` overrides again.
Unknown keys and values out of range raise :class:`~fmwiss.errors.UserError` with the key's path and the nearest right
key. The fields' descriptions are the reference documentation.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from fmwiss.errors import UserError

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
Scale = Annotated[float, Field(gt=0.0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ProtocolConfig(_Section):
    """Which classes are learnt when, and which images a step may see."""

    steps: str | list[list[str]] = Field(
        "15-5", description="a named split (15-5 and 10-10 of VOC, coco-to-voc) or the class names of every step, "
        "step 0 first, as in [[cat, dog], [sheep]]"
    )
    setting: Literal["disjoint", "overlap"] = Field("overlap", description="paper, section 4.1")

    @field_validator("steps", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        steps = value if isinstance(value, list | tuple) else [None]
        nested = all(isinstance(step, list | tuple) and all(isinstance(name, str) for name in step) for step in steps)
        if not isinstance(value, str) and not nested:
            raise ValueError("must be 15-5, 10-10 or a list of names for each step, as in [[cat, dog], [sheep]]")
        return value


class DataConfig(_Section):
    """What goes in, and how a photograph becomes a training sample."""

    source: Literal["voc", "folder", "coco", "coco-stuff", "coco-to-voc", "coco-to-voc-instances"] = Field(
        "voc", description="layout of the folder given by --data (see docs/data.md and docs/coco.md): VOC's, a folder "
        "of photographs with tags and indexed masks, one whose masks are outlines in COCO's instances files, COCO 2017 "
        "with COCO-Stuff's maps, or COCO and VOC side by side, COCO's masks from maps or outlines"
    )
    train_split: str = Field(
        "train_aug", description="file in ImageSets/Segmentation that lists the training ids; of folders a list in "
        "splits, or what val does not hold: their default is train"
    )
    val_split: str = Field(
        "val", description="file in ImageSets/Segmentation that lists the validation ids; of folders a list in splits, "
        "or a fifth of the photographs with masks"
    )
    also: tuple[str, ...] = Field(
        (), description="further lists of photographs that the model is compared with after every step but step 0, as "
        "[voc-val] of COCO-to-VOC"
    )
    tags: str = Field(
        "masks",
        description="where image-level tags come from: 'masks' (the classes in SegmentationClassAug, read once into an "
        "index), 'xml' (the objects in VOC's Annotations) or the path of a CSV table 'file,tags' (tags split by ';'); "
        "of folders the path is that of a CSV, JSON lines or COCO file in place of their own, and adds to the masks; "
        "of coco-stuff and coco-to-voc 'masks' or 'instances' (COCO's instances files)",
    )
    crop_size: PositiveInt = Field(512, description="side of a training crop in pixels")
    resize: PositiveInt | None = Field(
        None, description="working size: every photograph is first scaled so that its shorter side has this many "
        "pixels, in training and in evaluation; null keeps the photograph's own size"
    )
    crop: Literal["window", "resized"] = Field(
        "window", description="a training crop is a square window of the photograph, which is padded where the "
        "photograph ends, or a rectangle within the photograph that is stretched to a square (WILSON; torchvision's "
        "RandomResizedCrop), for which resize does not count"
    )
    scale: tuple[float, float] = Field(
        (0.5, 2.0), description="range of the random scale of the photograph's sides, applied on top of resize; of "
        "resized crops the range of the rectangle's area over the photograph's, where what is above 1 never fits"
    )
    flip: Probability = Field(0.5, description="probability of a horizontal flip")
    fraction: float = Field(
        1.0, gt=0.0, le=1.0, description="share of the photographs that the steps after 0 use (Table 10)"
    )
    negatives: float = Field(
        0.0, ge=0.0, description="photographs without a class of the step that fmwiss and finetuning take into a step "
        "after 0, for each one with a class, as far as there are so many; they show where the classes are not, so tags "
        "have to be complete (method.untagged_absent)"
    )
    workers: int = Field(2, ge=0, description="loader processes; 0 loads in the main process")

    @model_validator(mode="before")
    @classmethod
    def _default_list(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("source", "voc") != "voc":
            return {"train_split": "train", **values}
        return values

    @field_validator("scale")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be two positive numbers, the smaller first")
        return value


class SegmenterConfig(_Section):
    """timm encoder + DeepLabV3 decoder + incremental classifier."""

    encoder: str = Field("resnet101", description="timm model name")
    pretrained: bool = Field(True, description="start the encoder from ImageNet weights (--weights folder, else hub)")
    output_stride: Literal[8, 16] = Field(16, description="input pixels per feature pixel")
    decoder_channels: PositiveInt = Field(256, description="channels of the decoder's output")
    atrous_rates: tuple[PositiveInt, PositiveInt, PositiveInt] = Field((6, 12, 18), description="dilations of the ASPP")
    dropout: Probability = Field(0.5, description="dropout after the ASPP's projection")
    classifier_init: Literal["background", "plain"] = Field(
        "background", description="how a new class's classifier starts: from the background's weights as in MiB, "
        "or from the layer's own random initialisation"
    )
    class_prior: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of the pixels that a class which is to be learnt has at the start, by the bias of its "
        "output (RetinaNet), in step 0, in plain new classifiers and in FMWISS's teacher; null: the layer's own bias"
    )


class OptimizationConfig(_Section):
    """Optimizer and poly schedule for one kind of step."""

    epochs: PositiveInt = Field(40, description="epochs over the step's photographs")
    batch_size: PositiveInt = Field(24, description="photographs per iteration, over all processes")
    accumulate: PositiveInt = Field(
        1, description="parts into which each process cuts its photographs of an iteration, computed one after the "
        "other for the sake of memory; batch norm that is not frozen sees one part at a time"
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum (paper), or AdamW")
    learning_rate: float = Field(1e-3, gt=0, description="rate of the encoder at the first iteration")
    head_rate: float = Field(10.0, gt=0, description="rate of decoder, classifiers and teacher, as a multiple")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum, AdamW's first beta")
    nesterov: bool = Field(False, description="SGD's momentum is Nesterov's; AdamW has none")
    weight_decay: float = Field(1e-4, ge=0, description="added to the gradient by SGD, decoupled from it by AdamW")
    poly_power: float = Field(0.9, ge=0, description="rate x (1 - iteration / iterations) ** poly_power")
    constant_epochs: int = Field(
        0, ge=0, description="of the epochs, the first ones, whose rate is the first iteration's; then it drops to "
        "what poly_power says of the iteration (WILSON: localizer_epochs)"
    )
    freeze_batch_norm: bool = Field(
        False, description="keep the encoder's and decoder's batch norm statistics as the step found them"
    )

    @field_validator("nesterov")
    @classmethod
    def _has_momentum(cls, value: bool, info: ValidationInfo) -> bool:
        if value and (info.data.get("optimizer") == "adamw" or info.data.get("momentum") == 0):
            raise ValueError("must be false unless optimizer is sgd and momentum is above 0")
        return value

    @field_validator("constant_epochs")
    @classmethod
    def _leaves_some(cls, value: int, info: ValidationInfo) -> int:
        if value >= info.data.get("epochs", math.inf):
            raise ValueError(f"must be less than epochs, which is {info.data['epochs']}")
        return value


class BaseOptimizationConfig(OptimizationConfig):
    """The same for step 0, whose defaults are WILSON's."""

    epochs: PositiveInt = Field(30, description="epochs over the step's photographs")
    learning_rate: float = Field(1e-2, gt=0, description="rate of the encoder at the first iteration")
    head_rate: float = Field(1.0, gt=0, description="rate of decoder, classifiers and teacher, as a multiple")
    loss_stride: PositiveInt = Field(1, description="the loss is taken at 1 / loss_stride of the crop's resolution")
    loss: Literal["bce", "cross-entropy"] = Field(
        "bce", description="binary cross-entropy of every label on its own (WILSON, FMWISS), or cross-entropy over a "
        "softmax of all of them, which the methods that learn from masks go on from"
    )


class TrainingConfig(_Section):
    """Both kinds of step, and what the loop does beside learning."""

    step0: BaseOptimizationConfig = BaseOptimizationConfig()
    steps: OptimizationConfig = OptimizationConfig()
    seed: int = Field(0, ge=0)
    gradient_clip: float | None = Field(None, gt=0, description="largest norm of the gradient; null does not clip")
    validate_every: int = Field(0, ge=0, description="epochs between validations on val_split; 0: only after the last")
    checkpoint_every: PositiveInt = Field(200, description="iterations between checkpoints (and at every epoch's end)")
    sync_batch_norm: bool | Literal["auto"] = Field(
        "auto", description="batch norm takes its statistics over all processes in place of each one's, which torch "
        "can on CUDA alone; auto: where it can"
    )
    compile: bool = Field(False, description="encoders, decoders and teachers go through torch.compile")
    activation_checkpointing: bool = Field(
        False, description="blocks of the encoder are computed again in the backward pass in place of being kept"
    )


class VisionLanguageConfig(_Section):
    """The model that scores pixels for class names (eq. 1-3)."""

    name: Literal["clip", "imagenet-names"] = "clip"
    model: str = Field(
        "ViT-B-16-quickgelu", description="open_clip model for 'clip', timm classifier of 1000 ImageNet classes for "
        "'imagenet-names'"
    )
    tag: str | None = Field("openai", description="open_clip's pretrained tag, or null for random weights (tests)")
    input_size: PositiveInt = Field(448, description="longer side of the photograph that the model sees, in pixels")
    rows: dict[str, list[str]] = Field(
        default_factory=dict, description="class name -> synonyms (clip) or WordNet synset ids (imagenet-names) that "
        "stand for it, in place of what is found by default"
    )
    background: list[str] = Field(
        default_factory=list, description="clip: names of things that compete with the classes as background"
    )
    prompt_denoising: bool = Field(False, description="clip: drop classes that are nowhere the best (MaskCLIP)")
    rivals: float = Field(
        0.0, ge=0, description="imagenet-names: power with which the classifier's probability of a class at a place, "
        "among all of ImageNet's, counts in its score; 0: not at all"
    )
    key_smoothing: bool = Field(False, description="clip: smooth scores with the last block's keys (MaskCLIP)")

    @property
    def competing(self) -> bool:
        """Whether a class's scores depend on the other names."""
        return self.name == "clip" and (bool(self.background) or self.prompt_denoising or self.key_smoothing)


class SelfSupervisedConfig(_Section):
    """The model whose attention completes objects (eq. 4)."""

    model: str = Field("vit_large_patch16_224", description="timm ViT; DINO, iBOT and DINOv2/v3 weights fit")
    checkpoint: Path | None = Field(
        None, description="original DINO or iBOT checkpoint, or safetensors: a path, or a file in the --weights "
        "folder; null: by timm name from --weights or hub"
    )
    pretrained: bool = Field(True, description="false: random weights (a control, and tests)")
    input_size: PositiveInt = Field(448, description="longer side of the photograph that the model sees, in pixels")


class PlusConfig(_Section):
    """Co-segmentation beyond the paper: ``cosegmentation.name`` is fmwiss-plus (see docs/methods/fmwiss-plus.md)."""

    score_scales: tuple[Scale, ...] = Field(
        (1.0,), min_length=1, description="sizes at which the vision-language model sees a photograph, as multiples "
        "of its input_size; its scores are averaged"
    )
    feature_scales: tuple[Scale, ...] = Field(
        (1.0, 1.3), min_length=1, description="the same of the self-supervised model; its features are averaged on the "
        "patch grid of the first one"
    )
    flip: bool = Field(True, description="both models see the photographs' mirror images, too")
    temperature: float = Field(0.07, gt=0, description="tau, of the softmax over the patches' cosines")
    background: float | None = Field(
        1.0, gt=0, description="beta: (1 - largest score) ** beta competes as background in every round; null: nothing "
        "does"
    )
    presence: float = Field(
        0.0, ge=0, description="gamma: before they compete with the background, maps are multiplied by (largest score "
        "of the class / of all tagged classes) ** gamma; 0: all tagged classes compete alike"
    )
    rounds: PositiveInt = Field(1, description="times that the maps flow along the patches' similarities")
    resolution: PositiveInt = Field(7, description="places of the masks per patch, in each direction")
    pamr_iterations: int = Field(
        10, ge=0, description="iterations of pixel-adaptive mask refinement; 0: masks are enlarged and no more"
    )
    pamr_dilations: tuple[PositiveInt, ...] = Field(
        (1, 2, 4), min_length=1, description="distances of PAMR's neighbours, in places of the masks"
    )
    exclusive: bool = Field(
        True, description="a place belongs to at most one of a photograph's tagged classes, that with the largest map"
    )
    threshold: float = Field(0.45, ge=0, lt=1, description="places above this are a class's")

    @model_validator(mode="after")
    def _competing(self) -> PlusConfig:
        if self.presence and self.background is None:
            raise ValueError("presence weighs classes that compete with a background; give background a number, too")
        return self


class CosegmentationConfig(_Section):
    """Equations 1-5, and what goes beyond them."""

    name: Literal["fmwiss", "fmwiss-plus"] = Field(
        "fmwiss", description="equations 1-5 of the paper, or the library's own way from scores to masks, whose "
        "options are under plus; it shares source, both models, init_threshold and batch_size with the paper's"
    )
    source: Literal["foundation", "true-masks"] = Field(
        "foundation", description="'true-masks' puts the truth in place of M_refine: a diagnostic upper bound that "
        "opens masks; its results are marked"
    )
    vision_language: VisionLanguageConfig = VisionLanguageConfig()
    self_supervised: SelfSupervisedConfig = SelfSupervisedConfig()
    init_threshold: float = Field(0.5, ge=0, lt=1, description="min-max scaled scores above this are foreground")
    n_seeds: PositiveInt = Field(9, description="N, random seed points per class and photograph")
    k: float = Field(70.0, gt=0, lt=100, description="K, per cent: locations above the K-th percentile are kept")
    binarize: Literal["percentile", "mass"] = Field(
        "percentile", description="'mass' keeps the locations that hold the largest (100 - K) % of the attention"
    )
    fusion: Literal["none", "intersection", "union"] = Field("union", description="eq. 5; none keeps M_init alone")
    batch_size: PositiveInt = Field(8, description="photographs per forward pass of the frozen models")
    plus: PlusConfig = PlusConfig()

    @property
    def competing(self) -> bool:
        """Whether a class's mask depends on the other names."""
        plus = self.name == "fmwiss-plus" and (self.plus.exclusive or self.plus.background is not None)
        return plus or self.vision_language.competing


class CopyPasteConfig(_Section):
    """Memory bank and copy-paste augmentation (section 3.4)."""

    bank_size: int = Field(50, ge=0, description="B, instances kept per old class; 0: no memory, no copy-paste")
    probability: Probability = Field(0.5, description="probability that an instance is pasted into a photograph")
    min_area: Probability = Field(0.01, description="smallest share of its photograph that an instance may cover")
    learnt_classes: bool = Field(
        False, description="classes learnt from tags enter the bank too, with the model's own masks"
    )


class FMWISSConfig(_Section):
    """Equations 6-12, and the readings where they are silent (see docs/methods/fmwiss.md)."""

    name: Literal["fmwiss"] = "fmwiss"
    lambda_dcl: float = Field(0.1, ge=0, description="lambda, weight of the dense contrastive loss (eq. 12)")
    tau: float = Field(0.1, gt=0, description="temperature of the dense contrastive loss (eq. 7)")
    points_per_class: PositiveInt = Field(10, description="pixels drawn per class and mini-batch for eq. 7")
    gather_points: bool = Field(
        False, description="eq. 7's pixels are drawn from the photographs of all processes together, keyed by "
        "photograph, in place of from each process's own"
    )
    alpha: Probability = Field(0.5, description="hard against soft teacher output (eq. 10)")
    beta: Probability = Field(0.9, description="old model against teacher for the old classes (eq. 10)")
    warmup_epochs: int = Field(5, ge=0, description="epochs before the others in which only the teacher learns")
    hard_classes: Literal["all", "tagged"] = Field(
        "tagged", description="classes over which |.|_hard takes its maximum: all of Y_t, or old and tagged new ones"
    )
    teacher_background: Literal["old-model", "complement"] = Field(
        "complement", description="background's target in eq. 8 where M_refine holds a tagged class: the old model's "
        "(as printed) or 1 - M_refine"
    )
    student_background: Literal["printed", "minimum", "lowered"] = Field(
        "lowered", description="background's target in eq. 10: the weighted mean as printed, the minimum of old model "
        "and teacher (as in WILSON), or the mean capped at one minus the largest new-class target"
    )
    untagged_absent: bool = Field(True, description="new classes without a tag count as absent from the photograph")
    encoder_gradient: bool = Field(False, description="gradients of the teacher's losses reach the encoder")
    pasted_others: Literal["zero", "old-model"] = Field(
        "zero", description="eq. 9's target of the other classes under a pasted instance: 0, or the old model's output"
    )
    pasted_student: Literal["override", "printed"] = Field(
        "override", description="eq. 10's target under a pasted instance: the instance's class, or as printed"
    )
    loss_stride: PositiveInt = Field(
        1, description="pixel losses are taken at 1 / loss_stride of the crop's resolution"
    )


class FineTuningConfig(_Section):
    """Plain fine-tuning on the pseudo masks, nothing against forgetting: a control (see docs/methods/finetuning.md)."""

    name: Literal["finetuning"] = "finetuning"
    loss: Literal["bce", "cross-entropy"] = Field(
        "bce", description="binary cross-entropy of every label on its own, as in the other steps, or cross-entropy "
        "over all of them"
    )
    loss_stride: PositiveInt = Field(
        1, description="pixel losses are taken at 1 / loss_stride of the crop's resolution"
    )


class WILSONConfig(_Section):
    """WILSON's constants, and readings where its paper and its published code differ (see docs/methods/wilson.md)."""

    name: Literal["wilson"] = "wilson"
    alpha: Probability = Field(0.5, description="hard against soft localizer output; WILSON takes 0.9 for COCO")
    pseudo_labels: Literal["localizer", "pseudo-masks"] = Field(
        "localizer", description="what teaches the student new classes: the localizer, or the masks that "
        "cosegmentation gives in its place (Table 9, if those are the true ones)"
    )
    localizer_epochs: int = Field(
        5, ge=0, description="of the configured epochs, the first ones, in which the localizer teaches nobody yet"
    )
    focal_lambda: float = Field(0.01, gt=0, description="lambda of the focal penalty, which is at most -log(lambda)")
    focal_p: float = Field(3.0, ge=1, description="exponent of the focal penalty")
    background_cutoff: Probability = Field(
        0.7, description="self-supervision: background where its mask is above this share of its largest value"
    )
    class_cutoff: Probability = Field(0.6, description="self-supervision: the same of a tagged new class")
    lowest_cutoff: Probability = Field(0.2, description="self-supervision: no label where a mask is below this")
    pamr_iterations: int = Field(10, ge=0, description="iterations of pixel-adaptive mask refinement; 0 does without")
    pamr_dilations: tuple[PositiveInt, ...] = Field(
        (1, 2, 4, 8, 12), min_length=1, description="distances of PAMR's neighbours, in places of the feature map"
    )
    feature_distillation: float = Field(
        1.0, ge=0, description="weight of the squared distance between the student's and the old model's features"
    )
    encoder_gradient: bool = Field(True, description="gradients of the localizer's losses reach the encoder")
    hard_classes: Literal["new", "tagged"] = Field(
        "new", description="classes over which the hard labels take their maximum: background and tagged new ones, or "
        "all old ones too"
    )
    gate: Literal["hard", "soft"] = Field(
        "hard", description="a photograph counts for the student if its hard labels are of exactly the tagged new "
        "classes; soft ones always are (published code)"
    )
    segmentation_reduction: Literal["sum-classes", "mean"] = Field(
        "sum-classes", description="the student's loss is summed over classes (published code) or averaged"
    )
    untagged_absent: bool = Field(True, description="new classes without a tag count as absent from the photograph")


class LocatorConfig(OptimizationConfig):
    """How a locator learns from tags, before the student."""

    epochs: PositiveInt = Field(10, description="epochs over the step's photographs")
    batch_size: PositiveInt = Field(16, description="photographs per iteration, over all processes")
    head_rate: float = Field(10.0, gt=0, description="rate of the locator's own layers, as a multiple")
    freeze_batch_norm: bool = Field(True, description="keep the encoder's batch norm statistics")


class OfflineConfig(_Section):
    """What offline methods share: a locator makes hard masks once, then the student learns them."""

    name: str
    locator: LocatorConfig = LocatorConfig()
    encoder: Literal["frozen", "trained"] = Field(
        "trained", description="whether the locator's encoder, the old model's to begin with, learns too"
    )
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 1.0, 1.5, 2.0), min_length=1, description="sizes at which a photograph is looked at to make its mask"
    )
    flip: bool = Field(True, description="its mirror images are looked at too")
    segmentation_reduction: Literal["sum-classes", "mean"] = Field(
        "sum-classes", description="the student's loss is summed over classes (WILSON's published code) or averaged"
    )
    student_gate: Literal["none", "exact"] = Field(
        "none", description="photographs that count for the student: all (WILSON's published code, of masks that are "
        "made before), or those whose crop's masks are of exactly the tagged new classes (as of WILSON's localizer)"
    )
    untagged_absent: bool = Field(True, description="new classes without a tag count as absent from the photograph")
    loss_stride: PositiveInt = Field(
        1, description="pixel losses are taken at 1 / loss_stride of the crop's resolution"
    )


class ActivationMapConfig(OfflineConfig):
    """Those whose maps are cut at a constant."""

    background_score: Probability = Field(
        0.2, description="a class has the places where its map is above this share of its largest value"
    )


class CAMConfig(ActivationMapConfig):
    """Class activation maps (see docs/methods/cam.md)."""

    name: Literal["cam"] = "cam"
    encoder: Literal["frozen", "trained"] = Field(
        "frozen", description="whether the locator's encoder, the old model's to begin with, learns too"
    )


class SEAMConfig(ActivationMapConfig):
    """Self-supervised equivariant attention (see docs/methods/seam.md)."""

    name: Literal["seam"] = "seam"
    background_score: Probability = Field(
        0.26, description="a class has the places where its map is above this share of its largest value"
    )


class SSConfig(OfflineConfig):
    """Single-stage segmentation from image labels (see docs/methods/ss.md)."""

    name: Literal["ss"] = "ss"
    pretraining_epochs: int = Field(
        5, ge=0, description="of the locator's epochs, the first ones, without its self-supervision"
    )
    gate: float = Field(0.3, ge=0, lt=1, description="psi, share of the shallow features in the stochastic gate")
    pamr_iterations: int = Field(10, ge=0, description="iterations of pixel-adaptive mask refinement; 0 does without")
    pamr_dilations: tuple[PositiveInt, ...] = Field(
        (1, 2, 4, 8, 12, 24), min_length=1, description="distances of PAMR's neighbours, in places of the masks"
    )
    background_power: float = Field(3.0, gt=0, description="the background's mask counts to this power in hard masks")


class EPSConfig(ActivationMapConfig):
    """Explicit pseudo-pixel supervision by saliency (see docs/methods/eps.md)."""

    name: Literal["eps"] = "eps"
    tau: Probability = Field(
        0.4, description="a class is part of the saliency if more than this share of its places is salient"
    )
    lam: Probability = Field(0.5, description="lambda, foreground against background in the saliency that maps imply")
    saliency: Path | None = Field(
        None, description="folder of saliency maps of another network, a grey picture ID.png of each photograph and of "
        "its size, 255 where something stands out; null: the foreground that the self-supervised model finds"
    )


class PixelConfig(_Section):
    """What the methods share that learn new classes from masks."""

    name: str
    loss_stride: PositiveInt = Field(
        1, description="pixel losses are taken at 1 / loss_stride of the crop's resolution"
    )


class JointConfig(PixelConfig):
    """All classes seen so far from all their masks, in one training: the upper bound (see docs/methods/joint.md)."""

    name: Literal["joint"] = "joint"


class FTConfig(PixelConfig):
    """Cross-entropy on the step's masks alone: the lower bound (see docs/methods/ft.md)."""

    name: Literal["ft"] = "ft"


class LwFConfig(PixelConfig):
    """Learning without forgetting (see docs/methods/lwf.md)."""

    name: Literal["lwf"] = "lwf"
    distillation: float = Field(100.0, ge=0, description="weight of the distillation of the old model's softmax")


class LwFMCConfig(PixelConfig):
    """Learning without forgetting in iCaRL's multi-class form (see docs/methods/lwf-mc.md)."""

    name: Literal["lwf-mc"] = "lwf-mc"
    distillation: float = Field(
        10.0, ge=0, description="weight of the binary distillation, times the number of the old model's labels"
    )


class ILTConfig(PixelConfig):
    """Incremental learning techniques: LwF and the encoder's features (see docs/methods/ilt.md)."""

    name: Literal["ilt"] = "ilt"
    distillation: float = Field(100.0, ge=0, description="weight of the distillation of the old model's softmax")
    feature_distillation: float = Field(
        100.0, ge=0, description="weight of the mean squared error between the encoders' features"
    )


class MiBConfig(PixelConfig):
    """Modelling the background (see docs/methods/mib.md)."""

    name: Literal["mib"] = "mib"
    distillation: float = Field(10.0, ge=0, description="weight of the unbiased distillation")


class PLOPConfig(PixelConfig):
    """Pooled outputs distillation with pseudo labels (see docs/methods/plop.md)."""

    name: Literal["plop"] = "plop"
    pod: float = Field(0.01, ge=0, description="weight of the local POD of the encoder's stages")
    pod_logits: float = Field(0.0005, ge=0, description="the same of the logits")
    pod_windows: tuple[PositiveInt, ...] = Field(
        (1, 2, 4), min_length=1, description="windows of the local POD: side of the grids that a map is cut into"
    )
    pod_normalisation: Literal["mean", "length", "none"] = Field(
        "mean",
        description="pooled features are divided by: mean, the mean square of the old model's; length, each its own "
        "length, and so are logits; none (published code, for a ResNet)",
    )
    pod_decoder: bool = Field(
        True, description="the decoder's output is pooled and compared like a stage of the encoder (published code)"
    )
    lowest_threshold: Probability | None = Field(
        None,
        description="no class's threshold on the old model's entropy, as a share of the largest, is below this; null: "
        "what the published code comes to",
    )


class CILConfig(PixelConfig):
    """Class-incremental learning with entropy-weighted distillation (see docs/methods/cil.md)."""

    name: Literal["cil"] = "cil"
    distillation: float = Field(1.0, ge=0, description="weight of the distillation where the step has no label")
    entropy_weight: float = Field(
        1.0, ge=0, description="a pixel weighs 1 + this times the entropy, in bits, of the old model's prediction"
    )


class SDRConfig(PixelConfig):
    """Sparse and disentangled representations (see docs/methods/sdr.md)."""

    name: Literal["sdr"] = "sdr"
    distillation: float = Field(100.0, ge=0, description="weight of the unbiased distillation")
    prototype_matching: float = Field(
        0.01, ge=0, description="weight of the distance between old classes' prototypes and their features now"
    )
    attraction: float = Field(1e-3, ge=0, description="weight of the distance of features to their class's prototype")
    repulsion: float = Field(1e-3, ge=0, description="weight of the inverse distances between classes' mean features")
    sparsity: float = Field(1e-3, ge=0, description="weight of the sparsity of the normalised features")


class RECALLConfig(PixelConfig):
    """Replay of photographs from elsewhere, labelled by the old model (see docs/methods/recall.md)."""

    name: Literal["recall"] = "recall"
    replay: Path | None = Field(
        None, description="folder of photographs with one folder per old class, which are not the old training data; "
        "--replay on the command line"
    )
    replay_share: float = Field(0.5, gt=0, lt=1, description="share of the replayed photographs in every batch")
    encoder: Literal["frozen", "trained"] = Field(
        "frozen", description="whether the encoder stays that of step 0 (published), or learns too"
    )


MethodConfig = Annotated[
    FMWISSConfig
    | FineTuningConfig
    | WILSONConfig
    | CAMConfig
    | SEAMConfig
    | SSConfig
    | EPSConfig
    | JointConfig
    | FTConfig
    | LwFConfig
    | LwFMCConfig
    | ILTConfig
    | MiBConfig
    | PLOPConfig
    | CILConfig
    | SDRConfig
    | RECALLConfig,
    Field(discriminator="name"),
]
"""How the steps after 0 learn: a choice by ``name``."""


class EvaluationConfig(_Section):
    """How predictions meet the truth."""

    image: Literal["whole", "center-crop"] = Field(
        "whole", description="whole photographs, or the peers' centre crop of photographs resized to crop_size"
    )
    crop_size: PositiveInt = Field(512, description="side of the centre crop in pixels")
    batch_size: PositiveInt = 8


class Config(_Section):
    """One experiment."""

    protocol: ProtocolConfig = ProtocolConfig()
    data: DataConfig = DataConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    cosegmentation: CosegmentationConfig = CosegmentationConfig()
    copy_paste: CopyPasteConfig = CopyPasteConfig()
    method: MethodConfig = FMWISSConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("method", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A method's options without its name are those of the default."""
        if isinstance(value, Mapping) and "name" not in value:
            return {"name": cls.model_fields["method"].default.name, **value}
        return value


# Keys that change neither the weights nor what they mean: a run may go on with other values.
_FREE_ON_RESUME = (
    "data.workers",
    "data.val_split",
    "data.also",
    "training.validate_every",
    "training.checkpoint_every",
    "training.compile",
    "training.activation_checkpointing",
    "evaluation",
)

_Origins = dict[tuple[str, ...], str]


def load_config(
    path: Path | str, overrides: Sequence[str | Mapping[str, Any]] | Mapping[str, Any] = (), origin: str = "overrides"
) -> Config:
    """Reads an experiment file, its ``base`` files and overrides.

    Args:
        path: the YAML file. Its key ``base`` may name another file, relative to itself, whose values it overrides.
        overrides: the command line's, ``path.to.key=value`` each, whose value is parsed as YAML, or mappings of values
            by key path, whose values may be mappings themselves. Later ones win, key by key.
        origin: where mappings of overrides come from, for the sentences about them.

    Raises:
        UserError: a file cannot be read or is no YAML mapping, bases form a circle, a key is unknown (the message
            gives its path and the nearest right key) or a value is out of its range (the message gives the range).
    """
    path = Path(path)
    values, origins = _read_with_bases(path, ())
    for override in [overrides] if isinstance(overrides, Mapping) else overrides:
        if isinstance(override, Mapping):
            for dotted, value in override.items():
                _set_value(values, origins, str(dotted), value, origin)
        else:
            _apply_override(values, origins, override)
    return _parse(values, origins, str(path))


def dump_config(config: Config) -> str:
    """The whole configuration as YAML, defaults included; :func:`load_config` reads it back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def check_resumable(saved: Config, given: Config, run: Path) -> None:
    """Raises UserError with the first key in which a run's configuration and the one given now differ.

    Keys that only say how the work is done (loader processes, how often to validate and to save) and how it is
    evaluated may differ.
    """
    difference = first_difference(saved, given, lambda key: not key.startswith(_FREE_ON_RESUME))
    if difference is not None:
        key, before, now = difference
        raise UserError(
            f"{run} was started with {key} = {before} but {now} is asked for now; give the same value or another --out"
        )


def first_difference(saved: Config, given: Config, counts: Callable[[str], bool]) -> tuple[str, str, str] | None:
    """The first key, among those that count, in which two configurations differ, and both values as text."""
    before, now = dict(leaves(saved.model_dump(mode="json"))), dict(leaves(given.model_dump(mode="json")))
    for key in [*before, *(key for key in now if key not in before)]:
        if counts(key) and not (key in before and key in now and before[key] == now[key]):
            return key, show_value(before.get(key)), show_value(now.get(key))
    return None


class _Loader(yaml.SafeLoader):
    """Refuses a mapping with the same key twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key != "<<" and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _read_with_bases(path: Path, readers: tuple[Path, ...]) -> tuple[dict[str, Any], _Origins]:
    """The merged values of a file and its bases, and for every leaf the file it comes from."""
    resolved = path.resolve()
    if resolved in readers:
        circle = " -> ".join(p.name for p in (*readers[readers.index(resolved) :], resolved))
        raise UserError(f"{path}: the files' base keys form a circle ({circle}); one of them must have no base")
    values = read_mapping(path, "experiment file", "sections such as training:")
    base = values.pop("base", None)
    merged: dict[str, Any] = {}
    origins: _Origins = {}
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: base is {show_value(base)} but must be the path of one YAML file")
        base_path = path.parent / base
        if not base_path.is_file():
            raise UserError(f"{path}: its base {base_path} does not exist; base is a path relative to the file itself")
        merged, origins = _read_with_bases(base_path, (*readers, resolved))
    _merge(merged, values, origins, str(path), ())
    return merged, origins


def read_mapping(path: Path, what: str, of: str) -> dict[Any, Any]:
    """A YAML file that holds a mapping; of an empty one nothing.

    Args:
        path: the file.
        what: the kind of file, for the sentences about it.
        of: what the mapping is of.

    Raises:
        UserError: the file cannot be read, is no YAML, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"there is no {what} {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"the {what} {path} cannot be read: {reason}") from error
    values = _parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {show_value(values)} but must be a YAML mapping of {of}")
    return values


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" in line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{where} is not valid YAML{line}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid YAML: {str(error).splitlines()[0]}") from error


def _merge(
    into: dict[str, Any], values: dict[Any, Any], origins: _Origins, origin: str, prefix: tuple[str, ...]
) -> None:
    for key, value in values.items():
        name = str(key)
        path = (*prefix, name)
        if not (isinstance(value, dict) and isinstance(into.get(name), dict)):
            into[name] = {} if isinstance(value, dict) else value
            origins[path] = origin
        if isinstance(value, dict):
            _merge(into[name], value, origins, origin, path)


def merge_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """What ``--set`` gives, ``path.to.key=value`` each, as nested mappings; nothing is checked but its form.

    Raises:
        UserError: one of another form, or whose value is no YAML.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        _apply_override(values, {}, override)
    return values


def _apply_override(values: dict[str, Any], origins: _Origins, override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not all(dotted.strip().split(".")):
        raise UserError(f"--set {override}: must be path.to.key=value, as in --set training.steps.epochs=10")
    value = _parse_yaml(text, f"--set {override}: the value")
    _set_value(values, origins, dotted.strip(), value, f"--set {override}")


def _set_value(values: dict[str, Any], origins: _Origins, dotted: str, value: Any, origin: str) -> None:
    nested: Any = value
    for key in reversed(dotted.split(".")):
        nested = {key: nested}
    _merge(values, nested, origins, origin, ())


def _parse(values: dict[str, Any], origins: _Origins, where: str) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    # An unknown key is the likelier mistake: where both are present it is told first.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    keys = _key_path(first)
    origin = next((origins[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in origins), where)
    dotted = ".".join(keys)
    if first["type"] == "extra_forbidden":
        nearest = nearest_key(dotted, values)
        raise UserError(f"{origin}: unknown key {dotted}{_owners(keys, values)}; the nearest right key is {nearest}")
    right = " or ".join(dict.fromkeys(wanted(p) for p in problems if _key_path(p) == keys))
    raise UserError(f"{origin}: {dotted} is {show_value(_value_at(values, keys))} but must be {right}")


def nearest_key(dotted: str, values: Mapping[str, Any] | None = None) -> str:
    """The existing key path that is most like an unknown one: a sibling, else one of that name anywhere.

    Where a section is a choice by name, only the keys of the one that ``values`` name count.
    """
    section, _, name = dotted.rpartition(".")
    by_path = list(_schema_keys(Config, (), values or {}))
    siblings = {path.rpartition(".")[2]: path for path in by_path if path.rpartition(".")[0] == section}
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    if close:
        return siblings[close[0]]
    names = [path.rpartition(".")[2] for path in by_path]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        same_name = [path for path, other in zip(by_path, names, strict=True) if other == close[0]]
        return max(same_name, key=lambda path: difflib.SequenceMatcher(None, dotted, path).ratio())
    return max(by_path, key=lambda path: difflib.SequenceMatcher(None, dotted, path).ratio())


def sections_of(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The typed models that a field's value may be: one for a section, several for a choice by ``name``, else none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    models = tuple(choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel))
    return models if len(models) == len(choices) else ()


def _schema_keys(
    model: type[BaseModel], prefix: tuple[str, ...] = (), values: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Every key path of the configuration, sections included; of a choice by name those of the one ``values`` name."""
    for name, field in model.model_fields.items():
        path = (*prefix, name)
        yield ".".join(path)
        sections = sections_of(field.annotation)
        if len(sections) > 1 and values is not None:
            chosen = _value_at(values, (*path, "name")) or field.default.name
            sections = tuple(s for s in sections if _name_of(s) == chosen) or sections
        keys = (key for section in sections for key in _schema_keys(section, path, values))
        yield from dict.fromkeys(keys)


def _owners(keys: tuple[str, ...], values: Mapping[str, Any]) -> str:
    """An aside on which other choices of the section would have an unknown key; empty where none would."""
    parent: type[BaseModel] = Config
    for place, key in enumerate(keys[:-1], start=1):
        field = parent.model_fields[key]
        sections = sections_of(field.annotation)
        chosen = _value_at(values, (*keys[:place], "name"))
        owners = [_name_of(s) for s in sections if len(sections) > 1 and keys[place] in s.model_fields]
        if owners:
            path = ".".join(keys[:place])
            return f" (it belongs to {' and '.join(owners)}, and {path}.name is {chosen or field.default.name})"
        parent = sections[0]
    return ""


def _name_of(section: type[BaseModel]) -> str:
    return str(section.model_fields["name"].default)


def _value_at(values: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _key_path(problem: Mapping[str, Any], root: type[BaseModel] = Config) -> tuple[str, ...]:
    """Where pydantic's problem lies, up to the option itself, without union members and positions in lists."""
    keys: list[str] = []
    sections: tuple[type[BaseModel], ...] = (root,)
    for part in problem["loc"]:
        if len(sections) > 1:  # pydantic names the choice, which is no key
            sections = tuple(s for s in sections if _name_of(s) == part)
            continue
        if not sections:
            break
        keys.append(str(part))
        field = sections[0].model_fields.get(str(part))
        sections = sections_of(field.annotation) if field is not None else ()
    if problem["type"] == "union_tag_invalid":
        keys.append("name")
    return tuple(keys)


# Pydantic's types of problems in the words of someone who writes YAML.
_WANTED = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "an integer",
    "list": "a list",
    "missing": "a longer list",
    "model": "a mapping",
    "path": "a path",
    "string": "a string",
    "tuple": "a list",
}


def wanted(problem: Mapping[str, Any]) -> str:
    """What the value has to be by one of pydantic's problems, to follow "must be"."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "union_tag_invalid":
        return " or ".join(str(context["expected_tags"]).rsplit(", ", 1))
    if kind == "too_long":
        return f"a list of {context['max_length']}"
    if kind == "too_short":
        return "a longer list"
    if kind in _WANTED or kind.endswith(("_type", "_parsing", "_from_float")):
        return _WANTED.get(kind.partition("_")[0], "of another type")
    return problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("must be ")


def show_value(value: Any) -> str:
    """A value as a sentence shows it, cut where it is long."""
    text = "null" if value is None else str(value)
    return repr(text) if not text.strip() else text if len(text) <= 60 else text[:57] + "..."


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Key paths and values of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
