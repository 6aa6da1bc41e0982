"""Checkpoints are generated in the authors' key format; the reference below reads them as they are."""

from pathlib import Path

import pytest
import timm
import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.errors import UserError
from fmwiss.foundation.inplace_abn import EPS, convert, family_of, is_inplace_abn
from fmwiss.models.wide_resnet import RESNET101_LEAKY, WIDE_RESNET38, WideResNet

WIDE_BLOCKS = (1, 2, 2, 1, 1, 1)
WIDE_CHANNELS = ((4, 4), (6, 6), (8, 8), (8, 12), (6, 8, 16), (8, 12, 20))
RESNET_BLOCKS, RESNET_CHANNELS = (2, 1, 2, 1), (4, 6, 8, 10)


def _norm(state: dict[str, Tensor], name: str, channels: int) -> None:
    state[f"{name}.weight"] = torch.randn(channels)  # of either sign, which in-place norm does not see
    state[f"{name}.bias"] = torch.randn(channels) * 0.3
    state[f"{name}.running_mean"] = torch.randn(channels) * 0.3
    state[f"{name}.running_var"] = torch.rand(channels) + 0.5


def _conv(state: dict[str, Tensor], name: str, channels: int, inputs: int, side: int) -> None:
    state[f"{name}.weight"] = torch.randn(channels, inputs, side, side) / (inputs * side * side) ** 0.5


def wide_checkpoint() -> dict[str, Tensor]:
    """A small network with the key names of ``wide_resnet38_ipabn_lr_256.pth.tar``."""
    state: dict[str, Tensor] = {}
    width = 2
    _conv(state, "module.mod1.conv1", width, 3, 3)
    for group, (count, channels) in enumerate(zip(WIDE_BLOCKS, WIDE_CHANNELS, strict=True), start=2):
        for block in range(1, count + 1):
            name, before = f"module.mod{group}.block{block}", width
            _norm(state, f"{name}.bn1", width)
            sides = (3, 3) if len(channels) == 2 else (1, 3, 1)
            for place, (size, side) in enumerate(zip(channels, sides, strict=True), start=1):
                if place > 1:
                    _norm(state, f"{name}.convs.bn{place}", width)
                _conv(state, f"{name}.convs.conv{place}", size, width, side)
                width = size
            if block == 1:
                _conv(state, f"{name}.proj_conv", width, before, 1)
    _norm(state, "module.bn_out", width)
    state["module.classifier.fc.weight"] = torch.randn(7, width)
    state["module.classifier.fc.bias"] = torch.randn(7)
    return state


def resnet_checkpoint() -> dict[str, Tensor]:
    """The same with the key names of ``resnet101_iabn_sync.pth.tar``."""
    state: dict[str, Tensor] = {}
    width = 64
    _conv(state, "module.mod1.conv1", width, 3, 7)
    _norm(state, "module.mod1.bn1", width)
    for group, (count, size) in enumerate(zip(RESNET_BLOCKS, RESNET_CHANNELS, strict=True), start=2):
        for block in range(1, count + 1):
            name = f"module.mod{group}.block{block}"
            for place, (channels, side) in enumerate(((size, 1), (size, 3), (4 * size, 1)), start=1):
                _conv(state, f"{name}.convs.conv{place}", channels, width if place == 1 else size, side)
                _norm(state, f"{name}.convs.bn{place}", channels)
            if block == 1:
                _conv(state, f"{name}.proj_conv", 4 * size, width, 1)
                _norm(state, f"{name}.proj_bn", 4 * size)
            width = 4 * size
    state["module.classifier.fc.weight"] = torch.randn(7, width)
    state["module.classifier.fc.bias"] = torch.randn(7)
    return state


