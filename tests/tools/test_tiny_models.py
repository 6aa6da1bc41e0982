"""The programs that train the tiny models: their views, matches and losses."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F

import train_tiny_cnn
from fmwiss.foundation.self_supervised import TimmViT
from fmwiss.foundation.tiny import VIT
from tiny_scenes import SIZE, Scenes, counterparts, distorted, views
from train_tiny_clip import contrastive_loss
from train_tiny_cnn import SIDE, Salient, central_views, central_weights, contrast, cut_out
from train_tiny_vit import Network, balanced, block_masks, cross_entropy, likeness, start_from_likeness, tie


@pytest.fixture
def coordinates() -> Scenes:
    """Two scenes whose first two channels are x and y; the third is not used."""
    ramp = torch.arange(SIZE, dtype=torch.float32).expand(SIZE, SIZE)
    image = torch.stack((ramp, ramp.T, torch.zeros(SIZE, SIZE))).to(torch.uint8)
    return Scenes(image.expand(2, -1, -1, -1).clone(), torch.tensor([[120, 160], [160, 112]]), [["cat"], ["dog"]])


def test_counterparts_show_the_same_place(coordinates: Scenes):
    """Coordinates sampled through a view and through its counterpart in another view are the same."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.tensor([0, 1, 0, 1])
    (_, mine), (_, theirs) = (views(coordinates, chosen, 40, (0.3, 1.0), generator) for _ in range(2))

    def look(where: torch.Tensor) -> torch.Tensor:
        grid = F.affine_grid(where, [4, 3, 40, 40], align_corners=False)
        return F.grid_sample(coordinates.images[chosen].float(), grid, padding_mode="border", align_corners=False)

    there, inside = counterparts(mine, theirs, (10, 10))
    matched = F.grid_sample(look(theirs), there, align_corners=False)[:, :2]
    own = F.adaptive_avg_pool2d(look(mine), (10, 10))[:, :2]
    assert inside.any() and not inside.all()
    assert ((matched - own).abs() < 1.5)[inside[:, None].expand_as(own)].all()  # pixels of a scene


def test_views_stay_inside_their_scenes(coordinates: Scenes):
    generator = torch.Generator().manual_seed(1)
    chosen = torch.tensor([0, 1] * 20)
    _, where = views(coordinates, chosen, 16, (0.1, 1.0), generator)
    corners = torch.stack([where @ torch.tensor([x, y, 1.0]) for x in (-1.0, 1.0) for y in (-1.0, 1.0)])
    pixels = (corners + 1) * SIZE / 2  # x, y
    sizes = coordinates.sizes[chosen].flip(1)
    assert pixels.min() > -1e-3 and (pixels <= sizes + 1e-3).all()
    assert (where[:, 0, 0] < 0).any() and (where[:, 0, 0] > 0).any()  # some are mirrored


def test_contrastive_loss_by_hand():
    logits = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    belongs = torch.tensor([[True, False], [True, True]])
    wanted = [math.log1p(math.exp(-2)), math.log1p(math.exp(-1)), math.log(2), math.log1p(math.exp(-3))]
    assert contrastive_loss(logits, belongs).item() == pytest.approx(sum(wanted) / 4)


def test_balanced_answers_use_all_prototypes():
    answers = balanced(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), 0.5, rounds=20)
    assert torch.allclose(answers.sum(1), torch.ones(64))
    assert torch.allclose(answers.sum(0), torch.full((8,), 8.0), atol=0.1)


def test_cross_entropy_by_hand():
    answers, scores = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.1, 0.2]])
    logs = [math.log(math.exp(s) / (math.exp(1) + math.exp(2))) for s in (1, 2)]
    assert cross_entropy(answers, scores).item() == pytest.approx(-(0.25 * logs[0] + 0.75 * logs[1]), rel=1e-5)


def test_block_masks_hide_some_of_every_second_view():
    masks = block_masks(10, 8, torch.Generator().manual_seed(0))
    shares = masks.float().mean((1, 2))
    assert (shares > 0).sum() == 5 and shares.max() < 0.8


