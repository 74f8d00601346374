"""A tiny SegFormer and a tiny Mask2Former with a Swin backbone, trained on scenes of Fashion-MNIST items.

    python benchmarks/train_segmentation.py segformer
    python benchmarks/train_segmentation.py mask2former

They are kept in the cache, in half precision, with the figures on 400 test scenes in figures.json. A copy of such a
folder in weights/ is taken instead. Only cycles of training that a network does not have behind it are run. Every
epoch leaves a checkpoint, from which a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dinov2 import DATA
from scenes import CLASSES, SIDE, scenes
from torch import Tensor, nn
from training import WEIGHTS, Loss, autocast, train

from optin.running.outputs import answers
from optin.support.files import cache_folder
from optin.tasks import load_model, load_processor, segmentation
from optin.tasks.segmentation import Scenes
from optin.tasks.specs import SCENES

MEAN, DEVIATION = 0.3, 0.25  # of the pixels, about
TRAINING, HELD_OUT = 8000, 400  # scenes, to calibrate on as well, and to test on
# Cycles of the learning rate, as (scenes, epochs, highest rate): each takes scenes that no other has seen.
CYCLES = {
    "segformer": ((TRAINING, 20, 2e-3), (3 * TRAINING, 8, 1e-3), (8 * TRAINING, 6, 1e-3)),
    "mask2former": ((TRAINING, 16, 1e-3), (8 * TRAINING, 6, 1e-3)),
}
BATCH, DECAY = 32, 0.01


def network(name: str) -> nn.Module:
    """With random weights."""
    import transformers

    labels = {"num_labels": len(CLASSES), "id2label": dict(enumerate(CLASSES))}
    if name == "segformer":
        return transformers.SegformerForSemanticSegmentation(
            transformers.SegformerConfig(
                hidden_sizes=[32, 64, 96, 128],
                num_attention_heads=[1, 2, 4, 4],
                sr_ratios=[4, 2, 1, 1],
                decoder_hidden_size=64,
                drop_path_rate=0.0,
                classifier_dropout_prob=0.0,
                **labels,
            )
        )
    swin = transformers.SwinConfig(
        image_size=SIDE,
        patch_size=4,
        embed_dim=32,
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    widths = {"feature_size": 64, "mask_feature_size": 64, "hidden_dim": 64}
    layers = {"encoder_layers": 2, "decoder_layers": 4, "encoder_feedforward_dim": 256, "dim_feedforward": 256}
    return transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=swin,
            **widths,
            **layers,
            num_attention_heads=4,
            num_queries=16,
            feature_strides=[4, 8, 16, 32],
            dropout=0.0,
            **labels,
        )
    )


def trained(name: str, data: str = DATA) -> Path:
    """Folder of the trained network, made at the first call."""
    folders = [parent / f"{name}-scenes" for parent in (WEIGHTS, cache_folder())]
    start = max(folders, key=cycles_behind)
    behind = cycles_behind(start)
    if behind == len(CYCLES[name]):
        return start
    folder = folders[-1]
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, first = load_trained(start) if behind else network(name), 0
    supervised = Supervised(model)
    for cycle, (count, epochs, rate) in enumerate(CYCLES[name]):
        if cycle >= behind:
            known = scenes(data, "calibration", first + count).select(range(first, first + count))
            optimiser = torch.optim.AdamW(supervised.parameters(), rate, weight_decay=DECAY)
            loss = loss_of(supervised, *tensors(known))
            train(supervised, optimiser, loss, count, epochs, folder / f"training-{cycle + 1}.safetensors", BATCH)
        first += count
    model.half().save_pretrained(folder)
    processor().save_pretrained(folder)
    test = scenes(data, "evaluation", HELD_OUT)
    figures = segmentation.evaluate(load_trained(folder), load_processor(str(folder)), test)
    figures = {"cycles": len(CYCLES[name]), "foreground": foreground(figures)} | figures
    (folder / "figures.json").write_text(json.dumps(figures) + "\n")
    return folder


def cycles_behind(folder: Path) -> int:
    """How many cycles of training the network in a folder has behind it, 0 where there is none."""
    figures = folder / "figures.json"
    return json.loads(figures.read_text())["cycles"] if figures.exists() else 0


def loss_of(supervised: Supervised, pixels: Tensor, classes: Tensor) -> Loss:
    """The loss of some scenes, half of the time mirrored."""

    def loss(chosen: Tensor, generator: torch.Generator) -> Tensor:
        images, truth = pixels[chosen], classes[chosen].long()
        if torch.rand((), generator=generator) < 0.5:
            images, truth = images.flip(-1), truth.flip(-1)
        with autocast():
            return supervised((images / 255 - MEAN) / DEVIATION, truth)

    return loss


class Supervised(nn.Module):
    """The loss of a network in training: the cross-entropy of its scores at every pixel.

    The queries of Mask2Former are no use before each has something of its own to find. Nothing is matched: query c is
    taught to find class c and to say whether it is there, and classes are also read from the features of the pixels.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        features = getattr(network.config, "mask_feature_size", None)
        self.pixels = None if features is None else nn.Conv2d(features, len(CLASSES), 1)

    def forward(self, images: Tensor, truth: Tensor) -> Tensor:
        """Of images of shape (scene, 3, 64, 64) and the classes of their pixels."""
        output = self.network(pixel_values=images)
        loss = per_pixel(answers(output), truth)
        if self.pixels is None:
            return loss
        present = nn.functional.one_hot(truth, len(CLASSES)).flatten(1, 2).amax(1).bool()
        said = output.class_queries_logits[:, : len(CLASSES)].flatten(0, 1)
        wanted = torch.where(present, torch.arange(len(CLASSES)), len(CLASSES))
        loss = loss + nn.functional.cross_entropy(said, wanted.flatten())
        loss = loss + per_pixel(output.masks_queries_logits[:, : len(CLASSES)], truth)
        return loss + per_pixel(self.pixels(output.pixel_decoder_last_hidden_state), truth)


def per_pixel(scores: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of scores, brought to the size of the truth."""
    full = nn.functional.interpolate(scores.float(), truth.shape[1:], mode="bilinear", align_corners=False)
    return nn.functional.cross_entropy(full, truth)


def load_trained(folder: Path) -> nn.Module:
    """In full precision, in which processors compute."""
    return load_model(str(folder), SCENES, dtype=torch.float32)


def tensors(known: Scenes) -> tuple[Tensor, Tensor]:
    """Shape (scene, 3, 64, 64) and (scene, 64, 64), uint8."""
    assert known.mask is not None
    pixels = np.stack([np.asarray(known.read(index)) for index in range(len(known))])
    classes = np.stack([known.mask(index).astype(np.uint8) for index in range(len(known))])
    return torch.tensor(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(classes)


def foreground(figures: dict[str, float]) -> float:
    """Mean IoU without the background."""
    return float(np.mean([value for name, value in figures.items() if name[:4] == "iou " and name[4:] != CLASSES[0]]))


def processor() -> Any:
    """Scenes as they are, at mean 0 and deviation 1."""
    from transformers import SegformerImageProcessorPil

    return SegformerImageProcessorPil(do_resize=False, image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=sorted(CYCLES))
    parser.add_argument("--data", default=DATA, help="folder of the IDX files of Fashion-MNIST")
    arguments = parser.parse_args()
    folder = trained(arguments.network, arguments.data)
    print(folder, (folder / "figures.json").read_text().strip())


if __name__ == "__main__":
    main()
