"""Experiment files: bases, overrides, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmwiss import config
from fmwiss.config import (
    Config,
    FineTuningConfig,
    FMWISSConfig,
    check_resumable,
    dump_config,
    load_config,
    nearest_key,
)
from fmwiss.data.voc import VOC_CLASSES
from fmwiss.errors import UserError
from fmwiss.training.base import base_difference, base_settings

CONFIGS = Path(__file__).parents[1] / "configs"
EXPERIMENTS = sorted(CONFIGS.glob("*/*/*.yaml"))


def write(folder: Path, text: str, name: str = "experiment.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == Config()


def test_a_base_is_overridden_mapping_by_mapping(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path, "training: {seed: 1, steps: {epochs: 7, batch_size: 3}}\ndata: {flip: 0}", "root.yaml")
    write(tmp_path, "base: ../root.yaml\ntraining: {steps: {epochs: 8}}", "inner/middle.yaml")
    path = write(tmp_path, "base: middle.yaml\ntraining: {steps: {batch_size: 5}}", "inner/leaf.yaml")
    config = load_config(path)
    assert (config.training.seed, config.training.steps.epochs, config.training.steps.batch_size) == (1, 8, 5)
    assert config.data.flip == 0


def test_overrides_win_in_order_and_are_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, "training: {seed: 1}")
    overrides = [
        "training.seed=2",
        "training.seed=3",
        "protocol.steps=[[cat, dog], [potted plant]]",
        "data.resize=null",
        "training.steps.learning_rate=1e-4",
        "cosegmentation.vision_language.rows={sofa: [n04256520]}",
    ]
    config = load_config(path, overrides)
    assert config.training.seed == 3
    assert config.protocol.steps == [["cat", "dog"], ["potted plant"]]
    assert config.data.resize is None
    assert config.training.steps.learning_rate == 1e-4
    assert config.cosegmentation.vision_language.rows == {"sofa": ["n04256520"]}


def test_the_first_step_keeps_its_own_defaults_when_one_key_is_given(tmp_path: Path) -> None:
    step0 = load_config(write(tmp_path, "training: {step0: {batch_size: 2}}")).training.step0
    assert (step0.epochs, step0.learning_rate, step0.batch_size) == (30, 1e-2, 2)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_shipped_experiments_load_and_survive_being_written(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert load_config(write(tmp_path, dump_config(config))) == config
    split, _, setting = path.parent.name.rpartition("-")
    assert (config.protocol.steps, config.protocol.setting) == (split, setting)


def test_the_full_size_experiment_has_the_papers_settings() -> None:
    config = load_config(CONFIGS / "voc/15-5-overlap/fmwiss.yaml")
    steps, method, masks = config.training.steps, config.method, config.cosegmentation
    assert isinstance(method, FMWISSConfig)
    assert (config.segmenter.encoder, config.segmenter.output_stride) == ("resnet101", 16)
    assert (steps.batch_size, steps.epochs, steps.learning_rate) == (24, 40, 1e-3)
    assert (steps.momentum, steps.weight_decay, steps.head_rate, steps.poly_power) == (0.9, 1e-4, 10, 0.9)
    base = config.training.step0  # WILSON's code multiplies the head's rate in later steps alone
    assert (base.epochs, base.learning_rate, base.head_rate) == (30, 1e-2, 1)
    assert load_config(CONFIGS / "coco-to-voc/wilson.yaml").training.step0.head_rate == 1
    assert load_config(CONFIGS / "voc/15-5-overlap/joint.yaml").training.steps.head_rate == 1
    assert load_config(CONFIGS / "voc-mini/15-5-overlap/fmwiss.yaml").training.step0.head_rate == 10  # as measured
    assert (method.lambda_dcl, method.alpha, method.beta, method.warmup_epochs) == (0.1, 0.5, 0.9, 5)
    assert (masks.n_seeds, masks.k, masks.fusion, config.copy_paste.bank_size) == (9, 70, "union", 50)
    assert masks.vision_language.model == "ViT-B-16-quickgelu"
    assert masks.self_supervised.model == "vit_large_patch16_224"
    assert (config.data.crop_size, config.data.scale, config.evaluation.image) == (512, (0.5, 2.0), "center-crop")
    wilson, coco = (load_config(CONFIGS / name) for name in ("voc/15-5-overlap/wilson.yaml", "coco-to-voc/wilson.yaml"))
    for one in (config, wilson, coco, load_config(CONFIGS / "voc/15-5-overlap/mib.yaml")):  # as WILSON's code
        assert one.data.crop == "resized" and one.training.sync_batch_norm == "auto"
        assert one.training.step0.nesterov and one.training.steps.nesterov
    assert [one.training.steps.constant_epochs for one in (config, wilson, coco)] == [0, 5, 5]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainig.seed=1", "unknown key trainig; the nearest right key is training"),
        ("training.step0.epoch=1", "unknown key training.step0.epoch; the nearest right key is training.step0.epochs"),
        ("method.fusion=none", "unknown key method.fusion; the nearest right key is cosegmentation.fusion"),
        ("alpha=.5", "unknown key alpha; the nearest right key is method.alpha"),
        ("training.steps.epochs=0", "training.steps.epochs is 0 but must be greater than 0"),
        ("method.alpha=1.5", "method.alpha is 1.5 but must be less than or equal to 1"),
        ("method.alpha=.nan", "method.alpha is nan but must be"),
        ("method.name=fmwis", "method.name is fmwis but must be 'fmwiss'"),
        ("method.name=[1]", "method.name is [1] but must be 'fmwiss'"),
        ("method=3", "method is 3 but must be a mapping"),
        ("method.loss=bce", "unknown key method.loss (it belongs to finetuning, and method.name is fmwiss); "),
        ("method.beta=high", "method.beta is high but must be a number"),
        ("data.workers=1.5", "data.workers is 1.5 but must be an integer"),
        ("data.scale=[2, 1]", "data.scale is [2, 1] but must be two positive numbers, the smaller first"),
        ("data.scale=[2]", "data.scale is [2] but must be a longer list"),
        ("segmenter.atrous_rates=[]", "segmenter.atrous_rates is [] but must be a longer list"),
        ("data.scale=[1, 2, 3]", "data.scale is [1, 2, 3] but must be a list of 2"),
        ("segmenter.pretrained=perhaps", "segmenter.pretrained is perhaps but must be true or false"),
        ("protocol.setting=overlp", "protocol.setting is overlp but must be 'disjoint' or 'overlap'"),
        ("protocol.steps=7", "protocol.steps is 7 but must be 15-5, 10-10 or a list of names for each step"),
        ("training=3", "training is 3 but must be a mapping"),
        ("training.seed.deeper=3", "training.seed is {'deeper': 3} but must be an integer"),
        ("data.crop=square", "data.crop is square but must be 'window' or 'resized'"),
        ("training.steps={nesterov: true, optimizer: adamw}", "steps.nesterov is True but must be false unless"),
        ("training.step0={nesterov: true, momentum: 0}", "optimizer is sgd and momentum is above 0"),
        ("training.steps.constant_epochs=40", "constant_epochs is 40 but must be less than epochs, which is 40"),
        ("training.sync_batch_norm=perhaps", "training.sync_batch_norm is perhaps but must be true or false or 'auto'"),
        ("data.crop_size={", "the value is not valid YAML in line 1"),
        ("training.step0={epochs: 2, epochs: 3}", "key epochs stands twice"),
        ("training.seed", "must be path.to.key=value"),
        ("=3", "must be path.to.key=value"),
        ("training..seed=3", "must be path.to.key=value"),
    ],
)
def test_mistakes_are_told_with_path_and_remedy(override: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, ""), [override])
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"--set {override}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a list", "must be a YAML mapping"),
        ("training: [", "is not valid YAML in line"),
        ("training: {seed: 1}\ntraining: {seed: 2}", "is not valid YAML in line 2: key training stands twice"),
        ("training: {sed: 1}", "unknown key training.sed; the nearest right key is training.seed"),
        ("base: nowhere.yaml", "nowhere.yaml does not exist"),
        ("base: [a, b]", "must be the path of one YAML file"),
        ("base: experiment.yaml", "form a circle"),
        ("7: 8", "unknown key 7"),
        ("a: !!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_mistakes_in_files_name_the_file(text: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_base_names_the_base(tmp_path: Path) -> None:
    base = write(tmp_path, "method: {alpha: 2}", "base.yaml")
    path = write(tmp_path, "base: base.yaml\nmethod: {beta: 0.5}")
    with pytest.raises(UserError, match="alpha is 2") as caught:
        load_config(path)
    assert str(caught.value).startswith(str(base))


def test_a_circle_over_two_files_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, "base: other.yaml")
    write(tmp_path, "base: experiment.yaml", "other.yaml")
    with pytest.raises(UserError, match=r"experiment.yaml -> other.yaml -> experiment.yaml"):
        load_config(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", "folder"])
def test_unreadable_files(content: bytes | str | None, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "folder":
        path.mkdir()
    with pytest.raises(UserError, match=r"experiment.yaml"):
        load_config(path)


def test_every_key_is_its_own_nearest_key() -> None:
    for key in ("data", "training.steps.epochs", "training.step0.epochs", "cosegmentation.self_supervised.model"):
        assert nearest_key(key) == key


def test_a_run_goes_on_only_with_the_same_settings(tmp_path: Path) -> None:
    saved = Config()
    check_resumable(saved, Config(), tmp_path)
    free = ["data.workers=7", "training.checkpoint_every=9", "evaluation.batch_size=1", "training.compile=true"]
    free.append("training.activation_checkpointing=true")
    same = load_config(write(tmp_path, ""), free)
    check_resumable(saved, same, tmp_path)
    other = load_config(write(tmp_path, ""), ["method.beta=0.7", "training.seed=4"])
    with pytest.raises(UserError, match=r"method.beta = 0.9 but 0.7"):
        check_resumable(saved, other, tmp_path)
    rows = load_config(write(tmp_path, ""), ["cosegmentation.vision_language.rows={cat: [kitten]}"])
    with pytest.raises(UserError, match=r"rows"):
        check_resumable(saved, rows, tmp_path)


class _First(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Literal["first"] = "first"
    alpha: float = Field(0.5, ge=0)


class _Second(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Literal["second"] = "second"
    beta: int = 1


class _Choice(BaseModel):
    method: Annotated[_First | _Second, Field(discriminator="name")] = _First()


@pytest.mark.parametrize(
    ("values", "path", "wanted"),
    [
        ({"name": "first", "alpha": -1}, "method.alpha", "greater than or equal to 0"),
        ({"name": "second", "beta": "x"}, "method.beta", "an integer"),
        ({"name": "third"}, "method.name", "'first' or 'second'"),
    ],
)
def test_a_choice_of_sections_by_name(values: dict[str, Any], path: str, wanted: str) -> None:
    """Key paths and the nearest key go through it."""
    with pytest.raises(ValidationError) as caught:
        _Choice.model_validate({"method": values})
    problem = caught.value.errors()[0]
    assert ".".join(config._key_path(problem, _Choice)) == path
    assert config.wanted(problem) == wanted
    assert list(config._schema_keys(_Choice)) == ["method", "method.name", "method.alpha", "method.beta"]
    chosen = config._schema_keys(_Choice, (), {"method": {"name": "second"}})
    assert list(chosen) == ["method", "method.name", "method.beta"]


def test_a_method_has_its_own_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "method: {name: finetuning}")
    assert load_config(path).method == FineTuningConfig()
    assert load_config(write(tmp_path, "method: {alpha: 0.25}", "unnamed.yaml")).method == FMWISSConfig(alpha=0.25)
    with pytest.raises(UserError) as caught:
        load_config(path, ["method.alpha=0.25"])
    assert str(caught.value) == (
        "--set method.alpha=0.25: unknown key method.alpha (it belongs to fmwiss and wilson, and method.name is "
        "finetuning); the nearest right key is method.name"
    )
    with pytest.raises(UserError, match=r"unknown key method.los; the nearest right key is method.loss$"):
        load_config(path, ["method.los=bce"])


def test_a_run_does_not_go_on_with_another_method(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method.name = fmwiss but finetuning"):
        check_resumable(Config(), Config(method=FineTuningConfig()), tmp_path)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_an_experiment_is_named_as_its_method_or_its_pseudo_masks(path: Path) -> None:
    experiment = load_config(path)
    if path.stem == "fmwiss-plus":
        assert (experiment.method.name, experiment.cosegmentation.name) == ("fmwiss", path.stem)
    else:
        assert (experiment.method.name, experiment.cosegmentation.name) == (path.stem, "fmwiss")


def test_fmwiss_and_fmwiss_plus_differ_in_their_pseudo_masks_alone() -> None:
    for path in EXPERIMENTS:
        if path.stem == "fmwiss-plus":
            plus, paper = (load_config(p).model_dump() for p in (path, path.with_name("fmwiss.yaml")))
            assert [key for key in paper if plus[key] != paper[key]] == ["cosegmentation"]
            changed = {key for key, value in paper["cosegmentation"].items() if plus["cosegmentation"][key] != value}
            assert "name" in changed and changed <= {"name", "plus", "vision_language", "self_supervised"}


def test_methods_of_one_protocol_share_everything_that_a_base_depends_on() -> None:
    for folder in {path.parent for path in EXPERIMENTS}:
        found = [load_config(path) for path in sorted(folder.glob("*.yaml"))]
        for loss in ("bce", "cross-entropy"):  # of methods that learn from tags, and from masks
            configs = [config for config in found if config.training.step0.loss == loss]
            assert all(base_difference(configs[0], other, VOC_CLASSES) is None for other in configs), folder
            settings = base_settings(configs[0], VOC_CLASSES) if configs else None
            assert all(base_settings(other, VOC_CLASSES) == settings for other in configs), folder


def test_bases_of_earlier_versions_are_found() -> None:
    """Keys that they did not have are not among the settings at the values that they stood for."""
    later = (
        "data.crop", "training.step0.loss", "training.step0.accumulate", "training.step0.nesterov",
        "training.step0.constant_epochs", "training.sync_batch_norm",
    )  # fmt: skip
    assert not base_settings(Config(), VOC_CLASSES).keys() & set(later)


@pytest.mark.parametrize(
    ("override", "shares"),
    [
        ("method.alpha=0.1", True),
        ("copy_paste.bank_size=7", True),
        ("training.steps.epochs=3", True),
        ("segmenter.classifier_init=plain", True),
        ("segmenter.class_prior=0.02", False),
        ("protocol.steps=[[cat, dog], [sofa]]", True),
        ("protocol.steps=[[dog, cat], [sheep]]", False),
        ("training.seed=1", False),
        ("training.step0.epochs=3", False),
        ("training.step0.accumulate=2", False),
        ("training.steps.accumulate=2", True),
        ("training.sync_batch_norm=true", False),
        ("training.compile=true", True),
        ("training.activation_checkpointing=true", True),
        ("data.flip=0", False),
        ("data.crop=resized", False),
        ("training.step0.nesterov=true", False),
        ("training.steps.nesterov=true", True),
        ("training.step0.constant_epochs=2", False),
        ("training.steps.constant_epochs=2", True),
        ("protocol.setting=disjoint", False),
    ],
)
def test_settings_of_a_base_are_equal_exactly_where_nothing_differs(
    override: str, shares: bool, tmp_path: Path
) -> None:
    path = write(tmp_path, "protocol: {steps: [[cat, dog], [sheep]]}")
    ours, theirs = load_config(path), load_config(path, [override])
    assert (base_difference(ours, theirs, VOC_CLASSES) is None) is shares
    assert (base_settings(ours, VOC_CLASSES) == base_settings(theirs, VOC_CLASSES)) is shares
