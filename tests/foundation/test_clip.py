import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.config import VisionLanguageConfig
from fmwiss.errors import UserError
from fmwiss.foundation import VisionLanguageModel, build_vision_language, describe_classes
from fmwiss.foundation.clip import Clip, DenseViT, load_clip, prompts
from fmwiss.foundation.images import frozen
from fmwiss.foundation.scores import denoise_prompts, smooth_by_keys

TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 3, "width": 24, "head_width": 8, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
NAME = "small-clip"


def make(vision: dict[str, Any], **options: Any) -> Clip:
    """A small open_clip model with random weights, far enough from its start for mistakes to show."""
    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim=12, vision_cfg=vision, text_cfg=TEXT, quick_gelu=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_((0.3 if "visual" in name else 0.1) * torch.randn_like(parameter))
    config = VisionLanguageConfig(model=NAME, tag=None, **options)
    return frozen(Clip(model, open_clip.get_tokenizer("ViT-B-16", context_length=24), config), "cpu")


def normalized(images: Tensor) -> Tensor:
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def output_of(part: nn.Module, visual: nn.Module, images: Tensor) -> Tensor:
    """What a part of the tower gives in open_clip's own forward pass."""
    seen: list[Tensor] = []
    handle = part.register_forward_hook(lambda *call: seen.append(call[2]))
    visual(normalized(images))
    handle.remove()
    return seen[0]


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias


@torch.no_grad()
def slow_vit(visual: Any, image: Tensor) -> Tensor:
    """``(D, h, w)`` one place at a time, from the weights alone: eq. 1 for one normalised image of the trained size."""
    patch, heads = visual.patch_size[0], 3
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    tokens = [visual.class_embedding]
    for y in range(rows):
        for x in range(columns):
            square = image[:, patch * y : patch * (y + 1), patch * x : patch * (x + 1)]
            tokens.append((visual.conv1.weight * square).sum((1, 2, 3)))
    tokens = [layer_norm(t + p, visual.ln_pre) for t, p in zip(tokens, visual.positional_embedding, strict=True)]

    def mlp(x: Tensor, block: Any) -> Tensor:
        hidden = block.mlp.c_fc.weight @ layer_norm(x, block.ln_2) + block.mlp.c_fc.bias
        return block.mlp.c_proj.weight @ (hidden * torch.sigmoid(1.702 * hidden)) + block.mlp.c_proj.bias

    for number, block in enumerate(visual.transformer.resblocks):
        attention = block.attn
        wq, wk, wv = attention.in_proj_weight.chunk(3)
        bq, bk, bv = attention.in_proj_bias.chunk(3)
        inputs = [layer_norm(token, block.ln_1) for token in tokens]
        queries, keys, values = ([w @ x + b for x in inputs] for w, b in ((wq, bq), (wk, bk), (wv, bv)))
        mixed = []
        for query, own in zip(queries, values, strict=True):
            if number == len(visual.transformer.resblocks) - 1:
                mixed.append(own)  # MaskCLIP: every place keeps its own value
                continue
            all_keys, all_values = torch.stack(keys).chunk(heads, 1), torch.stack(values).chunk(heads, 1)
            parts = zip(query.chunk(heads), all_keys, all_values, strict=True)
            mixed.append(torch.cat([(k @ q / math.sqrt(len(q))).softmax(0) @ v for q, k, v in parts]))
        projected = [attention.out_proj.weight @ x + attention.out_proj.bias for x in mixed]
        tokens = [token + x for token, x in zip(tokens, projected, strict=True)]
        tokens = [token + mlp(token, block) for token in tokens]

    vectors = [layer_norm(token, visual.ln_post) @ visual.proj for token in tokens[1:]]
    return torch.stack([vector / vector.norm() for vector in vectors]).T.view(-1, rows, columns)


