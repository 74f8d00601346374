"""How much every token matters to what comes after it: the weights of a refit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..recipe import Recipe
from ..running.batch import token_mask
from ..running.job import Job
from ..running.store import Store
from ..space.scores import Scores
from ..space.units import UnitSpace
from ..support.untyped import Foreign
from .probe import Micro, Probe


def token_weights(probe: Probe, consumer: str, floor: float, balance: float) -> list[Tensor]:
    """How much each token matters to the trajectory, call by call (docs/method.md, Estimators).

    Shape (batch, token): the squared norm of d<v, phi> / dy, each part at mean 1 over the tokens that are not
    padding, mixed as `balance` : 1, plus `floor`; 0 at padding.
    """
    shares = {"manifold": balance / (1 + balance), "output": 1 / (1 + balance)}
    mask, parts = probe.masks[consumer], []
    for part, share in shares.items():
        squares = torch.stack([g.float().square().sum(-1) for g in probe.outputs[part][consumer]])
        real = squares * mask
        mean = real.sum() / (mask.sum() * len(squares))
        parts.append(share * real / mean.clamp_min(torch.finfo(torch.float32).tiny))
    weights = (torch.stack(parts).sum(0) + floor) * mask
    return list(weights)


def padded(weights: Tensor, count: int) -> Tensor:
    """As many positions, with no weight for those that are added: padding is at the end."""
    return nn.functional.pad(weights, (0, count - weights.shape[-1]))


class TokenWeights:
    """The weight of every token at every consumer, from the first draw of each micro-batch.

    Args:
        store: keeps them.
    """

    def __init__(self, space: UnitSpace, recipe: Recipe, store: Store) -> None:
        self.consumers = list(dict.fromkeys(gate.module for group in space for gate in group.gates))
        self.floor, self.balance = recipe.refit.floor, recipe.trajectory.balance
        self.store = store
        self.index, self.parts = -1, dict[str, list[Tensor]]()

    def of(self, probe: Probe) -> dict[str, list[Tensor]]:
        """Those of one draw, by consumer: see `token_weights`."""
        return {name: token_weights(probe, name, self.floor, self.balance) for name in self.consumers}

    def add(self, micro: Micro, weights: Mapping[str, list[Tensor]]) -> None:
        """Keep those of a first draw; the micro-batches of a batch come one after the other."""
        if micro.index != self.index:
            self.finish()
            self.index, self.parts = micro.index, {name: [] for name in self.consumers}
        tokens = token_mask(micro.batch)
        for name, parts in self.parts.items():
            weight = torch.stack(weights[name])
            if weight.dim() == 2 and weight.shape[1] == tokens.numel():  # all in a row
                weight = weight.unflatten(1, tokens.shape)
            parts.append(weight)

    def put(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Keep those of a whole batch: per consumer, shape (call, batch, token)."""
        self.finish()
        self.index, self.parts = index, {name: [value] for name, value in weights.items()}

    def __call__(self, index: int, consumer: str) -> list[Tensor]:
        """For every call of a consumer in a batch, shape (batch, token)."""
        self.finish()
        return list(self.store["weights", index, consumer])

    def finish(self) -> None:
        """Keep what was added last: no micro-batch of its batch is to come."""
        for name, parts in self.parts.items():
            longest = max(part.shape[-1] for part in parts)
            # Some are of fewer positions, since padding that none of their texts needs is cut.
            parts = [padded(part, longest) for part in parts] if parts[0].dim() > 2 else parts
            self.store["weights", self.index, name] = torch.cat(parts, 1)
        self.parts = {}


def drawn_before(job: Job, scores: Scores | None) -> Foreign:
    """The weights that a scoring drew, if the refit would draw the same."""
    if scores is None or scores.weights is None:
        return None
    was, digest = Recipe.from_dict(scores.provenance["recipe"]), scores.provenance["data"]["sha256"]
    drawn = (digest, was.seed, was.trajectory, was.refit.floor)
    wanted = (job.batches.digest, job.recipe.seed, job.recipe.trajectory, job.recipe.refit.floor)
    return scores.weights if drawn == wanted else None
