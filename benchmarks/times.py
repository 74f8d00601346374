"""What pruning and 8 bits save at true sizes: BERT-base, ViT-B/16 and ResNet-50, one by one and in batches of 32.

    python benchmarks/times.py                all of them
    python benchmarks/times.py BERT-base      one of them

Each network has random weights, on which times do not depend, and loses half of its MACs by magnitude; the four
networks of a row are timed in turn in one process. "int8" is torch's own dynamic quantisation of linear maps, which
convolutions have none of. Prints the table, and stores it in docs/results/times.md, the figures
in docs/results/times.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measuring import Stored
from rich.console import Console
from rich.progress import track as progress
from text_tables import table
from torch import nn

import optin
from optin.app.benchmark import machine, side_by_side

BUDGET, BATCHES, ROUNDS = "50%", (1, 32), 5
RECIPE = optin.PRESETS["default"].override(criterion="magnitude", refit__enabled=False)
KINDS = ("dense", "int8", "pruned", "pruned, int8")


@dataclass(frozen=True)
class Shape:
    """A network and its inputs.

    Attributes:
        make: builds it.
        inputs: of so many examples.
        of: the size of an example, for people.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, torch.Tensor]]
    of: str


def bert() -> nn.Module:
    import transformers

    return transformers.BertForSequenceClassification(transformers.BertConfig())


def vit() -> nn.Module:
    import transformers

    return transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000))


def resnet() -> nn.Module:
    import transformers

    return transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))


def int8(model: nn.Module) -> nn.Module:
    """Weights and activations of linear maps in 8 bits; of a copy."""
    quantised: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return quantised


def images(count: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(count, 3, 224, 224)}


def texts(count: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(1000, 30000, (count, 128)), "attention_mask": torch.ones(count, 128).long()}


SHAPES = {
    "BERT-base": Shape(bert, texts, "128 tokens"),
    "ViT-B/16": Shape(vit, images, "224 pixels"),
    "ResNet-50": Shape(resnet, images, "224 pixels"),
}


def measured(shape: Shape) -> dict[str, Any]:
    """Milliseconds by batch and network, in medians of the rounds."""
    torch.manual_seed(0)
    model = shape.make().eval()
    small = optin.prune(model, [shape.inputs(2) for _ in range(2)], BUDGET, recipe=RECIPE).model
    networks = (model, int8(model), small, int8(small))
    found: dict[str, Any] = {"machine": machine(model), "ms": {}}
    for batch in BATCHES:
        times = side_by_side(networks, shape.inputs(batch), ROUNDS)
        found["ms"][str(batch)] = [statistics.median(column) for column in zip(*times, strict=True)]
    return found


def render(results: dict[str, Any]) -> str:
    """The table in Markdown."""
    rows = []
    for name, found in results.items():
        for batch, times in found["ms"].items():
            cells = [f"{ms:,.0f}" + (f" ({times[0] / ms:.2f})" if place else "") for place, ms in enumerate(times)]
            rows.append([f"{name}, {batch} x {SHAPES[name].of}", *cells])
    place = next(iter(results.values()))["machine"]["device"]
    return "\n".join(
        [
            f"Milliseconds of a forward in torch on {place}, and how many times as fast as the dense network; "
            "half of the MACs are left. 8 bits are of linear maps alone: a convolutional network has one.",
            "",
            *table(["", *KINDS], rows),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"some of: {', '.join(SHAPES)}")
    results = Stored("times")
    for name in progress(parser.parse_args().networks or SHAPES, description="times", console=Console(stderr=True)):
        results[name] = measured(SHAPES[name])
    results.show(render(results))


if __name__ == "__main__":
    main()
