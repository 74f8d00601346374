"""Budgets: what the pruned network may cost.

Budget.parse("50%")            half of the dense MACs
Budget.parse("2.1 GMACs")      absolute MACs, per example at the reference length
Budget.parse("40 Mparams")     absolute parameters
Budget.parse("60% params")     relative parameters
Budget.parse("12 ms")          latency of a forward on this machine
Budget.parse("60% latency")    relative latency
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ..errors import BudgetError

Quantity = Literal["MACs", "parameters", "latency"]
PER_MS = 10**9  # latencies are whole picoseconds

_PREFIX = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNIT: dict[str, Quantity] = {
    "mac": "MACs",
    "macs": "MACs",
    "param": "parameters",
    "params": "parameters",
    "parameter": "parameters",
    "parameters": "parameters",
    "latency": "latency",
}
FLAGS = re.IGNORECASE | re.ASCII  # the sign of the kelvin is no k
_RELATIVE = re.compile(r"(?P<number>[0-9.eE+-]+)\s*%\s*(?:of\s+)?(?:the\s+)?(?P<unit>[a-z]*)", FLAGS)
_ABSOLUTE = re.compile(
    r"(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)\s*(?P<prefix>[kmgt]?)(?P<unit>macs?|param(?:eter)?s?)", FLAGS
)
_TIME = re.compile(r"(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)\s*(?P<unit>us|ms|s)", FLAGS)
_SECONDS = {"us": 10**-3, "ms": 1, "s": 10**3}  # in ms
EXAMPLES = "'50%', '2.1 GMACs', '40 Mparams', '60% params', '12 ms' or '60% latency'"


@dataclass(frozen=True, slots=True)
class Budget:
    """An upper bound: `value` of `quantity` (latency in ps), as a fraction of the dense network when `relative`."""

    value: float
    quantity: Quantity = "MACs"
    relative: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.value < float("inf"):
            raise BudgetError(f"a budget must be a positive number, not {self.value}. Write {EXAMPLES}.")
        if self.relative and self.value >= 1:
            raise BudgetError(
                f"a budget of {self.value:.4g} times the dense {self.quantity} leaves nothing to prune. "
                "Ask for less than 100%."
            )

    @classmethod
    def parse(cls, text: str | float | Budget) -> Budget:
        """Read a budget; a number in (0, 1) is a fraction of the dense MACs.

        Raises:
            BudgetError: the text is not a budget, or asks for 100 % or more.
        """
        if isinstance(text, Budget):
            return text
        if isinstance(text, (int, float)) and not isinstance(text, bool):
            return cls(_number(text, ""))
        if not isinstance(text, str):
            raise BudgetError(f"a budget is a text or a number, not {type(text).__name__}. Write {EXAMPLES}.")
        if not text.isascii():
            raise BudgetError(
                f"the budget {text!r:.60} has signs that only look like digits, letters or %. Write {EXAMPLES}."
            )
        if match := _RELATIVE.fullmatch(text.strip()):
            quantity = _UNIT.get(match["unit"].lower() or "macs")
            if quantity is not None:
                return cls(_number(match["number"], text) / 100, quantity)
        if match := _ABSOLUTE.fullmatch(text.strip()):
            number = _number(match["number"], text) * _PREFIX[match["prefix"].lower()]
            return cls(number, _UNIT[match["unit"].lower()], relative=False)
        if match := _TIME.fullmatch(text.strip()):
            number = _number(match["number"], text) * _SECONDS[match["unit"].lower()]
            return cls(number * PER_MS, "latency", relative=False)
        raise BudgetError(f"cannot read the budget {text!r:.60}. Write {EXAMPLES}.")

    def limit(self, dense: int) -> int:
        """The largest allowed cost (MACs, parameters or picoseconds), given the dense one.

        Raises:
            BudgetError: an absolute budget that the dense network already meets.
        """
        # Round first: 0.07 * 100 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996.
        limit = int(round(self.value * dense, 6)) if self.relative else int(self.value)
        if limit >= dense:
            raise BudgetError(
                f"a budget of {self} leaves nothing to prune: the dense network has {shown(dense, self.quantity)}."
            )
        return limit

    def __str__(self) -> str:
        if self.relative:
            return f"{self.value * 100:.6g}% {self.quantity}"
        if self.quantity == "latency":
            return f"{self.value / PER_MS:.6g} ms"
        for prefix in ("T", "G", "M", "k"):
            if self.value >= _PREFIX[prefix.lower()]:
                return f"{self.value / _PREFIX[prefix.lower()]:.6g} {prefix}{_SHORT[self.quantity]}"
        return f"{self.value:.6g} {_SHORT[self.quantity]}"


_SHORT = {"MACs": "MACs", "parameters": "params"}


def shown(amount: int, quantity: str) -> str:
    """A cost for people."""
    return f"a latency of {amount / PER_MS:.4g} ms" if quantity == "latency" else f"{amount:,} {quantity}"


def _number(text: str | float, whole: str) -> float:
    try:
        return float(text)
    except (ValueError, OverflowError):
        raise BudgetError(
            f"cannot read the number {str(text)[:40]!r} in the budget {whole!r:.60}. Write {EXAMPLES}."
            if isinstance(text, str)
            else f"a budget must be a number that computers have. Write {EXAMPLES}."
        ) from None
