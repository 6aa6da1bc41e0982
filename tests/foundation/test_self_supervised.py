import argparse
import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fmwiss.config import SelfSupervisedConfig
from fmwiss.data.voc import VOCSource
from fmwiss.errors import UserError
from fmwiss.foundation import SelfSupervisedModel, build_self_supervised
from fmwiss.foundation.images import frozen
from fmwiss.foundation.self_supervised import TimmViT, read_checkpoint, rename_keys

PATCH = 8
SMALL: dict[str, Any] = {
    "img_size": 32, "patch_size": PATCH, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 0,
    "dynamic_img_size": True,
}  # fmt: skip
KINDS: dict[str, Callable[[], nn.Module]] = {
    "DINO": lambda: VisionTransformer(**SMALL),
    "DINOv2 with registers": lambda: VisionTransformer(**SMALL, reg_tokens=4, no_embed_class=True, init_values=1e-1),
    "normalised queries and keys": lambda: VisionTransformer(**SMALL, qk_norm=True),
    "DINOv3": lambda: Eva(
        **SMALL,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_rotate_half=True,
        num_reg_tokens=4,
        use_abs_pos_emb=False,
    ),
    "EVA with separate projections": lambda: Eva(**SMALL, qkv_fused=False, use_rot_pos_emb=True),
    "EVA with biases of its own": lambda: Eva(**SMALL, qkv_bias=True),
}


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[TimmViT, nn.Module]:
    """A small random model behind the interface, and the same as timm made it."""
    torch.manual_seed(0)
    vit = KINDS[request.param]()
    with torch.no_grad():
        for parameter in vit.parameters():  # timm's own start is near 0, where attention is all but uniform
            parameter.add_(0.3 * torch.randn_like(parameter))
    untouched = copy.deepcopy(vit).eval()
    return frozen(TimmViT(vit, "small", IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), "cpu"), untouched


def normalized(images: Tensor) -> Tensor:
    mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@torch.no_grad()
def probabilities(vit: Any, images: Tensor) -> Tensor:
    """The last block's attention over all tokens, as timm itself computes it when nothing is fused."""
    seen: list[Tensor] = []
    vit.blocks[-1].attn.fused_attn = False
    handle = vit.blocks[-1].attn.attn_drop.register_forward_hook(lambda *call: seen.append(call[2]))
    vit.forward_features(normalized(images))
    handle.remove()
    return seen[0]


def test_attention_is_timms_between_patches(pair: tuple[TimmViT, nn.Module]) -> None:
    model, vit = pair
    images = torch.rand(2, 3, 32, 48)
    prefix = vit.num_prefix_tokens
    expected = probabilities(vit, images)[:, :, prefix:, prefix:]
    attention = model.attention(images)
    assert attention.shape == (2, 3, 24, 24)
    assert attention.std() > 1e-3  # far from uniform, so that mistakes show
    torch.testing.assert_close(attention, expected)
    torch.testing.assert_close(model.mean_attention(images), expected.mean(1))


def test_features_are_timms_patch_tokens(pair: tuple[TimmViT, nn.Module]) -> None:
    model, vit = pair
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        tokens = vit.forward_features(normalized(images))[:, vit.num_prefix_tokens :]
    features = model.patch_features(images)
    assert features.shape == (2, 24, 4, 6)
    for y, x in ((0, 0), (1, 4), (3, 5)):
        torch.testing.assert_close(features[:, :, y, x], tokens[:, 6 * y + x])


def test_one_pass_gives_both(pair: tuple[TimmViT, nn.Module]) -> None:
    model, _ = pair
    images = torch.rand(2, 3, 32, 32)
    attention, features = model.mean_attention_and_features(images)
    torch.testing.assert_close(attention, model.mean_attention(images))
    torch.testing.assert_close(features, model.patch_features(images))


@torch.no_grad()
def test_attention_by_hand() -> None:
    torch.manual_seed(1)
    vit: Any = KINDS["DINO"]()
    tokens: list[Tensor] = []
    vit.blocks[-1].norm1.register_forward_hook(lambda *call: tokens.append(call[2]))
    model = frozen(TimmViT(vit, "small", (0, 0, 0), (1, 1, 1)), "cpu")
    attention = model.attention(torch.rand(1, 3, 16, 16))[0]
    weight, bias = vit.blocks[-1].block.attn.qkv.weight, vit.blocks[-1].block.attn.qkv.bias
    for head in range(3):
        for query in range(4):
            rows = slice(8 * head, 8 * head + 8)
            q = weight[rows] @ tokens[0][0, 1 + query] + bias[rows]
            keys = slice(24 + 8 * head, 24 + 8 * head + 8)
            logits = [float(q @ (weight[keys] @ token + bias[keys])) / 8**0.5 for token in tokens[0][0]]
            expected = torch.tensor(logits).softmax(0)[1:]  # the class token takes its share, and is left out
            torch.testing.assert_close(attention[head, query], expected)


