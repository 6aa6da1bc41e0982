"""``clip``: any open_clip model with a ViT or ResNet tower of its own, made dense as MaskCLIP does (Zhou et al., 2022).

CLIP's last attention mixes the whole image into one vector. MaskCLIP leaves the mixing out: every place keeps its own
value, which then takes the rest of the way that the pooled vector would take into the space shared with the text.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.config import VisionLanguageConfig
from fmwiss.errors import UserError
from fmwiss.foundation import tiny
from fmwiss.foundation.images import Normalize, fit
from fmwiss.foundation.scores import class_scores, compete, denoise_prompts, smooth_by_keys
from fmwiss.foundation.weights import find_weights, first_line, require_hub, state_digest, weights_folder
from fmwiss.names import joined

open_clip.add_model_config(tiny.FOLDER / f"{tiny.CLIP}.json")


class Clip(nn.Module):
    """A :class:`~fmwiss.foundation.VisionLanguageModel` over an open_clip model.

    Args:
        model: open_clip model whose ``visual`` is open_clip's own ViT (without attentional pooling) or ResNet.
        tokenizer: texts -> token ids ``(n, context length)``.
        config: its options ``rows`` (name -> synonyms, each a row), ``background``, ``prompt_denoising`` and
            ``key_smoothing`` are honoured, ``model`` and ``tag`` only go into the identity.
        mean: mean colour of the images that it was trained on.
        std: their standard deviation.

    Raises:
        UserError: another kind of image tower.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        config: VisionLanguageConfig,
        mean: Sequence[float] = open_clip.OPENAI_DATASET_MEAN,
        std: Sequence[float] = open_clip.OPENAI_DATASET_STD,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.config = config
        self.normalize = Normalize(mean, std)
        self.dense = _dense_tower(self.model.visual, config.model)
        self.stride = self.dense.stride
        self._rows: dict[str, Tensor] = {}

    @cached_property
    def identity(self) -> dict[str, Any]:
        options = self.config.model_dump(
            include={"name", "model", "rows", "background", "prompt_denoising", "key_smoothing"}
        )
        return {**options, "weights": state_digest(self.model)}

    @torch.inference_mode()
    def dense_features(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] -> ``(B, D, H / stride, W / stride)``, L2-normalised over D."""
        return self._features_and_keys(images)[0]

    @torch.inference_mode()
    def text_embeddings(self, class_names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """One row per name or synonym, L2-normalised: the mean over the prompts' normalised embeddings."""
        rows = [row_names(name, self.config.rows) for name in class_names]
        owner = [index for index, names in enumerate(rows) for _ in names]
        vectors = torch.stack([self._row(name) for names in rows for name in names])
        return vectors, torch.tensor(owner, device=vectors.device)

    @torch.inference_mode()
    def scores(self, images: Tensor, class_names: Sequence[str]) -> Tensor:
        """``(B, C, h, w)``: cosine with the best of a class's rows (eq. 3), then the options that are on.

        Smoothing and denoising look at all the names given and at the background's, so give all that may be there.
        """
        return self.scores_from(self.encode(images), class_names)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Dense features (normalised) and keys, each ``(B, D, h, w)``."""
        return self._features_and_keys(images)

    @torch.inference_mode()
    def scores_from(self, encoded: tuple[Tensor, ...], class_names: Sequence[str]) -> Tensor:
        """:meth:`scores` from what :meth:`encode` gave."""
        names = [*class_names, *self.config.background]
        features, keys = encoded
        scores = class_scores(features, *self.text_embeddings(names), len(names))
        if self.config.key_smoothing:
            scores = smooth_by_keys(scores, keys)
        if self.config.prompt_denoising:
            scores = denoise_prompts(scores)
        return compete(scores, len(class_names)) if self.config.background else scores

    def _features_and_keys(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, keys = self.dense(self.normalize(fit(images, self.stride)))
        return F.normalize(features, dim=1), keys

    def _row(self, name: str) -> Tensor:
        """``(D,)``; a name's prompts are read once."""
        if name not in self._rows:
            tokens = self.tokenizer(prompts(name)).to(self.normalize.mean.device)
            each = F.normalize(self.model.encode_text(tokens), dim=1)
            self._rows[name] = F.normalize(each.mean(0), dim=0)
        return self._rows[name]


class DenseViT(nn.Module):
    """A CLIP ViT without the mixing of its last attention; images (normalised) -> features and keys, each a map."""

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__()
        self.visual: Any = visual
        self.stride: int = visual.patch_size[0]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.visual.conv1(images)
        grid = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat((self.visual.class_embedding.expand(len(patches), 1, -1), patches), dim=1)
        tokens = self.visual.ln_pre(tokens + self._positions(grid))
        *blocks, last = self.visual.transformer.resblocks
        for block in blocks:
            tokens = block(tokens)

        patches = tokens[:, 1:]
        weights, biases = last.attn.in_proj_weight.chunk(3), last.attn.in_proj_bias.chunk(3)
        _, keys, values = (F.linear(last.ln_1(patches), *pair) for pair in zip(weights, biases, strict=True))
        patches = patches + last.ls_1(last.attn.out_proj(values))
        patches = patches + last.ls_2(last.mlp(last.ln_2(patches)))
        features = self.visual.ln_post(patches) @ self.visual.proj
        return _as_map(features, grid), _as_map(keys, grid)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """``(1 + h * w, width)``: the position embeddings, interpolated to another grid than the trained one."""
        positions = self.visual.positional_embedding
        trained = self.visual.grid_size
        if tuple(grid) == tuple(trained):
            return positions
        patches = positions[1:].T.unflatten(1, trained)[None]
        patches = F.interpolate(patches, grid, mode="bicubic", align_corners=False, antialias=True)
        return torch.cat((positions[:1], patches[0].flatten(1).T))


