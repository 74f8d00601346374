"""How far the outputs of pruned networks are from the dense one's, on inputs that they were not made with."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import FAILURES, BudgetError, NumericalError, refused
from ..recipe import Recipe
from ..running.batch import shapes_of
from ..running.batches import HELD_OUT, Batches
from ..running.modules import call, inference_mode_of
from ..running.outputs import Output, Reader, reading
from ..space.loss import Loss, aim_of
from .probe import read_final
from .trajectory import Positions, output_loss

Entered = Callable[[int], contextlib.AbstractContextManager[object]]


def _from_the_start(index: int) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext()


class HeldOut:
    """Inputs that neither scores nor refit see, and what the dense network says of them, which is kept.

    Attributes:
        aim: the loss that is asked for.
        batches: the inputs.

    Raises:
        BudgetError: so few inputs cannot show the loss, or it is of classes and the outputs are none.
        InputError: inputs that the network does not take.
    """

    def __init__(
        self, dense: nn.Module, batches: Batches, recipe: Recipe, aim: Loss, output: str | Reader | None
    ) -> None:
        self.aim, self.batches, self.recipe, self.output = aim, batches, recipe, output
        generator = torch.Generator().manual_seed(recipe.seed)
        self.positions = [Positions(batch, recipe.trajectory.rows, generator) for batch in batches]
        self.known = [output for _, output in self._outputs(dense)]
        if aim.kind != "loss" and self.known[0].kind != "distribution":
            raise BudgetError(
                f"the outputs of this network are compared as {self.known[0].said}: they are no classes. "
                "Ask for 'loss 0.01', the squared error."
            )
        _check_measurable(aim, batches.examples)

    def lost(self, pruned: nn.Module) -> float:
        """The loss of a network, on average over all rows that are compared.

        Raises:
            NumericalError: it is not finite.
        """
        return max(float(self.by_batch(pruned) @ self.shares), 0.0)  # which rounding may fall below

    def by_batch(
        self, pruned: nn.Module, entered: Entered = _from_the_start, chosen: Sequence[int] | None = None
    ) -> Float[Tensor, " batch"]:
        """The loss of a network on every batch; float64.

        Args:
            entered: what its forward on the batch of a number runs in.
            chosen: the numbers of some batches; of the others the loss is NaN.

        Raises:
            NumericalError: it is not finite.
        """
        losses = torch.full((len(self.batches),), math.nan, dtype=torch.float64)
        for index, output in self._outputs(pruned, entered, chosen):
            losses[index] = float(self._loss(output, self.known[index]))
            if not losses[index].isfinite():
                raise NumericalError("the outputs for the inputs that were held out are not finite.")
        return losses

    @property
    def shares(self) -> Float[Tensor, " batch"]:
        """Of all rows that are compared, those of every batch."""
        rows = torch.tensor([reference.values.shape[1] for reference in self.known], dtype=torch.float64)
        return rows / rows.sum()

    @torch.inference_mode()
    def _outputs(
        self, network: nn.Module, entered: Entered = _from_the_start, chosen: Sequence[int] | None = None
    ) -> list[tuple[int, Output]]:
        found = []
        with inference_mode_of(network), reading(self.output):
            for index, (batch, positions) in enumerate(zip(self.batches, self.positions, strict=True)):
                if chosen is not None and index not in chosen:
                    continue
                try:
                    with entered(index):
                        said = call(network, batch)
                except FAILURES as error:
                    raise refused(f"the network does not take the inputs {shapes_of(batch)}", error) from error
                found.append((index, read_final(network, said, positions, self.recipe.trajectory)))
        return found

    def _loss(self, output: Output, reference: Output) -> Tensor:
        if self.aim.kind != "points":
            return output_loss(output, reference, 1.0)
        return 100 * (output.values.argmax(-1) != reference.values.argmax(-1)).float().mean()


def parted(
    dense: nn.Module, calibration: Batches, recipe: Recipe, output: str | Reader | None = None
) -> tuple[Batches, HeldOut | None]:
    """The inputs to calibrate on and, where the budget of the recipe is a loss, others to measure it on.

    Raises:
        OptinError: as `HeldOut`.
    """
    aim = aim_of(recipe.budget or "")
    if not isinstance(aim, Loss):
        return calibration, None
    part, rest = calibration.parts()
    return part, HeldOut(dense, rest, recipe, aim, output)


def _check_measurable(aim: Loss, held_out: int) -> None:
    least = 2 if aim.kind != "points" else -int(-100 // aim.value)
    if held_out < least:
        raise BudgetError(
            f"{aim} cannot be seen on {held_out} held-out inputs, a quarter of the calibration set: "
            f"it takes at least {HELD_OUT * least} inputs in all (--examples, or more batches)."
        )
