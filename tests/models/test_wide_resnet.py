import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.errors import UserError
from fmwiss.models import Architecture, Segmenter
from fmwiss.models.wide_resnet import BLOCKS, CHANNELS, RESNET101_LEAKY, WIDE_RESNET38, WideResNet

TINY = {"blocks": (1, 1, 2, 1, 1, 1), "channels": ((4, 4), (6, 6), (8, 8), (8, 12), (6, 8, 16), (8, 12, 20))}


def test_parameters_are_those_of_the_channel_table() -> None:
    # From the publication's table: for every block its convolutions, the norms before them, and the 1x1 short cut.
    total, width = 3 * 64 * 9, 64
    groups = [
        (3, [(3, 128), (3, 128)]),
        (3, [(3, 256), (3, 256)]),
        (6, [(3, 512), (3, 512)]),
        (3, [(3, 512), (3, 1024)]),
        (1, [(1, 512), (3, 1024), (1, 2048)]),
        (1, [(1, 1024), (3, 2048), (1, 4096)]),
    ]
    layers = 1
    for count, convolutions in groups:
        for number in range(count):
            before = width
            for side, channels in convolutions:
                total += 2 * width + side * side * width * channels
                width, layers = channels, layers + 1
            # A2 has a short cut of its own where channels change, and in the first block of a group that strides
            if number == 0:
                total += before * width
    total += 2 * width + width * 1000 + 1000
    assert layers + 1 == 38  # with the classifier
    with torch.device("meta"):
        model = timm.create_model(WIDE_RESNET38)
    assert sum(p.numel() for p in model.parameters()) == total == 109_167_912


def test_the_published_shapes() -> None:
    assert BLOCKS == (3, 3, 6, 3, 1, 1)
    with torch.device("meta"):
        model = timm.create_model(WIDE_RESNET38)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim > 1}
        assert model(torch.zeros(2, 3, 64, 96)).shape == (2, 1000)
    assert shapes["conv1.weight"] == (64, 3, 3, 3)
    assert shapes["mod2.0.proj_conv.weight"] == (128, 64, 1, 1)
    assert shapes["mod4.0.proj_conv.weight"] == (512, 256, 1, 1)
    assert shapes["mod5.2.conv2.weight"] == (1024, 512, 3, 3)
    assert shapes["mod6.0.conv1.weight"] == (512, 1024, 1, 1)
    assert shapes["mod7.0.conv3.weight"] == (4096, 2048, 1, 1)
    assert shapes["fc.weight"] == (1000, 4096)
    assert len([name for name in shapes if "proj_conv" in name]) == 6
    assert not [name for name in shapes if ".1.proj_conv" in name]


@pytest.mark.parametrize(
    ("stride", "reduction", "dilations"),
    [
        (32, [2, 4, 8, 16, 32], [1, 1, 1, 1, 1, 1]),
        (16, [2, 4, 8, 16, 16], [1, 1, 1, 1, 2, 2]),
        (8, [2, 4, 8, 8, 8], [1, 1, 1, 2, 4, 4]),  # as WILSON and InPlace-ABN dilate it
    ],
)
def test_features_at_every_output_stride(stride: int, reduction: list[int], dilations: list[int]) -> None:
    with torch.device("meta"):
        model = timm.create_model(WIDE_RESNET38, features_only=True, output_stride=stride)
        features = model(torch.zeros(1, 3, 64, 96))
    assert model.feature_info.reduction() == reduction
    assert model.feature_info.channels() == [128, 256, 512, 1024, 4096]
    for shown, factor, channels in zip(features, reduction, model.feature_info.channels(), strict=True):
        assert shown.shape == (1, channels, 64 // factor, 96 // factor)
    for group, dilation in enumerate(dilations, start=2):
        sides = {
            layer.dilation for layer in getattr(model, f"mod{group}").modules()
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)
        }
        assert sides == {(dilation, dilation)}


def test_two_groups_are_pooled_and_the_others_stride() -> None:
    with torch.device("meta"):
        model = timm.create_model(WIDE_RESNET38)
    pools = [name for name, layer in model.named_modules() if isinstance(layer, nn.MaxPool2d)]
    strides = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d) and layer.stride != (1, 1)]
    assert pools == ["pool2", "pool3"]
    assert strides == [f"mod{group}.0.{layer}" for group in (4, 5, 6) for layer in ("conv1", "proj_conv")]


