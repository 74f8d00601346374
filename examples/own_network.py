"""A network of your own making, pruned, saved and loaded again.

    python examples/own_network.py

Whatever `torch.export` can trace will do. To load the result, make the dense network again and pass it as `into`.
"""

from __future__ import annotations

import tempfile

import torch
from torch import nn

import optin


def network() -> nn.Module:
    """A small classifier of images of 32 pixels."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).eval()


def main() -> None:
    torch.manual_seed(0)
    model = network()
    batches = [{"input": torch.randn(16, 3, 32, 32)} for _ in range(4)]
    result = optin.prune(model, batches, "50%", recipe="beta")
    with tempfile.TemporaryDirectory() as folder:
        result.save(f"{folder}/small")
        again = optin.load(f"{folder}/small", into=network())
        with torch.no_grad():
            assert torch.allclose(again(batches[0]["input"]), result.model(batches[0]["input"]))
    costs = result.report["macs"]
    print(f"{costs['pruned']:,} of {costs['dense']:,} MACs; layers: {again[0]}, {again[3]}")


if __name__ == "__main__":
    main()
