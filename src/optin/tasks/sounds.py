"""Recordings in: batches as a checkpoint's feature extractor makes them, and figures of their classes out."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..running.batch import Batch
from ..space.options import Calibration
from ..support.progress import Track, silent
from .audio import Recordings
from .comparison import Answers
from .specs import TaskSpec
from .vision import class_indices
from .writing import grouped, inputs_of, logits_of

__all__ = ["answers", "class_indices", "drawn_batches"]


def drawn_batches(
    model: nn.Module,
    recordings: Recordings,
    extractor: object,
    options: Calibration,
    seed: int,
    labels: Sequence[int] | None = None,
) -> tuple[list[Batch], list[int]]:
    """A seeded draw of recordings, the first piece of each, and their indices.

    Args:
        labels: one per recording, for the criterion that needs them.
    """
    chosen = random.Random(seed).sample(range(len(recordings)), options.taken(len(recordings)))
    batches = []
    for group in grouped(recordings, chosen, options.batch_size):
        batch = inputs_of(model, extractor, recordings, group)[0]
        if labels is not None:
            batch["labels"] = torch.tensor([labels[index] for index in group])
        batches.append(batch)
    return batches, chosen


def answers(
    networks: Sequence[nn.Module],
    extractor: object,
    spec: TaskSpec,
    recordings: Recordings,
    *,
    batch_size: int = 32,
    track: Track = silent,
) -> Answers:
    """What networks say of the same recordings."""
    labels = class_indices(networks[0], spec, recordings)
    outputs: list[list[Tensor]] = [[] for _ in networks]
    groups = grouped(recordings, range(len(recordings)), batch_size)
    for group in track(groups, "evaluate", len(groups)):
        batch = inputs_of(networks[0], extractor, recordings, group)[0]
        for network, said in zip(networks, outputs, strict=True):
            said.append(logits_of(network, batch))
    return Answers.of(spec, outputs, labels)