def test_dropout_stands_before_the_last_convolution_of_the_last_groups() -> None:
    model = WideResNet(**TINY, num_classes=0)
    rates = [getattr(model, f"mod{group}")[0].dropout.p for group in range(2, 8)]
    assert rates == [0, 0, 0, 0, 0.3, 0.5]
    block = model.mod7[0].train()
    seen: list[Tensor] = []
    block.conv3.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    block(torch.rand(2, 16, 4, 4))
    whole = (seen[0] == 0).all(dim=(2, 3))
    assert whole.any() and not whole.all()  # channels, not single places


def test_the_forward_pass_against_the_definition() -> None:
    torch.manual_seed(0)
    model = WideResNet(**TINY, num_classes=5, output_stride=8).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    image = torch.rand(2, 3, 32, 40)

    def act(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        def column(values: Tensor) -> Tensor:
            return values.view(1, -1, 1, 1)

        y = (x - column(norm.running_mean)) / torch.sqrt(column(norm.running_var) + 1e-5)
        y = y * column(norm.weight) + column(norm.bias)
        return torch.where(y > 0, y, 0.01 * y)

    x = F.conv2d(image, model.conv1.weight, padding=1)
    for group, dilation in zip(range(2, 8), (1, 1, 1, 2, 4, 4), strict=True):
        if group < 4:
            x = F.max_pool2d(x, 3, 2, 1)
        for number, block in enumerate(getattr(model, f"mod{group}")):
            stride = 2 if group == 4 and number == 0 else 1
            first = act(x, block.bn1)
            if group < 6:
                y = F.conv2d(first, block.conv1.weight, stride=stride, padding=dilation, dilation=dilation)
                y = F.conv2d(act(y, block.bn2), block.conv2.weight, padding=dilation, dilation=dilation)
            else:
                y = F.conv2d(first, block.conv1.weight)
                y = F.conv2d(act(y, block.bn2), block.conv2.weight, padding=dilation, dilation=dilation)
                y = F.conv2d(act(y, block.bn3), block.conv3.weight)
            has_own = group not in (4, 5, 6, 7) or number == 0
            x = y + (F.conv2d(first, block.proj_conv.weight, stride=stride) if has_own else x)
    x = act(x, model.bn_out)
    assert torch.allclose(model.forward_features(image), x, atol=1e-5)
    logits = x.mean(dim=(2, 3)) @ model.fc.weight.T + model.fc.bias
    assert torch.allclose(model(image), logits, atol=1e-5)


def test_blocks_can_be_computed_again_in_the_backward_pass() -> None:
    torch.manual_seed(0)
    model = WideResNet(**TINY, num_classes=3).eval()  # without dropout
    image = torch.rand(1, 3, 32, 32)
    model(image).sum().backward()
    once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.set_grad_checkpointing()
    model(image).sum().backward()
    twice = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(once, twice, strict=True))


def test_a_segmenter_at_output_stride_8() -> None:
    architecture = Architecture(
        encoder=WIDE_RESNET38, output_stride=8, decoder_channels=8, atrous_rates=(1, 2, 3), dropout=0.1,
        steps=(("a", "b"),), resize=None,
    )
    with torch.device("meta"):
        model = Segmenter(architecture).eval()
        assert model.encoder_channels == 4096 == CHANNELS[-1][-1]
        assert model(torch.zeros(1, 3, 32, 48)).shape == (1, 3, 4, 6)
    with pytest.raises(UserError, match="has no features at"), torch.device("meta"):
        Segmenter(Architecture(**{**vars(architecture), "output_stride": 4}))


def test_resnet101_has_leaky_units_and_nothing_else_changed() -> None:
    with torch.device("meta"):
        leaky, plain = timm.create_model(RESNET101_LEAKY), timm.create_model("resnet101")
    assert {k: v.shape for k, v in leaky.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    units = [m for m in leaky.modules() if isinstance(m, nn.ReLU | nn.LeakyReLU)]
    assert units and all(isinstance(m, nn.LeakyReLU) and m.negative_slope == 0.01 for m in units)
    assert len(units) == len([m for m in plain.modules() if isinstance(m, nn.ReLU)])
