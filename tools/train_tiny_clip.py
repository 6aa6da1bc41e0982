"""Trains the tiny CLIP of the package on scenes of EmojiSeg and captions; never sees a mask.

    python tools/train_tiny_clip.py src/fmwiss/foundation/tiny/TinyCLIP-emoji.emojiseg.safetensors

A caption is one of the prompt templates filled with the name of an object in the scene. A scene and a caption belong
together when the scene shows what the caption names, so several scenes of a batch may belong to one caption: the
contrastive loss is SigLIP's, which asks every pair of a batch by itself. The weights are an exponential average over
the last iterations'.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fmwiss.data.emoji import EMOJI_CLASSES
from fmwiss.foundation import clip as _clip  # noqa: F401  # makes the architecture known to open_clip
from fmwiss.foundation.tiny import CLIP
from fmwiss.reporting.progress import track
from tiny_scenes import render_scenes, save_half, views

MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=12000)
    parser.add_argument("--iterations", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1000)
    arguments = parser.parse_args()

    scenes = render_scenes(arguments.scenes, arguments.seed)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    model = open_clip.create_model(CLIP).to(memory_format=torch.channels_last).train()
    tokenizer = open_clip.get_tokenizer(CLIP)
    tokens = torch.stack([tokenizer([t(n) for t in open_clip.OPENAI_IMAGENET_TEMPLATES]) for n in EMOJI_CLASSES])
    shown = torch.zeros(arguments.scenes, len(EMOJI_CLASSES), dtype=torch.bool)
    for scene, names in enumerate(scenes.names):
        shown[scene, [EMOJI_CLASSES.index(name) for name in names]] = True
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    bias = torch.full((), -2.3, requires_grad=True)  # one pair in ten belongs together
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": [*others, bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.98))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995), use_buffers=True)
    started, total = time.monotonic(), 0.0
    for iteration in track(range(arguments.iterations), "training"):
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * _schedule(iteration, arguments.iterations)
        chosen = torch.randint(arguments.scenes, (arguments.batch_size,), generator=generator)
        images, _ = views(scenes, chosen, arguments.side, (0.6, 1.0), generator)
        images = ((images.clamp(0, 1) - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        named = torch.multinomial(shown[chosen].float(), 1, generator=generator)[:, 0]
        template = torch.randint(tokens.shape[1], (len(chosen),), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            image_features = model.encode_image(images, normalize=True)
            text_features = model.encode_text(tokens[named, template], normalize=True)
        logits = model.logit_scale.exp() * image_features.float() @ text_features.float().T + bias
        loss = contrastive_loss(logits, shown[chosen][:, named])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        averaged.update_parameters(model)
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        total += float(loss.detach())
        if (iteration + 1) % 50 == 0:
            minutes = (time.monotonic() - started) / 60
            print(f"{iteration + 1}: loss {total / 50:.3f}, {minutes:.1f} min", flush=True)
            total = 0.0
        if (iteration + 1) % 250 == 0 or iteration + 1 == arguments.iterations:
            save_half(averaged.module, arguments.out)


def contrastive_loss(logits: Tensor, belongs: Tensor) -> Tensor:
    """Whether image and caption belong together, asked of every pair (SigLIP, Zhai et al., 2023).

    Args:
        logits: ``(B, B)``, image by caption.
        belongs: ``(B, B)`` bool.
    """
    return F.binary_cross_entropy_with_logits(logits, belongs.float())


def _schedule(iteration: int, iterations: int) -> float:
    warm = min(1.0, (iteration + 1) / 100)
    return warm * 0.5 * (1 + math.cos(math.pi * iteration / iterations))


if __name__ == "__main__":
    main()
