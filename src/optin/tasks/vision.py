"""Images in: batches as a checkpoint's processor makes them, the right model class, and figures out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..arch.inputs import image_input
from ..batches import Batch, to_device
from ..errors import InputError
from ..modules import device_of, inference_mode_of
from ..progress import Track, silent
from ..recipe import Calibration
from ..trajectory import pool, pooled, projected
from .images import Images, Unreadable
from .metrics import divergence, measure
from .specs import TaskSpec


def encode(processor: Any, images: Images, indices: Sequence[int], name: str) -> tuple[Batch, list[int]]:
    """One batch, and the indices whose image could be read.

    Args:
        name: the network's argument for images.
    """
    pictures, found = [], []
    for index in indices:
        try:
            pictures.append(images.read(index))
        except Unreadable:
            continue
        found.append(index)
    if not pictures:
        return {}, []
    try:
        values = processor(images=pictures, return_tensors="pt")["pixel_values"]
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"the image processor refuses the images: {error}") from None
    return {name: values}, found


def calibration_batches(
    model: nn.Module,
    images: Images,
    processor: Any,
    options: Calibration,
    seed: int,
    labels: Sequence[int] | None = None,
) -> list[Batch]:
    """A seeded draw of images; unreadable ones are replaced by others.

    Args:
        labels: one per image, for the criterion that needs them.

    Raises:
        InputError: fewer images than asked for, or too few that can be read.
    """
    if len(images) < options.examples:
        raise InputError(
            f"the data has {len(images)} images and calibration asks for {options.examples}. "
            f"Ask for --examples {len(images)}, or give more data."
        )
    order = list(range(len(images)))
    random.Random(seed).shuffle(order)
    batches, taken, place = [], 0, 0
    while taken < options.examples:
        wanted = min(options.batch_size, options.examples - taken)
        indices = order[place : place + wanted]
        if not indices:
            raise InputError(f"only {taken} of {len(images)} images can be read; {options.examples} are needed.")
        place += wanted
        batch, found = encode(processor, images, indices, _argument(model))
        if found:
            if labels is not None:
                batch["labels"] = torch.tensor([labels[index] for index in found])
            batches.append(batch)
            taken += len(found)
    return batches


def evaluate(
    model: nn.Module,
    processor: Any,
    spec: TaskSpec,
    images: Images,
    *,
    reference: nn.Module | None = None,
    batch_size: int = 32,
    pooling: str = "mean",
    track: Track = silent,
) -> dict[str, float]:
    """The task's metrics, and with a reference the KL divergence of its outputs from the model's ("kl").

    Images that cannot be read are left out and counted ("skipped").

    Raises:
        InputError: labels that are missing or do not fit the model, no readable image, or no reference where
            embeddings are compared.
    """
    if spec.kind == "image-embedding" and reference is None:
        raise InputError("image embeddings are compared with the dense network's: pass it as the reference.")
    labels = class_indices(model, spec, images)
    outputs, expected, targets, skipped = [], [], [], 0
    starts = range(0, len(images), batch_size)
    for start in track(starts, "evaluate", len(starts)):
        indices = range(start, min(start + batch_size, len(images)))
        batch, found = encode(processor, images, indices, _argument(model))
        skipped += len(indices) - len(found)
        if found:
            outputs.append(_read(model, spec, batch, pooling))
            targets += [labels[index] for index in found] if labels else []
            if reference is not None:
                expected.append(_read(reference, spec, batch, pooling))
    if not outputs:
        raise InputError(f"none of the {len(images)} images can be read.")
    values = torch.cat(outputs)
    aim = torch.cat(expected) if spec.kind == "image-embedding" else torch.tensor(targets)
    figures = measure(spec.metrics, values, aim, values.shape[-1])
    if expected and spec.kind != "image-embedding":
        figures["kl"] = float(divergence(torch.cat(expected), values))
    return figures | ({"skipped": skipped} if skipped else {})


def class_indices(model: nn.Module, spec: TaskSpec, images: Images) -> list[int]:
    """Labels as the network counts them: class names are translated by its configuration where it knows them.

    Raises:
        InputError: labels missing or outside the model's classes.
    """
    if spec.kind == "image-embedding":
        return []
    if images.labels is None:
        raise InputError("evaluation needs labels: put each class into a folder of its own.")
    config: Any = getattr(model, "config", None)
    known = {str(name).lower(): index for name, index in (getattr(config, "label2id", None) or {}).items()}
    translated = [known.get(name.lower()) for name in images.classes]
    table = translated if translated and None not in translated else range(max(images.labels, default=0) + 1)
    classes = int(getattr(config, "num_labels", 0) or getattr(model, "num_classes", 0))
    if max(images.labels, default=0) >= classes or len(images.classes) > classes:
        most = max(len(images.classes), max(images.labels, default=0) + 1)
        raise InputError(f"the data has {most} classes and the model {classes}: they do not belong together.")
    return [int(table[label]) for label in images.labels]  # type: ignore[arg-type]


def _argument(model: nn.Module) -> str:
    name = image_input(model)
    if name is None:
        raise InputError(f"{type(model).__name__} takes no images. Name a text task with --task.")
    return name


@torch.inference_mode()
def _read(model: nn.Module, spec: TaskSpec, batch: Batch, pooling: str) -> Tensor:
    """Rows of logits or embeddings, on the CPU in float32."""
    with inference_mode_of(model):
        output = model(**to_device(batch, device_of(model)))
    values: Tensor
    if isinstance(output, Tensor):
        values = output
    elif spec.kind != "image-embedding":
        values = output.logits
    elif embeddings := projected(output):
        values = embeddings[0]
    elif pooling == "pooler":
        values = pooled(output)
    else:
        hidden = output.last_hidden_state
        values = pool(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device), pooling)
    return values.float().cpu()
