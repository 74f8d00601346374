"""Budgets: what the pruned network may cost.

Budget.parse("50%")            half of the dense MACs
Budget.parse("2.1 GMACs")      absolute MACs, per example at the reference length
Budget.parse("4.2 GFLOPs")     the same: a MAC is two floating-point operations
Budget.parse("40 Mparams")     absolute parameters
Budget.parse("60% params")     relative parameters
Budget.parse("40 MB")          bytes of the saved weights, in the precision that they have
Budget.parse("60% bytes")      relative bytes
Budget.parse("12 ms")          latency of a forward on this machine
Budget.parse("60% latency")    relative latency
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import BudgetError

Quantity = Literal["MACs", "parameters", "bytes", "latency"]
PER_MS = 10**9  # latencies are whole picoseconds


@dataclass(frozen=True, slots=True)
class Unit:
    """A word that a budget can end with.

    Attributes:
        size: what one of it is, in MACs, parameters, bytes or picoseconds; None where it can only be a share.
        prefixed: whether it takes k, M, G or T.
    """

    quantity: Quantity
    size: float | None = 1
    prefixed: bool = True

    @property
    def shared(self) -> bool:
        """Whether a budget can be a percentage of it: of the MACs, and not of milliseconds."""
        return self.prefixed or self.size is None


UNITS: Mapping[str, Unit] = {
    **dict.fromkeys(("mac", "macs"), Unit("MACs")),
    **dict.fromkeys(("flop", "flops"), Unit("MACs", 1 / 2)),
    **dict.fromkeys(("param", "params", "parameter", "parameters"), Unit("parameters")),
    **dict.fromkeys(("b", "byte", "bytes"), Unit("bytes")),
    "latency": Unit("latency", None),
    "us": Unit("latency", PER_MS / 1000, prefixed=False),
    "ms": Unit("latency", PER_MS, prefixed=False),
    "s": Unit("latency", PER_MS * 1000, prefixed=False),
}
_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SHORT = {"MACs": "MACs", "parameters": "params", "bytes": "B"}
_TEXT = re.compile(
    r"(?P<number>[0-9.eE+-]*[0-9.]|[0-9]{1,3}(?:,[0-9]{3})+)\s*(?P<percent>%?)"
    r"\s*(?:of\s+)?(?:the\s+)?(?P<prefix>(?:[kmgt]\s*)?)(?P<word>[a-z]*)",
    re.IGNORECASE | re.ASCII,  # the sign of the kelvin is no k
)
EXAMPLES = "'50%', '2.1 GMACs', '40 Mparams', '60% params', '40 MB', '12 ms', '60% latency', 'KL 0.01' or '1 point'"


@dataclass(frozen=True, slots=True)
class Budget:
    """An upper bound: `value` of `quantity` (latency in ps), as a fraction of the dense network when `relative`.

        optin.Budget.parse("60% params") == optin.Budget(0.6, "parameters")

    Attributes:
        value: a share, or an amount of the quantity.
        quantity: "MACs", "parameters", "bytes" or "latency".
        relative: whether the value is a share of the dense network's.
    """

    value: float
    quantity: Quantity = "MACs"
    relative: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.value < float("inf"):
            raise BudgetError(f"a budget must be above 0 and finite. Write {EXAMPLES}.")
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
            number = _number(text, "")
            return cls._bare(number, "") if number > 1 else cls(number)
        if not isinstance(text, str):
            raise BudgetError(f"a budget is a text or a number, not {type(text).__name__}. Write {EXAMPLES}.")
        if not text.isascii():
            raise BudgetError(
                f"the budget {text!r:.60} has signs that only look like digits, letters or %. Write {EXAMPLES}."
            )
        if not (match := _TEXT.fullmatch(text.strip())):
            raise BudgetError(f"cannot read the budget {text!r:.60}. Write {EXAMPLES}.")
        number = _number(match["number"].replace(",", ""), text)
        prefix, unit = _unit(match["prefix"].lower(), match["word"].lower())
        if match["percent"]:
            unit = unit if prefix or match["word"] else UNITS["macs"]
            if unit is not None and unit.shared and not prefix:
                return cls(number / 100, unit.quantity)
        elif unit is None and not match["word"]:
            return cls._bare(number, prefix)
        elif unit is not None and unit.size is not None:
            return cls(number * unit.size * _PREFIXES[prefix], unit.quantity, relative=False)
        raise BudgetError(f"cannot read the budget {text!r:.60}. Write {EXAMPLES}.")

    @classmethod
    def _bare(cls, number: float, prefix: str) -> Budget:
        """A number alone is a fraction; of others it is said what may be meant."""
        if 0 < number < 1 and not prefix:
            return cls(number)
        shown = f"{number:g}{prefix.upper() if prefix != 'k' else prefix}"
        share = f" '{shown}%' of the MACs," if 1 < number < 100 and not prefix else ""
        raise BudgetError(f"the budget {shown} has no unit: write{share} '{shown} MACs' or '{shown} params'.")

    def limit(self, dense: int) -> int:
        """The largest allowed cost (MACs, parameters, bytes or picoseconds), given the dense one.

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
            return f"{self.value * 100:.15g}% {self.quantity}"
        if self.quantity == "latency":
            return f"{self.value / PER_MS:.15g} ms"
        short = _SHORT.get(self.quantity, self.quantity)
        for prefix in ("T", "G", "M", "k"):
            if self.value >= _PREFIXES[prefix.lower()]:
                return f"{self.value / _PREFIXES[prefix.lower()]:.15g} {prefix}{short}"
        return f"{self.value:.15g} {short}"


def _unit(prefix: str, word: str) -> tuple[str, Unit | None]:
    """A unit and its prefix, of which the text may hold a letter as the word's first: "ms", "mac"."""
    if prefix + word in UNITS:
        return "", UNITS[prefix + word]
    unit = UNITS.get(word)
    return prefix.strip(), unit if unit is not None and unit.prefixed and unit.size is not None else None


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