class DenseResNet(nn.Module):
    """A CLIP ResNet whose attention pooling has become 1x1 convolutions; images (normalised) -> features and keys.

    As in MaskCLIP, the pooling's position embeddings are left out.
    """

    stride = 32

    def __init__(self, visual: ModifiedResNet) -> None:
        super().__init__()
        self.visual: Any = visual

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        places = self.visual.stem(images)
        for layer in (self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4):
            places = layer(places)
        grid = places.shape[-2:]
        places = places.flatten(2).transpose(1, 2)
        pool = self.visual.attnpool
        return _as_map(pool.c_proj(pool.v_proj(places)), grid), _as_map(pool.k_proj(places), grid)


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(B, h * w, D)`` -> ``(B, D, h, w)``."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def _dense_tower(visual: Any, name: str) -> DenseViT | DenseResNet:
    if isinstance(visual, ModifiedResNet):
        return DenseResNet(visual)
    if (
        isinstance(visual, VisionTransformer)
        and isinstance(visual.transformer.resblocks[-1], ResidualAttentionBlock)
        and visual.attn_pool is None
        and visual.proj is not None
    ):
        return DenseViT(visual)
    raise _other_tower(name)


def _other_tower(name: str) -> UserError:
    return UserError(
        f"dense features need a CLIP with open_clip's plain ViT or its ResNet, and {name} has another image tower; "
        "ViT-B-16-quickgelu is one that fits"
    )


def prompts(name: str) -> list[str]:
    """OpenAI's 80 ImageNet prompts for one name."""
    return [template(name) for template in open_clip.OPENAI_IMAGENET_TEMPLATES]


def row_names(name: str, overrides: Mapping[str, Sequence[str]]) -> list[str]:
    """The names that stand for a class: its own, or the synonyms given in its place under any spelling of it."""
    given = next((synonyms for key, synonyms in overrides.items() if joined(key) == joined(name)), None)
    return list(given or [name])


def load_clip(config: VisionLanguageConfig, weights: Path | None = None) -> Clip:
    """The open_clip model that a configuration names: from ``<model>.<tag>.safetensors`` in the folder, or the hub.

    Random weights (``tag: null``) are the same in every run.

    Raises:
        UserError: unknown model or tag, an activation that the weights were not trained with, no weights to be had.
    """
    name, tag = config.model, config.tag
    _check_model(name)
    if tag is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Clip(open_clip.create_model(name), open_clip.get_tokenizer(name), config)
    trained = _check_tag(name, tag)
    expects = {key: trained[key] for key in ("mean", "std") if trained.get(key)}
    return Clip(_load(name, tag, trained, weights), open_clip.get_tokenizer(name), config, **expects)


def _load(name: str, tag: str, trained: Mapping[str, Any], weights: Path | None) -> nn.Module:
    file = find_weights(f"{name}.{tag}", weights)
    if file is not None:
        try:
            return open_clip.create_model(name, pretrained=str(file))
        except (RuntimeError, OSError, SafetensorError) as error:
            raise UserError(f"{file} does not fit the open_clip model {name} ({first_line(error)})") from error
    folder = weights_folder(weights) or "the --weights folder"
    advice = f"put {name}.{tag}.safetensors (open_clip's key names) into {folder}"
    require_hub(str(trained.get("hf_hub", "")).rpartition("/")[0] or None, f"{name} ({tag})", advice)
    try:
        return open_clip.create_model(name, pretrained=tag)
    except (RuntimeError, OSError) as error:
        raise UserError(f"weights of {name} ({tag}) are not to be had ({first_line(error)}); {advice}") from error


def _check_model(name: str) -> None:
    """Refuse what cannot serve before anything is downloaded."""
    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.4)
        raise UserError(f"open_clip has no model {name!r}; nearest names: {', '.join(near) or 'none'}")
    if "timm_model_name" in config["vision_cfg"] or config["vision_cfg"].get("attentional_pool"):
        raise _other_tower(name)
    if "hf_tokenizer_name" in config["text_cfg"] or "hf_model_name" in config["text_cfg"]:
        raise UserError(f"{name} needs a text encoder or tokenizer from the package transformers; choose another CLIP")


def _check_tag(name: str, tag: str) -> Mapping[str, Any]:
    """What open_clip knows of the weights; the model must compute the activation that they were trained with."""
    if name == tiny.CLIP and tag == tiny.CLIP_TAG:
        return {}  # the package's own, with open_clip's usual mean colour
    trained = open_clip.get_pretrained_cfg(name, tag)
    if not trained:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(f"open_clip has no weights {tag!r} for {name}; its tags: {tags}")
    quick = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    if quick != bool(trained.get("quick_gelu", False)):
        right = name.removesuffix("-quickgelu") if quick else f"{name}-quickgelu"
        has, wants = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
        raise UserError(f"{name} computes {has}, but its weights {tag!r} were trained with {wants}; use {right}")
    return trained