def test_dense_vit_agrees_with_a_slow_computation() -> None:
    model = make(VIT)
    images = torch.rand(2, 3, 32, 32)
    features = model.dense_features(images)
    assert features.shape == (2, 12, 4, 4)
    assert features.std(dim=(2, 3)).mean() > 0.05
    for image, result in zip(normalized(images), features, strict=True):
        torch.testing.assert_close(result, slow_vit(model.model.visual, image), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_dense_vit_agrees_with_open_clip_when_places_see_only_themselves() -> None:
    model = make({**VIT, "ls_init_value": 0.5})
    visual, images = model.model.visual, torch.rand(2, 3, 32, 32)
    *_, before, last = visual.transformer.resblocks
    tokens = output_of(before, visual, images)
    alone = torch.full((17, 17), -torch.inf).fill_diagonal_(0)
    expected = F.normalize(visual.ln_post(last(tokens, attn_mask=alone)) @ visual.proj, dim=2)[:, 1:]
    torch.testing.assert_close(model.dense_features(images).flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_dense_resnet_pools_every_place_alone() -> None:
    model = make(RESNET)
    visual, images = model.model.visual, torch.rand(2, 3, 64, 96)
    visual.attnpool, pool = nn.Identity(), visual.attnpool  # it takes images of one size only
    places = output_of(visual.layer4, visual, images)
    visual.attnpool = pool
    # Attention pooling over one place: the query is its mean, itself, and so is all that it attends to.
    visual.attnpool.positional_embedding = nn.Parameter(torch.zeros(2, 256))
    features = model.dense_features(images)
    assert features.shape == (2, 12, 2, 3)
    for y in range(2):
        for x in range(3):
            expected = F.normalize(visual.attnpool(places[:, :, y : y + 1, x : x + 1]), dim=1)
            torch.testing.assert_close(features[:, :, y, x], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("vision", "size", "grid"),
    [
        (VIT, (8, 8), (1, 1)),
        (VIT, (3, 5), (1, 1)),
        (VIT, (37, 51), (5, 6)),
        (VIT, (8, 80), (1, 10)),
        (RESNET, (32, 32), (1, 1)),
        (RESNET, (7, 9), (1, 1)),
        (RESNET, (65, 81), (2, 3)),
    ],
)
def test_one_place_and_odd_sizes(vision: dict[str, Any], size: tuple[int, int], grid: tuple[int, int]) -> None:
    model = make(vision)
    features = model.dense_features(torch.rand(2, 3, *size))
    assert features.shape == (2, 12, *grid)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, *grid))
    assert model.scores(torch.rand(1, 3, *size), ["cat", "dog"]).isfinite().all()


def test_position_embeddings_are_interpolated_the_right_way_round() -> None:
    visual: Any = make(VIT).model.visual
    dense = DenseViT(visual)
    torch.testing.assert_close(dense._positions((4, 4)), visual.positional_embedding)
    with torch.no_grad():
        visual.positional_embedding[1:] = torch.arange(4.0).repeat_interleave(4)[:, None]  # the number of the row
    wide = dense._positions((4, 7))
    torch.testing.assert_close(wide[0], visual.positional_embedding[0])
    torch.testing.assert_close(wide[1:].view(4, 7, 24), torch.arange(4.0).view(4, 1, 1).expand(4, 7, 24))
    tall = dense._positions((8, 4))[1:].view(8, 4, 24)
    assert (tall[1:] > tall[:-1]).all()
    torch.testing.assert_close(tall[:, :1].expand_as(tall), tall)


@torch.no_grad()
def test_a_row_is_the_mean_over_eighty_prompts() -> None:
    model = make(VIT, rows={"aeroplane": ["airplane", "jet"]})
    rows, owner = model.text_embeddings(["cat", "aeroplane"])
    assert owner.tolist() == [0, 1, 1]
    for row, name in zip(rows, ("cat", "airplane", "jet"), strict=True):
        total = torch.zeros(12)
        for template in open_clip.OPENAI_IMAGENET_TEMPLATES:
            vector = model.model.encode_text(open_clip.tokenize(template(name), context_length=24))[0]
            total += vector / vector.norm()
        torch.testing.assert_close(row, total / total.norm())
    assert len(prompts("cat")) == 80
    assert "a photo of a cat." in prompts("cat")


