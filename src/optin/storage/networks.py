"""The convolutional networks of the CIFAR literature, which no library ships: VGG with batch norm and ResNet.

VGG after Simonyan and Zisserman (2015) with one linear layer behind the maps, ResNet-6n+2 after He et al. (2016,
section 4.2) with projections where the shape changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn

# Widths of the convolutions; "M" halves the map.
_VGG: Mapping[int, tuple[int | str, ...]] = {
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    16: (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
}


def vgg(depth: int, classes: int = 10, channels: int = 3) -> nn.Module:
    """VGG-11 or VGG-16 with batch norm, for images of 32 pixels."""
    layers: list[nn.Module] = []
    width = channels
    for size in _VGG[depth]:
        if isinstance(size, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(width, size, 3, padding=1, bias=False), nn.BatchNorm2d(size), nn.ReLU()]
            width = size
    head = [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("classifier", nn.Linear(width, classes))]
    return _initialised(nn.Sequential(OrderedDict([("features", nn.Sequential(*layers)), *head])))


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm1, self.activation1 = nn.BatchNorm2d(outer), nn.ReLU()
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2, self.activation2 = nn.BatchNorm2d(outer), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, inner, height, width) to (batch, outer, height / stride, width / stride)."""
        y = self.activation1(self.norm1(self.conv1(x)))
        result: Tensor = self.activation2(self.norm2(self.conv2(y)) + self.shortcut(x))
        return result


def resnet(depth: int, classes: int = 10, channels: int = 3) -> nn.Module:
    """ResNet-20, 56 or 110 (any depth of 6n + 2), for images of 32 pixels."""
    blocks: list[nn.Module] = []
    width = 16
    for stage, size in enumerate((16, 32, 64)):
        for place in range((depth - 2) // 6):
            blocks.append(Block(width, size, 2 if stage and not place else 1))
            width = size
    stem = [("conv", nn.Conv2d(channels, 16, 3, 1, 1, bias=False)), ("norm", nn.BatchNorm2d(16)), ("relu", nn.ReLU())]
    head = [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("classifier", nn.Linear(64, classes))]
    return _initialised(nn.Sequential(OrderedDict([*stem, ("blocks", nn.Sequential(*blocks)), *head])))


def _initialised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "vgg11_bn": partial(vgg, 11),
    "vgg16_bn": partial(vgg, 16),
    "resnet20": partial(resnet, 20),
    "resnet56": partial(resnet, 56),
    "resnet110": partial(resnet, 110),
}
