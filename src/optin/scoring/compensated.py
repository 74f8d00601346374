"""`compensated`: what a removal costs AFTER the best refit of the units that stay (docs/method.md, Estimators).

With the second moment C of a consumer's input, its weights W and the sensitivity G of the trajectory to its
output, removing the columns S costs

    cost(S) = tr( W_S^T G W_S [ (C^-1)_SS ]^-1 ),      dW = - W_S [ (C^-1)_SS ]^-1 (C^-1)_S,:

Units go greedily; W and C^-1 follow by the block formula, so that each cost is that of a network already
refitted without the units gone before.

G and C are means, as if what a unit reads and what the trajectory is sensitive to did not vary together. How far
they do is known of each unit alone, from its trajectory I(u), and a part kappa of it is taken into its cost:

    cost'(u) = cost(u) * ( I(u) / tr( W_u^T G W_u C_uu ) )^kappa
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..recipe import Recipe
from ..running.consumers import features_of_units, features_per_unit, matrix
from ..space.scores import Curve
from ..space.units import Gate, UnitGroup, UnitSpace
from .blockwise import sums_of
from .draws import Weights
from .job import Found, Scoring
from .moments import Moments, factored
from .probe import PARTS, Probe
from .sketch import part_scales
from .totals import Parts, UnitTotals

READ = "read"
COMPACT = 0.75  # share of a reader's features from which those that are gone are cut out
ROUNDING = (1e-12, 1e-9, 1e-7)  # of the mean diagonal, added in turn to what may be singular
CHUNK = 16  # neurons that leave between two updates of C^-1; of maps this part of those left


def compensated(scoring: Scoring) -> Found:
    """Removal curves under compensation. Cost: the sketch, one second moment per consumer, one elimination."""
    model, space, recipe = scoring.model, scoring.space, scoring.recipe
    found = sums_of(scoring, partial(Sensitivities, model, recipe=recipe), "score")
    scales = part_scales(found.mean, recipe.trajectory.balance)
    groups = scoring.track(space, "removal curves", len(space))
    curves = {group.name: found.of(group).curve(model, group, scales) for group in groups}
    return Found(curves, scales, weights=found.weights)


def moment_bytes(model: nn.Module, space: UnitSpace) -> int:
    """What the moments of all consumers take, with the rows that wait to be added: most of a scoring's memory."""
    matrices = [matrix(model.get_submodule(name)) for name in _consumers(space)]
    return sum(
        Moments.bytes(weight.shape[1], weight.dtype) + len(PARTS) * Moments.bytes(weight.shape[0], weight.dtype)
        for weight in matrices
    )


def _consumers(space: UnitSpace) -> list[str]:
    return list(dict.fromkeys(gate.module for group in space for gate in group.gates))


