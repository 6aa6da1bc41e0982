import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fmwiss.models  # noqa: F401
from coco_miniature import serve
from fmwiss.cli import run
from fmwiss.config import SelfSupervisedConfig
from fmwiss.errors import UserError
from fmwiss.foundation import obtain as module
from fmwiss.foundation import registry, weights
from fmwiss.foundation.checkpoints import read_state
from fmwiss.foundation.obtain import check, convert, find_entry, obtain
from fmwiss.foundation.registry import ENTRIES, Entry
from fmwiss.foundation.self_supervised import load_self_supervised

TINY = "vit_emoji_patch8_80"


def _say(_: str) -> None:
    pass


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.delenv(weights.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(weights.socket, "getaddrinfo", fail)
    monkeypatch.setattr(weights, "getproxies", dict)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)


@pytest.fixture
def tiny_entry(monkeypatch: pytest.MonkeyPatch) -> Entry:
    """An entry like iBOT's, of a ViT that is small."""
    entry = Entry(
        "ibot-tiny", "ibot", TINY, "ibot_tiny.safetensors", "none", "https://example.org", None, "ibot_tiny.pth", size=1
    )
    monkeypatch.setattr(registry, "ENTRIES", (*ENTRIES, entry))
    monkeypatch.setattr(module, "ENTRIES", (*ENTRIES, entry))
    return entry


def _ibot_checkpoint(path: Path) -> dict[str, Tensor]:
    """As the authors save the teacher: wrappers, a projection head, the training's arguments."""
    torch.manual_seed(0)
    state = timm.create_model(TINY).state_dict()
    wrapped = {f"module.backbone.{key}": tensor for key, tensor in state.items()}
    wrapped |= {"module.backbone.masked_embed": torch.zeros(1, 128), "module.head.mlp.0.weight": torch.zeros(2, 2)}
    torch.save({"teacher": wrapped, "args": argparse.Namespace(lr=1.0), "epoch": 3}, path)
    return state


def test_every_entry_is_of_a_model_that_there_is() -> None:
    import open_clip

    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names) == len({entry.file for entry in ENTRIES})
    for entry in ENTRIES:
        if entry.kind == "clip":
            known = open_clip.get_pretrained_cfg(entry.model, entry.tag)
            assert known and known["hf_hub"], entry.name
        else:
            weights.check_timm_name(entry.model)
        assert entry.digest is None or entry.digest.split(":")[0] in ("md5", "sha256")
        assert entry.licence and entry.page.startswith("https://")
    assert {entry.name for entry in ENTRIES if entry.kind in ("dino", "ibot")} == {
        "dino-vit-s16", "dino-vit-b16", "ibot-vit-s16", "ibot-vit-b16", "ibot-vit-l16"
    }
    assert find_entry("wide-resnet38-iabn").digest == "md5:0f9746bedb62d9f94c4437cfb8e6f2d8"


def test_a_hubs_repository_is_named() -> None:
    assert module._hub_repository(find_entry("ViT-B-16-quickgelu.openai")) == "timm/vit_base_patch16_clip_224.openai"
    name = "vit_small_patch14_dinov2.lvd142m"
    assert module._hub_repository(find_entry(name)) == f"timm/{name}"


def test_a_checkpoint_of_the_authors_is_converted_and_found(tmp_path: Path, tiny_entry: Entry) -> None:
    state = _ibot_checkpoint(tmp_path / "ibot_tiny.pth")
    converted = obtain(tiny_entry, tmp_path, _say)  # the checkpoint lies there already
    assert converted == tmp_path / "ibot_tiny.safetensors"
    written = load_file(converted)
    assert written.keys() == state.keys() and all(torch.equal(written[key], state[key]) for key in state)
    # an experiment names the checkpoint; what was made of it stands for it
    (tmp_path / "ibot_tiny.pth").unlink()
    config = SelfSupervisedConfig(model=TINY, checkpoint=Path("ibot_tiny.pth"))
    vit = load_self_supervised(config, tmp_path).vit
    assert torch.equal(vit.cls_token, state["cls_token"])


