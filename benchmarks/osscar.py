"""OSSCAR (Meng et al., ICML 2024), from the publication, on optin's groups: the units of every layer by local search.

For the map W behind the units, with the second moment C of what it reads, the units S that stay are to minimise

    || W x - W' x_S ||^2   over W' and S,      = tr(W C W^T) - tr(W C_:S (C_SS)^-1 C_S: W^T)

Backwards one chunk after the other at first; then units of S are exchanged for others while that helps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from allocations import Chooser
from torch import Tensor, nn

from optin.running.consumers import features_of_units, matrix
from optin.running.modules import call
from optin.running.replay import Recorder
from optin.scoring.compensated import Reader, eliminate
from optin.scoring.moments import Moments, ridged
from optin.space.plans import Plan
from optin.space.scores import Curve
from optin.space.units import Tap, UnitGroup

RIDGE = 1e-2
EXCHANGES = 8  # at most, of one group under one budget


class Layer:
    """One group: what its map reads, and the order in which units leave."""

    def __init__(self, model: nn.Module, group: UnitGroup, second: Tensor) -> None:
        module = model.get_submodule(group.gates[0].module)
        self.weight = matrix(module).double()
        self.features = features_of_units(module, group.gates[0], group.size)
        self.second = ridged(second, RIDGE)[:-1, :-1]
        block = self.features.shape[1]
        reader = Reader.of(self.weight, second, torch.eye(len(self.weight), dtype=torch.float64), block, RIDGE)
        self.order, _ = eliminate([reader], torch.ones(group.size, dtype=torch.float64))

    def keep(self, count: int) -> tuple[int, ...]:
        """So many units."""
        kept, gone = self.order[-count:], self.order[:-count]
        chunk = max(1, min(count, len(gone)) // 32)
        loss, leaving, coming = self._look(kept, gone)
        for _ in range(EXCHANGES if len(gone) else 0):
            out, back = leaving.argsort()[:chunk], coming.argsort(descending=True)[:chunk]
            others = torch.cat([kept[without(len(kept), out)], gone[back]])
            rest = torch.cat([gone[without(len(gone), back)], kept[out]])
            lower, leaving_then, coming_then = self._look(others, rest)
            if lower < loss:
                kept, gone, loss, leaving, coming = others, rest, lower, leaving_then, coming_then
            elif chunk == 1:
                break
            else:
                chunk //= 2
        return tuple(sorted(kept.tolist()))

    def _look(self, kept: Tensor, gone: Tensor) -> tuple[float, Tensor, Tensor]:
        """What is lost with so many units, what each of them is worth, and what each of the others would bring."""
        stays, left = self.features[kept].flatten(), self.features[gone].flatten()
        factor = torch.linalg.cholesky(self.second[stays][:, stays])
        read = self.weight @ self.second[:, stays]
        solution = torch.cholesky_solve(read.mT, factor).mT
        loss = float(((self.weight @ self.second) * self.weight).sum() - (solution * read).sum())
        inverse = torch.cholesky_inverse(factor)
        units = torch.arange(len(stays)).view(len(kept), -1)
        leaving = explained(solution[:, units], torch.linalg.inv(inverse[units[:, :, None], units[:, None, :]]))
        across = self.second[left][:, stays]
        apart = self.second[left][:, left] - across @ torch.cholesky_solve(across.mT, factor)
        units = torch.arange(len(left)).view(len(gone), -1)
        lacking = (self.weight[:, left] @ apart)[:, units]
        coming = explained(lacking, torch.linalg.inv(apart[units[:, :, None], units[:, None, :]]))
        return loss, leaving, coming


def explained(rows: Tensor, inner: Tensor) -> Tensor:
    """tr(R_u M_u R_u^T) of every unit; shapes (out, unit, feature) and (unit, feature, feature)."""
    return torch.einsum("oub,ubc,ouc->u", rows, inner, rows)


def without(count: int, places: Tensor) -> Tensor:
    """The other places."""
    stays = torch.ones(count, dtype=torch.bool)
    stays[places] = False
    return stays


@torch.inference_mode()
def layers(
    model: nn.Module, groups: Sequence[UnitGroup], batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, Layer]:
    """Every group, as the dense network reads it."""
    taps = {group.name: Tap(group.gates[0].module, "input") for group in groups}
    sums = {
        name: Moments(matrix(model.get_submodule(tap.module)).shape[1], 0, torch.device("cpu"))
        for name, tap in taps.items()
    }
    for batch in batches:
        recorder = Recorder(list(taps.values()))
        with recorder.recording(model):
            call(model, dict(batch))
        for name, tap in taps.items():
            sums[name].add(recorder.calls[tap][0].flatten(0, -2))
    return {group.name: Layer(model, group, sums[group.name].second) for group in groups}


def plan(chooser: Chooser, found: Mapping[str, Layer], curves: Mapping[str, Curve], budget: int) -> Plan:
    """Uniform widths, the units by local search."""
    uniform = chooser.uniform(curves, budget)
    keep = {name: found[name].keep(len(units)) for name, units in uniform.keep.items()}
    return dataclasses.replace(uniform, keep=keep)