def test_attention_skips_what_it_does_not_need() -> None:
    model = TimmViT(KINDS["DINO"](), "small", (0, 0, 0), (1, 1, 1))
    calls: list[str] = []
    model.vit.blocks[-1].block.mlp.register_forward_hook(lambda *_: calls.append("mlp"))
    model.vit.blocks[-1].block.attn.register_forward_hook(lambda *_: calls.append("attention"))
    model.mean_attention(torch.rand(1, 3, 32, 32))
    assert calls == []
    model.mean_attention_and_features(torch.rand(1, 3, 32, 32))
    assert calls == ["attention", "mlp"]


@pytest.mark.parametrize(
    ("size", "grid"), [((8, 8), (1, 1)), ((5, 3), (1, 1)), ((33, 45), (4, 6)), ((80, 16), (10, 2))]
)
def test_any_size_gives_a_grid(size: tuple[int, int], grid: tuple[int, int]) -> None:
    model = TimmViT(KINDS["DINO"](), "small", (0, 0, 0), (1, 1, 1)).eval()
    places = grid[0] * grid[1]
    attention, features = model.mean_attention_and_features(torch.rand(1, 3, *size))
    assert attention.shape == (1, places, places)
    assert features.shape == (1, 24, *grid)
    assert attention.isfinite().all() and features.isfinite().all()


def test_only_plain_vits_serve() -> None:
    for name in ("test_resnet", "test_convnext", "vit_relpos_small_patch16_224"):
        with pytest.raises(UserError, match=f"must be a timm ViT of plain blocks, and {name} is not"):
            TimmViT(timm.create_model(name), name, (0, 0, 0), (1, 1, 1))


def test_identity_is_that_of_name_and_weights() -> None:
    config = SelfSupervisedConfig(model="test_vit", pretrained=False)
    model, again = build_self_supervised(config), build_self_supervised(config)
    assert isinstance(model, SelfSupervisedModel)
    assert model.identity == again.identity  # random weights too are the same in every run
    other = TimmViT(timm.create_model("test_vit"), "test_vit", (0, 0, 0), (1, 1, 1))
    assert model.identity["model"] == other.identity["model"] == "test_vit"
    assert model.identity["weights"] != other.identity["weights"]


# ---------------------------------------------------------------------------------------------- authors' checkpoints

NAME = "test_vit"


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model(NAME, num_classes=0, dynamic_img_size=True)


def dino(state: dict[str, Tensor]) -> dict[str, Any]:
    return state


def dino_whole_training(state: dict[str, Tensor]) -> dict[str, Any]:
    student = {f"module.backbone.{key}": torch.zeros_like(tensor) for key, tensor in state.items()}
    teacher = {f"backbone.{key}": tensor for key, tensor in state.items()}
    teacher |= {"head.mlp.0.weight": torch.zeros(4, 4), "head.last_layer.weight_g": torch.zeros(4, 1)}
    return {"student": student, "teacher": teacher, "epoch": 800, "args": argparse.Namespace(arch="vit_small")}


def ibot(state: dict[str, Tensor]) -> dict[str, Any]:
    return {"state_dict": {**state, "masked_embed": torch.zeros(1, 64), "head.weight": torch.zeros(5, 64)}}


def ibot_whole_training(state: dict[str, Tensor]) -> dict[str, Any]:
    teacher = {f"module.backbone.{key}": tensor for key, tensor in state.items()}
    teacher |= {"module.backbone.masked_embed": torch.zeros(1, 64), "module.head.mlp2.0.weight": torch.zeros(4, 4)}
    return {"teacher": teacher}


@pytest.mark.parametrize("layout", [dino, dino_whole_training, ibot, ibot_whole_training])
def test_the_authors_checkpoints_give_the_same_model(
    trained: nn.Module, tmp_path: Path, layout: Callable[[dict[str, Tensor]], dict[str, Any]]
) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(layout(trained.state_dict()), path)
    model: Any = build_self_supervised(SelfSupervisedConfig(model=NAME, checkpoint=path))
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        tokens = copy.deepcopy(trained).eval().forward_features(normalized(images))  # type: ignore[operator]
    torch.testing.assert_close(model.patch_features(images).flatten(2), tokens[:, 1:].transpose(1, 2))