class InPlaceABN:
    """In-place activated batch norm and what stands around it, from a checkpoint as it is, without nn.Module."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def norm(self, x: Tensor, name: str, activated: bool = True) -> Tensor:
        gamma = self.state[f"module.{name}.weight"].abs() + 1e-5
        mean, var = self.state[f"module.{name}.running_mean"], self.state[f"module.{name}.running_var"]
        out = torch.empty_like(x)
        for c in range(x.shape[1]):
            out[:, c] = (x[:, c] - mean[c]) / (var[c] + 1e-5) ** 0.5 * gamma[c] + self.state[f"module.{name}.bias"][c]
        return torch.where(out >= 0, out, 0.01 * out) if activated else out

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.state[f"module.{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def has(self, name: str) -> bool:
        return any(key.startswith(f"module.{name}.") for key in self.state)

    def classify(self, x: Tensor) -> Tensor:
        weights = self.state["module.classifier.fc.weight"], self.state["module.classifier.fc.bias"]
        return F.linear(x.mean(dim=(2, 3)), *weights)


def slow_wide(state: dict[str, Tensor], image: Tensor) -> Tensor:
    net = InPlaceABN(state)
    x = net.conv(image, "mod1.conv1")
    for group, count in enumerate(WIDE_BLOCKS, start=2):
        x = F.max_pool2d(x, 3, 2, 1) if group in (2, 3) else x
        for block in range(1, count + 1):
            name, stride = f"mod{group}.block{block}", 2 if block == 1 and group in (4, 5, 6) else 1
            first = net.norm(x, f"{name}.bn1")
            y = net.conv(first, f"{name}.convs.conv1", stride)
            y = net.conv(net.norm(y, f"{name}.convs.bn2"), f"{name}.convs.conv2")
            if net.has(f"{name}.convs.conv3"):
                y = net.conv(net.norm(y, f"{name}.convs.bn3"), f"{name}.convs.conv3")
            x = y + (net.conv(first, f"{name}.proj_conv", stride) if net.has(f"{name}.proj_conv") else x)
    return net.classify(net.norm(x, "bn_out"))


def slow_resnet(state: dict[str, Tensor], image: Tensor) -> Tensor:
    net = InPlaceABN(state)
    x = F.max_pool2d(net.norm(net.conv(image, "mod1.conv1", 2), "mod1.bn1"), 3, 2, 1)
    for group, count in enumerate(RESNET_BLOCKS, start=2):
        for block in range(1, count + 1):
            name, stride = f"mod{group}.block{block}", 2 if block == 1 and group > 2 else 1
            y = net.norm(net.conv(x, f"{name}.convs.conv1"), f"{name}.convs.bn1")
            y = net.norm(net.conv(y, f"{name}.convs.conv2", stride), f"{name}.convs.bn2")
            y = net.norm(net.conv(y, f"{name}.convs.conv3"), f"{name}.convs.bn3", activated=False)
            if net.has(f"{name}.proj_conv"):
                x = net.norm(net.conv(x, f"{name}.proj_conv", stride), f"{name}.proj_bn", activated=False)
            x = F.leaky_relu(x + y, 0.01)
    return net.classify(x)


def _wide() -> nn.Module:
    return WideResNet(blocks=WIDE_BLOCKS, channels=WIDE_CHANNELS, num_classes=7)


def _resnet() -> nn.Module:
    return ResNet(Bottleneck, RESNET_BLOCKS, channels=RESNET_CHANNELS, num_classes=7, act_layer=nn.LeakyReLU)


@pytest.mark.parametrize(
    ("family", "checkpoint", "slow", "build"),
    [("wide_resnet", wide_checkpoint, slow_wide, _wide), ("resnet", resnet_checkpoint, slow_resnet, _resnet)],
)
def test_a_forward_pass_is_that_of_in_place_norm(family, checkpoint, slow, build) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    state = checkpoint()
    assert is_inplace_abn(state) and family_of(state) == family
    model = build().eval()
    model.load_state_dict(convert(state, Path("here")))  # every name, and no other
    image = torch.randn(2, 3, 64, 48)
    expected = slow(state, image)
    with torch.no_grad():
        assert torch.allclose(model(image), expected, atol=1e-4 * expected.abs().max().item())


def test_the_scale_is_the_absolute_weight_and_epsilon() -> None:
    state = wide_checkpoint()
    state["module.bn_out.weight"] = torch.linspace(-2, 2, 20)
    state["module.bn_out.weight"][7] = 0.0
    scale = convert(state, Path("here"))["bn_out.weight"]
    assert scale[0] == pytest.approx(2 + EPS) and scale[7] == pytest.approx(1e-5) and (scale > 0).all()
    assert torch.equal(convert(state, Path("here"))["conv1.weight"], state["module.mod1.conv1.weight"])


@pytest.mark.parametrize(("family", "name"), [("wide_resnet", WIDE_RESNET38), ("resnet", RESNET101_LEAKY)])
def test_the_published_networks_names_are_timms(family: str, name: str) -> None:
    # names and shapes of the published networks: from the channel tables, in the authors' spelling
    with torch.device("meta"):
        state = _published(family)
        converted = {k: tuple(v.shape) for k, v in convert(state, Path("here")).items() if v.ndim}
        model = timm.create_model(name)
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items() if v.ndim}
    assert converted == wanted


def _published(family: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}

    def norm(name: str, channels: int) -> None:
        state.update({f"module.{name}.{part}": torch.zeros(channels) for part in ("weight", "bias")})
        state.update({f"module.{name}.running_{part}": torch.zeros(channels) for part in ("mean", "var")})

    def conv(name: str, *shape: int) -> None:
        state[f"module.{name}.weight"] = torch.zeros(shape)

    width = 64
    if family == "wide_resnet":
        conv("mod1.conv1", 64, 3, 3, 3)
        channels = [(128, 128), (256, 256), (512, 512), (512, 1024), (512, 1024, 2048), (1024, 2048, 4096)]
        for group, (count, sizes) in enumerate(zip((3, 3, 6, 3, 1, 1), channels, strict=True), start=2):
            for block in range(1, count + 1):
                name, before = f"mod{group}.block{block}", width
                norm(f"{name}.bn1", width)
                for place, size in enumerate(sizes, start=1):
                    if place > 1:
                        norm(f"{name}.convs.bn{place}", width)
                    side = 3 if len(sizes) == 2 or place == 2 else 1
                    conv(f"{name}.convs.conv{place}", size, width, side, side)
                    width = size
                if block == 1:
                    conv(f"{name}.proj_conv", width, before, 1, 1)
        norm("bn_out", 4096)
    else:
        conv("mod1.conv1", 64, 3, 7, 7)
        norm("mod1.bn1", 64)
        for group, (count, size) in enumerate(zip((3, 4, 23, 3), (64, 128, 256, 512), strict=True), start=2):
            for block in range(1, count + 1):
                name = f"mod{group}.block{block}"
                conv(f"{name}.convs.conv1", size, width, 1, 1)
                conv(f"{name}.convs.conv2", size, size, 3, 3)
                conv(f"{name}.convs.conv3", 4 * size, size, 1, 1)
                for place, channels_here in enumerate((size, size, 4 * size), start=1):
                    norm(f"{name}.convs.bn{place}", channels_here)
                if block == 1:
                    conv(f"{name}.proj_conv", 4 * size, width, 1, 1)
                    norm(f"{name}.proj_bn", 4 * size)
                width = 4 * size
    conv("classifier.fc", 1000, width)
    state["module.classifier.fc.bias"] = torch.zeros(1000)
    return state


def test_names_of_other_networks_are_refused() -> None:
    state = wide_checkpoint()
    assert not is_inplace_abn({"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="holds module"):
        convert({**state, "module.mod9.block1.convs.conv1.weight": torch.zeros(1)}, Path("here"))
    with pytest.raises(UserError, match="twice"):
        convert({**state, "mod1.conv1.weight": torch.zeros(1)}, Path("here"))
