"""Streamed second moments: what the curves and the refit need of the activations, without keeping them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import NumericalError

WAITING = 512  # rows that are multiplied at once: with fewer it takes longer, with more no less
HIGHEST = 100.0  # ridge that is of any use


class Moments:
    """Weighted sums of x x^T and x e^T over rows, x with a constant 1 appended.

    Rows are gathered, then multiplied and added many at once, in their own precision but in single at least: memory
    is little more than n^2, whatever the number of rows. What is read of the sums is in float64.

    Args:
        features: n, length of x without the constant.
        targets: m, length of e; 0 for second moments alone.
        dtype: of the network.
    """

    def __init__(self, features: int, targets: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.features, self.targets = features, targets
        width, own = features + 1 + targets, _summed_in(dtype)
        self._weight = torch.zeros((), dtype=torch.float64, device=device)
        self._sums = torch.zeros(features + 1, width, dtype=own, device=device)
        self._waiting = torch.empty(WAITING, width, dtype=own, device=device)
        self._weights = torch.empty(WAITING, dtype=own, device=device)
        self._rows = 0

    def add(
        self,
        x: Float[Tensor, "row features"],
        e: Float[Tensor, "row targets"] | None = None,
        weights: Float[Tensor, " row"] | None = None,
    ) -> None:
        """Add rows, each with its weight (1 by default)."""
        self._weight += len(x) if weights is None else weights.to(self._weights).sum()
        begin = 0
        while begin < len(x):
            end = min(begin + WAITING - self._rows, len(x))
            rows = slice(self._rows, self._rows + end - begin)
            self._waiting[rows, : self.features] = x[begin:end]
            self._waiting[rows, self.features] = 1
            if e is not None:
                self._waiting[rows, self.features + 1 :] = e[begin:end]
            self._weights[rows] = 1 if weights is None else weights[begin:end].to(self._weights)
            self._rows, begin = rows.stop, end
            if self._rows == WAITING:
                self._flush()

    @staticmethod
    def bytes(features: int, dtype: torch.dtype = torch.float32) -> int:
        """What second moments of so many features take at most, with the rows that wait."""
        return _summed_in(dtype).itemsize * (features + 1 + WAITING) * (features + 1)

    @classmethod
    def sum(cls, parts: Sequence[Moments]) -> Moments:
        """The moments of all rows together."""
        first = parts[0]
        total = cls(first.features, first.targets, first._sums.device, first._sums.dtype)
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
        if self._rows:
            found["rows"], found["weights"] = self._waiting[: self._rows], self._weights[: self._rows]
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: it is of other moments.
        """
        self._sums.copy_(state["sums"])
        self._weight.copy_(state["weight"])
        if "rows" in state:
            rows, weights = state["rows"], state["weights"]
            fits = rows.dim() == 2 and len(rows) < WAITING and rows.shape[1] == self._sums.shape[1]
            if not fits or weights.shape != rows.shape[:1] or rows.dtype != self._sums.dtype:
                raise ValueError("rows of another length")
            self._rows = len(rows)
            self._waiting[: self._rows], self._weights[: self._rows] = rows, weights

    @property
    def second(self) -> Float[Tensor, "extended extended"]:
        """E[x x^T] over all rows added, the constant last; float64."""
        self._flush()
        return self._sums[:, : self.features + 1].double() / max(self.weight, 1e-300)

    @property
    def total(self) -> Float[Tensor, "features features"]:
        """The sum of x x^T over all rows added, without the constant; float64."""
        self._flush()
        return self._sums[: self.features, : self.features].double()

    @property
    def cross(self) -> Float[Tensor, "extended target"]:
        """E[x e^T]; float64."""
        self._flush()
        return self._sums[:, self.features + 1 :].double() / max(self.weight, 1e-300)

    def without(self, gone: Tensor, change: Float[Tensor, "targets features"]) -> Moments:
        """Those of the features that stay, where the map is changed by so much: what is lacking is then e - change x.

        Args:
            gone: shape (features,), bool.
        """
        self._flush()
        left = Moments(self.features - int(gone.sum()), self.targets, self._sums.device, torch.float64)
        stays, changed = torch.cat([~gone, gone.new_ones(1)]), change.any(0)
        read, lacking = self._sums[stays].double().split([self.features + 1, self.targets], 1)
        made = read[:, :-1][:, changed] @ change[:, changed].mT.to(read)
        left._sums, left._weight = torch.cat([read[:, stays], lacking - made], 1), self._weight
        return left

    def _flush(self) -> None:
        if self._rows:
            rows, weights = self._waiting[: self._rows], self._weights[: self._rows]
            self._sums.addmm_((rows[:, : self.features + 1] * weights[:, None]).mT, rows)
            self._rows = 0


def _summed_in(dtype: torch.dtype) -> torch.dtype:
    """Single precision, but for networks in double: their products have no more digits (docs/adr/0031)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
