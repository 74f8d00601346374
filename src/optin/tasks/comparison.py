"""Networks on the same examples: the figures of each, and how sure the difference between two is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from torch import Tensor

from .metrics import divergence, measure
from .specs import TaskSpec

DRAWS = 1000  # of the bootstrap
LEAST = 30  # examples, of which fewer show no interval
RARE = 3.0  # what happened in none of n examples happens in less than 3 of n, at 95 %
MEANS = ("accuracy",)  # metrics that are the share of examples whose class is right
BY_LOGITS = ("top5",)  # metrics that one class for each example does not do for


class Said(Protocol):
    """What networks say of the same examples, of whatever sort."""

    @property
    def alone(self) -> bool:
        """Whether a network has figures of its own, and not only against another one."""

    def figures(self, place: int = 0, reference: int | None = None) -> dict[str, float]:
        """The metrics of one network; with another as the reference the KL of its outputs ("kl")."""

    def sure(self, one: int, other: int) -> dict[str, tuple[float, float]]:
        """95 % of how much more the main metric of one network is than that of another, if that can be said."""


@dataclass(frozen=True)
class Answers:
    """What networks say of the same examples.

    Attributes:
        values: of each network, of shape (row, class) or (row, dim); a row is an example, or a word that has a tag.
        targets: the labels, or of embeddings what the last network says.
        skipped: examples that could not be read.
    """

    spec: TaskSpec
    values: Sequence[Tensor]
    targets: Tensor
    skipped: int = 0

    @classmethod
    def of(
        cls, spec: TaskSpec, values: Sequence[Sequence[Tensor]], targets: Sequence[object], skipped: int = 0
    ) -> Self:
        """From the values of every network, batch by batch."""
        joined = [torch.cat(list(batches)) for batches in values]
        return cls(spec, joined, joined[-1] if spec.kind.compared else torch.tensor(targets), skipped)

    def figures(self, place: int = 0, reference: int | None = None) -> dict[str, float]:
        """The metrics of the task for one network; with another as the reference the KL of its outputs ("kl").

        Args:
            place, reference: of the networks among all.
        """
        found = {name: self._metric(name, self.values[place], self.targets) for name in self.spec.metrics}
        if reference is not None and not (self.spec.kind.numeric or self.spec.kind.compared):
            found["kl"] = float(divergence(self.values[reference], self.values[place]))
        return found | ({"skipped": self.skipped} if self.skipped else {})

    @property
    def alone(self) -> bool:
        """See `Said`."""
        return not self.spec.kind.compared

    def sure(self, one: int, other: int) -> dict[str, tuple[float, float]]:
        """See `Said`: of at least `LEAST` examples; words of one text are no draws of their own."""
        if self.spec.kind.tagged or len(self.targets) < LEAST:
            return {}
        ends = self.interval(one, other)
        return {self.spec.metrics[0]: ends} if all(map(math.isfinite, ends)) else {}

    def interval(self, one: int, other: int, seed: int = 0) -> tuple[float, float]:
        """95 % of how much more the first metric of one network is than that of another, by a paired bootstrap.

        Both are measured on the same examples, drawn again with replacement (Efron, 1979, percentiles). Where no
        example tells them apart, that is what is drawn, and the rule of three says how rare one may be.
        """
        generator = torch.Generator().manual_seed(seed)
        name, rows = self.spec.metrics[0], len(self.targets)
        values = [self._predictions(name, self.values[place]) for place in (one, other)]
        hits = [(value == self.targets).float() for value in values] if name in MEANS else []
        if hits and torch.equal(*hits):
            return -RARE / rows, RARE / rows
        differences = []
        for _ in range(DRAWS):
            drawn = torch.randint(rows, (rows,), generator=generator)
            if hits:  # a thousand times faster than to ask for the metric of every draw
                differences.append(float((hits[0] - hits[1])[drawn].mean()))
                continue
            figures = [measure((name,), value[drawn], self.targets[drawn], self._classes)[name] for value in values]
            differences.append(figures[0] - figures[1])
        low, high = torch.tensor(differences).nanquantile(torch.tensor([0.025, 0.975])).tolist()
        return low, high

    def _metric(self, name: str, values: Tensor, targets: Tensor) -> float:
        return measure((name,), self._predictions(name, values), targets, self._classes)[name]

    def _predictions(self, name: str, values: Tensor) -> Tensor:
        kind = self.spec.kind
        if kind.numeric:
            return values.squeeze(-1)
        return values if kind.compared or name in BY_LOGITS else values.argmax(-1)

    @property
    def _classes(self) -> int:
        return 0 if self.spec.kind.compared else int(self.values[0].shape[-1])


@dataclass(frozen=True)
class Comparison:
    """A dense and a pruned network on the same examples.

    Attributes:
        dense, pruned: figures of each; none of a dense network whose outputs are what is compared with.
        interval: by the name of the main metric, 95 % of pruned minus dense.
    """

    dense: Mapping[str, float]
    pruned: Mapping[str, float]
    interval: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, said: Said) -> Self:
        """Of what the pruned network and the dense one say, in this order."""
        pruned = said.figures(0, 1)
        return cls(said.figures(1), pruned, said.sure(0, 1)) if said.alone else cls({}, pruned)

    def to_dict(self) -> dict[str, object]:
        """For a report."""
        return {
            "dense": dict(self.dense),
            "pruned": dict(self.pruned),
            **({"interval": {name: list(ends) for name, ends in self.interval.items()}} if self.interval else {}),
        }