def test_prompts_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(VIT)
    calls = []
    encode = model.model.encode_text
    monkeypatch.setattr(model.model, "encode_text", lambda tokens: calls.append(len(tokens)) or encode(tokens))
    model.text_embeddings(["cat", "dog"])
    model.text_embeddings(["dog", "cat"])
    assert calls == [80, 80]


def test_scores_without_options_are_cosines() -> None:
    model = make(VIT, rows={"aeroplane": ["airplane", "jet"]})
    images = torch.rand(2, 3, 32, 40)
    features, (rows, _) = model.dense_features(images), model.text_embeddings(["cat", "aeroplane"])
    cosines = torch.einsum("bdhw,rd->brhw", features, rows)
    expected = torch.stack((cosines[:, 0], cosines[:, 1:].amax(1)), dim=1)
    torch.testing.assert_close(model.scores(images, ["cat", "aeroplane"]), expected)


def test_options_change_the_scores_in_their_order() -> None:
    images, names = torch.rand(2, 3, 32, 40), ["cat", "dog", "sheep"]
    plain = make(VIT).scores(images, names)
    keys = make(VIT)._features_and_keys(images)[1]
    assert keys.shape == (2, 24, 4, 5)
    smooth = make(VIT, key_smoothing=True).scores(images, names)
    torch.testing.assert_close(smooth, smooth_by_keys(plain, keys))
    both = make(VIT, key_smoothing=True, prompt_denoising=True).scores(images, names)
    torch.testing.assert_close(both, denoise_prompts(smooth_by_keys(plain, keys)))


@torch.no_grad()
def test_keys_are_those_of_the_last_attention() -> None:
    model = make(VIT)
    visual, images = model.model.visual, torch.rand(1, 3, 32, 32)
    *_, before, last = visual.transformer.resblocks
    normed = last.ln_1(output_of(before, visual, images)[:, 1:])
    expected = normed @ last.attn.in_proj_weight[24:48].T + last.attn.in_proj_bias[24:48]
    torch.testing.assert_close(model._features_and_keys(images)[1].flatten(2).transpose(1, 2), expected)


def test_background_names_take_places_from_classes() -> None:
    images = torch.rand(2, 3, 32, 40)
    names, background = ["cat", "dog"], ["sky", "road"]
    everything = make(VIT).scores(images, [*names, *background])
    scores = make(VIT, background=background).scores(images, names)
    assert scores.shape == (2, 2, 4, 5)
    claimed = everything[:, 2:].amax(1) > everything[:, :2].amax(1)
    assert 0 < claimed.float().mean() < 1
    for label in range(2):
        torch.testing.assert_close(scores[:, label][~claimed], everything[:, label][~claimed])
    lowest = everything[:, :2].amin((2, 3), keepdim=True).expand(-1, -1, 4, 5)
    torch.testing.assert_close(scores.transpose(0, 1)[:, claimed], lowest.transpose(0, 1)[:, claimed])


def test_identity_holds_weights_and_options() -> None:
    model = make(VIT)
    assert isinstance(model, VisionLanguageModel)
    assert model.identity == make(VIT).identity
    options: list[dict[str, Any]] = [
        {"key_smoothing": True}, {"prompt_denoising": True}, {"background": ["sky"]}, {"rows": {"cat": ["kitten"]}},
    ]  # fmt: skip
    for option in options:
        other = make(VIT, **option)
        assert other.identity != model.identity
        assert other.identity["weights"] == model.identity["weights"]
    assert make({**VIT, "layers": 2}).identity["weights"] != model.identity["weights"]


def test_other_towers_are_errors() -> None:
    for vision in ({**VIT, "attentional_pool": True, "attn_pooler_heads": 2}, {**VIT, "qk_norm": True}):
        with pytest.raises(UserError, match=f"{NAME} has another image tower"):
            make(vision)


