"""Levels: what every consumer becomes for several counts of the units that it reads, from one walk.

Where x is all that a consumer could read behind what was cut before it, and e what the network lacks there while it
reads the units S, it lacks e + W_S x_S - W_T x_T while it reads T. So the moments of (x, e) give the refit of every
level:

    min over dW, db   sum_t w_t || dW x_t,T + db - (e_t + W_S x_t,S - W_T x_t,T) ||^2  +  ridge * ||dW||^2
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..running.consumers import add, features_of_units, features_per_unit, matrix
from ..running.job import Job
from ..running.mapped import copied
from ..running.modules import inference_mode_of
from ..running.store import Store
from ..space.units import Gate
from ..support.untyped import Foreign
from .compensation import Walk, WeightsOf, behind, stages_of
from .regression import Folds

UnitsOf = Callable[[str, int], Sequence[int]]  # those that a group keeps of so many


class Levels(Walk):
    """A network of the dense one's shape whose consumers can be put at levels: the columns of what is gone are zero.

    The levels of a consumer are refitted behind what is cut before it at the counts that are `kept`.

    Args:
        kept: units of every group.
        offered: by group that has other levels too, all counts of which there is one; see `movable`.
        units: which units a count means.

    Attributes:
        network: at the levels that are `kept`, until `put` changes them.
    """

    def __init__(
        self,
        job: Job,
        kept: Mapping[str, int],
        offered: Mapping[str, Sequence[int]],
        units: UnitsOf,
        weights: WeightsOf,
    ) -> None:
        self.network, self.job = copied(job.model, job.recipe.offload), job
        self.kept, self.offered, self.units = kept, offered, units
        self.gates = {gate.module: gate for group in job.space for gate in group.gates}
        self.levels = Store()
        with Store() as store:
            super().__init__(job, self.network, store, {})
            stages = stages_of(job.space)
            with inference_mode_of(job.model), inference_mode_of(self.network), torch.no_grad():
                for gate in self.gates.values():
                    gone = -self._dense(gate) * ~self._stays(gate, kept)
                    add(self.network, gate, gone, gone.new_zeros(len(gone)))
                for gates in job.track(stages, "levels", len(stages)):
                    self.block(gates, weights)
                if head := behind(job, {name: range(count) for name, count in kept.items()}):
                    self.head(head)

    def update(self, gate: Gate, folds: Folds) -> None:
        """Refit a consumer at all its levels, and put it at the one that is kept."""
        weight, now = self._dense(gate), self._stays(gate, self.kept)
        own = next((name for name in self.offered if self.job.space[name].gates[0].module == gate.module), None)
        counts = [self.kept[own], *self.offered[own]] if own is not None else [0]
        for count in dict.fromkeys(counts):
            stays = now if own is None else self._stays(gate, {**self.kept, own: count})
            moments = folds.without(~stays, weight * (stays.int() - now.int()))
            change = -weight.double()
            change[:, stays], shift = self.refitted(moments, gate, weight[:, stays])
            self.levels[gate.module, count, "weight"] = change.to(weight)
            self.levels[gate.module, count, "shift"] = shift.to(weight)
        self._put(gate, counts[0])

    def _dense(self, gate: Gate) -> Tensor:
        return matrix(self.job.model.get_submodule(gate.module))

    def _stays(self, gate: Gate, kept: Mapping[str, int]) -> Tensor:
        return features_kept(self.job, gate.module, kept, self.units)

    def put(self, group: str, count: int) -> None:
        """Put what reads a group at another of its levels."""
        self._put(self.job.space[group].gates[0], count)

    def _put(self, gate: Gate, count: int) -> None:
        module: Foreign = self.network.get_submodule(gate.module)
        dense: Foreign = self.job.model.get_submodule(gate.module)
        with torch.no_grad():
            module.weight.copy_(dense.weight)
            if module.bias is not None:
                module.bias.copy_(dense.bias)
            if gate.shift is not None:
                self.network.get_buffer(gate.shift).copy_(self.job.model.get_buffer(gate.shift))
        add(self.network, gate, self.levels[gate.module, count, "weight"], self.levels[gate.module, count, "shift"])


def features_kept(job: Job, consumer: str, kept: Mapping[str, int], units: UnitsOf) -> Tensor:
    """Which features a consumer reads of units that stay; shape (features,), bool."""
    module = job.model.get_submodule(consumer)
    weight = matrix(module)
    stays = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    for group in job.space:
        for gate in group.gates:
            if gate.module == consumer:
                own = features_of_units(module, gate, group.size).to(stays.device)
                stays[own] = False
                stays[own[list(units(group.name, kept[group.name]))]] = True
    return stays


def movable(job: Job) -> list[str]:
    """The groups whose counts can change alone: one consumer reads each, and that reads nothing else."""
    readers = Counter(gate.module for group in job.space for gate in group.gates)
    return [
        group.name
        for group in job.space
        if len(group.gates) == 1
        and not group.shared
        and job.space.in_body(group.gates[0].module)
        and readers[group.gates[0].module] == 1
        and matrix(module := job.model.get_submodule(group.gates[0].module)).shape[1]
        == group.size * features_per_unit(module, group.gates[0])
    ]
