"""Baselines to compare with: weight magnitude, label-gradient Fisher information, chance."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..running.batch import Batch, split, without_labels
from ..running.modules import tensor_of
from ..space.scores import Curve
from .job import Found, Scoring
from .probe import differentiate
from .resume import Partial


def random(scoring: Scoring) -> Mapping[str, Curve]:
    """Uniform random importance."""
    generator = torch.Generator().manual_seed(scoring.recipe.seed)
    return {group.name: Curve.from_importance(torch.rand(group.size, generator=generator)) for group in scoring.space}


def magnitude(scoring: Scoring) -> Mapping[str, Curve]:
    """Squared L2 norm of all weights that leave with the unit."""
    curves = {}
    for group in scoring.track(scoring.space, "magnitude", len(scoring.space)):
        total = torch.zeros(group.size, dtype=torch.float64)
        for cut in group.cuts:
            weight = tensor_of(scoring.model, cut.parameter)
            if not isinstance(weight, nn.Parameter):
                continue  # the statistics of a batch norm
            parameter = weight.detach().double().movedim(cut.dim, 0)
            total += parameter[cut.indices(group.size)].reshape(group.size, -1).square().sum(1).cpu()
        curves[group.name] = Curve.from_importance(total)
    return curves


def fisher(scoring: Scoring) -> Found:
    """Diagonal Fisher information of the multipliers, from labels: E[(d loss / d m)^2] (Kwon et al., 2022).

    Keeps partial sums in `scoring.resume`.

    Raises:
        InputError: batches without labels, or a model without a loss.
    """
    batches, model, space = scoring.batches, scoring.model, scoring.space
    size = batches.micro_size(scoring.recipe.trajectory.draws)
    total = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in scoring.space}
    partial = Partial.open(scoring.resume, dict(total), scoring.identity, len(batches))
    gradients: dict[str, list[Tensor]] = {}
    if scoring.recipe.rearrange and partial.done:
        gradients = {name: list(partial.sums[f"waiting/{name}"]) for name in space.sizes}
    for done, batch in enumerate(scoring.track(batches.labelled(), "fisher", len(batches)), 1):
        if done <= partial.done:
            continue
        for micro in split(batch, size):
            # A network without a configuration has no loss of its own, and takes no labels.
            inputs = micro if hasattr(model, "config") else without_labels(micro)
            loss = functools.partial(_label_loss, micro.get("labels"))
            for name, value in differentiate(model, space, inputs, loss).units["loss"].items():
                total[name] += value.double().square().cpu()
                if scoring.recipe.rearrange:
                    gradients.setdefault(name, []).append(value.float().cpu())
        if partial.due:
            partial.sums = total | {f"waiting/{name}": torch.stack(rows) for name, rows in gradients.items()}
            partial.commit(done)
    return Found({name: Curve.from_importance(value) for name, value in total.items()}, gradients=gradients)


def _label_loss(labels: Tensor | None, batch: Batch, output: object, hidden: list[Tensor]) -> dict[str, Tensor]:
    loss = getattr(output, "loss", None)
    if isinstance(output, Tensor) and output.dim() == 2 and labels is not None:
        loss = nn.functional.cross_entropy(output, labels)
    if loss is None:
        raise InputError("this network computes no loss from labels: the fisher criterion cannot be used.")
    return {"loss": loss}