def test_queries_and_keys_are_tied():
    vit = timm.create_model(VIT)
    start_from_likeness(vit)
    for block in vit.blocks:
        queries, keys, _ = block.attn.qkv.weight.chunk(3)
        assert torch.equal(queries, keys)
        tokens = F.layer_norm(torch.randn(4096, queries.shape[1]), queries.shape[1:])
        assert (tokens @ keys.T).std().item() == pytest.approx(1.0, abs=0.15)
    with torch.no_grad():
        vit.blocks[-1].attn.qkv.weight[0] += 1
    tie(vit.blocks[-1])
    queries, keys, _ = vit.blocks[-1].attn.qkv.weight.chunk(3)
    assert torch.equal(queries, keys)


def test_nearer_places_start_alike():
    vit = timm.create_model(VIT)
    start_from_likeness(vit)
    codes = vit.pos_embed.detach()[0, 1:].unflatten(0, (10, 10))
    alike = [float(codes[5, 2] @ codes[5, 2 + distance]) for distance in (0, 1, 3, 6)]
    assert alike == sorted(alike, reverse=True)


def test_likeness_against_loops():
    places = torch.randn(1, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    vectors = [places[0, :, row, column] - places[0].mean((1, 2)) for row in (0, 1) for column in (0, 1)]
    rows = torch.zeros(4, 4)
    for i, one in enumerate(vectors):
        weights = [math.exp(float(F.cosine_similarity(one, other, dim=0)) / 0.1) for other in vectors]
        rows[i] = torch.tensor([weight / sum(weights) for weight in weights])
    wanted = torch.zeros(4, 4)
    for i in range(4):
        for j in range(4):
            wanted[i, j] = sum(rows[i, via] * rows[via, j] for via in range(4))
    assert torch.allclose(likeness(places)[0], wanted, atol=1e-5)


def test_the_attention_that_learns_is_the_one_that_is_used():
    network = Network(8).eval()
    images = torch.rand(1, 3, 80, 80)
    with torch.no_grad():
        network(images)
        learns = network.attention(network.last_input)
    model = TimmViT(copy.deepcopy(network.encoder), VIT, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    used = model.attention(images)
    used = used / used.sum(-1, keepdim=True)  # the class token has a share in it
    assert torch.allclose(learns, used.mean(1), atol=1e-6)


def test_distortion_is_of_colours_alone():
    """A scene without edges but one keeps that edge's place."""
    images = torch.full((64, 3, 8, 8), 0.2)
    images[..., 4:] = torch.tensor((0.9, 0.5, 0.6)).view(3, 1, 1)
    changed = distorted(images, torch.Generator().manual_seed(0)).mean(2)
    steps = changed.diff(dim=-1).abs().sum(1)
    assert changed.std((0, 2)).min() > 0.1
    assert (steps[:, 2:5].sum(1) > steps[:, [0, 1, 5, 6]].sum(1)).float().mean() > 0.9


def test_contrast_by_hand():
    mine = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    theirs = torch.tensor([[0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    scene = torch.tensor([0, 0, 1])
    rows = [[0.8, -1.0], [0.8, -0.6], [0.0, 0.6, 1.0]]  # each against its own first, and those of other scenes
    wanted = [math.log(sum(math.exp(x / 0.1) for x in row)) - row[0] / 0.1 for row in rows]
    assert contrast(mine, theirs, scene).item() == pytest.approx(sum(wanted) / 3, rel=1e-5)


def square_scenes(count: int) -> Scenes:
    """Scenes of 80 x 160 pixels, grey but for one square of 8 pixels in a colour that says which scene it is."""
    images = torch.full((count, 3, SIZE, SIZE), 100, dtype=torch.uint8)
    images[:, :, 80:] = 0  # outside
    for number in range(count):
        images[number, :, 32:40, 64:72] = torch.tensor([250, 10 * number, 0])[:, None, None].to(torch.uint8)
    return Scenes(images, torch.tensor([[80, 160]]).expand(count, 2), [["cat"]] * count)


def test_what_stands_out_in_colour_is_drawn():
    scenes = Salient.of(square_scenes(4))
    assert scenes.inside.sum(1).tolist() == [10 * 20] * 4
    assert scenes.salience.argmax(1).tolist() == [4 * 20 + 8] * 4 and (scenes.salience[~scenes.inside] == 0).all()
    chosen, generator = torch.arange(4).repeat(500), torch.Generator().manual_seed(0)
    drawn = scenes.draw(chosen, generator)
    assert (drawn == torch.tensor([68.0, 36.0])).all(1).float().mean() > 0.9
    ground = scenes.draw_ground(chosen, generator)
    assert (ground == torch.tensor([68.0, 36.0])).all(1).float().mean() < 0.01
    assert (ground[:, 1] < 80).all() and ground.unique(dim=0).shape[0] > 150


def test_salience_against_a_loop():
    scenes = square_scenes(1)
    pixels = scenes.images[0, :, :80].float() / 255
    mean = pixels.mean((1, 2))
    salience = Salient.of(scenes).salience[0].view(20, 20)
    for row, column in ((4, 8), (0, 0), (9, 19)):
        colour = pixels[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].mean((1, 2))
        assert salience[row, column].item() == pytest.approx(float(((colour - mean) ** 2).sum()), rel=1e-4)


def test_a_view_has_the_place_in_its_middle_and_another_scene_around_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train_tiny_cnn, "recoloured", lambda images, generator: images)
    images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    images[0, 0], images[1, 1] = 200, 100  # one red, one green
    salient = Salient.of(Scenes(images, torch.full((2, 2), SIZE), [["cat"], ["dog"]]))
    chosen = torch.zeros(64, dtype=torch.long)
    found = central_views(salient, chosen, torch.full((64, 2), 80.0), torch.Generator().manual_seed(0))
    assert found.shape == (64, 3, SIDE, SIDE)
    assert torch.allclose(found[:, 0, 18:22, 18:22], torch.tensor(200 / 255))
    corner = found[:, :2, 0, 0]
    green = corner[:, 1] > 0.3
    assert 0.3 < green.float().mean() < 0.7  # the other scene is drawn among both
    assert torch.allclose(corner[~green], torch.tensor([200 / 255, 0.0]))


def test_cut_outs_stay_inside_their_scenes(coordinates: Scenes):
    chosen, generator = torch.tensor([0, 1]).repeat(20), torch.Generator().manual_seed(0)
    corners = torch.tensor([[0.0, 0.0], [160.0, 160.0]]).repeat_interleave(20, 0)
    found = cut_out(coordinates, chosen, corners, torch.full((40,), 40.0), generator) * 255
    x, y = found[:, 0], found[:, 1]
    assert torch.allclose(x.mean((1, 2))[:20], torch.tensor(19.5), atol=0.1)
    assert torch.allclose(y.mean((1, 2))[20::2], torch.tensor(119.5 - 20), atol=0.1)
    mirrored = x[:, 0, 0] > x[:, 0, -1]
    assert mirrored.any() and not mirrored.all() and (y[:, 0] < y[:, -1]).all()


def test_the_middle_counts_most():
    weights = central_weights(5)
    assert weights.sum().item() == pytest.approx(1) and weights[2, 2] == weights.max() and weights[0, 0] < weights[0, 2]


def test_the_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import train_tiny_clip
    import train_tiny_vit

    for program in (train_tiny_clip, train_tiny_cnn, train_tiny_vit):
        out = tmp_path / "weights.safetensors"
        options = ["--scenes", "6", "--iterations", "2", "--batch-size", "4"]
        monkeypatch.setattr("sys.argv", ["program", str(out), *options])
        program.main()
        assert out.stat().st_size > 100_000
        out.unlink()
