"""Budgets of loss: how far the outputs of the pruned network may be from the dense one's.

Loss.parse("KL 0.01")      KL divergence of the classes, in nats, on average over held-out inputs
Loss.parse("1 point")      percent of the held-out inputs that get another class: no accuracy falls by more
Loss.parse("loss 0.01")    what the recipe compares: squared error at unit variance where outputs are no classes
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import BudgetError
from .budget import Budget

Kind = Literal["KL", "points", "loss"]
_KINDS: Mapping[str, Kind] = {"kl": "KL", "point": "points", "points": "points", "loss": "loss"}
_NUMBER = r"(?P<number>-?[0-9]*\.?[0-9]+(?:e-?[0-9]+)?)"
_TEXTS = (
    re.compile(rf"(?P<word>kl|loss)\s*(?:<=?|=|:)?\s*{_NUMBER}", re.IGNORECASE | re.ASCII),
    re.compile(rf"{_NUMBER}\s*(?P<word>kl|loss|points?)", re.IGNORECASE | re.ASCII),
)


@dataclass(frozen=True, slots=True)
class Loss:
    """An upper bound: nats, percent of the inputs, or squared error, on inputs that the refit does not see."""

    value: float
    kind: Kind

    def __post_init__(self) -> None:
        if not 0 < self.value < (100 if self.kind == "points" else float("inf")):
            raise BudgetError(f"a loss must be above 0 (and points below 100), not {self.value:g}.")

    @classmethod
    def parse(cls, text: object) -> Loss | None:
        """Read a loss; None of what is no text of one.

        Raises:
            BudgetError: the number is out of range.
        """
        if not isinstance(text, str):
            return None
        found = next((match for pattern in _TEXTS if (match := pattern.fullmatch(text.strip()))), None)
        return None if found is None else cls(float(found["number"]), _KINDS[found["word"].lower()])

    def __str__(self) -> str:
        number = f"{self.value:.15g}"
        return f"{number} point{'s' * (self.value != 1)}" if self.kind == "points" else f"{self.kind} {number}"


def aim_of(value: str | float | Budget | Loss) -> Budget | Loss:
    """What a run may spend or lose, as a caller writes it.

    Raises:
        BudgetError: it is neither a cost nor a loss.
    """
    if isinstance(value, Loss):
        return value
    return Loss.parse(value) or Budget.parse(value)


def cost_of(value: str | float | Budget | Loss, where: str) -> Budget:
    """A budget that says a cost.

    Args:
        where: what needs one, for people.

    Raises:
        BudgetError: it cannot be read, or says a loss.
    """
    aim = aim_of(value)
    if isinstance(aim, Loss):
        raise BudgetError(f"{where} needs a cost, not a loss ({aim}), which is found by refitting: use prune.")
    return aim
