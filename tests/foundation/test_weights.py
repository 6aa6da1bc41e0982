import shutil
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from fmwiss.errors import UserError
from fmwiss.foundation import weights
from fmwiss.foundation.weights import UnknownOption, find_weights, load_timm, load_timm_state, require_hub, state_digest

NAME = "test_efficientnet"


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(weights.WEIGHTS_VARIABLE, raising=False)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(weights.socket, "getaddrinfo", fail)
    monkeypatch.setattr(weights, "getproxies", dict)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder with random weights of a tiny EfficientNet."""
    save_file(timm.create_model(NAME).state_dict(), tmp_path / f"{NAME}.safetensors")
    return tmp_path


def test_the_file_is_found_by_name_with_or_without_tag(folder: Path) -> None:
    assert find_weights(NAME, folder) == folder / f"{NAME}.safetensors"
    assert find_weights(f"{NAME}.r160_in1k", folder) == folder / f"{NAME}.safetensors"
    shutil.copy(folder / f"{NAME}.safetensors", folder / f"{NAME}.r160_in1k.safetensors")
    assert find_weights(f"{NAME}.r160_in1k", folder) == folder / f"{NAME}.r160_in1k.safetensors"
    assert find_weights("test_resnet", folder) is None
    assert find_weights(NAME, None) is None


def test_the_environment_names_the_folder_only_where_none_is_given(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(weights.WEIGHTS_VARIABLE, str(folder))
    assert find_weights(NAME, None) == folder / f"{NAME}.safetensors"
    assert find_weights(NAME, tmp_path_factory.mktemp("empty")) is None


def test_a_missing_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="nowhere, is not a folder"):
        find_weights(NAME, tmp_path / "nowhere")
    monkeypatch.setenv(weights.WEIGHTS_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="FMWISS_WEIGHTS"):
        find_weights(NAME, None)


def test_weights_are_those_of_the_file(folder: Path) -> None:
    state = load_file(folder / f"{NAME}.safetensors")
    for key, tensor in load_timm(NAME, folder).state_dict().items():
        torch.testing.assert_close(tensor, state[key], rtol=0, atol=0)


def test_a_feature_extractor_has_the_weights_and_the_stride(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = load_timm(NAME, folder).eval()
    features = load_timm(NAME, folder, features_only=True, output_stride=16).eval()
    images = torch.rand(1, 3, 64, 64)
    assert features(images)[-1].shape[-2:] == (4, 4)
    torch.testing.assert_close(features.conv_stem(images), whole.conv_stem(images))
    assert not caplog.records  # timm would warn of the classifier, which was left out on purpose


def test_half_precision_files_become_single_precision(folder: Path) -> None:
    file = folder / f"{NAME}.safetensors"
    save_file({key: t.half() if t.is_floating_point() else t for key, t in load_file(file).items()}, file)
    assert load_timm(NAME, folder).conv_stem.weight.dtype == torch.float32


def test_without_pretrained_nothing_is_read(tmp_path: Path, no_network: None) -> None:
    (tmp_path / f"{NAME}.safetensors").write_bytes(b"not a file to read")
    assert load_timm(NAME, tmp_path, pretrained=False) is not None


@pytest.mark.parametrize(("inside", "asked"), [("test_vit2", "test_vit"), (NAME, "test_resnet")])
@pytest.mark.parametrize("options", [{}, {"num_classes": 0}])
def test_a_file_of_another_architecture_is_an_error(
    tmp_path: Path, inside: str, asked: str, options: dict[str, int]
) -> None:
    save_file(timm.create_model(inside).state_dict(), tmp_path / f"{asked}.safetensors")
    with pytest.raises(UserError, match=f"{asked}.safetensors holds another architecture than the timm model {asked}"):
        load_timm(asked, tmp_path, **options)


def test_layers_too_many_are_an_error(tmp_path: Path) -> None:
    # All of ResNet-14's layers have the names and shapes of some of ResNet-26's; timm would load them in silence.
    save_file(timm.create_model("resnet26t").state_dict(), tmp_path / "resnet14t.safetensors")
    with pytest.raises(UserError, match=r"the model does not have layer1\.1"):
        load_timm("resnet14t", tmp_path, features_only=True)


def test_a_missing_classifier_matters_only_where_one_is_wanted(folder: Path) -> None:
    file = folder / f"{NAME}.safetensors"
    save_file({key: t for key, t in load_file(file).items() if not key.startswith("classifier")}, file)
    assert load_timm(NAME, folder, num_classes=0) is not None
    with pytest.raises(UserError, match=r"it lacks classifier\."):
        load_timm(NAME, folder)


def test_a_truncated_file_is_an_error(folder: Path) -> None:
    file = folder / f"{NAME}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a readable safetensors file"):
        load_timm(NAME, folder)


def test_unknown_names_and_options_are_errors(folder: Path) -> None:
    with pytest.raises(UserError, match="no model 'resnet5O'; nearest names: resnet50"):
        load_timm("resnet5O", folder)
    with pytest.raises(UnknownOption, match=f"{NAME} cannot be built as asked"):
        load_timm(NAME, folder, no_such_option=1)


def test_without_network_the_error_says_which_file_to_put_where(tmp_path: Path, no_network: None) -> None:
    with pytest.raises(UserError) as caught:
        load_timm("resnet18", tmp_path)
    assert f"put resnet18.safetensors (timm's key names) into {tmp_path}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failing_hub_gives_the_same_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("the hub is down.\nTry later.")

    monkeypatch.setattr(weights, "require_hub", lambda *_: None)
    monkeypatch.setattr(weights.timm, "create_model", fail)
    with pytest.raises(UserError, match=r"\(the hub is down\); put resnet18.safetensors"):
        load_timm("resnet18", tmp_path)


def test_a_cached_file_or_a_proxy_needs_no_name_server(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot be reached; advice"):
        require_hub("timm/some", "some", "advice")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "/cache/model.safetensors")
    require_hub("timm/some", "some", "advice")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(weights, "getproxies", lambda: {"https": "http://proxy:3128"})
    require_hub("timm/some", "some", "advice")


def test_a_state_is_not_kept_beside_the_model(folder: Path) -> None:
    state = load_file(folder / f"{NAME}.safetensors")
    model = load_timm_state(NAME, state, folder)
    assert state_digest(model) == state_digest(load_timm(NAME, folder))
    assert not model.pretrained_cfg.get("state_dict")
    with pytest.raises(UserError, match="another architecture"):
        load_timm_state("test_resnet", state, folder)


def test_the_digest_sees_every_weight_and_no_layout(folder: Path) -> None:
    model = load_timm(NAME, folder)
    digest = state_digest(model)
    assert state_digest(load_timm(NAME, folder).to(memory_format=torch.channels_last)) == digest
    with torch.no_grad():
        model.classifier.bias[7] += 1e-6
    assert state_digest(model) != digest