def test_the_digest_that_nobody_has_published_is_told(tmp_path: Path, tiny_entry: Entry) -> None:
    (tmp_path / "served").mkdir()
    _ibot_checkpoint(tmp_path / "served/ibot_tiny.pth")
    digest = hashlib.sha256((tmp_path / "served/ibot_tiny.pth").read_bytes()).hexdigest()
    said: list[str] = []
    with serve(tmp_path / "served") as server:
        assert obtain(replace(tiny_entry, url=f"{server.url}/ibot_tiny.pth"), tmp_path, said.append).is_file()
    assert any(digest in line for line in said) and not (tmp_path / "ibot_tiny.pth").exists()


def test_converting_goes_by_name_and_by_keys(tmp_path: Path, tiny_entry: Entry) -> None:
    _ibot_checkpoint(tmp_path / "ibot_tiny.pth")
    assert convert(tmp_path / "ibot_tiny.pth", tmp_path / "out", None, _say).is_file()
    (tmp_path / "ibot_tiny.pth").rename(tmp_path / "checkpoint_teacher.pth")
    with pytest.raises(UserError, match="give --as NAME"):
        convert(tmp_path / "checkpoint_teacher.pth", tmp_path / "out", None, _say)
    with pytest.raises(UserError, match="another architecture than the timm model vit_small_patch16_224"):
        convert(tmp_path / "checkpoint_teacher.pth", tmp_path / "out", find_entry("ibot-vit-s16"), _say)


def test_an_inplace_abn_checkpoint_of_full_size(tmp_path: Path) -> None:
    # the published names and shapes; every tensor is one number, seen as many, so that the file is small
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in timm.create_model("resnet101_leaky").state_dict().items()}
    state: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            continue
        parts = key.split(".")
        if key.startswith("layer"):
            prefix = f"module.mod{int(parts[0][5:]) + 1}.block{int(parts[1]) + 1}"
            if parts[2] == "downsample":
                name = f"{prefix}.{('proj_conv', 'proj_bn')[int(parts[3])]}.{parts[4]}"
            else:
                name = f"{prefix}.convs.{parts[2]}.{parts[3]}"
        else:
            name = f"module.classifier.{key}" if key.startswith("fc") else f"module.mod1.{key}"
        state[name] = torch.full((1,), -0.5).expand(shape)
    path = tmp_path / "resnet101_iabn_sync.pth.tar"
    torch.save({"state_dict": state, "training_meta": {"epoch": 90}}, path)
    assert path.stat().st_size < 2_000_000
    target = convert(path, tmp_path, None, _say)
    assert target.name == "resnet101_leaky.safetensors"
    model = weights.load_timm("resnet101_leaky", tmp_path, features_only=True, output_stride=16)
    assert model.bn1.weight[0].item() == pytest.approx(0.50001, abs=1e-6) and model.bn1.bias[0] == -0.5
    with pytest.raises(UserError, match="does not hold wide-resnet38-iabn"):
        convert(path, tmp_path, find_entry("wide-resnet38-iabn"), _say, verify=False)
    with pytest.raises(UserError, match="is not the published file"):
        convert(path, tmp_path, find_entry("wide-resnet38-iabn"), _say)


def test_without_network_one_sentence_says_which_file_to_put_where(
    tmp_path: Path, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, file in (
        ("ViT-B-16-quickgelu.openai", "ViT-B-16-quickgelu.openai.safetensors"),
        ("vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_dinov2.lvd142m.safetensors"),
        ("wide-resnet38-iabn", "wide_resnet38_ipabn_lr_256.pth.tar"),
    ):
        assert run(["weights", "get", name, "--weights", str(tmp_path)]) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith("fmwiss: ") and file in told and str(tmp_path) in told
    with pytest.raises(UserError, match="as 'fmwiss weights get wide-resnet38-iabn' does"):
        weights.load_timm("wide_resnet38_a2", tmp_path, features_only=True)


def test_a_hubs_file_is_taken_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Entry("tiny", "timm", "test_efficientnet", "test_efficientnet.safetensors", "none", "https://example.org")
    monkeypatch.setattr(module, "require_hub", lambda *_: None)
    given = tmp_path / "hub.safetensors"
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: str(given))
    save_file(timm.create_model("test_efficientnet").state_dict(), given)
    assert obtain(entry, tmp_path / "weights", _say).is_file()
    assert obtain(entry, tmp_path / "weights", _say).is_file()  # there already
    save_file({"a.weight": torch.zeros(1)}, given)
    with pytest.raises(UserError, match="another architecture"):
        obtain(entry, tmp_path / "others", _say)
    assert not (tmp_path / "others" / entry.file).exists()