def test_a_checkpoint_is_found_in_the_folder_of_weights(trained: nn.Module, tmp_path: Path) -> None:
    torch.save(dino(trained.state_dict()), tmp_path / "dino.pth")
    model: Any = build_self_supervised(SelfSupervisedConfig(model=NAME, checkpoint=Path("dino.pth")), tmp_path)
    torch.testing.assert_close(model.vit.pos_embed, trained.state_dict()["pos_embed"])


def test_safetensors_are_read_too(trained: nn.Module, tmp_path: Path) -> None:
    save_file(ibot_whole_training(trained.state_dict())["teacher"], tmp_path / "ibot.safetensors")
    read = read_checkpoint(tmp_path / "ibot.safetensors")
    assert read.keys() == trained.state_dict().keys()
    torch.testing.assert_close(read, dict(trained.state_dict()))


def test_names_come_back_from_their_wrapped_form(trained: nn.Module) -> None:
    state = trained.state_dict()
    assert rename_keys(state) == state
    assert rename_keys(ibot_whole_training(state)["teacher"]).keys() == state.keys()


def test_position_embeddings_of_another_image_size_are_resampled(tmp_path: Path) -> None:
    path = tmp_path / "small_images.pth"
    torch.save(timm.create_model(NAME, num_classes=0, img_size=96).state_dict(), path)
    model = build_self_supervised(SelfSupervisedConfig(model=NAME, checkpoint=path))
    assert model.patch_features(torch.rand(1, 3, 96, 96)).shape[-2:] == (6, 6)


def test_colours_are_normalised_as_the_model_was_trained(trained: nn.Module, tmp_path: Path) -> None:
    # timm's plain ViT-L/16 was trained by Google with another normalisation than iBOT's of the same architecture.
    save_file(trained.state_dict(), tmp_path / f"{NAME}.safetensors")
    by_name: Any = build_self_supervised(SelfSupervisedConfig(model=NAME), tmp_path)
    by_file: Any = build_self_supervised(SelfSupervisedConfig(model=NAME, checkpoint=tmp_path / f"{NAME}.safetensors"))
    assert by_name.normalize.mean.flatten().tolist() == pytest.approx(trained.pretrained_cfg["mean"])  # type: ignore
    assert by_file.normalize.mean.flatten().tolist() == pytest.approx(IMAGENET_DEFAULT_MEAN)


class _Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["FMWISS_TEST_FOLDER"],)


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMWISS_TEST_FOLDER", str(tmp_path / "made"))
    torch.save({"teacher": _Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad.pth cannot be read"):
        read_checkpoint(tmp_path / "bad.pth")
    assert not (tmp_path / "made").exists()


def test_unfit_checkpoints_are_errors(trained: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.pth or .*gone.pth is missing"):
        build_self_supervised(SelfSupervisedConfig(model=NAME, checkpoint=Path("gone.pth")), tmp_path)
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 cut off")
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            read_checkpoint(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="holds no weights"):
        read_checkpoint(tmp_path / "empty.pth")
    torch.save(trained.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(UserError, match=r"vit.pth holds another architecture than the timm model test_vit2"):
        build_self_supervised(SelfSupervisedConfig(model="test_vit2", checkpoint=tmp_path / "vit.pth"))


def test_real_dinov2_attends_within_objects(shared_dir: Path) -> None:
    """On a real photograph, places of an object attend to the object more than its share of the picture."""
    model = build_self_supervised(SelfSupervisedConfig(model="vit_small_patch14_dinov2"), shared_dir / "weights")
    assert model.patch_size == 14
    source = VOCSource(shared_dir / "voc-mini")
    gains = []
    for image_id in source.ids("dev")[:6]:
        image, mask = source.read_image(image_id)[None] / 255, source.read_mask(image_id)[None, None]
        image = nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)
        inside = nn.functional.interpolate(((mask > 0) & (mask < 255)).float(), (16, 16), mode="area").flatten() > 0.5
        if 0.05 < inside.float().mean() < 0.6:
            rows = model.mean_attention(image)[0][inside]
            assert 0.5 < rows.sum(1).mean() <= 1
            gains.append(float(rows[:, inside].sum(1).mean() / rows.sum(1).mean() / inside.float().mean()))
    assert len(gains) >= 2
    assert min(gains) > 1.2
