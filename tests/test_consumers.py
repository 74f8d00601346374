"""Convolutions of every kind as linear maps on rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optin
from optin.running import consumers
from optin.running.consumers import add, matrix, rows_made, rows_read, without_units
from optin.space.units import Gate

CONVOLUTIONS = {
    "series": (nn.Conv1d(4, 6, 3, 2, 1, 2), (20,)),
    "map": (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2)), (9, 12)),
    "same, an even kernel": (nn.Conv2d(4, 6, 4, padding="same"), (9, 12)),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (9, 12)),
    "volume": (nn.Conv3d(4, 6, (2, 3, 3), (1, 2, 1), (0, 1, 1)), (5, 6, 7)),
    "twice as large": (nn.ConvTranspose2d(4, 6, 2, 2), (5, 6)),
    "more behind": (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), (5, 6)),
    "dilated": (nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (2, 1), (1, 2), dilation=(2, 1)), (5, 6)),
    "cropped": (nn.ConvTranspose2d(4, 6, 2, 1, 3), (9, 9)),
    "series, transposed": (nn.ConvTranspose1d(4, 6, 4, 2, 1), (9,)),
    "volume, transposed": (nn.ConvTranspose3d(4, 6, 3, 2, 1, 1), (3, 4, 3)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("positions", [10**9, 8])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@torch.no_grad()
def test_a_convolution_is_a_linear_map_on_rows(name, positions, monkeypatch):
    monkeypatch.setattr(consumers, "POSITIONS", positions)
    module, size = CONVOLUTIONS[name]
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    y, gate = module(x), Gate("0", 1)
    read, made = rows_read(module, gate, x), rows_made(module, gate, y)
    assert read.shape[:2] == made.shape[:2]
    torch.testing.assert_close(read @ matrix(module).mT + module.bias, made, atol=1e-5, rtol=1e-5)
    for block in (1, 2):
        units = [1, 0]
        left = []
        for unit in units:
            rest = x.clone()
            rest[:, unit * block : (unit + 1) * block] = 0
            left.append(module(rest))
        got = without_units(module, Gate("0", 1, block), 2, x, y, units)
        torch.testing.assert_close(got, torch.cat(left), atol=1e-5, rtol=1e-5)
    before, change = matrix(module).clone(), torch.randn(matrix(module).shape)
    add(nn.Sequential(module), gate, change, torch.zeros(6))
    torch.testing.assert_close(matrix(module), before + change, atol=1e-5, rtol=1e-5)


def test_positions_of_a_transposed_convolution_reach_its_whole_kernel():
    """Every second of its positions would read the same entry of a kernel of two."""
    module = nn.ConvTranspose2d(4, 6, 2, 2)
    read = rows_read(module, Gate("0", 1), torch.rand(2, 4, 16, 16) + 1)
    assert read.shape[1] < 32 * 32 and bool(read.flatten(0, 1).any(0).all())


class Volumes(nn.Module):
    """Maps of three axes, one stage with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(3, 12, 3, padding=1), nn.BatchNorm3d(12)
        self.second, self.third = nn.Conv3d(12, 16, 3, 2, 1), nn.Conv3d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        return self.head((x + torch.relu(self.third(x))).mean((2, 3, 4)))


class Upwards(nn.Module):
    """Transposed convolutions read and make what leaves, beside what was skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 24, 3, 2, 1)
        self.up, self.more, self.last = (
            nn.ConvTranspose2d(24, 12, 2, 2),
            nn.ConvTranspose2d(24, 8, 4, 2, 1),
            nn.Conv2d(8, 4, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.first(x))
        up = torch.relu(self.up(torch.relu(self.second(first))))
        return self.last(torch.relu(self.more(torch.cat([first, up], 1))))


class Waves(nn.Module):
    """A sound in, a sound out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 16, 9, 4, 4), nn.Conv1d(16, 24, 5, 2, 2)
        self.third, self.last = nn.ConvTranspose1d(24, 16, 4, 2, 1), nn.ConvTranspose1d(16, 1, 8, 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x)))))))


@pytest.mark.parametrize(
    ("kind", "shape", "units"),
    [
        (Volumes, (4, 3, 4, 8, 8), {"first", "second"}),
        (Upwards, (4, 3, 16, 16), {"first", "second", "up", "more"}),
        (Waves, (4, 1, 64), {"first", "second", "third"}),
    ],
)
@pytest.mark.parametrize("criterion", ["compensated", "exact"])
def test_networks_of_such_convolutions(kind, shape, units, criterion, tmp_path):
    torch.manual_seed(0)
    model = kind().eval()
    batches = [{"x": torch.randn(shape, generator=torch.Generator().manual_seed(seed))} for seed in range(4)]
    result = optin.prune(model, batches, "60%", recipe=optin.Recipe(criterion=criterion))
    assert result.plan.kept.keys() == units and result.plan.pruned.macs <= 0.6 * result.plan.dense.macs
    bare = optin.apply(model, result.plan).model
    with torch.inference_mode():
        near, far = (
            sum(float((small(**batch) - model(**batch)).square().sum()) for batch in batches)
            for small in (result.model, bare)
        )
    assert near <= 1.1 * far
    result.save(tmp_path / "small")
    loaded = optin.load(tmp_path / "small", into=kind())
    assert not loaded.training and torch.equal(loaded(**batches[0]), result.model(**batches[0]))


class Siamese(nn.Module):
    """A chain of maps that runs twice: what one makes and another reads may leave in all runs."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((10, 32), (32, 16), (16, 3))
        self.maps = nn.Sequential(*[layer for size in sizes for layer in (nn.Linear(*size), nn.ReLU())][:-1])

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (self.maps(one) - self.maps(other)).square()


def test_a_chain_that_runs_twice():
    torch.manual_seed(0)
    model = Siamese().eval()
    batches = [{name: torch.randn(8, 10) for name in ("one", "other")} for _ in range(4)]
    result = optin.prune(model, batches, "60%")
    assert result.plan.kept.keys() == {"maps.0", "maps.2"}
    bare = optin.apply(model, result.plan).model
    with torch.inference_mode():
        near, far = (
            sum(float((small(**batch) - model(**batch)).square().sum()) for batch in batches)
            for small in (result.model, bare)
        )
    assert near < far
