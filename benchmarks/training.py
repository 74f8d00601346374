"""Training with checkpoints, of the networks that no registry holds, and where they lie once they are trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track as progress
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from optin.support.files import cache_folder

WEIGHTS = Path(__file__).parent / "weights"  # of small networks, in half precision
BATCH = 128
RISE = 0.3  # of the steps, over which the learning rate goes up

Loss = Callable[[Tensor, torch.Generator], Tensor]


def folder_of(name: str) -> Path:
    """Where a trained network lies: in this repository, else in the cache, where training puts it."""
    kept = WEIGHTS / name
    return kept if kept.is_dir() else cache_folder() / name


def train(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: Loss,
    examples: int,
    epochs: int,
    checkpoint: Path,
    batch_size: int = BATCH,
) -> None:
    """Train with one cycle of the learning rate; every epoch leaves a checkpoint, from which a stopped run goes on.

    Args:
        loss: of the examples at some indices; the generator is for what is drawn with them.
    """
    steps, highest = math.ceil(examples / batch_size), [group["lr"] for group in optimiser.param_groups]
    for epoch in range(resumed(model, optimiser, checkpoint), epochs):
        generator = torch.Generator().manual_seed(epoch)
        order, total = torch.randperm(examples, generator=generator), 0.0
        model.train()
        for step in progress(range(steps), description=f"epoch {epoch + 1}", console=Console(stderr=True)):
            for group, rate in zip(optimiser.param_groups, highest, strict=True):
                group["lr"] = rate * one_cycle((epoch * steps + step) / (epochs * steps))
            value = loss(order[step * batch_size : (step + 1) * batch_size], generator)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            total += float(value.detach()) / steps
        model.eval()
        state = {
            f"state.{key}.{name}": torch.as_tensor(value).contiguous()
            for name, parameter in model.named_parameters()
            for key, value in optimiser.state[parameter].items()
        }
        weights = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
        save_file({**weights, **state}, checkpoint, {"epochs": str(epoch + 1)})
        print(f"epoch {epoch + 1} of {epochs}: loss {total:.4f}", flush=True)


def autocast() -> torch.autocast:
    """bfloat16 where the processor multiplies it itself, full precision where that would be far slower."""
    known = torch.cpu.get_capabilities()
    native = any(known.get(name) for name in ("amx_bf16", "avx512_bf16"))
    return torch.autocast("cpu", torch.bfloat16, enabled=native)


def resumed(model: nn.Module, optimiser: torch.optim.Optimizer, checkpoint: Path) -> int:
    """The number of epochs that a checkpoint has behind it, which is put into the model and its optimiser."""
    if not checkpoint.exists():
        return 0
    parameters = dict(model.named_parameters())
    with safe_open(checkpoint, "pt") as file:
        model.load_state_dict({name: file.get_tensor(f"model.{name}") for name in model.state_dict()})
        for entry in set(file.keys()) - {f"model.{name}" for name in model.state_dict()}:
            _, key, name = entry.split(".", 2)
            optimiser.state[parameters[name]][key] = file.get_tensor(entry)
        return int(file.metadata()["epochs"])


def one_cycle(done: float) -> float:
    """The share of the highest learning rate: up over the first steps, then down to nothing."""
    return done / RISE if done < RISE else (1 + math.cos(math.pi * (done - RISE) / (1 - RISE))) / 2