class Sensitivities:
    """Streamed C and G of every consumer, and the unit scores that balance the two parts of G."""

    def __init__(self, model: nn.Module, space: UnitSpace, recipe: Recipe) -> None:
        self.recipe = recipe
        self.units = UnitTotals(space)
        self.moments: dict[tuple[str, str], Moments] = {}  # of what consumers read, and of both parts of G
        self.consumers = _consumers(space)
        for name in self.consumers:
            weight = matrix(model.get_submodule(name))
            self.moments[READ, name] = Moments(weight.shape[1], 0, weight.device, weight.dtype)
            for part in PARTS:
                self.moments[part, name] = Moments(weight.shape[0], 0, weight.device, weight.dtype)

    def add(self, probe: Probe, weights: Weights) -> None:
        """Add one draw, its tokens weighted."""
        self.units.add(probe)
        of = weights()
        for name in self.consumers:
            real = probe.real[name]
            for x, w in zip(probe.inputs[name], of[name], strict=True):
                self.moments[READ, name].add(x.flatten(0, -2)[real], weights=w.flatten()[real])
            for part in PARTS:
                for value in probe.outputs[part][name]:
                    self.moments[part, name].add(value.flatten(0, -2)[real])

    def tensors(self) -> dict[str, Tensor]:
        """See `Sums`."""
        return {
            **self.units.tensors(),
            **{_place(name, key): t for name, m in self.moments.items() for key, t in m.tensors().items()},
        }

    def state(self) -> dict[str, Tensor]:
        """See `Sums`."""
        return {
            **self.units.state(),
            **{_place(name, key): t for name, m in self.moments.items() for key, t in m.state().items()},
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Sums`."""
        self.units.restore(state)
        for name, moments in self.moments.items():
            parts = ("sums", "weight", "rows", "weights")
            moments.restore({part: state[key] for part in parts if (key := _place(name, part)) in state})

    @property
    def mean(self) -> Parts:
        """See `Sums`."""
        return self.units.mean

    def curve(self, model: nn.Module, group: UnitGroup, scales: Mapping[str, float]) -> Curve:
        """The removal curve of one group, in the currency of the balanced trajectory."""
        readers = [self._reader(model, group, gate, scales) for gate in group.gates]
        order, steps = eliminate(readers, self._coupling(group, readers, scales), group.of.maps)
        return Curve(order.cpu(), torch.cat([steps.new_zeros(1), steps.cumsum(0)]).cpu())

    def _coupling(self, group: UnitGroup, readers: Sequence[Reader], scales: Mapping[str, float]) -> Tensor:
        """What multiplies the cost of each unit; 1 for units that nothing reads."""
        alone = torch.stack([reader.alone for reader in readers]).sum(0)
        sums = self.units.sums
        seen = sum(scales[part] * sums[part][group.name].to(alone) for part in PARTS) / self.units.draws
        known = (alone > 0) & (seen > 0)
        return torch.where(known, seen / alone, 1.0) ** self.recipe.trajectory.coupling

    def _reader(self, model: nn.Module, group: UnitGroup, gate: Gate, scales: Mapping[str, float]) -> Reader:
        module, name = model.get_submodule(gate.module), gate.module
        sensitivity = sum(scales[part] * self.moments[part, name].total for part in PARTS) / self.units.draws
        weight, block = matrix(module).double(), features_per_unit(module, gate)
        second = self.moments[READ, name].second
        own = features_of_units(module, gate, group.size).flatten().to(weight.device)
        if (
            len(own) < weight.shape[1] or gate.times > 1
        ):  # unit by unit; what else it reads behind, as the constant is
            order = torch.cat([own, without(torch.arange(len(second), device=weight.device), own)])
            weight, second = weight[:, own], second[order][:, order]
        return Reader.of(weight, second, torch.as_tensor(sensitivity), block, self.recipe.refit.ridge)


def _place(name: tuple[str, str], part: str) -> str:
    """The name of a part of the moments of a consumer; rows that wait are not always there."""
    return f"{'moments' if part in ('sums', 'weight') else 'waiting'}/{'/'.join(name)}/{part}"


@dataclass
class Reader:
    """One consumer on its way through the elimination.

    Attributes:
        root: shape (out, features + fixed): G^(1/2) W, zero for what is fixed.
        inverse: C^-1, ridge included; what never leaves is last: features of other groups, and the constant.
        block: features per unit.
        alone: shape (unit,): tr(W_u^T G W_u C_uu), what each unit costs if it goes first and nothing makes up for it.
        left: places in the matrices of the units still there.
        own: features of units in the matrices.
    """

    root: Float[Tensor, "out every"]
    inverse: Float[Tensor, "every every"]
    block: int
    alone: Float[Tensor, " unit"]
    left: Tensor = field(init=False)
    own: int = field(init=False)

    @classmethod
    def of(
        cls,
        weight: Float[Tensor, "out features"],
        second: Float[Tensor, "every every"],
        sensitivity: Float[Tensor, "out out"],
        block: int,
        ridge: float = 0.0,
    ) -> Reader:
        """From W, C, to which the ridge is added, and G; float64."""
        inverse = torch.cholesky_inverse(factored(second, ridge))
        root = _square_root(sensitivity) @ weight
        own = torch.arange(weight.shape[1], device=weight.device).view(-1, block)
        read = torch.einsum("oub,ubc->ouc", root[:, own], second[own[:, :, None], own[:, None, :]])
        alone = (read * root[:, own]).sum((0, 2))
        fixed = root.new_zeros(len(root), len(second) - weight.shape[1])
        return cls(torch.cat([root, fixed], 1), inverse, block, alone)

    def __post_init__(self) -> None:
        self.left = torch.arange(len(self.alone), device=self.inverse.device)
        self.own = len(self.alone) * self.block

    def costs(self) -> Float[Tensor, " unit"]:
        """cost({u}) of every unit still there."""
        return _unit_costs(self.root, self.inverse, self.block, self.left)

    def remove(self, chosen: Tensor) -> Float[Tensor, " chosen"]:
        """Take units out, by their places among those still there; returns what each costs after those before it.

        Matrices are updated in place. What is gone stays in them, and is read by nothing, until it is a quarter.
        """
        gone = self._features(self.left[chosen])
        # Cholesky of (C^-1)_SS: column j of R_S L^-T is what feature j adds after those before it.
        factor = torch.linalg.cholesky(self.inverse[gone][:, gone])
        solved = torch.linalg.solve_triangular(factor, self.inverse[gone], upper=False)
        whitened = torch.linalg.solve_triangular(factor, self.root[:, gone].mT, upper=False)
        self.inverse.addmm_(solved.mT, solved, alpha=-1)
        self.root.addmm_(whitened.mT, solved, alpha=-1)
        self.left = without(self.left, chosen)
        if len(self.left) * self.block <= COMPACT * self.own:
            self._compact()
        cost: Tensor = whitened.square().sum(1).view(-1, self.block).sum(1)
        return cost

    def _compact(self) -> None:
        fixed = torch.arange(self.own, len(self.inverse), device=self.left.device)
        kept = torch.cat([self._features(self.left), fixed])
        self.own = len(self.left) * self.block
        self.inverse, self.root = self.inverse[kept][:, kept], self.root[:, kept]
        self.left = torch.arange(len(self.left), device=kept.device)

    def _features(self, units: Tensor) -> Tensor:
        return (units[:, None] * self.block + torch.arange(self.block, device=units.device)).flatten()


def eliminate(
    readers: Sequence[Reader], coupling: Float[Tensor, " unit"], maps: bool = False
) -> tuple[Tensor, Tensor]:
    """Greedy order of removal of units, and the cost of each step, summed over all that read them.

    Each unit's cost is multiplied by its `coupling`. Heads go one by one, neurons in chunks, `maps` (which are
    many and read in patches) by a share of the rest.
    """
    block = max(reader.block for reader in readers)
    units = torch.arange(len(readers[0].alone), device=readers[0].root.device)
    order, steps = [], []
    while len(units):
        cost = coupling[units] * torch.stack([reader.costs() for reader in readers]).sum(0)
        chunk = CHUNK if block == 1 else max(1, len(units) // CHUNK) if maps else 1
        chosen = torch.argsort(cost, stable=True)[: min(chunk, len(units))]
        order.append(units[chosen])
        steps.append(coupling[units[chosen]] * torch.stack([reader.remove(chosen) for reader in readers]).sum(0))
        units = without(units, chosen)
    return torch.cat(order), torch.cat(steps)


def without(values: Tensor, places: Tensor) -> Tensor:
    """The rest, in order; a GPU is not waited for, since its length is known."""
    stays = torch.ones(len(values), dtype=torch.int8, device=values.device)
    stays[places] = 0
    rest = torch.argsort(stays, descending=True, stable=True)[: len(values) - len(places)]
    return values[rest]


def _unit_costs(root: Tensor, inverse: Tensor, block: int, units: Tensor) -> Tensor:
    if block == 1:
        return root[:, units].square().sum(0) / inverse.diagonal()[units]
    blocks = units[:, None] * block + torch.arange(block, device=units.device)
    factors = torch.linalg.cholesky(inverse[blocks[:, :, None], blocks[:, None, :]])
    columns = root[:, blocks].permute(1, 2, 0)
    whitened: Tensor = torch.linalg.solve_triangular(factors, columns, upper=False)
    return whitened.square().sum((1, 2))


def _square_root(matrix: Tensor) -> Tensor:
    """R with R^T R = matrix, for a positive semidefinite matrix."""
    for share in ROUNDING:
        damped = matrix.clone()
        damped.diagonal().add_(share * matrix.diagonal().mean())
        attempt = torch.linalg.cholesky_ex(damped)
        if not attempt.info and bool(attempt.L.isfinite().all()):
            factor: Tensor = attempt.L.mT
            return factor
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = values.clamp_min(0).sqrt()[:, None] * vectors.mT
    return root
