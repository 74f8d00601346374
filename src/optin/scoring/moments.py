"""Streamed second moments: what the curves and the refit need of the activations, without keeping them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import NumericalError

WAITING = 1024  # rows at least that are multiplied at once
HIGHEST = 100.0  # ridge that is of any use


class Moments:
    """Weighted sums of x x^T and x e^T over rows, x with a constant 1 appended.

    Rows are gathered until there are about as many as features, then multiplied at once in their own
    precision and added in float64: memory is a few times n^2, whatever the number of rows.

    Args:
        features: n, length of x without the constant.
        targets: m, length of e; 0 for second moments alone.
    """

    def __init__(self, features: int, targets: int, device: torch.device) -> None:
        self.features, self.targets = features, targets
        self._weight = torch.zeros((), dtype=torch.float64, device=device)
        self._sums = torch.zeros(features + 1, features + 1 + targets, dtype=torch.float64, device=device)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._rows = 0

    def add(
        self,
        x: Float[Tensor, "row features"],
        e: Float[Tensor, "row targets"] | None = None,
        weights: Float[Tensor, " row"] | None = None,
    ) -> None:
        """Add rows, each with its weight (1 by default)."""
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        w = x.new_ones(len(x)) if weights is None else weights.to(x)
        parts = [x, x.new_ones(len(x), 1)] + ([] if e is None else [e.to(x)])
        self._weight += w.sum()
        self._waiting.append((torch.cat(parts, 1), w))
        self._rows += len(x)
        if self._rows > max(self.features, WAITING):
            self._flush()

    @staticmethod
    def bytes(features: int) -> int:
        """What second moments of so many features take at most, with the rows that wait (in float32)."""
        return 8 * (features + 1) ** 2 + 4 * max(features, WAITING) * (features + 1)

    @classmethod
    def sum(cls, parts: Sequence[Moments]) -> Moments:
        """The moments of all rows together."""
        total = cls(parts[0].features, parts[0].targets, parts[0]._sums.device)
        for part in parts:
            part._flush()
            total._sums += part._sums
            total._weight += part._weight
        return total

    @property
    def weight(self) -> float:
        """Of all rows added."""
        return float(self._weight)

    def tensors(self) -> dict[str, Tensor]:
        """The sums, as they are kept."""
        self._flush()
        return {"sums": self._sums, "weight": self._weight}

    def state(self) -> dict[str, Tensor]:
        """The sums and the rows that wait, as they are: adding goes on from there to the same bits."""
        found = {"sums": self._sums, "weight": self._weight}
        if self._waiting:
            found["rows"] = torch.cat([rows for rows, _ in self._waiting])
            found["weights"] = torch.cat([weights for _, weights in self._waiting])
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: it is of other moments.
        """
        self._sums.copy_(state["sums"])
        self._weight.copy_(state["weight"])
        if "rows" in state:
            rows, weights = state["rows"].to(self._sums.device), state["weights"].to(self._sums.device)
            if rows.dim() != 2 or rows.shape[1] != self._sums.shape[1] or weights.shape != rows.shape[:1]:
                raise ValueError("rows of another length")
            self._waiting, self._rows = [(rows, weights)], len(rows)

    @property
    def second(self) -> Float[Tensor, "extended extended"]:
        """E[x x^T] over all rows added, the constant last; float64."""
        self._flush()
        return self._sums[:, : self.features + 1] / max(self.weight, 1e-300)

    @property
    def total(self) -> Float[Tensor, "features features"]:
        """The sum of x x^T over all rows added, without the constant; float64."""
        self._flush()
        return self._sums[: self.features, : self.features]

    @property
    def cross(self) -> Float[Tensor, "extended target"]:
        """E[x e^T]; float64."""
        self._flush()
        return self._sums[:, self.features + 1 :] / max(self.weight, 1e-300)

    def without(self, gone: Tensor, change: Float[Tensor, "targets features"]) -> Moments:
        """Those of the features that stay, where the map is changed by so much: what is lacking is then e - change x.

        Args:
            gone: shape (features,), bool.
        """
        self._flush()
        left = Moments(self.features - int(gone.sum()), self.targets, self._sums.device)
        stays, changed = torch.cat([~gone, gone.new_ones(1)]), change.any(0)
        read, lacking = self._sums[stays].split([self.features + 1, self.targets], 1)
        made = read[:, :-1][:, changed] @ change[:, changed].mT.to(read)
        left._sums, left._weight = torch.cat([read[:, stays], lacking - made], 1), self._weight
        return left

    def _flush(self) -> None:
        if self._waiting:
            rows = torch.cat([rows for rows, _ in self._waiting])
            weights = torch.cat([weights for _, weights in self._waiting])
            x = rows[:, : self.features + 1]
            self._sums += ((x * weights[:, None]).mT @ rows).double()
            self._waiting, self._rows = [], 0


def ridged(second: Float[Tensor, "extended extended"], ridge: float) -> Float[Tensor, "extended extended"]:
    """The second moment with `ridge` times its mean diagonal added; the constant is not penalised."""
    features = second.shape[0] - 1
    diagonal = second.diagonal()[:features]
    damped = second.clone()
    damped.diagonal()[:features] += ridge * diagonal.mean().clamp_min(torch.finfo(torch.float32).tiny)
    return damped


def factored(second: Float[Tensor, "extended extended"], ridge: float) -> Float[Tensor, "extended extended"]:
    """The Cholesky factor of `ridged`; a ridge that is lost in the rounding of the sums is raised until there is one.

    Raises:
        NumericalError: no ridge gives one: nothing was added, or NaN.
    """
    attempt = torch.linalg.cholesky_ex(ridged(second, ridge))
    if not attempt.info:
        factor: Tensor = attempt.L
        return factor
    if ridge > HIGHEST:
        raise NumericalError("the second moments of a consumer's inputs cannot be factored: are all weights zero?")
    return factored(second, max(10 * ridge, torch.finfo(torch.float32).eps))