def test_code_in_a_pickle_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "run"

    class Bomb:
        def __reduce__(self) -> object:
            return Path.touch, (mark,)

    torch.save({"state_dict": {"a": torch.zeros(1)}, "bomb": Bomb()}, tmp_path / "ibot_vit_small_patch16.pth")
    for command in (["check"], ["convert", "--weights", str(tmp_path)]):
        assert run(["weights", command[0], str(tmp_path / "ibot_vit_small_patch16.pth"), *command[1:]]) == 2
        assert "cannot be read" in capsys.readouterr().err
    assert not mark.exists()


def test_damaged_checkpoints_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of both formats of torch, every 50th byte changed or the file cut there; what still reads is no error."""
    state = {"state_dict": {"a.weight": torch.arange(4.0), "b.bias": torch.ones(2)}, "epoch": 3}
    file, refused = tmp_path / "model.pth", 0
    for zipped in (True, False):
        torch.save(state, tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped)
        whole = (tmp_path / "whole.pth").read_bytes()
        for place in range(0, len(whole), 50 if zipped else 7):
            for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]):
                file.write_bytes(damaged)
                try:
                    read_state(file)
                except UserError as error:
                    refused += "cannot be read" in str(error) or "holds no weights" in str(error)
    assert refused > 40
    for content in ("<html>not found</html>", "\0\1\2"):
        file.write_text(content)
        assert run(["weights", "check", str(file)]) == 2
        told = capsys.readouterr().err
        assert "is damaged, no checkpoint" in told and "weights_only" not in told
        assert told.count("\n") == 2  # with the line that says what is read
    torch.save({1: torch.zeros(2)}, file)
    assert run(["weights", "check", str(file)]) == 2
    assert "holds no weights" in capsys.readouterr().err


def test_check_says_what_a_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_entry: Entry) -> None:
    _ibot_checkpoint(tmp_path / "ibot_tiny.pth")
    found = check(tmp_path / "ibot_tiny.pth")
    assert found.entry == "ibot-tiny" and found.model == TINY and found.published is None
    assert found.sha256 == hashlib.sha256((tmp_path / "ibot_tiny.pth").read_bytes()).hexdigest()
    reference = timm.create_model("test_efficientnet")
    save_file(reference.state_dict(), tmp_path / "test_efficientnet.safetensors")
    assert run(["weights", "check", str(tmp_path / "test_efficientnet.safetensors"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == "test_efficientnet"
    assert told["parameters"] == sum(p.numel() for p in reference.parameters())
    (tmp_path / "test_efficientnet.safetensors").rename(tmp_path / "test_resnet.safetensors")
    assert run(["weights", "check", str(tmp_path / "test_resnet.safetensors")]) == 2


def test_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.WEIGHTS_VARIABLE, str(tmp_path))
    (tmp_path / "wide_resnet38_a2.safetensors").touch()
    assert run(["weights", "list", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert len(listed) == len(ENTRIES)
    assert listed["wide-resnet38-iabn"]["there"] and not listed["resnet101-iabn"]["there"]
    assert run(["weights", "list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(ENTRIES) and sum(line.startswith("there") for line in shown) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["get", "dino-vit-b61"], "dino-vit-b16"),
        (["get", "dino-vit-b16"], "--weights, or set FMWISS_WEIGHTS"),
        (["get", "dino-vit-b16", "--weights", "file"], "is a file; give a folder"),
        (["list", "--weights", "nowhere"], "is not a folder"),
        (["check", "nothing.pth"], "there is no file of weights nothing.pth"),
        (["check", "file"], "cannot be read"),
        (["check", "file.safetensors"], "is not a readable safetensors file"),
        (["convert", "nothing.pth", "--weights", "out"], "there is no checkpoint nothing.pth"),
        (["convert", "file", "--weights", "out"], "cannot be read"),
        (["convert", "file", "--weights", "out", "--as", "clip"], "there are no weights called 'clip'"),
    ],
)
def test_bad_input_gets_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(weights.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("file", "file.safetensors"):
        Path(name).write_text("no weights")
    assert run(["weights", *arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("fmwiss: ") and sentence in told and told.endswith(".")
