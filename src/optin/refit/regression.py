"""Ridge regression from streamed moments, and the choice of its ridge by cross-validation.

The refit of a consumer must not be worse than none: where its inputs lack little, what is left to explain is noise,
and the ridge that suits a consumer with half of its features gone would fit that noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..scoring.moments import HIGHEST, Moments, factored

STEP = 10**0.5  # between two ridges that are tried
LOWEST = 1e-6


def refit(moments: Moments, ridge: float, *, bias: bool) -> tuple[Float[Tensor, "targets features"], Tensor]:
    """Solve the weighted ridge regression of e on x by its normal equations, in float64.

    Returns:
        dW of shape (targets, features) and db of shape (targets,), zero without a bias.
    """
    if not moments.features:  # of a part that is gone a constant is left
        return moments.cross[:-1].mT, moments.cross[-1] * float(bias)
    size = None if bias else -1  # the leading block has the leading block of the factor
    factor = factored(moments.second, ridge)[:size, :size]
    solution = torch.cholesky_solve(moments.cross[:size], factor).mT
    if not bias:
        return solution, solution.new_zeros(len(solution))
    return solution[:, :-1], solution[:, -1]


def rescaled(
    moments: Moments, weight: Float[Tensor, "targets features"], units: Tensor, ridge: float
) -> Float[Tensor, "targets features"]:
    """The best dW that only scales each unit's columns of W: mask tuning (Kwon et al., NeurIPS 2022, section 4.3).

    min over s   sum_t w_t || sum_u s_u W_u x_u,t - e_t ||^2  +  ridge * ||s||^2,      dW_u = s_u W_u

    Args:
        units: which features belong to each unit: shape (unit, feature).
        ridge: relative to the mean diagonal of the normal equations.
    """
    w, second, cross = weight.double(), moments.second[:-1, :-1], moments.cross[:-1]
    products = ((w.mT @ w) * second)[:, units].sum(2)[units].sum(1)
    wanted = (w.mT * cross).sum(1)[units].sum(1)
    products.diagonal().add_(ridge * products.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny))
    scales = torch.linalg.solve(products, wanted)
    change = torch.zeros_like(w)
    change[:, units] = w[:, units] * scales[:, None]
    return change


class Folds:
    """Moments of parts of the rows, by examples, which take turns from one batch to the next.

    Args:
        count: how many parts.
        features, targets: as for `Moments`.
    """

    def __init__(
        self, count: int, features: int, targets: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.parts = [Moments(features, targets, device, dtype) for _ in range(count)]
        self._examples = 0

    def add(self, x: Tensor, e: Tensor, weights: Tensor, mask: Tensor) -> None:
        """Add a batch.

        Args:
            x, e: shapes (example, *position, features) and (example, *position, targets).
            weights, mask: shape (example, *position): how much each position counts, and whether it does.
        """
        for place, moments in enumerate(self.parts):
            turn = slice((place - self._examples) % len(self.parts), None, len(self.parts))
            moments.add(x[turn][mask[turn]], e[turn][mask[turn]], weights[turn][mask[turn]])
        self._examples += len(x)

    def without(self, gone: Tensor, change: Float[Tensor, "targets features"]) -> Folds:
        """Those of the features that stay; see `Moments.without`."""
        left = Folds(0, 0, 0, gone.device)
        left.parts = [part.without(gone, change) for part in self.parts]
        return left

    def rescaled(self, weight: Tensor, units: Tensor, ridge: float) -> Tensor:
        """What only scales units, on all parts; see `rescaled`."""
        return rescaled(Moments.sum(self.parts), weight, units, ridge)

    def refit(self, ridge: float, *, bias: bool) -> tuple[Float[Tensor, "targets features"], Tensor]:
        """The refit on all parts: at `ridge` if there is one, else with the ridge that explains most elsewhere."""
        filled = [part for part in self.parts if part.weight > 0]
        return refit_validated(filled, ridge, bias=bias) if len(filled) > 1 else refit(filled[0], ridge, bias=bias)


def refit_validated(
    folds: Sequence[Moments], ridge: float, *, bias: bool
) -> tuple[Float[Tensor, "targets features"], Tensor]:
    """The refit on all folds, with the ridge that explains most where it was not fitted.

    Starts at `ridge` and goes up or down in steps of the square root of ten while that helps. Zero, if no ridge
    explains anything.
    """
    total, gains = Moments.sum(folds), dict[int, float]()
    splits = [(Moments.sum([*folds[:place], *folds[place + 1 :]]), fold) for place, fold in enumerate(folds)]

    def gain(power: int) -> float:
        if power not in gains:
            gains[power] = _held_out(splits, ridge * STEP**power, bias)
        return gains[power]

    best = 0
    for step in (1, -1):
        for power in itertools.count(best + step, step):
            # The less is explained, the more a larger ridge helps: below zero it may go on without a gain yet.
            if not LOWEST <= ridge * STEP**power <= HIGHEST or gain(power) <= gain(best):
                break
            best = power
    weight, shift = refit(total, ridge * STEP**best, bias=bias)
    return (weight, shift) if gain(best) > 0 else (torch.zeros_like(weight), torch.zeros_like(shift))


def _held_out(splits: Sequence[tuple[Moments, Moments]], ridge: float, bias: bool) -> float:
    """How much of the weighted squares of e is explained in the second half of each split, by a refit on the first.

    A ridge is relative to the mean over rows, and less of it is needed the more rows there are.
    """
    explained = 0.0
    for others, fold in splits:
        weight, shift = refit(others, ridge * (others.weight + fold.weight) / others.weight, bias=bias)
        solution = torch.cat([weight, shift[:, None]], 1)
        squares = 2 * (solution.mT * fold.cross).sum() - ((solution @ fold.second) * solution).sum()
        explained += fold.weight * float(squares)
    return explained
