"""VGG-16 with batch norm and ResNet-56, trained on Fashion-MNIST; kept in the cache in half precision.

    python benchmarks/train_cnn.py resnet56
    python benchmarks/train_cnn.py vgg16_bn

Every epoch leaves a checkpoint, from which a run that was stopped goes on. Prints the loss of each epoch and the
accuracy on all test images, which accuracy.json keeps. The folder of the small ResNet-56 is also in weights/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dinov2 import DATA, SPEC
from torch import Tensor, nn
from training import autocast, folder_of, train

from optin.space.options import Task
from optin.storage.libraries import create, save_other
from optin.storage.networks import NETWORKS
from optin.tasks import Images, load_images, load_model, load_processor
from optin.tasks.vision import evaluate

MEAN, DEVIATION = 0.286, 0.353  # of the training images
SIDE = 32
EPOCHS = 2
BATCH, HIGHEST_RATE, DECAY = 64, 0.05, 5e-4


def trained(name: str, data: str = DATA, epochs: int = EPOCHS) -> Path:
    """Folder of the trained network, made at the first call."""
    folder = folder_of(f"{name}-fashion-mnist")
    if (folder / "accuracy.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    images = load_images(SPEC, Task("fashion-mnist", data), "calibration", labelled=True)
    torch.manual_seed(0)
    model = create(f"optin:{name}", classes=10)
    train_cnn(model, pixels(images), torch.tensor(images.labels), epochs, folder / "training.safetensors")
    save_other(model.half().to(memory_format=torch.contiguous_format), folder)  # type: ignore[call-overload]
    processor().save_pretrained(folder)
    test = load_images(SPEC, Task("fashion-mnist", data), "evaluation", labelled=True)
    figures = evaluate(
        load_model(str(folder), dtype=torch.float32), load_processor(str(folder)), SPEC, test, batch_size=256
    )
    (folder / "accuracy.json").write_text(json.dumps(figures) + "\n")
    return folder


def processor() -> Any:
    """Images with two black pixels around them, at mean 0 and deviation 1."""
    from transformers import BitImageProcessorPil

    return BitImageProcessorPil(
        do_resize=False,
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[MEAN] * 3,
        image_std=[DEVIATION] * 3,
        do_convert_rgb=True,
    )


def pixels(images: Images) -> Tensor:
    """Shape (image, 1, 28, 28), at mean 0 and deviation 1."""
    grey = np.stack([np.asarray(images.read(index))[..., 0] for index in range(len(images))])
    return (torch.tensor(grey).unsqueeze(1) / 255 - MEAN) / DEVIATION


def train_cnn(model: nn.Module, inputs: Tensor, labels: Tensor, epochs: int, checkpoint: Path) -> None:
    """Stochastic gradient descent, channels last in memory, which is what processors do fastest."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(chosen: Tensor, generator: torch.Generator) -> Tensor:
        with autocast():
            return nn.functional.cross_entropy(model(moved(inputs[chosen], generator)), labels[chosen])

    optimiser = torch.optim.SGD(model.parameters(), HIGHEST_RATE, momentum=0.9, weight_decay=DECAY, nesterov=True)
    train(model, optimiser, loss, len(inputs), epochs, checkpoint, BATCH)


def moved(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Each batch in 32 pixels, shifted by up to two; three equal channels."""
    x, y = torch.randint(5, (2,), generator=generator).tolist()
    padded = nn.functional.pad(batch, (4, 4, 4, 4), value=-MEAN / DEVIATION)
    return padded[..., y : y + SIDE, x : x + SIDE].expand(-1, 3, -1, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("--data", default=DATA, help="folder of the IDX files")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    folder = trained(arguments.network, arguments.data, arguments.epochs)
    print(folder, (folder / "accuracy.json").read_text().strip())


if __name__ == "__main__":
    main()
