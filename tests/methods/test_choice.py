"""The choice of a method: every section of the configuration has its class, and classes keep to what a method is."""

from __future__ import annotations

import inspect

import pytest
import torch

from fmwiss.config import Config, PixelConfig, sections_of
from fmwiss.errors import UserError
from fmwiss.methods import METHODS, Method, PixelMethod, build_method, check_methods, method_class
from fmwiss.models import Architecture, Segmenter

SECTIONS = sections_of(Config.model_fields["method"].annotation)


def small_method(section: type) -> Method:
    torch.manual_seed(0)
    steps: tuple[tuple[str, ...], ...] = (("aeroplane", "bicycle"), ("sheep", "sofa"))
    student = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, steps, None))
    old_model = Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, steps[:1], None))
    return build_method(section(), student, old_model, freeze_batch_norm=True)


def test_every_section_has_its_class() -> None:
    assert set(METHODS) == set(SECTIONS)
    assert len({section.model_fields["name"].default for section in SECTIONS}) == len(SECTIONS)
    assert method_class(Config().method).__name__ == "FMWISS"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.model_fields["name"].default)
def test_a_method_keeps_to_its_contract(section: type) -> None:
    method = small_method(section)
    assert method.supervision == ("pixel" if isinstance(method, PixelMethod) else "image")
    assert issubclass(section, PixelConfig) == isinstance(method, PixelMethod)
    assert all(name in dict(method.named_children()) for name in method.frozen)
    method.start_epoch(0)
    for name, module in method.named_modules():
        if name.partition(".")[0] in method.frozen:
            assert not module.training, name
    assert all(not p.requires_grad for name, p in method.named_parameters() if name.partition(".")[0] in method.frozen)

    # what learns is in one group, once, and in the checkpoint
    grouped = [p for group in method.parameter_groups(1e-3, 10.0) for p in group["params"]]  # type: ignore[attr-defined]
    assert len({id(p) for p in grouped}) == len(grouped)
    learning = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert {id(p) for p in learning.values()} == {id(p) for p in grouped}
    assert set(learning) <= set(method.learnt_state())
    assert not any(name.partition(".")[0] in method.frozen for name in method.learnt_state())

    other = small_method(section)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    other.load_learnt_state(method.learnt_state())
    assert all(value.equal(other.learnt_state()[name]) for name, value in method.learnt_state().items())


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.model_fields["name"].default)
def test_negatives_are_for_those_that_understand_them(section: type) -> None:
    name = section.model_fields["name"].default
    if name == "recall":
        pytest.skip("without photographs to replay it is refused for that")
    config = Config.model_validate({"data": {"negatives": 2, "crop_size": 64}, "method": {"name": name}})
    if name not in ("fmwiss", "finetuning"):
        with pytest.raises(UserError, match=f"data.negatives = 2: method {name} learns from photographs"):
            check_methods(config)
        return
    check_methods(config)
    if name == "fmwiss":
        partial = config.model_copy(update={"method": section(untagged_absent=False)})
        with pytest.raises(UserError, match=r"data.negatives = 2: .* set method.untagged_absent, or give 0"):
            check_methods(partial)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.model_fields["name"].default)
def test_batch_norm_of_the_student_stays_when_it_is_to(section: type) -> None:
    method = small_method(section)
    method.start_epoch(method.warmup_epochs)
    norms = [m for m in method.student.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and not any(norm.training for norm in norms)


@pytest.mark.parametrize("method", METHODS.values())
def test_methods_take_student_old_model_options_and_freezing(method: type[Method]) -> None:
    names = list(inspect.signature(method).parameters)
    assert names == ["student", "old_model", "options", "freeze_batch_norm"]