# ----------------------------------------------------------------------------------------------------------- loading


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a small model and its weights known to open_clip by name."""
    monkeypatch.delenv("FMWISS_WEIGHTS", raising=False)
    config = {"embed_dim": 12, "vision_cfg": VIT, "text_cfg": TEXT}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, config)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, f"{NAME}-quickgelu", {**config, "quick_gelu": True})
    weights = {"mine": {"url": "", "quick_gelu": True, "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}}
    for name in (NAME, f"{NAME}-quickgelu"):
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, weights)
    return f"{NAME}-quickgelu"


def test_local_weights_are_loaded_by_model_and_tag(small: str, tmp_path: Path) -> None:
    torch.manual_seed(9)
    model = open_clip.create_model(small)
    save_file(model.state_dict(), tmp_path / f"{small}.mine.safetensors")
    loaded: Any = build_vision_language(VisionLanguageConfig(model=small, tag="mine"), tmp_path)
    torch.testing.assert_close(loaded.model.state_dict(), model.state_dict())
    assert loaded.normalize.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert isinstance(loaded.model.visual.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_wrong_activation_is_an_error(small: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trained with QuickGELU; use small-clip-quickgelu$"):
        load_clip(VisionLanguageConfig(model=NAME, tag="mine"), tmp_path)
    with pytest.raises(UserError, match=r"ViT-B-16 computes GELU.*use ViT-B-16-quickgelu$"):
        load_clip(VisionLanguageConfig(model="ViT-B-16", tag="openai"))


def test_random_weights_are_the_same_in_every_run(small: str) -> None:
    config = VisionLanguageConfig(model=small, tag=None)
    assert load_clip(config).identity == load_clip(config).identity


def test_unfit_names_and_files_are_errors(small: str, tmp_path: Path) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(UserError, match=message):
            load_clip(VisionLanguageConfig(**options), tmp_path)

    refused("no model 'ViT-B16'; nearest names: ViT-B-16", model="ViT-B16")
    refused("no weights 'laion' for ViT-B-16-quickgelu; its tags: openai", tag="laion")
    refused("ViT-B-16-SigLIP has another image tower", model="ViT-B-16-SigLIP", tag="webli")
    refused("coca_ViT-B-32 has another image tower", model="coca_ViT-B-32", tag=None)
    refused("needs a text encoder or tokenizer from the package transformers", model="roberta-ViT-B-32", tag=None)
    save_file({"logit_scale": torch.ones(())}, tmp_path / f"{small}.mine.safetensors")
    refused("mine.safetensors does not fit the open_clip model small-clip-quickgelu", model=small, tag="mine")
    (tmp_path / f"{small}.mine.safetensors").write_bytes(b"cut")
    refused("mine.safetensors does not fit the open_clip model small-clip-quickgelu", model=small, tag="mine")


def test_without_weights_the_error_says_which_file_to_put_where(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", fail)
    with pytest.raises(UserError) as caught:
        load_clip(VisionLanguageConfig(model=small, tag="mine"), tmp_path)
    assert f"put {small}.mine.safetensors (open_clip's key names) into {tmp_path}" in str(caught.value)


def test_describe_classes_needs_no_weights() -> None:
    clip = VisionLanguageConfig(rows={"aeroplane": ["airplane", "jet"]})
    assert describe_classes(["aeroplane", "cat"], clip) == [
        ("aeroplane", [("airplane", prompts("airplane")[0]), ("jet", prompts("jet")[0])]),
        ("cat", [("cat", prompts("cat")[0])]),
    ]
    names = VisionLanguageConfig(name="imagenet-names", rows={"cow": ["n02391049"]})
    assert describe_classes(["cow", "sofa"], names) == [
        ("cow", [("n02391049", "zebra")]),
        ("sofa", [("n04344873", "studio couch, day bed")]),
    ]
