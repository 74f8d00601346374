"""Networks whose forward takes the heads to fill the width of its input lose heads all the same."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import optin
from optin.running.elastic import Elastic, elastic
from optin.running.gating import gated, masks
from optin.running.surgery import shrink
from optin.space.plans import Cost, Plan
from tests.zoo import NETWORKS, built


class Filling(nn.Module):
    """Attention as many write it: the width comes from the input, the size of a head from it and the count."""

    def __init__(self, width: int = 32, heads: int = 4, split: bool = False) -> None:
        super().__init__()
        self.num_heads, self.split = heads, split
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        x = x.view(torch.int32).view(torch.float32)  # views that are no reshapes
        sizes = (batch, tokens, self.num_heads, width // self.num_heads)
        if self.split:
            query, key, value = (part.view(sizes).transpose(1, 2) for part in self.qkv(x).split(width, dim=-1))
            one, other = query.split(sizes[-1] // 2, dim=-1)  # as rotary angles do: no part is of all heads
            query = torch.cat([-other, one], -1)
        else:
            made = self.qkv(x).reshape(batch, tokens, 3, *sizes[2:]).permute(2, 0, 3, 1, 4)
            query, key, value = made.unbind(0)
        weights = (query @ key.transpose(-2, -1) * (width // self.num_heads) ** -0.5).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, width))


class Small(nn.Module):
    """Two blocks of it."""

    def __init__(self, split: bool = False, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Filling(width, heads, split) for _ in range(2))
        self.norms, self.last = nn.ModuleList(nn.LayerNorm(width) for _ in range(2)), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x))
        return self.last(x.mean(1))


def batches(count: int = 4) -> list[dict[str, torch.Tensor]]:
    return [{"x": torch.randn(4, 4, 32, generator=torch.Generator().manual_seed(seed))} for seed in range(count)]


@pytest.mark.parametrize("split", [False, True])
def test_heads_leave_a_forward_that_counts_them_by_the_width(split, tmp_path):
    torch.manual_seed(0)
    model = Small(split).eval()
    before = copy.deepcopy(model.state_dict())
    result = optin.prune(model, batches(), "60%")
    assert result.plan.sizes == {"layers.0.proj.heads": 4, "layers.1.proj.heads": 4}
    assert min(result.plan.kept.values()) < 4 and result.plan.pruned.macs <= 0.6 * result.plan.dense.macs
    assert type(model.layers[0]) is Filling and all(map(torch.equal, model.state_dict().values(), before.values()))
    cut = next(layer for layer in result.model.layers if layer.proj.in_features < 32)
    assert isinstance(cut, Elastic) and isinstance(cut, Filling)
    result.save(tmp_path / "small")
    loaded = optin.load(tmp_path / "small", into=Small(split))
    pickled = pickle.loads(pickle.dumps(result.model))
    assert torch.equal(pickled(**batches(1)[0]), result.model(**batches(1)[0]))
    for size in (1, 4, 5):  # as many examples, or tokens, as there are heads
        x = torch.randn(size, size, 32)
        assert torch.equal(loaded(x), result.model(x))
    again = optin.prune(result.model, batches(), "80%")
    again.save(tmp_path / "again")
    twice = optin.load(tmp_path / "again", into=Small(split))
    assert torch.equal(twice(**batches(1)[0]), again.model(**batches(1)[0]))
    program = torch.export.export(result.model, (), batches(1)[0], strict=False).module()
    torch.testing.assert_close(program(**batches(1)[0]), result.model(**batches(1)[0]))


@torch.no_grad()
@pytest.mark.parametrize("kept", [1, 2, 3, 4, 5])
def test_any_number_of_heads_may_leave_a_split(kept):
    """Also such as leave a number of features that the old size divides."""
    torch.manual_seed(0)
    model = Small(split=True, width=48, heads=6).eval()
    batch = {"x": torch.randn(4, 4, 48)}
    space = optin.describe(model, batch)
    keep = {name: tuple(range(kept)) for name in space.sizes}
    plan = Plan(space.architecture, space.sizes, keep, Cost(1, 1), Cost(1, 1), 1)
    with gated(model, space, masks(model, plan)):
        expected = model(**batch)
    shrink(model, space, plan)
    torch.testing.assert_close(model(**batch), expected)


def test_one_class_a_kind():
    assert elastic(Filling) is elastic(Filling) and issubclass(elastic(Filling), Filling)


@pytest.mark.parametrize("name", ["longformer", "timm:eva02_tiny_patch14_224", "timm:swinv2_tiny_window8_256"])
def test_networks_of_others(name):
    space = optin.describe(built(name), NETWORKS[name].inputs())
    assert any(group.kind == "head" and group.twins for group in space)
