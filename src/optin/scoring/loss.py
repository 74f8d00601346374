"""How far the outputs of a pruned network are from the dense one's, on inputs that it was not made with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import BudgetError
from ..recipe import Recipe
from ..running.batches import HELD_OUT, Batches
from ..running.modules import call, inference_mode_of
from ..running.outputs import Output
from ..space.budget import Budget
from ..space.loss import Kind, Loss
from .probe import read_final
from .trajectory import Positions, output_loss


def parted(calibration: Batches, aim: Budget | Loss) -> tuple[Batches, Batches | None]:
    """The inputs to calibrate on and, where the budget is a loss, others to measure it on.

    Raises:
        BudgetError: so few inputs cannot show it.
    """
    if not isinstance(aim, Loss):
        return calibration, None
    part, held_out = calibration.parts()
    _check_measurable(aim, held_out.examples)
    return part, held_out


def _check_measurable(aim: Loss, held_out: int) -> None:
    """Refuse a loss that so few inputs cannot show.

    Raises:
        BudgetError: says how many are needed.
    """
    least = 2 if aim.kind != "points" else -int(-100 // aim.value)
    if held_out < least:
        raise BudgetError(
            f"{aim} cannot be seen on {held_out} held-out inputs, a quarter of the calibration set: "
            f"it takes at least {HELD_OUT * least} inputs in all (--examples, or more batches)."
        )


@torch.inference_mode()
def loss_between(dense: nn.Module, pruned: nn.Module, held_out: Batches, recipe: Recipe, kind: Kind) -> float:
    """The loss of one network against another, on average over all rows that are compared.

    Raises:
        BudgetError: the outputs are no classes, and the loss is of classes.
    """
    total, rows = 0.0, 0
    generator = torch.Generator().manual_seed(recipe.seed)
    with inference_mode_of(dense), inference_mode_of(pruned):
        for batch in held_out:
            positions = Positions(batch, recipe.trajectory.rows, generator)
            reference, output = (
                read_final(network, call(network, batch), positions, recipe.trajectory) for network in (dense, pruned)
            )
            count = reference.values.shape[1]
            total, rows = total + count * float(_loss(output, reference, kind)), rows + count
    return total / rows


def _loss(output: Output, reference: Output, kind: Kind) -> Tensor:
    if kind == "loss":
        return output_loss(output, reference, 1.0)
    if reference.kind != "distribution":
        raise BudgetError(
            f"the outputs of this network are compared as {reference.said}: they are no classes. "
            "Ask for 'loss 0.01', the squared error."
        )
    if kind == "KL":
        return output_loss(output, reference, 1.0)
    return 100 * (output.values.argmax(-1) != reference.values.argmax(-1)).float().mean()
